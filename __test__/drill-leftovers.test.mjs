// A drill unpacks a backup, decrypted, into a private directory and removes it, whatever modes the
// directories of the backup have.

import { chmodSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { expect, onTestFinished, test } from 'vitest';

import { run } from './support/processes.mjs';
import { fillDatabase, temporaryDirectory } from './support/project.mjs';
import { giveTo, ownDirectory, reachableKg, runAs } from './support/tree.mjs';

const isRoot = process.getuid() === 0;
const USER = { uid: 65534, gid: 65534 };

/**
 * Makes a project of another user, a backup of it and a temporary directory. A plugin has
 * directories with these modes.
 */
function makeBackup(modes) {
  const base = temporaryDirectory();
  const root = path.join(base, 'project');
  mkdirSync(path.join(root, '.kg/plugins'), { recursive: true });
  writeFileSync(path.join(root, '.kg/config.json'), '{}');
  fillDatabase(path.join(root, '.kg/knowledge.db'), { nodes: 20 });
  for (const mode of modes) {
    const dir = path.join(root, '.kg/plugins', mode.toString(8));
    mkdirSync(path.join(dir, 'inner'), { recursive: true });
    writeFileSync(path.join(dir, 'token'), 'secret');
    writeFileSync(path.join(dir, 'inner/token'), 'secret');
    for (const locked of [path.join(dir, 'inner'), dir]) chmodSync(locked, mode);
  }
  const kg = reachableKg(base);
  // Root makes the backup, because root can read directories that their owner cannot enter.
  const store = path.join(base, 'store');
  const made = runAs({ uid: 0 }, [kg, 'diag', 'backup', '--project', root, '--output', store]);
  expect(made.status, made.stderr).toBe(0);
  giveTo(store, [USER.uid, USER.gid]);
  giveTo(root, [USER.uid, USER.gid]);
  const temporary = ownDirectory(path.join(base, 'tmp'), USER);
  return {
    temporary,
    drill: [kg, 'diag', 'drill', '--project', root, '--backup-dir', store],
    env: { ...process.env, TMPDIR: temporary, HOME: temporary },
  };
}

test.skipIf(!isRoot)(
  'no files are left if directories of the backup may not be written or entered',
  () => {
    const { temporary, drill, env } = makeBackup([0o555, 0o500, 0o000, 0o111, 0o444]);
    const done = runAs(USER, drill, { env });
    expect(readdirSync(temporary)).toEqual([]);
    expect(done.stdout + done.stderr).toContain('nodes     20 of 20');
  },
);

test.skipIf(!isRoot)('leftovers of a killed drill are removed by the next one', async () => {
  const { temporary, drill, env } = makeBackup([0o555]);
  const left = ownDirectory(path.join(temporary, '.kg-drill-killed'), USER);
  mkdirSync(path.join(left, 'project/locked'), { recursive: true });
  writeFileSync(path.join(left, 'project/locked/token'), 'secret');
  giveTo(left, [USER.uid, USER.gid]);
  for (const mode of [0o555, 0o000]) {
    chmodSync(path.join(left, 'project/locked'), mode);
    expect(runAs(USER, drill, { env }).status).toBe(0);
    expect(readdirSync(temporary)).toEqual([]);
    mkdirSync(path.join(left, 'project/locked'), { recursive: true });
    giveTo(left, [USER.uid, USER.gid]);
  }
});

test.skipIf(!isRoot)('a directory that cannot be removed is an error that names it', () => {
  const { temporary, drill, env } = makeBackup([0o755]);
  // Entries of an append-only directory cannot be removed.
  run('chattr', ['+a', temporary]);
  onTestFinished(() => run('chattr', ['-a', temporary]));
  const done = runAs(USER, drill, { env });
  const left = readdirSync(temporary).find((name) => name.startsWith('.kg-drill-'));
  expect(done.status).not.toBe(0);
  expect(done.stderr).toContain(path.join(temporary, left));
});
