// `latest` is the newest reliable backup, for every command and call.

import { readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import {
  backupFreshnessCheck,
  createBackupManager,
  IntegrityChecker,
} from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { kg, run } from './support/processes.mjs';
import { contents, integrityOf, makeProject, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

function damagePages(database) {
  const bytes = readFileSync(database);
  writeFileSync(database, bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000));
}

const rows = (root) => contents(root).filter((line) => line.startsWith('.kg/knowledge.db '));

/** Expects every interface to name `id` as the latest backup. */
async function expectLatest(manager, id) {
  const backup = await manager.getLatestBackup();
  expect(backup.id).toBe(id);
  expect(realpathSync(path.join(path.dirname(backup.path), 'latest.tar.gz'))).toBe(
    realpathSync(backup.path),
  );
  expect((await manager.checkBackup('latest')).path).toBe(backup.path);
  expect((await manager.rehearse()).id).toBe(id);
}

describe('after a repair of damaged pages', () => {
  test('the latest backup is the one from before the damage, and the safety backup is found by its id', async () => {
    const { root, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
    const manager = createBackupManager({ projectRoot: root });
    const good = await manager.createBackup();
    const before = rows(root);
    damagePages(database);
    const repaired = resultOf(
      (await kg(['diag', 'repair', '--auto', '--json'], { cwd: root })).stdout,
    );
    const { id } = repaired.repair.safetyBackup;
    expect(id).not.toBe(good.id);
    await expectLatest(manager, good.id);
    const listed = await manager.listBackups();
    expect(
      listed.map((backup) => [backup.id, backup.safetyBackup, backup.integrity.status]),
    ).toEqual([
      [id, true, 'failed'],
      [good.id, undefined, 'ok'],
    ]);
    expect(run('tar', ['-xzOf', listed[0].path, 'manifest.json'])).toContain(
      '"safetyBackup": true',
    );
    expect((await kg(['diag', 'backup', '--list'], { cwd: root })).stdout).toMatch(
      new RegExp(`${id}.*\\[safety backup\\] \\[source damaged\\] Before a repair`),
    );
    expect(await manager.verifyBackup(id)).toBe(true);

    expect((await kg(['diag', 'restore', '--file', 'latest'], { cwd: root })).status).toBe(0);
    expect(rows(root)).toEqual(before);
    expect(integrityOf(database)).toBe('ok');
    expect((await kg(['diag', 'drill'], { cwd: root })).status).toBe(0);
  });
});

describe('after a repair of rows, whose safety backup is of sound pages', () => {
  async function repairRows() {
    const { root, database } = makeProject();
    const manager = createBackupManager({ projectRoot: root });
    return { root, database, manager, repair: () => breakAndRepair(root, database) };
  }
  async function breakAndRepair(root, database) {
    withDatabase(database, (db) => {
      db.pragma('foreign_keys = off');
      db.exec("INSERT INTO edges (source_id, target_id) VALUES ('gone', 'n1')");
    });
    const { repair } = await new IntegrityChecker(root).runChecks({ repairMode: true });
    return repair.safetyBackup.id;
  }

  test('it is not the latest or a base, and retention also keeps a good one', async () => {
    const { root, manager, repair } = await repairRows();
    const full = await manager.createBackup();
    const safety = await repair();
    await expectLatest(manager, full.id);
    const { status, stdout } = await kg(['diag', 'prune', '--max-backups', '1', '--json'], {
      cwd: root,
    });
    expect(status).toBe(0);
    expect(resultOf(stdout).decisions.map(({ id, kept, reason }) => [id, kept, reason])).toEqual([
      [safety, true, 'within-limits'],
      [full.id, true, 'newest-good'],
    ]);
    const incremental = await manager.createBackup({ type: 'incremental' });
    expect(incremental).toMatchObject({ type: 'incremental', basedOn: full.id });
    await expectLatest(manager, incremental.id);
  });

  test('it is the latest, and good, if there is no other backup', async () => {
    const { manager, repair } = await repairRows();
    const safety = await repair();
    await expectLatest(manager, safety);
    expect(await backupFreshnessCheck(manager).check()).toBe(true);
    const { id } = await manager.createBackup();
    await expectLatest(manager, id);
  });
});

test('a backup of a damaged database, or without its base, is not the latest if there is a good one', async () => {
  const { root, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
  const manager = createBackupManager({ projectRoot: root });
  const good = await manager.createBackup({ type: 'snapshot' });
  const base = await manager.createBackup();
  const incremental = await manager.createBackup({ type: 'incremental' });
  expect(incremental.basedOn).toBe(base.id);
  rmSync(base.path);
  expect((await manager.getLatestBackup()).id).toBe(good.id);
  damagePages(database);
  await manager.createBackup();
  await expectLatest(manager, good.id);
});

test('if no backup is good, the latest is the newest', async () => {
  const { root, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
  damagePages(database);
  const manager = createBackupManager({ projectRoot: root });
  await manager.createBackup();
  const { id } = await manager.createBackup();
  expect((await manager.getLatestBackup()).id).toBe(id);
  expect((await kg(['diag', 'drill', '--json'], { cwd: root })).status).toBe(5);
});

test('the monitor of the guide reports a missing backup and a recent one', async () => {
  const { root, backups } = makeProject();
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const guide = readFileSync(
    new URL('../docs/reference/specification.md', import.meta.url),
    'utf8',
  );
  const [, block] = guide
    .slice(guide.indexOf('### 3. Monitor Backup Health'))
    .match(/^```typescript\n([^]*?)^```$/m);
  const checks = [];
  // The block of the guide runs unchanged, because it is also valid JavaScript.
  new Function('healthMonitor', 'backupManager', block)(
    { addCheck: (check) => checks.push(check) },
    manager,
  );
  expect(checks).toEqual([
    { name: 'backup-freshness', interval: '1h', check: expect.any(Function) },
  ]);
  await expect(checks[0].check()).rejects.toMatchObject({
    code: 'KG_NO_BACKUPS',
    message: expect.stringContaining(backups),
  });
  await manager.createBackup();
  expect(await checks[0].check()).toBe(true);
});
