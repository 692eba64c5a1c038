'use strict';

// The JavaScript face of the addon. See index.d.ts for what each export does.

const { BackupManager, createBackupManager } = require('./lib/manager.js');
const { BackupScheduler } = require('./lib/scheduler.js');
const { KgError } = require('./lib/errors.js');
const { IntegrityChecker, backupFreshnessCheck } = require('./lib/integrity.js');

module.exports = { BackupManager, BackupScheduler, IntegrityChecker, KgError, backupFreshnessCheck, createBackupManager };
