'use strict';

// Runs backups on a schedule. When, is planned by the addon (src/schedule), which is told the time; here are the timers, the runs and
// what is told about them.

const { AbortError, invalidOption } = require('./errors.js');
const { assertFunction, callBack, planSchedule } = require('./native.js');

/** The time is looked at again this often: a clock may be set, a machine may have slept. */
const MAX_WAIT_MS = 60_000;
const DESCRIPTION = 'Scheduled backup';
/** How a scheduler asks its manager what the next run makes; the same in every realm. */
const NEXT_RUN = Symbol.for('@weavelogic/knowledge-graph-agent.nextRun');

/** Asked at each call, so that a test may replace the global timers. */
const SYSTEM_CLOCK = {
  now: () => Date.now(),
  setTimeout: (callback, ms) => setTimeout(callback, ms),
  clearTimeout: (timer) => clearTimeout(timer),
};

function assertClock(clock) {
  for (const name of ['now', 'setTimeout', 'clearTimeout']) {
    if (typeof clock?.[name] !== 'function') {
      throw invalidOption(`\`clock\` has no function \`${name}\``, 'Give `now`, `setTimeout` and `clearTimeout`, or leave it out');
    }
  }
}

function assertManager(manager) {
  if (typeof manager?.createBackup !== 'function' || typeof manager[NEXT_RUN] !== 'function') {
    throw invalidOption('`backupManager` is not a BackupManager', 'Give what createBackupManager() returns');
  }
}

class BackupScheduler {
  #manager;
  #options;
  #clock;
  #keepAlive;
  #onSuccess;
  #onFailure;
  /** What the plan remembers; null until it has looked at what exists. */
  #state = null;
  #started = false;
  /** Of the present start: what an earlier one began must not go on. */
  #generation = 0;
  #timer;
  #nextRun = null;
  /** The run in progress: { promise, controller, trigger, startedAt }. */
  #run = null;
  /** A run that waits for the one in progress. */
  #queued = null;
  /** The failure whose retry is waited for. */
  #untold = null;
  #lastRun = null;
  #counts = { runs: 0, failures: 0, consecutiveFailures: 0 };

  constructor(options = {}) {
    if (options === null || typeof options !== 'object' || Array.isArray(options)) {
      throw invalidOption('BackupScheduler takes an object of options', 'See index.d.ts for the options');
    }
    const { backupManager, clock = SYSTEM_CLOCK, keepAlive = false, onSuccess, onFailure, ...rest } = options;
    assertManager(backupManager);
    assertClock(clock);
    assertFunction('onSuccess', onSuccess);
    assertFunction('onFailure', onFailure);
    if (typeof keepAlive !== 'boolean') throw invalidOption('`keepAlive` is neither true nor false', 'Give one of them');
    if (typeof rest.schedule !== 'string') {
      throw invalidOption('A scheduler needs a `schedule`', 'Give a cron expression, for example `0 2 * * *` for daily at 2:00');
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
    this.#started = true;
    this.#generation += 1;
    this.#nextRun = this.#plan('tick').action.until ?? null;
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
    // Its retry does not happen any more.
    if (!this.#started) this.#tellFailure();
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

  /** Looks when the last backup was made, and takes up the plan. */
  async #begin(generation) {
    // What is wrong with the store or project will fail the first run, and be told then.
    const { last } = await this.#next().catch(() => ({}));
    if (generation !== this.#generation) return;
    // A run on request that ended meanwhile has done what it could for the past.
    this.#state ??= this.#plan('tick', last ?? undefined).state;
    this.#tick();
  }

  /** What the next run makes, and when the last one was. */
  #next() {
    const { type = 'full', fullBackupInterval, timezone } = this.#options;
    return this.#manager[NEXT_RUN]({ type, fullBackupInterval, timezone, now: this.#clock.now() });
  }

  /** What the plan says after `event`. */
  #plan(event, last) {
    return planSchedule({ options: this.#options, event, state: this.#state ?? undefined, last, now: this.#clock.now() });
  }

  #tick() {
    // The end of a run looks at the time again.
    if (!this.#started || this.#run) return;
    const { state, action } = this.#plan('tick');
    this.#state = state;
    if (action.action !== 'run') {
      this.#nextRun = action.until ?? null;
      if (action.until !== undefined) this.#wait(action.until - this.#clock.now());
      return;
    }
    // Its retry would have come later than this run.
    if (action.trigger !== 'retry') this.#tellFailure();
    this.#perform(action.trigger).catch(() => {});
    this.#nextRun = this.#plan('succeeded').action.until ?? null;
  }

  #wait(ms) {
    this.#clearTimer();
    const onTime = () => {
      this.#timer = undefined;
      // Nobody could catch what is thrown here.
      callBack('clock', () => this.#tick());
    };
    this.#timer = this.#clock.setTimeout(onTime, Math.min(Math.max(ms, 0), MAX_WAIT_MS));
    if (!this.#keepAlive) this.#timer?.unref?.();
  }

  #clearTimer() {
    if (this.#timer !== undefined) this.#clock.clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** Begins a run; resolves to its backup. */
  #perform(trigger) {
    this.#clearTimer();
    const run = { trigger, startedAt: this.#clock.now(), controller: new AbortController() };
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
    // Where this fails, createBackup fails too, and says so to whom it must.
    const { type } = await this.#next().catch(() => ({ type: this.#options.type }));
    return this.#manager.createBackup({ type, description: DESCRIPTION, signal });
  }

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
  }

  #succeeded(backup) {
    this.#counts.consecutiveFailures = 0;
    this.#untold = null;
    if (this.#started) this.#state = this.#plan('succeeded').state;
    if (this.#onSuccess) callBack('onSuccess', this.#onSuccess, backup);
  }

  #failed(run, error) {
    this.#counts.failures += 1;
    this.#counts.consecutiveFailures += 1;
    let retryAt = null;
    // Whoever asked for a run is told at once, and may ask again.
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

module.exports = { BackupScheduler, NEXT_RUN };
