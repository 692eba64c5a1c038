// A copy of a project whose configuration names the database of the original. Commands in the copy
// neither read nor write that database.

import {
  cpSync,
  existsSync,
  mkdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager, IntegrityChecker } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { kg, run } from './support/processes.mjs';
import { contents, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const configure = (root, config) =>
  writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify({ database: { path: config } }));
const archiveOf = ({ backups }) => path.join(backups, 'latest.tar.gz');

/** Makes a project with a backup and a later change that a repair would remove. */
async function makeOriginal(place) {
  const project = makeProject();
  const database = place(project);
  const restored = path.join(project.root, '../copy');
  expect(
    await kg(['diag', 'backup', '--project', project.root, '--output', project.backups]),
  ).toMatchObject({ status: 0 });
  withDatabase(database, (db) =>
    db.exec(
      "PRAGMA foreign_keys = off; INSERT INTO edges (source_id, target_id) VALUES ('nobody', 'n1')",
    ),
  );
  return { ...project, database, copy: restored };
}

/** Ways in which a copy can name the database of its original. */
const COPIES = {
  'restored from a backup with an absolute path': async () => {
    const project = await makeOriginal(
      ({ root, database }) => (configure(root, database), database),
    );
    expect(
      await kg(['diag', 'restore', '--file', archiveOf(project), '--target', project.copy]),
    ).toMatchObject({ status: 0 });
    return project;
  },
  'restored from a backup with a relative path that leads up': async () => {
    const project = await makeOriginal(
      ({ root, database }) => (configure(root, '../project/.kg/knowledge.db'), database),
    );
    expect(
      await kg(['diag', 'restore', '--file', archiveOf(project), '--target', project.copy]),
    ).toMatchObject({ status: 0 });
    return project;
  },
  'copied with an absolute path': async () => {
    const project = await makeOriginal(
      ({ root, database }) => (configure(root, database), database),
    );
    cpSync(project.root, project.copy, { recursive: true });
    return project;
  },
  'with a symbolic link to the database': async () => {
    const project = await makeOriginal(({ database }) => database);
    cpSync(project.root, project.copy, { recursive: true });
    for (const suffix of ['', '-wal', '-shm'])
      rmSync(path.join(project.copy, `.kg/knowledge.db${suffix}`), { force: true });
    symlinkSync(project.database, path.join(project.copy, '.kg/knowledge.db'));
    return project;
  },
  'of a project whose database is next to its .kg': async () => {
    const project = await makeOriginal(({ root, database }) => {
      const graph = path.join(root, 'data/graph.db');
      mkdirSync(path.dirname(graph));
      renameSync(database, graph);
      configure(root, graph);
      return graph;
    });
    cpSync(project.root, project.copy, { recursive: true });
    return project;
  },
};

describe('a copy', () => {
  for (const [how, arrange] of Object.entries(COPIES)) {
    test(`${how} is not healthy, and no command in it changes the original`, async () => {
      const project = await arrange();
      const { root, copy } = project;
      const before = contents(root);
      for (const args of [['health'], ['health', '--check-db'], ['integrity']]) {
        const { status, stdout } = await kg(['diag', ...args, '--project', copy, '--json']);
        expect([args, status]).toEqual([args, 3]);
        const { issues, checked } = resultOf(stdout);
        const [issue] = issues.filter(({ code }) => code === 'KG_ISSUE_DATABASE_OUTSIDE');
        expect(issue).toMatchObject({ severity: 'error', message: expect.stringContaining(root) });
        expect(checked.nodes).toBe(0);
      }
      const repair = await kg(['diag', 'repair', '--auto', '--project', copy]);
      expect(repair).toMatchObject({
        status: 2,
        stderr: expect.stringContaining('KG_INVALID_OPTION'),
      });
      await expect(
        new IntegrityChecker(copy).repair([{ code: 'KG_ISSUE_EDGE_SOURCE' }]),
      ).rejects.toMatchObject({ code: 'KG_INVALID_OPTION' });
      const restore = ['diag', 'restore', '--project', copy, '--file', archiveOf(project), '--yes'];
      for (const args of [
        restore,
        [...restore, '--force'],
        [...restore, '--db-only'],
        [...restore, '--dry-run'],
      ]) {
        expect((await kg(args)).status).toBe(4);
      }
      const undo = await kg(['diag', 'restore', '--project', copy, '--undo', '--yes']);
      expect(undo.status).not.toBe(0);
      const backup = await kg([
        'diag',
        'backup',
        '--project',
        copy,
        '--output',
        path.join(root, '../of-copy'),
        '--json',
      ]);
      const warnings = resultOf(backup.stdout).warnings.filter(
        ({ code }) => code === 'KG_WARN_CONFIG',
      );
      expect(warnings.map(({ message }) => message).join()).toContain('another project');
      expect(contents(root)).toEqual(before);
    });
  }

  test('is healthy once it names its own database', async () => {
    const { copy } = await COPIES['restored from a backup with an absolute path']();
    configure(copy, '.kg/knowledge.db');
    expect(await kg(['diag', 'health', '--check-db', '--project', copy])).toMatchObject({
      status: 0,
    });
    expect(await kg(['diag', 'repair', '--auto', '--project', copy])).toMatchObject({ status: 0 });
  });
});

test('a hard-linked copy is not repaired, and a restore into it does not change the original', async () => {
  const project = await makeOriginal(({ database }) => database);
  const { root, copy } = project;
  run('cp', ['-al', root, copy]);
  const before = contents(root);
  const { stdout } = await kg(['diag', 'health', '--project', copy, '--json']);
  expect(stdout).toContain('KG_ISSUE_DATABASE_OUTSIDE');
  expect(await kg(['diag', 'repair', '--auto', '--project', copy])).toMatchObject({ status: 2 });
  expect(
    await kg(['diag', 'restore', '--project', copy, '--file', archiveOf(project), '--yes']),
  ).toMatchObject({ status: 0 });
  expect(contents(root)).toEqual(before);
  expect(await kg(['diag', 'repair', '--auto', '--project', copy])).toMatchObject({ status: 0 });
  expect(await kg(['diag', 'restore', '--project', copy, '--undo', '--yes'])).toMatchObject({
    status: 0,
  });
  expect(contents(root)).toEqual(before);
});

describe('a database outside every project', () => {
  const outside = () =>
    makeOriginal(({ root, database }) => {
      const graph = path.join(temporaryDirectory(), 'graph.db');
      renameSync(database, graph);
      configure(root, graph);
      return graph;
    });
  const orphans = (database) =>
    withDatabase(database, (db) =>
      db.prepare("SELECT count(*) FROM edges WHERE source_id = 'nobody'").pluck().get(),
    );

  test('is checked with a warning, and repaired if the call names it', async () => {
    const { root, database, backups } = await outside();
    const { stdout } = await kg(['diag', 'integrity', '--project', root, '--json']);
    const [issue] = resultOf(stdout).issues.filter(
      ({ code }) => code === 'KG_ISSUE_DATABASE_OUTSIDE',
    );
    expect(issue).toMatchObject({ severity: 'warning' });
    const unnamed = await kg(['diag', 'repair', '--auto', '--project', root]);
    expect(unnamed).toMatchObject({
      status: 2,
      stderr: expect.stringContaining(`kg diag repair '${database}' --project '${root}'`),
    });
    expect(orphans(database)).toBe(1);
    const named = await kg([
      'diag',
      'repair',
      database,
      '--project',
      root,
      '--auto',
      '--backup-dir',
      backups,
      '--json',
    ]);
    expect(named).toMatchObject({ status: 0 });
    expect(resultOf(named.stdout).repair).toMatchObject({ fixed: 1, safetyBackup: {} });
    expect(orphans(database)).toBe(0);
  });

  test('is written by a restore of its project, but not by a later one into a copy of that project', async () => {
    const project = await outside();
    const { root, database, copy, backups } = project;
    expect(
      await kg(['diag', 'restore', '--file', archiveOf(project), '--target', copy]),
    ).toMatchObject({ status: 0 });
    expect(existsSync(path.join(copy, '.kg/knowledge.db'))).toBe(true);
    const again = await kg([
      'diag',
      'restore',
      '--project',
      copy,
      '--file',
      archiveOf(project),
      '--yes',
    ]);
    expect(again).toMatchObject({
      status: 4,
      stderr: expect.stringContaining('KG_TARGET_INVALID'),
    });
    expect(orphans(database)).toBe(1);
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    await manager.restore({ backupId: 'latest', overwrite: true });
    expect(orphans(database)).toBe(0);
  });
});
