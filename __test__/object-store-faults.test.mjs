// Whatever goes wrong between `kg` and an object store, a backup that is reported done can be
// restored, and one that failed is not listed.

import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import path from 'node:path';

import { afterAll, beforeAll, expect, test } from 'vitest';

import { archives, change } from './support/conformance.mjs';
import { refusal } from './support/fault-proxy.mjs';
import { faultySetUpIn } from './support/faulty-store.mjs';
import { startObjectStore } from './support/object-store.mjs';

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

const setUp = faultySetUpIn(() => store);

test('a permission to delete that is missing is reported, and hides no backup', async () => {
  const { prefix, faulty, managerAt, proxy } = await setUp(({ method }) =>
    method === 'DELETE' ? refusal(403, 'AccessDenied') : null,
  );
  const { id } = await faulty.createBackup();
  await expect(faulty.deleteBackup(id)).rejects.toMatchObject({ code: 'KG_STORE_DENIED' });
  expect(await faulty.listBackups()).toHaveLength(1);
  const pruning = managerAt(proxy.endpoint, { maxBackups: 1 });
  const next = await pruning.createBackup();
  expect(next.warnings.map(({ code }) => code)).toContain('KG_WARN_STORE');
  expect((await faulty.listBackups()).map((backup) => backup.id).sort()).toEqual(
    [id, next.id].sort(),
  );
  expect(archives(await store.objects.names(prefix))).toHaveLength(2);
});

test('a service that is overloaded for a while delays a backup, and does not fail it', async () => {
  const refusals = [503, 500, 429];
  const { faulty, proxy } = await setUp(({ number }) =>
    number % 3 === 2 && refusals.length > 0
      ? refusal(refusals.pop(), 'SlowDown', { 'retry-after': '0' })
      : null,
  );
  const { id } = await faulty.createBackup();
  expect(refusals).toEqual([]);
  expect(await faulty.verifyBackup(id)).toBe(true);
  expect(proxy.requests.length).toBeGreaterThan(6);
});

/**
 * Makes a backup for each request that one makes, with a fault at that request. `fault` gets how
 * many requests of this backup came before, and the number of the broken one.
 */
async function withFaultAtEach(fault, check) {
  let [begun, at] = [0, Infinity];
  const { prefix, faulty, plain, proxy } = await setUp(({ number }) =>
    fault(number - 1 - begun, at),
  );
  await faulty.createBackup();
  const most = proxy.requests.length;
  for (at = 0; at < most; at += 1) {
    begun = proxy.requests.length;
    const before = (await plain.listBackups()).length;
    const made = await faulty.createBackup().catch((error) => error);
    const listed = (await plain.listBackups()).map(({ id }) => id);
    check(made, listed, before);
    for (const id of listed) expect(await plain.verifyBackup(id)).toBe(true);
    // A process that could not release its lock holds it for a minute.
    await store.objects.remove(`${prefix}/.kg-store.lock`).catch(() => {});
  }
  await plain.createBackup();
  const names = await store.objects.names(prefix);
  const sidecars = names.filter((name) => name.endsWith('.manifest.json'));
  expect(sidecars).toHaveLength(archives(names).length);
}

test('a backup is done or absent whichever request is the last one that is answered', () =>
  withFaultAtEach(
    (number, at) => (number >= at ? refusal(403, 'AccessDenied') : null),
    (made, listed, before) => {
      if (made instanceof Error) expect(made.code).toBe('KG_STORE_DENIED');
      else expect(listed).toContain(made.id);
      expect(listed.length).toBeLessThanOrEqual(before + 1);
    },
  ));

test('one lost answer fails no backup, whichever it is', () =>
  withFaultAtEach(
    (number, at) => (number === at ? 'lose' : null),
    (made, listed, before) => {
      expect(listed).toContain(made.id);
      expect(listed).toHaveLength(before + 1);
    },
  ));

test('a deletion that the service only claims is reported', async () => {
  const { database, faulty, managerAt, plain, proxy } = await setUp(({ method }) =>
    method === 'DELETE' ? { status: 204 } : null,
  );
  const { id } = await faulty.createBackup();
  await expect(faulty.deleteBackup(id)).rejects.toMatchObject({
    message: expect.stringContaining(id),
  });
  change(database, 'new');
  const next = await managerAt(proxy.endpoint, { maxBackups: 1 }).createBackup();
  expect(next.warnings.map(({ code }) => code)).toContain('KG_WARN_STORE');
  expect((await plain.listBackups()).map((one) => one.id)).toContain(next.id);
  for (const one of await plain.listBackups()) expect(await plain.verifyBackup(one.id)).toBe(true);
});

test('backups work if uploads may not be listed', async () => {
  const { faulty, plain } = await setUp(({ method, url }) =>
    method === 'GET' && /[?&]uploads=/.test(url) ? refusal(403, 'AccessDenied') : null,
  );
  const { id, warnings } = await faulty.createBackup();
  expect(warnings.map(({ code }) => code)).toEqual(['KG_WARN_STORE']);
  expect(await plain.verifyBackup(id)).toBe(true);
});

test('an archive that has to be thawed is reported as such', async () => {
  const { faulty, other } = await setUp(({ method, url }) =>
    method === 'GET' && /\.tar\.gz$/.test(url) ? refusal(403, 'InvalidObjectState') : null,
  );
  const { id } = await faulty.createBackup();
  await expect(faulty.restore({ backupId: id, targetDir: other })).rejects.toMatchObject({
    code: 'KG_UNSUPPORTED',
    message: expect.stringContaining('thawed'),
  });
});

test('the parts of an archive have one size', async () => {
  const sizes = [];
  const { root, faulty, plain } = await setUp(({ method, url, headers }) => {
    if (method === 'PUT' && url.includes('partNumber='))
      sizes.push(Number(headers['content-length']));
    return null;
  });
  writeFileSync(path.join(root, '.kg/plugins/noise.bin'), randomBytes(30_000_000));
  const { id, size } = await faulty.createBackup();
  expect(sizes.reduce((sum, one) => sum + one, 0)).toBe(size);
  sizes.sort((one, other) => other - one);
  expect(new Set(sizes.slice(0, -1))).toEqual(new Set([8 << 20]));
  expect(await plain.verifyBackup(id)).toBe(true);
});
