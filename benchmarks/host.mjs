// One call of the API in a process of its own: node --expose-gc host.mjs PROJECT BACKUPS RESTORED CALL OPTIONS

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';

import { measureCall } from './in-host.mjs';

const [, , projectRoot, backupDir, targetDir, call, options] = process.argv;

const manager = createBackupManager({ projectRoot, backupDir, ...JSON.parse(options) });
const calls = {
  backup: () => manager.createBackup(),
  incremental: () => manager.createBackup({ type: 'incremental' }),
  verify: async () => {
    if (!(await manager.verifyBackup('latest'))) throw new Error('The backup is damaged');
  },
  restore: () => manager.restore({ backupId: 'latest', targetDir }),
  // The options were accepted.
  nothing: () => {},
};
await measureCall(calls[call]);
