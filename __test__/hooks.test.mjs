// Hooks that report the result of a backup, with real servers and commands. A backup does not wait
// for them.

import { execFileSync, spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:http';
import net from 'node:net';
import path from 'node:path';

import { describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, repository, run, until } from './support/processes.mjs';
import { fingerprint, makeProject, temporaryDirectory } from './support/project.mjs';
import { deadUrl, startReceiver } from './support/receiver.mjs';
import { resultOf } from './support/json-output.mjs';

/** Makes a project with these hooks in its hooks file. */
function setUp(hooks, { nodes = 20, ...backup } = {}) {
  const project = makeProject({ nodes });
  const file = path.join(project.root, '.kg/hooks.json');
  const env = { ...process.env };
  for (const name of [
    'http_proxy',
    'https_proxy',
    'all_proxy',
    'HTTP_PROXY',
    'HTTPS_PROXY',
    'ALL_PROXY',
    'SSL_CERT_FILE',
  ])
    delete env[name];
  if (hooks) writeFileSync(file, JSON.stringify({ backup: { hooks } }), { mode: 0o600 });
  const config = {
    database: { path: '.kg/knowledge.db' },
    backup: { dir: '../backups', ...backup },
  };
  writeFileSync(path.join(project.root, '.kg/config.json'), JSON.stringify(config));
  const call = (...args) => kg(args, { cwd: project.root, env });
  return {
    ...project,
    file,
    env,
    kg: call,
    backup: (...args) => call('diag', 'backup', ...args),
    at: (name) => path.join(project.root, name),
  };
}

/** Returns a command that writes its input and environment to files called `name`. */
const recordingCommand = (name) => [
  'sh',
  '-c',
  `cat > ${name}.json; env | grep ^KG_ | sort > ${name}.env`,
];
const isAlive = (pid) =>
  existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));

function foreground({ root, env }) {
  const child = spawn(kgPath, ['serve', '--foreground'], {
    cwd: root,
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => child.kill('SIGKILL'));
  const service = { child, output: '' };
  child.stdout.on('data', (text) => (service.output += text));
  return service;
}

describe('after a backup', () => {
  test('that succeeded, its commands, webhooks and heartbeats run, and none for a failure', async () => {
    const receiver = await startReceiver();
    const { url } = receiver;
    const { backup, root, at } = setUp({
      onSuccess: { command: recordingCommand('success'), url: `${url}/success` },
      onFailure: { command: recordingCommand('failure'), url: `${url}/failure` },
      heartbeat: `${url}/beat`,
      heartbeatStart: `${url}/beat/start`,
      heartbeatFailure: `${url}/beat/fail`,
    });
    const { status, stdout, stderr } = await backup('--json', '--description', 'by hand');
    expect([status, stderr]).toEqual([0, '']);
    const made = resultOf(stdout);
    expect(receiver.got.map(({ method, path }) => `${method} ${path}`).sort()).toEqual([
      'GET /beat',
      'GET /beat/start',
      'POST /success',
    ]);
    expect(receiver.got[0].path).toBe('/beat/start');
    const { headers, body } = receiver.got.find(({ method }) => method === 'POST');
    const event = JSON.parse(body);
    const { id, type, size, checksum } = made;
    expect(event).toMatchObject({
      version: 1,
      event: 'backup.succeeded',
      project: root,
      host: expect.any(String),
      trigger: 'manual',
      durationMs: expect.any(Number),
      backup: { id, path: made.path, type, size, checksum, integrity: 'ok', warnings: [] },
    });
    expect(Math.abs(Date.parse(event.time) - Date.now())).toBeLessThan(60_000);
    expect(headers).toMatchObject({
      'content-type': 'application/json',
      'kg-event': 'backup.succeeded',
      'kg-delivery': event.id,
    });
    expect(headers['kg-signature']).toBeUndefined();
    expect(JSON.parse(readFileSync(at('success.json'), 'utf8'))).toEqual(event);
    expect(readFileSync(at('success.env'), 'utf8').split('\n')).toEqual([
      'KG_BACKUP_EVENT=backup.succeeded',
      `KG_BACKUP_ID=${id}`,
      `KG_BACKUP_PATH=${made.path}`,
      `KG_PROJECT=${root}`,
      '',
    ]);
    expect(existsSync(at('failure.json'))).toBe(false);
  });

  test('that failed, its hooks receive the reason, even if the backup directory cannot be used', async () => {
    const receiver = await startReceiver();
    const { backup, database, backups, at } = setUp({
      onFailure: { command: recordingCommand('failure'), url: `${receiver.url}/failure` },
      onSuccess: { command: recordingCommand('success') },
      heartbeatFailure: `${receiver.url}/beat/fail`,
    });
    rmSync(database);
    const failed = await backup();
    expect(failed).toMatchObject({
      status: 3,
      stderr: expect.stringContaining('[KG_NO_DATABASE]'),
    });
    const event = JSON.parse(readFileSync(at('failure.json'), 'utf8'));
    expect(event).toMatchObject({
      event: 'backup.failed',
      error: {
        code: 'KG_NO_DATABASE',
        message: expect.stringContaining('no database'),
        remedy: expect.any(String),
      },
    });
    expect(event.backup).toBeUndefined();
    expect(readFileSync(at('failure.env'), 'utf8')).toMatch(
      /^KG_BACKUP_EVENT=backup\.failed\nKG_ERROR_CODE=KG_NO_DATABASE\nKG_ERROR_MESSAGE=The project has no database/,
    );
    expect(receiver.got.map(({ method, path }) => `${method} ${path}`).sort()).toEqual([
      'GET /beat/fail',
      'POST /failure',
    ]);
    rmSync(backups, { recursive: true, force: true });
    writeFileSync(backups, 'a file where the directory was');
    expect((await backup()).status).toBe(4);
    expect(JSON.parse(readFileSync(at('failure.json'), 'utf8')).error.code).toBe(
      'KG_BACKUP_DIR_INVALID',
    );
    expect(existsSync(at('success.json'))).toBe(false);
  });
});

describe('a webhook', () => {
  test('is signed with the secret of a file, as the example in the docs verifies it', async () => {
    const receiver = await startReceiver();
    const { backup, at } = setUp({ onSuccess: { url: receiver.url }, secretFile: '../secret' });
    writeFileSync(at('../secret'), 'correct horse\n', { mode: 0o600 });
    expect((await backup()).stderr).toBe('');
    const [{ headers, body }] = receiver.got;
    const [, t, v1] = headers['kg-signature'].match(/^t=(\d+),v1=([0-9a-f]{64})$/);
    expect(v1).toBe(createHmac('sha256', 'correct horse').update(`${t}.${body}`).digest('hex'));
    const [, snippet] = readFileSync(path.join(repository, 'docs/guide/hooks.md'), 'utf8').match(
      /```js\n([^]*?)```/,
    );
    const { isGenuine } = await import(`data:text/javascript,${encodeURIComponent(snippet)}`);
    const verdicts = (secret, header, text) => isGenuine(secret, header, text);
    expect(verdicts('correct horse', headers['kg-signature'], body)).toBe(true);
    expect(verdicts('wrong horse', headers['kg-signature'], body)).toBe(false);
    expect(verdicts('correct horse', headers['kg-signature'], `${body} `)).toBe(false);
    expect(
      verdicts('correct horse', headers['kg-signature'].replace(/t=\d+/, `t=${t - 3600}`), body),
    ).toBe(false);
    expect(verdicts('correct horse', undefined, body)).toBe(false);
  });

  test('is not sent unsigned if the secret cannot be read', async () => {
    const receiver = await startReceiver();
    const { backup } = setUp({
      onSuccess: { url: receiver.url },
      heartbeat: `${receiver.url}/beat`,
      secretFile: '/no/such',
    });
    expect(await backup()).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(
        /`backup\.hooks\.onSuccess\.url` failed: .*secretFile.*\[KG_WARN_HOOK\]/,
      ),
    });
    expect(receiver.got.map(({ path }) => path)).toEqual(['/beat']);
  });

  test('is retried after 500 and 429 with growing pauses, as one delivery', async () => {
    const receiver = await startReceiver([500, 429, 200]);
    const { backup } = setUp({ onSuccess: { url: receiver.url } });
    expect(await backup()).toMatchObject({ status: 0, stderr: '' });
    expect(new Set(receiver.got.map(({ headers }) => headers['kg-delivery'])).size).toBe(1);
    const [first, second, third] = receiver.got.map(({ at }) => at);
    // The pauses are half a second and one second; the machine may add time.
    expect(second - first).toBeGreaterThan(450);
    expect(third - second).toBeGreaterThan(950);
    expect(receiver.got).toHaveLength(3);
  });

  test('is not retried after 404, and no redirect is followed', async () => {
    const elsewhere = await startReceiver();
    for (const [status, headers] of [
      [404, {}],
      [301, { location: elsewhere.url }],
      [307, { location: elsewhere.url }],
    ]) {
      const receiver = await startReceiver([status], { headers });
      const { backup } = setUp({ onSuccess: { url: `${receiver.url}/secret-path` } });
      const { status: exit, stderr } = await backup();
      expect([exit, receiver.got.length]).toEqual([0, 1]);
      expect(stderr).toMatch(
        new RegExp(
          `^warning: The hook \`backup\\.hooks\\.onSuccess\\.url\` failed: ${receiver.url}/… answered ${status}.*\\[KG_WARN_HOOK\\]\n$`,
        ),
      );
    }
    expect(elsewhere.got).toEqual([]);
  });

  test('that no server answers causes only a warning, which hides the secrets of its URL', async () => {
    const { backup } = setUp({
      onSuccess: { url: (await deadUrl()).replace('http://', 'http://me:hidden@') },
      retries: 1,
    });
    const { status, stdout, stderr } = await backup('--json');
    expect(JSON.parse(stdout)).toMatchObject({
      result: { id: expect.stringContaining('backup-') },
      warnings: [
        {
          code: 'KG_WARN_HOOK',
          message: expect.stringMatching(/could not be called: .*refused.*, 2 times$/),
        },
      ],
    });
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).not.toMatch(/hidden|nobody/);
  });

  test('authenticates with the credentials of the URL', async () => {
    const receiver = await startReceiver();
    const { backup } = setUp({
      onSuccess: { url: receiver.url.replace('http://', 'http://me:p%40ss@') },
    });
    expect((await backup()).stderr).toBe('');
    expect(receiver.got[0].headers).toMatchObject({
      authorization: `Basic ${btoa('me:p@ss')}`,
      host: receiver.url.slice('http://'.length),
    });
  });

  test('trusts a certificate that SSL_CERT_FILE names, and no other', async () => {
    const dir = temporaryDirectory();
    const [key, cert] = [path.join(dir, 'key.pem'), path.join(dir, 'cert.pem')];
    const subject = [
      '-subj',
      '/CN=localhost',
      '-addext',
      'subjectAltName=DNS:localhost',
      '-addext',
      'basicConstraints=critical,CA:FALSE',
    ];
    execFileSync(
      'openssl',
      [
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:P-256',
        '-nodes',
        '-days',
        '2',
        '-keyout',
        key,
        '-out',
        cert,
        ...subject,
      ],
      { stdio: 'ignore' },
    );
    const receiver = await startReceiver([200], {
      tls: { key: readFileSync(key), cert: readFileSync(cert) },
    });
    const { root, env } = setUp({ onSuccess: { url: receiver.url }, retries: 0 });
    const refused = await kg(['diag', 'backup'], { cwd: root, env });
    expect(refused).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(/could not be called: .*certificate/i),
    });
    expect(receiver.got).toEqual([]);
    const trusted = await kg(['diag', 'backup'], {
      cwd: root,
      env: { ...env, SSL_CERT_FILE: cert },
    });
    expect([trusted.stderr, receiver.got.length]).toEqual(['', 1]);
  });
});

test('goes through the proxy of the environment, except for hosts in NO_PROXY', async () => {
  const receiver = await startReceiver();
  const proxiedUrls = [];
  const proxy = createServer();
  proxy.on('connect', ({ url }, socket) => {
    proxiedUrls.push(url);
    const { hostname, port } = new URL(receiver.url);
    const onward = net.connect(
      Number(port),
      hostname,
      () => socket.write('HTTP/1.1 200 \r\n\r\n') && onward.pipe(socket).pipe(onward),
    );
    for (const end of [socket, onward]) end.on('error', () => {});
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  onTestFinished(() => proxy.close());
  const { root, env } = setUp({ heartbeat: 'http://hooks.invalid/beat', retries: 0 });
  const HTTP_PROXY = `http://me:hidden@127.0.0.1:${proxy.address().port}`;
  const proxied = await kg(['config', 'test-hooks'], { cwd: root, env: { ...env, HTTP_PROXY } });
  expect([proxied.status, proxiedUrls, receiver.got.map(({ path }) => path)]).toEqual([
    0,
    ['hooks.invalid:80'],
    ['/beat'],
  ]);
  const direct = await kg(['config', 'test-hooks'], {
    cwd: root,
    env: { ...env, HTTP_PROXY, NO_PROXY: '.invalid' },
  });
  expect([direct.status, proxiedUrls.length]).toEqual([1, 1]);
  const gone = await kg(['config', 'test-hooks'], {
    cwd: root,
    env: { ...env, HTTP_PROXY: (await deadUrl()).replace('http://', 'http://me:hidden@') },
  });
  expect(gone).toMatchObject({ status: 1, stdout: expect.stringContaining('FAILED') });
  expect(gone.stdout + gone.stderr).not.toContain('hidden');
});

describe('a hook that hangs', () => {
  test('is killed with its children at its timeout, after the backup was made and reported', async () => {
    const receiver = await startReceiver(['hang']);
    const { root, env, at, kg } = setUp({
      onSuccess: {
        command: ['sh', '-c', 'sleep 600 & echo $! > child; echo $$ > parent; echo waiting; wait'],
        url: receiver.url,
      },
      timeout: 6,
    });
    const child = spawn(kgPath, ['diag', 'backup'], {
      cwd: root,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [output, warned] = ['', ''];
    child.stdout.on('data', (text) => (output += text));
    child.stderr.on('data', (text) => (warned += text));
    await until(() => existsSync(at('parent')) && receiver.got.length > 0, 'the hooks');
    const pids = ['parent', 'child'].map((name) => Number(readFileSync(at(name), 'utf8')));
    await until(() => output.includes('checksum'), 'the result');
    expect(pids.map(isAlive)).toEqual([true, true]);
    expect(child.exitCode).toBe(null);
    const [status] = await once(child, 'close');
    expect(status).toBe(0);
    expect(pids.map(isAlive)).toEqual([false, false]);
    expect(warned).toMatch(
      /`backup\.hooks\.onSuccess\.command` failed: was killed after 6 s: waiting \[KG_WARN_HOOK\]/,
    );
    expect(warned).toMatch(/`backup\.hooks\.onSuccess\.url` failed: .* did not answer in time/);
    const { hookFailures } = resultOf((await kg('diag', 'backup', '--status', '--json')).stdout);
    expect(hookFailures.map(({ hook }) => hook).sort()).toEqual([
      'backup.hooks.onSuccess.command',
      'backup.hooks.onSuccess.url',
    ]);
    expect((await kg('diag', 'backup', '--status')).stdout).toMatch(
      /hook +backup\.hooks\.onSuccess\.command failed .* ago: was killed after 6 s/,
    );
  });

  test('does not delay the schedule of the service, and ends with it', async () => {
    const receiver = await startReceiver();
    const project = setUp(
      {
        onSuccess: {
          command: ['sh', '-c', 'ls -l /proc/$$/fd > descriptors; echo $$ >> parents; sleep 600'],
          url: receiver.url,
        },
        timeout: 300,
      },
      { enabled: true, schedule: '* * * * * *' },
    );
    const service = foreground(project);
    await until(
      () => (service.output.match(/made /g) ?? []).length >= 4,
      'four backups beside a hook that hangs',
    );
    // The hook still hangs, far longer than the four backups took.
    const [pid] = readFileSync(project.at('parents'), 'utf8').split('\n').map(Number);
    expect(isAlive(pid)).toBe(true);
    // The service holds a lock in this directory.
    const descriptors = readFileSync(project.at('descriptors'), 'utf8');
    expect(descriptors).toContain('pipe:');
    expect(descriptors).not.toContain('.kg/');
    const stopped = Date.now();
    service.child.kill('SIGTERM');
    expect(await once(service.child, 'exit')).toEqual([0, null]);
    expect(Date.now() - stopped).toBeLessThan(10_000);
    await until(() => !isAlive(pid), 'the end of the command');
    expect(service.output).toMatch(
      /the hook `backup\.hooks\.onSuccess\.url` ran in \d+ ms: answered 200/,
    );
    expect(service.output).toMatch(
      /hooks that had not finished were ended because the service stopped/,
    );
    const [{ headers }] = receiver.got;
    expect(headers['kg-event']).toBe('backup.succeeded');
  });
});

test('the service reports failures with the time of the retry, and logs and records a failed hook', async () => {
  const receiver = await startReceiver([200]);
  const project = setUp(
    {
      onFailure: { url: receiver.url, command: ['false'] },
      heartbeatStart: `${receiver.url}/start`,
    },
    { enabled: true, schedule: '* * * * * *', retryDelay: 86_400_000 },
  );
  rmSync(project.database);
  const service = foreground(project);
  await until(() => receiver.got.some(({ method }) => method === 'POST'), 'an event');
  await until(
    () =>
      service.output.includes('hook `backup.hooks.onFailure.command` failed: ended with status 1'),
    'the log',
  );
  const { headers, body } = receiver.got.find(({ method }) => method === 'POST');
  const event = JSON.parse(body);
  expect(event).toMatchObject({
    event: 'backup.failed',
    trigger: 'schedule',
    error: { code: 'KG_NO_DATABASE' },
  });
  expect(Date.parse(event.retryAt)).toBeGreaterThan(Date.now());
  expect([headers['kg-event'], receiver.got[0].path]).toEqual(['backup.failed', '/start']);
  await until(
    async () =>
      /hook +backup\.hooks\.onFailure\.command failed/.test(
        (await project.kg('serve', '--status')).stdout,
      ),
    'the status',
  );
});

describe('kg config', () => {
  test('keeps hooks in a separate file for its owner, and shows no secret of a URL', async () => {
    const { kg, file, root } = setUp();
    const config = readFileSync(path.join(root, '.kg/config.json'), 'utf8');
    const set = await kg(
      'config',
      'set',
      'backup.hooks.heartbeat',
      'https://me:hidden@hc.example:8443/hidden',
    );
    expect(set).toMatchObject({
      status: 0,
      stdout: 'backup.hooks.heartbeat = https://hc.example:8443/… in .kg/hooks.json\n',
    });
    await kg(
      'config',
      'set',
      'backup.hooks.onFailure.command',
      '["mail", "-s", "no backup", "ops"]',
    );
    await kg('config', 'set', 'backup.hooks.onSuccess.command', '/usr/bin/true');
    expect(readFileSync(path.join(root, '.kg/config.json'), 'utf8')).toBe(config);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual({
      backup: {
        hooks: {
          heartbeat: 'https://me:hidden@hc.example:8443/hidden',
          onFailure: { command: ['mail', '-s', 'no backup', 'ops'] },
          onSuccess: { command: ['/usr/bin/true'] },
        },
      },
    });
    expect((await kg('config', 'show')).stdout).toContain(
      'backup.hooks.heartbeat = https://hc.example:8443/…\n',
    );
    expect((await kg('config', 'show', '--json')).stdout).not.toContain('hidden');
    expect((await kg('config', 'get', 'backup.hooks.heartbeat')).stdout).toBe(
      'https://me:hidden@hc.example:8443/hidden\n',
    );
    await kg('config', 'unset', 'backup.hooks.onFailure.command');
    expect((await kg('config', 'get', 'backup.hooks.onFailure.command')).status).toBe(1);
    expect(await kg('config', 'set', 'backup.hooks.onFailure.command', 'mail ops')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('not a program, or a list'),
    });
  });

  test('test-hooks runs every hook now, shows each response, and fails if a hook fails', async () => {
    const receiver = await startReceiver();
    const { kg, file } = setUp({
      heartbeat: `${receiver.url}/beat`,
      heartbeatFailure: `${receiver.url}/beat/fail`,
      onFailure: { url: receiver.url },
      onSuccess: { command: ['sh', '-c', 'echo told of $KG_BACKUP_EVENT'] },
    });
    const good = await kg('config', 'test-hooks');
    expect([good.status, good.stderr]).toEqual([0, '']);
    expect(good.stdout.replace(/ \(\d+ ms\)/g, '')).toBe(
      'backup.hooks.onFailure.url      ok: answered 200\n' +
        'backup.hooks.heartbeatFailure   ok: answered 200\n' +
        'backup.hooks.onSuccess.command  ok: told of backup.test\n' +
        'backup.hooks.heartbeat          ok: answered 200\n',
    );
    expect(receiver.got.at(-1).path).toBe('/beat');
    expect(JSON.parse(receiver.got[0].body)).toMatchObject({ event: 'backup.test' });
    writeFileSync(
      file,
      JSON.stringify({
        backup: { hooks: { onFailure: { command: ['false'] }, heartbeat: `${receiver.url}/beat` } },
      }),
    );
    const bad = await kg('config', 'test-hooks', '--json');
    expect(bad.status).toBe(1);
    expect(resultOf(bad.stdout).hooks).toMatchObject([
      { hook: 'backup.hooks.onFailure.command', ok: false, said: 'ended with status 1' },
      { ok: true },
    ]);
    expect((await kg('diag', 'backup', '--status')).stdout).toMatch(
      /hook +backup\.hooks\.onFailure\.command failed/,
    );
    rmSync(file);
    expect(await kg('config', 'test-hooks')).toMatchObject({
      status: 1,
      stdout: expect.stringContaining('No hook is set'),
    });
  });

  test('forgets the failure of a hook that is set again or removed', async () => {
    const { kg, file } = setUp({
      onFailure: { command: ['false'] },
      onSuccess: { command: ['false'] },
      heartbeat: await deadUrl(),
      retries: 0,
    });
    const failures = async () =>
      resultOf((await kg('diag', 'backup', '--status', '--json')).stdout)
        .hookFailures.map(({ hook }) => hook)
        .sort();
    await kg('config', 'test-hooks');
    expect(await failures()).toEqual([
      'backup.hooks.heartbeat',
      'backup.hooks.onFailure.command',
      'backup.hooks.onSuccess.command',
    ]);
    await kg('config', 'set', 'backup.hooks.onFailure.command', '/usr/bin/true');
    await kg('config', 'unset', 'backup.hooks.onSuccess.command');
    expect(await failures()).toEqual(['backup.hooks.heartbeat']);
    // A user who removed the file by hand can clear the failure this way.
    rmSync(file);
    await kg('config', 'unset', 'backup.hooks.heartbeat');
    expect(await failures()).toEqual([]);
  });
});

describe('a hooks file', () => {
  test('that other users may write is not used, and a message says so', async () => {
    const { backup, kg, file, at } = setUp({ onSuccess: { command: recordingCommand('success') } });
    chmodSync(file, 0o666);
    const { status, stderr } = await backup();
    expect(status).toBe(0);
    expect(stderr).toMatch(
      /^warning: No hook runs: .*hooks\.json is not used: other users can write to it\. .*chmod 600 .*\[KG_WARN_HOOK\]\n$/,
    );
    expect(existsSync(at('success.json'))).toBe(false);
    expect(await kg('config', 'test-hooks')).toMatchObject({ status: 1 });
    expect(await kg('config', 'set', 'backup.hooks.timeout', '5')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('[KG_HOOKS_INVALID]'),
    });
  });

  test.skipIf(process.getuid() !== 0)('of another user is not used', async () => {
    const { backup, file, at } = setUp({ onSuccess: { command: recordingCommand('success') } });
    chownSync(file, 12_345, 12_345);
    expect(await backup()).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(
        /No hook runs: .*it belongs to user 12345, but this process runs as user 0.*\[KG_WARN_HOOK\]/,
      ),
    });
    chownSync(file, 0, 0);
    expect(existsSync(at('success.json'))).toBe(false);
    expect((await backup()).stderr).toBe('');
    expect(existsSync(at('success.json'))).toBe(true);
  });

  test('reports invalid parts and still uses the others', async () => {
    const { backup, at, file } = setUp({
      onSuccess: { command: recordingCommand('success'), url: 'ftp://hidden:x@host/' },
      onFail: {},
      timeout: 0,
    });
    const { status, stderr } = await backup();
    expect(status).toBe(0);
    expect(stderr).toMatch(/`backup\.hooks\.onFail` in \.kg\/hooks\.json is not a hook setting/);
    expect(stderr).toMatch(
      /`backup\.hooks\.onSuccess\.url` is "ftp:\/\/host\/…", not an http or https URL; it was ignored/,
    );
    expect(stderr).toMatch(
      /`backup\.hooks\.timeout` is 0, not a whole number from 1 to 300; it was ignored/,
    );
    expect(stderr).not.toContain('hidden');
    expect(existsSync(at('success.json'))).toBe(true);
    writeFileSync(file, '{"backup":');
    expect((await backup()).stderr).toMatch(
      /No hook runs: .*hooks\.json is not a valid configuration/,
    );
  });

  test('is in no backup, and no restore or undo touches it', async () => {
    const { root, kg, backup, file, at } = setUp({ heartbeat: 'http://127.0.0.1:9/', retries: 0 });
    const { path: archive } = resultOf((await backup('--json')).stdout);
    expect(run('tar', ['-tzf', archive])).not.toContain('hooks');
    const written = readFileSync(file, 'utf8');
    for (const how of [[], ['--config-only'], ['--db-only']]) {
      expect(await kg('diag', 'restore', '--file', archive, '--yes', ...how)).toMatchObject({
        status: 0,
      });
      expect(readFileSync(file, 'utf8')).toBe(written);
    }
    expect(await kg('diag', 'restore', '--undo')).toMatchObject({ status: 0 });
    expect([readFileSync(file, 'utf8'), statSync(file).mode & 0o777]).toEqual([written, 0o600]);
    const target = path.join(temporaryDirectory(), 'target');
    mkdirSync(path.join(target, '.kg'), { recursive: true });
    expect(await kg('diag', 'restore', '--file', archive, '--target', target)).toMatchObject({
      status: 0,
    });
    expect(readdirSync(path.join(target, '.kg'))).not.toContain('hooks.json');
    expect(fingerprint(root).some((line) => line.startsWith('.kg/hooks.json '))).toBe(true);
    expect(existsSync(at('.kg/restore-undo'))).toBe(true);
  });

  test('is separate from the configuration: hooks that a restore brings back there are ignored', async () => {
    const { root, backup, at } = setUp();
    const hooks = { onSuccess: { command: ['touch', 'harmed'] } };
    writeFileSync(
      path.join(root, '.kg/config.json'),
      JSON.stringify({ backup: { dir: '../backups', hooks } }),
    );
    expect(await backup()).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(/`backup\.hooks` is ignored here.*\[KG_WARN_CONFIG\]/),
    });
    expect(existsSync(at('harmed'))).toBe(false);
  });
});
