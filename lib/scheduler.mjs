// Runs backups on a schedule. The addon (src/schedule) plans the times and receives the current
// time as an argument. This file has the timers, the runs and the callbacks.

import { AbortError, KgError, invalidOption } from './errors.mjs';
import { ASYNC_DISPOSE, INSPECT, show } from './host-symbols.mjs';
import { assertFunction, callBack, planSchedule } from './native.mjs';

/**
 * The longest wait before the time is read again. The clock may have been set, or the machine may
 * have slept.
 */
const MAX_WAIT_MS = 60_000;
const DESCRIPTION = 'Scheduled backup';
/**
 * The method with which a scheduler asks its manager about the next run. `Symbol.for` makes it the
 * same symbol in every realm.
 */
export const NEXT_RUN = Symbol.for('@weavelogic/knowledge-graph-agent.nextRun');

/** The method with which a scheduler has its manager copy to the second store of the settings. */
export const COPY_CONFIGURED = Symbol.for('@weavelogic/knowledge-graph-agent.copyConfigured');

/**
 * The methods with which a scheduler tells its manager that it is at work, and that it is not. The
 * manager stops those at work when it is closed.
 */
export const ATTACH = Symbol.for('@weavelogic/knowledge-graph-agent.attach');
export const DETACH = Symbol.for('@weavelogic/knowledge-graph-agent.detach');

/** Reads the global timers at each call, so that a test can replace them. */
const SYSTEM_CLOCK = {
  now: () => Date.now(),
  setTimeout: (callback, ms) => setTimeout(callback, ms),
  clearTimeout: (timer) => clearTimeout(timer),
};

function assertClock(clock) {
  for (const name of ['now', 'setTimeout', 'clearTimeout']) {
    if (typeof clock?.[name] !== 'function') {
      throw invalidOption(
        `\`clock\` has no function \`${name}\``,
        'Give `now`, `setTimeout` and `clearTimeout`, or leave it out',
      );
    }
  }
}

function assertManager(manager) {
  if (typeof manager?.createBackup !== 'function' || typeof manager[NEXT_RUN] !== 'function') {
    throw invalidOption(
      '`backupManager` is not a BackupManager',
      'Give what createBackupManager() returns',
    );
  }
}

export class BackupScheduler {
  #manager;
  #options;
  #clock;
  #keepAlive;
  #onSuccess;
  #onFailure;
  /** The state of the plan; null while the scheduler is stopped. */
  #state = null;
  /** Whether the time of the last backup is not known yet, so that no time counts as missed. */
  #isLooking = false;
  #started = false;
  /** The number of the current start. Work that an earlier start began must not continue. */
  #generation = 0;
  #timer;
  #nextRun = null;
  /** The run in progress: { promise, controller, trigger, startedAt }. */
  #run = null;
  /** A run that waits for the end of the one in progress. */
  #queued = null;
  /** A failure that has not been reported because a retry is pending. */
  #untold = null;
  #lastRun = null;
  /** The copy in progress: { promise, controller, again }. */
  #copying = null;
  #counts = { runs: 0, failures: 0, consecutiveFailures: 0 };

  /** @param {Partial<import('../index.js').BackupSchedulerOptions>} options */
  constructor(options = {}) {
    if (options === null || typeof options !== 'object' || Array.isArray(options)) {
      throw invalidOption(
        'BackupScheduler takes an object of options',
        'See index.d.ts for the options',
      );
    }
    const {
      backupManager,
      clock = SYSTEM_CLOCK,
      keepAlive = false,
      onSuccess,
      onFailure,
      ...rest
    } = options;
    assertManager(backupManager);
    assertClock(clock);
    assertFunction('onSuccess', onSuccess);
    assertFunction('onFailure', onFailure);
    if (typeof keepAlive !== 'boolean')
      throw invalidOption('`keepAlive` is neither true nor false', 'Give one of them');
    if (typeof rest.schedule !== 'string') {
      throw invalidOption(
        'A scheduler needs a `schedule`',
        'Give a cron expression, for example `0 2 * * *` for daily at 2:00',
      );
    }
    this.#manager = backupManager;
    this.#clock = clock;
    this.#keepAlive = keepAlive;
    this.#onSuccess = onSuccess;
    this.#onFailure = onFailure;
    this.#options = { ...rest, seed: backupManager.projectRoot };
    this.#plan('tick');
  }

  start() {
    if (this.#started) return;
    this.#manager[ATTACH]?.(this);
    this.#started = true;
    this.#generation += 1;
    this.#isLooking = true;
    this.#nextRun = this.#plan('tick').action.until ?? null;
    // The timer exists when this call returns, so that tests can advance their clock.
    this.#tick();
    this.#begin(this.#generation);
  }

  async stop({ abort = false } = {}) {
    this.#started = false;
    this.#generation += 1;
    this.#state = null;
    this.#nextRun = null;
    this.#clearTimer();
    const reason = new Error('The scheduler was stopped');
    this.#queued?.cancel(reason);
    this.#queued = null;
    if (abort) this.#run?.controller.abort(reason);
    await this.#run?.promise.catch(() => {});
    if (abort) this.#copying?.controller.abort(reason);
    await this.#copying?.promise;
    // The pending retry will not happen.
    if (!this.#started) this.#tellFailure();
    this.#detachIfIdle();
  }

  async [ASYNC_DISPOSE]() {
    await this.stop();
  }

  async runNow() {
    if (!this.#run) return this.#perform('manual');
    this.#queued ??= this.#queue();
    return this.#queued.promise;
  }

  nextRun() {
    return this.#nextRun === null ? null : new Date(this.#nextRun);
  }

  status() {
    return {
      started: this.#started,
      running: this.#run && { trigger: this.#run.trigger, startedAt: this.#run.startedAt },
      nextRun: this.#nextRun,
      lastRun: this.#lastRun,
      ...this.#counts,
    };
  }

  [INSPECT](depth, options, inspect) {
    const { schedule, type = 'full' } = this.#options;
    const { started, running, nextRun, lastRun, ...counts } = this.status();
    return show(this, depth, options, inspect, {
      projectRoot: this.#manager.projectRoot,
      schedule,
      type,
      started,
      running: running?.trigger ?? false,
      nextRun: nextRun === null ? null : new Date(nextRun),
      ...counts,
    });
  }

  /** Looks for the time of the last backup, and then follows the plan. */
  async #begin(generation) {
    // An error of the store or the project makes the first run fail too, which reports it.
    const { last } = await this.#next().catch(() => ({}));
    if (generation !== this.#generation) return;
    // If a run began in the meantime, it makes up for missed times.
    if (this.#isLooking) {
      this.#state = null;
      this.#state = this.#plan('tick', last ?? undefined).state;
      this.#isLooking = false;
    }
    this.#tick();
  }

  /** Returns the type of the next run and the time of the last one. */
  #next() {
    const { type = 'full', fullBackupInterval, timezone } = this.#options;
    return this.#manager[NEXT_RUN]({ type, fullBackupInterval, timezone, now: this.#clock.now() });
  }

  /** Returns the plan after `event`. */
  #plan(event, last) {
    return planSchedule({
      options: this.#options,
      event,
      state: this.#state ?? undefined,
      last,
      now: this.#clock.now(),
    });
  }

  #tick() {
    // The end of a run calls this function again.
    if (!this.#started || this.#run) return;
    const { state, action } = this.#plan('tick');
    this.#state = state;
    if (action.action !== 'run') {
      this.#nextRun = action.until ?? null;
      if (action.until !== undefined) this.#wait(action.until - this.#clock.now());
      return;
    }
    this.#isLooking = false;
    // The pending retry would have come later than this run.
    if (action.trigger !== 'retry') this.#tellFailure();
    this.#perform(action.trigger).catch(() => {});
    this.#nextRun = this.#plan('succeeded').action.until ?? null;
  }

  #wait(ms) {
    this.#clearTimer();
    const onTime = () => {
      this.#timer = undefined;
      // No caller could catch an error that is thrown here.
      callBack('clock', () => this.#tick());
    };
    this.#timer = this.#clock.setTimeout(onTime, Math.min(Math.max(ms, 0), MAX_WAIT_MS));
    if (!this.#keepAlive) this.#timer?.unref?.();
  }

  #clearTimer() {
    if (this.#timer !== undefined) this.#clock.clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** Begins a run. Resolves to its backup. */
  #perform(trigger) {
    const run = { trigger, startedAt: this.#clock.now(), controller: new AbortController() };
    this.#manager[ATTACH]?.(this, run.controller.signal);
    this.#clearTimer();
    this.#run = run;
    run.promise = this.#backUp(run.controller.signal).then(
      (backup) => {
        this.#ended(run, { backup });
        return backup;
      },
      (error) => {
        this.#ended(run, { error });
        throw error;
      },
    );
    return run.promise;
  }

  async #backUp(signal) {
    // If this fails, createBackup fails too and reports the error.
    const { type } = await this.#next().catch(() => ({ type: this.#options.type }));
    return this.#manager.createBackup({ type, description: DESCRIPTION, signal });
  }

  /**
   * @param {any} run
   * @param {{ backup?: import('../index.js').CreatedBackup, error?: Error }} outcome
   */
  #ended(run, { backup, error }) {
    this.#run = null;
    const durationMs = this.#clock.now() - run.startedAt;
    this.#lastRun = { trigger: run.trigger, startedAt: run.startedAt, durationMs, backup, error };
    this.#counts.runs += 1;
    if (backup) this.#succeeded(backup);
    else if (!run.controller.signal.aborted) this.#failed(run, error);
    const queued = this.#queued;
    this.#queued = null;
    if (queued) queued.start();
    else this.#tick();
    this.#detachIfIdle();
  }

  #detachIfIdle() {
    if (!this.#started && !this.#run && !this.#copying) this.#manager[DETACH]?.(this);
  }

  #succeeded(backup) {
    this.#counts.consecutiveFailures = 0;
    this.#untold = null;
    if (this.#started) this.#state = this.#plan('succeeded').state;
    this.#isLooking = false;
    if (this.#onSuccess) callBack('onSuccess', this.#onSuccess, backup);
    this.#copy();
  }

  /**
   * Copies new backups to the second store of the settings. A copy can take hours, so it does not
   * delay the next run. The next backup repeats a copy that failed.
   */
  #copy() {
    if (this.#copying) {
      this.#copying.again = true;
      return;
    }
    const controller = new AbortController();
    const copying = { controller, again: false, promise: null };
    this.#copying = copying;
    const copied = Promise.resolve(this.#manager[COPY_CONFIGURED]?.({ signal: controller.signal }));
    copying.promise = copied.then(
      (result) => {
        const [first] = result?.failed ?? [];
        this.#copyEnded(copying, first && new KgError(first.error));
      },
      (error) => this.#copyEnded(copying, error),
    );
  }

  #copyEnded({ controller, again }, error) {
    this.#copying = null;
    if (controller.signal.aborted) return;
    if (error && this.#onFailure) callBack('onFailure', this.#onFailure, error);
    if (again) this.#copy();
    this.#detachIfIdle();
  }

  #failed(run, error) {
    this.#counts.failures += 1;
    this.#counts.consecutiveFailures += 1;
    let retryAt = null;
    // A run on request reports its failure immediately; its caller can try again.
    if (this.#started && run.trigger !== 'manual') {
      const plan = this.#plan('failed');
      this.#state = plan.state;
      retryAt = plan.retryAt;
    }
    this.#untold = { error };
    if (retryAt === null) this.#tellFailure();
  }

  #tellFailure() {
    const untold = this.#untold;
    this.#untold = null;
    if (untold && this.#onFailure) callBack('onFailure', this.#onFailure, untold.error);
  }

  #queue() {
    let settle;
    const promise = new Promise((resolve, reject) => {
      settle = { resolve, reject };
    });
    return {
      promise,
      start: () => settle.resolve(this.#perform('manual')),
      cancel: (reason) => settle.reject(new AbortError(reason)),
    };
  }
}
