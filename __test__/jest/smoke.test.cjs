// The package under jest, which runs tests in a separate realm, with CommonJS and ES modules.

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const Database = require('better-sqlite3');

const { createBackupManager, KgError } = require('@weavelogic/knowledge-graph-agent');

let base;
beforeEach(() => {
  base = fs.mkdtempSync(path.join(os.tmpdir(), 'kg-jest-'));
  fs.mkdirSync(path.join(base, 'project/.kg'), { recursive: true });
  const db = new Database(path.join(base, 'project/.kg/knowledge.db'));
  db.exec('CREATE TABLE nodes (id TEXT PRIMARY KEY); INSERT INTO nodes VALUES (1), (2)');
  db.close();
});
afterEach(() => fs.rmSync(base, { recursive: true }));

test('a backup is made, verified and restored', async () => {
  const manager = createBackupManager({
    projectRoot: path.join(base, 'project'),
    backupDir: path.join(base, 'backups'),
  });
  const phases = new Set();
  const backup = await manager.createBackup({ onProgress: ({ phase }) => phases.add(phase) });
  expect(backup.stats.nodeCount).toBe(2);
  expect(phases).toContain('saving');
  await expect(manager.verifyBackup(backup.path)).resolves.toBe(true);
  const result = await manager.restore({
    backupPath: backup.path,
    targetDir: path.join(base, 'restored'),
  });
  expect(result.filesRestored).toBe(1);
});

test('errors are errors of this realm', async () => {
  const manager = createBackupManager({ projectRoot: base });
  const error = await manager.createBackup().catch((thrown) => thrown);
  expect(error).toBeInstanceOf(KgError);
  expect(error).toBeInstanceOf(Error);
  expect(error.code).toBe('KG_NO_PROJECT');
  expect(() => createBackupManager({ compressionLevel: 12 })).toThrow(Error);
  await expect(manager.createBackup({ signal: AbortSignal.abort() })).rejects.toMatchObject({
    name: 'AbortError',
  });
});
