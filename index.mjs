// The public exports of the package. index.d.ts documents each of them.

export { GuardError, KgError } from './lib/errors.mjs';
export {
  IntegrityChecker,
  backupFreshnessCheck,
  createIntegrityChecker,
} from './lib/integrity.mjs';
export { BackupManager, createBackupManager } from './lib/manager.mjs';
export { BackupScheduler } from './lib/scheduler.mjs';
