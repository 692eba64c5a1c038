// Backups in a real object store behave like backups in a directory.

import { execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

import {
  BackupScheduler,
  IntegrityChecker,
  KgError,
  createBackupManager,
} from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { SECRET, startObjectStore } from './support/object-store.mjs';
import { kg, kgPath, run, until } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

let prefixes = 0;

/** Returns a project and a manager whose backups are below a prefix of their own. */
function setUp(config = {}) {
  prefixes += 1;
  const prefix = `stores/${prefixes}`;
  const project = makeProject({ nodes: 50 });
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: store.url(prefix),
    storageOptions: store.storageOptions,
    ...config,
  });
  const other = path.join(path.dirname(project.root), 'restored');
  return { ...project, prefix, manager, other };
}

const named = (dir) => readFileSync(path.join(dir, '.kg/plugins/glossary/terms.json'), 'utf8');
const archives = (names) => names.filter((name) => name.endsWith('.tar.gz'));

/** Adds a row, so that the next backup has something to save. */
const change = (database, text) =>
  withDatabase(database, (db) =>
    db.prepare('INSERT INTO nodes (id, title, content) VALUES (?, ?, ?)').run(text, text, text),
  );

describe('a manager of an object store', () => {
  test('makes, lists, verifies and restores backups', async () => {
    const { manager, other, prefix } = setUp();
    expect(manager.backupDir).toBe(store.url(prefix));
    const phases = new Set();
    const backup = await manager.createBackup({
      description: 'before the move',
      onProgress: ({ phase }) => phases.add(phase),
    });
    expect(phases).toContain('saving');
    expect(backup).toMatchObject({ type: 'full', description: 'before the move', warnings: [] });
    const name = `kg-${backup.id}.tar.gz`;
    expect(backup.path).toBe(`${store.url(prefix)}/${name}`);
    expect(await store.objects.names(prefix)).toEqual([
      '.kg-store.lock',
      name,
      `${name}.manifest.json`,
    ]);
    expect(await manager.listBackups()).toMatchObject([{ id: backup.id, size: backup.size }]);
    expect(await manager.getLatestBackup()).toMatchObject({ id: backup.id });
    expect(await manager.verifyBackup(backup.id)).toBe(true);
    const checked = await manager.checkBackup('latest', { listFiles: true });
    expect(checked).toMatchObject({ valid: true, problems: [], path: backup.path });
    expect(checked.files.length).toBeGreaterThan(3);
    await manager.restore({ backupId: 'latest', targetDir: other });
    expect(integrityOf(path.join(other, '.kg/knowledge.db'))).toBe('ok');
    expect(named(other)).toBe('["graph","node"]\n');
    expect(await manager.rehearse()).toMatchObject({ id: backup.id });
  });

  test('keeps archives that plain tools restore', async () => {
    const { manager, prefix } = setUp();
    const { id } = await manager.createBackup();
    const dir = temporaryDirectory();
    const archive = path.join(dir, 'archive.tar.gz');
    const bytes = await store.objects.read(`${prefix}/kg-${id}.tar.gz`);
    writeFileSync(archive, bytes);
    run('tar', ['xzf', archive, '-C', dir]);
    run('sha256sum', ['-c', '--quiet', 'checksums.sha256'], { cwd: dir });
    expect(integrityOf(path.join(dir, 'database.sqlite'))).toBe('ok');
    const sidecar = JSON.parse(await store.objects.read(`${prefix}/kg-${id}.tar.gz.manifest.json`));
    expect(sidecar.archive.sha256).toBe(createHash('sha256').update(bytes).digest('hex'));
  });

  test('makes chains, and checks them without reading them', async () => {
    const { manager, database, root, other, prefix } = setUp();
    const ids = [(await manager.createBackup()).id];
    for (const text of ['one', 'two']) {
      change(database, text);
      const next = await manager.createBackup({ type: 'incremental' });
      expect(next).toMatchObject({ type: 'incremental', basedOn: ids.at(-1), warnings: [] });
      ids.push(next.id);
    }
    await manager.restore({ backupId: ids[2], targetDir: other });
    withDatabase(path.join(other, '.kg/knowledge.db'), (db) =>
      expect(
        db.prepare("SELECT count(*) AS n FROM nodes WHERE id IN ('one', 'two')").get(),
      ).toEqual({
        n: 2,
      }),
    );
    await expect(manager.deleteBackup(ids[0])).rejects.toMatchObject({ code: 'KG_BACKUP_NEEDED' });
    const whole = await manager.consolidate(ids[2]);
    expect(whole.type).toBe('full');

    // A member that was replaced is not built upon, and neither is one that is not cached.
    rmSync(path.join(root, '.kg/cache'), { recursive: true });
    change(database, 'three');
    const uncached = await manager.createBackup({ type: 'incremental' });
    expect(uncached).toMatchObject({ type: 'full', warnings: [{ code: 'KG_WARN_FULL' }] });
    const name = `${prefix}/kg-${uncached.id}.tar.gz`;
    const replaced = await store.objects.read(name);
    replaced[replaced.length >> 1] ^= 1;
    await store.objects.write(name, replaced);
    change(database, 'four');
    const next = await manager.createBackup({ type: 'incremental' });
    expect(next.type).toBe('full');
    expect(next.warnings.map(({ code }) => code)).toEqual(['KG_WARN_FULL']);
  });

  test('pins, deletes and prunes', async () => {
    const { manager, database, prefix } = setUp({ maxBackups: 2 });
    const first = await manager.createBackup();
    await manager.pin(first.id, 'release');
    expect(await manager.getBackup(first.id)).toMatchObject({ pinned: { reason: 'release' } });
    await expect(manager.deleteBackup(first.id)).rejects.toMatchObject({
      code: 'KG_BACKUP_PINNED',
    });
    for (const text of ['a', 'b', 'c']) {
      change(database, text);
      await manager.createBackup();
    }
    const kept = (await manager.listBackups()).map(({ id }) => id);
    expect(kept).toHaveLength(3);
    expect(kept).toContain(first.id);
    await manager.unpin(first.id);
    await manager.deleteBackup(first.id);
    const names = await store.objects.names(prefix);
    expect(archives(names)).toHaveLength(2);
    expect(names).not.toContain(`kg-${first.id}.tar.gz`);
    expect(names.filter((name) => /deleted|pin/.test(name))).toEqual([]);
  });

  test('encrypts', async () => {
    const passphrase = 'correct horse battery staple';
    const { manager, other, prefix, root } = setUp({ encryption: { passphrase } });
    const backup = await manager.createBackup();
    expect(backup).toMatchObject({ encrypted: true });
    const bytes = await store.objects.read(`${prefix}/kg-${backup.id}.enc.tar.gz`);
    expect(bytes.subarray(0, 21).toString()).toBe('age-encryption.org/v1');
    await manager.restore({ backupId: 'latest', targetDir: other });
    expect(named(other)).toBe('["graph","node"]\n');
    const without = createBackupManager({
      projectRoot: root,
      backupDir: store.url(prefix),
      storageOptions: store.storageOptions,
    });
    await expect(without.restore({ backupId: 'latest', targetDir: other })).rejects.toMatchObject({
      code: 'KG_KEY_NEEDED',
    });
    await expect(without.createBackup()).rejects.toMatchObject({ code: 'KG_KEY_INVALID' });
  });

  test('streams archives of several parts', async () => {
    const { manager, root, other } = setUp();
    const noise = randomBytes(37_000_000);
    writeFileSync(path.join(root, '.kg/plugins/noise.bin'), noise);
    const backup = await manager.createBackup();
    expect(backup.size).toBeGreaterThan(noise.length);
    expect(await manager.verifyBackup(backup.id)).toBe(true);
    await manager.restore({ backupId: backup.id, targetDir: other });
    expect(readFileSync(path.join(other, '.kg/plugins/noise.bin')).equals(noise)).toBe(true);
  });

  test('is used by a scheduler', async () => {
    const { manager } = setUp();
    const scheduler = new BackupScheduler({ backupManager: manager, schedule: '0 2 * * *' });
    await scheduler.runNow();
    expect(await manager.listBackups()).toHaveLength(1);
    await scheduler.stop();
  });

  test('finds every kind of damage', async () => {
    const { manager, prefix, other } = setUp();
    const { id } = await manager.createBackup();
    const name = `${prefix}/kg-${id}.tar.gz`;
    const whole = await store.objects.read(name);
    const damaged = Buffer.from(whole);
    damaged[Math.floor(whole.length / 2)] ^= 1;
    await store.objects.write(name, damaged);
    expect(await manager.verifyBackup(id)).toBe(false);
    await expect(manager.restore({ backupId: id, targetDir: other })).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
    });
    await store.objects.write(name, whole.subarray(0, -1));
    expect(await manager.listBackups()).toEqual([]);
    await store.objects.write(name, whole);
    expect(await manager.verifyBackup(id)).toBe(true);
  });

  test('keeps a whole backup rather than a newer one whose archive was replaced', async () => {
    const { manager, prefix, root, database } = setUp();
    const { id: whole } = await manager.createBackup();
    change(database, 'newer');
    const { id: replaced, size } = await manager.createBackup();
    await store.objects.write(`${prefix}/kg-${replaced}.tar.gz`, Buffer.alloc(size));
    expect(await manager.getLatestBackup()).toMatchObject({ id: whole });
    const pruning = createBackupManager({
      projectRoot: root,
      backupDir: store.url(prefix),
      storageOptions: store.storageOptions,
      maxBackups: 1,
    });
    await pruning.prune();
    expect((await manager.listBackups()).map(({ id }) => id)).toContain(whole);
    expect(await manager.verifyBackup(whole)).toBe(true);
  });

  test('takes the path of a backup wherever it takes its id', async () => {
    const { manager, other } = setUp();
    const { path: archive } = await manager.createBackup();
    expect(await manager.verifyBackup(archive)).toBe(true);
    await manager.restore({ backupPath: archive, targetDir: other });
    expect(named(other)).toBe('["graph","node"]\n');
    await expect(manager.verifyBackup(archive.replace('-20', '-30'))).rejects.toMatchObject({
      code: 'KG_BACKUP_NOT_FOUND',
    });
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

  test('does not list, change or remove what others keep there', async () => {
    const { manager, prefix } = setUp({ maxBackups: 1 });
    const foreign = ['notes.txt', '.kg-deleted-notes', 'kg-backup-2024.tar.gz'];
    for (const name of foreign) await store.objects.write(`${prefix}/${name}`, 'foreign');
    await store.objects.write(`${prefix}/below/kg-backup-20240115-020000.tar.gz`, 'foreign');
    await manager.createBackup();
    await manager.createBackup();
    expect(await manager.listBackups()).toHaveLength(1);
    const names = await store.objects.names(prefix);
    expect(names).toEqual(expect.arrayContaining(foreign));
    expect(await store.objects.names(`${prefix}/below`)).toHaveLength(1);
  });
});

describe('several processes', () => {
  test('take turns, and all backups are listed', async () => {
    const { manager, root, prefix } = setUp();
    const other = makeProject({ nodes: 20 });
    const second = createBackupManager({
      projectRoot: other.root,
      backupDir: store.url(prefix),
      storageOptions: store.storageOptions,
    });
    const made = await Promise.all([
      manager.createBackup(),
      second.createBackup(),
      manager.createBackup(),
      second.createBackup(),
    ]);
    const ids = new Set(made.map(({ id }) => id));
    expect(ids.size).toBe(4);
    const listed = await manager.listBackups();
    expect(new Set(listed.map(({ id }) => id))).toEqual(ids);
    for (const id of ids) expect(await manager.verifyBackup(id)).toBe(true);
    expect(root).not.toBe(other.root);
  });

  test('wait for the lock, and name its holder', async () => {
    const { manager, root, prefix } = setUp();
    await manager.createBackup();
    const expires = new Date(Date.now() + 60_000).toISOString();
    const since = new Date().toISOString();
    const holder = { owner: 'process 7 on elsewhere', nonce: 'x', generation: 9, since, expires };
    await store.objects.write(`${prefix}/.kg-store.lock`, JSON.stringify(holder));
    const impatient = createBackupManager({
      projectRoot: root,
      backupDir: store.url(prefix),
      storageOptions: store.storageOptions,
      lockTimeout: 100,
    });
    await expect(impatient.createBackup()).rejects.toMatchObject({
      code: 'KG_STORE_LOCKED',
      message: expect.stringContaining('process 7 on elsewhere'),
    });
    // Reading needs no lock.
    expect(await impatient.listBackups()).toHaveLength(1);
    // The clock of the service counts in seconds.
    const past = { ...holder, expires: new Date(Date.now() - 5000).toISOString() };
    await store.objects.write(`${prefix}/.kg-store.lock`, JSON.stringify(past));
    await impatient.createBackup();
    expect(await impatient.listBackups()).toHaveLength(2);
  });

  test('a backup that is aborted leaves nothing, not even the lock', async () => {
    const { manager, root, prefix } = setUp();
    writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(60_000_000));
    const controller = new AbortController();
    const aborted = manager.createBackup({
      signal: controller.signal,
      onProgress: ({ phase }) => phase === 'saving' && controller.abort(),
    });
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    expect(archives(await store.objects.names(prefix))).toEqual([]);
    const { expires } = JSON.parse(await store.objects.read(`${prefix}/.kg-store.lock`));
    expect(expires).toBeUndefined();
  });

  test('a kill at any moment leaves whole backups, and the next run the rest', async () => {
    const { manager, root, database, prefix } = setUp();
    writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(20_000_000));
    await manager.createBackup();
    const args = ['diag', 'backup', '--project', root, '--output', store.url(prefix)];
    const began = Date.now();
    await promisify(execFile)(kgPath, args, { env: { ...process.env, ...store.env } });
    const takes = Date.now() - began;
    for (let at = 0; at < 10; at += 1) {
      change(database, `kill ${at}`);
      const child = spawn(kgPath, args, {
        env: { ...process.env, ...store.env },
        stdio: 'ignore',
      });
      const ended = new Promise((resolve) => child.once('exit', resolve));
      const killed = setTimeout(() => child.kill('SIGKILL'), (takes * (at + 0.5)) / 10);
      await ended;
      clearTimeout(killed);
      for (const { id } of await manager.listBackups())
        expect(await manager.verifyBackup(id)).toBe(true);
      // A minute later the lock would have ended by itself.
      await store.objects.remove(`${prefix}/.kg-store.lock`);
    }
    await manager.createBackup();
    const names = await store.objects.names(prefix);
    const sidecars = names.filter((name) => name.endsWith('.manifest.json'));
    expect(sidecars.map((name) => name.slice(0, -'.manifest.json'.length))).toEqual(
      archives(names),
    );
    expect(await manager.listBackups()).toHaveLength(sidecars.length);
  });

  test('a removal that was killed is finished by the next run', async () => {
    const { manager, prefix } = setUp();
    const { id } = await manager.createBackup();
    const name = `kg-${id}.tar.gz`;
    await store.objects.write(`${prefix}/.kg-deleted-${name}`, '');
    expect(await manager.listBackups()).toEqual([]);
    await manager.createBackup();
    const names = await store.objects.names(prefix);
    expect(archives(names)).toHaveLength(1);
    expect(names.filter((one) => one.startsWith('.kg-deleted'))).toEqual([]);
    expect(await manager.listBackups()).toHaveLength(1);
  });

  test('a backup that may not be removed stays listed', async () => {
    const { manager, prefix } = setUp();
    const { id } = await manager.createBackup();
    await store.objects.write(`${prefix}/.kg-deleted-kg-${id}.tar.gz`, 'void\n');
    expect(await manager.listBackups()).toHaveLength(1);
    await manager.createBackup();
    expect(await manager.listBackups()).toHaveLength(2);
    await manager.deleteBackup(id);
    const names = await store.objects.names(prefix);
    expect(archives(names)).toHaveLength(1);
    expect(names.filter((name) => name.startsWith('.kg-deleted'))).toEqual([]);
  });

  test('an archive whose run was killed before its end is listed by the next run', async () => {
    const { manager, prefix } = setUp();
    const { id } = await manager.createBackup();
    await store.objects.remove(`${prefix}/kg-${id}.tar.gz.manifest.json`);
    expect(await manager.listBackups()).toEqual([]);
    await manager.createBackup();
    expect((await manager.listBackups()).map((backup) => backup.id)).toContain(id);
  });
});

describe('the command line', () => {
  const env = () => ({ ...process.env, ...store.env, NO_COLOR: '1' });

  test('takes a URL wherever it takes a directory', async () => {
    const { root, prefix, other } = setUp();
    const url = store.url(prefix);
    const ok = async (...args) => {
      const done = await kg(args, { cwd: root, env: env() });
      expect(done).toMatchObject({ status: 0 });
      return done.stdout;
    };
    expect(await ok('diag', 'backup', '--output', url)).toContain(`${url}/kg-backup-`);
    const [{ id, path: archive }] = JSON.parse(
      await ok('diag', 'backup', '--list', '--json', '--output', url),
    );
    expect(archive).toBe(`${url}/kg-${id}.tar.gz`);
    await ok('diag', 'backup', '--verify', 'latest', '--output', url);
    await ok('diag', 'backup', '--verify', archive);
    await ok('diag', 'restore', '--file', id, '--backup-dir', url, '--target', other, '--yes');
    expect(named(other)).toBe('["graph","node"]\n');
    await ok('diag', 'drill', '--backup-dir', url);
    await ok('diag', 'prune', '--max-backups', '1', '--output', url);
  });

  test('uses the store of the settings', async () => {
    const { root, prefix } = setUp();
    const options = { cwd: root, env: env() };
    const url = store.url(prefix);
    expect(await kg(['config', 'set', 'backup.dir', url], options)).toMatchObject({ status: 0 });
    expect(await kg(['diag', 'backup'], options)).toMatchObject({ status: 0 });
    expect(archives(await store.objects.names(prefix))).toHaveLength(1);
    const health = await kg(['diag', 'health', '--json'], options);
    expect(health).toMatchObject({ status: 0 });
    expect(JSON.parse(health.stdout).backups).toMatchObject({ backupDir: url, count: 1 });
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
