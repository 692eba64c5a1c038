import { invalidOption } from './errors.mjs';
import { NEWEST_GOOD } from './integrity.mjs';
import { assertFunction, backupDir, call, callBack, checkConfig } from './native.mjs';
import { split, toAbsolute, toEncryption, toPath } from './options.mjs';
import { BackupScheduler, COPY_CONFIGURED, NEXT_RUN } from './scheduler.mjs';

function assertReference(name, value) {
  if (typeof value !== 'string' || value === '') {
    throw invalidOption(
      `${name} takes the path or id of a backup, not ${String(value)}`,
      'See listBackups() for the ids',
    );
  }
}

export class BackupManager {
  #config;
  #onSuccess;
  #onFailure;

  /** @param {import('../index.js').BackupManagerConfig} config */
  constructor(config = {}) {
    const [{ onSuccess, onFailure, ...rest }] = split('createBackupManager', config);
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
      const [given, control] = split('createBackup', options);
      const backup = await call(
        { call: 'createBackup', config: this.#config, options: given },
        control,
      );
      if (this.#onSuccess) callBack('onSuccess', this.#onSuccess, backup);
      return backup;
    } catch (error) {
      if (this.#onFailure) callBack('onFailure', this.#onFailure, error);
      throw error;
    }
  }

  async listBackups() {
    return call({ call: 'listBackups', config: this.#config });
  }

  async getBackup(id) {
    assertReference('getBackup', id);
    return call({ call: 'getBackup', config: this.#config, id });
  }

  async getLatestBackup() {
    return call({ call: 'getLatestBackup', config: this.#config });
  }

  /** Returns the newest good backup of this project, or null. Freshness checks use it. */
  async [NEWEST_GOOD]() {
    return call({ call: 'newestGood', config: this.#config });
  }

  async deleteBackup(id, options) {
    assertReference('deleteBackup', id);
    const [given, control] = split('deleteBackup', options);
    return call({ call: 'deleteBackup', config: this.#config, id, options: given }, control);
  }

  async pin(id, reason) {
    assertReference('pin', id);
    return call({ call: 'pin', config: this.#config, id, reason });
  }

  async unpin(id) {
    assertReference('unpin', id);
    return call({ call: 'unpin', config: this.#config, id });
  }

  async consolidate(id, options) {
    assertReference('consolidate', id);
    const [given, control] = split('consolidate', options);
    return call({ call: 'consolidate', config: this.#config, id, options: given }, control);
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
    const copying = { call: 'copyTo', config: this.#config, target: toAbsolute(target) };
    return call({ ...copying, options: given }, control);
  }

  /** Copies to the second store of the settings. Resolves to null if they name none. */
  async [COPY_CONFIGURED](control) {
    return call({ call: 'copyConfigured', config: this.#config }, control);
  }

  async prune(options) {
    const [given, control] = split('prune', options);
    return call({ call: 'prune', config: this.#config, options: given }, control);
  }

  async verifyBackup(backup, options) {
    const { valid } = await this.#check('verifyBackup', [], backup, options);
    return valid;
  }

  async checkBackup(backup, options) {
    return this.#check('checkBackup', ['listFiles'], backup, options);
  }

  async #check(name, known, backup, options) {
    const reference = toPath(backup);
    assertReference(name, reference);
    const [given, control] = split(name, options);
    const unknown = Object.keys(given).find((option) => !known.includes(option));
    if (unknown !== undefined)
      throw invalidOption(`${name} has no option \`${unknown}\``, 'See index.d.ts for the options');
    const checked = { call: 'checkBackup', config: this.#config, backup: reference, ...given };
    return call(checked, control);
  }

  /** @param {import('../index.js').RestoreOptions} options */
  async restore(options) {
    const [given, control] = split('restore', options);
    const resolved = {
      ...given,
      backupPath: toPath(given.backupPath),
      targetDir: given.targetDir === undefined ? undefined : toAbsolute(given.targetDir),
    };
    return call({ call: 'restore', config: this.#config, options: resolved }, control);
  }

  /** @param {import('../index.js').UndoOptions} [options] */
  async undoRestore(options) {
    const [given, control] = split('undoRestore', options);
    const resolved = {
      ...given,
      targetDir: given.targetDir === undefined ? undefined : toAbsolute(given.targetDir),
    };
    return call({ call: 'undoRestore', config: this.#config, options: resolved }, control);
  }

  /** @param {import('../index.js').RehearseOptions} [options] */
  async rehearse(options) {
    const [given, control] = split('rehearse', options);
    const resolved = {
      ...given,
      backup: toPath(given.backup),
      directory: given.directory === undefined ? undefined : toAbsolute(given.directory),
    };
    return call({ call: 'rehearse', config: this.#config, options: resolved }, control);
  }

  scheduler(options = {}) {
    const [given] = split('scheduler', options);
    return new BackupScheduler({ schedule: this.#config.schedule, ...given, backupManager: this });
  }

  /** Returns the type of the next run and the time of the last one. Schedulers use it. */
  async [NEXT_RUN](options) {
    return call({ call: 'nextRun', config: this.#config, options });
  }
}

export function createBackupManager(config) {
  return new BackupManager(config);
}
