// The worker process: the errors of its client if it cannot start, dies or is another release. It
// never outlives its host.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test } from 'vitest';

import { kgPath, repository, run, until } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';

/** Makes a shell script that replaces `kg`. */
function script(text) {
  const file = path.join(temporaryDirectory(), 'kg');
  writeFileSync(file, `#!/bin/sh\n${text}\n`);
  chmodSync(file, 0o755);
  return file;
}

const GREETING = (protocol, release) => {
  const json = JSON.stringify({ protocol, release });
  return `printf 'J\\${json.length.toString(8)}\\0\\0\\0%s' '${json}'`;
};
/** The protocol of this release. */
const PROTOCOL = Number(
  /PROTOCOL: u32 = (\d+)/.exec(
    readFileSync(path.join(repository, 'src/worker/protocol.rs'), 'utf8'),
  )[1],
);
const { version } = JSON.parse(readFileSync(path.join(repository, 'package.json'), 'utf8'));

const broken = {
  'does not exist': ['KG_READER_START', () => '/no/such/kg', /could not be started/],
  'is not executable': [
    'KG_READER_START',
    () => path.join(repository, 'README.md'),
    /could not be started/,
  ],
  'ends at once': [
    'KG_READER_START',
    () => script('echo out of memory >&2; exit 3'),
    /out of memory/,
  ],
  'is an older kg': [
    'KG_READER_VERSION',
    () => script('echo "error: unrecognized subcommand"'),
    /does not answer/,
  ],
  'is another release': [
    'KG_READER_VERSION',
    () => script(`${GREETING(PROTOCOL, '0.0.1')}; cat > /dev/null`),
    /release 0\.0\.1/,
  ],
  'speaks another protocol': [
    'KG_READER_VERSION',
    () => script(`${GREETING(9, version)}; cat > /dev/null`),
    /release/,
  ],
  'dies during work': [
    'KG_READER_DIED',
    () => script(`${GREETING(PROTOCOL, version)}; head -c 5 > /dev/null; echo killed >&2; exit 9`),
    /killed/,
  ],
  'sends invalid messages': [
    'KG_READER_PROTOCOL',
    () => script(`${GREETING(PROTOCOL, version)}; head -c 5 > /dev/null; echo hello world`),
    /unexpected response/,
  ],
};
for (const [what, [code, kg, message]] of Object.entries(broken)) {
  test(`a worker that ${what} is ${code}, and the backup leaves no files`, async () => {
    const { root, backups } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups, kgPath: kg() });
    await expect(manager.createBackup()).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    // The client first asks the worker for the configuration, so it did not even make the
    // directory.
    expect(existsSync(backups)).toBe(false);
  });
}

/** Returns the process ids of the workers that process `parent` started. */
function workersOf(parent) {
  return readdirSync('/proc')
    .filter((id) => /^\d+$/.test(id))
    .filter((id) => {
      try {
        const [, ppid] = readFileSync(`/proc/${id}/stat`, 'utf8').split(') ')[1].split(' ');
        return (
          Number(ppid) === parent &&
          readFileSync(`/proc/${id}/cmdline`, 'utf8').includes('__reader')
        );
      } catch {
        return false;
      }
    });
}

function startHost(project, config = {}, signal = '') {
  const host = `
    const { createBackupManager } = require(process.argv[1]);
    const manager = createBackupManager({ projectRoot: process.argv[2], backupDir: process.argv[3], compressionLevel: 9, ...${JSON.stringify(config)} });
    manager.createBackup({ ${signal} onProgress: () => console.log('working') }).then(() => console.log('done'), (error) => console.log(error.code));`;
  const child = spawn(process.execPath, ['-e', host, repository, project.root, project.backups], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  onTestFinished(() => child.kill('SIGKILL'));
  return child;
}

test('a worker ends with its host, and the next run removes the leftovers of both', async () => {
  const project = makeProject({ nodes: 60_000 });
  const host = startHost(project);
  await once(host.stdout, 'data');
  const readers = workersOf(host.pid);
  expect(readers).toHaveLength(1);
  host.kill('SIGKILL');
  await once(host, 'exit');
  await until(() => !existsSync(`/proc/${readers[0]}`), 'the end of the reader');

  const left = readdirSync(project.backups).filter((name) => name !== '.kg-store.lock');
  expect(left.length).toBeGreaterThan(0);
  const manager = createBackupManager({ projectRoot: project.root, backupDir: project.backups });
  expect(await manager.listBackups()).toEqual([]);
  const { path: file } = await manager.createBackup({ type: 'snapshot' });
  const name = path.basename(file);
  expect(readdirSync(project.backups).sort()).toEqual([
    '.kg-store.lock',
    name,
    `${name}.manifest.json`,
    'latest.tar.gz',
  ]);
});

describe('a key in a pipe that no process writes to', () => {
  const makeProjectWithPipe = () => {
    const project = makeProject({ nodes: 5 });
    const passphraseFile = path.join(path.dirname(project.root), 'key');
    run('mkfifo', [passphraseFile]);
    return { project, config: { encryption: { passphraseFile } } };
  };
  /** Returns the worker that blocks in its open of the pipe (fifo(7)), if there is one. */
  const findBlockedWorker = (host) =>
    workersOf(host.pid).find((reader) => {
      try {
        return readdirSync(`/proc/${reader}/task`).some(
          (thread) =>
            readFileSync(`/proc/${reader}/task/${thread}/wchan`, 'utf8') === 'wait_for_partner',
        );
      } catch {
        return false;
      }
    });

  test('blocks the call until it is aborted', async () => {
    const { project, config } = makeProjectWithPipe();
    const host = startHost(
      project,
      config,
      'signal: (() => { const c = new AbortController(); process.stdin.once("data", () => c.abort()); return c.signal; })(),',
    );
    let output = '';
    host.stdout.on('data', (text) => (output += text));
    const reader = await until(() => findBlockedWorker(host), 'a reader that waits');
    host.stdin.write('abort');
    await until(() => output.includes('ABORT_ERR'), 'the end of the call');
    await until(() => !existsSync(`/proc/${reader}`), 'the end of the reader');
  });

  test('does not block the worker once the host has ended', async () => {
    const { project, config } = makeProjectWithPipe();
    const host = startHost(project, config);
    const reader = await until(() => findBlockedWorker(host), 'a reader that waits');
    host.kill('SIGKILL');
    await until(() => !existsSync(`/proc/${reader}`), 'the end of the reader');
  });
});

test('a worker that is killed at work causes an error of the host and leaves no files', async () => {
  const project = makeProject({ nodes: 60_000 });
  const host = startHost(project);
  await once(host.stdout, 'data');
  for (const reader of workersOf(host.pid)) process.kill(Number(reader), 'SIGKILL');
  let output = '';
  host.stdout.on('data', (text) => (output += text));
  await once(host, 'exit');
  expect(output).toContain('KG_READER_DIED');
  expect(readdirSync(project.backups)).toEqual(['.kg-store.lock']);
});

test('a worker thread that is terminated ends its call', async () => {
  const { Worker } = await import('node:worker_threads');
  const project = makeProject({ nodes: 60_000 });
  const code = `
    const { workerData, parentPort } = require('node:worker_threads');
    const { createBackupManager } = require(workerData.repository);
    const manager = createBackupManager({ projectRoot: workerData.root, backupDir: workerData.backups, compressionLevel: 9 });
    manager.createBackup({ onProgress: () => parentPort.postMessage('working') });`;
  const worker = new Worker(code, { eval: true, workerData: { repository, ...project } });
  await once(worker, 'message');
  await worker.terminate();
  await until(() => workersOf(process.pid).length === 0, 'the end of the reader');
  await until(() => readdirSync(project.backups).join() === '.kg-store.lock', 'an empty store');
});

test('the worker has its name as the only argument and receives nothing through the environment', async () => {
  const project = makeProject({ nodes: 60_000 });
  const manager = createBackupManager({ projectRoot: project.root, backupDir: project.backups });
  let seen;
  await manager.createBackup({
    onProgress: () => {
      const [reader] = workersOf(process.pid);
      if (reader)
        seen ??= ['cmdline', 'environ'].map((name) =>
          readFileSync(`/proc/${reader}/${name}`, 'utf8'),
        );
    },
  });
  expect(seen[0].split('\0').filter(Boolean)).toEqual([kgPath, '__reader']);
  const own = Object.entries(process.env).map(([name, value]) => `${name}=${value}`);
  expect(own).toEqual(expect.arrayContaining(seen[1].split('\0').filter(Boolean)));
});
