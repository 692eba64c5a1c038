// SQLite never writes the page at 1 GiB, because its locks are there
// (https://sqlite.org/fileformat2.html#the_lock_byte_page). The page holds no data, whatever the
// file contains there.

import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { integrityOf, makeProject, withDatabase } from './support/project.mjs';

const LOCK_OFFSET = 2 ** 30;
const PAGE_BYTES = 65536;
/** One row of this size fills a page. */
const ROW_BYTES = 65400;

async function digestOf(file) {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(file)) hash.update(piece);
  return hash.digest('hex');
}

test('a database that grows past 1 GiB is restored from a chain as from a full backup', async () => {
  const { root, database, backups } = makeProject();
  const manager = createBackupManager({
    projectRoot: root,
    backupDir: backups,
    compressionLevel: 1,
  });
  const fill = (from, to) =>
    withDatabase(database, (db) => {
      db.pragma('synchronous = off');
      const add = db.prepare(`INSERT INTO large VALUES (?, zeroblob(${ROW_BYTES}))`);
      db.transaction(() => {
        for (let row = from; row < to; row += 1) add.run(row);
      })();
    });
  const bytesOf = (file) =>
    withDatabase(file, (db) => db.pragma('page_count', { simple: true }) * PAGE_BYTES);
  withDatabase(database, (db) => {
    db.exec(`PRAGMA journal_mode = delete; PRAGMA page_size = ${PAGE_BYTES}; VACUUM`);
    db.exec('CREATE TABLE large (id INTEGER PRIMARY KEY, data BLOB)');
  });
  const below = LOCK_OFFSET / PAGE_BYTES - 200;
  fill(0, below);
  expect(bytesOf(database)).toBeLessThan(LOCK_OFFSET);
  await manager.createBackup();

  fill(below, below + 400);
  expect(bytesOf(database)).toBeGreaterThan(LOCK_OFFSET + PAGE_BYTES);
  const incremental = await manager.createBackup({ type: 'incremental' });
  const full = await manager.createBackup();
  expect([incremental, full].map(({ integrity }) => integrity.status)).toEqual(['ok', 'ok']);
  expect(await manager.verifyBackup(incremental.id)).toBe(true);

  const target = path.join(path.dirname(root), 'restored');
  await manager.restore({ backupId: incremental.id, targetDir: target });
  const restored = path.join(target, '.kg/knowledge.db');
  const { manifest } = await manager.checkBackup(full.id);
  expect(`sha256:${await digestOf(restored)}`, 'the very bytes of the full backup').toBe(
    manifest.checksums['database.sqlite'],
  );
  expect(integrityOf(restored)).toBe('ok');
  const rows = withDatabase(restored, (db) =>
    db.prepare('SELECT count(*), sum(id), min(length(data)) FROM large').raw().get(),
  );
  expect(rows).toEqual([below + 400, ((below + 399) * (below + 400)) / 2, ROW_BYTES]);
});
