// A service, or a network before it, that repeats, delays or changes requests and answers.

import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { KgError } from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, expect, test } from 'vitest';

import { archives, change, named } from './support/conformance.mjs';
import { refusal, withBody } from './support/fault-proxy.mjs';
import { faultySetUpIn } from './support/faulty-store.mjs';
import { KEY, SECRET, startObjectStore } from './support/object-store.mjs';
import { signed } from './support/sigv4.mjs';

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

const setUp = faultySetUpIn(() => store);

/** Makes the archive of a project longer than a part. */
function addNoise(root, size = 10_000_000) {
  const noise = randomBytes(size);
  writeFileSync(path.join(root, '.kg/plugins/noise.bin'), noise);
  return noise;
}

const isList = (url) => url.includes('list-type=');
const isArchive = (url) => /kg-backup-[\d-]+\.tar\.gz(\?|$)/.test(url);
const isCompletion = (method, url) => method === 'POST' && url.includes('uploadId=');

/** Expects that each archive has a sidecar, and nothing else is left. */
async function expectTidy(prefix) {
  const names = await store.objects.names(prefix);
  const sidecars = names.filter((name) => name.endsWith('.manifest.json'));
  expect(sidecars.map((name) => name.slice(0, -'.manifest.json'.length))).toEqual(archives(names));
  const known = /^(\.kg-store\.lock|kg-backup-.*(\.tar\.gz|\.manifest\.json|\.pin\.json))$/;
  expect(names.filter((name) => !known.test(name))).toEqual([]);
}

test('requests that arrive twice change nothing', async () => {
  const { root, database, prefix, faulty, plain, other } = await setUp(({ method }) =>
    method === 'GET' || method === 'HEAD' ? null : 'twice',
  );
  const noise = addNoise(root);
  const full = await faulty.createBackup();
  expect(full.warnings).toEqual([]);
  change(database, 'new');
  const next = await faulty.createBackup({ type: 'incremental' });
  expect(next).toMatchObject({ type: 'incremental', basedOn: full.id, warnings: [] });
  await faulty.pin(full.id, 'release');
  await faulty.unpin(full.id);
  for (const { id } of await plain.listBackups()) expect(await plain.verifyBackup(id)).toBe(true);
  await faulty.restore({ backupId: next.id, targetDir: other });
  expect(readFileSync(path.join(other, '.kg/plugins/noise.bin')).equals(noise)).toBe(true);
  const whole = await faulty.consolidate(next.id);
  await faulty.deleteBackup(full.id, { cascade: true });
  expect((await plain.listBackups()).map(({ id }) => id)).toEqual([whole.id]);
  await expectTidy(prefix);
});

test('a list that lags behind loses nothing', async () => {
  // Answers to lists lack what was written in the last requests.
  const [written, lag] = [new Map(), 40];
  const { database, prefix, faulty, plain } = await setUp(({ method, url, number }) => {
    const key = decodeURIComponent(url.split('?')[0]).replace('/kg-tests/', '');
    if (method === 'PUT' || isCompletion(method, url)) written.set(key, number);
    if (!isList(url)) return null;
    return {
      change: (answer) =>
        withBody(
          answer,
          answer.body.toString().replace(/<Contents>.*?<\/Contents>/gs, (contents) => {
            const since = written.get(/<Key>(.*?)<\/Key>/.exec(contents)[1]);
            return since !== undefined && number - since < lag ? '' : contents;
          }),
        ),
    };
  });
  const done = [];
  for (let round = 0; round < 12; round += 1) {
    change(database, `round ${round}`);
    const type = round % 3 === 0 ? 'full' : 'incremental';
    const made = await faulty.createBackup({ type }).catch((error) => error);
    // A backup of the same second, which the list does not show yet, is not replaced.
    if (made instanceof Error) expect(made.code).toBe('KG_STORE_CHANGED');
    else done.push(made.id);
  }
  expect(done.length).toBeGreaterThan(0);
  await plain.createBackup().then(({ id }) => done.push(id));
  const listed = (await plain.listBackups()).map(({ id }) => id);
  expect(listed.sort()).toEqual(done.sort());
  for (const id of listed) expect(await plain.verifyBackup(id)).toBe(true);
  await expectTidy(prefix);
});

for (const [what, size, isBroken] of [
  ['an archive', 100, (method, url) => method === 'PUT' && isArchive(url)],
  ['a part', 10_000_000, (method, url) => method === 'PUT' && url.includes('partNumber=1')],
]) {
  test(`a wrong ETag in the answer to ${what} lists no doubtful backup`, async () => {
    let isFaulty = true;
    const { root, prefix, faulty, plain } = await setUp(({ method, url }) =>
      isFaulty && isBroken(method, url)
        ? {
            change: (answer) => ({
              ...answer,
              headers: { ...answer.headers, etag: `"${'0'.repeat(32)}"` },
            }),
          }
        : null,
    );
    addNoise(root, size);
    const made = await faulty.createBackup().catch((error) => error);
    for (const { id } of await plain.listBackups()) expect(await plain.verifyBackup(id)).toBe(true);
    if (made instanceof Error) {
      expect(made).toBeInstanceOf(KgError);
      expect(await plain.listBackups()).toEqual([]);
    }
    isFaulty = false;
    await faulty.createBackup();
    for (const { id } of await plain.listBackups()) expect(await plain.verifyBackup(id)).toBe(true);
    await expectTidy(prefix);
  });
}

test('a byte that changes on the way is found, and the backup is whole the next time', async () => {
  let isFaulty = true;
  const { faulty, other } = await setUp(({ method, url }) =>
    isFaulty && method === 'GET' && isArchive(url)
      ? {
          change: (answer) => {
            const body = Buffer.from(answer.body);
            body[body.length >> 1] ^= 1;
            return { ...answer, body };
          },
        }
      : null,
  );
  const { id } = await faulty.createBackup();
  expect(await faulty.verifyBackup(id)).toBe(false);
  await expect(faulty.restore({ backupId: id, targetDir: other })).rejects.toMatchObject({
    code: 'KG_CHECKSUM_MISMATCH',
  });
  isFaulty = false;
  expect(await faulty.verifyBackup(id)).toBe(true);
  await faulty.restore({ backupId: id, targetDir: other });
  expect(named(other)).toBe('["graph","node"]\n');
});

test('an error after a status of success is not taken for one', async () => {
  let failures = 2;
  const { root, prefix, faulty, plain, managerAt } = await setUp(({ method, url }) =>
    isCompletion(method, url) && failures-- > 0 ? refusal(200, 'InternalError') : null,
  );
  addNoise(root);
  const { id } = await faulty.createBackup();
  expect(await plain.verifyBackup(id)).toBe(true);
  failures = Infinity;
  await expect(faulty.createBackup()).rejects.toMatchObject({ code: 'KG_STORE_UNREACHABLE' });
  failures = 0;
  expect((await plain.listBackups()).map((backup) => backup.id)).toEqual([id]);
  await managerAt(store.endpoint, { maxBackups: 9 }).prune();
  await expectTidy(prefix);
});

test('answers that are cut are asked for again, but not without end', async () => {
  let cuts = 3;
  const { faulty, other } = await setUp(({ method, url }) =>
    method === 'GET' && isArchive(url) && cuts-- > 0 ? { cut: 100 } : null,
  );
  const { id } = await faulty.createBackup();
  expect(await faulty.verifyBackup(id)).toBe(true);
  expect(cuts).toBeLessThan(0);
  cuts = Infinity;
  await expect(faulty.restore({ backupId: id, targetDir: other })).rejects.toMatchObject({
    code: 'KG_STORE_UNREACHABLE',
  });
});

test('an answer may be slow while bytes arrive, and ends when none do', async () => {
  let pauseMs = 150;
  const { faulty, other } = await setUp(
    ({ method, url }) => (method === 'GET' && isArchive(url) ? { pieces: 12, pauseMs } : null),
    { timeout: 800 },
  );
  const { id } = await faulty.createBackup();
  const began = Date.now();
  await faulty.restore({ backupId: id, targetDir: other });
  expect(Date.now() - began).toBeGreaterThan(800);
  pauseMs = 1_000_000;
  await expect(faulty.verifyBackup(id)).rejects.toMatchObject({
    code: 'KG_STORE_UNREACHABLE',
    message: expect.stringContaining('did not answer'),
  });
});

test('a request that the service calls too late is signed again', async () => {
  const more =
    '<RequestTime>20260101T000000Z</RequestTime><ServerTime>2031-02-03T04:05:06Z</ServerTime>';
  let refusals = 1;
  const dates = [];
  const { faulty } = await setUp(({ method, headers }) => {
    if (method !== 'PUT') return null;
    dates.push(headers['x-amz-date']);
    return refusals-- > 0 ? refusal(403, 'RequestTimeTooSkewed', {}, more) : null;
  });
  await faulty.createBackup();
  expect(dates.length).toBeGreaterThan(2);
  refusals = Infinity;
  const error = await faulty.createBackup().catch((thrown) => thrown);
  expect(error.code).toBe('KG_STORE_DENIED');
  expect(error.message).toContain('2031-02-03T04:05:06Z');
  expect(error.message).toContain(new Date().toISOString().slice(0, 13));
});

test('a service that ignores conditions is named in a warning, and keeps the backups', async () => {
  const without = ({ method, path: target, query, headers, body }) => {
    const kept = Object.entries(headers).filter(([name]) =>
      /^(content-(type|md5)|x-amz-meta-)/.test(name),
    );
    const request = { method, host: new URL(store.endpoint).host, path: target, query, body };
    const { path: url, headers: all } = signed(
      { ...request, headers: Object.fromEntries(kept) },
      { key: KEY, secret: SECRET },
    );
    return { path: url, headers: { ...all, 'content-length': body.length } };
  };
  const { root, database, prefix, faulty, plain } = await setUp(({ method }) =>
    method === 'PUT' || method === 'POST' ? { resign: without } : null,
  );
  addNoise(root);
  const full = await faulty.createBackup();
  expect(full.warnings.map(({ code }) => code)).toEqual(['KG_WARN_STORE']);
  expect(full.id, 'a random number').toMatch(/-\d{9}$/);
  change(database, 'new');
  const next = await faulty.createBackup({ type: 'incremental' });
  expect([next.type, next.basedOn]).toEqual(['incremental', full.id]);
  expect(next.id, 'the lock object tells').toMatch(/-\d{9}$/);
  const listed = await plain.listBackups();
  expect(listed).toHaveLength(2);
  for (const { id } of listed) expect(await plain.verifyBackup(id)).toBe(true);
  await expectTidy(prefix);
});

test('a service that refuses conditions is used without them', async () => {
  let refused = 0;
  const { root, database, prefix, faulty, plain } = await setUp(({ headers }) => {
    if (!headers['if-none-match'] && !headers['if-match']) return null;
    refused += 1;
    return refusal(501, 'NotImplemented');
  });
  addNoise(root);
  const full = await faulty.createBackup();
  expect(full.warnings.map(({ code }) => code)).toEqual(['KG_WARN_STORE']);
  expect(full.id).toMatch(/-\d{9}$/);
  expect(refused, 'asked once').toBe(1);
  change(database, 'new');
  const next = await faulty.createBackup({ type: 'incremental' });
  expect(next.basedOn).toBe(full.id);
  expect(next.warnings).toEqual([]);
  expect(refused, 'the lock object tells').toBe(1);
  await faulty.pin(next.id, 'good');
  await faulty.unpin(next.id);
  const alone = await faulty.createBackup();
  for (const { id } of await plain.listBackups()) expect(await plain.verifyBackup(id)).toBe(true);
  await faulty.deleteBackup(full.id, { cascade: true });
  expect((await plain.listBackups()).map(({ id }) => id)).toEqual([alone.id]);
  await expectTidy(prefix);
});

test('two writers of a service without conditions wait for each other', async () => {
  const { prefix, faulty, plain } = await setUp(({ headers }) =>
    headers['if-none-match'] || headers['if-match'] ? refusal(501, 'NotImplemented') : null,
  );
  await faulty.createBackup();
  const made = await Promise.all([faulty.createBackup(), faulty.createBackup()]);
  const ids = (await plain.listBackups()).map(({ id }) => id);
  expect(ids).toHaveLength(3);
  for (const { id } of made) expect(ids).toContain(id);
  for (const id of ids) expect(await plain.verifyBackup(id)).toBe(true);
  await expectTidy(prefix);
});
