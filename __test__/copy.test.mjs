// Backups are copied to a second store, to an object store and back. A copy restores without the
// original.

import { execFileSync, spawn } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { SECRET, startObjectStore } from './support/object-store.mjs';
import { kg, kgPath, until } from './support/processes.mjs';
import {
  fingerprint,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

let server;
beforeAll(async () => {
  server = await startObjectStore();
});
afterAll(() => server?.stop());

let prefixes = 0;
const newUrl = () => server.url(`copies/${(prefixes += 1)}`);

const ids = (backups) => backups.map(({ id }) => id);
const newestFirst = (backups) => ids(backups).reverse();

const change = (database, name) =>
  withDatabase(database, (db) =>
    db.prepare('INSERT INTO nodes (id, title, content) VALUES (?, ?, ?)').run(name, name, name),
  );

const isIn = (root, name) =>
  withDatabase(
    path.join(root, '.kg/knowledge.db'),
    (db) => db.prepare('SELECT count(*) AS n FROM nodes WHERE id = ?').get(name).n === 1,
  );

/** Makes a project with a chain of a full and two incremental backups. */
async function setUp({ nodes = 50, ...config } = {}) {
  const project = makeProject({ nodes });
  const { root, database, backups } = project;
  const manager = createBackupManager({ projectRoot: root, backupDir: backups, ...config });
  const made = [await manager.createBackup()];
  for (const name of ['first', 'second']) {
    change(database, name);
    made.push(await manager.createBackup({ type: 'incremental' }));
  }
  expect(made.map(({ type }) => type)).toEqual(['full', 'incremental', 'incremental']);
  const target = path.join(temporaryDirectory(), 'second');
  const open = (backupDir, more = {}) =>
    createBackupManager({ projectRoot: root, backupDir, ...config, ...more });
  return { ...project, manager, made, target, open };
}

/** Changes one byte in the middle of an archive. */
function damage({ path: archive }) {
  const bytes = readFileSync(archive);
  bytes[Math.floor(bytes.length / 2)] ^= 0xff;
  writeFileSync(archive, bytes);
}

/** Restores the newest copy into a new directory. */
async function restored(manager, options = {}) {
  const targetDir = path.join(temporaryDirectory(), 'restored');
  await manager.restore({ backupId: 'latest', targetDir, ...options });
  expect(integrityOf(path.join(targetDir, '.kg/knowledge.db'))).toBe('ok');
  return targetDir;
}

describe('a copy', () => {
  test('has every backup with its chain, and restores without the original', async () => {
    const { manager, made, target, open, backups } = await setUp();
    const before = fingerprint(backups);
    const phases = new Set();
    const result = await manager.copyTo(target, {
      onProgress: ({ phase, bytesDone, bytesTotal }) => {
        phases.add(phase);
        expect(bytesDone).toBeLessThanOrEqual(bytesTotal);
      },
    });
    expect(result).toMatchObject({ target, present: 0, failed: [], warnings: [], dryRun: false });
    expect(ids(result.copied), 'each after its base').toEqual(ids(made));
    expect(result.bytesCopied).toBe(made.reduce((sum, { size }) => sum + size, 0));
    expect([...phases]).toContain('copying');
    expect(fingerprint(backups)).toEqual(before);

    rmSync(backups, { recursive: true });
    const copies = open(target);
    expect(ids(await copies.listBackups())).toEqual(newestFirst(made));
    for (const { id, checksum } of made) {
      expect(await copies.verifyBackup(id)).toBe(true);
      expect((await copies.getBackup(id)).checksum).toBe(checksum);
    }
    expect(isIn(await restored(copies), 'second')).toBe(true);
  });

  test('of a second time copies only what is new', async () => {
    const { manager, made, target, database } = await setUp();
    await manager.copyTo(target);
    expect(await manager.copyTo(target)).toMatchObject({ copied: [], bytesCopied: 0, present: 3 });
    change(database, 'third');
    const next = await manager.createBackup({ type: 'incremental' });
    expect(await manager.copyTo(target)).toMatchObject({
      copied: [expect.objectContaining({ id: next.id, basedOn: made[2].id })],
      present: 3,
    });
  });

  test('of named backups has those and their bases', async () => {
    const { manager, made, target, open } = await setUp();
    const alone = await manager.createBackup();
    const result = await manager.copyTo(target, { backupIds: [made[1].id] });
    expect(ids(result.copied)).toEqual([made[0].id, made[1].id]);
    expect(ids(await open(target).listBackups())).not.toContain(alone.id);
    const missing = manager.copyTo(target, { backupIds: ['backup-20000101-000000'] });
    await expect(missing).rejects.toMatchObject({ code: 'KG_BACKUP_NOT_FOUND' });
  });

  test('begins with the newest chain', async () => {
    const { manager, made, target } = await setUp();
    const newest = await manager.createBackup();
    const { copied } = await manager.copyTo(target);
    expect(ids(copied)).toEqual([newest.id, ...ids(made)]);
  });

  test('has its own retention, and what that would remove is not copied', async () => {
    const { manager, target, open, database } = await setUp();
    const full = [await manager.createBackup(), await manager.createBackup()];
    const first = await manager.copyTo(target, { maxBackups: 2 });
    expect(ids(first.copied).sort()).toEqual(ids(full));
    change(database, 'third');
    full.push(await manager.createBackup());
    const second = await manager.copyTo(target, { maxBackups: 2 });
    expect(ids(second.copied)).toEqual([full[2].id]);
    expect(second.retention.decisions.filter(({ kept }) => !kept).map(({ id }) => id)).toEqual([
      full[0].id,
    ]);
    expect(ids(await open(target).listBackups())).toEqual([full[2].id, full[1].id]);
    expect((await manager.copyTo(target, { maxBackups: 2 })).copied).toEqual([]);
    expect(await manager.listBackups(), 'the source keeps everything').toHaveLength(6);
  });

  test('leaves the backups of other projects alone, in both stores', async () => {
    const { manager, made, target, backups } = await setUp();
    const other = makeProject({ nodes: 10 });
    const [{ timestamp }] = await manager.listBackups();
    // Backups of one second have the same name.
    await until(() => Date.now() > timestamp + 1000, 'the next second');
    const there = createBackupManager({ projectRoot: other.root, backupDir: target });
    const kept = [await there.createBackup(), await there.createBackup()];
    await createBackupManager({ projectRoot: other.root, backupDir: backups }).createBackup();
    const { copied } = await manager.copyTo(target, { maxBackups: 1 });
    expect(ids(copied)).toEqual(ids(made));
    const left = ids(await there.listBackups());
    for (const id of ids(kept)) expect(left).toContain(id);
  });

  test('of an encrypted backup needs no key and stays encrypted', async () => {
    const encryption = { passphrase: 'correct horse battery staple' };
    const { root, made, target, open, backups } = await setUp({ encryption });
    const keyless = createBackupManager({ projectRoot: root, backupDir: backups });
    const { copied } = await keyless.copyTo(target);
    expect(copied.map(({ encrypted }) => encrypted)).toEqual([true, true, true]);
    rmSync(backups, { recursive: true });
    expect(isIn(await restored(open(target)), 'second')).toBe(true);
    expect(ids(await open(target).listBackups())).toEqual(newestFirst(made));
  });

  test('is a dry run on request', async () => {
    const { manager, made, target } = await setUp();
    const result = await manager.copyTo(target, { dryRun: true });
    expect(result).toMatchObject({ dryRun: true, present: 0 });
    expect(ids(result.copied)).toEqual(ids(made));
    expect(existsSync(target)).toBe(false);
  });
});

describe('a backup that cannot be copied', () => {
  test('because it is damaged does not arrive, nor does what depends on it', async () => {
    const { manager, made, target, open } = await setUp();
    const sound = await manager.createBackup();
    damage(made[1]);
    const { copied, failed } = await manager.copyTo(target);
    expect(ids(copied)).toEqual([sound.id, made[0].id]);
    expect(failed).toEqual([
      { id: made[1].id, error: expect.objectContaining({ code: 'KG_CHECKSUM_MISMATCH' }) },
      { id: made[2].id, error: expect.objectContaining({ code: 'KG_CHAIN_BROKEN' }) },
    ]);
    expect(ids(await open(target).listBackups()).sort()).toEqual([made[0].id, sound.id].sort());
    expect(readdirSync(target).filter((name) => name.startsWith('.kg-partial'))).toEqual([]);
  });

  test('because its base is gone is reported', async () => {
    const { manager, made, target } = await setUp();
    rmSync(made[0].path);
    const { copied, failed } = await manager.copyTo(target);
    expect(copied).toEqual([]);
    expect(failed.map(({ error: { code } }) => code)).toEqual([
      'KG_BACKUP_NOT_FOUND',
      'KG_CHAIN_BROKEN',
      'KG_CHAIN_BROKEN',
    ]);
  });

  test('because another archive has its name is reported, and that one stays', async () => {
    const { manager, made, target } = await setUp();
    const sound = await manager.createBackup();
    mkdirSync(target);
    const inTheWay = path.join(target, path.basename(made[0].path));
    writeFileSync(inTheWay, 'in the way');
    const { copied, failed } = await manager.copyTo(target);
    expect(ids(copied)).toEqual([sound.id]);
    expect(failed[0]).toMatchObject({ id: made[0].id, error: { code: 'KG_BACKUP_EXISTS' } });
    expect(failed).toHaveLength(3);
    expect(readFileSync(inTheWay, 'utf8')).toBe('in the way');
  });

  test('because it is not usable in the source is reported', async () => {
    const { manager, made, target } = await setUp();
    const bytes = readFileSync(made[2].path);
    writeFileSync(made[2].path, bytes.subarray(0, bytes.length - 100));
    const { copied, failed } = await manager.copyTo(target);
    expect(ids(copied)).toEqual(ids(made.slice(0, 2)));
    expect(failed).toEqual([
      { id: made[2].id, error: expect.objectContaining({ code: 'KG_CHECKSUM_MISMATCH' }) },
    ]);
    rmSync(made[1].path);
    const after = await manager.copyTo(target);
    expect(after.failed.map(({ error: { code } }) => code)).toContain('KG_BACKUP_NOT_FOUND');
  });

  test('because the target has a damaged copy of it without a sidecar is reported', async () => {
    const { manager, made, target } = await setUp();
    mkdirSync(target);
    const torn = path.join(target, path.basename(made[0].path));
    writeFileSync(torn, readFileSync(made[0].path).subarray(0, 1000));
    const { failed } = await manager.copyTo(target);
    expect(failed[0].error).toMatchObject({
      code: 'KG_BACKUP_EXISTS',
      remedy: expect.stringContaining('Remove it if it is damaged'),
    });
    rmSync(torn);
    expect((await manager.copyTo(target)).failed).toEqual([]);
  });

  test('makes `kg` exit with 6', async () => {
    const { root, made, target, backups } = await setUp();
    damage(made[0]);
    const args = ['diag', 'backup', '--output', backups, '--copy-to', target];
    const { status, stderr } = await kg([...args, '--quiet'], { cwd: root });
    expect(status).toBe(6);
    expect(stderr).toContain(`${made[0].id} was not copied`);
  });
});

describe('a copy that is cut off', () => {
  test('by an abort leaves complete backups, and the next one continues', async () => {
    const { manager, target, open, root } = await setUp();
    writeFileSync(path.join(root, '.kg/vectors/large.f32'), Buffer.alloc(64 * 1024 * 1024, 7));
    await manager.createBackup({ compression: false });
    const controller = new AbortController();
    const copying = manager.copyTo(target, {
      signal: controller.signal,
      onProgress: ({ phase }) => phase === 'copying' && controller.abort(),
    });
    await expect(copying).rejects.toMatchObject({ name: 'AbortError' });
    for (const { id } of await open(target).listBackups())
      expect(await open(target).verifyBackup(id)).toBe(true);
    expect(readdirSync(target).filter((name) => name.startsWith('.kg-partial'))).toEqual([]);
    const rest = await manager.copyTo(target);
    expect(rest.copied.length + rest.present).toBe(4);
    expect(rest.failed).toEqual([]);
  });

  test('between an encrypted archive and its sidecar is completed without a key', async () => {
    const encryption = { passphrase: 'correct horse battery staple' };
    const { root, made, target, open, backups } = await setUp({ encryption });
    mkdirSync(target);
    copyFileSync(made[0].path, path.join(target, path.basename(made[0].path)));
    const keyless = createBackupManager({ projectRoot: root, backupDir: backups });
    const { copied, failed } = await keyless.copyTo(target);
    expect([ids(copied), failed]).toEqual([ids(made), []]);
    expect(await open(target).verifyBackup(made[0].id)).toBe(true);
  });

  test('by a kill leaves complete backups, and the next one continues', async () => {
    const { manager, target, open, root, backups } = await setUp();
    writeFileSync(path.join(root, '.kg/vectors/large.f32'), Buffer.alloc(256 * 1024 * 1024, 7));
    await manager.createBackup({ compression: false });
    const args = ['diag', 'backup', '--output', backups, '--copy-to', target];
    const child = spawn(kgPath, args, { cwd: root, stdio: 'ignore' });
    const ended = new Promise((resolve) => child.once('exit', resolve));
    const isWriting = () =>
      existsSync(target) && readdirSync(target).some((name) => name.startsWith('.kg-partial'));
    await until(() => isWriting() || child.exitCode !== null, 'the copy has begun');
    child.kill('SIGKILL');
    await ended;
    for (const { id } of await open(target).listBackups())
      expect(await open(target).verifyBackup(id)).toBe(true);
    const rest = await manager.copyTo(target);
    expect(rest.copied.length + rest.present).toBe(4);
    expect(readdirSync(target).filter((name) => name.startsWith('.kg-partial'))).toEqual([]);
  });
});

describe('bad input', () => {
  test('is refused, and nothing is created', async () => {
    const { manager, target, backups, root } = await setUp();
    const link = path.join(temporaryDirectory(), 'link');
    execFileSync('ln', ['-s', backups, link]);
    const cases = [
      [undefined, {}],
      ['', {}],
      [backups, {}],
      [link, {}],
      [target, { storageOptions: { region: 'us-east-1' } }],
      [target, { maxBackups: 0 }],
      [target, { copies: 3 }],
      [path.join(root, '.kg/second'), {}],
      ['ftp://host/backups', {}],
    ];
    for (const [store, options] of cases)
      await expect(manager.copyTo(store, options), String(store)).rejects.toMatchObject({
        code: expect.stringMatching(
          /^KG_(INVALID_OPTION|BACKUP_DIR_INVALID|BACKUP_DIR_IN_PROJECT)$/,
        ),
      });
    expect(existsSync(target)).toBe(false);
    const { status, stderr } = await kg(['diag', 'backup', '--copy-to'], { cwd: root });
    expect(status).toBe(2);
    expect(stderr).toContain('backup.copyTo');
    const mixed = ['diag', 'backup', '--copy-to', target, '--encrypt'];
    expect((await kg(mixed, { cwd: root })).status, 'a copy encrypts nothing').toBe(2);
    expect(existsSync(target)).toBe(false);
  });

  test('such as the source under another mount is refused', async () => {
    const { root, backups, manager } = await setUp();
    const other = temporaryDirectory();
    const args = ['diag', 'backup', '--output', backups, '--copy-to', other, '--max-backups', '1'];
    const script = 'mount --bind "$0" "$1" && shift && exec "$@"';
    const { status, stderr } = await new Promise((resolve) => {
      const all = ['-m', 'sh', '-c', script, backups, other, kgPath, ...args];
      const child = spawn('unshare', all, { cwd: root });
      let text = '';
      child.stderr.on('data', (more) => (text += more));
      child.once('close', (code) => resolve({ status: code, stderr: text }));
    });
    expect(stderr).toContain('itself');
    expect(status).toBe(2);
    expect(await manager.listBackups()).toHaveLength(3);
  });

  test('such as an empty list of ids copies nothing', async () => {
    const { manager, target } = await setUp();
    const result = await manager.copyTo(target, { backupIds: [] });
    expect([result.copied, result.present]).toEqual([[], 0]);
  });

  test('such as backups of another project is named, and outside any project all are copied', async () => {
    const { backups, made, target } = await setUp();
    const other = makeProject({ nodes: 10 });
    const manager = createBackupManager({ projectRoot: other.root, backupDir: backups });
    const { copied, warnings } = await manager.copyTo(target);
    expect(copied).toEqual([]);
    expect(warnings.map(({ message }) => message).join()).toContain('3 backups in');
    const args = ['diag', 'backup', '--output', backups, '--copy-to', target, '--json'];
    const { stdout } = await kg(args, { cwd: temporaryDirectory() });
    expect(ids(resultOf(stdout).copied)).toEqual(ids(made));
  });

  test('such as a source that lost its backups warns and removes no copy', async () => {
    const { backups, manager, target, open } = await setUp();
    await manager.createBackup();
    await manager.copyTo(target);
    renameSync(backups, `${backups}-unmounted`);
    const { warnings } = await manager.copyTo(target, { maxBackups: 1 });
    expect(warnings.map(({ code }) => code)).toContain('KG_WARN_STORE_EMPTIED');
    expect(await open(target).listBackups()).toHaveLength(4);
  });

  test('such as a target that lost its copies causes a warning', async () => {
    const { manager, target } = await setUp();
    await manager.copyTo(target);
    renameSync(target, `${target}-unmounted`);
    const { warnings } = await manager.copyTo(target);
    expect(warnings.map(({ code }) => code)).toContain('KG_WARN_STORE_EMPTIED');
  });
});

describe('the settings', () => {
  test('name the second store and its limits for `kg`', async () => {
    const { root, manager, target, open } = await setUp();
    await manager.createBackup();
    const set = (key, value) => kg(['config', 'set', key, value], { cwd: root });
    expect((await set('backup.copyTo', target)).status).toBe(0);
    expect((await set('backup.copyMaxBackups', '1')).status).toBe(0);
    expect((await set('backup.dir', manager.backupDir)).status).toBe(0);
    const { status, stdout } = await kg(['diag', 'backup', '--copy-to', '--json'], { cwd: root });
    expect(status).toBe(0);
    expect(resultOf(stdout)).toMatchObject({ target, copied: [{ type: 'full' }] });
    expect(await open(target).listBackups()).toHaveLength(1);
    const elsewhere = `${target}-2`;
    await kg(['diag', 'backup', '--copy-to', elsewhere], { cwd: root });
    expect(await open(elsewhere).listBackups(), 'the limit is of the other store').toHaveLength(4);
  });

  test('with an unusable limit remove no copy, and say so', async () => {
    const { root, manager, target, open, backups } = await setUp();
    await manager.createBackup();
    writeFileSync(
      path.join(root, '.kg/config.json'),
      JSON.stringify({ backup: { copyTo: target, copyMaxBackups: 'one' } }),
    );
    const args = ['diag', 'backup', '--output', backups, '--copy-to'];
    const { status, stderr } = await kg(args, { cwd: root });
    expect(status).toBe(0);
    expect(stderr).toContain('copyMaxBackups');
    expect(await open(target).listBackups()).toHaveLength(4);
  });
});

describe('object stores', () => {
  test('receive copies of a directory, and give them back', async () => {
    const { manager, made, open, database, backups } = await setUp();
    const { storageOptions } = server;
    const url = newUrl();
    const up = await manager.copyTo(url, { storageOptions });
    expect(up).toMatchObject({ target: url, failed: [], warnings: [] });
    expect(ids(up.copied)).toEqual(ids(made));
    const remote = open(url, { storageOptions });
    for (const { id } of made) expect(await remote.verifyBackup(id)).toBe(true);
    expect(isIn(await restored(remote), 'second')).toBe(true);
    expect((await manager.copyTo(url, { storageOptions })).present).toBe(3);

    // The chain goes on there.
    change(database, 'third');
    const next = await manager.createBackup({ type: 'incremental' });
    await manager.copyTo(url, { storageOptions });
    rmSync(backups, { recursive: true });
    const down = path.join(temporaryDirectory(), 'down');
    const back = await remote.copyTo(down);
    expect(ids(back.copied)).toEqual([...ids(made), next.id]);
    for (const { id } of back.copied) expect(await open(down).verifyBackup(id)).toBe(true);
    expect(isIn(await restored(open(down)), 'third')).toBe(true);
  });

  test('copy to each other, in parts', async () => {
    const { manager, root, open } = await setUp();
    const { storageOptions } = server;
    writeFileSync(path.join(root, '.kg/vectors/large.f32'), Buffer.alloc(20 * 1024 * 1024, 7));
    await manager.createBackup({ compression: false });
    const [one, other] = [newUrl(), newUrl()];
    await manager.copyTo(one, { storageOptions });
    const { copied } = await open(one, { storageOptions }).copyTo(other, { storageOptions });
    expect(copied).toHaveLength(4);
    for (const { id } of copied)
      expect(await open(other, { storageOptions }).verifyBackup(id)).toBe(true);
  });

  test('show no secret in a result or an error', async () => {
    const { manager } = await setUp();
    const { storageOptions } = server;
    const result = await manager.copyTo(newUrl(), { storageOptions });
    expect(JSON.stringify(result)).not.toContain(SECRET);
    const wrong = { ...storageOptions, accessKeyId: 'nobody' };
    const refused = await manager
      .copyTo(newUrl(), { storageOptions: wrong })
      .catch((error) => error);
    expect(refused.code).toBe('KG_STORE_DENIED');
    expect(
      JSON.stringify({ ...refused, text: `${refused.message}${refused.stack}` }),
    ).not.toContain(SECRET);
  });

  test('take copies by `kg`, with the credentials of the environment', async () => {
    const { root, backups, made } = await setUp();
    const url = newUrl();
    const args = ['diag', 'backup', '--output', backups, '--copy-to', url];
    const { status, stdout, stderr } = await kg(args, { cwd: root, env: server.env });
    expect(stderr).toBe('');
    expect(status).toBe(0);
    for (const { id } of made) expect(stdout).toContain(`Copied ${id}`);
  });

  test('do not receive a chain in a storage class that has to be thawed', async () => {
    const { manager } = await setUp();
    const storageOptions = { ...server.storageOptions, storageClass: 'GLACIER' };
    const { copied, failed } = await manager.copyTo(newUrl(), { storageOptions });
    expect(copied.map(({ type }) => type)).toEqual(['full']);
    expect(failed.map(({ error: { code } }) => code)).toEqual([
      'KG_UNSUPPORTED',
      'KG_CHAIN_BROKEN',
    ]);
  });
});

test('a file that was copied by hand before is not read again', async () => {
  const { manager, made, target } = await setUp();
  mkdirSync(target);
  for (const suffix of ['', '.manifest.json'])
    copyFileSync(
      `${made[0].path}${suffix}`,
      path.join(target, path.basename(made[0].path) + suffix),
    );
  const { copied, present } = await manager.copyTo(target);
  expect(ids(copied)).toEqual(ids(made.slice(1)));
  expect(present).toBe(1);
});
