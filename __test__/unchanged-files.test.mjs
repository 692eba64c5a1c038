// An incremental backup does not read files that look unchanged since its base.

import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, onTestFinished, test } from 'vitest';

import { kgPath, once, run, spawn } from './support/processes.mjs';
import { contents, makeProject, temporaryDirectory } from './support/project.mjs';

const FILES = 400;
/** A backup relies on the times of a file if it did not change for two seconds. */
const SETTLED_MS = 2200;

/** Waits until no file of the project changed within the last two seconds. */
async function settle(state) {
  const changed = readdirSync(state, { recursive: true }).map(
    (name) => statSync(path.join(state, name)).ctimeMs,
  );
  const left = Math.max(...changed) + SETTLED_MS - Date.now();
  await new Promise((resolve) => setTimeout(resolve, Math.max(0, left)));
}

/** Makes a project of many files and a full backup of it. */
async function setUp() {
  const { root, backups } = makeProject({ nodes: 20 });
  const at = (...parts) => path.join(root, '.kg', ...parts);
  for (let n = 0; n < FILES; n += 1) writeFileSync(at('plugins', `file-${n}`), `content ${n}`);
  await settle(at());
  return { root, at, backups, ...(await backedUp(root, backups)) };
}

async function backedUp(root, backupDir) {
  const manager = createBackupManager({ projectRoot: root, backupDir });
  await manager.createBackup();
  const incremental = (options) => manager.createBackup({ type: 'incremental', ...options });
  return { manager, incremental };
}

async function expectRestores(manager, backup, root, what) {
  expect((await manager.checkBackup(backup.id)).problems, what).toEqual([]);
  const target = path.join(temporaryDirectory(), 'target');
  await manager.restore({ backupPath: backup.path, targetDir: target });
  expect(contents(target), what).toEqual(contents(root));
}

/** Returns how often a command opens one of the many files. */
function opened(cwd, ...command) {
  const log = path.join(temporaryDirectory(), 'log');
  const strace = ['-f', '-qq', '-e', 'trace=open,openat,openat2', '-o', log];
  run('strace', [...strace, ...command], { cwd });
  const lines = readFileSync(log, 'utf8').split('\n');
  return lines.filter((line) => line.includes('/plugins/file-')).length;
}

test('a file that did not change is not opened, except for a random few', async () => {
  const { root, backups } = await setUp();
  const command = [kgPath, 'diag', 'backup', '--type', 'incremental', '--output', backups];
  expect(opened(root, ...command)).toBeLessThan(FILES / 8);
  expect(opened(root, ...command, '--force-read')).toBeGreaterThanOrEqual(FILES);
});

test('a file is read again if anything about it changed, or if it changed just before', async () => {
  const { root, at, manager, incremental } = await setUp();
  const other = (file) => readFileSync(file, 'utf8').toUpperCase();
  const keepingTime = (file, change) => {
    const { atime, mtime } = statSync(file);
    change();
    utimesSync(file, atime, mtime);
  };
  const changes = {
    'other content of the same size': (file) => writeFileSync(file, other(file)),
    'other content and the old time': (file) =>
      keepingTime(file, () => writeFileSync(file, other(file))),
    'another file of the same size and time': (file) =>
      keepingTime(file, () => {
        writeFileSync(`${file}.new`, other(file));
        renameSync(`${file}.new`, file);
      }),
    'the name of another file': (file) => {
      renameSync(file, `${file}.tmp`);
      renameSync(at('plugins/file-399'), file);
      renameSync(`${file}.tmp`, at('plugins/file-399'));
    },
    'a database': (file) => copyFileSync(at('knowledge.db'), file),
    'another mode': (file) => run('chmod', ['600', file]),
    'another time': (file) => utimesSync(file, 1, 1),
    'no content': (file) => writeFileSync(file, ''),
  };
  for (const [number, [what, change]] of Object.entries(changes).entries()) {
    change(at('plugins', `file-${number + 10}`));
    await expectRestores(manager, await incremental(), root, what);
  }
  for (const content of ['one', 'two', 'six']) {
    writeFileSync(at('plugins/file-1'), content);
    await expectRestores(manager, await incremental(), root, 'changed just before');
  }
  rmSync(at('plugins/file-2'));
  await expectRestores(manager, await incremental(), root, 'removed');
});

test('content that changes behind unchanged times is found by chance, and then every file is read', async () => {
  // On tmpfs, a program that writes to a mapped page again leaves the times as they are.
  const base = mkdtempSync('/dev/shm/kg-test-');
  onTestFinished(() => rmSync(base, { recursive: true }));
  const made = makeProject({ nodes: 20 });
  const root = path.join(base, 'project');
  run('cp', ['-a', made.root, root]);
  const plugins = path.join(root, '.kg/plugins');
  for (let n = 0; n < FILES; n += 1) writeFileSync(path.join(plugins, `file-${n}`), `content ${n}`);
  const writer = spawn(
    'python3',
    [
      '-c',
      `import glob, mmap, sys
files = [open(file, "r+b") for file in glob.glob(sys.argv[1] + "/file-*")]
maps = [mmap.mmap(file.fileno(), 0) for file in files]
for letter in b"XYZ":
    for mapped in maps: mapped[0] = letter
    print("written", flush=True)
    sys.stdin.readline()`,
      plugins,
    ],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
  onTestFinished(() => writer.kill());
  await once(writer.stdout, 'data');
  await settle(path.join(root, '.kg'));
  const { manager, incremental } = await backedUp(root, made.backups);
  const writeBehindTimes = async () => {
    writer.stdin.write('\n');
    await once(writer.stdout, 'data');
  };
  await writeBehindTimes();
  // With 400 files, the chance that none is in the random share is below one in 500.
  let found = await incremental();
  for (let tries = 0; found.warnings.length === 0 && tries < 5; tries += 1)
    found = await incremental();
  expect(found.warnings).toMatchObject([{ code: 'KG_WARN_TIMESTAMPS' }]);
  await expectRestores(manager, found, root, 'after it was found');
  await writeBehindTimes();
  const forced = await incremental({ forceRead: true });
  expect(forced.warnings).toEqual([]);
  await expectRestores(manager, forced, root, 'with forceRead');
});
