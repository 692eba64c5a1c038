// A real HTTP server that receives hooks.

import { createServer } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { once } from 'node:events';

import { onTestFinished } from 'vitest';

/**
 * Starts a server that answers with the statuses in `answers` in turn, then repeats the last one.
 * `hang` never answers. Resolves to its URL and the received requests.
 */
export async function startReceiver(answers = [200], { headers = {}, tls } = {}) {
  const got = [];
  const answer = async (request, response) => {
    let body = '';
    for await (const part of request) body += part;
    const status = answers[Math.min(got.length, answers.length - 1)];
    got.push({
      at: Date.now(),
      method: request.method,
      path: request.url,
      headers: request.headers,
      body,
    });
    if (status !== 'hang') response.writeHead(status, headers).end('said');
  };
  const server = tls ? createSecureServer(tls, answer) : createServer(answer);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `${tls ? 'https://localhost' : 'http://127.0.0.1'}:${server.address().port}`;
  return { url, got, events: () => got.map(({ body }) => JSON.parse(body)) };
}

/** Returns a URL without a server. */
export async function deadUrl() {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return `http://127.0.0.1:${port}/nobody`;
}
