// A real HTTP server that hooks are sent to.

import { createServer } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { once } from 'node:events';

import { onTestFinished } from 'vitest';

/**
 * Answers with each status of `answers` in turn, and with the last one from then on; `hang` never answers. Resolves to its URL and to what
 * it got.
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

/** A URL at which nobody listens. */
export async function deadUrl() {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return `http://127.0.0.1:${port}/nobody`;
}
