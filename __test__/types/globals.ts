// A program that knows the globals of dom, of node or of both.

import type { AbortSignalLike, BackupManager } from '@weavelogic/knowledge-graph-agent';

export async function signals(manager: BackupManager, given?: AbortSignal) {
  const controller = new AbortController();
  await manager.createBackup({ signal: controller.signal });
  // Passes on what the caller may have left out.
  await manager.rehearse({ signal: given });
  const like: AbortSignalLike = controller.signal;
  // @ts-expect-error a controller is not a signal
  await manager.restore({ backupId: 'latest', signal: controller });
  return like;
}

export async function urls(manager: BackupManager) {
  await manager.copyTo(new URL('file:///backups'));
  await manager.copyTo('/backups', { signal: new AbortController().signal });
  // @ts-expect-error part of a URL is not one
  await manager.copyTo({ href: 'file:///backups' });
}
