'use strict';

// The public exports of the package. index.d.ts documents each of them.

const { BackupManager, createBackupManager } = require('./lib/manager.js');
const { BackupScheduler } = require('./lib/scheduler.js');
const { KgError } = require('./lib/errors.js');
const { IntegrityChecker, backupFreshnessCheck } = require('./lib/integrity.js');

module.exports = {
  BackupManager,
  BackupScheduler,
  IntegrityChecker,
  KgError,
  backupFreshnessCheck,
  createBackupManager,
};
