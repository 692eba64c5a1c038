// Options of S3 as the service sees them, and ways to reach it.

import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { request as send } from 'node:http';
import { createServer } from 'node:https';
import path from 'node:path';

import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';

import { certificates } from './support/certificates.mjs';
import { archives, named, setUpIn } from './support/conformance.mjs';
import { startFaultProxy } from './support/fault-proxy.mjs';
import { BUCKET, KEY, SECRET, startObjectStore } from './support/object-store.mjs';
import { signed } from './support/sigv4.mjs';

let store;
beforeAll(async () => {
  // The key with which the server encrypts.
  store = await startObjectStore({ env: { WEED_S3_SSE_KEY: 'a'.repeat(64) } });
});
afterAll(() => store?.stop());

const setUp = setUpIn(() => store);

/** Makes the archive of a project longer than a part. */
const addNoise = (root) =>
  writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(10_000_000));

test('a service with a certificate of its own is trusted through `caFile` alone', async () => {
  const { caFile, key, cert } = certificates('IP:127.0.0.1');
  const { hostname, port } = new URL(store.endpoint);
  const server = createServer({ key, cert }, (incoming, outgoing) => {
    const { method, url, headers } = incoming;
    const passed = send({ hostname, port, method, path: url, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.rawHeaders);
      answer.pipe(outgoing);
    });
    incoming.pipe(passed);
  });
  await new Promise((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const { managerWith, root, other } = setUp();
  const storageOptions = {
    ...store.storageOptions,
    endpoint: `https://127.0.0.1:${server.address().port}`,
    allowHttp: undefined,
  };
  await expect(managerWith({ storageOptions }).createBackup()).rejects.toMatchObject({
    code: 'KG_STORE_UNREACHABLE',
    message: expect.stringContaining('certificate'),
    remedy: expect.stringContaining('caFile'),
  });
  const manager = managerWith({ storageOptions: { ...storageOptions, caFile } });
  addNoise(root);
  const { id } = await manager.createBackup();
  expect(await manager.verifyBackup(id)).toBe(true);
  await manager.restore({ backupId: id, targetDir: other });
  expect(named(other)).toBe('["graph","node"]\n');
});

test('the bucket can be in the name of the host', async () => {
  const { managerWith, prefix, other } = setUp();
  const hosts = new Set();
  const toPath = ({ method, path: target, query, headers, body }) => {
    const kept = Object.entries(headers).filter(([name]) =>
      /^(content-(type|md5)|if-|range|x-amz-meta-)/.test(name),
    );
    const bucket = headers.host.split('.')[0];
    const request = { method, host: new URL(store.endpoint).host, query, body };
    const all = signed(
      { ...request, path: `/${bucket}${target}`, headers: Object.fromEntries(kept) },
      { key: KEY, secret: SECRET },
    );
    return { path: all.path, headers: { ...all.headers, 'content-length': body.length } };
  };
  const proxy = await startFaultProxy(store.endpoint, ({ headers }) => {
    hosts.add(headers.host);
    return { resign: toPath };
  });
  onTestFinished(() => proxy.stop());
  const manager = managerWith({
    storageOptions: {
      ...store.storageOptions,
      endpoint: 'http://objects.example.com',
      virtualHostedStyle: true,
      proxy: proxy.endpoint,
    },
  });
  const { id } = await manager.createBackup();
  expect(await manager.verifyBackup(id)).toBe(true);
  await manager.restore({ backupId: id, targetDir: other });
  expect(named(other)).toBe('["graph","node"]\n');
  expect([...hosts]).toEqual([`${BUCKET}.objects.example.com`]);
  expect(archives(await store.objects.names(prefix))).toHaveLength(1);
});

test('objects are encrypted by the service, tagged, and of a storage class', async () => {
  const { managerWith, root, prefix, other } = setUp();
  const manager = managerWith({
    storageOptions: {
      ...store.storageOptions,
      serverSideEncryption: 'AES256',
      storageClass: 'STANDARD_IA',
      tags: { team: 'graphs & nodes', empty: '' },
    },
  });
  const small = await manager.createBackup();
  addNoise(root);
  const large = await manager.createBackup();
  for (const { id } of [small, large]) {
    const archive = `/${BUCKET}/${prefix}/kg-${id}.tar.gz`;
    for (const name of [archive, `${archive}.manifest.json`]) {
      const { status, headers } = await store.request('HEAD', name);
      expect(status).toBe(200);
      expect(headers.get('x-amz-server-side-encryption'), name).toBe('AES256');
      expect(headers.get('x-amz-storage-class') ?? 'STANDARD', name).toBe(
        name === archive ? 'STANDARD_IA' : 'STANDARD',
      );
      const tagging = await store.request('GET', name, { query: [['tagging', '']] });
      const text = (await tagging.text()).replaceAll('&amp;', '&');
      expect(text).toContain('<Key>team</Key><Value>graphs & nodes</Value>');
    }
    expect(await manager.verifyBackup(id)).toBe(true);
  }
  await manager.restore({ backupId: large.id, targetDir: other });
  expect(named(other)).toBe('["graph","node"]\n');
});

test('a prune in a bucket with versions says that it frees nothing', async () => {
  const bucket = 'kg-versions';
  const enabled = '<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>';
  await store.request('PUT', `/${bucket}`);
  const set = { query: [['versioning', '']], body: enabled };
  expect((await store.request('PUT', `/${bucket}`, set)).ok).toBe(true);
  const { managerWith } = setUp();
  const backupDir = `s3://${bucket}/backups`;
  const manager = managerWith({ backupDir });
  await manager.createBackup();
  await manager.createBackup();
  const limited = managerWith({ backupDir, maxBackups: 1 });
  const { warnings } = await limited.prune();
  expect(warnings.map(({ message }) => message).join()).toContain('noncurrent versions');
  expect((await limited.prune()).warnings, 'nothing was removed').toEqual([]);
});

test('archives are locked, and a deletion only hides them', async () => {
  const bucket = 'kg-locked';
  const made = await store.request('PUT', `/${bucket}`, {
    headers: { 'x-amz-bucket-object-lock-enabled': 'true' },
  });
  expect(made.status).toBe(200);
  const { managerWith, root } = setUp();
  const locked = (days) =>
    managerWith({
      backupDir: `s3://${bucket}/backups`,
      storageOptions: { ...store.storageOptions, objectLock: { mode: 'GOVERNANCE', days } },
    });
  const manager = locked(2);
  const small = await manager.createBackup();
  addNoise(root);
  const large = await manager.createBackup();
  for (const { id } of [small, large]) {
    const archive = `/${bucket}/backups/kg-${id}.tar.gz`;
    const retention = await store.request('GET', archive, { query: [['retention', '']] });
    const text = await retention.text();
    expect(text).toContain('<Mode>GOVERNANCE</Mode>');
    const until = Date.parse(/<RetainUntilDate>(.*?)</.exec(text)[1]);
    expect(Math.abs(until - Date.now() - 2 * 86_400_000)).toBeLessThan(120_000);
    const sidecar = `${archive}.manifest.json`;
    const none = await store.request('GET', sidecar, { query: [['retention', '']] });
    expect(none.ok).toBe(false);
    expect(await manager.verifyBackup(id)).toBe(true);
  }
  await manager.deleteBackup(small.id);
  expect((await manager.listBackups()).map(({ id }) => id)).toEqual([large.id]);
  const query = [
    ['versions', ''],
    ['prefix', `backups/kg-${small.id}.tar.gz`],
  ];
  const versions = await (await store.request('GET', `/${bucket}`, { query })).text();
  expect(versions).toContain(`<Key>backups/kg-${small.id}.tar.gz</Key>`);
});
