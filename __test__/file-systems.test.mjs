// Operations that a file system or mount does not support, with failing system calls and real
// mounts.

import { spawnSync } from 'node:child_process';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { failing } from './support/faults.mjs';
import { kgPath, run } from './support/processes.mjs';
import { contents, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { isRoot } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

const refusals = (warnings) => warnings.filter(({ message }) => /refuses to sync/.test(message));

describe('a file system that cannot sync directories', () => {
  test.each(['EINVAL', 'ENOSYS', 'EOPNOTSUPP'])(
    '%s causes one warning per command, in a backup and in later commands',
    (error) => {
      const { root, backups } = makeProject({ nodes: 20 });
      mkdirSync(backups);
      const json = (args) => {
        const { status, stdout, stderr } = failing(
          'fsync,fdatasync',
          error,
          ['diag', ...args, '--json'],
          { cwd: root },
        );
        expect(status).toBe(0);
        const { warnings } = JSON.parse(stdout);
        const mentions = warnings.filter(({ message }) => /refuses to sync/.test(message)).length;
        expect({ args, stderr, mentions }).toEqual({ args, stderr: '', mentions: 1 });
        return resultOf(stdout);
      };
      const backup = json(['backup', '--output', backups]);
      expect(refusals(backup.warnings)).toEqual([
        {
          code: 'KG_WARN_STORE',
          message: expect.stringContaining('may not survive a power failure'),
        },
      ]);
      json(['backup', '--pin', backup.id, '--output', backups]);
      const target = path.join(backups, '../target');
      const restored = json([
        'restore',
        '--file',
        path.join(backups, 'latest.tar.gz'),
        '--target',
        target,
      ]);
      expect(refusals(restored.warnings)).toHaveLength(1);
      expect(contents(target)).toEqual(contents(root));
      json(['backup', '--output', backups]);
      json(['backup', '--unpin', backup.id, '--output', backups]);
      json(['prune', '--max-backups', '1', '--output', backups]);
    },
  );

  test('a restore names the directories that it created', () => {
    const { root } = makeProject({ nodes: 5 });
    run(kgPath, ['diag', 'backup'], { cwd: root });
    let named = 0;
    for (let when = 1; when <= 12; when += 1) {
      const target = path.join(temporaryDirectory(), 'target');
      const { status, stdout } = failing(
        'fsync',
        'EINVAL',
        ['diag', 'restore', '--file', 'latest', '--target', target, '--json'],
        { cwd: root, when },
      );
      expect(status).toBe(0);
      for (const { message } of refusals(resultOf(stdout).warnings)) {
        const [, dir] = message.match(
          /The file system of (.*?)(?: and \d+ more directories)? refuses/,
        );
        expect({ dir, exists: existsSync(dir) }).toEqual({ dir, exists: true });
        named += 1;
      }
    }
    expect(named).toBeGreaterThan(5);
  });

  test('SQLite changes no live database there, and the message names the refusal and a solution', () => {
    const { root } = makeProject({ nodes: 20 });
    run(kgPath, ['diag', 'backup'], { cwd: root });
    const before = contents(root);
    const refused = failing(
      'fsync,fdatasync',
      'EINVAL',
      ['diag', 'restore', '--file', 'latest', '--yes'],
      { cwd: root },
    );
    expect(refused).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/refused to sync it.*\n.*`--target`/),
    });
    expect(run(kgPath, ['diag', 'integrity'], { cwd: root })).toContain('is healthy');
    expect(contents(root).filter((line) => line.includes('knowledge.db'))).toEqual(
      before.filter((line) => line.includes('knowledge.db')),
    );
  });

  test('EIO remains an error, and the backup is not listed', () => {
    const { root, backups } = makeProject({ nodes: 20 });
    mkdirSync(backups);
    const failed = failing('fsync', 'EIO', ['diag', 'backup', '--output', backups], {
      cwd: root,
      only: backups,
    });
    expect(failed).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/Could not sync .*\[KG_IO\]/),
    });
    expect(
      failing('fsync', 'EIO', ['diag', 'restore', '--file', 'latest', '--yes'], { cwd: root })
        .status,
    ).not.toBe(0);
  });
});

test('if links, modes or times cannot be set, a restore warns and is complete', () => {
  const { root } = makeProject({ nodes: 20 });
  expect(run(kgPath, ['diag', 'backup'], { cwd: root })).toContain('Backup created');
  for (const [call, error] of [
    ['fchmod,chmod,fchmodat', 'EPERM'],
    ['utimensat', 'EPERM'],
    ['fchmod', 'EOPNOTSUPP'],
  ]) {
    const target = path.join(temporaryDirectory(), 'target');
    const { status, stdout } = failing(
      call,
      error,
      ['diag', 'restore', '--file', 'latest', '--target', target, '--json'],
      { cwd: root },
    );
    expect(status).toBe(0);
    const { warnings } = resultOf(stdout);
    expect(warnings.map(({ code }) => code)).toEqual(['KG_WARN_ATTRIBUTES']);
    expect(warnings[0].message).toContain(` of files in ${target}/.kg`);
    expect(warnings[0].message).not.toContain('restore-staging');
    expect(contents(target)).toEqual(
      contents(root).filter((line) => !line.startsWith('.kg/backups')),
    );
  }
});

test('a file system without locks is named', () => {
  const { root } = makeProject({ nodes: 20 });
  run(kgPath, ['diag', 'backup'], { cwd: root });
  for (const error of ['ENOLCK', 'EOPNOTSUPP']) {
    for (const args of [
      ['diag', 'backup'],
      ['diag', 'restore', '--file', 'latest', '--target', 'copy'],
      ['diag', 'drill'],
      ['serve', '--foreground'],
    ]) {
      const { status, stderr } = failing('flock', error, args, { cwd: root });
      expect({ args, status }).toEqual({ args, status: 4 });
      expect(stderr).toMatch(/the file system \(\S+ at \/.*\) does not support locks/);
    }
  }
});

describe.skipIf(!isRoot)('single files that are mounted, as in containers', () => {
  /**
   * Runs a script in a new mount namespace, where `file` is mounted over itself from another file
   * system.
   */
  const inContainer = (root, file, script) =>
    spawnSync(
      'unshare',
      [
        '-m',
        'sh',
        '-ec',
        `mount --make-rprivate /; mkdir ../outside; mount -t tmpfs none ../outside; cp .kg/${file} ../outside/; mount --bind ../outside/${path.basename(file)} .kg/${file}; ${script}`,
      ],
      { cwd: root, encoding: 'utf8', env: { ...process.env, KG: kgPath } },
    );

  test('a restore over config.json names the mount point, and changes nothing', () => {
    const { root } = makeProject({ nodes: 20 });
    expect(run(kgPath, ['diag', 'backup'], { cwd: root })).toContain('Backup created');
    const before = contents(root);
    writeFileSync(path.join(root, '.kg/plugins/glossary/terms.json'), '["other"]');
    const { status, stderr } = inContainer(
      root,
      'config.json',
      `echo '{"theme":"light"}' > .kg/config.json; "$KG" diag restore --file latest --yes`,
    );
    expect(status).toBe(4);
    expect(stderr).toMatch(
      /\.kg\/config\.json is a mount point[^]*mount the directory that contains it[^]*\[KG_TARGET_INVALID\]|\[KG_TARGET_INVALID\][^]*mount the directory that contains it/,
    );
    expect(readFileSync(path.join(root, '.kg/plugins/glossary/terms.json'), 'utf8')).toBe(
      '["other"]',
    );
    expect(existsSync(path.join(root, '.kg/restore-journal.json'))).toBe(false);
    expect(before.length).toBeGreaterThan(0);
  });

  test('a database that is mounted alone receives the content of the backup through SQLite', () => {
    const { root, database } = makeProject({ nodes: 20, journalMode: 'delete' });
    expect(run(kgPath, ['diag', 'backup'], { cwd: root })).toContain('Backup created');
    withDatabase(database, (db) =>
      db.exec("DELETE FROM edges; DELETE FROM nodes WHERE id <> 'n1'"),
    );
    const { status, stdout, stderr } = inContainer(
      root,
      'knowledge.db',
      '"$KG" diag restore --file latest --yes && cp .kg/knowledge.db ../after.db',
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toContain('Restored');
    expect(
      withDatabase(path.join(root, '../after.db'), (db) =>
        db.prepare('SELECT count(*) FROM nodes').pluck().get(),
      ),
    ).toBe(20);
  });
});

test('a restored file with long runs of zeros takes as little space as before', () => {
  const { root } = makeProject({ nodes: 20 });
  const file = path.join(root, '.kg/vectors/index.bin');
  writeFileSync(file, 'start');
  truncateSync(file, 16 * 1024 * 1024);
  appendFileSync(file, 'end');
  const roomOf = (name) => statSync(name).blocks * 512;
  expect(roomOf(file)).toBeLessThan(1024 * 1024);
  run(kgPath, ['diag', 'backup'], { cwd: root });
  const target = path.join(temporaryDirectory(), 'target');
  run(kgPath, ['diag', 'restore', '--file', 'latest', '--target', target], { cwd: root });
  const restored = path.join(target, '.kg/vectors/index.bin');
  expect(readFileSync(restored).equals(readFileSync(file))).toBe(true);
  expect(roomOf(restored)).toBeLessThan(1024 * 1024);
});

test('a store on a file system without links works, with a warning instead of the link', () => {
  const { root, backups } = makeProject({ nodes: 20 });
  const calls = 'symlink,symlinkat,link,linkat,renameat2';
  const made = failing(calls, 'EPERM', ['diag', 'backup', '--output', backups, '--json'], {
    cwd: root,
  });
  expect(made).toMatchObject({ status: 0, stderr: '' });
  expect(resultOf(made.stdout).warnings).toEqual([
    { code: 'KG_WARN_STORE', message: expect.stringContaining('name `latest` instead') },
  ]);
  expect(
    failing(calls, 'EPERM', ['diag', 'backup', '--output', backups], { cwd: root }).status,
  ).toBe(0);
  expect(
    failing(calls, 'EPERM', ['diag', 'prune', '--max-backups', '1', '--output', backups], {
      cwd: root,
    }).status,
  ).toBe(0);
  expect(readdirSync(backups).filter((name) => name.endsWith('.tar.gz'))).toHaveLength(1);
});

test('if the kernel cannot share or copy blocks, kg copies them', () => {
  const { root, backups } = makeProject({ nodes: 20 });
  for (const error of ['EXDEV', 'EOPNOTSUPP', 'EINVAL', 'ENOSYS', 'EPERM']) {
    expect(
      failing('copy_file_range', error, ['diag', 'backup', '--output', backups], { cwd: root })
        .status,
    ).toBe(0);
  }
  run(kgPath, ['diag', 'backup', '--verify', path.join(backups, 'latest.tar.gz')], { cwd: root });
});

test.skipIf(!isRoot)(
  'settings that are mounted alone are not changed, and the message explains why',
  () => {
    const { root } = makeProject({ nodes: 20 });
    const { status, stderr } = spawnSync(
      'unshare',
      [
        '-m',
        'sh',
        '-ec',
        `mount --make-rprivate /; mount --bind .kg/config.json .kg/config.json; "${kgPath}" config set backup.maxBackups 5`,
      ],
      { cwd: root, encoding: 'utf8' },
    );
    expect(status).toBe(4);
    expect(stderr).toMatch(
      /Could not write .*config\.json: .*\n.*single file is mounted there.*mount the directory that contains it instead/,
    );
  },
);
