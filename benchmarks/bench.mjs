// `npm run bench`: compares this project with the usual ways to make a backup, interleaved in one
// run. `--help` lists the options.
//
// steps.mjs              the operations to measure
// contenders.mjs         the contenders and their commands
// measure.mjs            the rounds; run.mjs runs one command; writer.mjs is a concurrent writer
// commands.mjs           the times of single `kg` commands
// object-stores.mjs      backups in an object store
// tables.mjs, plots.mjs  the output
//
// Each number is the median of the runs, with its spread. Only ratios within one run are
// meaningful. All contenders read from the page cache. The data that they keep or restore is synced
// to disk within the measured time.
//
// The times of this project and of npm's tar are those of the call in a Node process that already
// runs. The times of the others are those of their commands.
//
// Memory is the sum over all processes of a contender (host and worker; shell, tar and compressor).
// It is sampled from /proc every 5 ms in a separate round. A page that several processes share
// counts once.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

import { prepare, root } from '../scripts/setup.mjs';
import { CONTENDERS, available } from './contenders.mjs';

const HELP = `npm run bench -- [options]

  --sizes 50,500      sizes of the projects' databases in MB; 5000 needs 25 GB of disk and hours
                      (with --sweep: 10,50,200,500)
  --files 0           plugin files of 1 kB in each project
  --fresh             databases fresh from VACUUM, whose pages have no leftovers of earlier content
  --runs 5            measured runs; one more before them is not counted (with --sweep: 3)
  --only ours,pigz    these contenders alone
  --sweep             instead of the tables, measure the curves: backup over size, incremental backups over what changed
  --object-store      instead of the tables, measure backups in an object store on this machine
  --changes 0,0.1,…   the points of the latter curve: per cent of the pages, default 0,0.1,1,5,20,100
  --plots             draw the curves that were measured (docs/internals/plots, or plots below --data)
  --data benchmarks/data   where projects, result.md and result.json are kept
  --no-build          measure the build that is installed
  --help

Contenders, of which those that are not available are named and left out:
${CONTENDERS.map(({ key, name }) => `  ${key.padEnd(18)}  ${name}`).join('\n')}`;

const { values } = parseArgs({
  options: {
    sizes: { type: 'string' },
    files: { type: 'string', default: '0' },
    fresh: { type: 'boolean', default: false },
    runs: { type: 'string' },
    only: { type: 'string' },
    sweep: { type: 'boolean', default: false },
    'object-store': { type: 'boolean', default: false },
    changes: { type: 'string', default: '0,0.1,1,5,20,100' },
    plots: { type: 'boolean', default: false },
    data: { type: 'string' },
    'no-build': { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
if (values.help) {
  console.log(HELP);
  process.exit();
}

const data = path.resolve(values.data ?? path.join(root, 'benchmarks/data'));
const plotsDir = values.data ? path.join(data, 'plots') : path.join(root, 'docs/internals/plots');
const resultFile = path.join(data, 'result.json');
const runs = wholeNumbers('runs', values.runs ?? (values.sweep ? '3' : '5'))[0];
const sizes = wholeNumbers('sizes', values.sizes ?? (values.sweep ? '10,50,200,500' : '50,500'));
const [files] = numbers(
  'files',
  values.files,
  (number) => Number.isInteger(number) && number >= 0,
  'a whole number',
);
const changes = numbers(
  'changes',
  values.changes,
  (number) => number >= 0 && number <= 100,
  'numbers from 0 to 100',
);
const work = path.join(data, 'work');

function numbers(name, list, isPossible, what) {
  const given = list.split(',').map(Number);
  if (given.every(isPossible)) return given;
  console.error(`--${name} takes ${what}, not ${list}\n\n${HELP}`);
  process.exit(2);
}

function wholeNumbers(name, list) {
  return numbers(
    name,
    list,
    (number) => Number.isInteger(number) && number > 0,
    'whole numbers from 1',
  );
}

/**
 * Merges `part` into the result file. The rest stays because tables and curves are measured by
 * different runs.
 */
function keep(part) {
  const before = existsSync(resultFile) ? JSON.parse(readFileSync(resultFile, 'utf8')) : {};
  writeFileSync(resultFile, `${JSON.stringify({ ...before, ...part }, null, 2)}\n`);
}

const databaseBytes = (dir) => statSync(path.join(dir, '.kg/knowledge.db')).size;

async function measureTables(contenders) {
  const { STEPS } = await import('./steps.mjs');
  const { project } = await import('./project.mjs');
  const { rounds, writers } = await import('./measure.mjs');
  const { tablesOf } = await import('./tables.mjs');
  const { checks, commandLine } = await import('./commands.mjs');
  const measured = [];
  const texts = [];
  for (const megabytes of sizes) {
    const dir = project(data, megabytes, { files, fresh: values.fresh });
    const results = await rounds(contenders, STEPS, dir, work, runs);
    const writerAloneMs = await writers(contenders, results, dir, work, runs);
    measured.push({
      megabytes,
      files,
      fresh: values.fresh,
      databaseBytes: databaseBytes(dir),
      runs,
      writerAloneMs,
      contenders: results,
    });
    texts.push(tablesOf(measured.at(-1)), checks(dir, runs));
    console.log(`${texts.slice(-2).join('\n\n')}\n`);
  }
  texts.push(commandLine(project(data, 2), work), machine());
  console.log(texts.slice(-2).join('\n\n'));
  writeFileSync(path.join(data, 'result.md'), `${texts.join('\n\n')}\n`);
  keep({ tables: { machine: machine(), sizes: measured } });
}

async function measureObjectStores() {
  const { project } = await import('./project.mjs');
  const { objectStores } = await import('./object-stores.mjs');
  for (const megabytes of sizes) {
    const dir = project(data, megabytes, { files, fresh: values.fresh });
    console.log(`${megabytes} MB\n\n${await objectStores(dir, work, runs)}\n\n${machine()}\n`);
  }
}

async function measureCurves(contenders) {
  const { BACKUP_ALONE, changeSteps } = await import('./steps.mjs');
  const { project } = await import('./project.mjs');
  const { rounds } = await import('./measure.mjs');
  const bySize = [];
  for (const megabytes of sizes) {
    const dir = project(data, megabytes);
    bySize.push({
      megabytes,
      databaseBytes: databaseBytes(dir),
      contenders: await rounds(contenders, BACKUP_ALONE, dir, work, runs),
    });
  }
  const curveMegabytes = Math.min(200, Math.max(...sizes));
  const pages = project(data, curveMegabytes, { shape: 'pages' });
  const incremental = contenders.filter(({ incremental }) => incremental);
  const byChange = [];
  for (const changedPercent of changes) {
    byChange.push({
      changedPercent,
      contenders: await rounds(incremental, changeSteps(changedPercent), pages, work, runs),
    });
  }
  keep({
    sweep: {
      machine: machine(),
      runs,
      bySize,
      byChange: { megabytes: curveMegabytes, points: byChange },
    },
  });
}

async function drawPlots() {
  const { plotsOf } = await import('./plots.mjs');
  const { sweep } = existsSync(resultFile) ? JSON.parse(readFileSync(resultFile, 'utf8')) : {};
  if (!sweep) throw new Error(`${resultFile} has no curves yet: measure them with --sweep`);
  mkdirSync(plotsDir, { recursive: true });
  for (const [name, svg] of Object.entries(plotsOf(sweep))) {
    writeFileSync(path.join(plotsDir, name), svg);
    console.log(path.join(plotsDir, name));
  }
}

function machine() {
  const memory = (os.totalmem() / 2 ** 30).toFixed(0);
  const tools = [
    ['restic', 'version'],
    ['borg', '--version'],
    ['pigz', '--version'],
    ['zstd', '--version'],
    ['sqlite3', '--version'],
  ];
  const versions = tools.map(([tool, flag]) => {
    try {
      const said = execFileSync(tool, [flag], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      return `, ${tool} ${said.match(/\d+(\.\d+)+/)?.[0] ?? ''}`;
    } catch {
      return '';
    }
  });
  const date = new Date().toISOString().slice(0, 10);
  return `${date}: ${os.cpus().length} × ${os.cpus()[0].model}, ${memory} GiB, Linux ${os.release()}, Node ${process.versions.node}${versions.join('')}`;
}

mkdirSync(data, { recursive: true });
if (values.sweep || !values.plots) {
  if (!values['no-build']) {
    await prepare();
  }
  if (values['object-store']) {
    await measureObjectStores();
  } else {
    const contenders = available(values.only?.split(','));
    if (contenders.length === 0) throw new Error('Nobody is left to measure');
    await (values.sweep ? measureCurves : measureTables)(contenders);
  }
}
if (values.plots) await drawPlots();
