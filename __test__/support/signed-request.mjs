// A request of S3 that no other helper has, signed as AWS describes it (Signature Version 4).

import { createHash, createHmac } from 'node:crypto';

const hash = (text) => createHash('sha256').update(text).digest('hex');
const hmac = (key, text) => createHmac('sha256', key).update(text).digest();

/** Sends a request. `query` is already encoded and sorted. */
export function signed(store, { method, path, query, body = '' }) {
  const { AWS_ACCESS_KEY_ID: key, AWS_SECRET_ACCESS_KEY: secret, AWS_REGION: region } = store.env;
  const { host } = new URL(store.endpoint);
  const time = new Date().toISOString().replace(/[-:]|\.\d+/g, '');
  const scope = `${time.slice(0, 8)}/${region}/s3/aws4_request`;
  const digest = hash(body);
  const headers = { host, 'x-amz-content-sha256': digest, 'x-amz-date': time };
  const names = Object.keys(headers).join(';');
  const lines = Object.entries(headers).map(([name, value]) => `${name}:${value}\n`);
  const canonical = [method, path, query, lines.join(''), names, digest].join('\n');
  const toSign = ['AWS4-HMAC-SHA256', time, scope, hash(canonical)].join('\n');
  const signing = scope.split('/').reduce(hmac, `AWS4${secret}`);
  const signature = hmac(signing, toSign).toString('hex');
  const { host: _, ...sent } = headers;
  const credential = `Credential=${key}/${scope}, SignedHeaders=${names}, Signature=${signature}`;
  return fetch(`${store.endpoint}${path}${query ? `?${query}` : ''}`, {
    method,
    headers: { ...sent, authorization: `AWS4-HMAC-SHA256 ${credential}` },
    body: method === 'GET' ? undefined : body,
  });
}
