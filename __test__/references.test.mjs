// A Backup wherever an id or a path is taken.

import { existsSync, mkdirSync, symlinkSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, onTestFinished, test } from 'vitest';

import { startObjectStore } from './support/object-store.mjs';
import { contents, makeProject } from './support/project.mjs';

function setUp() {
  const project = makeProject();
  const manage = (backupDir) => createBackupManager({ projectRoot: project.root, backupDir });
  return { ...project, manage, manager: manage(project.backups) };
}

test('a backup names itself in every call', async () => {
  const { manager, root, backups } = setUp();
  const full = await manager.createBackup();
  const backup = await manager.createBackup({ type: 'incremental', basedOn: full });
  expect(backup.basedOn).toBe(full.id);
  expect(await manager.getBackup(backup)).toMatchObject({ id: backup.id });
  expect((await manager.pin(backup, 'audit')).pinned.reason).toBe('audit');
  expect((await manager.unpin(backup)).pinned).toBeUndefined();
  expect(await manager.verifyBackup(backup)).toBe(true);
  expect(await manager.checkBackup(backup)).toMatchObject({ valid: true, path: backup.path });
  expect(await manager.rehearse({ backup })).toMatchObject({ passed: true, id: backup.id });
  for (const [name, key] of [
    ['by-path', 'backupPath'],
    ['by-id', 'backupId'],
  ]) {
    const targetDir = path.join(path.dirname(root), name);
    expect(await manager.restore({ [key]: backup, targetDir })).toMatchObject({ id: backup.id });
    expect(contents(targetDir)).toEqual(contents(root));
  }
  const copied = await manager.copyTo(`${backups}-copies`, { backupIds: [backup] });
  expect(copied.copied.map(({ id }) => id).sort()).toEqual([full.id, backup.id].sort());
  expect((await manager.consolidate(backup)).consolidatedFrom).toBe(backup.id);
  expect(await manager.deleteBackup(full, { cascade: true })).toHaveLength(2);
});

test('so does a part of it, from JSON or another result', async () => {
  const { manager } = setUp();
  const backup = await manager.createBackup();
  const { id, path: archive } = JSON.parse(JSON.stringify(backup));
  expect(await manager.getBackup({ id, path: archive })).toMatchObject({ id });
});

test('a file URL of an archive is a path', async () => {
  const { manager } = setUp();
  const backup = await manager.createBackup();
  const url = pathToFileURL(backup.path);
  expect(await manager.verifyBackup(url)).toBe(true);
  expect(await manager.checkBackup(url)).toMatchObject({ path: backup.path });
  expect(await manager.restore({ backupPath: url, overwrite: true, dryRun: true })).toMatchObject({
    id: backup.id,
  });
  expect(await manager.rehearse({ backup: url })).toMatchObject({ id: backup.id });
});

test('a backup of another store never means the one with the same id here', async () => {
  const { manager, manage, backups } = setUp();
  const own = await manager.createBackup();
  await manager.copyTo(`${backups}-copies`);
  const other = manage(`${backups}-copies`);
  const copy = await other.getBackup(own.id);
  expect(copy.id).toBe(own.id);
  const refusal = {
    code: 'KG_BACKUP_NOT_FOUND',
    message: expect.stringContaining(`${copy.path} is not in ${backups}`),
  };
  for (const call of [
    () => manager.getBackup(copy),
    () => manager.pin(copy),
    () => manager.unpin(copy),
    () => manager.consolidate(copy),
    () => manager.deleteBackup(copy),
    () => manager.restore({ backupId: copy, overwrite: true }),
    () => manager.createBackup({ type: 'incremental', basedOn: copy }),
    () => manager.copyTo(`${backups}-more`, { backupIds: [copy] }),
  ])
    await expect(call(), String(call)).rejects.toMatchObject(refusal);
  expect(await manager.listBackups()).toHaveLength(1);
  expect((await manager.listBackups())[0].pinned).toBeUndefined();
  // Where a path is taken, it means itself.
  expect(await manager.checkBackup(copy)).toMatchObject({ valid: true, path: copy.path });
  expect(await manager.verifyBackup(copy)).toBe(true);
  expect(await manager.rehearse({ backup: copy })).toMatchObject({ backupPath: copy.path });
  expect(await manager.restore({ backupPath: copy, overwrite: true, dryRun: true })).toMatchObject({
    backupPath: copy.path,
  });
  await other.deleteBackup(copy);
  expect(existsSync(own.path)).toBe(true);
  await expect(manager.verifyBackup(copy)).rejects.toMatchObject({ code: 'KG_BACKUP_NOT_FOUND' });
});

test('a store can have several names', async () => {
  const { manager, manage, root, backups } = setUp();
  const backup = await manager.createBackup();
  const link = path.join(path.dirname(root), 'link');
  symlinkSync(backups, link);
  for (const name of [link, `${backups}/`, path.relative('.', backups)]) {
    expect(await manage(name).getBackup(backup), name).toMatchObject({ id: backup.id });
    const [listed] = await manage(name).listBackups();
    expect(await manager.getBackup(listed), name).toMatchObject({ id: backup.id });
  }
});

test('the store that the settings name is the own one too', async () => {
  const { root } = setUp();
  const manager = createBackupManager({ projectRoot: root });
  const backup = await manager.createBackup();
  expect(await manager.getBackup(backup)).toMatchObject({ id: backup.id });
  expect(await manager.deleteBackup(backup)).toEqual([backup.id]);
});

test('backups of an object store name themselves by their URL', async () => {
  const { manage, root } = setUp();
  const store = await startObjectStore();
  onTestFinished(() => store.stop());
  const { storageOptions } = store;
  const at = (prefix) =>
    createBackupManager({ projectRoot: root, backupDir: store.url(prefix), storageOptions });
  const backup = await at('one/').createBackup({ type: 'snapshot' });
  for (const prefix of ['one/', 'one']) {
    expect(await at(prefix).getBackup(backup)).toMatchObject({ id: backup.id });
    expect(await at(prefix).verifyBackup(backup)).toBe(true);
    const restoring = at(prefix).restore({ backupPath: backup, overwrite: true, dryRun: true });
    expect(await restoring).toMatchObject({ id: backup.id, backupPath: backup.path });
  }
  for (const elsewhere of [at('on'), manage(root)])
    await expect(elsewhere.deleteBackup(backup)).rejects.toMatchObject({
      code: 'KG_BACKUP_NOT_FOUND',
    });
  expect(await at('one').deleteBackup(backup)).toEqual([backup.id]);
});

test('what names no backup is refused', async () => {
  const { manager } = setUp();
  for (const wrong of [
    undefined,
    null,
    5,
    '',
    {},
    { id: 'backup-20240115-020000' },
    [],
    new Date(0),
  ]) {
    for (const call of [
      () => manager.getBackup(wrong),
      () => manager.deleteBackup(wrong),
      () => manager.pin(wrong),
      () => manager.verifyBackup(wrong),
      () => manager.copyTo('/copies', { backupIds: [wrong] }),
    ])
      await expect(call(), `${call}: ${wrong}`).rejects.toMatchObject({
        code: 'KG_INVALID_OPTION',
        message: expect.stringContaining('takes a backup, or its path or id'),
      });
  }
  mkdirSync(manager.backupDir);
  const empty = { id: '', path: path.join(manager.backupDir, 'kg-backup-x.tar.gz') };
  await expect(manager.getBackup(empty)).rejects.toMatchObject({ code: 'KG_INVALID_OPTION' });
});
