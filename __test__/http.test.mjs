// The service over HTTP: real services, backups and scrapes.

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';

import { afterEach, expect, test } from 'vitest';

import { kg, until } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const started = new Set();
afterEach(async () => {
  for (const root of started) await kg(['serve', '--stop'], { cwd: root });
  started.clear();
});

const NIGHTLY = { enabled: true, schedule: '0 2 * * *' };
const EACH_SECOND = { enabled: true, schedule: '* * * * * *', maxBackups: 3 };

/** Makes a project whose service listens on any free port by default. */
async function setUp(backup = NIGHTLY, options = {}) {
  const project = makeProject(options);
  const run = (...args) => kg(args, { cwd: project.root });
  const file = path.join(project.root, '.kg/config.json');
  const configure = (settings) =>
    writeFileSync(
      file,
      JSON.stringify({
        database: { path: '.kg/knowledge.db' },
        backup: { dir: '../backups', listen: 0, ...settings },
      }),
    );
  const listening = async () => resultOf((await run('serve', '--status', '--json')).stdout).listen;
  const ask = async (where, options) =>
    fetch(`http://${(await listening()).address}${where}`, options);
  const isReady = async () => (await ask('/readyz')).status === 200;
  const log = () => readFileSync(path.join(project.root, '.kg/logs/backup-service.log'), 'utf8');
  configure(backup);
  started.add(project.root);
  const begin = (...args) => run('serve', '--all', ...args);
  return { ...project, kg: run, configure, listening, ask, isReady, log, begin };
}

/** Starts a server that holds a port until it is closed. */
async function occupy(port = 0) {
  const server = net.createServer().listen(port, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: server.address().port,
    free: () => new Promise((resolve) => server.close(resolve)),
  };
}

/** Returns a port that was free a moment ago. */
async function freePort() {
  const { port, free } = await occupy();
  await free();
  return port;
}

function promtool(args, input) {
  const { status, stdout, stderr } = spawnSync('promtool', args, { input, encoding: 'utf8' });
  return { status, output: stdout + stderr };
}

test('a service whose settings refuse every backup is not ready, even before one fails', async () => {
  const { begin, ask, kg, isReady, configure } = await setUp();
  expect((await kg('diag', 'backup')).status).toBe(0);
  await begin();
  await until(isReady, 'readiness');
  configure({ ...NIGHTLY, encrypt: 1 });
  await until(async () => !(await isReady()), 'the invalid setting');
  expect(await (await ask('/readyz')).text()).toContain('`backup.encrypt` is 1, not true or false');
  configure(NIGHTLY);
  await until(isReady, 'readiness again');
});

test('a service that makes backups is live, ready and has metrics that pass promtool', async () => {
  const { ask, begin, isReady, root } = await setUp(EACH_SECOND);
  expect((await begin()).stdout).toMatch(/^ {2}answers {3}on http:\/\/127\.0\.0\.1:\d+$/m);
  await until(isReady, 'readiness');
  expect(await (await ask('/healthz')).json()).toEqual({
    ok: true,
    messages: [],
    pid: expect.any(Number),
  });
  const ready = await (await ask('/readyz')).json();
  expect(ready).toMatchObject({ ok: true, messages: [], project: root, lastFailure: null });
  expect(ready.lastSuccess).toBeGreaterThan(Date.now() - 60_000);

  const scraped = await ask('/metrics');
  expect(scraped.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
  expect(scraped.headers.get('cache-control')).toBe('no-store');
  const text = await scraped.text();
  expect(promtool(['check', 'metrics'], text)).toEqual({ status: 0, output: '' });
  expect(text).toMatch(/^kg_backup_info\{project=".+",version="\d+\.\d+\.\d+"\} 1$/m);
  expect(text).toMatch(/^kg_backup_healthy\{project=".+"\} 1$/m);
  expect(text).toMatch(/^kg_backup_running\{project=".+"\} [01]$/m);
  expect(
    Number(text.match(/^kg_backup_runs_total\{project=".+",result="success"\} (\d+)$/m)[1]),
  ).toBeGreaterThan(0);
  expect(
    Number(text.match(/^kg_backup_kept\{project=".+",type="full"\} (\d+)$/m)[1]),
  ).toBeGreaterThan(0);
});

test('a client that asks for OpenMetrics gets it, and the parser of Prometheus reads it', async () => {
  const { ask, begin, isReady } = await setUp(EACH_SECOND);
  await begin();
  await until(isReady, 'readiness');
  const scraped = await ask('/metrics', {
    headers: { accept: 'application/openmetrics-text;version=1.0.0,text/plain;q=0.5' },
  });
  expect(scraped.headers.get('content-type')).toBe(
    'application/openmetrics-text; version=1.0.0; charset=utf-8',
  );
  const text = await scraped.text();
  expect(text).toContain('# UNIT kg_backup_last_duration_seconds seconds\n');
  // The importer needs a timestamp for each sample. It uses the same parser as scrapes.
  const dir = temporaryDirectory();
  writeFileSync(path.join(dir, 'scrape'), text.replace(/^(kg_backup.*)$/gm, '$1 1700000000'));
  const { status, output } = promtool([
    'tsdb',
    'create-blocks-from',
    'openmetrics',
    path.join(dir, 'scrape'),
    path.join(dir, 'blocks'),
  ]);
  expect(status, output).toBe(0);
});

test('readiness names a missing schedule or backup or a failed run, and any new backup repairs it', async () => {
  const { ask, begin, configure, database, isReady, kg } = await setUp();
  await begin();
  const readiness = async () => {
    const response = await ask('/readyz');
    return `${response.status} ${(await response.json()).messages.join('; ')}`;
  };
  expect(await readiness()).toMatch(/^503 there is no backup: make one/);
  configure({ enabled: false });
  await until(
    async () =>
      /^503 .*no backups are made: `kg config set.*there is no schedule: `kg config set/.test(
        await readiness(),
      ),
    'no schedule',
  );
  expect((await ask('/healthz')).status).toBe(200);
  configure(NIGHTLY);
  expect((await kg('diag', 'backup', '--quiet')).status).toBe(0);
  await until(isReady, 'readiness after a backup');
  renameSync(database, `${database}.away`);
  expect((await kg('diag', 'backup', '--quiet')).status).toBe(3);
  await until(
    async () => /^503 the last run failed: .*\[KG_NO_DATABASE\]$/.test(await readiness()),
    'the failure',
  );
  expect(await (await ask('/metrics')).text()).toMatch(/^kg_backup_healthy\{.*\} 0$/m);
  renameSync(`${database}.away`, database);
  expect((await kg('diag', 'backup', '--quiet')).status).toBe(0);
  await until(isReady, 'readiness again');
});

test('the service answers during a backup and reports it', async () => {
  const { ask, begin, listening } = await setUp(
    { ...EACH_SECOND, compressionLevel: 9 },
    { nodes: 60_000 },
  );
  await begin();
  const { address } = await listening();
  const seen = async () => ({
    ready: await (await ask('/readyz')).json(),
    text: await (await fetch(`http://${address}/metrics`)).text(),
  });
  const during = await until(async () => {
    const now = await seen();
    return now.ready.runningSince && /^kg_backup_running\{.*\} 1$/m.test(now.text)
      ? now
      : undefined;
  }, 'an answer beside a backup');
  expect(during.ready.messages.join()).not.toContain('a run is overdue');
  expect((await fetch(`http://${address}/healthz`)).status).toBe(200);
});

test('an occupied address does not stop backups, is reported once, and is retried until free', async () => {
  const { port, free } = await occupy();
  const { ask, begin, kg, listening, log } = await setUp({ ...EACH_SECOND, listen: port });
  expect((await begin()).stdout).toContain(
    `answers   not on 127.0.0.1:${port} yet: Address already in use`,
  );
  await until(() => (log().match(/made /g) ?? []).length >= 4, 'backups');
  expect(await listening()).toEqual({
    address: `127.0.0.1:${port}`,
    error: 'Address already in use',
  });
  expect((await kg('serve', '--status')).stdout).toContain(
    `not on 127.0.0.1:${port} yet: Address already in use`,
  );
  expect(log().match(/could not listen/g)).toHaveLength(1);
  await free();
  await until(async () => (await listening()).error === undefined, 'the address');
  expect((await ask('/healthz')).status).toBe(200);
});

test('a new address applies without a restart, off closes it, and the flag overrides the settings', async () => {
  const { begin, configure, kg, listening } = await setUp();
  await begin();
  const first = await listening();
  const port = await freePort();
  configure({ ...NIGHTLY, listen: port });
  await until(
    async () => (await listening()).address === `127.0.0.1:${port}`,
    'the second address',
  );
  expect((await fetch(`http://127.0.0.1:${port}/healthz`)).status).toBe(200);
  await expect(fetch(`http://${first.address}/healthz`)).rejects.toThrow();
  configure({ ...NIGHTLY, listen: `0.0.0.0:${port}` });
  await until(
    async () => (await listening()).address === `0.0.0.0:${port}`,
    'the same port for every address',
  );
  configure({ ...NIGHTLY, listen: 'off' });
  await until(async () => (await listening()) === null, 'its end');
  await expect(fetch(`http://127.0.0.1:${port}/healthz`)).rejects.toThrow();
  expect((await kg('serve', '--status')).stdout).toContain('answers   not over HTTP');
  await kg('serve', '--stop');
  await begin('--listen', String(port));
  expect(await listening()).toEqual({ address: `127.0.0.1:${port}` });
  expect(await kg('serve', '--listen', 'everywhere')).toMatchObject({
    status: 2,
    stderr: expect.stringContaining('not an address to listen on'),
  });
});

test('only GET and HEAD of three paths are answered, and only for names of this machine', async () => {
  const { ask, begin, listening } = await setUp();
  await begin();
  const head = await ask('/metrics', { method: 'HEAD' });
  expect([head.status, await head.text()]).toEqual([200, '']);
  const posted = await ask('/readyz', { method: 'POST', body: 'x'.repeat(1000) });
  expect([posted.status, posted.headers.get('allow')]).toEqual([405, 'GET, HEAD']);
  expect((await ask('/.kg/config.json')).status).toBe(404);
  const { address } = await listening();
  const request = http.get(`http://${address}/metrics`, { headers: { host: 'rebound.example' } });
  const [response] = await once(request, 'response');
  response.resume();
  expect(response.statusCode).toBe(403);
});

test('127.0.0.1 in IPv6 notation is a name of this machine too', async () => {
  const port = await freePort();
  const { begin } = await setUp({ ...NIGHTLY, listen: `[::ffff:127.0.0.1]:${port}` });
  await begin();
  const askAs = async (host) => {
    const [response] = await once(
      http.get(`http://127.0.0.1:${port}/healthz`, { headers: { host } }),
      'response',
    );
    response.resume();
    return response.statusCode;
  };
  expect([await askAs('localhost'), await askAs('rebound.example')]).toEqual([200, 403]);
});

test('an unknown address is not reported as no address', async () => {
  const { begin, kg, root } = await setUp();
  await begin();
  rmSync(path.join(root, '.kg/cache'), { recursive: true });
  expect((await kg('serve', '--status')).stdout).toMatch(
    /^ {2}answers {3}at an unknown address: see its log$/m,
  );
});

test('clients that never finish their requests are disconnected, and delay no backup, client or stop', async () => {
  const { ask, begin, kg, listening, log } = await setUp(EACH_SECOND);
  await begin();
  const [host, port] = (await listening()).address.split(':');
  const slow = Array.from({ length: 400 }, () => net.connect(Number(port), host));
  for (const socket of slow)
    socket.on('error', () => {}).write('GET /metrics HTTP/1.1\r\nhost: local');
  await Promise.all(
    slow.map(
      (socket) =>
        new Promise((resolve) =>
          socket.connecting ? socket.once('connect', resolve).once('close', resolve) : resolve(),
        ),
    ),
  );
  const askedAt = Date.now();
  expect((await ask('/healthz')).status).toBe(200);
  // The service must not wait for any of the slow clients.
  expect(Date.now() - askedAt).toBeLessThan(5_000);
  const made = () => (log().match(/made /g) ?? []).length;
  const before = made();
  await until(() => made() >= before + 2, 'backups beside them');
  expect((await ask('/healthz')).status).toBe(200);
  for (const socket of slow.slice(0, 5)) socket.destroy();
  const stuck = net.connect(Number(port), host);
  stuck.on('error', () => {}).write('GET /');
  const at = Date.now();
  expect((await kg('serve', '--stop')).stdout).not.toContain('by force');
  expect(Date.now() - at).toBeLessThan(10_000);
  for (const socket of [...slow, stuck]) socket.destroy();
});

test('a restore of older settings names its changes, and a service that became idle is reported everywhere', async () => {
  const { ask, begin, configure, kg } = await setUp({});
  const { id } = resultOf((await kg('diag', 'backup', '--json')).stdout);
  configure({ ...NIGHTLY, maxBackups: 3 });
  await begin();
  await until(async () => (await ask('/readyz')).status === 200, 'readiness');

  const restored = resultOf(
    (await kg('diag', 'restore', '--file', id, '--config-only', '--yes', '--json')).stdout,
  );
  const changed = restored.warnings.filter(({ code }) => code === 'KG_WARN_SETTINGS_CHANGED');
  expect(changed).toEqual([
    {
      code: 'KG_WARN_SETTINGS_CHANGED',
      path: '.kg/config.json',
      message: expect.stringContaining('Scheduled backups are now off'),
    },
  ]);
  for (const change of [
    'backup.enabled from true to not set',
    'backup.schedule from "0 2 * * *" to not set',
    'backup.maxBackups from 3 to not set',
  ]) {
    expect(changed[0].message).toContain(change);
  }

  await until(async () => (await ask('/readyz')).status === 503, 'a service that is not ready');
  expect(await (await ask('/metrics')).text()).toMatch(/^kg_backup_healthy\{.*\} 0$/m);
  expect((await kg('serve', '--status')).stdout).toMatch(
    /^ {2}warning {3}no backups are made: `kg config set backup.enabled true`$/m,
  );
  const { issues } = resultOf((await kg('diag', 'health', '--json')).stdout);
  expect(issues).toContainEqual(
    expect.objectContaining({
      code: 'KG_ISSUE_SERVICE_IDLE',
      severity: 'warning',
      remedy: expect.stringContaining('backup.schedule'),
    }),
  );

  const undone = resultOf((await kg('diag', 'restore', '--undo', '--yes', '--json')).stdout);
  expect(undone.warnings).toContainEqual(
    expect.objectContaining({
      code: 'KG_WARN_SETTINGS_CHANGED',
      message: expect.stringContaining('backup.enabled from not set to true'),
    }),
  );
  await until(async () => (await ask('/readyz')).status === 200, 'readiness');
  expect((await kg('serve', '--status')).stdout).not.toContain('no backups are made');
  expect((await kg('diag', 'health', '--json')).stdout).not.toContain('KG_ISSUE_SERVICE_IDLE');
});
