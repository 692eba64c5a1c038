// `git add -A` in the repository of a project leaves out the backups, caches and logs.

import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { kg, run } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';

/** Files directly in `.kg`, which a directory cannot ignore for git; see docs/guide/backup.md. */
const DIRECTLY_IN_STATE = /^\.kg\/(backup-project-id|[^/]+\.lock)$/;

function setUp() {
  const project = makeProject({ nodes: 20 });
  const git = (...args) => run('git', ['-C', project.root, ...args]).toString();
  git('init', '--quiet');
  git('add', '-A');
  const committed = () => {
    git('add', '-A');
    return git('ls-files').split('\n').filter(Boolean);
  };
  return { ...project, before: committed(), committed, in: { cwd: project.root } };
}

test('what commands and the service make in .kg is not added', async () => {
  const { root, before, committed, in: there } = setUp();
  expect(await kg(['config', 'set', 'backup.enabled', 'true'], there)).toMatchObject({ status: 0 });
  await kg(['config', 'set', 'backup.schedule', '0 2 * * *'], there);
  expect(await kg(['serve', '--all'], there)).toMatchObject({ status: 0 });
  expect(await kg(['serve', '--stop'], there)).toMatchObject({ status: 0 });
  expect(await kg(['diag', 'backup'], there)).toMatchObject({ status: 0 });
  await kg(['diag', 'backup', '--type', 'incremental'], there);
  const restored = await kg(['diag', 'restore', '--file', 'latest', '--yes'], there);
  expect(restored).toMatchObject({ status: 0 });
  const isNew = (file) => !before.includes(file) && !DIRECTLY_IN_STATE.test(file);
  for (const dir of ['backups', 'cache', 'logs'])
    expect(readFileSync(path.join(root, '.kg', dir, '.gitignore'), 'utf8'), dir).toBe('*\n');
  expect(existsSync(path.join(root, '.kg/restore-undo'))).toBe(true);
  const added = committed().filter(isNew);
  expect(added).toEqual([]);
  // The undo finds its files, and leaves the project as it was.
  expect(await kg(['diag', 'restore', '--undo', '--yes'], there)).toMatchObject({ status: 0 });
  expect(committed().filter(isNew)).toEqual([]);
});

test('a store that a backup makes in the repository is not added; one of the user keeps its files', async () => {
  const { root, before, committed, in: there } = setUp();
  mkdirSync(path.join(root, 'mine'));
  writeFileSync(path.join(root, 'mine/notes.txt'), 'mine\n');
  mkdirSync(path.join(root, 'own'));
  writeFileSync(path.join(root, 'own/.gitignore'), '*.json\n');
  for (const dir of ['new/backups', 'mine', 'own'])
    expect(await kg(['diag', 'backup', '--output', dir], there)).toMatchObject({ status: 0 });
  expect(readFileSync(path.join(root, 'new/backups/.gitignore'), 'utf8')).toBe('*\n');
  expect(existsSync(path.join(root, 'new/.gitignore'))).toBe(false);
  expect(existsSync(path.join(root, 'mine/.gitignore'))).toBe(false);
  expect(readFileSync(path.join(root, 'own/.gitignore'), 'utf8')).toBe('*.json\n');
  const added = committed().filter((file) => !before.includes(file));
  expect(added.filter((file) => file.startsWith('new/'))).toEqual([]);
  expect(added).toContain('mine/notes.txt');
});

test('a store outside a repository gets no file', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  await createBackupManager({ projectRoot: root, backupDir: backups }).createBackup();
  expect(existsSync(path.join(backups, '.gitignore'))).toBe(false);
});

test('no command takes the file for a backup, and no restore brings it back', async () => {
  const { root, in: there } = setUp();
  const manager = createBackupManager({ projectRoot: root });
  const { id } = await manager.createBackup();
  await manager.createBackup();
  expect(await manager.listBackups()).toHaveLength(2);
  for (const args of [
    ['backup', '--status'],
    ['store', '--check'],
    ['drill'],
    ['prune', '--max-backups', '1'],
    ['backup', '--copy-to', path.join(root, '../copies')],
    ['health'],
  ]) {
    const { status, stdout, stderr } = await kg(['diag', ...args, '--json'], there);
    expect(status, args.join(' ') + stderr).toBe(0);
    expect(stdout, args.join(' ')).not.toContain('gitignore');
  }
  expect(await manager.listBackups()).toHaveLength(1);
  expect(existsSync(path.join(root, '.kg/backups/.gitignore'))).toBe(true);
  expect(id).not.toBe((await manager.getLatestBackup()).id);
  const targetDir = path.join(root, '../restored');
  const { filesRestored } = await manager.restore({ backupId: 'latest', targetDir });
  expect(filesRestored).toBe(4);
  expect(existsSync(path.join(targetDir, '.kg/backups'))).toBe(false);
  rmSync(path.join(root, '.kg/backups/.gitignore'));
  // A directory that exists is left as it is.
  await manager.createBackup();
  expect(existsSync(path.join(root, '.kg/backups/.gitignore'))).toBe(false);
});
