// `kg diag store --check` tells before the first backup what works, and leaves the store as it was.

import { chmodSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import path from 'node:path';

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';

import { refusal, startFaultProxy } from './support/fault-proxy.mjs';
import { READER, SECRET, startObjectStore } from './support/object-store.mjs';
import { kg, kgPath, once, spawn } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';
import { isRoot, projectOf } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

let prefixes = 0;

/** Returns a prefix of its own that holds an object. */
async function setUp() {
  prefixes += 1;
  const prefix = `checks/${prefixes}`;
  await store.objects.write(`${prefix}/notes.txt`, 'of another program');
  return { prefix, url: store.url(prefix) };
}

/** Starts a proxy, and returns the variables that lead to it. */
async function faulty(choose) {
  const proxy = await startFaultProxy(store.endpoint, choose);
  onTestFinished(() => proxy.stop());
  return { AWS_ENDPOINT_URL: proxy.endpoint };
}

const CLEARED = Object.fromEntries(
  Object.keys(process.env)
    .filter((name) => /^(AWS|AZURE|GOOGLE)_/.test(name))
    .map((name) => [name, undefined]),
);

const runCheck = (url, env = {}, more = []) =>
  kg(['diag', 'store', '--check', ...(url ? [url] : []), ...more], {
    cwd: temporaryDirectory(),
    env: { ...process.env, ...CLEARED, ...store.env, ...env },
  });

/** Checks a store and returns the report, the outcome of each operation, and the exit status. */
async function check(url, env, more = []) {
  const { status, stdout, stderr } = await runCheck(url, env, ['--json', ...more]);
  expect(stderr).toBe('');
  for (const secret of [SECRET, READER.AWS_SECRET_ACCESS_KEY, 'Signature=', 'X-Amz'])
    expect(stdout).not.toContain(secret);
  const report = resultOf(stdout);
  const outcomes = Object.fromEntries(
    (report.operations ?? []).map(({ name, outcome }) => [name, outcome]),
  );
  const of = (name) => report.operations.find((operation) => operation.name === name);
  return { status, report, outcomes, of };
}

/** Asks the service without `kg`. */
async function ask(method, bucket, query, body) {
  const pairs = [...new URLSearchParams(query)];
  const answer = await store.request(method, `/${bucket}`, { query: pairs, body });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${answer.status} ${text}`);
  return text;
}

/** Returns the keys of all objects and unfinished uploads below a prefix, relative to it. */
async function keys(prefix) {
  const encoded = encodeURIComponent(`${prefix}/`);
  const objects = await ask('GET', 'kg-tests', `list-type=2&prefix=${encoded}`);
  const uploads = await ask('GET', 'kg-tests', `prefix=${encoded}&uploads=`);
  const found = [...(objects + uploads).matchAll(/<Key>([^<]*)<\/Key>/g)];
  return found.map(([, key]) => key.slice(prefix.length + 1));
}

/** Expects that the prefix holds what it held before, and that no upload is left. */
async function expectUnchanged(prefix) {
  expect(await keys(prefix)).toEqual(['notes.txt']);
  expect((await store.objects.read(`${prefix}/notes.txt`)).toString()).toBe('of another program');
}

const named = (outcomes, wanted) =>
  Object.keys(outcomes).filter((name) => outcomes[name] === wanted);

describe('a check of an object store', () => {
  test('proves each operation, and changes nothing', async () => {
    const { prefix, url } = await setUp();
    const { status, report, outcomes } = await check(url);
    expect(report).toMatchObject({
      store: url,
      backups: 'works',
      retention: 'works',
      remaining: [],
      tried: {
        service: 'S3',
        host: new URL(store.endpoint).host,
        bucket: 'kg-tests',
        region: 'us-east-1',
        credentials: 'AWS_ACCESS_KEY_ID of the environment',
      },
    });
    expect(named(outcomes, 'works')).toEqual(Object.keys(outcomes));
    expect(Object.keys(outcomes)).toEqual([
      'reach',
      'list',
      'clock',
      'create',
      'read',
      'create-again',
      'replace',
      'replace-changed',
      'head',
      'range',
      'upload',
      'delete',
      'upload-again',
      'list-uploads',
      'abort',
      'versioning',
      'object-lock',
    ]);
    expect(status).toBe(0);
    await expectUnchanged(prefix);
  });

  test('is printed for people', async () => {
    const { url } = await setUp();
    const { status, stdout } = await runCheck(url);
    expect(stdout).toContain(`Store ${url}\n`);
    expect(stdout).toMatch(/works +create an object that is absent\n/);
    expect(stdout).toMatch(/Ready: backups and retention work\n$/);
    expect(status).toBe(0);
  });

  test('takes the store from the settings if none is named', async () => {
    const { prefix, url } = await setUp();
    const { root } = makeProject({ nodes: 5 });
    await kg(['config', 'set', 'backup.dir', url, '--project', root]);
    const { status, report } = await check(undefined, {}, ['--project', root]);
    expect([status, report.store]).toEqual([0, url]);
    await expectUnchanged(prefix);
  });

  test('of a user who may only read names what fails and what was not tried', async () => {
    const { prefix, url } = await setUp();
    const { status, report, outcomes, of } = await check(url, READER);
    expect(outcomes).toMatchObject({
      reach: 'works',
      list: 'works',
      create: 'fails',
      read: 'not-tried',
      upload: 'not-tried',
      delete: 'not-tried',
      abort: 'not-tried',
    });
    expect(of('create')).toMatchObject({ code: 'KG_STORE_DENIED', neededFor: 'backups' });
    expect(of('create').message).toContain('access denied');
    expect(of('read').message).toContain('create an object that is absent');
    expect(report).toMatchObject({ backups: 'fails', retention: 'not-tried', remaining: [] });
    expect(status).toBe(4);
    await expectUnchanged(prefix);
  });

  test('of a user who may not delete names what remains, which is small', async () => {
    const { prefix, url } = await setUp();
    const env = await faulty(({ method, url: at }) =>
      method === 'DELETE' && !at.includes('uploadId=') ? refusal(403, 'AccessDenied') : null,
    );
    const { status, report, outcomes, of } = await check(url, env);
    expect(named(outcomes, 'fails')).toEqual(['delete']);
    expect(of('delete')).toMatchObject({ code: 'KG_STORE_DENIED', neededFor: 'retention' });
    expect(report).toMatchObject({ backups: 'works', retention: 'fails' });
    expect(status).toBe(6);
    const [object, upload, notes, ...more] = await keys(prefix);
    expect([notes, ...more]).toEqual(['notes.txt']);
    expect(object).toMatch(/^\.kg-check-[0-9a-f]{16}\/object$/);
    expect(report.remaining).toEqual([object, upload].map((key) => `${url}/${key}`));
    expect((await store.objects.read(`${prefix}/${upload}`)).length).toBeLessThan(100);
  });

  test('of a service that ignores conditions says that two writers do not notice each other', async () => {
    const { prefix, url } = await setUp();
    let creations = 0;
    const ignored = { status: 200, headers: { etag: '"0123456789abcdef0123456789abcdef"' } };
    const env = await faulty(({ method, url: at, headers }) => {
      if (method !== 'PUT' || at.includes('partNumber')) return null;
      if (headers['if-match']?.includes('0000000000')) return ignored;
      if (headers['if-none-match'] === undefined) return null;
      creations += 1;
      return creations > 1 ? ignored : null;
    });
    const { status, report, outcomes, of } = await check(url, env);
    expect(named(outcomes, 'fails')).toEqual([]);
    for (const name of ['create-again', 'replace-changed']) {
      expect(of(name).outcome).toBe('warning');
      expect(of(name).message).toContain('may not notice each other');
    }
    expect([status, report.backups, report.retention]).toEqual([0, 'warning', 'works']);
    await expectUnchanged(prefix);
  });

  test('of a service that refuses conditions warns', async () => {
    const { prefix, url } = await setUp();
    const env = await faulty(({ method, headers }) =>
      method !== 'GET' && (headers['if-none-match'] || headers['if-match'])
        ? refusal(501, 'NotImplemented')
        : null,
    );
    const { status, outcomes } = await check(url, env);
    expect(named(outcomes, 'fails')).toEqual([]);
    expect(named(outcomes, 'warning')).toEqual(['create-again', 'replace-changed', 'upload-again']);
    expect(status).toBe(0);
    await expectUnchanged(prefix);
  });

  test('of a service that completes uploads without conditions only warns', async () => {
    const { prefix, url } = await setUp();
    const env = await faulty(({ method, headers }) =>
      method === 'POST' && headers['if-none-match'] ? refusal(501, 'NotImplemented') : null,
    );
    const { status, outcomes } = await check(url, env);
    expect(named(outcomes, 'warning')).toEqual(['upload-again']);
    expect(status).toBe(0);
    await expectUnchanged(prefix);
  });

  test('warns of a list of uploads that is forbidden, and does not call an abort proved', async () => {
    const { prefix, url } = await setUp();
    const env = await faulty(({ method, url: at }) =>
      method === 'GET' && at.includes('uploads=') ? refusal(403, 'AccessDenied') : null,
    );
    const { status, outcomes, of } = await check(url, env);
    expect(outcomes).toMatchObject({ 'list-uploads': 'warning', abort: 'cannot-tell' });
    expect(of('list-uploads').remedy).toContain('s3:ListBucketMultipartUploads');
    expect(status).toBe(0);
    await expectUnchanged(prefix);
  });

  test('fails if objects cannot be listed, and tries the rest', async () => {
    const { prefix, url } = await setUp();
    const env = await faulty(({ method, url: at }) =>
      method === 'GET' && at.includes('list-type=2') ? refusal(403, 'AccessDenied') : null,
    );
    const { status, outcomes } = await check(url, env);
    expect(named(outcomes, 'fails')).toEqual(['list']);
    expect(outcomes).toMatchObject({ reach: 'works', delete: 'works' });
    expect(status).toBe(4);
    await expectUnchanged(prefix);
  });

  test('without the permission to list names that one for what fails because of it', async () => {
    const { prefix, url } = await setUp();
    // Nor does S3 then tell that an object is absent.
    const env = await faulty(({ method, url: at }) => {
      if (method === 'GET' && at.includes('list-type=2')) return refusal(403, 'AccessDenied');
      return method === 'HEAD' && at.endsWith('/upload') ? { status: 403 } : null;
    });
    const { status, outcomes, of } = await check(url, env);
    expect(named(outcomes, 'fails')).toEqual(['list', 'upload']);
    for (const name of ['list', 'upload']) expect(of(name).remedy).toContain('s3:ListBucket`');
    expect(outcomes).toMatchObject({ 'upload-again': 'not-tried', delete: 'works' });
    expect(status).toBe(4);
    await expectUnchanged(prefix);
  });

  test('warns of a clock that differs, and shows both times', async () => {
    const { url } = await setUp();
    const list = '<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>';
    const headers = { date: 'Mon, 02 Jan 2023 03:04:05 GMT', 'content-type': 'application/xml' };
    const env = await faulty(({ method, url: at }) =>
      method === 'GET' && at.includes('list-type=2') ? { status: 200, headers, body: list } : null,
    );
    const { status, of } = await check(url, env);
    expect(of('clock').outcome).toBe('warning');
    expect(of('clock').message).toContain('2023-01-02T03:04:05Z there');
    expect(status).toBe(0);
  });

  test.each([
    ['versioning=', refusal(403, 'AccessDenied'), 'versioning', 'cannot-tell', 'access denied'],
    ['versioning=', refusal(501, 'NotImplemented'), 'versioning', 'cannot-tell', 'not support'],
    [
      'versioning=',
      { status: 200, body: '<ListBucketResult/>' },
      'versioning',
      'cannot-tell',
      'does not tell',
    ],
    [
      'object-lock=',
      {
        status: 200,
        body: '<ObjectLockConfiguration><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>30</Days></DefaultRetention></Rule></ObjectLockConfiguration>',
      },
      'object-lock',
      'warning',
      '30 days (GOVERNANCE)',
    ],
    ['object-lock=', refusal(403, 'AccessDenied'), 'object-lock', 'cannot-tell', 'access denied'],
  ])('answers %s %# as it is known', async (query, answer, name, outcome, message) => {
    const { prefix, url } = await setUp();
    const env = await faulty(({ method, url: at }) =>
      method === 'GET' && at.includes(query) ? answer : null,
    );
    const { status, of } = await check(url, env);
    expect(of(name).outcome).toBe(outcome);
    expect(of(name).message).toContain(message);
    expect(status).toBe(0);
    await expectUnchanged(prefix);
  });

  test('names all that remains if access ends at any request', async () => {
    let [requests, last] = [0, Infinity];
    const env = await faulty(() => {
      requests += 1;
      return requests > last ? refusal(403, 'AccessDenied') : null;
    });
    const { url: whole } = await setUp();
    expect((await check(whole, env)).status).toBe(0);
    const most = requests;
    expect(most).toBeGreaterThan(30);
    for (last = 0; last < most; last += 1) {
      requests = 0;
      const { prefix, url } = await setUp();
      const { report } = await check(url, env);
      const left = (await keys(prefix)).filter((key) => key !== 'notes.txt');
      for (const key of left) {
        const area = `${url}/${key.split('/')[0]}/`;
        const isNamed = (text) => text.startsWith(`${url}/${key}`) || text.startsWith(`${area} (`);
        expect(report.remaining.some(isNamed), `${key} after ${last} requests`).toBe(true);
      }
      expect(left.length, `after ${last} requests`).toBeLessThan(5);
    }
  });

  test('that is interrupted removes what it made', async () => {
    const { prefix, url } = await setUp();
    let isInterrupted = false;
    const env = await faulty(({ method, url: at }) => {
      // While the first part of an upload is under way.
      if (method !== 'PUT' || !at.includes('partNumber') || isInterrupted) return null;
      isInterrupted = true;
      child.kill('SIGINT');
      return null;
    });
    const child = spawn(kgPath, ['diag', 'store', '--check', url], {
      cwd: temporaryDirectory(),
      env: { ...process.env, ...CLEARED, ...store.env, ...env },
      stdio: 'ignore',
    });
    const [status] = await once(child, 'exit');
    expect([isInterrupted, status]).toEqual([true, 130]);
    await expectUnchanged(prefix);
  });

  test.each([
    ['whose setting can be read', 'kg-versions', () => null],
    [
      'whose setting is secret',
      'kg-secret-versions',
      ({ url }) => (url.includes('versioning=') ? refusal(403, 'AccessDenied') : null),
    ],
  ])('warns of versions %s, and removes its own', async (_, bucket, choose) => {
    const s3 = await versionedBucket(bucket);
    const { status, report, of } = await check(`s3://${bucket}/kg`, await faulty(choose));
    expect(of('versioning')).toMatchObject({ outcome: 'warning' });
    expect(of('versioning').remedy).toContain('NoncurrentVersionExpiration');
    expect(report.remaining).toEqual([]);
    expect(status).toBe(0);
    expect(await s3.versions()).not.toMatch(/kg-check/);
  });
});

/** Creates a bucket with versions, as `aws s3api` does, and returns what its list of versions says. */
async function versionedBucket(bucket) {
  await ask('PUT', bucket, '');
  await ask(
    'PUT',
    bucket,
    'versioning=',
    '<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>',
  );
  return { versions: () => ask('GET', bucket, 'versions=') };
}

describe('a store that cannot be reached is explained:', () => {
  test('a bucket that does not exist', async () => {
    const { status, of, outcomes } = await check('s3://no-such-bucket/x', READER);
    expect(of('reach').code).toBe('KG_BACKUP_DIR_INVALID');
    expect(of('reach').message).toContain('the bucket does not exist');
    expect(named(outcomes, 'not-tried').length).toBe(Object.keys(outcomes).length - 1);
    expect(status).toBe(4);
  });

  test.each([
    [{ AWS_SECRET_ACCESS_KEY: 'wrong' }, 'SignatureDoesNotMatch'],
    [{ AWS_ACCESS_KEY_ID: 'wrong' }, 'InvalidAccessKeyId'],
  ])('wrong credentials %#', async (env, code) => {
    const { url, prefix } = await setUp();
    const { status, of } = await check(url, env);
    expect(of('reach').code).toBe('KG_STORE_DENIED');
    const { host } = new URL(store.endpoint);
    expect(of('reach').message).toContain(`at ${host} (region us-east-1)`);
    expect(of('reach').message).toContain(code);
    expect(status).toBe(4);
    await expectUnchanged(prefix);
  });

  test('an endpoint where no service listens', async () => {
    const port = await new Promise((resolve) => {
      const free = createServer().listen(0, '127.0.0.1', () => {
        const { port: found } = free.address();
        free.close(() => resolve(found));
      });
    });
    const env = { AWS_ENDPOINT_URL: `http://127.0.0.1:${port}` };
    const { status, of } = await check('s3://bucket/x', env);
    expect(of('reach').code).toBe('KG_STORE_UNREACHABLE');
    expect(of('reach').message).toContain(`127.0.0.1:${port}`);
    expect(status).toBe(4);
  });

  test.each([
    [400, 'AuthorizationHeaderMalformed', '<Region>eu-west-1</Region>', 'eu-west-1'],
    [301, 'PermanentRedirect', '<Region>eu-west-1</Region>', 'eu-west-1'],
    [
      403,
      'RequestTimeTooSkewed',
      '<ServerTime>2023-01-02T03:04:05Z</ServerTime>',
      '2023-01-02T03:04:05Z there',
    ],
    [400, 'ExpiredToken', '', 'has expired'],
  ])('status %i %s', async (status, code, more, message) => {
    const body = `<Error><Code>${code}</Code>${more}</Error>`;
    const env = await faulty(() => ({ status, body, headers: {} }));
    const { of, ...checked } = await check('s3://kg-tests/x', env);
    expect(of('reach').message).toContain(message);
    expect(checked.status).toBe(4);
  });

  test('a metadata service that gives no credentials is not taken for the service', async () => {
    const { AWS_ENDPOINT_URL: proxy } = await faulty(() => refusal(403, 'Forbidden'));
    const proxies = {
      HTTP_PROXY: proxy,
      HTTPS_PROXY: proxy,
      http_proxy: proxy,
      https_proxy: proxy,
    };
    const env = { ...proxies, NO_PROXY: '', no_proxy: '', HOME: temporaryDirectory() };
    const { status, of, outcomes } = await check('gs://bucket/x', env);
    expect(of('reach')).toMatchObject({ outcome: 'fails', code: 'KG_STORE_DENIED' });
    expect(of('reach').message).toContain('no credentials');
    expect([outcomes.list, outcomes.clock]).toEqual(['not-tried', 'not-tried']);
    expect(status).toBe(4);
  });

  test('an endpoint that contains the bucket', async () => {
    const env = { AWS_ENDPOINT_URL: `${store.endpoint}/kg-tests` };
    const { status, stdout } = await runCheck(store.url('x'), env, ['--json']);
    const { error } = resultOf(stdout);
    expect(error.code).toBe('KG_INVALID_OPTION');
    expect(error.message).toContain('AWS_ENDPOINT_URL');
    expect(error.message).toContain("contains 'kg-tests' in its path");
    expect(status).toBe(2);
  });

  test('a container of Azure without an account', async () => {
    const { status, stderr } = await runCheck('az://container/x');
    expect(stderr).toContain('AZURE_STORAGE_ACCOUNT_NAME');
    expect(status).toBe(2);
  });
});

describe('a check of a directory', () => {
  test('proves each operation, and changes nothing', async () => {
    const dir = temporaryDirectory();
    writeFileSync(path.join(dir, 'notes.txt'), 'of another program');
    const { status, report, outcomes } = await check(dir);
    expect(named(outcomes, 'works')).toEqual(Object.keys(outcomes));
    expect(report).toMatchObject({ store: dir, backups: 'works', retention: 'works' });
    expect(report.tried).toMatchObject({ service: 'directory' });
    expect(status).toBe(0);
    expect(readdirSync(dir)).toEqual(['notes.txt']);
  });

  test('that is missing creates nothing, and says who will', async () => {
    const above = temporaryDirectory();
    const { status, of } = await check(path.join(above, 'a/b'));
    expect(of('directory')).toMatchObject({ outcome: 'works' });
    expect(of('directory').message).toContain('the first backup creates it');
    expect(of('directory').message).toContain(above);
    expect(status).toBe(0);
    expect(readdirSync(above)).toEqual([]);
  });

  test('below a file fails', async () => {
    const above = temporaryDirectory();
    const file = path.join(above, 'file');
    writeFileSync(file, '');
    const { status, of } = await check(path.join(file, 'backups'));
    expect(of('directory')).toMatchObject({ outcome: 'fails', code: 'KG_BACKUP_DIR_INVALID' });
    expect(status).toBe(4);
  });

  test.runIf(isRoot)('that this user may not write to fails', async () => {
    const { root, asOwner } = projectOf(4321, { nodes: 5 });
    const dir = path.join(path.dirname(root), 'backups');
    mkdirSync(dir);
    chmodSync(dir, 0o755);
    const { status, stdout } = asOwner('diag', 'store', '--check', dir, '--json');
    const report = resultOf(stdout);
    const failed = report.operations.filter(({ outcome }) => outcome === 'fails');
    expect(failed.map(({ name, code }) => [name, code])).toEqual([
      ['create', 'KG_PERMISSION_DENIED'],
    ]);
    expect([status, report.backups]).toEqual([4, 'fails']);
  });
});

test('a check that is not asked for is a usage error', async () => {
  const { status, stderr } = await kg(['diag', 'store']);
  expect(stderr).toContain('--check');
  expect(status).toBe(2);
});

test('a link that leads nowhere, and no project, are no stores', async () => {
  const dir = temporaryDirectory();
  const link = path.join(dir, 'link');
  symlinkSync('nowhere', link);
  const dangling = await runCheck(link);
  expect(dangling.stdout).toContain('leads nowhere');
  expect(dangling.status).toBe(4);
  const nothing = await kg(['diag', 'store', '--check'], { cwd: dir });
  expect(nothing.stderr).toContain('KG_NO_PROJECT');
});
