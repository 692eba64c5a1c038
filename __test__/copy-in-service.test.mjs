// Within one service of S3, the service copies archives itself. A proxy counts the bytes of archives
// that pass through this machine, and breaks copies. Each copy is proven, whatever the service does.

import { randomBytes } from 'node:crypto';
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';

import { refusal, startFaultProxy, withBody } from './support/fault-proxy.mjs';
import { DIGESTS_OF_COPIED_PARTS, startObjectStore } from './support/object-store.mjs';
import { kgPath, until } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';

const OTHER_BUCKET = 'kg-tests-other';
const MIB = 1024 * 1024;

let server;
beforeAll(async () => {
  server = await startObjectStore({ args: DIGESTS_OF_COPIED_PARTS });
  const made = await server.request('PUT', `/${OTHER_BUCKET}`);
  expect(made.status).toBe(200);
});
afterAll(() => server?.stop());

const proxies = [];
afterEach(() => Promise.all(proxies.splice(0).map((proxy) => proxy.stop())));

let prefixes = 0;
const newPrefix = () => `in-service/${(prefixes += 1)}`;

const ids = (backups) => backups.map(({ id }) => id);
const isOfArchive = (url) => url.includes('kg-backup-') && !url.includes('.manifest.json');

/**
 * Starts a proxy. `passed` are the requests with bytes of archives, and `copies` those that let the
 * service copy. `choose` may break one.
 */
async function startCounting(choose = () => null, { endpoint, storageOptions } = server) {
  const [passed, copies] = [[], []];
  const proxy = await startFaultProxy(endpoint, (request) => {
    const { method, url, headers } = request;
    const isCopy = headers['x-amz-copy-source'] !== undefined;
    const isSent = method === 'PUT' && Number(headers['content-length'] ?? 0) > 0;
    if (isOfArchive(url) && (method === 'GET' || isSent)) passed.push(`${method} ${url}`);
    if (isCopy) copies.push(url);
    return choose({ ...request, isCopy, copies });
  });
  proxies.push(proxy);
  return {
    ...proxy,
    passed,
    copies,
    storageOptions: { ...storageOptions, endpoint: proxy.endpoint },
  };
}

/** Makes a chain of small archives and a full backup of several parts in the source. */
async function setUp({ mib = 20, store = server } = {}) {
  const { root, database } = makeProject({ nodes: 50 });
  const source = store.url(newPrefix());
  const prefix = newPrefix();
  const open = (backupDir, storageOptions = store.storageOptions) =>
    createBackupManager({ projectRoot: root, backupDir, storageOptions });
  const manager = open(source);
  const made = [await manager.createBackup()];
  withDatabase(database, (db) =>
    db.prepare('INSERT INTO nodes (id, title, content) VALUES (?, ?, ?)').run('new', 'n', 'n'),
  );
  made.push(await manager.createBackup({ type: 'incremental' }));
  writeFileSync(path.join(root, '.kg/vectors/large.f32'), randomBytes(mib * MIB));
  made.push(await manager.createBackup());
  expect(made.map(({ type }) => type)).toEqual(['full', 'incremental', 'full']);
  expect(made[2].size).toBeGreaterThan(mib * MIB);
  return { root, made, source, prefix, target: store.url(prefix), open };
}

/** Checks that every backup is in the target and restores. */
async function assertWhole({ open, made }, target) {
  const copies = open(target);
  expect(ids(await copies.listBackups()).sort()).toEqual(ids(made).sort());
  for (const { id, checksum, size } of made) {
    expect(await copies.verifyBackup(id)).toBe(true);
    expect(await copies.getBackup(id)).toMatchObject({ checksum, size });
  }
  const targetDir = path.join(temporaryDirectory(), 'restored');
  await copies.restore({ backupId: made[1].id, targetDir });
  expect(integrityOf(path.join(targetDir, '.kg/knowledge.db'))).toBe('ok');
}

describe('a copy within one service', () => {
  test.each([
    ['between two prefixes', (prefix) => server.url(prefix)],
    ['between two buckets', (prefix) => `s3://${OTHER_BUCKET}/${prefix}`],
  ])('%s sends no bytes of archives', async (_, urlOf) => {
    const project = await setUp({ mib: 36 });
    const target = urlOf(project.prefix);
    const { passed, copies, storageOptions } = await startCounting();
    const seen = [];
    const result = await project.open(project.source, storageOptions).copyTo(target, {
      storageOptions,
      onProgress: ({ phase, ...bytes }) => phase === 'copying' && seen.push(bytes),
    });
    expect(result).toMatchObject({ failed: [], warnings: [], present: 0 });
    expect(result.copied).toHaveLength(3);
    expect(passed).toEqual([]);
    expect(copies.length, 'one of each small archive, and one of each part').toBe(2 + 5);
    const total = project.made.reduce((sum, { size }) => sum + size, 0);
    expect(result.bytesCopied).toBe(total);
    expect(seen.at(-1)).toEqual({ bytesDone: total, bytesTotal: total });
    await assertWhole(project, target);
    if (!target.includes(OTHER_BUCKET))
      expect(await server.unfinishedUploads(project.prefix)).toEqual([]);
  });

  test('of a copy is one too, and a chain continues', async () => {
    const project = await setUp();
    const { passed, storageOptions } = await startCounting();
    const at = (url) => project.open(url, storageOptions);
    const third = server.url(newPrefix());
    await at(project.source).copyTo(project.target, { storageOptions });
    const { copied } = await at(project.target).copyTo(third, { storageOptions });
    expect(copied).toHaveLength(3);
    expect(passed).toEqual([]);
    await assertWhole(project, third);
    const next = await at(project.source).createBackup({ type: 'incremental' });
    expect(next.basedOn).toBe(project.made[2].id);
    const again = await at(project.source).copyTo(third, { storageOptions });
    expect(ids(again.copied)).toEqual([next.id]);
    expect(await at(third).verifyBackup(next.id)).toBe(true);
  });

  test('goes through this machine to another endpoint', async () => {
    const project = await setUp();
    const { passed, copies, storageOptions } = await startCounting();
    const result = await project.open(project.source).copyTo(project.target, { storageOptions });
    expect(result).toMatchObject({ failed: [], warnings: [] });
    expect(copies).toEqual([]);
    expect(passed).not.toEqual([]);
    await assertWhole(project, project.target);
  });
});

/** The answer of a copy with another ETag. */
const withOtherETag = (answer) =>
  withBody(answer, String(answer.body).replace(/[0-9a-f]{32}/, '0123456789abcdef0123456789abcdef'));

describe('a service that cannot copy, or not in a way that is proven,', () => {
  test.each([
    ['refuses with 501', refusal(501, 'NotImplemented')],
    ['refuses with 403', refusal(403, 'AccessDenied')],
    ['refuses with 400', refusal(400, 'InvalidRequest')],
    ['finds the condition broken', refusal(412, 'PreconditionFailed')],
    ['makes copies with another ETag', { change: withOtherETag }],
  ])('%s: the archives go through this machine', async (_, fault) => {
    const project = await setUp();
    const { passed, copies, storageOptions } = await startCounting(({ isCopy }) =>
      isCopy ? fault : null,
    );
    const seen = [];
    const manager = project.open(project.source, storageOptions);
    const result = await manager.copyTo(project.target, {
      storageOptions,
      onProgress: ({ phase, ...bytes }) => phase === 'copying' && seen.push(bytes),
    });
    expect(result).toMatchObject({ failed: [], warnings: [] });
    expect(result.copied).toHaveLength(3);
    expect(copies).not.toEqual([]);
    expect(passed.filter((request) => request.startsWith('GET'))).not.toEqual([]);
    for (const { bytesDone, bytesTotal } of seen) {
      expect(bytesDone).toBeLessThanOrEqual(bytesTotal);
      expect(bytesTotal, 'no byte counts twice').toBe(result.bytesCopied);
    }
    await assertWhole(project, project.target);
    expect(await server.unfinishedUploads(project.prefix)).toEqual([]);
  });

  test('such as SeaweedFS with its defaults, copies what has one part', async () => {
    const store = await startObjectStore();
    try {
      const project = await setUp({ store });
      const { passed, copies, storageOptions } = await startCounting(undefined, store);
      const manager = project.open(project.source, storageOptions);
      const { copied, failed } = await manager.copyTo(project.target, { storageOptions });
      expect(copied).toHaveLength(3);
      expect(failed).toEqual([]);
      const names = project.made.map(({ path: url }) => path.posix.basename(String(url)));
      const isOf = (name) => (request) => request.includes(name);
      expect(passed.some(isOf(names[2]))).toBe(true);
      for (const name of names.slice(0, 2)) {
        expect(passed.some(isOf(name))).toBe(false);
        expect(copies.some(isOf(name))).toBe(true);
      }
      await assertWhole(project, project.target);
      expect(await store.unfinishedUploads(project.prefix)).toEqual([]);
    } finally {
      await store.stop();
    }
  });
});

test.each([
  ['a small archive', 1],
  ['an archive of several parts', 2],
])('%s that was replaced behind our back is not copied', async (_, at) => {
  const project = await setUp();
  const replaced = project.made[at];
  const key = String(replaced.path).replace(/^s3:\/\/[^/]*\//, '');
  const bytes = await server.objects.read(key);
  bytes[Math.floor(bytes.length / 2)] ^= 0xff;
  await server.objects.write(key, bytes);
  const { storageOptions } = await startCounting();
  const manager = project.open(project.source, storageOptions);
  const { copied, failed } = await manager.copyTo(project.target, { storageOptions });
  expect(ids(copied).sort()).toEqual(
    ids(project.made.filter(({ id }) => id !== replaced.id)).sort(),
  );
  expect(failed).toEqual([
    { id: replaced.id, error: expect.objectContaining({ code: 'KG_CHECKSUM_MISMATCH' }) },
  ]);
  const names = await server.objects.names(project.prefix);
  expect(names.filter((name) => name.includes(path.posix.basename(key)))).toEqual([]);
  expect(await server.unfinishedUploads(project.prefix)).toEqual([]);
});

/** Makes each copy of a part take a while, and calls back at the second one. */
const slowly = (atSecond) =>
  startCounting(({ isCopy, url }) => {
    if (!isCopy || !url.includes('partNumber=')) return null;
    if (url.includes('partNumber=2&')) atSecond();
    return { pieces: 1, pauseMs: 500 };
  });

describe('a copy within one service that is cut off', () => {
  test('by an abort leaves nothing unfinished, and the next one continues', async () => {
    const project = await setUp({ mib: 40 });
    const controller = new AbortController();
    const { storageOptions } = await slowly(() => controller.abort());
    const manager = project.open(project.source, storageOptions);
    const copying = manager.copyTo(project.target, { storageOptions, signal: controller.signal });
    await expect(copying).rejects.toMatchObject({ name: 'AbortError' });
    expect(await server.unfinishedUploads(project.prefix)).toEqual([]);
    const names = await server.objects.names(project.prefix);
    expect(names.filter((name) => name.includes('kg-backup-'))).toEqual([]);
    const rest = await manager.copyTo(project.target, { storageOptions });
    expect(rest).toMatchObject({ failed: [], warnings: [] });
    await assertWhole(project, project.target);
  });

  test('by a kill leaves parts that the next one removes', async () => {
    const project = await setUp({ mib: 40 });
    let isCopying = false;
    const { endpoint, storageOptions } = await slowly(() => (isCopying = true));
    const args = ['diag', 'backup', '--output', project.source, '--copy-to', project.target];
    const env = { ...process.env, ...server.env, AWS_ENDPOINT_URL: endpoint };
    const child = spawn(kgPath, args, { cwd: project.root, env, stdio: 'ignore' });
    const ended = new Promise((resolve) => child.once('exit', resolve));
    await until(() => isCopying || child.exitCode !== null, 'the copy has begun');
    child.kill('SIGKILL');
    await ended;
    expect(await server.unfinishedUploads(project.prefix)).toHaveLength(1);
    // Its lease would last for 45 seconds.
    await server.objects.remove(`${project.prefix}/.kg-store.lock`);
    const manager = project.open(project.source, storageOptions);
    const rest = await manager.copyTo(project.target, { storageOptions });
    expect(rest.failed).toEqual([]);
    expect(await server.unfinishedUploads(project.prefix)).toEqual([]);
    await assertWhole(project, project.target);
  });
});
