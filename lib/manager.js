'use strict';

const path = require('node:path');
const { fileURLToPath } = require('node:url');

const { invalidOption } = require('./errors.js');
const { assertFunction, backupDir, call, callBack, checkConfig } = require('./native.js');
const { kgPath } = require('./platform.js');
const { BackupScheduler, NEXT_RUN } = require('./scheduler.js');

/** An options object without the fields that do not go to the addon. */
function split(name, options = {}) {
  if (options === null || typeof options !== 'object' || Array.isArray(options)) {
    throw invalidOption(`${name} takes an object of options`, 'See index.d.ts for the options');
  }
  const { onProgress, signal, ...rest } = options;
  return [rest, { onProgress, signal }];
}

function toPath(value) {
  return value instanceof URL && value.protocol === 'file:' ? fileURLToPath(value) : value;
}

/** Absolute, so that a later change of the working directory means nothing. */
function toAbsolute(value) {
  const given = toPath(value);
  const isLocal = typeof given === 'string' && given !== '' && !given.includes('://');
  return isLocal ? path.resolve(given) : given;
}

function assertReference(name, value) {
  if (typeof value !== 'string' || value === '') {
    throw invalidOption(`${name} takes the path or id of a backup, not ${String(value)}`, 'See listBackups() for the ids');
  }
}

class BackupManager {
  #config;
  #onSuccess;
  #onFailure;

  constructor(config = {}) {
    const [{ onSuccess, onFailure, ...rest }] = split('createBackupManager', config);
    assertFunction('onSuccess', onSuccess);
    assertFunction('onFailure', onFailure);
    this.#onSuccess = onSuccess;
    this.#onFailure = onFailure;
    this.#config = {
      kgPath,
      ...rest,
      projectRoot: toAbsolute(rest.projectRoot ?? process.cwd()),
      backupDir: rest.backupDir === undefined ? undefined : toAbsolute(rest.backupDir),
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
      const backup = await call({ call: 'createBackup', config: this.#config, options: given }, control);
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

  async deleteBackup(id, options) {
    assertReference('deleteBackup', id);
    const [given, control] = split('deleteBackup', options);
    return call({ call: 'deleteBackup', config: this.#config, id, options: given }, control);
  }

  async prune(options) {
    const [given, control] = split('prune', options);
    return call({ call: 'prune', config: this.#config, options: given }, control);
  }

  async verifyBackup(backup, options) {
    const { valid } = await this.#check('verifyBackup', backup, options);
    return valid;
  }

  async checkBackup(backup, options) {
    return this.#check('checkBackup', backup, options);
  }

  async #check(name, backup, options) {
    const reference = toPath(backup);
    assertReference(name, reference);
    const [rest, control] = split(name, options);
    const [unknown] = Object.keys(rest);
    if (unknown !== undefined) throw invalidOption(`${name} has no option \`${unknown}\``, 'See index.d.ts for the options');
    return call({ call: 'checkBackup', config: this.#config, backup: reference }, control);
  }

  async restore(options) {
    const [given, control] = split('restore', options);
    const resolved = {
      ...given,
      backupPath: toPath(given.backupPath),
      targetDir: given.targetDir === undefined ? undefined : toAbsolute(given.targetDir),
    };
    return call({ call: 'restore', config: this.#config, options: resolved }, control);
  }

  async undoRestore(options) {
    const [given, control] = split('undoRestore', options);
    const resolved = { ...given, targetDir: given.targetDir === undefined ? undefined : toAbsolute(given.targetDir) };
    return call({ call: 'undoRestore', config: this.#config, options: resolved }, control);
  }

  scheduler(options = {}) {
    const [given] = split('scheduler', options);
    return new BackupScheduler({ schedule: this.#config.schedule, ...given, backupManager: this });
  }

  /** For a scheduler: what its next run makes, and when the last one was. */
  async [NEXT_RUN](options) {
    return call({ call: 'nextRun', config: this.#config, options });
  }
}

function createBackupManager(config) {
  return new BackupManager(config);
}

module.exports = { BackupManager, createBackupManager };
