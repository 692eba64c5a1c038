// What programs do with the package, under every option of the compiler.

import {
  BackupManager,
  BackupScheduler,
  GuardError,
  IntegrityChecker,
  KgError,
  backupFreshnessCheck,
  createBackupManager,
  createIntegrityChecker,
} from '@weavelogic/knowledge-graph-agent';
import type {
  Backup,
  BackupConfig,
  BackupManagerConfig,
  BackupReference,
  CreatedBackup,
  GuardErrorJson,
  IntegrityResult,
  KgErrorCode,
  RestoreResult,
} from '@weavelogic/knowledge-graph-agent';

/** The guide's interface, as written. */
interface GuideConfig {
  backupDir: string;
  compression: boolean;
  compressionLevel: number;
  retentionDays: number;
  maxBackups: number;
  includeVectors: boolean;
  includePluginData: boolean;
  excludePatterns: string[];
  schedule: string;
  onSuccess: (backup: Backup) => void;
  onFailure: (error: Error) => void;
}

export const config: BackupConfig = {
  backupDir: './backups',
  compression: true,
  compressionLevel: 6,
  retentionDays: 30,
  maxBackups: 10,
  includeVectors: true,
  includePluginData: true,
  excludePatterns: ['*.tmp'],
  schedule: '0 2 * * *',
  onSuccess: (backup: Backup) => void backup.id,
  onFailure: (error: Error) => void error.message,
};
export const more: BackupConfig = { ...config, keep: { daily: 7 }, strict: true };
export const fromGuide = (own: GuideConfig): BackupConfig => own;
export const asManager = (own: BackupConfig): BackupManagerConfig => ({
  projectRoot: '.',
  ...own,
});

export async function backUp(): Promise<CreatedBackup> {
  const manager: BackupManager = createBackupManager(config);
  const backup = await manager.createBackup({
    type: 'full',
    onProgress: ({ phase, bytesDone }) => void (phase === 'saving' && bytesDone.toFixed()),
  });
  const age: number = Date.now() - backup.timestamp;
  const [newest] = await manager.listBackups();
  if (newest && age > 0) await manager.pin(newest.id, 'reason');
  const restored: RestoreResult = await manager.restore({ backupPath: backup.path });
  const scheduler = manager.scheduler({ schedule: '@daily', onSuccess: (made) => void made.id });
  const other = new BackupScheduler({ backupManager: manager, schedule: '@daily' });
  scheduler.start();
  const next: number | undefined = other.nextRun()?.getTime();
  await scheduler.stop({ abort: next === restored.durationMs });
  return backup;
}

export async function check(handle: { filename: string }): Promise<IntegrityResult> {
  const checker: IntegrityChecker = createIntegrityChecker(handle, { projectRoot: '.' });
  const result = await checker.runChecks({ repairMode: false });
  await checker.repair(result.issues);
  const { name, check } = backupFreshnessCheck(new BackupManager(), { maxAge: '24h' });
  return (await check()) && name ? result : new IntegrityChecker('.').runChecks();
}

export async function references(manager: BackupManager, backup: Backup) {
  const given: BackupReference[] = [backup, backup.id, { id: backup.id, path: backup.path }];
  for (const one of given) {
    await manager.pin(await manager.getBackup(one), 'reason');
    await manager.unpin(one);
    await manager.consolidate(one);
    await manager.verifyBackup(one);
    await manager.checkBackup(one, { listFiles: true });
    await manager.createBackup({ type: 'incremental', basedOn: one });
    await manager.copyTo('/copies', { backupIds: [one, backup] });
    await manager.restore({ backupPath: one, overwrite: true });
    await manager.restore({ backupId: one, dryRun: true });
    await manager.rehearse({ backup: one });
    await manager.deleteBackup(one, { cascade: true });
  }
}

export async function guard(manager: BackupManager): Promise<GuardErrorJson | number> {
  try {
    const text: string = await manager.guard(() => 'done', { type: 'snapshot' });
    const none: void = await manager.guard(async () => {}, { onError: 'restore', pin: true });
    const rows: number = await manager.guard(async (backup) => backup.size, {
      onError: async (error, backup) => (error && backup.incomplete ? 'keep' : 'restore'),
    });
    return rows + text.length + Number(none);
  } catch (error) {
    if (!(error instanceof GuardError)) throw error;
    const code: 'KG_GUARD_FAILED' = error.code;
    const replaced: number | undefined = error.restored?.filesReplaced;
    await manager.restore({ backupId: error.backup });
    await manager.close();
    return code && replaced ? replaced : error.toJSON();
  }
}

export function handle(error: unknown): string {
  if (!(error instanceof KgError)) throw error;
  const code: KgErrorCode = error.code;
  switch (code) {
    case 'KG_STORE_LOCKED':
      return 'later';
    case 'KG_NO_SPACE':
      return error.remedy;
    default:
      return `${error.name}: ${error.message}`;
  }
}
