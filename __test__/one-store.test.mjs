// Eight processes use one store for half a minute, some through `kg` and some through the API. Each
// backs up, prunes, deletes, lists, verifies and restores at random. No reader waits, and no backup
// is lost, listed before it is complete, or left over.

import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, onTestFinished, test } from 'vitest';

import { startWriter } from './support/processes.mjs';
import { integrityOf, makeProject } from './support/project.mjs';

const PROCESSES = 8;
const RUN_MS = 30_000;
const worker = path.join(path.dirname(fileURLToPath(import.meta.url)), 'support/store-user.mjs');

function start(args) {
  const child = spawn(process.execPath, [worker, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  onTestFinished(() => child.kill('SIGKILL'));
  let output = '';
  child.stdout.on('data', (text) => (output += text));
  child.stderr.on('data', (text) => (output += text));
  return new Promise((resolve) => child.on('close', (status) => resolve({ status, output })));
}

test(`${PROCESSES} processes and a writer share one store and one project`, async () => {
  const { root, database, backups } = makeProject({ nodes: 300 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const first = await manager.createBackup();
  const writer = await startWriter(database);
  const runs = Array.from({ length: PROCESSES }, (_, n) =>
    start([root, backups, String(RUN_MS), String(n)]),
  );
  const results = await Promise.all(runs);
  await writer.stop();
  const totals = {};
  for (const { status, output } of results) {
    expect(status, output).toBe(0);
    for (const [key, count] of Object.entries(JSON.parse(output)))
      totals[key] = (totals[key] ?? 0) + count;
  }
  console.log(`${PROCESSES} processes in ${RUN_MS / 1000} s:`, totals);
  for (const what of ['made', 'deleted', 'pruned', 'verified', 'restored', 'listed'])
    expect(totals[what], what).toBeGreaterThan(0);

  const left = await manager.listBackups();
  expect(left.length).toBe(1 + totals.made - totals.deleted - totals.pruned);
  for (const { path: archive } of left) expect(await manager.verifyBackup(archive)).toBe(true);
  expect(left.some(({ id }) => id === first.id) || totals.deleted + totals.pruned > 0).toBe(true);
  const last = await manager.createBackup();
  expect(last.integrity.status).toBe('ok');
  expect(
    readdirSync(backups).filter((name) => name.startsWith('.kg-') && name !== '.kg-store.lock'),
  ).toEqual([]);
  expect(existsSync(path.join(root, '.kg/restore-journal.json'))).toBe(false);
  expect(integrityOf(database)).toBe('ok');
});

test('two managers in one process wait for each other like two processes', async () => {
  const { root, backups } = makeProject();
  const managers = [1, 2, 3, 4].map(() =>
    createBackupManager({ projectRoot: root, backupDir: backups }),
  );
  const made = await Promise.all(
    managers.flatMap((manager) => [
      manager.createBackup(),
      manager.createBackup({ type: 'snapshot' }),
    ]),
  );
  expect(new Set(made.map(({ id }) => id)).size).toBe(8);
  for (const { path: archive } of made) expect(await managers[0].verifyBackup(archive)).toBe(true);
  await Promise.all(made.slice(0, 4).map(({ id }, n) => managers[n].deleteBackup(id)));
  expect((await managers[0].listBackups()).map(({ id }) => id).sort()).toEqual(
    made
      .slice(4)
      .map(({ id }) => id)
      .sort(),
  );
});
