// `npm run bench [-- --sizes 50,500 --runs 3]`: this project beside the usual ways, interleaved in one run.
//
// Every number is the median of the runs with its spread; only the ratios of one run mean anything. Files are in the page
// cache for everyone. A tool that is not installed is named and left out.

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

import { build, packages, root } from '../scripts/setup.mjs';

packages();
build();
const { project } = await import('./project.mjs');
const { kgPath } = (await import('../lib/platform.js')).default;

const { values } = parseArgs({ options: { sizes: { type: 'string', default: '50,500' }, runs: { type: 'string', default: '3' } } });
const sizes = values.sizes.split(',').map(Number);
const runs = Number(values.runs);

function has(tool) {
  return spawnSync('sh', ['-c', `command -v ${tool}`]).status === 0;
}

function seconds(work) {
  const began = performance.now();
  work();
  return (performance.now() - began) / 1000;
}

function sh(script) {
  execFileSync('sh', ['-ec', script], { stdio: ['ignore', 'ignore', 'inherit'] });
}

function host(dir, out, call) {
  const text = execFileSync(process.execPath, ['--expose-gc', path.join(root, 'bench/host.mjs'), dir, out, call], { encoding: 'utf8' });
  return JSON.parse(text);
}

/** `sqlite3 .backup`, then tar of the copy and the rest, through a compressor. */
function pipeline(name, tool, compress, ending, test, decompress) {
  const archive = (out) => path.join(out, `archive.${ending}`);
  return {
    name,
    needs: ['sqlite3', tool],
    backup(dir, out) {
      const taken = seconds(() =>
        sh(`mkdir ${out}/copy; sqlite3 ${dir}/.kg/knowledge.db '.backup ${out}/copy/knowledge.db'
            cp ${dir}/.kg/config.json ${out}/copy/; tar -C ${out}/copy -c . | ${compress} > ${archive(out)}; sync ${archive(out)}
            rm -r ${out}/copy`),
      );
      return { seconds: taken, bytes: statSync(archive(out)).size };
    },
    verify: (dir, out) => ({ seconds: seconds(() => sh(`${test} ${archive(out)}; sha256sum ${archive(out)}`)) }),
    restore: (dir, out) => ({ seconds: seconds(() => sh(`mkdir ${out}/restored; ${decompress} ${archive(out)} | tar -C ${out}/restored -x`)) }),
  };
}

const ours = {
  name: 'this project',
  needs: [],
  backup: (dir, out) => host(dir, out, 'backup'),
  verify: (dir, out) => host(dir, out, 'verify'),
  restore: (dir, out) => host(dir, out, 'restore'),
};
const peers = [
  pipeline('.backup + tar | pigz -6', 'pigz', 'pigz -6', 'tar.gz', 'pigz -t', 'pigz -dc'),
  pipeline('.backup + tar | gzip -6', 'gzip', 'gzip -6', 'tar.gz', 'gzip -t', 'gzip -dc'),
  pipeline('.backup + tar | zstd -3 -T0', 'zstd', 'zstd -q -3 -T0', 'tar.zst', 'zstd -q -t', 'zstd -q -dc'),
];
const contestants = [ours, ...peers].filter(({ name, needs }) => {
  const missing = needs.filter((tool) => !has(tool));
  if (missing.length > 0) console.log(`left out, ${missing.join(' and ')} not installed: ${name}`);
  return missing.length === 0;
});

function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

function spread(numbers, digits = 2) {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)].map((number) => number.toFixed(digits));
  return `${median(numbers).toFixed(digits)} (${least}–${most})`;
}

const tables = [];
for (const megabytes of sizes) {
  const dir = project(megabytes);
  const size = statSync(path.join(dir, '.kg/knowledge.db')).size;
  const results = new Map(contestants.map(({ name }) => [name, { backup: [], verify: [], restore: [], bytes: [], host: [] }]));
  // The first round warms the caches and is not counted.
  for (let round = 0; round <= runs; round += 1) {
    for (const contestant of contestants) {
      const out = path.join(root, 'bench/data/out');
      rmSync(out, { recursive: true, force: true });
      mkdirSync(out, { recursive: true });
      const [backup, verify, restore] = ['backup', 'verify', 'restore'].map((call) => contestant[call](dir, out));
      rmSync(out, { recursive: true });
      if (round === 0) continue;
      const result = results.get(contestant.name);
      result.backup.push(backup.seconds);
      result.verify.push(verify.seconds);
      result.restore.push(restore.seconds);
      result.bytes.push(backup.bytes);
      result.host.push(backup);
    }
  }
  const own = results.get(ours.name);
  const lines = [`Database of ${(size / 1e6).toFixed(0)} MB, ${runs} runs; ratios are to this project, larger is slower`, ''];
  lines.push('| | backup s | ratio | verify s | ratio | restore s | ratio | MB kept | ratio |', '| --- '.repeat(9) + '|');
  for (const [name, result] of results) {
    const cells = ['backup', 'verify', 'restore'].flatMap((call) => [
      spread(result[call]),
      (median(result[call]) / median(own[call])).toFixed(2),
    ]);
    const bytes = [(median(result.bytes) / 1e6).toFixed(1), (median(result.bytes) / median(own.bytes)).toFixed(3)];
    lines.push(`| ${[name, ...cells, ...bytes].join(' | ')} |`);
  }
  const of = (field) => own.host.map((run) => run[field]);
  lines.push('', `JavaScript thread during a backup: stalls of ${spread(of('stallP99'))} ms at p99, ${spread(of('stallMax'))} ms at most`);
  lines.push(`Memory of host and reader together grew by ${spread(of('grown').map((bytes) => bytes / 2 ** 20), 0)} MiB`);
  tables.push(lines.join('\n'));
  console.log(`\n${tables.at(-1)}`);
}

/** Incremental backups of a copy of the project: after 1 % of the rows changed, spread out, and after nothing changed. */
function incrementals(megabytes) {
  const dir = path.join(root, 'bench/data/changing');
  const out = path.join(root, 'bench/data/out');
  const results = { full: [], changed: [], unchanged: [] };
  for (let round = 0; round < runs; round += 1) {
    for (const place of [dir, out]) rmSync(place, { recursive: true, force: true });
    mkdirSync(out);
    sh(`cp -r ${project(megabytes)} ${dir}`);
    results.full.push(host(dir, out, 'backup'));
    sh(`sqlite3 ${dir}/.kg/knowledge.db "UPDATE nodes SET content = 'changed ' || content WHERE rowid % 100 = ${round}"`);
    results.changed.push(host(dir, out, 'incremental'));
    results.unchanged.push(host(dir, out, 'incremental'));
  }
  for (const place of [dir, out]) rmSync(place, { recursive: true, force: true });
  const of = (name, field) => results[name].map((run) => run[field]);
  const lines = ['| | s | of the full | MB kept | of the full |', '| --- '.repeat(5) + '|'];
  for (const [name, label] of [['full', 'full'], ['changed', 'incremental, 1 % of the rows changed'], ['unchanged', 'incremental, nothing changed']]) {
    const share = (field) => `${((100 * median(of(name, field))) / median(of('full', field))).toFixed(1)} %`;
    const kept = (median(of(name, 'bytes')) / 1e6).toFixed(name === 'unchanged' ? 4 : 1);
    lines.push(`| ${[label, spread(of(name, 'seconds')), share('seconds'), kept, share('bytes')].join(' | ')} |`);
  }
  return lines.join('\n');
}

for (const megabytes of sizes) {
  tables.push(incrementals(megabytes));
  console.log(`\n${tables.at(-1)}`);
}

// A small project by the command, as cron runs it.
const small = project(2);
const times = [];
for (let round = 0; round <= 10; round += 1) {
  const out = path.join(root, 'bench/data/out');
  rmSync(out, { recursive: true, force: true });
  const taken = seconds(() => execFileSync(kgPath, ['diag', 'backup', '--quiet', '--output', out], { cwd: small }));
  if (round > 0) times.push(taken);
}
rmSync(path.join(root, 'bench/data/out'), { recursive: true, force: true });
tables.push(`\`kg diag backup\` of a project of 2 MB: ${spread(times, 3)} s, 10 runs`);
console.log(`\n${tables.at(-1)}`);

const machine = `${os.cpus().length} × ${os.cpus()[0].model}, ${(os.totalmem() / 2 ** 30).toFixed(0)} GiB, Linux ${os.release()}, Node ${process.version}`;
console.log(`\n${machine}`);
writeFileSync(path.join(root, 'bench/data/result.md'), `${[...tables, machine].join('\n\n')}\n`);
