// Files that root writes in the project of another user, and directories that a restore made
// read-only.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { describe, expect, onTestFinished, test } from 'vitest';

import { withDatabase } from './support/project.mjs';
import { isRoot, notOwnedBy, projectOf } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

const USER = 1001;
const done = { status: 0, stderr: '' };

describe.skipIf(!isRoot)('root in a project of another user', () => {
  test('a restore into a volume gives every file to the owner of the volume', () => {
    const { asRoot, base, backups } = projectOf(0);
    expect(asRoot('diag', 'backup', '--output', backups)).toMatchObject(done);
    const volume = path.join(base, 'volume');
    mkdirSync(volume);
    chownSync(volume, USER, USER + 1);
    for (const target of [volume, path.join(volume, 'made/on the way')]) {
      expect(
        asRoot(
          'diag',
          'restore',
          '--file',
          path.join(backups, 'latest.tar.gz'),
          '--target',
          target,
        ),
      ).toMatchObject({ status: 0 });
    }
    expect(notOwnedBy(volume, USER)).toEqual([]);
    expect(statSync(path.join(volume, 'made/on the way/.kg/knowledge.db')).gid).toBe(USER + 1);
  });

  test('a restore over files keeps their owners, and new files get the owner of their directory', () => {
    const { asRoot, root } = projectOf(USER);
    expect(asRoot('diag', 'backup')).toMatchObject(done);
    const at = (name) => path.join(root, '.kg', name);
    writeFileSync(at('config.json'), '{"theme":"light"}');
    chownSync(at('config.json'), 1005, 1005);
    rmSync(at('vectors/a.f32'));
    chownSync(at('vectors'), 1006, 1006);
    rmSync(at('plugins/glossary'), { recursive: true });
    expect(asRoot('diag', 'restore', '--file', 'latest', '--yes')).toMatchObject(done);
    const owners = (...names) => names.map((name) => lstatSync(at(name)).uid);
    expect(
      owners(
        'config.json',
        'vectors/a.f32',
        'plugins/glossary',
        'plugins/glossary/terms.json',
        'restore-undo',
        'knowledge.db',
      ),
    ).toEqual([1005, 1006, USER, USER, USER, USER]);
    // The record stays with root, because root does not follow a record that the owner could have
    // written.
    expect(notOwnedBy(at('restore-undo'), USER).sort()).toEqual([
      expect.stringMatching(/config\.json 1005$/),
      expect.stringMatching(/undo\.json 0$/),
    ]);
    expect(asRoot('diag', 'restore', '--undo', '--yes')).toMatchObject(done);
    expect(owners('config.json', 'knowledge.db')).toEqual([1005, USER]);
    expect(readFileSync(at('config.json'), 'utf8')).toBe('{"theme":"light"}');
  });

  test('whatever root does in the project, its owner can continue', () => {
    const { asOwner, asRoot, root, database } = projectOf(USER);
    const store = ['--output', '.kg/backups/nightly'];
    const json = ({ stdout, stderr, status }) => {
      expect({ status, stderr }).toEqual(done);
      return resultOf(stdout);
    };
    json(asRoot('diag', 'backup', '--json', ...store));
    withDatabase(database, (db) => db.exec("UPDATE nodes SET title = 'changed' WHERE id = 'n1'"));
    const { id } = json(asRoot('diag', 'backup', '--type', 'incremental', '--json', ...store));
    json(asRoot('diag', 'backup', '--pin', id, '--json', ...store));
    json(asRoot('diag', 'backup', '--consolidate', id, '--json', ...store));
    json(asRoot('diag', 'prune', '--max-backups', '2', '--json', ...store));
    expect(asRoot('config', 'set', 'backup.maxBackups', '5')).toMatchObject(done);
    expect(asRoot('config', 'set', 'backup.hooks.onSuccess.command', '["true"]').stderr).toMatch(
      /run for backups that user 1001 makes/,
    );
    expect(
      asRoot('diag', 'restore', '--file', id, '--backup-dir', '.kg/backups/nightly', '--yes'),
    ).toMatchObject({ status: 0 });
    expect(asRoot('diag', 'backup', '--status')).toMatchObject(done);
    expect(notOwnedBy(path.join(root, '.kg'), USER)).toEqual([
      expect.stringMatching(/undo\.json 0$/),
    ]);
    json(asOwner('diag', 'backup', '--json', ...store));
    json(asOwner('diag', 'backup', '--unpin', id, '--json', ...store));
    json(asOwner('diag', 'backup', '--delete', id, '--json', ...store));
    expect(asOwner('diag', 'restore', '--undo', '--yes')).toMatchObject({
      status: 0,
      stderr: expect.stringContaining('backup.maxBackups from not set to 5'),
    });
    expect(asOwner('config', 'set', 'backup.hooks.onSuccess.command', '["false"]')).toMatchObject(
      done,
    );
  });

  test('a store next to .kg belongs to the owner of the project, and existing files keep their owner', () => {
    const { asOwner, asRoot, root } = projectOf(USER);
    mkdirSync(path.join(root, 'shared'));
    for (const store of ['backups', 'shared/backups']) {
      expect(asRoot('diag', 'backup', '--output', store)).toMatchObject(done);
      expect(notOwnedBy(path.join(root, store), USER)).toEqual([]);
      expect(asOwner('diag', 'backup', '--output', store)).toMatchObject(done);
    }
    expect(lstatSync(path.join(root, 'shared')).uid).toBe(0);
  });

  test('a store outside the project belongs to the owner of the project if its directory does', () => {
    const { asOwner, asRoot, backups, base } = projectOf(USER);
    const mine = path.join(base, 'mine');
    mkdirSync(mine);
    chownSync(mine, USER, USER);
    for (const store of [mine, path.join(mine, 'made/on the way')]) {
      const command = (...args) => ['diag', ...args, '--json'];
      const made = asRoot(...command('backup', '--output', store, '--compression', 'gzip'));
      expect(made).toMatchObject(done);
      const { id } = resultOf(made.stdout);
      expect(asRoot(...command('backup', '--pin', id, '--output', store))).toMatchObject(done);
      expect(notOwnedBy(store, USER)).toEqual([]);
      expect(
        resultOf(asOwner(...command('backup', '--list', '--output', store)).stdout).backups,
      ).toHaveLength(1);
      expect(
        asOwner(...command('backup', '--type', 'incremental', '--output', store)),
      ).toMatchObject(done);
      expect(
        asRoot(...command('prune', '--max-backups', '1', '--backup-dir', store)),
      ).toMatchObject(done);
      expect(
        asOwner(...command('backup', '--delete', id, '--cascade', '--output', store)),
      ).toMatchObject({ status: 4 });
      expect(asOwner(...command('backup', '--unpin', id, '--output', store))).toMatchObject(done);
    }
    expect(existsSync(backups)).toBe(false);
  });

  test('in a directory of a third user, an archive stays with root, and the lock blocks no command of that user', () => {
    const { asRoot, asUser, backups } = projectOf(USER);
    mkdirSync(backups);
    chownSync(backups, USER + 1, USER + 1);
    expect(asRoot('diag', 'backup', '--output', backups)).toMatchObject(done);
    const kept = notOwnedBy(backups, USER + 1);
    expect(kept.filter((line) => line.startsWith('kg-backup-'))).toHaveLength(2);
    expect(kept.every((line) => line.endsWith(' 0'))).toBe(true);
    // The archive stops the command, because that user cannot read it. The lock does not.
    expect(
      asUser(USER + 1, 'diag', 'prune', '--max-backups', '1', '--output', backups).stderr,
    ).toMatch(/Could not read .*kg-backup-/);
    expect(lstatSync(path.join(backups, '.kg-store.lock')).uid).toBe(USER + 1);
  });

  test('a restore refuses a database that this user may not write while a process has it open', async () => {
    for (const mode of [0o400, 0o000]) {
      const { asOwner, root, database } = projectOf(USER);
      expect(asOwner('diag', 'backup')).toMatchObject(done);
      const holder = spawn('sqlite3', [database], { stdio: ['pipe', 'pipe', 'inherit'] });
      onTestFinished(() => holder.kill('SIGKILL'));
      holder.stdin.write('BEGIN; SELECT count(*) FROM nodes; COMMIT;\n');
      await once(holder.stdout, 'data');
      chmodSync(database, mode);
      const inode = lstatSync(database).ino;
      const restore = (...more) =>
        asOwner('diag', 'restore', '--file', 'latest', '--db-only', '--yes', ...more);
      const code = mode === 0 ? 'KG_PERMISSION_DENIED' : 'KG_DATABASE_IN_USE';
      expect(restore()).toMatchObject({
        status: mode === 0 ? 4 : 3,
        stderr: expect.stringContaining(code),
      });
      expect([lstatSync(database).ino, lstatSync(path.join(root, '.kg')).uid]).toEqual([
        inode,
        USER,
      ]);
      holder.stdin.end();
      await once(holder, 'exit');
      expect(restore('--force')).toMatchObject({ status: 0 });
    }
  });

  test('leftovers of a killed run of root do not stop a backup', () => {
    const { asOwner, root } = projectOf(USER);
    const left = path.join(root, '.kg/backups/.kg-snapshot-left');
    mkdirSync(path.join(left, 'unpacked'), { recursive: true });
    writeFileSync(path.join(left, 'unpacked/1'), 'x');
    chmodSync(left, 0o700);
    chownSync(path.dirname(left), USER, USER);
    const { status, stderr } = asOwner('diag', 'backup');
    expect(status).toBe(0);
    expect(stderr).toMatch(/kg-snapshot-left.*another user's run left it.*KG_WARN_STORE/);
  });

  test('without CAP_CHOWN the files stay with root, with a warning', () => {
    const { base, backups, executable, asRoot, run } = projectOf(0);
    expect(asRoot('diag', 'backup', '--output', backups)).toMatchObject(done);
    const volume = path.join(base, 'volume');
    mkdirSync(volume);
    chownSync(volume, USER, USER);
    const restored = run([
      'setpriv',
      '--bounding-set=-chown',
      '--inh-caps=-chown',
      executable,
      'diag',
      'restore',
      '--file',
      path.join(backups, 'latest.tar.gz'),
      '--target',
      volume,
      '--json',
    ]);
    expect(restored).toMatchObject({ status: 0 });
    const { warnings } = resultOf(restored.stdout);
    expect(warnings.map(({ code }) => code)).toEqual(['KG_WARN_ATTRIBUTES']);
    expect(warnings[0].message).toMatch(/belong to root because their owner could not be changed/);
    expect(existsSync(path.join(volume, '.kg/knowledge.db'))).toBe(true);
  });

  test('without CAP_CHOWN the warning names the target directory of the file', () => {
    const { asRoot, executable, root, run } = projectOf(USER);
    expect(asRoot('diag', 'backup')).toMatchObject(done);
    rmSync(path.join(root, '.kg/vectors/a.f32'));
    const without = ['setpriv', '--bounding-set=-chown', '--inh-caps=-chown', executable];
    const { stdout } = run([
      ...without,
      'diag',
      'restore',
      '--file',
      'latest',
      '--path',
      '.kg/vectors/a.f32',
      '--yes',
      '--json',
    ]);
    const [warning] = resultOf(stdout).warnings;
    expect(warning).toMatchObject({
      code: 'KG_WARN_ATTRIBUTES',
      message: expect.stringContaining(`Files in ${root}/.kg/vectors`),
    });
  });

  test('status reports that hooks of another user, or that others may write, do not run', () => {
    const { asRoot, asOwner, root } = projectOf(USER);
    const hooks = path.join(root, '.kg/hooks.json');
    expect(asOwner('config', 'set', 'backup.hooks.onSuccess.command', '["true"]')).toMatchObject(
      done,
    );
    expect(asOwner('diag', 'backup', '--status').stdout).not.toMatch(/No hook runs/);
    expect(asRoot('diag', 'backup', '--status').stdout).toMatch(
      /hooks +No hook runs: .*belongs to user 1001/,
    );
    chmodSync(hooks, 0o666);
    expect(asOwner('diag', 'backup', '--status').stdout).toMatch(
      /No hook runs: .*other users can write to it/,
    );
    expect(
      resultOf(asOwner('diag', 'backup', '--status', '--json').stdout).hookWarnings,
    ).toHaveLength(1);
    chownSync(hooks, 0, 0);
    chmodSync(hooks, 0o600);
    expect(asOwner('diag', 'backup', '--status').stdout).toMatch(
      /No hook runs: .*Permission denied/,
    );
  });
});

describe.skipIf(!isRoot)('read-only directories', () => {
  const modeOf = (file) => (statSync(file).mode & 0o7777).toString(8);

  /** Makes a project with directories that their owner may not write. */
  function makeReadOnlyProject() {
    const project = projectOf(USER);
    const plugins = path.join(project.root, '.kg/plugins');
    const dirs = { m: 0o555, 'nested/inner': 0o555, nested: 0o555, own: 0o500, group: 0o2555 };
    for (const dir of Object.keys(dirs)) {
      mkdirSync(path.join(plugins, dir), { recursive: true });
      writeFileSync(path.join(plugins, dir, 'f'), 'saved');
    }
    project.run(['chown', '-R', `${USER}:${USER}`, plugins]);
    for (const [dir, mode] of Object.entries(dirs)) chmodSync(path.join(plugins, dir), mode);
    const modes = () => Object.keys(dirs).map((dir) => modeOf(path.join(plugins, dir)));
    return {
      ...project,
      plugins,
      modes,
      files: Object.keys(dirs).map((dir) => path.join(plugins, dir, 'f')),
    };
  }

  test('a restore that creates them can be undone and repeated', () => {
    const { asOwner, files, plugins, modes } = makeReadOnlyProject();
    expect(asOwner('diag', 'backup')).toMatchObject(done);
    rmSync(plugins, { recursive: true });
    for (let round = 0; round < 2; round += 1) {
      expect(asOwner('diag', 'restore', '--file', 'latest', '--yes')).toMatchObject(done);
      expect(files.map((file) => readFileSync(file, 'utf8'))).toEqual(files.map(() => 'saved'));
      expect(modes()).toEqual(['555', '555', '555', '500', '555']);
      expect(asOwner('diag', 'restore', '--undo', '--yes')).toMatchObject(done);
      expect(existsSync(plugins)).toBe(false);
    }
  });

  test('files in them are replaced, and the directories stay read-only', () => {
    const { asOwner, files, modes } = makeReadOnlyProject();
    expect(asOwner('diag', 'backup')).toMatchObject(done);
    const before = modes();
    files.forEach((file) => writeFileSync(file, 'newer'));
    rmSync(files[0]);
    expect(asOwner('diag', 'restore', '--file', 'latest', '--yes')).toMatchObject(done);
    expect(files.map((file) => readFileSync(file, 'utf8'))).toEqual(files.map(() => 'saved'));
    expect(modes()).toEqual(before);
    expect(asOwner('diag', 'restore', '--undo', '--yes')).toMatchObject(done);
    expect(files.slice(1).map((file) => readFileSync(file, 'utf8'))).toEqual(
      files.slice(1).map(() => 'newer'),
    );
    expect(modes()).toEqual(before);
  });

  test('a database in one is replaced and restored by an undo', () => {
    const { asOwner, plugins, run } = makeReadOnlyProject();
    const database = path.join(plugins, 'data/own.db');
    mkdirSync(path.dirname(database));
    const rows = (work) => withDatabase(database, work);
    rows((db) =>
      db.exec("PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES ('saved')"),
    );
    run(['chown', '-R', `${USER}:${USER}`, path.dirname(database)]);
    expect(asOwner('diag', 'backup')).toMatchObject(done);
    rows((db) => db.exec("UPDATE t SET x = 'newer'"));
    run([
      'sh',
      '-c',
      `chown -R ${USER}:${USER} ${path.dirname(database)}; chmod 555 ${path.dirname(database)}`,
    ]);
    for (const [args, expected] of [
      [['--file', 'latest'], 'saved'],
      [['--undo'], 'newer'],
    ]) {
      expect(asOwner('diag', 'restore', ...args, '--yes')).toMatchObject(done);
      expect(rows((db) => db.prepare('SELECT x FROM t').pluck().get())).toBe(expected);
      expect(modeOf(path.dirname(database))).toBe('555');
    }
  });

  test('a kill between the changes leaves them as they were', () => {
    const { asOwner, asUser, executable, files, modes, root, run } = makeReadOnlyProject();
    expect(asOwner('diag', 'backup')).toMatchObject(done);
    const before = modes();
    files.forEach((file) => writeFileSync(file, 'newer'));
    // The process is killed before the fourth rename, after the restore made the directories
    // writable.
    const user = ['setpriv', `--reuid=${USER}`, `--regid=${USER}`, '--clear-groups'];
    const killed = run([
      'strace',
      '-f',
      '-o',
      '/dev/null',
      '-e',
      'trace=renameat',
      '-e',
      'inject=renameat:signal=KILL:when=4',
      ...user,
      executable,
      'diag',
      'restore',
      '--file',
      'latest',
      '--yes',
    ]);
    expect(killed.status).not.toBe(0);
    expect(existsSync(path.join(root, '.kg/restore-journal.json'))).toBe(true);
    expect(modes()).not.toEqual(before);
    expect(asUser(USER, 'diag', 'backup').stderr).toMatch(/has been rolled back/);
    expect(modes()).toEqual(before);
    expect(files.map((file) => readFileSync(file, 'utf8'))).toEqual(files.map(() => 'newer'));
  });
});

describe.skipIf(!isRoot)('a store of a group', () => {
  test('serves all of its users', () => {
    const { run, executable, root, backups } = projectOf(USER);
    const GROUP = 2000;
    mkdirSync(backups, { recursive: true });
    run([
      'sh',
      '-c',
      `chown -R ${USER}:${GROUP} '${root}' '${backups}'; chmod -R g+w '${root}'; find '${root}' '${backups}' -type d -exec chmod 2775 {} +`,
    ]);
    const as = (user, ...args) =>
      run(
        [
          'setpriv',
          `--reuid=${user}`,
          `--regid=${GROUP}`,
          '--clear-groups',
          'sh',
          '-c',
          'umask 002; exec "$0" "$@"',
          executable,
          'diag',
          ...args,
        ],
        { TMPDIR: undefined },
      );
    const made = [];
    for (const user of [USER, USER + 1, USER, USER + 1]) {
      const { status, stdout, stderr } = as(
        user,
        'backup',
        '--type',
        'incremental',
        '--output',
        backups,
        '--json',
      );
      expect({ status, stderr }).toEqual(done);
      const { id, warnings } = resultOf(stdout);
      expect(warnings.filter(({ code }) => code !== 'KG_WARN_FULL')).toEqual([]);
      made.unshift(id);
    }
    for (const user of [USER, USER + 1]) {
      expect(
        resultOf(as(user, 'backup', '--list', '--output', backups, '--json').stdout).backups.map(
          ({ id }) => id,
        ),
      ).toEqual(made);
      for (const id of made)
        expect(as(user, 'backup', '--verify', id, '--output', backups), id).toMatchObject(done);
      expect(as(user, 'health', '--backup-dir', backups).status).toBe(0);
    }
    expect(
      as(USER + 1, 'backup', '--delete', made.at(-1), '--cascade', '--output', backups),
    ).toMatchObject(done);
    // If other users may write to the store, temporary copies go to TMPDIR. A container may have
    // none.
    expect(
      run(
        [
          'setpriv',
          `--reuid=${USER}`,
          `--regid=${GROUP}`,
          '--clear-groups',
          executable,
          'diag',
          'backup',
          '--output',
          backups,
        ],
        { TMPDIR: '/nowhere' },
      ).status,
    ).toBe(0);
    expect(
      run([executable, 'diag', 'backup', '--output', backups], { TMPDIR: '/nowhere' }),
    ).toMatchObject({
      status: 4,
      stderr: expect.stringContaining('set TMPDIR to another directory'),
    });
    // The settings can change the default modes.
    const readers = (mode) => {
      expect(run([executable, 'config', 'set', 'backup.mode', mode]).status).toBe(0);
      const { id, path: archive } = resultOf(
        as(USER, 'backup', '--output', backups, '--json').stdout,
      );
      expect(as(USER, 'backup', '--pin', id, '--output', backups)).toMatchObject(done);
      const modes = [archive, `${archive}.manifest.json`, `${archive}.pin.json`].map((file) =>
        (statSync(file).mode & 0o777).toString(8),
      );
      return [modes, as(USER + 1, 'backup', '--verify', 'latest', '--output', backups).status];
    };
    expect(readers('0600')).toEqual([['600', '600', '600'], 4]);
    // Without sharing, a file stays with its creator.
    chmodSync(backups, 0o755);
    expect(as(USER, 'backup', '--output', backups)).toMatchObject(done);
    expect(run([executable, 'config', 'unset', 'backup.mode']).status).toBe(0);
    expect(as(USER, 'backup', '--output', backups)).toMatchObject(done);
    expect(as(USER + 1, 'backup', '--verify', 'latest', '--output', backups)).toMatchObject({
      status: 4,
      stderr: expect.stringContaining('KG_PERMISSION_DENIED'),
    });
    expect(readers('0640')).toEqual([['640', '640', '640'], 0]);
    expect(run([executable, 'config', 'set', 'backup.mode', '0666'])).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('0600'),
    });
  });
});
