// Signs requests to the S3 interface of the test server.

import { createHash, createHmac } from 'node:crypto';

const sha256 = (data) => createHash('sha256').update(data).digest('hex');
const hmac = (key, data) => createHmac('sha256', key).update(data).digest();

/** Encodes a text as S3 wants it in a URL. */
export const encoded = (text) =>
  encodeURIComponent(text).replace(
    /[!'()*]/g,
    (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
  );

/**
 * Returns the path with its query, and the headers with a signature of version 4. `path` is decoded,
 * and `query` a list of pairs.
 */
export function signed({ method, host, path, query = [], headers = {}, body }, { key, secret }) {
  const time = new Date().toISOString().replace(/[-:]|\.\d+/g, '');
  const scope = `${time.slice(0, 8)}/us-east-1/s3/aws4_request`;
  const all = {
    ...headers,
    host,
    'x-amz-date': time,
    'x-amz-content-sha256': sha256(body ?? ''),
  };
  const names = Object.keys(all).sort();
  const url = path.split('/').map(encoded).join('/');
  const parameters = query
    .map(([name, value]) => `${encoded(name)}=${encoded(value)}`)
    .sort()
    .join('&');
  const canonical = [
    method,
    url,
    parameters,
    ...names.map((name) => `${name}:${String(all[name]).trim()}`),
    '',
    names.join(';'),
    all['x-amz-content-sha256'],
  ].join('\n');
  const text = ['AWS4-HMAC-SHA256', time, scope, sha256(canonical)].join('\n');
  const signing = ['us-east-1', 's3', 'aws4_request'].reduce(
    hmac,
    hmac(`AWS4${secret}`, time.slice(0, 8)),
  );
  const signature = hmac(signing, text).toString('hex');
  return {
    path: parameters === '' ? url : `${url}?${parameters}`,
    headers: {
      ...all,
      authorization: `AWS4-HMAC-SHA256 Credential=${key}/${scope}, SignedHeaders=${names.join(';')}, Signature=${signature}`,
    },
  };
}
