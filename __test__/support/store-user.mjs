// One of several processes that use a store: node store-user.mjs ROOT BACKUPS MILLISECONDS SEED
//
// Prints a line of JSON at its end with the number of each operation. A forbidden result ends it
// with a message.

import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { resultOf } from './json-output.mjs';

import { nativeParts } from '../../lib/native-parts.mjs';

const { kgPath } = nativeParts();
const [root, backupDir, milliseconds, seed] = process.argv.slice(2);
const manager = createBackupManager({ projectRoot: root, backupDir, maxBackups: 12 });
const keeper = createBackupManager({ projectRoot: root, backupDir });
const done = { made: 0, deleted: 0, pruned: 0, listed: 0, verified: 0, restored: 0, gone: 0 };

let state = Number(seed) + 1;
function random(below) {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return (state >>> 8) % below;
}

/** Another process may remove a backup at any time. No other failure is allowed. */
async function unlessGone(work) {
  try {
    return await work();
  } catch (error) {
    if (!['KG_BACKUP_NOT_FOUND', 'KG_NO_BACKUPS'].includes(error.code)) throw error;
    done.gone += 1;
    return undefined;
  }
}

async function anyBackup() {
  const backups = await keeper.listBackups();
  done.listed += 1;
  return backups[random(Math.max(1, backups.length))];
}

const actions = [
  async () => {
    await keeper.createBackup({ type: random(2) ? 'full' : 'snapshot' });
    done.made += 1;
  },
  async () => {
    const args = ['diag', 'backup', '--project', root, '--output', backupDir, '--json'];
    const { stdout } = await promisify(execFile)(kgPath, args);
    if (resultOf(stdout).id) done.made += 1;
  },
  async () => {
    const backup = await anyBackup();
    if (!backup || !random(2)) return;
    await unlessGone(async () => {
      await keeper.deleteBackup(backup.id);
      done.deleted += 1;
    });
  },
  async () => {
    const { decisions } = await manager.prune();
    done.pruned += decisions.filter(({ kept, error }) => !kept && !error).length;
  },
  async () => {
    const backup = await anyBackup();
    if (!backup) return;
    const valid = await unlessGone(() => keeper.verifyBackup(backup.path));
    if (valid === false) throw new Error(`${backup.id} is listed and does not verify`);
    if (valid) done.verified += 1;
  },
  async () => {
    const target = mkdtempSync(path.join(os.tmpdir(), 'kg-race-'));
    try {
      const restored = await unlessGone(() =>
        keeper.restore({ backupId: 'latest', targetDir: target }),
      );
      if (restored) done.restored += 1;
    } finally {
      rmSync(target, { recursive: true });
    }
  },
];

const until = Date.now() + Number(milliseconds);
while (Date.now() < until) await actions[random(actions.length)]();
console.log(JSON.stringify(done));
