// SIGKILL of a restore at random instants: after the next run the project is its old state or the backup's.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { kgPath } from './support/processes.mjs';
import { fingerprint, makeProject } from './support/project.mjs';

const KILLS = 60;

/** What the project holds, without what runs keep or leave for the next restore to remove. */
function state(root) {
  const ours = /^\.kg\/(restore-undo\/|restore-staging-|\.kg-partial-)|-(wal|shm) /;
  return fingerprint(root).filter((line) => !ours.test(line));
}

for (const [what, damage] of Object.entries({ 'a damaged database': 'noise', 'no database': null })) {
  test(`over ${what}, killed ${KILLS} times`, async () => {
    const { root, database, backups } = makeProject({ nodes: 500 });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const { path: archive } = await manager.createBackup();
    const restored = state(root);
    const spoil = () => {
      for (const suffix of ['', '-wal', '-shm']) rmSync(database + suffix, { force: true });
      if (damage) writeFileSync(database, damage);
      writeFileSync(path.join(root, '.kg/config.json'), '{"theme":"light"}');
      rmSync(path.join(root, '.kg/plugins/glossary/terms.json'), { force: true });
    };
    spoil();
    const old = state(root);
    const seen = { old: 0, restored: 0, interrupted: 0 };
    for (let n = 0; n < KILLS; n += 1) {
      const child = spawn(kgPath, ['diag', 'restore', '--file', archive], { cwd: root, stdio: 'ignore' });
      const exited = once(child, 'exit');
      const until = performance.now() + (n / KILLS) * 12;
      while (performance.now() < until) await new Promise((resolve) => setImmediate(resolve));
      child.kill('SIGKILL');
      await exited;
      if (existsSync(path.join(root, '.kg/restore-journal.json'))) seen.interrupted += 1;
      // Any next run takes an interrupted restore back; a backup of a project without a database then says so.
      await manager.createBackup({ type: 'snapshot' }).catch((error) => expect(error.code).toBe('KG_NO_DATABASE'));
      const is = state(root);
      if (JSON.stringify(is) === JSON.stringify(old)) seen.old += 1;
      else {
        expect(is).toEqual(restored);
        seen.restored += 1;
        spoil();
      }
    }
    console.log(`killed ${KILLS} times over ${what}:`, seen);
    await manager.restore({ backupPath: archive, overwrite: true });
    expect(state(root)).toEqual(restored);
    expect(readdirSync(path.join(root, '.kg')).filter((name) => /^(restore-(staging|journal)|\.kg-partial)/.test(name))).toEqual([]);
    expect(await manager.verifyBackup(archive)).toBe(true);
  });
}
