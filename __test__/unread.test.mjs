// An unreadable file is not a missing file. If an archive or manifest cannot be read, no command
// removes or replaces anything, and a message says so.

import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { failing } from './support/faults.mjs';
import { kgPath, run } from './support/processes.mjs';
import { makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { isRoot, projectOf } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

const MANIFEST = '.manifest.json';
const files = (backups) =>
  readdirSync(backups)
    .filter((name) => name.startsWith('kg-backup-'))
    .sort();

/** Makes a store with a full backup, a pinned incremental one on it, and a newer full one. */
function makeChain() {
  const { root, database, backups } = makeProject({ nodes: 50 });
  const make = (...args) =>
    resultOf(
      run(kgPath, ['diag', 'backup', '--output', backups, '--json', ...args], { cwd: root }),
    );
  const base = make();
  withDatabase(database, (db) => db.exec("UPDATE nodes SET title = 'changed' WHERE id = 'n1'"));
  const pinned = make('--type', 'incremental');
  run(kgPath, ['diag', 'backup', '--output', backups, '--pin', pinned.id], { cwd: root });
  const newest = make();
  return { root, backups, base, pinned, newest };
}

describe.each([
  ['openat', 'EIO'],
  ['openat', 'EMFILE'],
  ['statx', 'EACCES'],
])('while %s of a manifest fails with %s', (call, error) => {
  const without = (backup, args, cwd) =>
    failing(call, error, ['diag', ...args], { only: backup.path + MANIFEST, cwd });

  test('no backup is removed, by command or by retention, and the manifest stays', () => {
    const { root, backups, base, pinned } = makeChain();
    const [before, manifest] = [files(backups), readFileSync(pinned.path + MANIFEST)];
    const refused = (...args) => {
      const { status, stdout, stderr } = without(pinned, [...args, '--output', backups], root);
      expect([args, status, stdout, stderr]).toEqual([
        args,
        4,
        expect.anything(),
        expect.stringContaining(pinned.path + MANIFEST),
      ]);
    };
    refused('prune', '--max-backups', '1');
    refused('prune', '--max-backups', '1', '--dry-run');
    refused('backup', '--delete', base.id, '--cascade');
    refused('backup', '--delete', pinned.id);
    expect(files(backups)).toEqual(before);

    const made = without(
      pinned,
      ['backup', '--max-backups', '1', '--output', backups, '--json'],
      root,
    );
    expect(made).toMatchObject({ status: 6, stderr: '' });
    const { id, retention, retentionError, incomplete, warnings } = resultOf(made.stdout);
    expect({ retention, incomplete }).toEqual({});
    expect(warnings).toContainEqual({
      code: 'KG_WARN_STORE',
      message: expect.stringContaining('none was removed'),
    });
    expect(retentionError).toMatchObject({
      code: expect.stringMatching(/^KG_/),
      message: expect.stringContaining(pinned.id),
    });
    expect(files(backups)).toEqual(
      [...before, `kg-${id}.tar.gz`, `kg-${id}.tar.gz${MANIFEST}`].sort(),
    );
    expect(readFileSync(pinned.path + MANIFEST)).toEqual(manifest);
  });

  test('an older backup is not the latest', () => {
    const { root, backups, pinned, newest } = makeChain();
    const target = temporaryDirectory();
    for (const args of [
      ['restore', '--file', 'latest', '--target', target, '--backup-dir', backups],
      ['backup', '--verify', 'latest', '--output', backups],
      ['drill', '--backup-dir', backups],
    ]) {
      const { status, stderr } = without(newest, args, root);
      expect([args, status, stderr]).toEqual([
        args,
        4,
        expect.stringContaining(`${newest.id} is the newest backup cannot be determined`),
      ]);
    }
    expect(readdirSync(target)).toEqual([]);
    // An unreadable backup that is older than the newest one does not affect this.
    expect(
      without(pinned, ['backup', '--verify', 'latest', '--output', backups], root),
    ).toMatchObject({ status: 0 });
  });

  test('list, status and health name it, and say that its state is unknown', () => {
    const { root, backups, newest } = makeChain();
    const list = without(newest, ['backup', '--list', '--output', backups], root);
    expect(list).toMatchObject({
      status: 6,
      stdout: expect.stringMatching(new RegExp(`${newest.id} .*\\[cannot be read\\]`)),
    });
    expect(list.stderr).toContain(newest.path + MANIFEST);
    expect(without(newest, ['backup', '--status', '--output', backups], root).stdout).toContain(
      newest.path + MANIFEST,
    );
    const { status, stdout } = without(newest, ['health', '--backup-dir', backups, '--json'], root);
    expect(status).toBe(5);
    expect(resultOf(stdout).issues).toContainEqual(
      expect.objectContaining({
        code: 'KG_ISSUE_BACKUP_UNLISTED',
        severity: 'error',
        message: expect.stringContaining('Could not read'),
      }),
    );
  });
});

test('an archive that cannot be opened does not count as a backup, and no backup is removed because of it', () => {
  const { root, backups, newest, pinned } = makeChain();
  const without = (...args) =>
    failing('openat', 'EIO', ['diag', ...args], { only: newest.path, cwd: root });
  const before = files(backups);
  expect(without('prune', '--max-backups', '1', '--output', backups)).toMatchObject({
    status: 4,
    stderr: expect.stringContaining(newest.path),
  });
  expect(without('backup', '--max-backups', '1', '--output', backups).status).toBe(6);
  expect(files(backups)).toEqual(expect.arrayContaining(before));
  expect(without('backup', '--list', '--output', backups)).toMatchObject({
    status: 6,
    stdout: expect.stringMatching(new RegExp(`${newest.id} .*\\[cannot be read\\]`)),
  });
  expect(without('backup', '--status', '--output', backups).stdout).toContain(newest.path);
  expect(without('health', '--backup-dir', backups)).toMatchObject({
    status: 5,
    stdout: expect.stringContaining(newest.path),
  });
  // A backup with an unreadable base is not reported as lost.
  const base = pinned.path.replace('-2.tar.gz', '.tar.gz');
  const { stdout } = failing('openat', 'EIO', ['diag', 'health', '--backup-dir', backups], {
    only: base,
    cwd: root,
  });
  expect(stdout).toContain('cannot be read');
  expect(stdout).not.toContain('delete these');
});

test('a store that cannot be read is not reported as missing', () => {
  const { root, backups } = makeChain();
  for (const error of ['EACCES', 'EIO']) {
    const { status, stderr } = failing(
      'statx',
      error,
      ['diag', 'prune', '--max-backups', '1', '--output', backups],
      { only: backups, cwd: root },
    );
    expect([status, stderr]).toEqual([4, expect.stringContaining(`Could not look at ${backups}`)]);
  }
});

describe.skipIf(!isRoot)('a database in a directory that this user may not enter', () => {
  test('is not reported as missing', () => {
    const { asRoot, asOwner, root, database } = projectOf(1001);
    mkdirSync(path.join(root, 'data'));
    renameSync(database, path.join(root, 'data/k.db'));
    writeFileSync(path.join(root, '.kg/config.json'), '{"database":{"path":"data/k.db"}}');
    run('chown', ['-R', '0:0', path.join(root, 'data')]);
    chmodSync(path.join(root, 'data'), 0o700);
    for (const command of ['health', 'integrity']) {
      const { status, stdout } = asOwner('diag', command);
      expect([command, status, stdout]).toEqual([
        command,
        3,
        expect.stringContaining('cannot be determined: Permission denied'),
      ]);
      expect(stdout).not.toContain('There is no database');
    }
    expect(asRoot('diag', 'integrity').stdout).not.toContain('cannot be determined');
  });
});

test('a manifest whose archive cannot be inspected is not removed', () => {
  const { root, backups, pinned } = makeChain();
  const { status, stderr } = failing(
    'statx',
    'EACCES',
    ['diag', 'prune', '--max-backups', '1', '--output', backups],
    { only: pinned.path, cwd: root },
  );
  expect([status, stderr]).toEqual([4, expect.stringContaining(pinned.path)]);
  expect(existsSync(pinned.path + MANIFEST)).toBe(true);
});

describe.skipIf(!isRoot)('if every manifest belongs to another user', () => {
  test('no command reports that there is no backup', () => {
    const { asRoot, asOwner } = projectOf(1001);
    const { path: archive } = resultOf(asRoot('diag', 'backup', '--json').stdout);
    run('chown', ['0:0', archive, archive + MANIFEST]);
    [archive, archive + MANIFEST].forEach((file) => chmodSync(file, 0o600));
    const list = asOwner('diag', 'backup', '--list');
    expect(list).toMatchObject({ status: 6, stdout: expect.stringContaining('[cannot be read]') });
    const status = asOwner('diag', 'backup', '--status').stdout;
    expect(status).toContain('could not determine whether there is a backup');
    expect(status).not.toContain('make one');
    const health = asOwner('diag', 'health', '--max-age', '1d');
    expect(health).toMatchObject({
      status: 4,
      stdout: expect.stringContaining('Could not determine whether'),
    });
    expect(health.stdout).not.toContain('Make one');
    expect(asOwner('diag', 'restore', '--file', 'latest', '--yes')).toMatchObject({
      status: 4,
      stderr: expect.stringContaining('KG_PERMISSION_DENIED'),
    });
  });
});

describe.skipIf(!isRoot)('a store that this user may not lock', () => {
  test('is an issue of health', () => {
    const { asRoot, asOwner, root } = projectOf(1001);
    expect(asRoot('diag', 'backup')).toMatchObject({ status: 0 });
    const lock = path.join(root, '.kg/backups/.kg-store.lock');
    expect(asOwner('diag', 'health')).toMatchObject({ status: 0 });
    run('chown', ['0:0', lock]);
    chmodSync(lock, 0o600);
    expect(asOwner('diag', 'backup').status).toBe(4);
    expect(asOwner('diag', 'health')).toMatchObject({
      status: 4,
      stdout: expect.stringContaining(`lock ${lock}: Permission denied`),
    });
  });
});

test('the API rejects a list that would omit unreadable backups', async () => {
  const { root, backups, newest } = makeChain();
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  expect((await manager.listBackups()).map(({ id }) => id)).toContain(newest.id);
  // No user, not even root, can read a link that leads to itself.
  run('mv', [newest.path + MANIFEST, path.join(backups, 'aside')]);
  run('ln', ['-s', path.basename(newest.path + MANIFEST), newest.path + MANIFEST]);
  for (const call of ['listBackups', 'getLatestBackup']) {
    await expect(manager[call]()).rejects.toMatchObject({
      code: 'KG_IO',
      message: expect.stringContaining(newest.path + MANIFEST),
    });
  }
});

test('a file that only has the name of a temporary file stays, causes a warning and stops no backup', () => {
  const { root, backups } = makeProject({ nodes: 5 });
  const make = () =>
    resultOf(run(kgPath, ['diag', 'backup', '--output', backups, '--json'], { cwd: root }))
      .warnings;
  expect(make()).toEqual([]);
  const strays = [
    '.kg-partial-mine',
    '.kg-snapshot-mine',
    `kg-backup-20240101-000000.tar.gz${MANIFEST}`,
  ];
  const at = (name) => path.join(backups, name);
  mkdirSync(at(strays[0]));
  writeFileSync(at(strays[1]), 'mine');
  mkdirSync(at(strays[2]));
  expect(
    make()
      .map(({ code, message }) => [code, strays.filter((name) => message.includes(name))])
      .sort(),
  ).toEqual(strays.map((name) => ['KG_WARN_STORE', [name]]));
  expect(strays.filter((name) => existsSync(at(name)))).toEqual(strays);
  expect(
    resultOf(
      run(kgPath, ['diag', 'backup', '--list', '--output', backups, '--json'], { cwd: root }),
    ).backups,
  ).toHaveLength(2);
});

describe('a record that cannot be read', () => {
  const remembered = (root, name) => path.join(root, '.kg/cache', name);

  test('of the last runs is not overwritten by one run, and status and health report it', () => {
    const { root } = makeProject({ nodes: 5 });
    const kg = (...args) => run(kgPath, ['diag', ...args], { cwd: root });
    kg('backup');
    const only = remembered(root, 'backup-runs.json');
    const before = readFileSync(only);
    const without = (...args) =>
      failing('openat', 'EIO', ['diag', ...args, '--json'], { only, cwd: root });
    const unwritten = {
      code: 'KG_WARN_STORE',
      message: expect.stringMatching(/This run could not be recorded: .*backup-runs\.json/),
    };
    expect(resultOf(without('backup').stdout).warnings).toContainEqual(unwritten);
    expect(readFileSync(only)).toEqual(before);
    const status = resultOf(without('backup', '--status').stdout);
    expect(status.health).toMatchObject({
      ok: false,
      messages: [expect.stringContaining('the results of the last runs are unknown')],
    });
    expect(resultOf(without('health').stdout).issues).toMatchObject([
      { code: 'KG_ISSUE_FILE_UNREADABLE', severity: 'warning' },
    ]);
  });

  test('of a store is kept, and reports say that an empty store may have held backups', () => {
    const { root, backups } = makeProject({ nodes: 5 });
    const kg = (...args) => run(kgPath, ['diag', ...args], { cwd: root });
    kg('backup', '--output', backups);
    kg('backup');
    const only = remembered(root, 'backup-pages/stores.json');
    const before = readFileSync(only);
    const warningsOf = (dir) =>
      resultOf(
        failing('openat', 'EIO', ['diag', 'backup', '--output', dir, '--json'], { only, cwd: root })
          .stdout,
      ).warnings;
    expect(warningsOf(backups)).toMatchObject([
      { code: 'KG_WARN_STORE', message: expect.stringContaining('could not be recorded') },
    ]);
    expect(readFileSync(only)).toEqual(before);
    expect(warningsOf(path.join(root, '../empty'))[0]).toMatchObject({
      code: 'KG_WARN_STORE',
      message: expect.stringMatching(/whether it ever did cannot be determined.*stores\.json/),
    });
  });
});
