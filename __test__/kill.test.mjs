// SIGKILL of a backup, a restore and an undo at random times. Every listed backup must verify, and
// earlier ones must not change. A target is in its old or its restored state, the next run works,
// and no files are left over.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { count } from './support/figures.mjs';
import { kgPath } from './support/processes.mjs';
import { contents, makeProject, withDatabase } from './support/project.mjs';

const KILLS = 200;

const tick = () => new Promise((resolve) => setImmediate(resolve));

async function spin(milliseconds) {
  const until = performance.now() + milliseconds;
  while (performance.now() < until) await tick();
}

/**
 * Runs `kg` and kills it after a time or once `sign` has appeared. Resolves to whether it was still
 * running.
 */
async function runAndKill(args, { cwd, afterMs, sign }) {
  const child = spawn(kgPath, args, { cwd, stdio: 'ignore' });
  const exited = once(child, 'exit');
  while (sign && child.exitCode === null && !existsSync(sign)) await tick();
  await spin(afterMs);
  child.kill('SIGKILL');
  const [, signal] = await exited;
  const wasRunning = signal === 'SIGKILL';
  count({ kills: Number(wasRunning) });
  return wasRunning;
}

const digest = (file) => createHash('sha256').update(readFileSync(file)).digest('hex');
const leftovers = (dir) =>
  readdirSync(dir).filter((name) =>
    /^(restore-(staging|journal)|\.kg-(partial|snapshot))/.test(name),
  );

test(`a backup, killed ${KILLS} times`, async () => {
  const { root, backups } = makeProject({ nodes: 3000 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups, maxBackups: 4 });
  const first = await manager.createBackup();
  const before = digest(first.path);
  let interrupted = 0;
  for (let n = 0; n < KILLS; n += 1) {
    const args = [
      'diag',
      'backup',
      '--output',
      backups,
      '--quiet',
      ...(n % 3 ? [] : ['--compression', 'none']),
    ];
    if (await runAndKill(args, { cwd: root, afterMs: (n / KILLS) * 60 })) interrupted += 1;
    const listed = await manager.listBackups();
    expect(listed.map(({ id }) => id)).toContain(first.id);
    for (const { id, path: archive } of listed) {
      expect(await manager.verifyBackup(archive), id).toBe(true);
      if (id !== first.id) await manager.deleteBackup(id);
    }
    expect(digest(first.path)).toBe(before);
  }
  console.log(`a backup was killed ${interrupted} times of ${KILLS}`);
  expect(interrupted).toBeGreaterThan(KILLS / 4);
  const next = await manager.createBackup();
  expect(await manager.verifyBackup(next.path)).toBe(true);
  expect(leftovers(backups)).toEqual([]);
  expect(leftovers(path.join(root, '.kg'))).toEqual([]);
});

/** Makes a project with two databases and its backup. `spoil` changes its state. */
async function setUp(spoilDatabase) {
  const { root, database, backups } = makeProject({ nodes: 500 });
  const at = (...parts) => path.join(root, '.kg', ...parts);
  const makeVectors = () =>
    withDatabase(at('vectors.db'), (db) =>
      db.exec(
        'CREATE TABLE IF NOT EXISTS embeddings (id); DELETE FROM embeddings; INSERT INTO embeddings VALUES (1)',
      ),
    );
  makeVectors();
  mkdirSync(at('plugins/glossary/empty'));
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const { path: archive } = await manager.createBackup();
  const restored = contents(root);
  const spoil = () => {
    spoilDatabase(database);
    withDatabase(at('vectors.db'), (db) => db.exec('UPDATE embeddings SET id = 2'));
    writeFileSync(at('config.json'), '{"theme":"light"}');
    rmSync(at('plugins/glossary'), { recursive: true, force: true });
  };
  return { root, database, manager, archive, restored, spoil, at };
}

const remove = (database) =>
  ['', '-wal', '-shm'].forEach((suffix) => rmSync(database + suffix, { force: true }));
const damages = {
  'sound databases': (database) =>
    withDatabase(database, (db) => db.exec("DELETE FROM nodes WHERE id <> 'n1'")),
  'a damaged database': (database) => {
    remove(database);
    writeFileSync(database, 'noise');
  },
  'no database': remove,
};

for (const [what, spoilDatabase] of Object.entries(damages)) {
  const kills = what === 'sound databases' ? KILLS : KILLS / 4;

  test(`a restore over ${what} and its undo, killed ${kills} times each`, async () => {
    const { root, manager, archive, restored, spoil, at } = await setUp(spoilDatabase);
    spoil();
    const old = contents(root);
    expect(old).not.toEqual(restored);
    const seen = { old: 0, restored: 0, interrupted: 0, decided: 0 };
    let is = old;
    for (let n = 0; n < 2 * kills; n += 1) {
      // The current state decides which command runs, because each one leads to the other state.
      const args = is === old ? ['--file', archive] : ['--undo'];
      const journal = at('restore-journal.json');
      const timing =
        n % 2
          ? { sign: journal, afterMs: ((n * 7) % 50) / 10 }
          : { afterMs: (n / (2 * kills)) * 25 };
      await runAndKill(['diag', 'restore', '--quiet', ...args], { cwd: root, ...timing });
      if (existsSync(journal)) {
        seen.interrupted += 1;
        if (JSON.parse(readFileSync(journal, 'utf8')).decided) seen.decided += 1;
      }
      // Any next run recovers the project. A backup of a project without a database then reports
      // that.
      const next = manager
        .createBackup({ type: 'snapshot' })
        .then(({ id }) => manager.deleteBackup(id));
      await next.catch((error) => expect(error.code, error.message).toBe('KG_NO_DATABASE'));
      const found = contents(root);
      is = JSON.stringify(found) === JSON.stringify(old) ? old : restored;
      expect(found).toEqual(is);
      seen[is === old ? 'old' : 'restored'] += 1;
      expect(leftovers(at())).toEqual([]);
    }
    console.log(`killed ${2 * kills} times over ${what}:`, seen);
    await manager.restore({ backupPath: archive, overwrite: true });
    expect(contents(root)).toEqual(restored);
    expect(await manager.verifyBackup(archive)).toBe(true);
  });
}
