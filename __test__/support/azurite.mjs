// Azure Blob Storage on loopback, as Azurite has it.

import { createHmac } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';

import { azuriteBlob, installAzurite } from '../../scripts/object-server.mjs';
import { startServer } from './watchdog.mjs';

const ACCOUNT = 'devstoreaccount1';
/** The key of the account that Azurite always has. */
const KEY =
  'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
const CONTAINER = 'kg-tests';
const VERSION = '2021-08-06';
const START_TIMEOUT_MS = 60_000;

/** Starts a server. `objects` reads and changes it behind the back of the code under test. */
export async function startAzurite() {
  installAzurite();
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-azurite-'));
  const port = await new Promise((resolve) => {
    const free = createServer();
    free.listen(0, '127.0.0.1', () => {
      const { port: found } = free.address();
      free.close(() => resolve(found));
    });
  });
  const args = ['--blobHost', '127.0.0.1', '--blobPort', String(port), '--location', dir];
  args.push('--silent', '--skipApiVersionCheck');
  const log = path.join(dir, 'log');
  const server = startServer([process.execPath, azuriteBlob, ...args], { log });
  const endpoint = `http://127.0.0.1:${port}/${ACCOUNT}`;
  const deadline = Date.now() + START_TIMEOUT_MS;
  for (;;) {
    const made = await request(endpoint, 'PUT', '', { restype: 'container' }).catch(() => null);
    if (made?.status === 201) break;
    if (Date.now() > deadline || server.hasEnded()) {
      await server.stop();
      throw new Error(`Azurite did not start:\n${readFileSync(log, 'utf8')}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    endpoint,
    objects: objectsOf(endpoint),
    url: (prefix) => `az://${CONTAINER}/${prefix}`,
    storageOptions: { endpoint, allowHttp: true, account: ACCOUNT, accessKey: KEY },
    env: {
      AZURE_STORAGE_ACCOUNT_NAME: ACCOUNT,
      AZURE_STORAGE_ACCOUNT_KEY: KEY,
      AZURE_STORAGE_ENDPOINT: endpoint,
      AWS_ALLOW_HTTP: 'true',
    },
    async stop() {
      await server.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

function objectsOf(endpoint) {
  return {
    async names(prefix) {
      const names = [];
      let marker = '';
      do {
        const query = {
          restype: 'container',
          comp: 'list',
          delimiter: '/',
          prefix: `${prefix}/`,
          ...(marker && { marker }),
        };
        const page = await (await must(request(endpoint, 'GET', '', query))).text();
        for (const [, name] of page.matchAll(/<Blob><Name>(.*?)<\/Name>/g))
          names.push(path.posix.basename(unescaped(name)));
        marker = /<NextMarker>(.+?)<\/NextMarker>/.exec(page)?.[1] ?? '';
      } while (marker !== '');
      return names.sort();
    },
    async read(name) {
      const answer = await request(endpoint, 'GET', name);
      return answer.ok ? Buffer.from(await answer.arrayBuffer()) : null;
    },
    async write(name, bytes) {
      await must(request(endpoint, 'PUT', name, {}, Buffer.from(bytes)));
    },
    async remove(name) {
      await must(request(endpoint, 'DELETE', name));
    },
  };
}

const unescaped = (text) =>
  text.replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&');

async function must(request) {
  const answer = await request;
  if (!answer.ok) throw new Error(`${answer.url}: ${answer.status} ${await answer.text()}`);
  return answer;
}

/** Sends a request. The signature is that of "Authorize with Shared Key". */
function request(endpoint, method, name, query = {}, body = null) {
  const url = new URL(`${endpoint}/${CONTAINER}`);
  if (name !== '') url.pathname += `/${name.split('/').map(encodeURIComponent).join('/')}`;
  for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
  const headers = { 'x-ms-date': new Date().toUTCString(), 'x-ms-version': VERSION };
  if (body !== null) headers['x-ms-blob-type'] = 'BlockBlob';
  const length = body?.length > 0 ? String(body.length) : '';
  const type = body === null ? '' : 'application/octet-stream';
  const signed = [
    method,
    ...['', '', length, '', type, '', '', '', '', '', ''],
    ...Object.keys(headers)
      .sort()
      .map((header) => `${header}:${headers[header]}`),
    `/${ACCOUNT}${url.pathname}`,
    ...Object.keys(query)
      .sort()
      .map((key) => `${key}:${query[key]}`),
  ].join('\n');
  const signature = createHmac('sha256', Buffer.from(KEY, 'base64'))
    .update(signed)
    .digest('base64');
  headers.authorization = `SharedKey ${ACCOUNT}:${signature}`;
  if (body !== null) headers['content-type'] = type;
  return fetch(url, { method, headers, body });
}
