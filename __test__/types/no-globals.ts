// A program that knows neither dom nor node.

import type { BackupManager } from '@weavelogic/knowledge-graph-agent';

export async function signals(manager: BackupManager) {
  const signal = {
    aborted: false,
    reason: undefined,
    addEventListener(_type: string, _listener: () => void) {},
    removeEventListener(_type: string, _listener: () => void) {},
  };
  await manager.createBackup({ signal });
  // @ts-expect-error a program without URL gives paths as strings
  await manager.copyTo({ href: 'file:///backups' });
}
