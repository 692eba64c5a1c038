// Archives that were moved to another disk and linked back into the store still count as backups. A
// missing target does not count as a removed archive, and a link to another file is not followed.

import { execFileSync, spawnSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { expect, test } from 'vitest';

import { kg as runKg, kgPath } from './support/processes.mjs';
import { makeProject, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const MANIFEST = '.manifest.json';

/** Makes a store with an incremental backup. Its base, the only full backup, is on another disk. */
async function setUp() {
  const { root, database, backups } = makeProject({ nodes: 5 });
  const kg = (...args) => runKg(['diag', ...args], { cwd: root });
  const make = async (...args) =>
    resultOf((await kg('backup', '--output', backups, '--json', ...args)).stdout);
  const base = await make();
  withDatabase(database, (db) => db.exec("UPDATE nodes SET title = 'changed' WHERE id = 'n1'"));
  const newest = await make('--type', 'incremental');
  const disk = path.join(root, '../disk');
  mkdirSync(disk);
  const moved = path.join(disk, path.basename(base.path));
  renameSync(base.path, moved);
  symlinkSync(moved, base.path);
  return { root, backups, base, newest, disk, moved, kg, make };
}

test('they are listed, checked and restored, and their incremental backups stay', async () => {
  const { root, backups, base, newest, kg, make } = await setUp();
  const { backups: listed } = resultOf(
    (await kg('backup', '--list', '--output', backups, '--json')).stdout,
  );
  expect(listed.map(({ id }) => id)).toEqual([newest.id, base.id]);
  for (const backup of ['latest', newest.id, base.id, base.path, newest.path]) {
    expect(await kg('backup', '--verify', backup, '--output', backups), backup).toMatchObject({
      status: 0,
      stderr: '',
    });
  }
  const target = path.join(root, '../restored');
  expect(await kg('restore', '--file', newest.path, '--target', target)).toMatchObject({
    status: 0,
  });
  expect(
    withDatabase(path.join(target, '.kg/knowledge.db'), (db) =>
      db.prepare("SELECT title FROM nodes WHERE id = 'n1'").get(),
    ),
  ).toEqual({ title: 'changed' });
  const { warnings } = await make('--type', 'incremental', '--max-backups', '1');
  expect(warnings).toEqual([]);
  expect(existsSync(newest.path) && existsSync(base.path)).toBe(true);
});

test('on a disk that is not mounted they do not count as deleted: nothing is removed and no name is reused', async () => {
  const { backups, base, newest, disk, kg, make } = await setUp();
  renameSync(disk, `${disk}-away`);
  const manifest = readFileSync(base.path + MANIFEST);
  expect(await kg('backup', '--list', '--output', backups)).toMatchObject({
    status: 6,
    stderr: expect.stringContaining('is a link that leads nowhere'),
    stdout: expect.stringContaining('[cannot be read]'),
  });
  expect(await kg('prune', '--max-backups', '1', '--output', backups)).toMatchObject({
    status: 4,
    stderr: expect.stringContaining('Mount the disk that it leads to'),
  });
  expect((await make('--max-backups', '1')).warnings).toContainEqual({
    code: 'KG_WARN_STORE',
    message: expect.stringContaining('none was removed'),
  });
  for (const args of [
    ['backup', '--verify', base.path],
    ['restore', '--file', base.path, '--target', `${disk}-target`],
  ]) {
    expect(await kg(...args)).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/is a link that leads nowhere[^]*Mount the disk/),
    });
  }
  expect(readFileSync(base.path + MANIFEST)).toEqual(manifest);
  expect(lstatSync(base.path).isSymbolicLink()).toBe(true);
  renameSync(`${disk}-away`, disk);
  expect((await kg('backup', '--verify', newest.id, '--output', backups)).status).toBe(0);
});

test('their removal deletes only the link, and reports the path of the archive', async () => {
  const { backups, moved, kg, make } = await setUp();
  const full = await make();
  const pruned = resultOf(
    (await kg('prune', '--max-backups', '1', '--output', backups, '--json')).stdout,
  );
  expect(pruned.warnings).toEqual([
    {
      code: 'KG_WARN_STORE',
      message: expect.stringContaining(`the archive itself stays: ${moved}`),
    },
  ]);
  expect(pruned.bytesFreed).toBeGreaterThan(0);
  expect(readdirSync(backups).filter((name) => name.endsWith('.tar.gz'))).toEqual([
    path.basename(full.path),
    'latest.tar.gz',
  ]);
  expect(existsSync(moved)).toBe(true);
  renameSync(full.path, moved);
  symlinkSync(moved, full.path);
  await make();
  const deleted = await kg('backup', '--delete', full.id, '--output', backups);
  expect(deleted).toMatchObject({ status: 0, stderr: expect.stringContaining(moved) });
  expect([existsSync(full.path), existsSync(moved)]).toEqual([false, true]);
});

test('a link to a pipe is not waited for', async () => {
  const { backups, kg } = await setUp();
  const at = (stamp) => path.join(backups, `kg-backup-${stamp}.tar.gz`);
  execFileSync('mkfifo', [at('20200101-000000')]);
  symlinkSync(at('20200101-000000'), at('20200101-000001'));
  for (const args of [
    ['backup'],
    ['backup', '--list'],
    ['prune', '--max-backups', '9'],
    ['backup', '--verify', 'latest'],
  ]) {
    const { status, stderr } = await kg(...args, '--output', backups);
    expect({ status, stderr }, args.join(' ')).toMatchObject({ status: 0 });
  }
});

test('a link to something without the name of an archive or manifest is not opened', async () => {
  const { root, backups, base, kg } = await setUp();
  const database = path.join(root, '../host.db');
  withDatabase(database, (db) => db.exec('CREATE TABLE t(x)'));
  for (const stamp of ['20240101-000000', '20240101-000001']) {
    const archive = path.join(backups, `kg-backup-${stamp}.tar.gz`);
    if (stamp.endsWith('0')) symlinkSync(database, archive);
    else {
      symlinkSync(base.path, archive);
      symlinkSync(database, archive + MANIFEST);
    }
  }
  const trace = path.join(root, '../trace');
  const commands = [
    ['backup', '--list'],
    ['backup', '--status'],
    ['backup'],
    ['prune', '--max-backups', '9'],
    ['backup', '--verify', 'backup-20240101-000000'],
    ['backup', '--verify', 'kg-backup-20240101-000000.tar.gz'],
  ];
  for (const args of commands) {
    writeFileSync(trace, '');
    spawnSync(
      'strace',
      ['-f', '-e', 'trace=open,openat', '-o', trace, kgPath, 'diag', ...args, '--output', backups],
      { cwd: root },
    );
    expect(readFileSync(trace, 'utf8')).toContain('openat');
    expect(readFileSync(trace, 'utf8'), args.join(' ')).not.toMatch(
      /host\.db|(20240101-000000\.tar\.gz|20240101-000001\.tar\.gz\.manifest\.json)"/,
    );
  }
  expect((await kg('backup', '--list', '--output', backups)).stdout).toContain(
    '[archive does not match its manifest]',
  );
});
