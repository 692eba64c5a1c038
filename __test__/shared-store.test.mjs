// Several projects use one store. Each has an id of its own, so none removes, continues or restores
// the backups of another, even if both have the same path.

import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { kg, run } from './support/processes.mjs';
import { makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const ID = /^[0-9a-f]{16}$/;

const idFile = (root) => path.join(root, '.kg/backup-project-id');
const idOf = (root) => readFileSync(idFile(root), 'utf8').trim();
const ids = (backups) => backups.map(({ id }) => id).sort();
const codes = ({ warnings }) => warnings.map(({ code }) => code);

/** Adds a node, which tells the project from others. */
const mark = (root, name) =>
  withDatabase(path.join(root, '.kg/knowledge.db'), (db) =>
    db.prepare('INSERT INTO nodes (id, title, content) VALUES (?, ?, ?)').run(name, name, name),
  );

const isMarked = (root, name) =>
  withDatabase(path.join(root, '.kg/knowledge.db'), (db) =>
    db.prepare('SELECT count(*) AS n FROM nodes WHERE id = ?').get(name),
  ).n === 1;

/** Puts another project at the path of one, as in a second container. `swap` exchanges the two. */
function twoAtOnePath() {
  const { root } = makeProject({ nodes: 20 });
  mark(root, 'first');
  const away = path.join(temporaryDirectory(), 'away');
  const swap = () => {
    const between = `${away}-between`;
    renameSync(root, between);
    renameSync(away, root);
    renameSync(between, away);
  };
  renameSync(makeProject({ nodes: 20 }).root, away);
  mark(away, 'second');
  const backupDir = temporaryDirectory();
  const open = (config = {}) => createBackupManager({ projectRoot: root, backupDir, ...config });
  return { root, backupDir, swap, open };
}

/** Rewrites a sidecar as a release without ids wrote it. */
function withoutId(backup) {
  const file = `${backup.path}.manifest.json`;
  const manifest = JSON.parse(readFileSync(file, 'utf8'));
  manifest.project = manifest.projectPath;
  delete manifest.projectPath;
  writeFileSync(file, JSON.stringify(manifest));
}

test('the first backup gives a project an id, which its backups and the list show', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const [first, second] = [await manager.createBackup(), await manager.createBackup()];
  expect(idOf(root)).toMatch(ID);
  expect([first, second].map(({ projectId }) => projectId)).toEqual([idOf(root), idOf(root)]);
  const { stdout } = await kg(['diag', 'backup', '--list', '--json', '--output', backups], {
    cwd: root,
  });
  expect(resultOf(stdout).backups.map(({ projectId }) => projectId)).toEqual([
    idOf(root),
    idOf(root),
  ]);
  expect(run('tar', ['-tzf', first.path]), 'the manifest has the id').not.toContain('project-id');
});

test('retention never removes the backups of another project at the same path', async () => {
  const { swap, open } = twoAtOnePath();
  const first = [await open().createBackup(), await open().createBackup()];
  swap();
  const second = [await open().createBackup(), await open({ maxBackups: 1 }).createBackup()];
  expect(ids(await open().listBackups())).toEqual(ids([...first, second[1]]));
  expect((await open({ maxBackups: 1 }).prune()).decisions).toHaveLength(1);
  swap();
  const third = await open({ maxBackups: 1 }).createBackup();
  expect(ids(await open().listBackups())).toEqual(ids([second[1], third]));
});

test('latest means a backup of the project, not a newer one of the same path', async () => {
  const { root, swap, open } = twoAtOnePath();
  await open().createBackup();
  swap();
  await open().createBackup();
  swap();
  const target = path.join(temporaryDirectory(), 'restored');
  mark(root, 'later');
  await open().restore({ backupId: 'latest', targetDir: root, overwrite: true });
  expect([isMarked(root, 'first'), isMarked(root, 'later')]).toEqual([true, false]);
  expect(existsSync(target)).toBe(false);
});

test('a project that lost .kg gets its id and its backups back', async () => {
  const { root } = makeProject({ nodes: 20 });
  mark(root, 'first');
  const backupDir = temporaryDirectory();
  const manager = createBackupManager({ projectRoot: root, backupDir, maxBackups: 2 });
  const made = [await manager.createBackup(), await manager.createBackup()];
  const id = idOf(root);
  rmSync(path.join(root, '.kg'), { recursive: true });
  const restored = await manager.restore({ backupId: 'latest', targetDir: root });
  expect(codes(restored)).toEqual([]);
  expect(idOf(root)).toBe(id);
  expect(isMarked(root, 'first')).toBe(true);
  const next = await manager.createBackup();
  expect(ids(await manager.listBackups()), 'retention goes on').toEqual(ids([made[1], next]));
});

test('latest is refused after a loss of .kg if the path had several projects', async () => {
  const { root, swap, open } = twoAtOnePath();
  const first = await open().createBackup();
  swap();
  const second = await open().createBackup();
  rmSync(path.join(root, '.kg'), { recursive: true });
  const restore = (backupId) => open().restore({ backupId, targetDir: root });
  await expect(restore('latest')).rejects.toMatchObject({
    code: 'KG_AMBIGUOUS',
    message: expect.stringMatching(`${second.id}.*${first.id}`),
  });
  await restore(first.id);
  expect(isMarked(root, 'first')).toBe(true);
  expect(idOf(root)).toBe(first.projectId);
});

test('a copy of a project neither removes nor continues the backups of the original', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const original = createBackupManager({ projectRoot: root, backupDir: backups });
  const made = [await original.createBackup(), await original.createBackup()];
  const copy = path.join(temporaryDirectory(), 'copy');
  cpSync(root, copy, { recursive: true });
  const copied = createBackupManager({ projectRoot: copy, backupDir: backups, maxBackups: 1 });
  expect((await copied.createBackup({ type: 'incremental' })).type).toBe('full');
  const last = await copied.createBackup();
  expect(ids(await original.listBackups())).toEqual(ids([...made, last]));
  const { stdout } = await kg(['diag', 'backup', '--list', '--output', backups], { cwd: root });
  expect(stdout.match(/\[other path\]/g)).toHaveLength(1);

  // Both know what the other made, but prefer their own.
  mark(root, 'later');
  await original.restore({ backupId: 'latest', targetDir: root, overwrite: true });
  expect(isMarked(root, 'later')).toBe(false);
});

test('a project that was moved still finds its backups', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  await createBackupManager({ projectRoot: root, backupDir: backups }).createBackup();
  const moved = path.join(temporaryDirectory(), 'moved');
  renameSync(root, moved);
  const manager = createBackupManager({ projectRoot: moved, backupDir: backups });
  mark(moved, 'later');
  const restored = await manager.restore({ backupId: 'latest', targetDir: moved, overwrite: true });
  expect(codes(restored)).toEqual([]);
  expect(isMarked(moved, 'later')).toBe(false);
});

test('a restore over another project leaves the id of that project', async () => {
  const [one, other] = [makeProject({ nodes: 20 }), makeProject({ nodes: 20 })];
  const manager = createBackupManager({ projectRoot: one.root, backupDir: one.backups });
  await createBackupManager({ projectRoot: other.root, backupDir: other.backups }).createBackup();
  const backup = await manager.createBackup();
  const before = idOf(other.root);
  await manager.restore({ backupId: backup.id, targetDir: other.root, overwrite: true });
  expect(idOf(other.root)).toBe(before);
});

test('a restore without the database and a dry run write no id', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const { id } = await manager.createBackup();
  const targetDir = path.join(temporaryDirectory(), 'part');
  await manager.restore({ backupId: id, targetDir, dryRun: true });
  expect(existsSync(targetDir)).toBe(false);
  await manager.restore({ backupId: id, targetDir, only: ['config'] });
  expect(existsSync(idFile(targetDir))).toBe(false);
  await manager.restore({ backupId: id, targetDir, only: ['database'] });
  expect(idOf(targetDir)).toBe(idOf(root));
});

test('backups of earlier releases stay those of their project', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const old = await manager.createBackup();
  withoutId(old);
  rmSync(idFile(root));
  expect(
    (await kg(['diag', 'backup', '--status', '--output', backups], { cwd: root })).status,
  ).toBe(0);
  const next = await manager.createBackup({ type: 'incremental' });
  expect(next.basedOn, 'it can be a base').toBe(old.id);
  const last = [await manager.createBackup(), await manager.createBackup()];
  const pruned = await createBackupManager({
    projectRoot: root,
    backupDir: backups,
    maxBackups: 2,
  }).prune();
  expect(pruned.decisions.filter(({ kept }) => !kept)).toHaveLength(2);
  expect(ids(await manager.listBackups())).toEqual(ids(last));
});

test('backups of earlier releases belong to no project if two have their path', async () => {
  const { swap, open } = twoAtOnePath();
  const old = await open().createBackup();
  withoutId(old);
  const own = [await open().createBackup()];
  swap();
  own.push(await open({ maxBackups: 1 }).createBackup());
  own.push(await open({ maxBackups: 1 }).createBackup());
  expect(ids(await open().listBackups())).toEqual(ids([old, own[0], own[2]]));
});

test('a restore over a project without backups gives it no id, nor does its undo', async () => {
  const { root, swap, open } = twoAtOnePath();
  const first = [await open().createBackup(), await open().createBackup()];
  swap();
  await open().restore({ backupId: first[0].id, targetDir: root, overwrite: true });
  expect(existsSync(idFile(root)), 'it had a database').toBe(false);
  await open().undoRestore();
  expect(isMarked(root, 'second')).toBe(true);
  const own = await open({ maxBackups: 1 }).createBackup();
  expect(ids(await open().listBackups())).toEqual(ids([...first, own]));
});

test('the undo of a restore takes back the id that it brought', async () => {
  const { root } = makeProject({ nodes: 20 });
  const backupDir = temporaryDirectory();
  const manager = createBackupManager({ projectRoot: root, backupDir });
  const { id, projectId } = await manager.createBackup();
  const other = path.join(temporaryDirectory(), 'other');
  mkdirSync(path.join(other, '.kg'), { recursive: true });
  writeFileSync(path.join(other, '.kg/config.json'), '{}');
  const restored = createBackupManager({ projectRoot: other, backupDir });
  await restored.restore({ backupId: id, targetDir: other, overwrite: true });
  expect(idOf(other)).toBe(projectId);
  await restored.undoRestore();
  expect(existsSync(idFile(other))).toBe(false);
});

test('an undo keeps an id that the project had before the restore', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const { id, projectId } = await manager.createBackup();
  for (const suffix of ['', '-wal', '-shm'])
    rmSync(path.join(root, `.kg/knowledge.db${suffix}`), { force: true });
  await manager.restore({ backupId: id, targetDir: root, overwrite: true });
  await manager.undoRestore();
  expect(idOf(root)).toBe(projectId);
});

test('retention leaves the backups of a project whose id cannot be used', async () => {
  const { root, swap, open } = twoAtOnePath();
  mkdirSync(idFile(root));
  const unidentified = await open().createBackup();
  expect(codes(unidentified)).toEqual(['KG_WARN_PROJECT_ID']);
  swap();
  const own = [await open().createBackup(), await open({ maxBackups: 1 }).createBackup()];
  expect(ids(await open().listBackups())).toEqual(ids([unidentified, own[1]]));
  const { stdout } = await kg(
    ['diag', 'prune', '--max-backups', '1', '--json', '--output', open().backupDir],
    { cwd: path.dirname(open().backupDir) },
  );
  expect(resultOf(stdout).decisions.filter(({ kept }) => !kept)).toEqual([]);
});

test('after a loss of .kg, latest is the newest backup of the path, with or without an id', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  withoutId(await manager.createBackup());
  mark(root, 'later');
  const { projectId } = await manager.createBackup();
  rmSync(path.join(root, '.kg'), { recursive: true });
  await manager.restore({ backupId: 'latest', targetDir: root });
  expect(isMarked(root, 'later')).toBe(true);
  expect(idOf(root)).toBe(projectId);
});

test('latest warns if it is one of several copies of a project that was moved', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  await createBackupManager({ projectRoot: root, backupDir: backups }).createBackup();
  const copy = path.join(temporaryDirectory(), 'copy');
  cpSync(root, copy, { recursive: true });
  await createBackupManager({ projectRoot: copy, backupDir: backups }).createBackup();
  const moved = path.join(temporaryDirectory(), 'moved');
  renameSync(root, moved);
  const manager = createBackupManager({ projectRoot: moved, backupDir: backups });
  const restored = await manager.restore({ backupId: 'latest', targetDir: moved, overwrite: true });
  expect(codes(restored)).toEqual(['KG_WARN_OTHER_PROJECT']);
});

test('a new id does not make the store look emptied', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  await manager.createBackup();
  rmSync(idFile(root));
  expect(codes(await manager.createBackup())).toEqual([]);
});

test('an id that cannot be read is kept, and the backup says so', async () => {
  const { root, backups } = makeProject({ nodes: 20 });
  writeFileSync(idFile(root), 'not an id');
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const backup = await manager.createBackup();
  expect(codes(backup)).toEqual(['KG_WARN_PROJECT_ID']);
  expect(readFileSync(idFile(root), 'utf8')).toBe('not an id');
  expect(await manager.verifyBackup(backup.id)).toBe(true);
});
