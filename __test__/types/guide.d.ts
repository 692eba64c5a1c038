// What the text around the guide's blocks provides.

import type {
  Backup as _Backup,
  BackupManager as _Manager,
  createBackupManager as _create,
} from '@weavelogic/knowledge-graph-agent';

declare global {
  const createBackupManager: typeof _create;
  const backupManager: _Manager;
  const backupPath: string;
  const lastFullBackup: _Backup;
  const db: object;
  const healthMonitor: {
    addCheck(check: { name: string; interval: string; check: () => Promise<boolean> }): void;
  };
  type Backup = _Backup;
}
