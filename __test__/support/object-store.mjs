// A real object store on loopback: SeaweedFS, one server for each test file.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';

import { installObjectServer, objectServer } from '../../scripts/object-server.mjs';
import { encoded, signed } from './sigv4.mjs';
import { startServer } from './watchdog.mjs';

export const BUCKET = 'kg-tests';
export const KEY = 'test-key';
export const SECRET = 'secret-of-the-tests';
/** With it, the ETag of a copied part is its MD5, as with Amazon S3. The default keeps it in pieces. */
export const DIGESTS_OF_COPIED_PARTS = ['-filer.maxMB=16'];
const START_TIMEOUT_MS = 60_000;
const PORTS = [
  'master.port',
  'master.port.grpc',
  'volume.port',
  'volume.port.grpc',
  'filer.port',
  'filer.port.grpc',
  's3.port',
  's3.port.grpc',
];

async function freePorts() {
  const servers = PORTS.map(() => createServer());
  const listening = servers.map(
    (server) =>
      new Promise((resolve) => {
        server.listen(0, '127.0.0.1', () => resolve(server.address().port));
      }),
  );
  const ports = await Promise.all(listening);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

/** A user that may list and read, and nothing else. */
export const READER = { AWS_ACCESS_KEY_ID: 'reader-key', AWS_SECRET_ACCESS_KEY: 'reader-secret' };

const ADMINISTRATOR = ['Admin', 'Read', 'Write', 'List', 'Tagging'];

const identity = (name, accessKey, secretKey, actions) => ({
  name,
  credentials: [{ accessKey, secretKey }],
  actions,
});

/**
 * Starts a server. `args` are more of its arguments. `objects` reads and changes it without signatures, behind the back of the code
 * under test.
 */
export async function startObjectStore({ env = {}, args: more = [] } = {}) {
  installObjectServer();
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-objects-'));
  const identities = path.join(dir, 's3.json');
  const users = [
    identity('test', KEY, SECRET, ADMINISTRATOR),
    identity('reader', READER.AWS_ACCESS_KEY_ID, READER.AWS_SECRET_ACCESS_KEY, ['Read', 'List']),
  ];
  writeFileSync(identities, JSON.stringify({ identities: users }));
  const ports = await freePorts();
  const args = ['server', '-filer', '-s3', '-ip=127.0.0.1', '-ip.bind=127.0.0.1', '-volume.max=30'];
  args.push('-s3.port.iceberg=0', '-s3.port.lance=0', '-master.telemetry=false', `-dir=${dir}`);
  args.push(`-s3.config=${identities}`, ...PORTS.map((name, at) => `-${name}=${ports[at]}`));
  args.push(...more);
  const log = path.join(dir, 'log');
  const server = startServer([objectServer, ...args], { log, env });
  const [master, , , , filer, , s3] = ports;
  const endpoint = `http://127.0.0.1:${s3}`;
  const files = `http://127.0.0.1:${filer}/buckets/${BUCKET}`;
  const deadline = Date.now() + START_TIMEOUT_MS;
  for (;;) {
    if (await isReady(master, files, endpoint)) break;
    if (Date.now() > deadline || server.hasEnded()) {
      await server.stop();
      throw new Error(`the object store did not start:\n${readFileSync(log, 'utf8')}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const at = (name) => `${files}/${name.split('/').map(encoded).join('/')}`;
  const objects = {
    /** Returns the names of the objects directly below a prefix. */
    async names(prefix) {
      const answer = await fetch(`${at(prefix)}/?limit=10000`, {
        headers: { accept: 'application/json' },
      });
      if (answer.status === 404) return [];
      const { Entries: entries } = await answer.json();
      return (entries ?? []).map(({ FullPath: full }) => path.posix.basename(full)).sort();
    },
    async read(name) {
      const answer = await fetch(at(name));
      return answer.ok ? Buffer.from(await answer.arrayBuffer()) : null;
    },
    async write(name, bytes) {
      const form = new FormData();
      form.append('file', new Blob([bytes]), path.posix.basename(name));
      await must(fetch(at(name), { method: 'POST', body: form }));
    },
    async remove(name) {
      await must(fetch(at(name), { method: 'DELETE' }));
    },
  };
  /** Sends a signed request. The path begins with the bucket. */
  const request = (method, target, { query = [], headers = {}, body } = {}) => {
    const { host } = new URL(endpoint);
    const all = signed(
      { method, host, path: target, query, headers, body },
      { key: KEY, secret: SECRET },
    );
    return fetch(`${endpoint}${all.path}`, { method, headers: all.headers, body });
  };
  return {
    endpoint,
    objects,
    request,
    /** Returns the keys of the uploads below a prefix that were neither completed nor aborted. */
    async unfinishedUploads(prefix) {
      const query = [
        ['uploads', ''],
        ['prefix', `${prefix}/`],
      ];
      const answer = await must(request('GET', `/${BUCKET}`, { query }));
      const uploads = (await answer.text()).matchAll(/<Upload>.*?<Key>(.*?)<\/Key>/gs);
      return [...uploads].map(([, key]) => key);
    },
    url: (prefix) => `s3://${BUCKET}/${prefix}`,
    storageOptions: {
      accessKeyId: KEY,
      secretAccessKey: SECRET,
      region: 'us-east-1',
      endpoint,
      allowHttp: true,
    },
    /** The variables that name this store to the command line. */
    env: {
      AWS_ACCESS_KEY_ID: KEY,
      AWS_SECRET_ACCESS_KEY: SECRET,
      AWS_REGION: 'us-east-1',
      AWS_ENDPOINT_URL: endpoint,
      AWS_ALLOW_HTTP: 'true',
    },
    async stop() {
      await server.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

async function must(request) {
  const answer = await request;
  if (!answer.ok) throw new Error(`${answer.url}: ${answer.status} ${await answer.text()}`);
  return answer;
}

/** Creates the bucket once there is a place for data, and tells whether both answer. */
async function isReady(master, files, endpoint) {
  try {
    const assigned = await fetch(`http://127.0.0.1:${master}/dir/assign`);
    if (!(await assigned.text()).includes('"fid"')) return false;
    const made = await fetch(`${files}/`, { method: 'POST' });
    if (!made.ok && made.status !== 409) return false;
    const answer = await fetch(`${endpoint}/${BUCKET}`);
    return answer.status === 403;
  } catch {
    return false;
  }
}
