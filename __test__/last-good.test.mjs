// Mistakes that could cost users their last good backup, or restore it to the wrong place.

import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import {
  IntegrityChecker,
  backupFreshnessCheck,
  createBackupManager,
} from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { kg } from './support/processes.mjs';
import { makeProject, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const DAY = 24 * 60 * 60 * 1000;
const nodes = (file) =>
  withDatabase(file, (db) => db.prepare('SELECT count(*) AS n FROM nodes').get().n);
const reasons = (created) =>
  created.retention.decisions.map(({ id, kept, reason }) => [id, kept, reason]);

/** Changes the date of a backup, as if the clock had been wrong. */
function setBackupDate(backup, at) {
  const file = `${backup.path}.manifest.json`;
  writeFileSync(
    file,
    JSON.stringify({
      ...JSON.parse(readFileSync(file, 'utf8')),
      timestamp: new Date(at).toISOString(),
    }),
  );
}

describe('a backup with a future date', () => {
  async function makeFutureBackup() {
    const { root, backups, database } = makeProject({ nodes: 10 });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const future = await manager.createBackup();
    setBackupDate(future, Date.now() + 30 * DAY);
    return { root, backups, database, manager, future };
  }

  test('does not displace a new backup and is not latest, base or fresh', async () => {
    const { root, backups, manager, future } = await makeFutureBackup();
    expect(await backupFreshnessCheck(manager, { maxAge: '1d' }).check()).toBe(false);
    const limited = createBackupManager({ projectRoot: root, backupDir: backups, maxBackups: 1 });
    const made = await limited.createBackup();
    expect(existsSync(made.path)).toBe(true);
    expect(made.retention.decisions[0]).toMatchObject({ id: made.id, kept: true });
    expect(made.warnings).toMatchObject([
      {
        code: 'KG_WARN_STORE',
        message: expect.stringContaining(`${future.id} is dated ahead of now`),
      },
    ]);
    expect((await manager.getLatestBackup()).id).toBe(made.id);
    expect(await backupFreshnessCheck(manager, { maxAge: '1d' }).check()).toBe(true);
    expect((await manager.createBackup({ type: 'incremental' })).basedOn).toBe(made.id);
  });

  test('is an issue of health while it is the only backup', async () => {
    const { root, backups } = await makeFutureBackup();
    const { stdout } = await kg(['diag', 'health', '--backup-dir', backups, '--json'], {
      cwd: root,
    });
    expect(resultOf(stdout).issues).toContainEqual(
      expect.objectContaining({
        code: 'KG_ISSUE_BACKUP_OLD',
        message: expect.stringContaining('dated in the future'),
      }),
    );
  });
});

describe('retention keeps content that the newest backup lacks', () => {
  test('after a snapshot, the newest full backup, which is also `latest` when a part is requested', async () => {
    const { root, backups } = makeProject({ nodes: 10 });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups, maxBackups: 1 });
    const full = await manager.createBackup();
    const snapshot = await manager.createBackup({ type: 'snapshot' });
    expect(reasons(snapshot)).toEqual([
      [snapshot.id, true, 'newest-good'],
      [full.id, true, 'newest-good'],
    ]);
    writeFileSync(path.join(root, '.kg/config.json'), '{}');
    const restored = await kg(
      ['diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--config-only', '--json'],
      { cwd: root },
    );
    expect(resultOf(restored.stdout)).toMatchObject({ id: full.id });
    expect(readFileSync(path.join(root, '.kg/config.json'), 'utf8')).toContain('dark');
    const lacking = await kg(
      ['diag', 'restore', '--file', snapshot.id, '--backup-dir', backups, '--config-only'],
      { cwd: root },
    );
    expect(lacking).toMatchObject({
      status: 2,
      stderr: expect.stringContaining(`Restore ${full.id}, which contains some`),
    });
  });

  test('after an emptied graph, the newest backup with nodes', async () => {
    const { root, backups, database } = makeProject({ nodes: 10 });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups, maxBackups: 1 });
    const full = await manager.createBackup();
    for (const suffix of ['', '-wal', '-shm']) rmSync(database + suffix, { force: true });
    writeFileSync(database, '');
    for (let time = 0; time < 2; time += 1) {
      const empty = await manager.createBackup();
      expect((await manager.listBackups()).map(({ id }) => id)).toEqual([empty.id, full.id]);
    }
  });
});

describe('projects that share a backup directory', () => {
  async function makeTwoProjects() {
    const [a, b] = [makeProject({ nodes: 10 }), makeProject({ nodes: 20 })];
    const managers = [a, b].map(({ root }) =>
      createBackupManager({ projectRoot: root, backupDir: a.backups, maxBackups: 1 }),
    );
    const first = await managers[0].createBackup();
    const second = await managers[1].createBackup();
    return { a, b, backups: a.backups, managers, first, second };
  }

  test('each have their own retention and latest', async () => {
    const { a, backups, managers, first, second } = await makeTwoProjects();
    expect(reasons(second)).toEqual([[second.id, true, 'newest-good']]);
    expect((await managers[0].listBackups()).map(({ id }) => id)).toEqual([second.id, first.id]);
    expect((await managers[0].getLatestBackup()).id).toBe(first.id);
    expect((await managers[1].getLatestBackup()).id).toBe(second.id);
    const pruned = await managers[0].prune();
    expect(pruned.decisions).toMatchObject([{ id: first.id, kept: true }]);
    expect(pruned.warnings).toMatchObject([
      {
        code: 'KG_WARN_STORE',
        message: expect.stringMatching(/^1 backup in .* belongs to other projects/),
      },
    ]);
    const restored = await kg(['diag', 'restore', '--file', 'latest', '--backup-dir', backups], {
      cwd: a.root,
    });
    expect(restored).toMatchObject({ status: 0, stdout: expect.stringContaining(first.id) });
    expect(nodes(a.database)).toBe(10);
  });

  test('cause a warning if one is restored over the other, which can be undone', async () => {
    const { a, second } = await makeTwoProjects();
    const restored = await kg(['diag', 'restore', '--file', second.path], { cwd: a.root });
    expect(restored).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(
        /belongs to another project than .*--undo.* \[KG_WARN_OTHER_PROJECT\]/,
      ),
    });
    expect(nodes(a.database)).toBe(20);
    expect((await kg(['diag', 'restore', '--undo'], { cwd: a.root })).status).toBe(0);
    expect(nodes(a.database)).toBe(10);
  });

  test('are pruned separately from outside any project, so that each keeps its last good backup', async () => {
    const { backups, first, second } = await makeTwoProjects();
    const { stdout } = await kg(
      ['diag', 'prune', '--output', backups, '--max-backups', '1', '--json'],
      { cwd: path.dirname(backups) },
    );
    expect(resultOf(stdout).decisions.map(({ id, kept }) => [id, kept])).toEqual([
      [second.id, true],
      [first.id, true],
    ]);
    const { backups: mixed, managers, first: oldest, second: other } = await makeTwoProjects();
    await managers[0].pin(oldest.id);
    const newest = await managers[0].createBackup();
    await managers[0].unpin(oldest.id);
    const pruned = await kg(['diag', 'prune', '--output', mixed, '--max-backups', '1', '--json'], {
      cwd: path.dirname(mixed),
    });
    expect(resultOf(pruned.stdout).decisions.map(({ id, kept }) => [id, kept])).toEqual([
      [newest.id, true],
      [other.id, true],
      [oldest.id, false],
    ]);
  });

  test('find their own backups without a `.kg`, and restore another one with a warning', async () => {
    const { a, b, backups, managers, first } = await makeTwoProjects();
    rmSync(path.join(a.root, '.kg'), { recursive: true });
    const own = await kg(
      ['diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--json'],
      { cwd: a.root },
    );
    expect(resultOf(own.stdout)).toMatchObject({ id: first.id, warnings: [] });
    const elsewhere = path.join(a.root, '../elsewhere');
    mkdirSync(elsewhere);
    const other = await kg(
      ['diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--json'],
      { cwd: elsewhere },
    );
    expect(resultOf(other.stdout)).toMatchObject({
      filesReplaced: 0,
      warnings: [{ code: 'KG_WARN_OTHER_PROJECT' }],
    });
    // The call from outside any project names the target.
    rmSync(path.join(a.root, '.kg'), { recursive: true });
    const outside = path.dirname(backups);
    const targeted = await kg(
      [
        'diag',
        'restore',
        '--file',
        'latest',
        '--backup-dir',
        backups,
        '--target',
        a.root,
        '--json',
      ],
      { cwd: outside },
    );
    expect(resultOf(targeted.stdout)).toMatchObject({ id: first.id, warnings: [] });
    expect((await managers[1].checkBackup('latest')).warnings).toEqual([]);
    expect(existsSync(path.join(b.root, '.kg'))).toBe(true);
  });

  test('are not healthy or fresh because of backups of other projects', async () => {
    const { backups, managers } = await makeTwoProjects();
    const { root } = makeProject({ nodes: 10 });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    expect(await backupFreshnessCheck(managers[0]).check()).toBe(true);
    expect(await backupFreshnessCheck(manager).check()).toBe(false);
    const health = resultOf(
      (await kg(['diag', 'health', '--backup-dir', backups, '--json'], { cwd: root })).stdout,
    );
    expect(health.backups).toMatchObject({ count: 0 });
    expect(health.issues).toContainEqual(expect.objectContaining({ code: 'KG_ISSUE_BACKUP_NONE' }));
  });

  test('see backups from before a move, in list, status and prune', async () => {
    const { a, backups, second } = await makeTwoProjects();
    const moved = `${a.root}-moved`;
    renameSync(a.root, moved);
    const diag = (...args) => kg(['diag', ...args, '--output', backups], { cwd: moved });
    const { stdout: list } = await diag('backup', '--list');
    expect(list.match(/\[other project: [0-9a-f]{16}\]/g)).toHaveLength(1);
    expect(list.match(/\[other path\]/g)).toHaveLength(1);
    const status = resultOf((await diag('backup', '--status', '--json')).stdout);
    expect(status).toMatchObject({ count: 2, others: 2, storeEmptied: false });
    expect((await diag('backup', '--status')).stdout).toContain(
      'to this project before it was moved',
    );
    expect((await diag('prune', '--max-backups', '1')).stderr).toContain(
      'to this project before it was moved',
    );
    expect((await diag('backup', '--verify', second.id)).status).toBe(0);
  });
});

describe('a restore goes to its intended place', () => {
  test('and not over a project above a directory that lost its `.kg`', async () => {
    const { root: home, database } = makeProject({ nodes: 10 });
    const project = path.join(home, 'project');
    renameSync(makeProject({ nodes: 20 }).root, project);
    const backups = path.join(project, 'backups');
    await createBackupManager({ projectRoot: project, backupDir: backups }).createBackup();
    rmSync(path.join(project, '.kg'), { recursive: true });
    const refused = await kg(['diag', 'restore', '--file', './backups/latest.tar.gz'], {
      cwd: project,
    });
    expect(refused).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('`--target .` restores into this directory'),
    });
    expect(nodes(database)).toBe(10);
    expect(
      (
        await kg(['diag', 'restore', '--file', './backups/latest.tar.gz', '--target', '.'], {
          cwd: project,
        })
      ).status,
    ).toBe(0);
    expect(nodes(path.join(project, '.kg/knowledge.db'))).toBe(20);
    // In a subdirectory of the backed-up project, the restore finds that project.
    mkdirSync(path.join(project, 'docs'));
    expect(
      (
        await kg(['diag', 'restore', '--file', '../backups/latest.tar.gz'], {
          cwd: path.join(project, 'docs'),
        })
      ).status,
    ).toBe(0);
  });

  test('and treats a path with .. as one without: the database is inside, and the undo stays in the project', async () => {
    const { root, backups } = makeProject({ nodes: 10 });
    const base = path.dirname(root);
    mkdirSync(path.join(base, 'elsewhere'));
    const backup = await createBackupManager({
      projectRoot: root,
      backupDir: backups,
    }).createBackup();
    const cwd = path.join(base, 'elsewhere');
    const restore = (...args) => kg(['diag', 'restore', ...args], { cwd });
    expect(await restore('--file', backup.path, '--project', '../project')).toMatchObject({
      status: 0,
      stderr: '',
    });
    expect(await restore('--file', backup.path, '--target', '../new')).toMatchObject({
      status: 0,
      stderr: '',
    });
    expect(nodes(path.join(base, 'new/.kg/knowledge.db'))).toBe(10);
    const undo = readdirSync(path.join(root, '.kg/restore-undo'));
    const journal = readFileSync(path.join(root, '.kg/restore-undo', undo[0], 'undo.json'), 'utf8');
    expect(journal).not.toContain(base);
  });

  test('and never into the .kg of a project', async () => {
    const { root, backups } = makeProject({ nodes: 10 });
    const backup = await createBackupManager({
      projectRoot: root,
      backupDir: backups,
    }).createBackup();
    for (const target of ['.kg', '.kg/backups']) {
      const refused = await kg(['diag', 'restore', '--file', backup.path, '--target', target], {
        cwd: root,
      });
      expect(refused).toMatchObject({
        status: 4,
        stderr: expect.stringContaining('[KG_TARGET_INVALID]'),
      });
    }
    await expect(
      createBackupManager({ projectRoot: root }).restore({
        backupPath: backup.path,
        targetDir: '',
      }),
    ).rejects.toMatchObject({ code: 'KG_INVALID_OPTION' });
  });
});

test('a database with a relative path belongs to its project', async () => {
  const { root } = makeProject({ nodes: 10 });
  for (const [cwd, name] of [
    [root, '.kg/knowledge.db'],
    [path.join(root, '.kg'), 'knowledge.db'],
    [root, 'x/../.kg/knowledge.db'],
  ]) {
    mkdirSync(path.join(root, 'x'), { recursive: true });
    const { stdout } = await kg(['diag', 'integrity', name, '--json'], { cwd });
    expect(resultOf(stdout).checked).toMatchObject({
      project: expect.stringContaining('/project'),
    });
  }
  expect(
    (await new IntegrityChecker(path.join(root, '.kg/knowledge.db')).runChecks()).checked.project,
  ).toContain('/project');
});

test('archives without manifests are not reported as absent', async () => {
  const { root, backups } = makeProject({ nodes: 10 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const backup = await manager.createBackup();
  rmSync(`${backup.path}.manifest.json`);
  await expect(manager.getLatestBackup()).rejects.toMatchObject({
    code: 'KG_NO_BACKUPS',
    message: expect.stringContaining(
      'contains 1 archives, but none has a matching, readable manifest',
    ),
  });
  const listed = await kg(['diag', 'backup', '--list', '--output', backups, '--json'], {
    cwd: root,
  });
  const { result, warnings } = JSON.parse(listed.stdout);
  expect([listed.status, result]).toMatchObject([
    0,
    { backups: [], unlisted: [{ path: backup.path }] },
  ]);
  expect(warnings).toMatchObject([
    { message: expect.stringContaining(`cannot be used as backups; the first: ${backup.path}`) },
  ]);
});

test('a line in a description does not look like a backup in a list', async () => {
  const { root, backups } = makeProject({ nodes: 10 });
  await createBackupManager({ projectRoot: root, backupDir: backups }).createBackup({
    description: 'one\nbackup-20200101-000000 full',
  });
  const { stdout } = await kg(['diag', 'backup', '--list', '--output', backups], { cwd: root });
  expect(stdout.match(/^backup-/gm)).toHaveLength(1);
});
