// A proxy before an object store. It passes requests on as they are, so that their signatures stay
// valid, and breaks the ones that a test chooses.

import { createServer, request as send } from 'node:http';

/**
 * Starts a proxy. `choose({ method, url, headers, number })` returns what happens to a request:
 *
 * - nothing;
 * - an answer `{ status, headers, body }` instead of that of the service;
 * - `'reset'` before the service sees it;
 * - `'lose'` its answer;
 * - `'twice'`: the service gets it twice, and the client the second answer;
 * - `{ change }`: a function that gets the answer and returns another one;
 * - `{ resign }`: a function that gets the request `{ method, path, query, headers, body }` and
 *   returns it changed and signed;
 * - `{ cut: bytes }`: the connection ends after so many bytes of the answer;
 * - `{ pieces, pauseMs }`: the answer arrives in so many pieces with a pause after each.
 *
 * Returns the URL of the proxy and the requests so far.
 */
export async function startFaultProxy(endpoint, choose) {
  const { hostname, port } = new URL(endpoint);
  const requests = [];
  const server = createServer((incoming, outgoing) => {
    const { method, url, headers } = incoming;
    requests.push(`${method} ${url}`);
    const fault = choose({ method, url, headers, number: requests.length });
    if (fault === 'reset') {
      incoming.socket.destroy();
      return;
    }
    if (fault?.status !== undefined) {
      incoming.resume();
      incoming.on('end', () => {
        outgoing.writeHead(fault.status, { date: new Date().toUTCString(), ...fault.headers });
        outgoing.end(fault.body ?? '');
      });
      return;
    }
    if (fault && fault !== 'lose') {
      breakWhole(incoming, outgoing, fault, { hostname, port }).catch(() =>
        incoming.socket.destroy(),
      );
      return;
    }
    const passed = send({ hostname, port, method, path: url, headers });
    passed.on('response', (answer) => {
      if (fault === 'lose') {
        answer.resume();
        answer.on('end', () => incoming.socket.destroy());
        return;
      }
      outgoing.writeHead(answer.statusCode, answer.rawHeaders);
      answer.pipe(outgoing);
    });
    passed.on('error', () => incoming.socket.destroy());
    incoming.on('aborted', () => passed.destroy());
    incoming.pipe(passed);
  });
  await new Promise((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  return {
    endpoint: `http://127.0.0.1:${server.address().port}`,
    requests,
    stop() {
      server.closeAllConnections();
      return new Promise((resolve) => {
        server.close(resolve);
      });
    },
  };
}

/** Handles the faults for which the whole request or answer must be known. */
async function breakWhole(incoming, outgoing, fault, service) {
  const { method, headers } = incoming;
  const body = await bytesOf(incoming);
  let request = { ...service, method, path: incoming.url, headers };
  if (fault.resign) {
    const url = new URL(incoming.url, 'http://service');
    const query = [...url.searchParams];
    const path = decodeURIComponent(url.pathname);
    request = { ...request, ...fault.resign({ method, path, query, headers, body }) };
  }
  if (fault === 'twice') await exchange(request, body);
  let answer = await exchange(request, body);
  if (fault.change) answer = fault.change(answer);
  outgoing.writeHead(answer.status, answer.headers);
  if (method === 'HEAD') {
    outgoing.end();
    return;
  }
  if (fault.cut !== undefined && answer.body.length > fault.cut) {
    outgoing.write(answer.body.subarray(0, fault.cut), () => incoming.socket.destroy());
    return;
  }
  const size = Math.max(1, Math.ceil(answer.body.length / (fault.pieces ?? 1)));
  for (let at = 0; at < answer.body.length; at += size) {
    outgoing.write(answer.body.subarray(at, at + size));
    if (fault.pauseMs) await new Promise((resolve) => setTimeout(resolve, fault.pauseMs));
  }
  outgoing.end();
}

async function exchange(request, body) {
  const answer = await new Promise((resolve, reject) => {
    const passed = send(request, resolve);
    passed.on('error', reject);
    passed.end(body);
  });
  const { 'transfer-encoding': _, ...headers } = answer.headers;
  return { status: answer.statusCode, headers, body: await bytesOf(answer) };
}

async function bytesOf(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** An answer with the code of an S3 error, and other elements. */
export const refusal = (status, code, headers = {}, more = '') => ({
  status,
  headers: { 'content-type': 'application/xml', ...headers },
  body: `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>${code}</Message>${more}</Error>`,
});

/** The answer with another body, of the length that it announces. */
export const withBody = (answer, body) => ({
  ...answer,
  headers: { ...answer.headers, 'content-length': Buffer.byteLength(body) },
  body: Buffer.from(body),
});

/** The same numbers in every run. */
export function random(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
}
