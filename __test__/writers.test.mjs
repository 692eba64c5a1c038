// Backups while a process writes as fast as it can.

import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { startWriter } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';

const BACKUPS = 8;

for (const journalMode of ['wal', 'delete']) {
  test(`next to a writer in ${journalMode} mode, each backup is one commit and no write fails`, async () => {
    const { root, database, backups } = makeProject({ journalMode, nodes: 20_000 });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const writer = await startWriter(database);
    const made = [];
    for (let n = 0; n < BACKUPS; n += 1)
      made.push(await manager.createBackup({ type: n % 2 ? 'full' : 'snapshot' }));
    const { written, longestMs } = await writer.stop();
    console.log(
      `${journalMode}: ${written} commits beside ${BACKUPS} backups, the longest took ${longestMs.toFixed(0)} ms`,
    );
    expect(written).toBeGreaterThan(BACKUPS);

    let previous = 0;
    for (const backup of made) {
      expect(backup.warnings).toEqual([]);
      expect(backup.integrity).toEqual({ status: 'ok', messages: [], fullText: true });
      const target = temporaryDirectory();
      await manager.restore({ backupId: backup.id, targetDir: target, only: ['database'] });
      const restored = path.join(target, '.kg/knowledge.db');
      const { nodes, counter } = withDatabase(restored, (db) => ({
        nodes: db.prepare("SELECT count(*) FROM nodes WHERE id LIKE 'w%'").pluck().get(),
        counter: Number(
          db.prepare("SELECT value FROM metadata WHERE key = 'written'").pluck().get(),
        ),
      }));
      // A backup holds both halves of each transaction or neither, and later backups are never
      // older.
      expect(nodes).toBe(counter);
      expect(nodes).toBeGreaterThanOrEqual(previous);
      expect(backup.stats.nodeCount).toBe(20_000 + nodes);
      expect(integrityOf(restored)).toBe('ok');
      previous = nodes;
    }
    expect(await manager.listBackups()).toHaveLength(BACKUPS);
  });
}
