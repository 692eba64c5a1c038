// What only S3 has, and how the faces pass a store on. `conformance-s3.test.mjs` tests the rest.

import { execFile } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

import {
  BackupScheduler,
  IntegrityChecker,
  KgError,
  createBackupManager,
} from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { archives, setUpIn } from './support/conformance.mjs';
import { SECRET, startObjectStore } from './support/object-store.mjs';
import { kg, until } from './support/processes.mjs';
import { withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

const setUp = setUpIn(() => store);

describe('a manager of an object store', () => {
  test('is used by a scheduler', async () => {
    const { manager } = setUp();
    const scheduler = new BackupScheduler({ backupManager: manager, schedule: '0 2 * * *' });
    await scheduler.runNow();
    expect(await manager.listBackups()).toHaveLength(1);
    await scheduler.stop();
  });

  test('refuses chains of archives that cannot be read for hours', async () => {
    const { root, prefix } = setUp();
    const frozen = createBackupManager({
      projectRoot: root,
      backupDir: store.url(prefix),
      storageOptions: { ...store.storageOptions, storageClass: 'DEEP_ARCHIVE' },
    });
    await expect(frozen.createBackup({ type: 'incremental' })).rejects.toMatchObject({
      code: 'KG_UNSUPPORTED',
    });
  });
});

describe('the command line', () => {
  const env = () => ({ ...process.env, ...store.env, NO_COLOR: '1' });

  test('uses the store of the settings', async () => {
    const { root, prefix } = setUp();
    const options = { cwd: root, env: env() };
    const url = store.url(prefix);
    expect(await kg(['config', 'set', 'backup.dir', url], options)).toMatchObject({ status: 0 });
    expect(await kg(['diag', 'backup'], options)).toMatchObject({ status: 0 });
    expect(archives(await store.objects.names(prefix))).toHaveLength(1);
    const health = await kg(['diag', 'health', '--json'], options);
    expect(health).toMatchObject({ status: 0 });
    expect(resultOf(health.stdout).backups).toMatchObject({ backupDir: url, count: 1 });
    // A manager without `backupDir` uses it too.
    const manager = createBackupManager({
      projectRoot: root,
      storageOptions: store.storageOptions,
    });
    expect(manager.backupDir).toBe(url);
    expect(await manager.listBackups()).toHaveLength(1);
    expect(readdirSync(path.join(root, '.kg'))).not.toContain('backups');
  });
});

test('a hook does not get the credentials', async () => {
  const { root, prefix } = setUp();
  const seen = path.join(root, '../seen');
  const command = ['sh', '-c', `env > "${seen}.part" && mv "${seen}.part" "${seen}"`];
  writeFileSync(
    path.join(root, '.kg/hooks.json'),
    JSON.stringify({ backup: { hooks: { onSuccess: { command } } } }),
    { mode: 0o600 },
  );
  const made = await kg(['diag', 'backup', '--output', store.url(prefix)], {
    cwd: root,
    env: { ...process.env, ...store.env },
  });
  expect(made).toMatchObject({ status: 0 });
  const text = await until(() => existsSync(seen) && readFileSync(seen, 'utf8'), 'the hook');
  expect(text).toContain('KG_BACKUP_PATH=s3://');
  expect(text).not.toContain(SECRET);
});

describe('what goes wrong', () => {
  const failing = [
    ['a wrong secret', { secretAccessKey: 'wrong' }, 'KG_STORE_DENIED'],
    ['a port without a server', { endpoint: 'http://127.0.0.1:9' }, 'KG_STORE_UNREACHABLE'],
  ];
  for (const [what, options, code] of failing) {
    test(`${what} has a code, and a message without secrets`, async () => {
      const { root, prefix } = setUp();
      const manager = createBackupManager({
        projectRoot: root,
        backupDir: store.url(prefix),
        storageOptions: { ...store.storageOptions, timeout: 2000, ...options },
      });
      for (const call of [() => manager.createBackup(), () => manager.listBackups()]) {
        const error = await call().catch((thrown) => thrown);
        expect(error).toBeInstanceOf(KgError);
        expect(error.code).toBe(code);
        expect(error.remedy).not.toBe('');
        const said = JSON.stringify([
          error.message,
          error.remedy,
          String(error.cause),
          error.stack,
        ]);
        expect(said).not.toContain(SECRET);
      }
    });
  }

  test('a bucket that does not exist', async () => {
    const { root } = setUp();
    const manager = createBackupManager({
      projectRoot: root,
      backupDir: 's3://no-such-bucket/backups',
      storageOptions: store.storageOptions,
    });
    await expect(manager.createBackup()).rejects.toMatchObject({
      message: expect.stringContaining('no-such-bucket'),
    });
  });

  test('options that cannot be used are refused when the manager is made', () => {
    const make = (config) => () => createBackupManager({ projectRoot: '/tmp', ...config });
    const backupDir = 's3://bucket/prefix';
    const refused = [
      { backupDir, storageOptions: { secret: 'x' } },
      { backupDir, storageOptions: { region: 7 } },
      { backupDir, storageOptions: { accessKeyId: 'a' } },
      { backupDir: '/tmp/backups', storageOptions: { region: 'eu-central-1' } },
      { backupDir: 's3://' },
      { backupDir: 'ftp://host/backups' },
      { backupDir: 's3://user:password@bucket/prefix' },
    ];
    for (const config of refused) expect(make(config)).toThrow(KgError);
    const variables = { accessKeyId: undefined, secretAccessKey: undefined, region: 'us-east-1' };
    expect(make({ backupDir, storageOptions: variables })).not.toThrow();
  });

  test('a repair makes its safety backup there', async () => {
    const { database, prefix, root } = setUp();
    withDatabase(database, (db) => {
      db.exec(
        "INSERT INTO nodes_fts(nodes_fts, rowid, title, content) VALUES ('delete', 1, 'x', 'y')",
      );
    });
    const checker = new IntegrityChecker(root, {
      backupDir: store.url(prefix),
      storageOptions: store.storageOptions,
    });
    const { repair } = await checker.runChecks({ repairMode: true });
    expect(repair.safetyBackup.path).toContain(store.url(prefix));
    expect(archives(await store.objects.names(prefix))).toHaveLength(1);
  });

  test('no secret is left in the project, in the store or in what is printed', async () => {
    const { manager, root, prefix } = setUp();
    const backup = await manager.createBackup();
    expect(JSON.stringify(backup)).not.toContain(SECRET);
    const found = await promisify(execFile)('grep', ['-rl', SECRET, root]).catch(
      ({ code, stdout }) => ({ code, stdout }),
    );
    expect(found).toMatchObject({ code: 1, stdout: '' });
    for (const name of await store.objects.names(prefix))
      expect((await store.objects.read(`${prefix}/${name}`)).includes(SECRET)).toBe(false);
  });
});
