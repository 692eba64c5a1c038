// The XML interface of Google Cloud Storage, as far as `kg` uses it, in front of SeaweedFS. No
// emulator speaks it. The rules are those of its documentation: generations, conditions on them,
// tokens that the key of a service account signs, and no conditions in uploads of parts.

import { generateKeyPairSync, verify } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, request as send } from 'node:http';
import os from 'node:os';
import path from 'node:path';

import { refusal } from './fault-proxy.mjs';
import { BUCKET, KEY, SECRET, startObjectStore } from './object-store.mjs';
import { signed } from './sigv4.mjs';

const ACCOUNT = 'kg-tests@example.iam.gserviceaccount.com';
/** What the server calls some storage classes. */
const CLASSES = { STANDARD: 'STANDARD', NEARLINE: 'STANDARD_IA', ARCHIVE: 'GLACIER' };
const PASSED_HEADERS = ['content-type', 'content-md5', 'range', 'if-match', 'if-none-match'];

/**
 * Starts the interface. `requests` are the requests so far. `onRequest(choose)` makes the function
 * `choose({ method, url })` see each later one; it may return an answer to give instead, or `'lose'`.
 */
export async function startGcs() {
  const store = await startObjectStore();
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const dialect = new Dialect(new URL(store.endpoint).host, publicKey);
  const server = createServer((incoming, outgoing) => {
    dialect.serve(incoming).then(
      ({ status, headers, body }) => {
        outgoing.writeHead(status, { date: new Date().toUTCString(), ...headers });
        outgoing.end(incoming.method === 'HEAD' ? undefined : body);
      },
      () => incoming.socket.destroy(),
    );
  });
  await new Promise((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const endpoint = `http://127.0.0.1:${server.address().port}`;
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-gcs-'));
  /** Writes the file with the key of a service account. */
  const serviceAccount = (name, key) => {
    const file = path.join(dir, name);
    const content = {
      type: 'service_account',
      private_key: key.export({ type: 'pkcs8', format: 'pem' }),
      private_key_id: 'test',
      client_email: ACCOUNT,
    };
    writeFileSync(file, JSON.stringify(content), { mode: 0o600 });
    return file;
  };
  return {
    endpoint,
    requests: dialect.requests,
    onRequest(choose) {
      dialect.choose = choose;
    },
    objects: store.objects,
    request: store.request,
    unfinishedUploads: store.unfinishedUploads,
    url: (prefix) => `gs://${BUCKET}/${prefix}`,
    storageOptions: { endpoint, allowHttp: true },
    env: {
      GOOGLE_SERVICE_ACCOUNT: serviceAccount('key.json', privateKey),
      GOOGLE_BASE_URL: endpoint,
    },
    /** A service account with a key that the service does not know. */
    unknownAccount: () =>
      serviceAccount(
        'unknown.json',
        generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey,
      ),
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => {
        server.close(resolve);
      });
      rmSync(dir, { recursive: true, force: true });
      await store.stop();
    },
  };
}

class Dialect {
  requests = [];
  choose = () => null;
  /** The ETag and the generation of each key. */
  #known = new Map();
  #last = Date.now() * 1000;

  constructor(host, publicKey) {
    this.host = host;
    this.publicKey = publicKey;
  }

  async serve(incoming) {
    const { method, headers } = incoming;
    const url = new URL(incoming.url, 'http://service');
    this.requests.push(`${method} ${incoming.url}`);
    const chunks = [];
    for await (const chunk of incoming) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    if (!this.#isAuthentic(headers.authorization)) return refusal(401, 'AuthenticationRequired');
    const instead = await this.choose({ method, url: incoming.url });
    if (instead && instead !== 'lose') return instead;
    const query = [...url.searchParams];
    const key = decodeURIComponent(url.pathname);
    const isOfUpload = query.some(([name]) => ['uploads', 'uploadId'].includes(name));
    const condition = headers['x-goog-if-generation-match'];
    if (isOfUpload && condition !== undefined) return refusal(400, 'NotImplemented');

    const passed = {};
    for (const [name, value] of Object.entries(headers)) {
      if (PASSED_HEADERS.includes(name)) passed[name] = value;
      if (name.startsWith('x-goog-meta-')) passed[name.replace('goog', 'amz')] = value;
      if (name === 'x-goog-storage-class') passed['x-amz-storage-class'] = CLASSES[value];
    }
    if (method === 'PUT' || method === 'POST') {
      // A PUT is not subject to conditions on ETags.
      delete passed['if-match'];
      delete passed['if-none-match'];
    }
    const before = this.#known.get(key);
    if (condition === '0') passed['if-none-match'] = '*';
    else if (condition !== undefined) {
      await this.#learn(key);
      const current = this.#known.get(key);
      if (String(current?.generation) !== condition) return refusal(412, 'PreconditionFailed');
      passed['if-match'] = current.tag;
    }
    const answer = await this.#pass(method, key, query, passed, body);
    const translated = this.#translate(answer, { method, key, query, before });
    if (instead === 'lose') throw new Error('the answer is lost');
    return translated;
  }

  /** Finds out whether somebody wrote an object behind the back of this interface. */
  async #learn(key) {
    const { status, headers } = await this.#pass('HEAD', key, [], {}, Buffer.alloc(0));
    if (status === 404) this.#known.delete(key);
    else if (headers.etag) this.#generation(key, headers.etag);
  }

  async #pass(method, key, query, headers, body) {
    const request = { method, host: this.host, path: key, query, headers, body };
    const { path: target, headers: all } = signed(request, { key: KEY, secret: SECRET });
    const [hostname, port] = this.host.split(':');
    const sent = send({
      hostname,
      port,
      method,
      path: target,
      headers: { ...all, 'content-length': body.length },
    });
    const answer = await new Promise((resolve, reject) => {
      sent.on('response', resolve);
      sent.on('error', reject);
      sent.end(body);
    });
    const chunks = [];
    for await (const chunk of answer) chunks.push(chunk);
    return { status: answer.statusCode, headers: answer.headers, body: Buffer.concat(chunks) };
  }

  #translate({ status, headers, body }, { method, key, query, before }) {
    const translated = {};
    for (const [name, value] of Object.entries(headers)) {
      if (name.startsWith('x-amz-meta-')) translated[name.replace('amz', 'goog')] = value;
      else if (!name.startsWith('x-amz-') && !['connection', 'transfer-encoding'].includes(name))
        translated[name] = value;
    }
    const names = query.map(([name]) => name);
    const isList = names.includes('list-type');
    const isCompletion = method === 'POST' && names.includes('uploadId');
    if (status < 300 && isList) {
      const text = this.#withGenerations(body.toString(), key);
      const content = Buffer.from(text);
      translated['content-length'] = content.length;
      return { status, headers: translated, body: content };
    }
    const isOfUpload = names.includes('uploads') || names.includes('uploadId');
    if (status < 300 && method === 'DELETE' && !isOfUpload) this.#known.delete(key);
    const tag = isCompletion ? /<ETag>(.*?)<\/ETag>/.exec(body)?.[1] : headers.etag;
    if (status < 300 && tag && (isCompletion || !isOfUpload)) {
      const unescaped = tag.replaceAll('&#34;', '"').replaceAll('&quot;', '"');
      const quoted = unescaped.startsWith('"') ? unescaped : `"${unescaped}"`;
      // The same bytes again are a new generation all the same.
      const isWrite = method === 'PUT' || isCompletion;
      if (isWrite && this.#known.get(key) === before) this.#known.delete(key);
      translated['x-goog-generation'] = String(this.#generation(key, quoted));
      translated['x-goog-metageneration'] = '1';
    }
    return { status, headers: translated, body };
  }

  #generation(key, tag) {
    const known = this.#known.get(key);
    if (known?.tag === tag) return known.generation;
    this.#last += 1;
    this.#known.set(key, { tag, generation: this.#last });
    return this.#last;
  }

  #withGenerations(text, bucket) {
    const plain = (xml) =>
      xml.replaceAll('&#34;', '"').replaceAll('&quot;', '"').replaceAll('&amp;', '&');
    return text.replace(/<Contents>.*?<\/Contents>/gs, (contents) => {
      const key = plain(/<Key>(.*?)<\/Key>/s.exec(contents)[1]);
      const tag = plain(/<ETag>(.*?)<\/ETag>/.exec(contents)?.[1] ?? '""');
      const generation = this.#generation(`${bucket}/${key}`, tag);
      return contents.replace('</Key>', `</Key><Generation>${generation}</Generation>`);
    });
  }

  /** Checks a token that the service account signed itself. */
  #isAuthentic(authorization) {
    const [scheme, token] = (authorization ?? '').split(' ');
    const [header, claims, signature] = (token ?? '').split('.');
    if (scheme !== 'Bearer' || !signature) return false;
    const text = Buffer.from(`${header}.${claims}`);
    if (!verify('RSA-SHA256', text, this.publicKey, Buffer.from(signature, 'base64url')))
      return false;
    const { iss, scope, exp } = JSON.parse(Buffer.from(claims, 'base64url'));
    return iss === ACCOUNT && scope.includes('cloud-platform') && exp * 1000 > Date.now();
  }
}
