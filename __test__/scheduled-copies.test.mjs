// `backup.copyTo`: the service and the scheduler copy each backup to a second store, and every
// monitor tells how far the copies are behind.

import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { BackupScheduler, createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test } from 'vitest';

import { FakeClock } from './support/clock.mjs';
import { kg, kgPath, until } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const HOUR_MS = 60 * 60 * 1000;

function setUp(settings = {}) {
  const project = makeProject({ nodes: 20 });
  const copies = path.join(temporaryDirectory(), 'copies');
  const configure = (backup) =>
    writeFileSync(
      path.join(project.root, '.kg/config.json'),
      JSON.stringify({
        database: { path: '.kg/knowledge.db' },
        backup: { listen: 'off', dir: '../backups', copyTo: copies, ...backup },
      }),
    );
  configure(settings);
  const archives = (dir) =>
    existsSync(dir) ? readdirSync(dir).filter((name) => name.endsWith('.tar.gz')) : [];
  const json = async (...args) =>
    resultOf((await kg(['diag', ...args, '--json'], { cwd: project.root })).stdout);
  return {
    ...project,
    copies,
    configure,
    json,
    copied: () => archives(copies).filter((name) => name.startsWith('kg-backup')),
    made: () => archives(project.backups).filter((name) => name.startsWith('kg-backup')),
    kg: (...args) => kg(args, { cwd: project.root }),
  };
}

/** Makes a backup look older than it is. */
function age({ path: archive }, hours) {
  const file = `${archive}.manifest.json`;
  const manifest = JSON.parse(readFileSync(file, 'utf8'));
  manifest.timestamp = new Date(Date.parse(manifest.timestamp) - hours * HOUR_MS).toISOString();
  writeFileSync(file, JSON.stringify(manifest));
}

describe('the service', () => {
  /** Starts the service in the foreground. */
  function serve(root) {
    const child = spawn(kgPath, ['serve', '--foreground'], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    onTestFinished(() => child.kill('SIGKILL'));
    const service = { child, output: '' };
    child.stdout.on('data', (text) => (service.output += text));
    child.stderr.on('data', (text) => (service.output += text));
    const ended = new Promise((resolve) => child.once('exit', resolve));
    service.stop = async () => {
      child.kill('SIGTERM');
      await ended;
    };
    return service;
  }

  test('copies each backup, with the limits of the second store', async () => {
    const { root, made, copied, json, copies } = setUp({
      enabled: true,
      schedule: '* * * * * *',
      copyMaxBackups: 2,
    });
    const service = serve(root);
    await until(() => made().length >= 4, 'four backups');
    await until(() => copied().length === 2, 'two copies');
    await service.stop();
    expect(service.output).toMatch(/copied backup-\S+.* to .*copies, \d+ bytes/);
    await json('backup', '--copy-to');
    const status = await json('backup', '--status');
    expect(status.copies).toMatchObject({ target: copies, missing: 0, lagMs: 0, lastError: null });
    expect(copied()).toContain(`kg-${status.copies.newest}.tar.gz`);
    for (const name of copied())
      expect(await kg(['diag', 'backup', '--verify', path.join(copies, name)])).toMatchObject({
        status: 0,
      });
  });

  test('copies at its start what an earlier one did not', async () => {
    const { root, kg: run, copied } = setUp({ enabled: true, schedule: '0 0 1 1 *' });
    expect((await run('diag', 'backup')).status).toBe(0);
    const service = serve(root);
    await until(() => copied().length === 1, 'the copy');
    await service.stop();
  });

  test('goes on with backups if a copy fails, and reports it once', async () => {
    const { root, made, copies, json } = setUp({ enabled: true, schedule: '* * * * * *' });
    writeFileSync(copies, 'a file in the way');
    const said = path.join(temporaryDirectory(), 'said');
    writeFileSync(
      path.join(root, '.kg/hooks.json'),
      JSON.stringify({
        backup: {
          hooks: { onFailure: { command: ['sh', '-c', `echo "$KG_ERROR_CODE" >> ${said}`] } },
        },
      }),
    );
    const service = serve(root);
    await until(() => existsSync(said) && made().length >= 3, 'the hook and three backups');
    await service.stop();
    expect(readFileSync(said, 'utf8')).toBe('KG_BACKUP_DIR_INVALID\n');
    expect(service.output).toContain('the backups could not be copied');
    const status = await json('backup', '--status');
    expect(status.copies).toMatchObject({
      newest: null,
      lastError: { code: 'KG_BACKUP_DIR_INVALID' },
    });
    expect(status.copies.missing).toBe(made().length);
    expect(status.health.messages.join()).toContain('the last copy to');
  });

  test('ends while it copies, and leaves only complete copies', async () => {
    const { root, copies, copied } = setUp({ enabled: true, schedule: '0 0 1 1 *' });
    writeFileSync(path.join(root, '.kg/vectors/large.f32'), Buffer.alloc(256 * 1024 * 1024, 7));
    const manager = createBackupManager({ projectRoot: root });
    await manager.createBackup({ compression: false });
    const service = serve(root);
    const isCopying = () => existsSync(copies) && readdirSync(copies).length > 0;
    await until(isCopying, 'the copy has begun');
    await service.stop();
    for (const name of copied())
      expect(await manager.verifyBackup(path.join(copies, name))).toBe(true);
    expect(readdirSync(copies).filter((name) => name.startsWith('.kg-partial'))).toEqual([]);
  });
});

describe('a scheduler', () => {
  function schedule(root, options = {}) {
    const failures = [];
    const scheduler = new BackupScheduler({
      backupManager: createBackupManager({ projectRoot: root, ...options }),
      schedule: '0 * * * *',
      clock: new FakeClock(Date.now()),
      onFailure: (error) => failures.push(error),
    });
    onTestFinished(() => scheduler.stop({ abort: true }));
    return { scheduler, failures };
  }

  test('copies after each run, and its stop waits for the copy', async () => {
    const { root, copied } = setUp();
    const { scheduler, failures } = schedule(root);
    await scheduler.runNow();
    await scheduler.runNow();
    await scheduler.stop();
    expect(copied()).toHaveLength(2);
    expect(failures).toEqual([]);
  });

  test('reports a copy that fails, and makes the backup', async () => {
    const { root, copies, made } = setUp();
    writeFileSync(copies, 'a file in the way');
    const { scheduler, failures } = schedule(root);
    const backup = await scheduler.runNow();
    await scheduler.stop();
    expect(made()).toContain(path.basename(backup.path));
    expect(failures).toEqual([expect.objectContaining({ code: 'KG_BACKUP_DIR_INVALID' })]);
    expect(failures[0]).toBeInstanceOf(Error);
  });

  test('copies nothing without the setting', async () => {
    const { root, configure, copied } = setUp();
    configure({ copyTo: undefined });
    const { scheduler, failures } = schedule(root);
    await scheduler.runNow();
    await scheduler.stop();
    expect([copied(), failures]).toEqual([[], []]);
  });
});

describe('copies that are behind', () => {
  const codes = ({ issues }) => issues.map(({ code }) => code);

  test('are reported by status, health and metrics', async () => {
    const { root, json, kg: run } = setUp();
    const first = await json('backup');
    age(first, 3);
    await json('backup', '--copy-to');
    const second = await json('backup');
    expect(codes(await json('health')), 'a copy has an hour').not.toContain('KG_ISSUE_COPY_BEHIND');
    age(second, 2);

    const { copies, health } = await json('backup', '--status');
    expect(copies).toMatchObject({ newest: first.id, missing: 1 });
    expect(copies.lagMs).toBeGreaterThan(2 * HOUR_MS);
    expect(health.ok).toBe(false);
    expect((await run('diag', 'backup', '--status')).stdout).toMatch(
      /copies {4}in .*: newest .*; the newest backup of this store is missing there/,
    );
    const { issues } = await json('health');
    expect(issues).toContainEqual(
      expect.objectContaining({ code: 'KG_ISSUE_COPY_BEHIND', severity: 'warning' }),
    );
    const metrics = path.join(root, 'kg.prom');
    await json('backup', '--metrics-file', metrics);
    const values = readFileSync(metrics, 'utf8');
    expect(values).toMatch(/^kg_backup_copy_missing\{.*\} 2$/m);
    expect(values).toMatch(/^kg_backup_copy_failed\{.*\} 0$/m);
    expect(values).toMatch(/^kg_backup_copy_last_timestamp_seconds\{/m);
    const [, lag] = values.match(/^kg_backup_copy_lag_seconds\{.*\} ([\d.]+)$/m);
    expect(Number(lag)).toBeGreaterThan(7200);

    await json('backup', '--copy-to');
    expect(codes(await json('health'))).not.toContain('KG_ISSUE_COPY_BEHIND');
    const after = await json('backup', '--status');
    expect([after.copies.missing, after.health.ok]).toEqual([0, true]);
  });

  test('are noticed next to a copy that is dated ahead', async () => {
    const { json } = setUp();
    age(await json('backup'), -24 * 365);
    await json('backup', '--copy-to');
    age(await json('backup'), 2);
    const { copies } = await json('backup', '--status');
    expect(copies).toMatchObject({ newest: null, missing: 1 });
  });

  test('are unknown to health if the second store cannot be read', async () => {
    const { json, copies } = setUp();
    await json('backup');
    writeFileSync(copies, 'a file in the way');
    expect(codes(await json('health'))).toContain('KG_ISSUE_COPY_UNKNOWN');
  });

  test('are noticed by health even if the record says otherwise', async () => {
    const { json, copies } = setUp();
    const backup = await json('backup');
    await json('backup', '--copy-to');
    renameSync(copies, `${copies}-gone`);
    mkdirSync(copies);
    age(backup, 2);
    expect(codes(await json('health'))).toContain('KG_ISSUE_COPY_BEHIND');
  });

  test('are unknown to status if the record cannot be read', async () => {
    const { root, json } = setUp();
    await json('backup');
    await json('backup', '--copy-to');
    const record = path.join(root, '.kg/cache/backup-copies.json');
    rmSync(record);
    mkdirSync(record);
    const status = await json('backup', '--status');
    expect(status).not.toHaveProperty('copies');
    expect(status.health.messages.join()).toContain('how far the copies are behind is unknown');
  });
});
