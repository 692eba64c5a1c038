// Makes one call of the API in its own process:
//
//   node --expose-gc host.mjs PROJECT BACKUPS RESTORED CALL OPTIONS

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
  // Does nothing: getting here means that the options were accepted.
  nothing: () => {},
};
await measureCall(calls[call]);
