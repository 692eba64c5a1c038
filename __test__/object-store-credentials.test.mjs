// Where the credentials of S3 come from, and what happens when they expire.

import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';

import { certificates } from './support/certificates.mjs';
import { refusal, startFaultProxy } from './support/fault-proxy.mjs';
import { faultySetUpIn } from './support/faulty-store.mjs';
import { KEY, SECRET, startObjectStore } from './support/object-store.mjs';
import { kg } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

const setUp = faultySetUpIn(() => store);

/** Runs `kg` in an environment whose only credentials are those of a test. */
async function backUp(endpoint, credentials) {
  const { root } = makeProject({ nodes: 5 });
  const home = temporaryDirectory();
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('AWS_')),
  );
  Object.assign(env, {
    HOME: home,
    AWS_REGION: 'us-east-1',
    AWS_ENDPOINT_URL: endpoint,
    AWS_ALLOW_HTTP: 'true',
    ...credentials,
  });
  const url = store.url(`credentials/${path.basename(home)}`);
  return kg(['diag', 'backup', '--json', '--project', root, '--output', url], { env });
}

/** A program that prints credentials and counts its runs. */
function credentialProcess(dir) {
  const [program, runs] = [path.join(dir, 'credentials.sh'), path.join(dir, 'runs')];
  const answer = JSON.stringify({ Version: 1, AccessKeyId: KEY, SecretAccessKey: SECRET });
  writeFileSync(program, `#!/bin/sh\necho run >> ${runs}\necho '${answer}'\n`, { mode: 0o755 });
  const config = path.join(dir, 'config');
  writeFileSync(config, `[profile team]\ncredential_process = ${program}\n`);
  return { config, runs: () => readFileSync(runs, 'utf8').split('\n').length - 1 };
}

test('credentials that expire during a run are asked for once more', async () => {
  const dir = temporaryDirectory();
  const { config, runs } = credentialProcess(dir);
  let puts = 0;
  const proxy = await startFaultProxy(store.endpoint, ({ method }) => {
    puts += method === 'PUT' ? 1 : 0;
    return method === 'PUT' && puts === 4 ? refusal(400, 'ExpiredToken') : null;
  });
  onTestFinished(() => proxy.stop());
  const done = await backUp(proxy.endpoint, { AWS_CONFIG_FILE: config, AWS_PROFILE: 'team' });
  expect(done).toMatchObject({ status: 0 });
  expect(puts).toBeGreaterThan(4);
  expect(runs()).toBe(2);
});

test('credentials that stay expired are reported as such', async () => {
  const { faulty, plain } = await setUp(({ method }) =>
    method === 'PUT' ? refusal(400, 'ExpiredToken') : null,
  );
  await expect(faulty.createBackup()).rejects.toMatchObject({
    code: 'KG_STORE_DENIED',
    message: expect.stringContaining('expired'),
  });
  expect(await plain.listBackups()).toEqual([]);

  const dir = temporaryDirectory();
  const { config, runs } = credentialProcess(dir);
  const proxy = await startFaultProxy(store.endpoint, () => refusal(400, 'ExpiredToken'));
  onTestFinished(() => proxy.stop());
  const done = await backUp(proxy.endpoint, { AWS_CONFIG_FILE: config, AWS_PROFILE: 'team' });
  expect(done.status).not.toBe(0);
  expect(done.stdout + done.stderr).toContain('expired');
  expect(runs()).toBe(2);
});

test('a profile of the options comes before the environment', async () => {
  const dir = temporaryDirectory();
  const { config, runs } = credentialProcess(dir);
  const { root } = makeProject({ nodes: 5 });
  const before = { ...process.env };
  onTestFinished(() => {
    for (const name of ['AWS_CONFIG_FILE', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'])
      if (before[name] === undefined) delete process.env[name];
      else process.env[name] = before[name];
  });
  process.env.AWS_CONFIG_FILE = config;
  process.env.AWS_ACCESS_KEY_ID = 'another';
  process.env.AWS_SECRET_ACCESS_KEY = 'wrong';
  const { endpoint, region, allowHttp } = store.storageOptions;
  const manager = createBackupManager({
    projectRoot: root,
    backupDir: store.url('credentials/profile'),
    storageOptions: { endpoint, region, allowHttp, profile: 'team' },
  });
  await manager.createBackup();
  expect(runs()).toBeGreaterThan(0);
});

test('a container gives the credentials of its role', async () => {
  const asked = [];
  const server = createServer((request, answer) => {
    asked.push([request.url, request.headers.authorization]);
    const expires = new Date(Date.now() + 3_600_000).toISOString();
    const credentials = {
      AccessKeyId: KEY,
      SecretAccessKey: SECRET,
      Token: '',
      Expiration: expires,
    };
    answer.end(JSON.stringify(credentials));
  });
  await new Promise((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  onTestFinished(() => server.close());
  const dir = temporaryDirectory();
  const token = path.join(dir, 'token');
  writeFileSync(token, 'the-token');
  const uri = `http://127.0.0.1:${server.address().port}/role`;
  for (const authorization of [
    { AWS_CONTAINER_AUTHORIZATION_TOKEN: 'the-token' },
    { AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: token },
  ]) {
    asked.length = 0;
    const done = await backUp(store.endpoint, {
      AWS_CONTAINER_CREDENTIALS_FULL_URI: uri,
      ...authorization,
    });
    expect(done).toMatchObject({ status: 0 });
    expect(asked).toEqual([['/role', 'the-token']]);
  }
});

test('a token of a web identity is exchanged for the credentials of a role', async () => {
  const asked = [];
  const { caFile, key, cert } = certificates('DNS:sts.amazonaws.com', 'DNS:*.amazonaws.com');
  // The address of that service cannot be chosen, but the proxy on the way to it can.
  const tokenService = createTlsServer({ key, cert }, async (request, answer) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const url = new URL(request.url, 'https://sts');
    asked.push(`${url.search}${Buffer.concat(chunks)}`);
    const expires = new Date(Date.now() + 3_600_000).toISOString();
    answer.setHeader('content-type', 'text/xml');
    answer.end(
      '<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>' +
        `<AccessKeyId>${KEY}</AccessKeyId><SecretAccessKey>${SECRET}</SecretAccessKey>` +
        `<SessionToken></SessionToken><Expiration>${expires}</Expiration>` +
        '</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>',
    );
  });
  const proxy = createServer();
  proxy.on('connect', (request, socket) => {
    asked.push(request.url);
    socket.write('HTTP/1.1 200 OK\r\n\r\n');
    tokenService.emit('connection', socket);
  });
  await new Promise((resolve) => {
    proxy.listen(0, '127.0.0.1', resolve);
  });
  onTestFinished(() => {
    tokenService.closeAllConnections();
    proxy.closeAllConnections();
    proxy.close();
  });
  const token = path.join(temporaryDirectory(), 'token');
  writeFileSync(token, 'the-token');
  const done = await backUp(store.endpoint, {
    AWS_WEB_IDENTITY_TOKEN_FILE: token,
    AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/backups',
    HTTPS_PROXY: `http://127.0.0.1:${proxy.address().port}`,
    NO_PROXY: '127.0.0.1',
    SSL_CERT_FILE: caFile,
  });
  expect(done).toMatchObject({ status: 0 });
  expect(asked).toHaveLength(2);
  expect(asked[0]).toMatch(/^sts\..*amazonaws\.com:443$/);
  expect(asked[1]).toContain('the-token');
});
