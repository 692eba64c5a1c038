// What errors and objects show on the console, in JSON and in logs: enough to help, and no secret.

import { inspect } from 'node:util';

import {
  GuardError,
  KgError,
  createBackupManager,
  createIntegrityChecker,
} from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { makeProject } from './support/project.mjs';

const asJson = (value) => JSON.parse(JSON.stringify(value));
const thrownBy = (work) =>
  work.then(
    () => expect.unreachable('it succeeded'),
    (error) => error,
  );

describe('an error as JSON', () => {
  test('has its code, message and remedy, and no stack', async () => {
    const { root, backups } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const error = await thrownBy(manager.getBackup('backup-20240115-020000'));
    const { name, code, message, remedy } = error;
    expect(name).toBe('KgError');
    expect(asJson(error)).toEqual({ name, code, message, remedy });
    expect(asJson({ failed: [error] })).toEqual({ failed: [asJson(error)] });
  });

  test('has its cause, and the causes of that, once each', () => {
    const inner = Object.assign(new TypeError('inner'), { code: 'E_INNER', secret: 'hidden' });
    const outer = new Error('outer', { cause: inner });
    const error = new KgError({ code: 'KG_IO', message: 'It failed', remedy: 'Try', cause: 'EIO' });
    expect(asJson(error).cause).toEqual({ name: 'Error', message: 'EIO' });
    const guarded = (cause) => asJson(new GuardError({ cause, backup: { id: 'backup-x' } }));
    expect(guarded(outer)).toEqual({
      name: 'GuardError',
      code: 'KG_GUARD_FAILED',
      message: expect.stringContaining('outer'),
      remedy: expect.stringContaining('backup-x'),
      backupId: 'backup-x',
      restored: false,
      cause: {
        name: 'Error',
        message: 'outer',
        cause: { name: 'TypeError', message: 'inner', code: 'E_INNER' },
      },
    });
    inner.cause = outer;
    expect(guarded(outer).cause.cause.cause).toBe('outer');
  });

  test('has the text of a cause that is not an error', () => {
    const cause = (value) => asJson(new GuardError({ cause: value, backup: { id: 'x' } })).cause;
    expect(cause('a text')).toBe('a text');
    expect(cause(undefined)).toBe('undefined');
    expect(cause(Symbol('s'))).toBe('Symbol(s)');
    expect(cause(Object.create(null))).toBe('[object Object]');
  });

  test('that an abort caused has the reason', async () => {
    const { root, backups } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const signal = AbortSignal.abort(new Error('stopped'));
    expect(asJson(await thrownBy(manager.createBackup({ signal })))).toEqual({
      name: 'AbortError',
      message: 'The operation was aborted',
      code: 'ABORT_ERR',
      cause: { name: 'Error', message: 'stopped' },
    });
  });
});

test('an error of guard is recognized in every copy of the package', async () => {
  const modules = await import('../index.mjs');
  const error = new GuardError({ cause: 1, backup: { id: 'x' } });
  expect(error).toBeInstanceOf(modules.GuardError);
  expect(error).toBeInstanceOf(modules.KgError);
  const other = new KgError({ code: 'KG_IO', message: 'x', remedy: 'x' });
  for (const no of [other, new Error('x'), null]) expect(no).not.toBeInstanceOf(modules.GuardError);
  class Special extends GuardError {}
  expect(error).not.toBeInstanceOf(Special);
  expect(new Special({ cause: 1, backup: { id: 'x' } })).toBeInstanceOf(Special);
});

describe('on the console', () => {
  test('a manager shows its project, its store and its state', async () => {
    const { root, backups } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const fields = { projectRoot: root, backupDir: backups, state: 'open', callsInProgress: 0 };
    expect(inspect(manager)).toBe(`BackupManager ${inspect(fields)}`);
    const listing = manager.listBackups();
    expect(inspect(manager)).toContain('callsInProgress: 1');
    await listing;
    await manager.close();
    expect(inspect(manager)).toBe(`BackupManager ${inspect({ ...fields, state: 'closed' })}`);
    expect(inspect({ a: { b: { manager } } }, { depth: 1 })).not.toContain(root);
    expect(inspect([[manager]], { depth: 0 })).toBe('[ [Array] ]');
    expect(inspect({ manager }, { depth: 0 })).toBe('{ manager: [BackupManager] }');
  });

  test('a manager without a store of its own says where the store is set', () => {
    const { root } = makeProject();
    expect(inspect(createBackupManager({ projectRoot: root }))).toContain(
      "backupDir: '(see .kg/config.json)'",
    );
  });

  test('a scheduler shows its schedule and its state', async () => {
    const { root, backups } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const scheduler = manager.scheduler({ schedule: '0 2 * * *', type: 'incremental' });
    const fields = {
      projectRoot: root,
      schedule: '0 2 * * *',
      type: 'incremental',
      started: false,
      running: false,
      nextRun: null,
      runs: 0,
      failures: 0,
      consecutiveFailures: 0,
    };
    expect(inspect(scheduler)).toBe(`BackupScheduler ${inspect(fields)}`);
    const backup = scheduler.runNow();
    expect(inspect(scheduler)).toContain("running: 'manual'");
    await backup;
    scheduler.start();
    expect(inspect(scheduler)).toContain(`nextRun: ${scheduler.nextRun().toISOString()}`);
    await manager.close();
  });

  test('a checker shows what it checks', () => {
    const { root, database, backups } = makeProject();
    expect(inspect(createIntegrityChecker(database))).toBe(
      `IntegrityChecker { path: '${database}' }`,
    );
    const named = createIntegrityChecker(database, { projectRoot: root, backupDir: backups });
    const fields = { path: database, projectRoot: root, backupDir: backups };
    expect(inspect(named)).toBe(`IntegrityChecker ${inspect(fields)}`);
  });
});

test('no secret appears on the console, in JSON or in errors', async () => {
  const { root, database } = makeProject();
  const secrets = {
    secretAccessKey: 'SECRET-access',
    sessionToken: 'SECRET-token',
    passphrase: 'SECRET passphrase',
    proxyPassword: 'SECRET-proxy',
  };
  const { passphrase, secretAccessKey, sessionToken, proxyPassword } = secrets;
  const options = {
    projectRoot: root,
    // Port 1 answers nothing.
    backupDir: 's3://bucket/prefix',
    encryption: { passphrase },
    storageOptions: {
      accessKeyId: 'SECRET-id',
      secretAccessKey,
      sessionToken,
      proxy: `http://user:${proxyPassword}@127.0.0.1:1`,
      timeout: 100,
    },
  };
  const manager = createBackupManager(options);
  const checker = createIntegrityChecker(database, options);
  const scheduler = manager.scheduler({ schedule: '@daily', retries: 0 });
  const failures = [
    await thrownBy(manager.listBackups()),
    await thrownBy(manager.guard(() => {})),
    await thrownBy(scheduler.runNow()),
    await thrownBy(manager.restore({ backupId: 'latest', only: ['nothing'] })),
  ];
  for (const error of failures) expect(error).toBeInstanceOf(KgError);
  const objects = [manager, checker, scheduler, ...failures];
  const shown = objects.flatMap((object) => [
    inspect(object, { depth: Infinity, showHidden: true }),
    JSON.stringify(object),
    String(object),
    String(object.stack),
  ]);
  for (const text of shown) expect(text).not.toContain('SECRET');
});
