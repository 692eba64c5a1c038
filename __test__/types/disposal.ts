// A program that knows `Symbol.asyncDispose`.

import { BackupScheduler, createBackupManager } from '@weavelogic/knowledge-graph-agent';

export async function disposal(): Promise<string> {
  await using backupManager = createBackupManager();
  await using scheduler = new BackupScheduler({ backupManager, schedule: '@daily' });
  const disposables: AsyncDisposable[] = [backupManager, scheduler];
  for (const one of disposables) await one[Symbol.asyncDispose]();
  // @ts-expect-error disposal takes time
  using early = createBackupManager();
  return early.projectRoot;
}
