// The end of managers and schedulers: close(), stop() and `await using`.

import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import {
  BackupScheduler,
  backupFreshnessCheck,
  createBackupManager,
} from '@weavelogic/knowledge-graph-agent';
import ts from 'typescript';
import { expect, onTestFinished, test, vi } from 'vitest';

import { repository, run } from './support/processes.mjs';
import { makeProject, withDatabase } from './support/project.mjs';

function setUp(config = {}) {
  const project = makeProject();
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    ...config,
  });
  onTestFinished(() => manager.close());
  return { ...project, manager };
}

const closed = { name: 'KgError', code: 'KG_CLOSED', message: expect.stringMatching(/is closed/) };

test('every call of a closed manager rejects, and changes nothing', async () => {
  const { manager, root, backups } = setUp();
  const check = backupFreshnessCheck(manager).check;
  const scheduler = manager.scheduler({ schedule: '@daily' });
  await manager.close();
  const fn = vi.fn();
  for (const call of [
    () => manager.createBackup(),
    () => manager.listBackups(),
    () => manager.getBackup('backup-20240115-020000'),
    () => manager.getLatestBackup(),
    () => manager.deleteBackup('backup-20240115-020000'),
    () => manager.pin('backup-20240115-020000'),
    () => manager.unpin('backup-20240115-020000'),
    () => manager.consolidate('backup-20240115-020000'),
    () => manager.copyTo(`${backups}-copies`),
    () => manager.prune({ dryRun: true }),
    () => manager.verifyBackup('latest'),
    () => manager.checkBackup('latest'),
    () => manager.restore({ backupId: 'latest' }),
    () => manager.undoRestore(),
    () => manager.rehearse(),
    () => manager.guard(fn),
    () => scheduler.runNow(),
    check,
  ])
    await expect(call(), String(call)).rejects.toMatchObject(closed);
  expect(fn).not.toHaveBeenCalled();
  expect(() => scheduler.start()).toThrow(expect.objectContaining(closed));
  expect(scheduler.status()).toMatchObject({ started: false, nextRun: null, running: null });
  expect(existsSync(backups)).toBe(false);
  expect(manager.projectRoot).toBe(root);
  expect(manager.backupDir).toBe(backups);
  await manager.close();
});

test('close waits for the calls in progress, which end as they would have', async () => {
  const { manager } = setUp();
  const ends = [];
  const backup = manager.createBackup().finally(() => ends.push('backup'));
  const refused = manager.getBackup('none').catch(({ code }) => ends.push(code));
  await manager.close().then(() => ends.push('close'));
  expect(ends.sort()).toEqual(['KG_BACKUP_NOT_FOUND', 'backup', 'close']);
  expect(ends.at(-1)).toBe('close');
  expect(existsSync((await backup).path)).toBe(true);
  await refused;
});

test('close stops the started schedulers of the manager, and waits for their runs', async () => {
  const { manager, backups } = setUp();
  const failures = [];
  const options = { schedule: '@daily', onFailure: (error) => failures.push(error) };
  const made = manager.scheduler(options);
  const own = new BackupScheduler({ backupManager: manager, ...options });
  const stopped = manager.scheduler(options);
  const waiting = manager.scheduler(options);
  for (const scheduler of [made, own, stopped]) scheduler.start();
  await stopped.stop();
  const runs = [own.runNow(), waiting.runNow()];
  await manager.close();
  for (const scheduler of [made, own, stopped, waiting]) {
    expect(scheduler.status()).toMatchObject({ started: false, nextRun: null, running: null });
  }
  const ids = (await Promise.all(runs)).map(({ id }) => id);
  const archives = readdirSync(backups).filter((name) => /^kg-backup-.*\.tar\.gz$/.test(name));
  expect(archives).toHaveLength(new Set(ids).size);
  expect(failures).toEqual([]);
});

test('close lets a scheduler copy its last backup to the second store', async () => {
  const { manager, root, backups } = setUp();
  const copies = `${backups}-copies`;
  writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify({ backup: { copyTo: copies } }));
  const onFailure = vi.fn();
  const scheduler = manager.scheduler({ schedule: '@daily', onFailure });
  const backup = scheduler.runNow();
  await manager.close();
  expect(readdirSync(copies)).toContain(path.basename((await backup).path));
  expect(onFailure).not.toHaveBeenCalled();
});

test('a guard in progress restores although its manager is closed meanwhile', async () => {
  const { manager, database } = setUp();
  let closing;
  const guarded = manager.guard(
    async () => {
      withDatabase(database, (db) => db.exec('DELETE FROM edges; DELETE FROM nodes'));
      closing = manager.close().then(() => 'closed');
      await expect(manager.listBackups()).rejects.toMatchObject(closed);
      throw new Error('boom');
    },
    { onError: 'restore' },
  );
  const first = await Promise.race([guarded.catch((error) => error), guarded.catch(() => closing)]);
  expect(first).toMatchObject({ code: 'KG_GUARD_FAILED', restored: { dryRun: false } });
  expect(await closing).toBe('closed');
  const count = (db) => db.prepare('SELECT count(*) FROM nodes').pluck().get();
  expect(withDatabase(database, count)).toBe(200);
});

test('a disposed scheduler is stopped, and its run has ended', async () => {
  const { manager } = setUp();
  const scheduler = manager.scheduler({ schedule: '@daily' });
  scheduler.start();
  const backup = scheduler.runNow();
  await scheduler[Symbol.asyncDispose]();
  expect(scheduler.status()).toMatchObject({ started: false, running: null, runs: 1 });
  expect(await manager.getBackup(await backup)).toMatchObject({ type: 'full' });
  scheduler.start();
  expect(scheduler.status().started).toBe(true);
});

test('`await using` closes managers and stops schedulers at the end of the block', () => {
  const { root, backups } = setUp();
  // The directory is inside the repository so that the program finds the package by its name.
  const directory = mkdtempSync(path.join(repository, '__test__/.using-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const source = `
    import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
    const config = { projectRoot: process.argv[2], backupDir: process.argv[3] };
    let [manager, scheduler, backup] = [];
    {
      await using own = createBackupManager(config);
      await using daily = own.scheduler({ schedule: '@daily', keepAlive: true });
      daily.start();
      backup = daily.runNow();
      [manager, scheduler] = [own, daily];
    }
    console.log(scheduler.status().started, scheduler.status().runs, (await backup).type);
    await manager.listBackups().catch(({ code }) => console.log(code));`;
  const { outputText } = ts.transpileModule(source, {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  });
  const program = path.join(directory, 'program.mjs');
  writeFileSync(program, outputText);
  expect(run(process.execPath, [program, root, backups])).toBe('false 1 full\nKG_CLOSED\n');
});
