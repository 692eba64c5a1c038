// A proxy before an object store. It passes requests on as they are, so that their signatures stay
// valid, and breaks the ones that a test chooses.

import { createServer, request as send } from 'node:http';

/**
 * Starts a proxy. `choose({ method, url, number })` returns what happens to a request: nothing, an
 * answer `{ status, headers, body }` instead of that of the service, `'reset'` before the service
 * sees it, or `'lose'` its answer. Returns the URL of the proxy and the requests so far.
 */
export async function startFaultProxy(endpoint, choose) {
  const { hostname, port } = new URL(endpoint);
  const requests = [];
  const server = createServer((incoming, outgoing) => {
    const { method, url } = incoming;
    requests.push(`${method} ${url}`);
    const fault = choose({ method, url, number: requests.length });
    if (fault === 'reset') {
      incoming.socket.destroy();
      return;
    }
    if (typeof fault === 'object' && fault !== null) {
      incoming.resume();
      incoming.on('end', () => {
        outgoing.writeHead(fault.status, { date: new Date().toUTCString(), ...fault.headers });
        outgoing.end(fault.body ?? '');
      });
      return;
    }
    const passed = send({ hostname, port, method, path: url, headers: incoming.headers });
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

/** An answer with the code of an S3 error. */
export const refusal = (status, code, headers = {}) => ({
  status,
  headers: { 'content-type': 'application/xml', ...headers },
  body: `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>${code}</Message></Error>`,
});
