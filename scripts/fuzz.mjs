// Fuzzes the code that reads untrusted bytes: each target of fuzz/ for a minute, from seeds made
// here.
//
//   node scripts/fuzz.mjs [--seconds 60] [TARGET ...]
//
// Installs cargo-fuzz below target/ if it is missing. With a nightly toolchain AddressSanitizer is
// on, which also finds invalid memory accesses in the C libraries.

import { execFileSync, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { nativeParts } from '../lib/native-parts.mjs';
import { prepare, root } from './setup.mjs';

const CARGO_FUZZ = '0.13.2';
const fuzzDir = path.join(root, 'fuzz');
const work = path.join(root, 'target/fuzz');

export const targets = readdirSync(path.join(fuzzDir, 'fuzz_targets'))
  .filter((file) =>
    readFileSync(path.join(fuzzDir, 'fuzz_targets', file), 'utf8').includes('fuzz_target!'),
  )
  .map((file) => path.basename(file, '.rs'));

/** Returns a function that calls cargo-fuzz with the options that suit this machine. */
function cargoFuzz() {
  const tools = path.join(root, 'target/tools');
  const env = {
    ...process.env,
    CARGO_PROFILE_RELEASE_LTO: 'off',
    CARGO_PROFILE_RELEASE_STRIP: 'none',
    PATH: `${tools}/bin:${process.env.PATH}`,
  };
  const has = (...args) =>
    spawnSync('cargo', [...args, '--version'], { env, stdio: 'ignore' }).status === 0;
  if (!has('fuzz')) {
    execFileSync(
      'cargo',
      ['install', 'cargo-fuzz', '--version', CARGO_FUZZ, '--locked', '--root', tools],
      { stdio: 'inherit' },
    );
  }
  const hasNightly = has('+nightly');
  const options = [
    '--fuzz-dir',
    fuzzDir,
    '--target-dir',
    work,
    '--sanitizer',
    hasNightly ? 'address' : 'none',
  ];
  return (command, args, { tmp = os.tmpdir(), ...more } = {}) =>
    spawnSync(
      'cargo',
      [...(hasNightly ? ['+nightly'] : []), 'fuzz', command, ...options, ...args],
      { cwd: root, env: { ...env, TMPDIR: tmp }, encoding: 'utf8', maxBuffer: 1 << 30, ...more },
    );
}

/**
 * Returns the seeds of each target: data that `kg` writes for a small project, and the samples
 * below.
 */
function seeds() {
  const { kgPath } = nativeParts();
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-seeds-'));
  const project = path.join(dir, 'project');
  const state = path.join(project, '.kg');
  mkdirSync(path.join(state, 'plugins'), { recursive: true });
  const sqlite = (sql) =>
    execFileSync('sqlite3', [path.join(state, 'knowledge.db'), sql], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  sqlite(`PRAGMA page_size = 512; PRAGMA journal_mode = WAL; CREATE TABLE nodes (id TEXT PRIMARY KEY, title TEXT);
    CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX by_title ON nodes (title);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30) INSERT INTO nodes SELECT 'n' || i, 'title ' || i FROM n;
    INSERT INTO notes VALUES (1, hex(zeroblob(900)));`);
  writeFileSync(path.join(state, 'config.json'), '{"theme": 1}');
  writeFileSync(path.join(state, 'plugins/data'), 'data');
  const backup = (...args) =>
    JSON.parse(
      execFileSync(kgPath, ['diag', 'backup', '--json', ...args], {
        cwd: project,
        encoding: 'utf8',
      }),
    );
  const full = ['none', 'gzip', 'zstd'].map((format) => backup('--compression', format).path);
  sqlite("UPDATE nodes SET title = 'other' WHERE id = 'n3'");
  const incremental = backup('--type', 'incremental', '--compression', 'none').path;
  const archives = [...full, incremental];
  const entry = (archive, name) =>
    execFileSync('tar', ['-xOf', archive, name], { maxBuffer: 1 << 30 });
  const manifests = archives.map((archive) => entry(archive, 'manifest.json'));
  const lists = [full[0], incremental].map((archive) => entry(archive, 'files.jsonl'));
  const pages = String(lists[1])
    .split('\n')
    .filter((line) => line.includes('"stored":"pages"'))
    .map((line) => entry(incremental, JSON.parse(line).entry));
  execFileSync(kgPath, ['diag', 'restore', '--file', full[0], '--yes'], { cwd: project });
  const [undo] = readdirSync(path.join(state, 'restore-undo'));
  const record = readFileSync(
    path.join(state, 'restore-undo', undo, 'undo.json'),
    'utf8',
  ).replaceAll(dir, '@');
  const database = readFileSync(path.join(state, 'knowledge.db'));
  const contents = archives.map((archive) => readFileSync(archive));
  rmSync(dir, { recursive: true });
  return {
    archive: contents,
    cron: CRON,
    // The first byte sets where the content is cut.
    deflate: [Buffer.concat([Buffer.from([40]), Buffer.from(manifests[0])]), database],
    // The first byte sets the size of the chunks in which the target receives the rest.
    delta: [...pages, database].map((bytes) => Buffer.concat([Buffer.from([200]), bytes])),
    file_list: [Buffer.from(lists.join('\n'))],
    fast_check: [database, Buffer.from(database).fill(0, 512, 1024)],
    journal: [true, false].map((decided) => JSON.stringify(journal(decided, JSON.parse(record)))),
    manifest: manifests,
    protocol: FRAMES,
    salvage: [database, Buffer.from(database).fill(0, 512, 1024), database.subarray(1024)],
    settings: SETTINGS.map((settings) => JSON.stringify(settings)),
    undo: [record],
  };
}

const CRON = [
  '0 2 * * *',
  '*/15 9-17 * * MON-FRI',
  '@daily',
  '0 0 29 2 *',
  '30 2 L * *\nEurope/Berlin',
  '0 0 2 * * 1#2\nAmerica/St_Johns',
];

const frame = (kind, payload) =>
  Buffer.concat([
    Buffer.from(kind),
    Buffer.from(new Uint32Array([payload.length]).buffer),
    Buffer.from(payload),
  ]);
const FRAMES = [
  frame('J', JSON.stringify({ message: 'planned', bytes_total: 1 })),
  Buffer.concat([
    frame('D', 'data'),
    frame('B', 'h'.repeat(32) + 'block'),
    frame('J', '{"message":"databaseEnd","sha256":"00","blocks":[]}'),
  ]),
  frame(
    'J',
    JSON.stringify({
      message: 'failed',
      error: { code: 'KG_INTERNAL', message: 'm', remedy: 'r' },
    }),
  ),
];

const SETTINGS = [
  {
    theme: 1,
    database: { path: 'data/graph.db' },
    backup: {
      dir: '/backups',
      encrypt: true,
      recipients: ['age1'],
      passphraseFile: 'key',
      listen: '127.0.0.1:9',
      keep: { daily: 7, weekly: 4 },
    },
  },
  {
    backup: {
      retention: 30,
      maxBackups: 10,
      schedule: '0 2 * * *',
      timezone: 'Europe/Berlin',
      type: 'incremental',
      compression: 'zstd',
    },
  },
];

/** A journal of an interrupted restore. `@` stands for the directory that contains the project. */
const journal = (decided, record) => ({
  decided,
  token: 't',
  staging: '.kg/restore-staging-1/',
  opened: [{ at: '.kg', mode: 493, mtime: [1, 2] }],
  made: [{ at: '.kg/made', mode: null, mtime: null }],
  moves: [{ from: '.kg/restore-staging-1/0', to: '.kg/config.json', identity: [1, 2] }],
  swaps: [
    {
      new: '.kg/restore-staging-1/0',
      live: '.kg/knowledge.db',
      kept: '.kg/restore-undo/20240115-020000/a',
      pending: '.kg/restore-undo/20240115-020000/.kg-pending/a',
    },
  ],
  undo: ['.kg/restore-undo/20240115-020000', record],
  retired: '.kg/restore-undo/20240115-020000',
  emptied: ['.kg/plugins', '../outside'],
  outside: '@/outside/secret',
});

/**
 * Fuzzes each target for `seconds` seconds. Returns the number of executions and of failures. For
 * each failure, prints the end of the output of the fuzzer, which says how to reproduce it.
 */
export function fuzz(names = targets, seconds = 60) {
  const cargo = cargoFuzz();
  const made = cargo('build', [], { stdio: 'inherit' });
  if (made.status !== 0) return { executions: 0, failures: names.length };
  const all = seeds();
  const sum = { executions: 0, failures: 0 };
  for (const name of names) {
    const [corpus, given] = ['corpus', 'seeds'].map((kind) => path.join(work, kind, name));
    for (const dir of [corpus, given]) mkdirSync(dir, { recursive: true });
    all[name].forEach((bytes, number) => writeFileSync(path.join(given, String(number)), bytes));
    const tmp = existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir();
    // The leak check is off because it reports a thread that is about to end as a leak.
    const limits = [
      `-max_total_time=${seconds}`,
      '-timeout=20',
      '-rss_limit_mb=2048',
      '-detect_leaks=0',
      '-max_len=65536',
      '-print_final_stats=1',
    ];
    const { status, stderr } = cargo('run', [name, corpus, given, '--', ...limits], { tmp });
    const executions = Number(stderr.match(/number_of_executed_units: (\d+)/)?.[1] ?? 0);
    const coverage = stderr.match(/cov: (\d+)/g)?.pop() ?? '';
    console.log(`${name}: ${executions} executions, ${coverage}${status === 0 ? '' : ', FAILED'}`);
    sum.executions += executions;
    if (status === 0 && executions > 0) continue;
    sum.failures += 1;
    console.log(stderr.split('\n').slice(-60).join('\n'));
  }
  return sum;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const args = process.argv.slice(2);
  const at = args.indexOf('--seconds');
  const [, seconds] = at < 0 ? [] : args.splice(at, 2);
  await prepare('--dev');
  const { executions, failures } = fuzz(args.length > 0 ? args : targets, Number(seconds ?? 60));
  console.log(`${executions} fuzz executions, ${failures} failures`);
  process.exitCode = failures === 0 ? 0 : 1;
}
