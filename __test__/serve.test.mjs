// The service of `kg serve`: real processes, real backups and a schedule of seconds.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import net from 'node:net';
import path from 'node:path';

import { afterEach, describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, run, until } from './support/processes.mjs';
import { fillDatabase, makeProject } from './support/project.mjs';
import { isRoot } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

const started = new Set();
afterEach(async () => {
  for (const root of started) await kg(['serve', '--stop'], { cwd: root });
  started.clear();
});

/** Makes a project with these backup settings. The end of a test stops every service of it. */
function setUp(settings = { enabled: true, schedule: '* * * * * *' }, options) {
  const project = makeProject(options);
  const configure = (backup) =>
    writeFileSync(
      path.join(project.root, '.kg/config.json'),
      JSON.stringify({
        database: { path: '.kg/knowledge.db' },
        backup: { listen: 'off', ...backup },
      }),
    );
  configure({ dir: '../backups', ...settings });
  started.add(project.root);
  const archives = () =>
    existsSync(project.backups)
      ? readdirSync(project.backups).filter((name) => /^kg-backup.*\.gz$/.test(name))
      : [];
  const log = () => readFileSync(path.join(project.root, '.kg/logs/backup-service.log'), 'utf8');
  return { ...project, archives, configure, log, kg: (...args) => kg(args, { cwd: project.root }) };
}

const json = async (promise) => resultOf((await promise).stdout);
const isAlive = (pid) =>
  existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));

/** Starts the service in the foreground, as a service manager does. */
function foreground(root, stderr = 'inherit') {
  const child = spawn(kgPath, ['serve', '--foreground'], {
    cwd: root,
    stdio: ['ignore', 'pipe', stderr],
  });
  onTestFinished(() => child.kill('SIGKILL'));
  const service = { child, output: '', complained: '' };
  child.stderr?.on('data', (text) => (service.complained += text));
  child.stdout.on('data', (text) => (service.output += text));
  return service;
}

describe('kg serve', () => {
  test('--status shows the next run like `kg diag status`, in the configured time zone', async () => {
    for (const [timezone, next] of [
      ['Asia/Tokyo', /next +\d{4}-\d\d-\d\d 02:30:00 Asia\/Tokyo$/m],
      ['UTC', /next +\d{4}-\d\d-\d\d 02:30:00 UTC$/m],
    ]) {
      const { kg } = setUp({ enabled: true, schedule: '30 2 * * *', timezone });
      const [line] = (await kg('diag', 'backup', '--status')).stdout.match(next);
      expect((await kg('serve', '--status')).stdout).toMatch(next);
      expect((await kg('serve', '--status')).stdout).toContain(line);
    }
  });

  test('--all makes backups on the schedule until --stop, which waits for the service to end', async () => {
    const { kg, archives, root, log } = setUp();
    const begun = await kg('serve', '--all');
    expect([begun.status, begun.stderr]).toEqual([0, '']);
    expect(begun.stdout).toMatch(
      /^The service runs: process \d+ on .*\n {2}answers {3}not over HTTP\n {2}log .*backup-service\.log\n$/,
    );
    const pid = Number(begun.stdout.match(/process (\d+)/)[1]);
    await until(() => archives().length >= 3, 'three backups');
    expect(await json(kg('serve', '--status', '--json'))).toMatchObject({
      running: true,
      service: { pid },
      lastRun: { trigger: 'schedule' },
    });
    expect((await kg('diag', 'backup', '--status')).stdout).toMatch(
      new RegExp(`the service runs as process ${pid}`),
    );
    const stopped = await kg('serve', '--stop');
    expect(stopped).toMatchObject({
      status: 0,
      stdout: expect.stringContaining('The service was stopped'),
    });
    expect(isAlive(pid)).toBe(false);
    const kept = archives();
    for (const archive of kept) {
      expect(
        await kg('diag', 'backup', '--verify', path.join(root, '../backups', archive)),
      ).toMatchObject({ status: 0 });
    }
    expect(archives()).toEqual(kept);
    expect(log()).toMatch(/started as process[^]*made .*kg-backup-[^]*stopped\n$/);
    expect(await kg('serve', '--status')).toMatchObject({
      status: 1,
      stdout: expect.stringContaining('No service'),
    });
  });

  test('detaches from its terminal and from the process that started it', async () => {
    const { kg } = setUp();
    const { service } = await json(kg('serve', '--all', '--json'));
    const [, , , , session] = readFileSync(`/proc/${service.pid}/stat`, 'utf8')
      .replace(/\(.*\)/, 'kg')
      .split(' ')
      .slice(1);
    expect(Number(session)).toBe(service.pid);
  });

  test('--stop succeeds if no service runs, and --all shows the needed settings if none enables backups', async () => {
    const { kg } = setUp({});
    expect(await kg('serve', '--stop')).toMatchObject({
      status: 0,
      stdout: 'No service of this project runs\n',
      stderr: '',
    });
    const { status, stdout } = await kg('serve', '--all');
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^Nothing to serve[^]*kg config set backup\.schedule "0 2 \* \* \*"[^]*kg config set backup\.enabled true[^]*kg serve --all\n$/,
    );
    expect(await json(kg('serve', '--status', '--json'))).toMatchObject({
      running: false,
      service: null,
    });
  });

  test('runs once per project: a second start names the first service', async () => {
    const { kg, root } = setUp({ enabled: true, schedule: '0 2 * * *' });
    const all = await Promise.all([
      kg('serve', '--all'),
      kg('serve', '--all'),
      kg('serve', '--all'),
    ]);
    const pids = all.map(({ stdout }) => stdout.match(/process (\d+)/)[1]);
    expect(new Set(pids).size).toBe(1);
    expect(all.map(({ status }) => status)).toEqual([0, 0, 0]);
    const { child, output } = foreground(root);
    const [status] = await once(child, 'exit');
    expect(status).toBe(0);
    expect(output + (await kg('serve', '--all')).stdout).toContain(
      `The service is already running: process ${pids[0]}`,
    );
  });

  test('applies changed settings, and waits if they enable no backups', async () => {
    const { archives, configure, root } = setUp({ enabled: false, schedule: '0 2 * * *' });
    const service = foreground(root);
    await until(() => service.output.includes('no backups are made'), 'the first settings');
    configure({
      dir: '../backups',
      enabled: true,
      schedule: '* * * * * *',
      type: 'snapshot',
      maxBackups: 2,
    });
    await until(
      () => archives().length === 2 && (service.output.match(/made /g) ?? []).length >= 3,
      'backups by the new settings',
    );
    configure({ dir: '../backups', enabled: false });
    await until(
      () => service.output.match(/no backups are made/g).length === 2,
      'the last settings',
    );
    service.child.kill('SIGTERM');
    expect(await once(service.child, 'exit')).toEqual([0, null]);
  });

  test('retries a failed backup, reports it, and continues when it can', async () => {
    const { archives, root, kg, database } = setUp({
      enabled: true,
      schedule: '*/2 * * * * *',
      retryDelay: 100,
    });
    rmSync(database);
    const service = foreground(root);
    await until(
      () => /a backup failed, next attempt at .*KG_NO_DATABASE/.test(service.output),
      'a failure',
    );
    // The service writes the log before the history.
    await until(
      async () =>
        /health .*the last run failed: .*\[KG_NO_DATABASE\]/.test(
          (await kg('diag', 'backup', '--status')).stdout,
        ),
      'the failure in --status',
    );
    fillDatabase(database);
    await until(() => archives().length > 0, 'a backup');
    await until(
      async () => (await json(kg('diag', 'backup', '--status', '--json'))).health.ok,
      'health',
    );
  });

  test('ends soon after SIGTERM during a backup, and leaves no files of that backup', async () => {
    const { archives, backups, root } = setUp(
      { enabled: true, schedule: '* * * * * *', compressionLevel: 9 },
      { nodes: 60_000 },
    );
    const service = foreground(root);
    await until(
      () =>
        existsSync(backups) && readdirSync(backups).some((name) => name.startsWith('.kg-partial-')),
      'a partial archive',
    );
    const at = Date.now();
    service.child.kill('SIGTERM');
    expect(await once(service.child, 'exit')).toEqual([0, null]);
    expect(Date.now() - at).toBeLessThan(10_000);
    expect(
      readdirSync(backups).filter(
        (name) => name.startsWith('.kg-partial-') || name.startsWith('.kg-snapshot-'),
      ),
    ).toEqual([]);
    for (const archive of archives())
      run(kgPath, ['diag', 'backup', '--verify', path.join(backups, archive)]);
  });

  test('ends within ten seconds even if hooks, their children, a client or a lock holder hang', async () => {
    const { archives, configure, root } = setUp({ enabled: true, schedule: '* * * * * *' });
    const silent = net.createServer().listen(0, '127.0.0.1');
    await once(silent, 'listening');
    const hooks = {
      onSuccess: {
        command: ['sh', '-c', 'setsid sleep 30 & echo $! > left; exec sleep 600'],
        url: `http://127.0.0.1:${silent.address().port}/`,
      },
      timeout: 300,
    };
    writeFileSync(path.join(root, '.kg/hooks.json'), JSON.stringify({ backup: { hooks } }), {
      mode: 0o600,
    });
    configure({ dir: '../backups', enabled: true, schedule: '* * * * * *', listen: 0 });
    const service = foreground(root);
    await until(
      () => existsSync(path.join(root, 'left')) && archives().length > 1,
      'hooks that hang',
    );
    const client = net.connect(
      Number(service.output.match(/answers on http:\/\/127\.0\.0\.1:(\d+)/)[1]),
      '127.0.0.1',
    );
    client.on('error', () => {}).write('GET /');
    const holder = spawn(
      'flock',
      [
        '--no-fork',
        path.join(root, '.kg/cache/backup-runs.lock'),
        'sh',
        '-c',
        'echo held; exec sleep 60',
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    onTestFinished(() => {
      holder.kill('SIGKILL');
      client.destroy();
      silent.close();
    });
    await once(holder.stdout, 'data');
    const at = Date.now();
    service.child.kill('SIGTERM');
    expect(await once(service.child, 'exit')).toEqual([0, null]);
    expect(Date.now() - at).toBeLessThan(10_000);
    expect(service.output).toMatch(
      /hooks that had not finished were ended because the service stopped[^]*stopped\n$/,
    );
    process.kill(Number(readFileSync(path.join(root, 'left'), 'utf8')));
  });

  test('is not overdue while it makes the scheduled run, and is overdue if no service makes it', async () => {
    const { backups, kg, root } = setUp({ enabled: true, schedule: '0 0 * * *' });
    await kg('diag', 'backup', '--quiet');
    const history = path.join(root, '.kg/cache/backup-runs.json');
    const status = async () => json(kg('diag', 'backup', '--status', '--json'));
    expect(await status()).toMatchObject({ health: { ok: true }, inProgress: false });
    // Makes the newest backup three days old.
    const [name] = readdirSync(backups).filter((file) => file.endsWith('.manifest.json'));
    const manifest = JSON.parse(readFileSync(path.join(backups, name), 'utf8'));
    manifest.timestamp = new Date(Date.parse(manifest.timestamp) - 3 * 86_400_000).toISOString();
    writeFileSync(path.join(backups, name), JSON.stringify(manifest));
    const known = JSON.parse(readFileSync(history, 'utf8'));
    known.runs = [];
    writeFileSync(history, JSON.stringify(known));
    expect((await status()).health.messages).toEqual([expect.stringContaining('a run is overdue')]);
    // Simulates a run of hours: another process locks the store, and the run waits for it.
    const holder = spawn(
      'flock',
      ['--no-fork', path.join(backups, '.kg-store.lock'), 'sh', '-c', 'echo held; exec sleep 60'],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    onTestFinished(() => holder.kill('SIGKILL'));
    await once(holder.stdout, 'data');
    expect((await status()).health.messages).toEqual([expect.stringContaining('a run is overdue')]);
    const service = foreground(root);
    await until(() => service.output.includes('does not answer over HTTP'), 'its start');
    expect(await status()).toMatchObject({
      health: { ok: true, messages: [] },
      inProgress: true,
      service: { pid: service.child.pid },
    });
    expect((await kg('diag', 'backup', '--status')).stdout).toMatch(
      /^ {2}now {7}a backup is being made, or waits for another writer$/m,
    );
  });

  test('that is killed during a backup is followed by one that cleans up and makes the backup', async () => {
    const { archives, backups, root, kg, configure } = setUp(
      { enabled: true, schedule: '* * * * * *', compressionLevel: 9 },
      { nodes: 60_000 },
    );
    const service = foreground(root);
    await until(
      () =>
        existsSync(backups) && readdirSync(backups).some((name) => name.startsWith('.kg-partial-')),
      'a partial archive',
    );
    service.child.kill('SIGKILL');
    await once(service.child, 'exit');
    expect(await json(kg('serve', '--status', '--json'))).toMatchObject({ running: false });
    for (const name of archives()) rmSync(path.join(backups, name));
    // The killed run is older than one period of this schedule, so only a missed run can cause a
    // backup now.
    const history = path.join(root, '.kg/cache/backup-runs.json');
    const known = JSON.parse(readFileSync(history, 'utf8'));
    known.state.covered -= 3 * 86_400_000;
    writeFileSync(history, JSON.stringify(known));
    configure({ dir: '../backups', enabled: true, schedule: '0 0 * * *', compressionLevel: 1 });
    const next = foreground(root);
    await until(
      () => archives().length === 1 && next.output.includes('made '),
      'the backup that was missed',
    );
    expect(readdirSync(backups).filter((name) => name.startsWith('.kg-partial-'))).toEqual([]);
    await until(
      () => JSON.parse(readFileSync(history, 'utf8')).runs.at(-1)?.trigger === 'catch-up',
      'what is remembered of it',
    );
    expect(await kg('diag', 'backup', '--verify', path.join(backups, archives()[0]))).toMatchObject(
      { status: 0 },
    );
  });

  test('fails with the reason if its project is removed, moved or replaced, and writes nothing there', async () => {
    const losses = {
      removed: (root) => rmSync(path.join(root, '.kg'), { recursive: true }),
      moved: (root) => renameSync(root, `${root}-moved`),
      replaced: (root) => {
        renameSync(path.join(root, '.kg'), path.join(root, '.kg-old'));
        mkdirSync(path.join(root, '.kg'));
      },
    };
    for (const lose of Object.values(losses)) {
      const { root } = setUp({ enabled: true, schedule: '0 2 * * *' });
      const service = foreground(root, 'pipe');
      await until(
        () => service.output.includes('does not answer over HTTP'),
        'all that its start writes',
      );
      lose(root);
      const left = () => existsSync(path.join(root, '.kg')) && readdirSync(path.join(root, '.kg'));
      const before = left();
      expect(await once(service.child, 'close')).toEqual([1, null]);
      expect(service.output).toMatch(
        /error: stopped: .* is no longer the project that this service was started for.*\[KG_SERVICE\]\n$/,
      );
      expect(service.complained).toMatch(/is no longer the project[^]*start the service again/);
      expect(left()).toEqual(before);
    }
  });

  test.skipIf(process.getuid() !== 0)(
    'as the first process of a container reaps orphaned processes',
    async () => {
      const { root, archives, kg } = setUp({ enabled: true, schedule: '* * * * * *' });
      // Each run leaves a process whose parent has ended.
      await kg(
        'config',
        'set',
        'backup.hooks.onSuccess.command',
        '["sh", "-c", "sleep 0.05 & exec true"]',
      );
      const container = spawn(
        'unshare',
        ['--pid', '--fork', '--mount-proc', kgPath, 'serve', '--foreground'],
        { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] },
      );
      onTestFinished(() => container.kill('SIGKILL'));
      let output = '';
      container.stdout.on('data', (text) => (output += text));
      const children = (pid) =>
        run('sh', ['-c', `cat /proc/${pid}/task/*/children`])
          .trim()
          .split(/\s+/)
          .filter(Boolean);
      await until(
        () => archives().length >= 2 && /the hook .* ran[^]*the hook .* ran/.test(output),
        'two runs and their hooks',
      );
      const [first] = children(container.pid);
      const states = () =>
        children(first).map((pid) =>
          readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/.*\) (.).*/s, '$1'),
        );
      await until(
        () => states().length === 1 && states()[0] !== 'Z',
        'the service as the only child',
      );
      process.kill(Number(first), 'SIGTERM');
      expect(await once(container, 'close')).toEqual([0, null]);
      expect(output).toMatch(/stopped\n$/);
    },
  );

  test('leaves none of its files in a backup', async () => {
    const { kg, root, archives } = setUp();
    await kg('serve', '--all');
    await until(() => archives().length >= 2, 'two backups');
    await kg('serve', '--stop');
    const entries = run('tar', ['-tzf', path.join(root, '../backups/latest.tar.gz')]);
    expect(entries).not.toMatch(/backup-service|backup-runs|logs/);
    expect(statSync(path.join(root, '.kg/backup-service.lock')).size).toBeGreaterThan(0);
  });
});

describe('the procedures of the guide', () => {
  test('Level 1 works as written, with and without a schedule', () => {
    for (const settings of [{ enabled: true, schedule: '0 2 * * *' }, {}]) {
      const { root } = setUp(settings);
      const output = run(
        'sh',
        [
          '-ec',
          `PATH="${path.dirname(kgPath)}:$PATH"
        kg diag backup --output ./backups
        kg serve --all
        kg serve --stop
        kg diag restore --file ./backups/latest.tar.gz --yes
        kg serve --all
        kg serve --stop
        kg diag backup`,
        ],
        { cwd: root },
      );
      expect(output).toContain(settings.enabled ? 'The service was stopped' : 'Nothing to serve');
    }
  });
});

describe('--stop ends the process that holds the lock, and no other', () => {
  /** Starts a process that locks the file of the service and records the id of another process. */
  async function startLockHolder(root, pid, program) {
    const script = `
import fcntl, json, socket, sys
f = open(sys.argv[1], "a+"); fcntl.flock(f, fcntl.LOCK_EX)
f.truncate(0); f.write(json.dumps({"pid": int(sys.argv[2]), "host": socket.gethostname(), "since": 0})); f.flush()
print("ready", flush=True); sys.stdin.read()`;
    const child = spawn(
      program,
      ['-c', script, path.join(root, '.kg/backup-service.lock'), String(pid)],
      { stdio: ['pipe', 'pipe', 'inherit'] },
    );
    onTestFinished(() => child.kill('SIGKILL'));
    await once(child.stdout, 'data');
    return child;
  }

  test('a lock file that names another process: both survive, and the message names the lock holder', async () => {
    const { root, kg } = setUp();
    const victim = spawn('sleep', ['1000']);
    onTestFinished(() => victim.kill('SIGKILL'));
    const holder = await startLockHolder(root, victim.pid, 'python3');
    const stopped = await kg('serve', '--stop');
    const lockedMessage = expect.stringMatching(
      new RegExp(
        `is locked by process ${holder.pid} \\(python3\\), which is not a service .*KG_SERVICE`,
      ),
    );
    expect(stopped).toMatchObject({ status: 1, stderr: lockedMessage });
    expect([isAlive(victim.pid), isAlive(holder.pid)]).toEqual([true, true]);
    // The other commands must not mistake it for the service either.
    for (const how of ['--status', '--all'])
      expect(await kg('serve', how)).toMatchObject({ status: 1, stderr: lockedMessage });
    const health = await kg('diag', 'health');
    expect(health.stdout).toContain('KG_ISSUE_SERVICE_UNKNOWN');
    expect(health.stdout).toContain(`process ${holder.pid} (python3)`);
  });

  test('a hard-linked copy shares the lock of the original service, and --stop does not end that', async () => {
    const { root, kg } = setUp();
    await kg('serve', '--all');
    const { service } = await json(kg('serve', '--status', '--json'));
    const copy = path.join(root, '../copy');
    run('cp', ['-al', root, copy]);
    for (const args of [['--stop'], ['--status'], ['--all']]) {
      const { status, stderr } = spawnSync(kgPath, ['serve', ...args], {
        cwd: copy,
        encoding: 'utf8',
      });
      expect([args, status, stderr]).toEqual([args, 4, expect.stringContaining('KG_UNSAFE_FILE')]);
    }
    const health = spawnSync(kgPath, ['diag', 'health'], { cwd: copy, encoding: 'utf8' });
    expect(health.stdout).toContain('KG_ISSUE_SERVICE_UNKNOWN');
    expect(isAlive(service.pid)).toBe(true);
    rmSync(copy, { recursive: true });
    expect(await kg('serve', '--stop')).toMatchObject({ status: 0, stderr: '' });
  });

  test.skipIf(!isRoot)(
    'a service in another PID namespace is ended by its id in this namespace',
    async () => {
      const { root, kg, archives } = setUp();
      const inside = spawn(
        'unshare',
        ['-p', '-f', '--mount-proc', kgPath, 'serve', '--foreground'],
        { cwd: root, stdio: 'ignore' },
      );
      onTestFinished(() => inside.kill('SIGKILL'));
      const ended = once(inside, 'exit');
      await until(() => archives().length >= 1, 'a backup');
      const { service } = await json(kg('serve', '--status', '--json'));
      expect((await kg('serve', '--status')).stdout).toMatch(
        new RegExp(`process \\d+, which calls itself process ${service.pid} on `),
      );
      expect(await kg('serve', '--stop')).toMatchObject({
        status: 0,
        stdout: expect.stringContaining('The service was stopped'),
      });
      await ended;
      expect(await kg('serve', '--status')).toMatchObject({ status: 1 });
    },
  );

  test.skipIf(!isRoot)(
    'a service that a container cannot see continues, and a message says so',
    async () => {
      const { root, kg } = setUp();
      await kg('serve', '--all');
      const { service } = await json(kg('serve', '--status', '--json'));
      const within = (...args) =>
        spawnSync('unshare', ['-p', '-f', '--mount-proc', kgPath, ...args], {
          cwd: root,
          encoding: 'utf8',
        });
      expect(within('serve', '--stop')).toMatchObject({
        status: 1,
        stderr: expect.stringContaining('in another container or on another machine'),
      });
      expect(within('serve', '--status').stdout).toContain('cannot be seen from here');
      expect(within('diag', 'health').stdout).toContain('cannot be seen from here');
      expect(isAlive(service.pid)).toBe(true);
    },
  );
});
