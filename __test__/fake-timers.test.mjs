// Schedulers under the fake timers of test frameworks, as docs/guide/schedule.md shows.

import { readFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, onTestFinished, test, vi } from 'vitest';

import { repository, run } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';

/** A run takes real time. */
const toHaveRun = (scheduler, runs) =>
  vi.waitFor(() => expect(scheduler.status().runs).toBe(runs), { timeout: 60_000 });

function setUp() {
  const project = makeProject();
  const manager = createBackupManager({ projectRoot: project.root, backupDir: project.backups });
  vi.useFakeTimers({ now: new Date('2024-01-15T01:59:00Z') });
  onTestFinished(() => vi.useRealTimers());
  return { ...project, manager };
}

test('a run begins when the fake time comes, at once after the start', async () => {
  const { manager } = setUp();
  const onSuccess = vi.fn();
  const scheduler = manager.scheduler({ schedule: '0 2 * * *', timezone: 'UTC', onSuccess });
  scheduler.start();
  expect(vi.getTimerCount()).toBe(1);
  vi.advanceTimersByTime(59_999);
  expect(scheduler.status()).toMatchObject({ running: null, runs: 0 });
  vi.advanceTimersByTime(1);
  const startedAt = Date.parse('2024-01-15T02:00:00Z');
  expect(scheduler.status().running).toEqual({ trigger: 'schedule', startedAt });
  await scheduler.stop();
  expect(scheduler.status()).toMatchObject({ runs: 1, failures: 0 });
  expect(onSuccess).toHaveBeenCalledOnce();
  expect(await manager.listBackups()).toHaveLength(1);
  expect(vi.getTimerCount()).toBe(0);
});

test('the next day has the next run', async () => {
  const { manager } = setUp();
  const options = { schedule: '0 2 * * *', timezone: 'UTC', type: 'snapshot', catchUp: false };
  const scheduler = manager.scheduler(options);
  scheduler.start();
  for (let runs = 1; runs <= 3; runs += 1) {
    vi.advanceTimersByTime(24 * 60 * 60 * 1000);
    await toHaveRun(scheduler, runs);
  }
  expect(scheduler.nextRun()).toEqual(new Date('2024-01-18T02:00:00Z'));
  await scheduler.stop();
  expect(await manager.listBackups()).toHaveLength(3);
});

test('a retry waits for the fake time too', async () => {
  const { root } = setUp();
  const missing = createBackupManager({ projectRoot: path.join(root, 'missing') });
  const onFailure = vi.fn();
  const options = { schedule: '0 2 * * *', timezone: 'UTC', retries: 1, retryDelay: 5000 };
  const scheduler = missing.scheduler({ ...options, onFailure });
  scheduler.start();
  vi.advanceTimersByTime(60_000);
  await toHaveRun(scheduler, 1);
  expect(onFailure).not.toHaveBeenCalled();
  vi.advanceTimersByTime(5000);
  await toHaveRun(scheduler, 2);
  expect(onFailure).toHaveBeenCalledExactlyOnceWith(
    expect.objectContaining({ code: 'KG_NO_PROJECT' }),
  );
  await scheduler.stop();
});

test('the mock timers of node:test work in the same way, as the guide shows', () => {
  const { root, backups } = makeProject();
  const guide = readFileSync(path.join(repository, 'docs/guide/schedule.md'), 'utf8');
  const [, example] = /^```js\n(import \{ mock \}[^]*?)^```$/m.exec(guide);
  const program = `
    ${example}
    console.log(scheduler.status().runs, (await manager.listBackups()).length);`;
  const configured = program.replace(
    'createBackupManager()',
    `createBackupManager(${JSON.stringify({ projectRoot: root, backupDir: backups })})`,
  );
  const args = ['--no-warnings', '--input-type=module', '-e', configured];
  expect(run(process.execPath, args, { cwd: repository })).toBe('1 1\n');
});
