// Uses the package once as an application does: backs a project up, verifies the backup, destroys
// the database, restores and checks it. Prints what it found as JSON.
//
//   node try-package.mjs PROJECT BACKUPS
//
// The tests and the release run a copy of this file in a directory where the package is installed,
// on each platform and in each runtime.

import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

import { createBackupManager, IntegrityChecker } from '@weavelogic/knowledge-graph-agent';

const [projectRoot, backupDir] = process.argv.slice(2);
const manager = createBackupManager({ projectRoot, backupDir });

const backup = await manager.createBackup({ description: 'A trial' });
const isVerified = await manager.verifyBackup(backup.path);

writeFileSync(path.join(projectRoot, '.kg/knowledge.db'), 'destroyed');
const { filesRestored } = await manager.restore({ backupId: 'latest', overwrite: true });
const { healthy } = await new IntegrityChecker(projectRoot).runChecks();

const required = createRequire(import.meta.url)('@weavelogic/knowledge-graph-agent');
console.log(
  JSON.stringify({
    nodes: backup.stats.nodeCount,
    isVerified,
    filesRestored,
    healthy,
    required: typeof required.createBackupManager,
  }),
);
