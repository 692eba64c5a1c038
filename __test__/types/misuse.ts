// Mistakes that the compiler must find.

import {
  BackupScheduler,
  IntegrityChecker,
  backupFreshnessCheck,
  createBackupManager,
} from '@weavelogic/knowledge-graph-agent';
import type { BackupConfig, KgError } from '@weavelogic/knowledge-graph-agent';
// @ts-expect-error not part of the API
import type { KnownUrl } from '@weavelogic/knowledge-graph-agent';

export type Hidden = KnownUrl;

// @ts-expect-error the guide's other fields are required
export const incomplete: BackupConfig = { backupDir: './backups' };

// @ts-expect-error a misspelt option
export const manager = createBackupManager({ backupDirectory: './backups' });
// @ts-expect-error a number, not a text
createBackupManager({ retentionDays: '30' });
// @ts-expect-error no such compression
createBackupManager({ compression: 'lzma' });
// @ts-expect-error a list of patterns
createBackupManager({ excludePatterns: '*.tmp' });
// @ts-expect-error no such rule
createBackupManager({ keep: { fortnightly: 2 } });
// @ts-expect-error `true` names no keys
createBackupManager({ encryption: true });

export async function calls(error: KgError) {
  const given = createBackupManager();
  // @ts-expect-error no such type
  await given.createBackup({ type: 'differential' });
  // @ts-expect-error an option of a restore
  await given.createBackup({ overwrite: true });
  // @ts-expect-error which one
  await given.getBackup();
  // @ts-expect-error an id is a text
  await given.deleteBackup(20240115);
  // @ts-expect-error a restore needs to know what
  await given.restore();
  // @ts-expect-error no such part
  await given.restore({ backupId: 'latest', only: ['graph'] });
  // @ts-expect-error a number of milliseconds
  (await given.getLatestBackup()).timestamp.getTime();
  // @ts-expect-error a boolean, without a report
  (await given.verifyBackup('latest')).problems;
  // @ts-expect-error a signal listens
  await given.createBackup({ signal: { aborted: false } });
  // @ts-expect-error a scheduler needs its manager
  new BackupScheduler({ schedule: '@daily' });
  // @ts-expect-error a manager brings itself
  given.scheduler({ backupManager: given });
  // @ts-expect-error a number names no database
  new IntegrityChecker(5);
  // @ts-expect-error issues, not texts
  await new IntegrityChecker('.').repair(['KG_ISSUE_DATABASE_DAMAGED']);
  // @ts-expect-error the age of the backups of a manager
  backupFreshnessCheck({});
  // @ts-expect-error an id without a path may name a backup of another store
  await given.deleteBackup({ id: 'backup-20240115-020000' });
  // @ts-expect-error a guard needs a function
  await given.guard();
  // @ts-expect-error a promise has begun before the backup
  await given.guard(Promise.resolve());
  // @ts-expect-error no such decision
  await given.guard(() => {}, { onError: 'rollback' });
  // @ts-expect-error a decision is needed
  await given.guard(() => {}, { onError: () => {} });
  // @ts-expect-error the result of the function
  (await given.guard(() => 5)).backup;
  // @ts-expect-error no such code
  if (error.code === 'KG_OUT_OF_LUCK') throw error;
}
