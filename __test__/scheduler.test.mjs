// BackupScheduler with real backups and a clock that the tests control.

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import path from 'node:path';

import { BackupScheduler, createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test, vi } from 'vitest';

import { FakeClock } from './support/clock.mjs';
import { repository, until } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/**
 * Makes a project, its manager and a scheduler that records its callbacks. Its own clock starts at
 * half past an hour.
 */
function setUp({ config = {}, start = nextHour(Date.now()) - 30 * MINUTE, ...options } = {}) {
  const project = makeProject();
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    checkSource: false,
    ...config,
  });
  const clock = new FakeClock(start);
  const callbacks = { successes: [], failures: [] };
  const scheduler = new BackupScheduler({
    backupManager: manager,
    schedule: '0 * * * *',
    timezone: 'UTC',
    clock,
    onSuccess: (backup) => callbacks.successes.push(backup),
    onFailure: (error) => callbacks.failures.push(error),
    ...options,
  });
  onTestFinished(() => scheduler.stop({ abort: true }));
  const settled = (runs) =>
    until(() => scheduler.status().runs === runs && !scheduler.status().running, `run ${runs}`);
  return {
    ...project,
    manager,
    clock,
    callbacks,
    scheduler,
    settled,
    begin: () => begin(scheduler, clock),
  };
}

/** Starts the scheduler and waits until it has looked for existing backups. */
async function begin(scheduler, clock) {
  const asked = clock.asked.length;
  scheduler.start();
  await until(
    () =>
      clock.asked.length > asked + 1 || scheduler.status().running || scheduler.status().runs > 0,
    'the second timer, or a run',
  );
}

const nextHour = (time) => Math.floor(time / HOUR + 1) * HOUR;

describe('a started scheduler', () => {
  test('makes a backup at each scheduled time', async () => {
    const { scheduler, clock, settled, callbacks, manager, begin } = setUp();
    await begin();
    const first = nextHour(clock.time);
    expect(scheduler.nextRun()).toEqual(new Date(first));
    clock.advance(first - clock.time - 1);
    expect(scheduler.status()).toMatchObject({ started: true, running: null, runs: 0 });
    clock.advance(1);
    expect(scheduler.status().running).toMatchObject({ trigger: 'schedule', startedAt: first });
    expect(scheduler.nextRun()).toEqual(new Date(first + HOUR));
    await settled(1);
    clock.advance(HOUR);
    await settled(2);
    expect(callbacks.failures).toEqual([]);
    const ids = (await manager.listBackups()).map((backup) => backup.id);
    expect(callbacks.successes.map((backup) => backup.id).reverse()).toEqual(ids);
    expect(callbacks.successes[0]).toMatchObject({ type: 'full', description: 'Scheduled backup' });
    expect(scheduler.status().lastRun).toMatchObject({
      trigger: 'schedule',
      startedAt: first + HOUR,
      backup: { id: ids[0] },
    });
  });

  test('never waits longer than a minute, so long waits, sleep and clock changes do no harm', async () => {
    const { scheduler, clock, settled, begin } = setUp({ schedule: '0 0 1 1 *' });
    await begin();
    clock.advance(3 * HOUR);
    expect(clock.asked.length).toBeGreaterThan(170);
    expect(Math.max(...clock.asked)).toBeLessThanOrEqual(MINUTE);
    clock.jump(400 * DAY);
    expect(scheduler.status().running).toMatchObject({ trigger: 'catch-up' });
    await settled(1);
    clock.advance(DAY);
    expect(scheduler.status().runs).toBe(1);
  });

  test('makes one backup for all runs missed during sleep, or none with catchUp off', async () => {
    for (const [catchUp, runs] of [
      [true, 1],
      [false, 0],
    ]) {
      const { scheduler, clock, settled, begin } = setUp({ catchUp });
      await begin();
      clock.jump(5 * HOUR);
      await settled(runs);
      expect(scheduler.nextRun()).toEqual(new Date(nextHour(clock.time)));
    }
  });

  test('makes one backup at its start for runs missed while no process ran', async () => {
    const { scheduler, clock, settled, manager, begin } = setUp();
    await manager.createBackup();
    clock.time += 2 * DAY;
    await begin();
    await settled(1);
    expect(scheduler.status().lastRun).toMatchObject({ trigger: 'catch-up' });
    expect(await manager.listBackups()).toHaveLength(2);
  });

  test('does so too if it takes minutes to find the last backup', async () => {
    const { scheduler, clock, settled, manager } = setUp();
    await manager.createBackup();
    clock.time += 2 * DAY;
    scheduler.start();
    clock.advance(10 * MINUTE);
    expect(scheduler.status()).toMatchObject({ running: null, runs: 0 });
    await settled(1);
    expect(scheduler.status().lastRun).toMatchObject({ trigger: 'catch-up' });
  });

  test('ignores backups of other projects in the same directory', async () => {
    const other = makeProject();
    const { clock, begin, scheduler, backups } = setUp();
    await createBackupManager({ projectRoot: other.root, backupDir: backups }).createBackup();
    clock.time += 2 * DAY;
    await begin();
    expect(scheduler.status()).toMatchObject({ running: null, runs: 0 });
  });

  test('makes incremental backups, and a full one at the configured interval of days', async () => {
    const { clock, settled, callbacks, begin } = setUp({
      schedule: '0 0 * * *',
      type: 'incremental',
      fullBackupInterval: 3,
    });
    await begin();
    for (let run = 1; run <= 4; run += 1) {
      clock.advance(DAY);
      await settled(run);
    }
    // Archives have real timestamps. The fake clock sees the first one as made today, and later
    // ones as a day older each day.
    expect(callbacks.successes.map((backup) => backup.type)).toEqual([
      'full',
      'incremental',
      'full',
      'full',
    ]);
  });

  test('makes a full backup if the chain is incomplete', async () => {
    const { clock, settled, callbacks, begin, manager } = setUp({ type: 'incremental' });
    await begin();
    for (let run = 1; run <= 3; run += 1) {
      if (run === 3) rmSync((await manager.listBackups()).at(-1).path);
      clock.advance(HOUR);
      await settled(run);
    }
    expect(callbacks.successes.map((backup) => backup.type)).toEqual([
      'full',
      'incremental',
      'full',
    ]);
  });

  test('waits in one run for another writer of the store, however many scheduled times pass', async () => {
    const { scheduler, clock, settled, manager, begin } = setUp({ schedule: '* * * * *' });
    await begin();
    let begun = false;
    await manager.createBackup({
      onProgress: () => {
        if (begun) return;
        begun = true;
        clock.advance(5 * MINUTE);
        expect(scheduler.status().running).not.toBeNull();
      },
    });
    expect(begun).toBe(true);
    await settled(1);
    expect(scheduler.status()).toMatchObject({ runs: 1, failures: 0 });
    expect(await manager.listBackups()).toHaveLength(2);
  });

  test('jitter delays each run by less than its limit, and nextRun() includes the delay', async () => {
    const { scheduler, clock, begin } = setUp({ jitter: 30 * MINUTE });
    await begin();
    const time = nextHour(clock.time);
    const next = scheduler.nextRun().getTime();
    expect(next).toBeGreaterThanOrEqual(time);
    expect(next).toBeLessThanOrEqual(time + 30 * MINUTE);
    clock.advance(next - clock.time - 1);
    expect(scheduler.status().running).toBeNull();
    clock.advance(1);
    expect(scheduler.status().running).not.toBeNull();
  });
});

describe('failures', () => {
  /** Makes backups fail until the test calls `mend`. */
  function setUpBroken(options) {
    const state = setUp({ retries: 2, retryDelay: MINUTE, ...options });
    const hidden = path.join(state.root, 'hidden');
    execFileSync('mv', [path.join(state.root, '.kg'), hidden]);
    return { ...state, mend: () => execFileSync('mv', [hidden, path.join(state.root, '.kg')]) };
  }

  test('are retried, each time after twice the delay, and then reported once', async () => {
    const { scheduler, clock, settled, callbacks, begin } = setUpBroken();
    await begin();
    clock.advance(HOUR);
    await settled(1);
    expect(callbacks.failures).toEqual([]);
    const delays = [];
    for (const run of [2, 3]) {
      delays.push(scheduler.nextRun().getTime() - clock.time);
      clock.advance(delays.at(-1));
      await settled(run);
    }
    expect(delays.map((delay) => Math.round(delay / MINUTE))).toEqual([1, 2]);
    expect(callbacks.failures).toMatchObject([{ code: 'KG_NO_PROJECT' }]);
    expect(scheduler.status()).toMatchObject({
      failures: 3,
      consecutiveFailures: 3,
      lastRun: { trigger: 'retry' },
    });
    expect(scheduler.nextRun().getTime() % HOUR).toBe(0);
  });

  test('are not reported if a retry succeeds', async () => {
    const { scheduler, clock, settled, callbacks, begin, mend } = setUpBroken();
    await begin();
    clock.advance(HOUR);
    await settled(1);
    mend();
    clock.advance(MINUTE);
    await settled(2);
    expect(callbacks).toMatchObject({ failures: [], successes: [{ type: 'full' }] });
    expect(scheduler.status().consecutiveFailures).toBe(0);
  });

  test('are reported if the next scheduled time precedes the retry, or if stop() prevents it', async () => {
    const { scheduler, clock, settled, callbacks, begin } = setUpBroken({ retryDelay: HOUR });
    await begin();
    clock.advance(HOUR);
    await settled(1);
    expect(callbacks.failures).toHaveLength(0);
    clock.advance(HOUR);
    await settled(2);
    expect(callbacks.failures).toHaveLength(1);
    await scheduler.stop();
    expect(callbacks.failures).toHaveLength(2);
  });

  test('of a callback become a process warning and change nothing else', async () => {
    const warnings = [];
    const onWarning = (warning) => warnings.push(warning);
    process.on('warning', onWarning);
    onTestFinished(() => process.off('warning', onWarning));
    const { clock, settled, begin } = setUp({
      onSuccess: () => {
        throw new Error('a defect of the host');
      },
    });
    await begin();
    for (const run of [1, 2]) {
      clock.advance(HOUR);
      await settled(run);
    }
    await until(() => warnings.length === 2, 'two warnings');
    expect(warnings[0]).toMatchObject({
      name: 'KgWarning',
      code: 'KG_CALLBACK_THREW',
      message: expect.stringContaining('a defect of the host'),
    });
  });
});

describe('runNow', () => {
  test('makes a backup at once, even before the start, and resolves to it', async () => {
    const { scheduler, callbacks, clock } = setUp();
    const backup = await scheduler.runNow();
    expect(callbacks.successes).toEqual([backup]);
    expect(clock.timers.size).toBe(0);
    expect(scheduler.status()).toMatchObject({
      started: false,
      runs: 1,
      lastRun: { trigger: 'manual' },
    });
  });

  test('never overlaps: a call waits for the current run, and waiting calls share the next one', async () => {
    const { scheduler, manager } = setUp();
    const backups = await Promise.all([scheduler.runNow(), scheduler.runNow(), scheduler.runNow()]);
    expect(backups[2]).toBe(backups[1]);
    expect(backups[1].id).not.toBe(backups[0].id);
    expect(await manager.listBackups()).toHaveLength(2);
  });

  test('rejects with the error, without a retry', async () => {
    const { scheduler, root, callbacks } = setUp();
    rmSync(path.join(root, '.kg'), { recursive: true });
    await expect(scheduler.runNow()).rejects.toMatchObject({ code: 'KG_NO_PROJECT' });
    expect(callbacks.failures).toHaveLength(1);
    expect(scheduler.status()).toMatchObject({ runs: 1 });
  });
});

describe('stop', () => {
  test('waits for the current run, and starts no other', async () => {
    const { scheduler, clock, callbacks, begin } = setUp();
    await begin();
    clock.advance(HOUR);
    await scheduler.stop();
    expect(callbacks.successes).toHaveLength(1);
    expect(clock.timers.size).toBe(0);
    clock.advance(DAY);
    expect(scheduler.status()).toMatchObject({
      started: false,
      running: null,
      runs: 1,
      nextRun: null,
    });
    expect(scheduler.nextRun()).toBeNull();
  });

  test('with abort ends the current run, which leaves no files and does not count as a failure', async () => {
    const { scheduler, clock, callbacks, begin, backups } = setUp();
    await begin();
    clock.advance(HOUR);
    const waiting = scheduler.runNow();
    const refused = expect(waiting).rejects.toMatchObject({ name: 'AbortError' });
    await scheduler.stop({ abort: true });
    await refused;
    expect(callbacks).toEqual({ successes: [], failures: [] });
    const left = existsSync(backups) ? readdirSync(backups) : [];
    expect(left.filter((name) => name !== '.kg-store.lock')).toEqual([]);
    expect(scheduler.status().lastRun.error).toMatchObject({ name: 'AbortError' });
  });

  test('right after start() prevents every run, and a scheduler can be started again', async () => {
    const { scheduler, clock, settled, begin } = setUp();
    scheduler.start();
    await scheduler.stop();
    await begin();
    clock.advance(HOUR);
    await settled(1);
  });
});

describe('an invalid option is refused at once', () => {
  const cases = [
    [{ schedule: '61 * * * *' }, /Field 1 .* the minute `61`/],
    [{ schedule: 'daily' }, /1 field instead of five or six/],
    [{ schedule: undefined }, /needs a `schedule`/],
    [{ timezone: 'Mars/Olympus' }, /`Mars\/Olympus` is not a time zone/],
    [{ type: 'partial' }, /unknown value `partial`/],
    [{ fullBackupInterval: 7 }, /requires the type `incremental`/],
    [{ type: 'incremental', fullBackupInterval: 0.5 }, /`fullBackupInterval` is 0.5/],
    [{ jitter: -1 }, /`jitter`/],
    [{ retries: 1.5 }, /`retries` is 1.5/],
    [{ retryDelay: Infinity }, /`retryDelay` is Infinity/],
    [{ keepAlive: 'yes' }, /`keepAlive`/],
    [{ clock: {} }, /`clock` has no function `now`/],
    [{ onSuccess: 'print' }, /`onSuccess` is not a function/],
    [{ backupManager: {} }, /`backupManager` is not a BackupManager/],
    [{ scedule: '* * * * *' }, /unknown option `scedule`/],
  ];
  for (const [options, message] of cases) {
    test(JSON.stringify(options), () => {
      let thrown;
      try {
        setUp(options);
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toMatchObject({
        name: 'KgError',
        code: 'KG_INVALID_OPTION',
        message: expect.stringMatching(message),
      });
    });
  }
});

describe('manager.scheduler()', () => {
  test('uses the configured schedule, and calls the configured callbacks once per backup', async () => {
    const [onSuccess, onFailure] = [vi.fn(), vi.fn()];
    const { root, backups } = makeProject();
    const manager = createBackupManager({
      projectRoot: root,
      backupDir: backups,
      schedule: '0 2 * * *',
      onSuccess,
      onFailure,
    });
    const scheduler = manager.scheduler({
      timezone: 'UTC',
      clock: new FakeClock(Date.UTC(2026, 0, 1)),
    });
    onTestFinished(() => scheduler.stop());
    scheduler.start();
    expect(scheduler.nextRun()).toEqual(new Date(Date.UTC(2026, 0, 1, 2)));
    const backup = await scheduler.runNow();
    expect(onSuccess.mock.calls).toEqual([[backup]]);
    expect(onFailure).not.toHaveBeenCalled();
  });

  test('requires a schedule, and the configuration refuses an invalid one', () => {
    const { root } = makeProject();
    expect(() => createBackupManager({ projectRoot: root }).scheduler()).toThrow(
      /needs a `schedule`/,
    );
    expect(() => createBackupManager({ projectRoot: root, schedule: '0 2 * *' })).toThrow(
      /4 fields/,
    );
  });
});

describe('a process', () => {
  const script = (keepAlive) => `
    const { BackupScheduler, createBackupManager } = require('@weavelogic/knowledge-graph-agent');
    const backupManager = createBackupManager({ projectRoot: process.argv[1] });
    const scheduler = new BackupScheduler({ backupManager, schedule: '0 2 * * *', keepAlive: ${keepAlive} });
    scheduler.start();
    console.log(scheduler.nextRun().toISOString());`;
  const start = (keepAlive, options) =>
    execFileSync(process.execPath, ['-e', script(keepAlive), makeProject().root], {
      cwd: repository,
      encoding: 'utf8',
      ...options,
    });

  test('ends although the scheduler of the guide is started', () => {
    expect(start(false, { timeout: 30_000 })).toMatch(/^\d{4}-.*Z\n$/);
  });

  test('continues with keepAlive', () => {
    expect(() => start(true, { timeout: 2000 })).toThrow(
      expect.objectContaining({ code: 'ETIMEDOUT' }),
    );
  });
});
