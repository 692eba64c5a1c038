import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import path from 'node:path';

import { expect, onTestFinished, test } from 'vitest';

import { archives, change, conformance } from './support/conformance.mjs';
import { refusal } from './support/fault-proxy.mjs';
import { startGcs } from './support/gcs.mjs';
import { BUCKET } from './support/object-store.mjs';
import { kg } from './support/processes.mjs';

const { store, setUp } = conformance('Google Cloud Storage, in front of SeaweedFS', startGcs, {
  pageSize: 1000,
  listsUploads: true,
});

/** Lets a function see the requests of this test. */
function onRequest(choose) {
  store().onRequest(choose);
  onTestFinished(() => store().onRequest(() => null));
}

test('an archive of several parts replaces nothing', async () => {
  const { manager, root, prefix } = setUp();
  writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(10_000_000));
  let taken = null;
  onRequest(async ({ method, url }) => {
    const key = decodeURIComponent(url.split('?')[0]).replace('/kg-tests/', '');
    if (method !== 'PUT' || !url.includes('partNumber=2')) return null;
    taken = key;
    await store().objects.write(key, 'of another process');
    return null;
  });
  await expect(manager.createBackup()).rejects.toMatchObject({ code: 'KG_STORE_CHANGED' });
  expect((await store().objects.read(taken)).toString()).toBe('of another process');
  expect(archives(await store().objects.names(prefix))).toHaveLength(1);
  expect(await manager.listBackups()).toEqual([]);
});

test('the first answer to each write may be lost', async () => {
  const { manager, managerWith, root, database, prefix } = setUp();
  writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(10_000_000));
  const lost = new Set();
  onRequest(({ method, url }) => {
    const request = `${method} ${url}`;
    if (method === 'GET' || method === 'HEAD' || lost.has(request)) return null;
    lost.add(request);
    return 'lose';
  });
  const full = await manager.createBackup();
  change(database, 'new');
  lost.clear();
  const next = await manager.createBackup({ type: 'incremental' });
  expect(next).toMatchObject({ type: 'incremental', basedOn: full.id });
  for (const { id } of await manager.listBackups())
    expect(await manager.verifyBackup(id)).toBe(true);
  await manager.deleteBackup(full.id, { cascade: true });
  await managerWith({ maxBackups: 1 }).prune();
  expect(lost.size).toBeGreaterThan(5);
  expect(await store().objects.names(prefix)).toEqual(['.kg-store.lock']);
  expect(await store().unfinishedUploads(prefix)).toEqual([]);
});

test('archives alone have the storage class', async () => {
  const { managerWith, prefix } = setUp();
  const storageOptions = { ...store().storageOptions, storageClass: 'NEARLINE' };
  const { id } = await managerWith({ storageOptions }).createBackup();
  const classOf = async (name) => {
    const { headers } = await store().request('HEAD', `/${BUCKET}/${prefix}/${name}`);
    return headers.get('x-amz-storage-class');
  };
  expect(await classOf(`kg-${id}.tar.gz`)).toBe('STANDARD_IA');
  expect(await classOf(`kg-${id}.tar.gz.manifest.json`)).not.toBe('STANDARD_IA');
});

test('a refused second write of a name in a second is repeated', async () => {
  const { manager } = setUp();
  const times = new Map();
  let refused = 0;
  onRequest(({ method, url }) => {
    if (method !== 'PUT' || Date.now() - (times.get(url) ?? 0) > 1000) {
      if (method === 'PUT') times.set(url, Date.now());
      return null;
    }
    refused += 1;
    return refusal(429, 'SlowDown');
  });
  const { id } = await manager.createBackup();
  await manager.pin(id, 'release');
  expect(refused).toBeGreaterThan(0);
  expect(await manager.verifyBackup(id)).toBe(true);
});

test('a key that the service does not know is reported as such', async () => {
  const { root, prefix } = setUp();
  const key = store().unknownAccount();
  const env = { ...process.env, ...store().env, GOOGLE_SERVICE_ACCOUNT: key };
  const args = ['diag', 'backup', '--json', '--project', root, '--output', store().url(prefix)];
  const done = await kg(args, { env });
  expect(done.status).not.toBe(0);
  expect(done.stdout + done.stderr).toContain('KG_STORE_DENIED');
  expect(done.stdout + done.stderr).not.toMatch(/PRIVATE KEY|Bearer/);
});

test('a file of credentials that is missing or broken is reported as such', async () => {
  const { root, prefix } = setUp();
  const broken = path.join(root, '../broken.json');
  writeFileSync(broken, '{"private_key": "hunter2"}');
  const args = ['diag', 'backup', '--json', '--project', root, '--output', store().url(prefix)];
  for (const file of [broken, path.join(root, '../absent.json')]) {
    const env = { ...process.env, ...store().env, GOOGLE_SERVICE_ACCOUNT: file };
    const done = await kg(args, { env });
    expect(done.status).not.toBe(0);
    expect(done.stdout + done.stderr).toContain('KG_INVALID_OPTION');
    expect(done.stdout + done.stderr).not.toContain('hunter2');
  }
});
