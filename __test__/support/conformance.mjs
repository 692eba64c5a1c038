// What a store of backups does, whatever keeps it. Each kind of store has a test file that calls
// `conformance`.

import { execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { BUCKET } from './object-store.mjs';
import { kg, kgPath, run } from './processes.mjs';
import {
  contents,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './project.mjs';
import { resultOf } from './json-output.mjs';

const PART_BYTES = 8 << 20;
const KILLS = 6;

export const named = (dir) =>
  readFileSync(path.join(dir, '.kg/plugins/glossary/terms.json'), 'utf8');

/** The archives among the names in a store, without the link to the newest one. */
export const archives = (names) => names.filter((name) => /^kg-backup.*\.tar(\.gz)?$/.test(name));

/** Adds a row, so that the next backup has something to save. */
export const change = (database, text) =>
  withDatabase(database, (db) =>
    db.prepare('INSERT INTO nodes (id, title, content) VALUES (?, ?, ?)').run(text, text, text),
  );

/** Returns a function that makes a project and a manager with a prefix of their own. */
export function setUpIn(store) {
  let prefixes = 0;
  return (config = {}, { prefix = null, nodes = 50 } = {}) => {
    prefixes += 1;
    const project = makeProject({ nodes });
    const place = prefix ?? `stores/${prefixes}`;
    /** Returns another manager of the same store. */
    const managerWith = (more = {}) =>
      createBackupManager({
        projectRoot: project.root,
        backupDir: store().url(place),
        storageOptions: store().storageOptions,
        ...more,
      });
    const other = path.join(path.dirname(project.root), 'restored');
    return { ...project, prefix: place, managerWith, manager: managerWith(config), other };
  };
}

/**
 * Tests a kind of store. `start` resolves to one; `pageSize` is how many objects a page of its list
 * has, and absent for a directory. `listsUploads` says that the service lists unfinished uploads.
 * Returns what the tests of only one kind use.
 */
export function conformance(name, start, { pageSize = null, listsUploads = false } = {}) {
  let store;
  beforeAll(async () => {
    store = await start();
    // Credentials that `storageOptions` cannot hold.
    if (store.env.GOOGLE_SERVICE_ACCOUNT)
      process.env.GOOGLE_SERVICE_ACCOUNT = store.env.GOOGLE_SERVICE_ACCOUNT;
  });
  afterAll(() => store?.stop());
  const suite = { store: () => store, setUp: setUpIn(() => store) };
  describe(name, () => {
    verbs(suite);
    damage(suite);
    names(suite);
    sizes(suite);
    neighbours(suite, pageSize ?? 1000);
    processes(suite);
    if (pageSize !== null) objectsOnly(suite);
    if (listsUploads) uploads(suite);
  });
  return suite;
}

function verbs({ store, setUp }) {
  test('makes, lists, verifies, drills and restores backups', async () => {
    const { manager, other, prefix } = setUp();
    expect(manager.backupDir).toBe(store().url(prefix));
    const phases = new Set();
    const backup = await manager.createBackup({
      description: 'before the move',
      onProgress: ({ phase }) => phases.add(phase),
    });
    expect(phases).toContain('saving');
    expect(backup).toMatchObject({ type: 'full', description: 'before the move', warnings: [] });
    const archive = `kg-${backup.id}.tar.gz`;
    expect(backup.path).toBe(`${store().url(prefix)}/${archive}`);
    const found = await store().objects.names(prefix);
    expect(found.filter((one) => one !== 'latest.tar.gz')).toEqual([
      '.kg-store.lock',
      archive,
      `${archive}.manifest.json`,
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
    const bytes = await store().objects.read(`${prefix}/kg-${id}.tar.gz`);
    writeFileSync(archive, bytes);
    run('tar', ['xzf', archive, '-C', dir]);
    run('sha256sum', ['-c', '--quiet', 'checksums.sha256'], { cwd: dir });
    expect(integrityOf(path.join(dir, 'database.sqlite'))).toBe('ok');
    const sidecar = await store().objects.read(`${prefix}/kg-${id}.tar.gz.manifest.json`);
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    expect(JSON.parse(sidecar).archive.sha256).toBe(sha256);
  });

  test('makes, restores and consolidates chains', async () => {
    const { manager, database, other } = setUp();
    const ids = [(await manager.createBackup()).id];
    for (const text of ['one', 'two']) {
      change(database, text);
      const next = await manager.createBackup({ type: 'incremental' });
      expect(next).toMatchObject({ type: 'incremental', basedOn: ids.at(-1), warnings: [] });
      ids.push(next.id);
    }
    for (const id of ids) expect(await manager.verifyBackup(id)).toBe(true);
    await manager.restore({ backupId: ids[2], targetDir: other });
    const rows = withDatabase(path.join(other, '.kg/knowledge.db'), (db) =>
      db.prepare("SELECT id FROM nodes WHERE id IN ('one', 'two') ORDER BY id").pluck().all(),
    );
    expect(rows).toEqual(['one', 'two']);
    await expect(manager.deleteBackup(ids[0])).rejects.toMatchObject({ code: 'KG_BACKUP_NEEDED' });
    const whole = await manager.consolidate(ids[2]);
    expect(whole).toMatchObject({ type: 'full' });
    expect(await manager.verifyBackup(whole.id)).toBe(true);
    const removed = await manager.deleteBackup(ids[0], { cascade: true });
    expect(removed.sort()).toEqual(expect.arrayContaining([ids[0], ids[1]]));
    expect(await manager.verifyBackup(whole.id)).toBe(true);
  });

  test('pins, unpins, deletes and prunes', async () => {
    const { manager, managerWith, database, prefix } = setUp({ maxBackups: 2 });
    const first = await manager.createBackup();
    await manager.pin(first.id, 'release');
    expect(await manager.getBackup(first.id)).toMatchObject({ pinned: { reason: 'release' } });
    await expect(manager.deleteBackup(first.id, { cascade: true })).rejects.toMatchObject({
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
    const left = await store().objects.names(prefix);
    expect(archives(left)).toHaveLength(2);
    expect(left).not.toContain(`kg-${first.id}.tar.gz`);
    expect(left.filter((one) => /deleted|pin/.test(one))).toEqual([]);
    const pruning = managerWith({ maxBackups: 1 });
    await pruning.prune({ dryRun: true });
    expect(archives(await store().objects.names(prefix))).toHaveLength(2);
    await pruning.prune();
    expect((await manager.listBackups()).map(({ id }) => id)).toEqual([kept[0]]);
    expect(archives(await store().objects.names(prefix))).toHaveLength(1);
  });

  test('encrypts', async () => {
    const passphrase = 'correct horse battery staple';
    const { manager, managerWith, other, prefix } = setUp({ encryption: { passphrase } });
    const backup = await manager.createBackup();
    expect(backup).toMatchObject({ encrypted: true });
    const bytes = await store().objects.read(`${prefix}/kg-${backup.id}.enc.tar.gz`);
    expect(bytes.subarray(0, 21).toString()).toBe('age-encryption.org/v1');
    await manager.restore({ backupId: 'latest', targetDir: other });
    expect(named(other)).toBe('["graph","node"]\n');
    const without = managerWith();
    await expect(without.restore({ backupId: 'latest', targetDir: other })).rejects.toMatchObject({
      code: 'KG_KEY_NEEDED',
    });
    await expect(without.createBackup()).rejects.toMatchObject({ code: 'KG_KEY_INVALID' });
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

  test('is named to the command line like any store', async () => {
    const { root, prefix, other } = setUp();
    const url = store().url(prefix);
    const ok = async (...args) => {
      const env = { ...process.env, ...store().env, NO_COLOR: '1' };
      const done = await kg(args, { cwd: root, env });
      expect(done).toMatchObject({ status: 0 });
      return done.stdout;
    };
    expect(await ok('diag', 'backup', '--output', url)).toContain(`${url}/kg-backup-`);
    const [{ id, path: archive }] = resultOf(
      await ok('diag', 'list', '--json', '--backup-dir', url),
    ).backups;
    expect(archive).toBe(`${url}/kg-${id}.tar.gz`);
    await ok('diag', 'backup', '--verify', 'latest', '--output', url);
    await ok('diag', 'backup', '--verify', archive);
    await ok('diag', 'restore', '--file', id, '--backup-dir', url, '--target', other, '--yes');
    expect(named(other)).toBe('["graph","node"]\n');
    await ok('diag', 'drill', '--backup-dir', url);
    await ok('diag', 'prune', '--max-backups', '1', '--output', url);
  });
}

function damage({ store, setUp }) {
  test('finds a changed, cut or deleted archive', async () => {
    const { manager, prefix, other } = setUp();
    const { id } = await manager.createBackup();
    const archive = `${prefix}/kg-${id}.tar.gz`;
    const whole = await store().objects.read(archive);
    const damaged = Buffer.from(whole);
    damaged[Math.floor(whole.length / 2)] ^= 1;
    await store().objects.write(archive, damaged);
    expect(await manager.verifyBackup(id)).toBe(false);
    await expect(manager.restore({ backupId: id, targetDir: other })).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
    });
    await store().objects.write(archive, whole.subarray(0, -1));
    expect(await manager.listBackups()).toEqual([]);
    await store().objects.write(archive, whole);
    expect(await manager.verifyBackup(id)).toBe(true);
    await store().objects.remove(archive);
    expect(await manager.listBackups()).toEqual([]);
  });

  test('lists an archive whose run was killed before its end after the next run', async () => {
    const { manager, prefix } = setUp();
    const { id } = await manager.createBackup();
    await store().objects.remove(`${prefix}/kg-${id}.tar.gz.manifest.json`);
    expect(await manager.listBackups()).toEqual([]);
    await manager.createBackup();
    expect((await manager.listBackups()).map((backup) => backup.id)).toContain(id);
  });
}

const PREFIXES = [
  'with space',
  'plus+plus',
  'percent%41%2F',
  'Übersicht/日本語',
  "sym'bols/(a)&=@:,;!$~*",
  `long/${'x'.repeat(200)}`,
];

function names({ store, setUp }) {
  test('works below prefixes with unusual names', async () => {
    for (const prefix of PREFIXES) {
      const { manager, database, other } = setUp({}, { prefix: `odd/${prefix}`, nodes: 5 });
      const { id, path: archive } = await manager.createBackup();
      change(database, 'new');
      const next = await manager.createBackup({ type: 'incremental' });
      expect(next, prefix).toMatchObject({ type: 'incremental', basedOn: id });
      expect((await manager.listBackups()).map((one) => one.id)).toEqual([next.id, id]);
      expect(await manager.verifyBackup(archive)).toBe(true);
      await manager.restore({ backupId: next.id, targetDir: other });
      expect(named(other)).toBe('["graph","node"]\n');
      await manager.deleteBackup(id, { cascade: true });
      expect(archives(await store().objects.names(`odd/${prefix}`))).toEqual([]);
    }
  });

  test('keeps files with unusual names, and empty ones', async () => {
    const { manager, root, other } = setUp();
    const dir = path.join(root, '.kg/plugins/odd');
    mkdirSync(path.join(dir, 'empty directory'), { recursive: true });
    const files = ['a b', 'a+b', '100%', '%2F', '#1', 'what?', 'a\nb', 'Ü', '日本', "'", 'a\\b'];
    files.push('"', '&amp;', '-rf', '~', '*', 'x'.repeat(255), '😀');
    for (const [at, file] of files.entries())
      writeFileSync(path.join(dir, file), file.repeat(at % 3));
    const backup = await manager.createBackup();
    expect(backup.warnings).toEqual([]);
    expect(await manager.verifyBackup(backup.id)).toBe(true);
    await manager.restore({ backupId: backup.id, targetDir: other });
    const below = (of) => contents(of).filter((line) => line.startsWith('.kg/plugins/'));
    expect(below(other)).toEqual(below(root));
  });
}

function sizes({ store, setUp }) {
  test('keeps archives of about one part, of several, and of exactly one', async () => {
    const { manager, root, prefix, other } = setUp({ compression: false });
    const file = path.join(root, '.kg/plugins/noise.bin');
    const noise = randomBytes(37_000_000);
    writeFileSync(file, '');
    const rest = (await manager.createBackup()).size;
    // A plain archive grows in steps of 512 bytes.
    for (const size of [PART_BYTES - 512, PART_BYTES, PART_BYTES + 512, noise.length]) {
      const content = noise.subarray(0, size === noise.length ? size : size - rest);
      writeFileSync(file, content);
      const backup = await manager.createBackup();
      if (size !== noise.length) expect(Math.abs(backup.size - size)).toBeLessThanOrEqual(512);
      const kept = await store().objects.read(`${prefix}/kg-${backup.id}.tar`);
      expect(kept).toHaveLength(backup.size);
      expect(await manager.verifyBackup(backup.id)).toBe(true);
      rmSync(other, { recursive: true, force: true });
      await manager.restore({ backupId: backup.id, targetDir: other });
      const restored = readFileSync(path.join(other, '.kg/plugins/noise.bin'));
      expect(restored.equals(content)).toBe(true);
    }
  });
}

function neighbours({ store, setUp }, pageSize) {
  test('does not list, change or remove what others keep there', async () => {
    const { manager, prefix } = setUp({ maxBackups: 1 });
    const foreign = ['notes.txt', '.kg-deleted-notes', 'kg-backup-2024.tar.gz', 'a b+c%41.txt'];
    for (const one of foreign) await store().objects.write(`${prefix}/${one}`, 'foreign');
    await store().objects.write(`${prefix}/below/kg-backup-20240115-020000.tar.gz`, 'foreign');
    await manager.createBackup();
    await manager.createBackup();
    await manager.prune();
    expect(await manager.listBackups()).toHaveLength(1);
    expect(await store().objects.names(prefix)).toEqual(expect.arrayContaining(foreign));
    for (const one of foreign)
      expect((await store().objects.read(`${prefix}/${one}`)).toString()).toBe('foreign');
    expect(await store().objects.names(`${prefix}/below`)).toHaveLength(1);
  });

  test('finds its backups among more objects than a page of a list has', async () => {
    const { manager, managerWith, database, prefix } = setUp();
    const first = await manager.createBackup();
    // They come before and after the backups in the order of the list.
    const foreign = Array.from(
      { length: pageSize + 100 },
      (_, at) => `${at % 2 === 0 ? 'a' : 'z'}${at}`,
    );
    await inParallel(foreign, (one) => store().objects.write(`${prefix}/${one}`, ''));
    change(database, 'new');
    const second = await manager.createBackup({ type: 'incremental' });
    expect(second).toMatchObject({ basedOn: first.id, warnings: [] });
    expect((await manager.listBackups()).map(({ id }) => id)).toEqual([second.id, first.id]);
    change(database, 'newer');
    const third = await managerWith({ maxBackups: 1 }).createBackup();
    expect((await manager.listBackups()).map(({ id }) => id)).toEqual([third.id]);
    const left = await store().objects.names(prefix);
    expect(left.filter((one) => /^[az]\d+$/.test(one))).toHaveLength(foreign.length);
  });
}

/** Works on all items, a few at a time. */
async function inParallel(items, work) {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.pop(); item !== undefined; item = queue.pop()) await work(item);
  };
  await Promise.all(Array.from({ length: 12 }, worker));
}

function processes({ store, setUp }) {
  test('lets several writers take turns, and lists all backups', async () => {
    const { manager, prefix } = setUp();
    const { managerWith } = setUp({}, { prefix });
    const second = managerWith();
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
  });

  test('keeps nothing of a backup that is aborted, not even the lock', async () => {
    const { manager, root, prefix } = setUp();
    writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(60_000_000));
    const controller = new AbortController();
    const aborted = manager.createBackup({
      signal: controller.signal,
      onProgress: ({ phase }) => phase === 'saving' && controller.abort(),
    });
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    expect((await store().objects.names(prefix)).filter((one) => one !== '.kg-store.lock')).toEqual(
      [],
    );
    rmSync(path.join(root, '.kg/plugins/noise.bin'));
    const began = Date.now();
    await manager.createBackup();
    // A lock that was left would be waited for.
    expect(Date.now() - began).toBeLessThan(30_000);
  });

  test('has whole backups after a kill at any moment, and the next run removes the rest', async () => {
    const { manager, root, database, prefix } = setUp();
    writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(20_000_000));
    await manager.createBackup();
    const args = ['diag', 'backup', '--project', root, '--output', store().url(prefix)];
    const env = { ...process.env, ...store().env };
    const began = Date.now();
    await promisify(execFile)(kgPath, args, { env });
    const takes = Date.now() - began;
    for (let at = 0; at < KILLS; at += 1) {
      change(database, `kill ${at}`);
      const child = spawn(kgPath, args, { env, stdio: 'ignore' });
      const ended = new Promise((resolve) => child.once('exit', resolve));
      const killed = setTimeout(() => child.kill('SIGKILL'), (takes * (at + 0.5)) / KILLS);
      await ended;
      clearTimeout(killed);
      for (const { id } of await manager.listBackups())
        expect(await manager.verifyBackup(id)).toBe(true);
      // A minute later the lock of an object store would have ended by itself.
      await store().objects.remove(`${prefix}/.kg-store.lock`);
    }
    await manager.createBackup();
    const left = await store().objects.names(prefix);
    const sidecars = left.filter((one) => one.endsWith('.manifest.json'));
    expect(sidecars.map((one) => one.slice(0, -'.manifest.json'.length))).toEqual(archives(left));
    expect(left.filter((one) => /partial|snapshot|deleted/.test(one))).toEqual([]);
    expect(await manager.listBackups()).toHaveLength(sidecars.length);
  });
}

/** What a directory does in another way. */
function objectsOnly({ store, setUp }) {
  test('builds upon no backup whose archive was replaced or is not cached', async () => {
    const { manager, root, database, prefix } = setUp();
    await manager.createBackup();
    rmSync(path.join(root, '.kg/cache'), { recursive: true });
    change(database, 'three');
    const uncached = await manager.createBackup({ type: 'incremental' });
    expect(uncached).toMatchObject({ type: 'full', warnings: [{ code: 'KG_WARN_FULL' }] });
    const archive = `${prefix}/kg-${uncached.id}.tar.gz`;
    const replaced = await store().objects.read(archive);
    replaced[replaced.length >> 1] ^= 1;
    await store().objects.write(archive, replaced);
    change(database, 'four');
    const next = await manager.createBackup({ type: 'incremental' });
    expect(next.type).toBe('full');
    expect(next.warnings.map(({ code }) => code)).toEqual(['KG_WARN_FULL']);
  });

  test('keeps a whole backup rather than a newer one whose archive was replaced', async () => {
    const { manager, managerWith, prefix, database } = setUp();
    const { id: whole } = await manager.createBackup();
    change(database, 'newer');
    const { id: replaced, size } = await manager.createBackup();
    await store().objects.write(`${prefix}/kg-${replaced}.tar.gz`, Buffer.alloc(size));
    expect(await manager.getLatestBackup()).toMatchObject({ id: whole });
    await managerWith({ maxBackups: 1 }).prune();
    expect((await manager.listBackups()).map(({ id }) => id)).toContain(whole);
    expect(await manager.verifyBackup(whole)).toBe(true);
  });

  test('waits for the lock, and names its holder', async () => {
    const { manager, managerWith, prefix } = setUp();
    await manager.createBackup();
    const expires = new Date(Date.now() + 60_000).toISOString();
    const since = new Date().toISOString();
    const holder = { owner: 'process 7 on elsewhere', nonce: 'x', generation: 9, since, expires };
    await store().objects.write(`${prefix}/.kg-store.lock`, JSON.stringify(holder));
    const impatient = managerWith({ lockTimeout: 100 });
    await expect(impatient.createBackup()).rejects.toMatchObject({
      code: 'KG_STORE_LOCKED',
      message: expect.stringContaining('process 7 on elsewhere'),
    });
    // Reading needs no lock.
    expect(await impatient.listBackups()).toHaveLength(1);
    // The clock of the service counts in seconds.
    const past = { ...holder, expires: new Date(Date.now() - 5000).toISOString() };
    await store().objects.write(`${prefix}/.kg-store.lock`, JSON.stringify(past));
    await impatient.createBackup();
    expect(await impatient.listBackups()).toHaveLength(2);
  });

  test('finishes a removal that was killed', async () => {
    const { manager, prefix } = setUp();
    const { id } = await manager.createBackup();
    await store().objects.write(`${prefix}/.kg-deleted-kg-${id}.tar.gz`, '');
    expect(await manager.listBackups()).toEqual([]);
    await manager.createBackup();
    const left = await store().objects.names(prefix);
    expect(archives(left)).toHaveLength(1);
    expect(left.filter((one) => one.startsWith('.kg-deleted'))).toEqual([]);
    expect(await manager.listBackups()).toHaveLength(1);
  });

  test('lists a backup that may not be removed', async () => {
    const { manager, prefix } = setUp();
    const { id } = await manager.createBackup();
    await store().objects.write(`${prefix}/.kg-deleted-kg-${id}.tar.gz`, 'void\n');
    expect(await manager.listBackups()).toHaveLength(1);
    await manager.createBackup();
    expect(await manager.listBackups()).toHaveLength(2);
    await manager.deleteBackup(id);
    const left = await store().objects.names(prefix);
    expect(archives(left)).toHaveLength(1);
    expect(left.filter((one) => one.startsWith('.kg-deleted'))).toEqual([]);
  });

  test('refuses a URL with a query or a fragment', async () => {
    const { managerWith } = setUp();
    for (const sign of ['?', '#'])
      expect(() => managerWith({ backupDir: store().url(`odd/a${sign}b`) })).toThrow(/query or/);
  });
}

function uploads({ store, setUp }) {
  test('ends the uploads that killed runs left', async () => {
    const { managerWith, prefix } = setUp();
    const manager = managerWith({ maxBackups: 9 });
    await manager.createBackup();
    const begin = (name) =>
      store().request('POST', `/${BUCKET}/${prefix}/${name}`, { query: [['uploads', '']] });
    await begin('kg-backup-20240115-020000.tar.gz');
    await begin('of-others');
    expect(await store().unfinishedUploads(prefix)).toHaveLength(2);
    expect(await manager.prune()).toMatchObject({ warnings: [] });
    expect(await store().unfinishedUploads(prefix)).toEqual([`${prefix}/of-others`]);
  });
}
