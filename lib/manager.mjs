import { invalidOption, managerClosed } from './errors.mjs';
import { guard } from './guard.mjs';
import { ASYNC_DISPOSE, INSPECT, show } from './host-symbols.mjs';
import { NEWEST_GOOD } from './integrity.mjs';
import { assertFunction, backupDir, call, callBack, checkConfig } from './native.mjs';
import { split, toAbsolute, toEncryption, toPath, withoutHostOptions } from './options.mjs';
import { toId, toLocation } from './references.mjs';
import { ATTACH, BackupScheduler, COPY_CONFIGURED, DETACH, NEXT_RUN } from './scheduler.mjs';

/** The options of the host's backup manager that a call takes; see docs/guide/migrate.md. */
const HOST_CONTENT = ['compress', 'includeDatabase', 'includeConfig', 'includeCache'];
const HOST_CONFIG = [...HOST_CONTENT, 'backupPath', 'enabled', 'interval'];

export class BackupManager {
  #config;
  #onSuccess;
  #onFailure;
  /** The calls in progress, as promises. */
  #running = new Set();
  /** The schedulers that are started, or that make or copy a backup; with the signal of the run. */
  #schedulers = new Map();
  #isClosed = false;

  /** @param {import('../index.js').BackupManagerConfig} config */
  constructor(config = {}) {
    if (typeof config === 'string') {
      throw invalidOption(
        'createBackupManager takes an object, not the path of a database',
        'Give `{ projectRoot }`: the directory that contains .kg/',
      );
    }
    const [given] = split('createBackupManager', config);
    const { onSuccess, onFailure, ...rest } = withoutHostOptions(
      'createBackupManager',
      given,
      HOST_CONFIG,
    );
    assertFunction('onSuccess', onSuccess);
    assertFunction('onFailure', onFailure);
    this.#onSuccess = onSuccess;
    this.#onFailure = onFailure;
    this.#config = {
      ...rest,
      projectRoot: toAbsolute(rest.projectRoot ?? process.cwd()),
      backupDir: rest.backupDir === undefined ? undefined : toAbsolute(rest.backupDir),
      encryption: toEncryption(rest.encryption),
    };
    checkConfig(this.#config);
  }

  get projectRoot() {
    return this.#config.projectRoot;
  }

  get backupDir() {
    return this.#config.backupDir ?? backupDir(this.#config);
  }

  async createBackup(options) {
    try {
      const [named, control] = split('createBackup', options);
      const given = withoutHostOptions('createBackup', named, HOST_CONTENT);
      if (given.basedOn !== undefined) given.basedOn = this.#id('basedOn', given.basedOn);
      const backup = await this.#call('createBackup', { options: given }, control);
      if (this.#onSuccess) callBack('onSuccess', this.#onSuccess, backup);
      return backup;
    } catch (error) {
      if (this.#onFailure) callBack('onFailure', this.#onFailure, error);
      throw error;
    }
  }

  async listBackups() {
    return this.#call('listBackups');
  }

  async getBackup(backup) {
    return this.#call('getBackup', { id: this.#id('getBackup', backup) });
  }

  async getLatestBackup() {
    return this.#call('getLatestBackup');
  }

  /** Returns the newest good backup of this project, or null. Freshness checks use it. */
  async [NEWEST_GOOD]() {
    return this.#call('newestGood');
  }

  async deleteBackup(backup, options) {
    const id = this.#id('deleteBackup', backup);
    const [given, control] = split('deleteBackup', options);
    return this.#call('deleteBackup', { id, options: given }, control);
  }

  async pin(backup, reason) {
    return this.#call('pin', { id: this.#id('pin', backup), reason });
  }

  async unpin(backup) {
    return this.#call('unpin', { id: this.#id('unpin', backup) });
  }

  async consolidate(backup, options) {
    const id = this.#id('consolidate', backup);
    const [given, control] = split('consolidate', options);
    return this.#call('consolidate', { id, options: given }, control);
  }

  async copyTo(store, options) {
    const target = toPath(store);
    if (typeof target !== 'string' || target === '') {
      throw invalidOption(
        `copyTo takes a directory or the URL of an object store, not ${String(store)}`,
        'See index.d.ts for the options',
      );
    }
    const [given, control] = split('copyTo', options);
    if (Array.isArray(given.backupIds))
      given.backupIds = given.backupIds.map((backup) => this.#id('backupIds', backup));
    return this.#call('copyTo', { target: toAbsolute(target), options: given }, control);
  }

  /**
   * Copies to the second store of the settings. Resolves to null if they name none. Schedulers use
   * it, also after their last run while the manager closes.
   */
  async [COPY_CONFIGURED](control) {
    return call({ call: 'copyConfigured', config: this.#config }, control);
  }

  async prune(options) {
    const [given, control] = split('prune', options);
    return this.#call('prune', { options: given }, control);
  }

  async verifyBackup(backup, options) {
    const { valid } = await this.#check('verifyBackup', [], backup, options);
    return valid;
  }

  async checkBackup(backup, options) {
    return this.#check('checkBackup', ['listFiles'], backup, options);
  }

  async #check(name, known, backup, options) {
    const reference = toLocation(name, backup);
    const [given, control] = split(name, options);
    const unknown = Object.keys(given).find((option) => !known.includes(option));
    if (unknown !== undefined)
      throw invalidOption(`${name} has no option \`${unknown}\``, 'See index.d.ts for the options');
    return this.#call('checkBackup', { backup: reference, ...given }, control);
  }

  /** @param {import('../index.js').RestoreOptions} options */
  async restore(options) {
    const [given, control] = split('restore', options);
    const { backupPath, backupId, targetDir } = given;
    const resolved = {
      ...given,
      backupPath: backupPath === undefined ? undefined : toLocation('backupPath', backupPath),
      backupId: backupId === undefined ? undefined : this.#id('backupId', backupId),
      targetDir: targetDir === undefined ? undefined : toAbsolute(targetDir),
    };
    return this.#call('restore', { options: resolved }, control);
  }

  /** @param {import('../index.js').UndoOptions} [options] */
  async undoRestore(options) {
    const [given, control] = split('undoRestore', options);
    const resolved = {
      ...given,
      targetDir: given.targetDir === undefined ? undefined : toAbsolute(given.targetDir),
    };
    return this.#call('undoRestore', { options: resolved }, control);
  }

  /** @param {import('../index.js').RehearseOptions} [options] */
  async rehearse(options) {
    const [given, control] = split('rehearse', options);
    const { backup, directory } = given;
    const resolved = {
      ...given,
      backup: backup === undefined ? undefined : toLocation('backup', backup),
      directory: directory === undefined ? undefined : toAbsolute(directory),
    };
    return this.#call('rehearse', { options: resolved }, control);
  }

  scheduler(options = {}) {
    const [given] = split('scheduler', options);
    return new BackupScheduler({ schedule: this.#config.schedule, ...given, backupManager: this });
  }

  /** Returns the type of the next run and the time of the last one. Schedulers use it. */
  async [NEXT_RUN](options) {
    return call({ call: 'nextRun', config: this.#config, options });
  }

  async guard(fn, options) {
    this.#assertOpen();
    const callbacks = { onSuccess: this.#onSuccess, onFailure: this.#onFailure };
    // This manager may be closed meanwhile. The guard restores nevertheless.
    const own = new BackupManager({ ...this.#config, ...callbacks });
    return this.#track(guard(own, fn, options));
  }

  async close() {
    this.#isClosed = true;
    await Promise.all([...this.#schedulers.keys()].map((scheduler) => scheduler.stop()));
    await Promise.allSettled(this.#running);
  }

  async [ASYNC_DISPOSE]() {
    await this.close();
  }

  /**
   * Keeps a scheduler, to stop it when the manager is closed. Throws if the manager is closed.
   * `signal` is that of a run, which ends as usual although the manager is closed meanwhile.
   */
  [ATTACH](scheduler, signal) {
    this.#assertOpen();
    this.#schedulers.set(scheduler, signal);
  }

  [DETACH](scheduler) {
    this.#schedulers.delete(scheduler);
  }

  [INSPECT](depth, options, inspect) {
    return show(this, depth, options, inspect, {
      projectRoot: this.#config.projectRoot,
      // The getter would start a process to read the settings.
      backupDir: this.#config.backupDir ?? '(see .kg/config.json)',
      state: this.#isClosed ? 'closed' : 'open',
      callsInProgress: this.#running.size,
    });
  }

  #assertOpen(signal) {
    const isOfRun = signal !== undefined && [...this.#schedulers.values()].includes(signal);
    if (this.#isClosed && !isOfRun) throw managerClosed();
  }

  #id(name, backup) {
    return toId(name, backup, () => this.backupDir);
  }

  async #call(name, request, control) {
    this.#assertOpen(control?.signal);
    return this.#track(call({ call: name, config: this.#config, ...request }, control));
  }

  /** Lets `close` wait for a promise. Resolves to the same. */
  async #track(promise) {
    this.#running.add(promise);
    try {
      return await promise;
    } finally {
      this.#running.delete(promise);
    }
  }
}

export function createBackupManager(config) {
  return new BackupManager(config);
}
