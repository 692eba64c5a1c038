// Whatever goes wrong between `kg` and an object store, a backup that is reported done can be
// restored, and one that failed is not listed.

import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';

import { refusal, startFaultProxy } from './support/fault-proxy.mjs';
import { startObjectStore } from './support/object-store.mjs';
import { makeProject } from './support/project.mjs';

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

const isLong = process.env.KG_TEST_LONG === '1';
let prefixes = 0;

/** Returns a project, a manager that talks through a proxy, and one that does not. */
async function setUp(choose) {
  prefixes += 1;
  const prefix = `faults/${prefixes}`;
  const { root } = makeProject({ nodes: 20 });
  const proxy = await startFaultProxy(store.endpoint, choose);
  onTestFinished(() => proxy.stop());
  const managerAt = (endpoint, more) =>
    createBackupManager({
      projectRoot: root,
      backupDir: store.url(prefix),
      storageOptions: { ...store.storageOptions, endpoint, timeout: 3000 },
      ...more,
    });
  const other = path.join(path.dirname(root), 'restored');
  return {
    root,
    prefix,
    proxy,
    other,
    managerAt,
    faulty: managerAt(proxy.endpoint),
    plain: managerAt(store.endpoint),
  };
}

const archives = (names) => names.filter((name) => /^kg-backup.*\.tar\.gz$/.test(name));

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

/** The same numbers in every run. */
function random(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
}

test('random faults lose no backup that was reported done, and list none that failed', async () => {
  const next = random(7);
  let isFaulty = true;
  const choose = () => {
    if (!isFaulty || next(8) > 0) return null;
    return ['reset', 'lose', refusal(503, 'SlowDown'), refusal(500, 'InternalError')][next(4)];
  };
  const { root, prefix, faulty, plain, other } = await setUp(choose);
  const file = path.join(root, '.kg/plugins/content.bin');
  const done = [];
  for (let round = 0; round < (isLong ? 100 : 12); round += 1) {
    // Some archives have one part, and some several.
    const content = randomBytes(round % 4 === 3 ? 18_000_000 : 1 + next(100_000));
    writeFileSync(file, content);
    isFaulty = true;
    const type = next(2) === 0 ? 'full' : 'incremental';
    const made = await faulty.createBackup({ type }).catch((error) => error);
    isFaulty = false;
    if (made instanceof Error) expect(made.code).toMatch(/^KG_/);
    else done.push({ id: made.id, content });
    const listed = (await plain.listBackups()).map(({ id }) => id);
    expect(listed).toEqual(expect.arrayContaining(done.map(({ id }) => id)));
    for (const id of listed) expect(await plain.verifyBackup(id)).toBe(true);
    // A process that lost its lock without being able to release it holds it for a minute.
    await store.objects.remove(`${prefix}/.kg-store.lock`).catch(() => {});
  }
  expect(done.length).toBeGreaterThan(2);
  const { id, content } = done.at(-1);
  await plain.restore({ backupId: id, targetDir: other });
  expect(readFileSync(path.join(other, '.kg/plugins/content.bin')).equals(content)).toBe(true);

  await plain.createBackup();
  const names = await store.objects.names(prefix);
  const sidecars = names.filter((name) => name.endsWith('.manifest.json'));
  expect(sidecars.map((name) => name.slice(0, -'.manifest.json'.length))).toEqual(archives(names));
  expect(names.filter((name) => name.startsWith('.kg-deleted'))).toEqual([]);
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
