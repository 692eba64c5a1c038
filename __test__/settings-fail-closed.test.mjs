// Damaged, lost or misspelt settings. No default may replace a stricter setting.

import { spawn } from 'node:child_process';
import {
  chownSync,
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import net from 'node:net';
import path from 'node:path';

import {
  BackupScheduler,
  IntegrityChecker,
  createBackupManager,
} from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test } from 'vitest';

import { kg as runKg, kgPath, run, until } from './support/processes.mjs';
import { makeProject, withDatabase } from './support/project.mjs';
import { isRoot, projectOf } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

/** Makes a project whose settings encrypted its newest backup. */
async function makeEncryptedProject(more = {}) {
  const project = makeProject({ nodes: 5 });
  const { root, backups } = project;
  const base = path.dirname(root);
  const config = path.join(root, '.kg/config.json');
  const identity = path.join(base, 'identity');
  run('age-keygen', ['-o', identity]);
  const recipient = run('age-keygen', ['-y', identity]).trim();
  const settings = {
    dir: backups,
    encrypt: true,
    recipients: [recipient],
    identityFile: '../identity',
    ...more,
  };
  const set = (value) =>
    writeFileSync(config, typeof value === 'string' ? value : JSON.stringify(value));
  const kg = (...args) => runKg(['diag', ...args], { cwd: root });
  const archives = (dir = backups) =>
    (existsSync(dir) ? readdirSync(dir) : []).filter((name) => /^kg-.*tar\.gz$/.test(name));
  const plain = (dir) => archives(dir).filter((name) => !name.includes('.enc.'));
  set({ backup: settings });
  expect((await kg('backup')).status).toBe(0);
  expect(archives()).toHaveLength(1);
  expect(plain()).toEqual([]);
  return { ...project, base, identity, recipient, config, settings, set, kg, archives, plain };
}

const refused = { status: 2, stderr: expect.stringMatching(/\[KG_(KEY|CONFIG)_INVALID\]/) };

describe('after an encrypted backup no plain one is made', () => {
  const invalidSettings = {
    'a list': '[]',
    null: 'null',
    'a text': '"text"',
    'a number': '7',
    nothing: '',
    'a truncated file': '{"backup":{"encrypt":tr',
    'a list as backup': '{"backup":[]}',
    'null as backup': '{"backup":null}',
    'an empty object': '{}',
    'an empty backup': '{"backup":{}}',
    'an unknown key': '{"backup":{"mine":true}}',
    'a misspelt key': '{"backup":{"encrpyt":true}}',
    capitals: '{"backup":{"Encrypt":true}}',
    'another name of backup': '{"backups":{"encrypt":true}}',
    'a key with a dot': '{"backup.encrypt":true}',
    'a wrong type': '{"backup":{"encrypt":"true"}}',
    'turned off': '{"backup":{"encrypt":false}}',
    'only the key': '{"backup":{"identityFile":"../identity"}}',
    'two of them, of which the last applies': '{"backup":{"encrypt":true},"backup":{}}',
  };

  test('health reports the refusal before a backup fails', async () => {
    const { set, settings, kg, backups } = await makeEncryptedProject();
    const health = async () => (await kg('health', '--backup-dir', backups)).stdout;
    expect(await health()).not.toContain('KG_ISSUE_BACKUP_REFUSED');
    set({ backup: { dir: settings.dir } });
    expect(await health()).toContain('KG_ISSUE_BACKUP_REFUSED');
    expect(await kg('backup')).toMatchObject(refused);
  });

  test('whatever damaged the settings, by kg and by the API', async () => {
    const { root, backups, set, kg, archives, config } = await makeEncryptedProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const expectRefused = async (what) => {
      expect(await kg('backup', '--output', backups), what).toMatchObject(refused);
      await expect(manager.createBackup(), what).rejects.toMatchObject({
        code: expect.stringMatching(/^KG_(KEY|CONFIG)_INVALID$/),
      });
    };
    for (const [what, text] of Object.entries(invalidSettings)) {
      set(text);
      await expectRefused(what);
    }
    rmSync(config);
    await expectRefused('no file');
    symlinkSync('../../nowhere/config.json', config);
    await expectRefused('a link to nowhere');
    expect(archives()).toHaveLength(1);
  });

  test('and the refusal says why the file is unusable, without waiting for a pipe', async () => {
    const { root, backups, set, kg, archives, config, database } = await makeEncryptedProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const expectRefused = async (why) => {
      expect(await kg('backup')).toMatchObject({
        status: 2,
        stderr: expect.stringMatching(
          new RegExp(
            `config\\.json cannot be used: ${why}.*The newest backup of this project is encrypted.*\\[KG_KEY_INVALID\\]`,
          ),
        ),
      });
      await expect(manager.createBackup()).rejects.toMatchObject({
        code: 'KG_KEY_INVALID',
        message: expect.stringMatching(why),
      });
    };
    for (const [text, why] of [
      ['{', 'it is not valid JSON'],
      ['', 'it is not valid JSON'],
      ['[]', 'it is a list, not an object'],
      ['null', 'it is null, not an object'],
    ]) {
      set(text);
      await expectRefused(why);
    }
    withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 5)"));
    expect((await kg('repair', '--auto')).stderr).toMatch(
      /it is null, not an object\. The newest backup of this project is encrypted.*\[KG_KEY_INVALID\]/,
    );
    rmSync(config);
    run('mkfifo', [config]);
    await expectRefused('it could not be read \\(it is not a regular file\\)');
    expect(archives()).toHaveLength(1);
  });

  test('and the refusal suggests the name for a misspelt key setting', async () => {
    const { root, backups, set, kg, archives } = await makeEncryptedProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const suggestion =
      '`backup.pasphraseFile` is not a setting: did you mean `backup.passphraseFile`?';
    for (const more of [{}, { encrypt: true }]) {
      set({ backup: { dir: backups, pasphraseFile: '../key', ...more } });
      for (const args of [['backup'], ['backup', '--encrypt']]) {
        expect(await kg(...args)).toMatchObject({
          status: 2,
          stderr: expect.stringMatching(/misspelt setting.*\[KG_KEY_INVALID\]/),
        });
        expect((await kg(...args)).stderr).toContain(suggestion);
      }
      await expect(manager.createBackup()).rejects.toMatchObject({
        code: 'KG_KEY_INVALID',
        message: expect.stringContaining(suggestion),
      });
    }
    expect(archives()).toHaveLength(1);
  });

  test('by a scheduler of the API, which reports the failure', async () => {
    const { root, backups, set, archives } = await makeEncryptedProject();
    set('{"backup":{}}');
    const failures = [];
    const backupManager = createBackupManager({ projectRoot: root, backupDir: backups });
    const scheduler = new BackupScheduler({
      backupManager,
      schedule: '0 2 1 1 *',
      onFailure: (error) => failures.push(error.code),
    });
    onTestFinished(() => scheduler.stop({ abort: true }));
    await expect(scheduler.runNow()).rejects.toMatchObject({ code: 'KG_KEY_INVALID' });
    expect(failures).toEqual(['KG_KEY_INVALID']);
    expect(scheduler.status()).toMatchObject({
      failures: 1,
      lastRun: { error: { code: 'KG_KEY_INVALID' } },
    });
    expect(archives()).toHaveLength(1);
  });

  test('by the service, which reports the failure to hooks and in its history', async () => {
    const { root, backups, set, archives, base } = await makeEncryptedProject();
    const reportFile = path.join(base, 'told');
    const command = JSON.stringify(['/bin/sh', '-c', `echo $KG_ERROR_CODE >> '${reportFile}'`]);
    expect(
      (await runKg(['config', 'set', 'backup.hooks.onFailure.command', command], { cwd: root }))
        .status,
    ).toBe(0);
    set(
      JSON.stringify({
        backup: { dir: backups, enabled: true, schedule: '* * * * * *', listen: 'off' },
      }),
    );
    const child = spawn(kgPath, ['serve', '--foreground'], { cwd: root, stdio: 'ignore' });
    onTestFinished(() => child.kill('SIGKILL'));
    await until(
      () => existsSync(reportFile) && readFileSync(reportFile, 'utf8').includes('KG_KEY_INVALID'),
      'the failure',
    );
    child.kill('SIGTERM');
    await new Promise((resolve) => child.once('exit', resolve));
    const { stdout } = await runKg(['diag', 'backup', '--status'], { cwd: root });
    expect(stdout).toContain('KG_KEY_INVALID');
    expect(archives()).toHaveLength(1);
  });

  test('nor in another directory, in the directory of the remaining settings, or after a move', async () => {
    const { root, base, set, kg, plain, settings } = await makeEncryptedProject();
    set({ backup: {} });
    for (const args of [[], ['--output', path.join(base, 'elsewhere')]])
      expect(await kg('backup', ...args)).toMatchObject(refused);
    expect([
      ...plain(path.join(base, 'elsewhere')),
      ...plain(path.join(root, '.kg/backups')),
    ]).toEqual([]);
    renameSync(root, path.join(base, 'moved'));
    const moved = (...args) =>
      runKg(['diag', 'backup', ...args], { cwd: path.join(base, 'moved') });
    expect(await moved('--output', settings.dir)).toMatchObject(refused);
    expect((await moved('--output', settings.dir, '--no-encrypt')).status).toBe(0);
  });

  test('unless the call asks for one, and then the next call need not ask again', async () => {
    const { root, backups, set, kg, plain } = await makeEncryptedProject();
    set({});
    expect((await kg('backup', '--no-encrypt', '--output', backups)).status).toBe(0);
    expect((await kg('backup', '--output', backups)).status).toBe(0);
    expect(plain()).toHaveLength(2);
    const { manager, again } = {
      manager: createBackupManager({ projectRoot: root, backupDir: backups, encryption: false }),
      again: await makeEncryptedProject(),
    };
    expect((await manager.createBackup()).encrypted).toBeUndefined();
    again.set({});
    const other = createBackupManager({ projectRoot: again.root, backupDir: again.backups });
    await expect(other.createBackup()).rejects.toMatchObject({ code: 'KG_KEY_INVALID' });
    expect((await other.createBackup({ encrypt: false })).encrypted).toBeUndefined();
  });

  test('and backups of other projects in the store do not count', async () => {
    const { backups, kg, set, plain } = await makeEncryptedProject();
    const other = makeProject({ nodes: 5 });
    expect((await runKg(['diag', 'backup', '--output', backups], { cwd: other.root })).status).toBe(
      0,
    );
    set({});
    expect(await kg('backup', '--output', backups)).toMatchObject(refused);
    expect((await runKg(['diag', 'backup', '--output', backups], { cwd: other.root })).status).toBe(
      0,
    );
    expect(plain()).toHaveLength(2);
  });

  test('a plain safety backup of a repair needs --no-encrypt and does not permit other plain backups', async () => {
    const { root, database, backups, set, kg, plain } = await makeEncryptedProject();
    withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 5)"));
    for (const text of ['{', '[]', '{}']) {
      set(text);
      expect(await kg('repair', '--auto', '--backup-dir', backups), text).toMatchObject({
        status: 2,
        stderr: expect.stringContaining('--no-encrypt'),
      });
      await expect(
        new IntegrityChecker(root, { backupDir: backups }).runChecks({ repairMode: true }),
      ).rejects.toMatchObject({ code: 'KG_KEY_INVALID' });
    }
    expect((await kg('repair', '--auto', '--no-encrypt', '--backup-dir', backups)).status).toBe(0);
    expect(plain()).toHaveLength(1);
    expect(await kg('backup', '--output', backups)).toMatchObject(refused);
    withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 6)"));
    const checker = new IntegrityChecker(root, { backupDir: backups, encryption: false });
    expect((await checker.runChecks({ repairMode: true })).repair.safetyBackup.path).not.toContain(
      '.enc.',
    );
  });

  test('a chain is consolidated for the configured recipients, or not at all', async () => {
    const { backups, database, set, kg, archives, plain, settings, identity, recipient } =
      await makeEncryptedProject();
    withDatabase(database, (db) => db.exec("UPDATE nodes SET title = 'x'"));
    const { id } = resultOf((await kg('backup', '--type', 'incremental', '--json')).stdout);
    const key = ['--identity', identity, '--recipient', recipient];
    for (const text of ['{', '{"backup":{"encrypt":true,"recipients":["age1nobody"]}}']) {
      set(text);
      expect(await kg('backup', '--consolidate', id, '--output', backups), text).toMatchObject(
        refused,
      );
    }
    expect(archives()).toHaveLength(2);
    expect((await kg('backup', '--consolidate', id, '--output', backups, ...key)).status).toBe(0);
    set({ backup: settings });
    expect((await kg('backup', '--consolidate', id)).status).toBe(0);
    expect([archives().length, plain().length]).toEqual([4, 0]);
  });
});

describe('who can read new backups', () => {
  test('is not changed by a key for reading, nor by `--encrypt` with invalid settings', async () => {
    const {
      kg,
      base,
      root,
      backups,
      set,
      settings,
      archives,
      identity: file,
    } = await makeEncryptedProject();
    const identity = ['--identity', file];
    writeFileSync(path.join(base, 'key'), 'correct horse\n', { mode: 0o600 });
    const byPassphrase = { dir: backups, encrypt: true, passphraseFile: '../key' };
    set({ backup: byPassphrase });
    const opens = async (id, ...key) => (await kg('backup', '--verify', id, ...key)).status;
    const byIdentity = resultOf((await kg('backup', '--json', ...identity)).stdout).id;
    const { stdout } = await runKg(['diag', 'backup', '--json'], {
      cwd: root,
      env: { ...process.env, KG_IDENTITY_FILE: identity[1] },
    });
    for (const id of [byIdentity, resultOf(stdout).id])
      expect([await opens(id), await opens(id, ...identity)]).toEqual([0, 2]);
    const before = archives().length;
    const env = { ...process.env, KG_PASSPHRASE_FILE: path.join(base, 'key') };
    for (const text of [
      '{',
      JSON.stringify({ backup: { ...settings, recipients: ['age1nobody'] } }),
    ]) {
      set(text);
      expect(
        await runKg(['diag', 'backup', '--encrypt', '--output', backups], { cwd: root, env }),
      ).toMatchObject({ status: 2, stderr: expect.stringContaining('[KG_KEY_INVALID]') });
    }
    expect(archives()).toHaveLength(before);
    // An identity alone names no recipient.
    set({});
    expect(await kg('backup', '--output', path.join(base, 'new'), ...identity)).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('[KG_KEY_NEEDED]'),
    });
  });
});

describe('settings that cannot be read', () => {
  test('fail commands that write or decide, but not commands that only look or recover', async () => {
    const { root, backups } = makeProject({ nodes: 5 });
    const config = path.join(root, '.kg/config.json');
    const kg = (...args) => runKg(['diag', ...args], { cwd: root });
    const invalid = { status: 2, stderr: expect.stringContaining('[KG_CONFIG_INVALID]') };
    const first = resultOf((await kg('backup', '--json')).stdout);
    await kg('backup');
    const before = readFileSync(config);
    for (const text of ['[]', '{"backup":"daily"}', '{']) {
      writeFileSync(config, text);
      const writes = [
        ['backup'],
        ['backup', '--no-encrypt'],
        ['prune', '--max-backups', '1'],
        ['backup', '--delete', first.id],
        ['backup', '--output', backups],
      ];
      for (const args of writes)
        expect(await kg(...args), `${args} ${text}`).toMatchObject(invalid);
      expect(await runKg(['serve', '--all'], { cwd: root })).toMatchObject(invalid);
      expect(await runKg(['serve', '--foreground'], { cwd: root })).toMatchObject(invalid);
      const manager = createBackupManager({ projectRoot: root });
      for (const work of [
        () => manager.createBackup(),
        () => manager.prune(),
        () => manager.deleteBackup(first.id),
      ]) {
        await expect(work(), text).rejects.toMatchObject({ code: 'KG_CONFIG_INVALID' });
      }
      const lookCommands = [
        ['backup', '--list'],
        ['backup', '--status'],
        ['backup', '--verify', 'latest'],
        ['drill'],
      ];
      for (const args of lookCommands)
        expect(await kg(...args), `${args} ${text}`).toMatchObject({
          status: 0,
          stderr: expect.stringContaining('KG_WARN_CONFIG'),
        });
      expect(resultOf((await kg('backup', '--status', '--json')).stdout).health.ok).toBe(false);
      expect(await kg('health')).toMatchObject({
        status: 4,
        stdout: expect.stringContaining('NOT HEALTHY'),
      });
      expect((await manager.checkBackup('latest')).warnings).toMatchObject([
        { code: 'KG_WARN_CONFIG' },
      ]);
    }
    expect(await kg('restore', '--file', 'latest', '--config-only', '--yes')).toMatchObject({
      status: 0,
      stderr: expect.stringContaining('KG_WARN_CONFIG'),
    });
    expect(readFileSync(config)).toEqual(before);
    expect((await kg('backup')).status).toBe(0);
  });

  test('a call that names a directory and an encryption policy succeeds with a warning', async () => {
    const { root, backups } = makeProject({ nodes: 5 });
    writeFileSync(path.join(root, '.kg/config.json'), 'null');
    const made = resultOf(
      (
        await runKg(['diag', 'backup', '--json', '--output', backups, '--no-encrypt'], {
          cwd: root,
        })
      ).stdout,
    );
    expect(made.warnings).toMatchObject([
      { code: 'KG_WARN_CONFIG', message: expect.stringContaining('it is null, not an object') },
    ]);
    const manager = createBackupManager({
      projectRoot: root,
      backupDir: backups,
      encryption: false,
    });
    expect((await manager.createBackup()).warnings).toMatchObject([{ code: 'KG_WARN_CONFIG' }]);
  });
});

describe('settings that may name another directory', () => {
  test.runIf(isRoot)(
    'and that only another user can read: the default directory is not used',
    () => {
      const { root, backups, asUser, asRoot } = projectOf(1234, { nodes: 5 });
      const config = path.join(root, '.kg/config.json');
      expect(asUser(1234, 'diag', 'backup').status).toBe(0);
      writeFileSync(config, JSON.stringify({ backup: { dir: backups } }));
      expect(asRoot('diag', 'backup').status).toBe(0);
      run('chown', ['-R', '1234:1234', backups]);
      chownSync(config, 0, 0);
      chmodSync(config, 0o600);
      const hidden = {
        status: 2,
        stderr: expect.stringMatching(
          /Permission denied.*\[KG_CONFIG_INVALID\][^]*the right to read it/,
        ),
      };
      const target = path.join(root, '../restored');
      const lookCommands = [
        ['restore', '--file', 'latest', '--target', target],
        ['restore', '--file', 'latest', '--config-only', '--yes'],
        ['drill'],
        ['backup', '--verify', 'latest'],
        ['backup', '--list'],
        ['backup'],
      ];
      for (const args of lookCommands)
        expect(asUser(1234, 'diag', ...args), args.join(' ')).toMatchObject(hidden);
      expect(asUser(1234, 'diag', ...lookCommands[0]).stderr).toContain(
        'name the directory of the backups',
      );
      expect(existsSync(target)).toBe(false);
      expect(asUser(1234, 'diag', 'health', '--json').stdout).toContain(
        'Give this user the right to read it',
      );
      expect(asUser(1234, 'diag', 'backup', '--verify', 'latest', '--output', backups).status).toBe(
        0,
      );
      const restored = asUser(
        1234,
        'diag',
        'restore',
        '--file',
        'latest',
        '--config-only',
        '--backup-dir',
        backups,
        '--json',
      );
      expect(resultOf(restored.stdout).warnings).toContainEqual(
        expect.objectContaining({
          code: 'KG_WARN_SETTINGS_CHANGED',
          message: expect.stringContaining('could not be read'),
        }),
      );
    },
  );

  test('and that are invalid: the message names the last directory, and the default one is not used', async () => {
    const { root, backups } = makeProject({ nodes: 5 });
    const config = path.join(root, '.kg/config.json');
    const kg = (...args) => runKg(['diag', ...args], { cwd: root });
    expect((await kg('backup')).status).toBe(0);
    writeFileSync(config, JSON.stringify({ backup: { dir: backups } }));
    expect((await kg('backup')).status).toBe(0);
    writeFileSync(config, '{"backup": {"dir": ');
    const named = {
      status: 2,
      stderr: expect.stringContaining(`backups of this project were last made in ${backups}`),
    };
    for (const args of [['restore', '--file', 'latest', '--yes'], ['drill'], ['backup', '--list']])
      expect(await kg(...args)).toMatchObject(named);
    await expect(createBackupManager({ projectRoot: root }).listBackups()).rejects.toMatchObject({
      code: 'KG_CONFIG_INVALID',
    });
    // If the record of the stores cannot be read, the message says so.
    const stores = path.join(root, '.kg/cache/backup-pages/stores.json');
    const remembered = readFileSync(stores);
    writeFileSync(stores, 'garbage');
    expect(await kg('restore', '--file', 'latest', '--dry-run')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining(
        'whether backups of this project were made elsewhere cannot be determined',
      ),
    });
    writeFileSync(stores, remembered);
    // The suggested command works as printed.
    const advice = (await kg('drill')).stderr.match(
      /`kg (diag restore --file latest --config-only --backup-dir \S+)`/,
    )[1];
    expect((await runKg([...advice.split(' '), '--yes'], { cwd: root })).status).toBe(0);
    expect(readFileSync(config, 'utf8')).toContain(backups);
    writeFileSync(config, '{"backup": {"dir": ');
    expect((await kg('backup', '--output', backups)).stderr).toContain(
      'or name who can read this backup with `--recipient` or `--passphrase-file`, or use `--no-encrypt`',
    );
    expect((await kg('backup', '--output', backups, '--no-encrypt')).status).toBe(0);
  });

  test('and that are invalid: neither an older store nor one of copies is named', async () => {
    const { root, backups } = makeProject({ nodes: 5 });
    const config = path.join(root, '.kg/config.json');
    const kg = (...args) => runKg(['diag', ...args], { cwd: root });
    writeFileSync(config, JSON.stringify({ backup: { dir: backups } }));
    expect((await kg('backup', '--output', path.join(root, '../a-once'))).status).toBe(0);
    expect((await kg('backup')).status).toBe(0);
    expect((await kg('backup', '--copy-to', path.join(root, '../a-copies'))).status).toBe(0);
    writeFileSync(config, '{"backup": {"dir": ');
    expect((await kg('list')).stderr).toContain(`were last made in ${backups}`);
    const status = await kg('status', '--backup-dir', backups);
    expect(status.stdout).toMatch(/schedule {2}unknown: the configuration cannot be used/);
  });

  test('and that are misspelt or given twice: no backup is made', async () => {
    const { root } = makeProject({ nodes: 5 });
    const elsewhere = path.join(root, '../elsewhere');
    for (const text of [
      `{"backup":{"dri":"${elsewhere}"}}`,
      `{"backup":{"backupDir":"${elsewhere}"}}`,
      `{"backup":{"dir":"${elsewhere}"},"backup":{"type":"full"}}`,
    ]) {
      writeFileSync(path.join(root, '.kg/config.json'), text);
      const { status, stderr } = await runKg(['diag', 'backup'], { cwd: root });
      expect({ status, stderr }, text).toMatchObject({
        status: 2,
        stderr: expect.stringMatching(
          /(did you mean `backup.dir`\?|has `backup` twice).*\[KG_CONFIG_INVALID\]/,
        ),
      });
      expect((await runKg(['diag', 'health'], { cwd: root })).status, text).not.toBe(0);
      expect(
        (await runKg(['diag', 'prune', '--max-backups', '1'], { cwd: root })).status,
        text,
      ).toBe(2);
    }
    expect(existsSync(path.join(root, '.kg/backups'))).toBe(false);
  });
});

describe('an unknown or invalid setting', () => {
  test('is reported with the nearest valid name by backup, health and `kg config show`', async () => {
    const { root } = makeProject({ nodes: 5 });
    const backup = {
      encrypt: false,
      encrpyt: true,
      passphrasefile: 'k',
      shedule: '0 2 * * *',
      mine: {},
    };
    writeFileSync(
      path.join(root, '.kg/config.json'),
      JSON.stringify({ theme: 'dark', backup, backups: {} }),
    );
    const expectedNames = [
      'backup.encrypt',
      'backup.passphraseFile',
      'backup.schedule',
      'kg config show --all',
      'backup',
    ];
    const { warnings } = resultOf(
      (await runKg(['diag', 'backup', '--json'], { cwd: root })).stdout,
    );
    expect(warnings.map(({ code }) => code)).toEqual(expectedNames.map(() => 'KG_WARN_CONFIG'));
    expectedNames.forEach((name, at) => expect(warnings[at].message).toContain(`\`${name}\``));
    const { issues } = resultOf((await runKg(['diag', 'health', '--json'], { cwd: root })).stdout);
    expect(issues.find(({ code }) => code === 'KG_ISSUE_CONFIG_VALUE')).toMatchObject({ count: 5 });
    expect((await runKg(['config', 'show'], { cwd: root })).stdout).toContain(
      'did you mean `backup.encrypt`?',
    );
    expect(
      (await runKg(['config', 'set', 'backup.encrpyt', 'true'], { cwd: root })).stderr,
    ).toContain('You may mean `backup.encrypt`');
    expect(warnings.some(({ message }) => message.includes('theme'))).toBe(false);
  });

  test('that may ask for encryption stops every backup except an explicit plain one', async () => {
    const { root } = makeProject({ nodes: 5 });
    const misspelt = [
      { encrpyt: true },
      { encryption: true },
      { recpients: ['age1'] },
      { passphrasefile: 'k' },
    ];
    for (const backup of misspelt) {
      writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify({ backup }));
      const { status, stderr } = await runKg(['diag', 'backup'], { cwd: root });
      expect({ status, stderr }, JSON.stringify(backup)).toMatchObject({
        status: 2,
        stderr: expect.stringMatching(/misspelt setting.*\[KG_KEY_INVALID\]/),
      });
      await expect(createBackupManager({ projectRoot: root }).createBackup()).rejects.toMatchObject(
        { code: 'KG_KEY_INVALID' },
      );
    }
    expect(
      existsSync(path.join(root, '.kg/backups')) &&
        readdirSync(path.join(root, '.kg/backups')).some((name) => name.endsWith('.gz')),
    ).toBe(false);
    expect((await runKg(['diag', 'backup', '--no-encrypt'], { cwd: root })).status).toBe(0);
  });

  test('that stops every backup is reported as the reason, and health fails', async () => {
    const { root } = makeProject({ nodes: 5 });
    const kg = (...args) => runKg(args, { cwd: root });
    const set = (config) =>
      writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify(config));
    expect((await kg('diag', 'backup')).status).toBe(0);
    expect((await kg('diag', 'health')).stdout).toMatch(/^Healthy$/m);
    const cases = [
      [
        { encrypt: 1 },
        /`backup\.encrypt` is 1, not true or false; no backup is made until it is corrected, unless the call says who can read it/,
      ],
      [
        { encrpyt: true },
        /did you mean `backup\.encrypt`\?; no backup is made until it is corrected, unless the call says/,
      ],
      [
        { dir: 5 },
        /`backup\.dir` is 5, not a text; no backup is made until it is corrected, unless the call names a directory/,
      ],
    ];
    for (const [backup, expectedText] of cases) {
      set({ backup });
      const { healthy, issues } = resultOf((await kg('diag', 'health', '--json')).stdout);
      const message = expect.stringContaining('cannot be used, so backups are refused');
      expect(healthy).toBe(false);
      expect(issues[0]).toMatchObject({
        code: 'KG_ISSUE_CONFIG_VALUE',
        severity: 'error',
        message,
        examples: [expect.stringMatching(expectedText)],
      });
      const { stdout } = await kg('config', 'show');
      expect(stdout).toMatch(expectedText);
      expect(stdout).not.toContain('was ignored');
      expect((await kg('diag', 'backup')).status).toBe(2);
    }
    // If the settings say that backups are plain, a misspelt name is only a warning.
    set({ backup: { encrypt: false, encrpyt: true } });
    expect(await kg('diag', 'health')).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/did you mean `backup\.encrypt`\?\n/),
    });
  });

  test('that names a key, when no setting asks for encryption, is a warning of each plain backup', async () => {
    const { root } = makeProject({ nodes: 5 });
    const set = (backup) =>
      writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify({ backup }));
    const codes = async () =>
      resultOf((await runKg(['diag', 'backup', '--json'], { cwd: root })).stdout).warnings.map(
        ({ code }) => code,
      );
    const recipients = ['age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p'];
    for (const keys of [{ passphraseFile: 'key' }, { recipients }]) {
      set(keys);
      expect(await codes()).toEqual(['KG_WARN_NOT_ENCRYPTED']);
      set({ ...keys, encrypt: false });
      expect(await codes()).toEqual([]);
    }
  });

  test('removes no backup and selects no default directory', async () => {
    const { root } = makeProject({ nodes: 5 });
    const set = (backup) =>
      writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify({ backup }));
    const kg = (...args) => runKg(['diag', ...args], { cwd: root });
    const count = () =>
      readdirSync(path.join(root, '.kg/backups')).filter((name) => /^kg-.*gz$/.test(name)).length;
    for (let made = 0; made < 2; made += 1) expect((await kg('backup')).status).toBe(0);
    const invalidRetention = [
      { keep: 7 },
      { keep: { dayly: 7 } },
      { retention: '30' },
      { kepe: { daily: 7 } },
    ];
    for (const more of invalidRetention) {
      set({ maxBackups: 1, ...more });
      expect(await kg('backup'), JSON.stringify(more)).toMatchObject({
        status: 0,
        stderr: expect.stringContaining('no backup is removed until it is corrected'),
      });
      expect(await kg('prune', '--max-backups', '1')).toMatchObject({
        status: 2,
        stderr: expect.stringContaining('[KG_CONFIG_INVALID]'),
      });
    }
    expect(count()).toBe(2 + invalidRetention.length);
    set({ dir: 5 });
    expect(await kg('backup')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('`backup.dir`'),
    });
    expect((await kg('backup', '--output', path.join(root, '../named'))).status).toBe(0);
    expect(count()).toBe(2 + invalidRetention.length);
  });
});

describe('a service whose settings become unreadable', () => {
  const isFree = (port) =>
    new Promise((resolve) => {
      const socket = net.connect(port, '127.0.0.1', () => resolve(!socket.destroy()));
      socket.on('error', () => resolve(true));
    });

  test('keeps the last valid ones, reports it once, and opens no port', async () => {
    const { root, backups } = makeProject({ nodes: 5 });
    const config = path.join(root, '.kg/config.json');
    const reportFile = path.join(root, '../told');
    const settings = { dir: backups, enabled: true, schedule: '0 2 1 1 *', listen: 'off' };
    const set = (text) => writeFileSync(config, text);
    set(JSON.stringify({ backup: settings }));
    const command = JSON.stringify(['/bin/sh', '-c', `echo $KG_ERROR_CODE >> '${reportFile}'`]);
    expect(
      (await runKg(['config', 'set', 'backup.hooks.onFailure.command', command], { cwd: root }))
        .status,
    ).toBe(0);
    const metrics = path.join(root, '../kg.prom');
    const child = spawn(kgPath, ['serve', '--foreground', '--metrics-file', metrics], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    onTestFinished(() => child.kill('SIGKILL'));
    let output = '';
    child.stdout.on('data', (data) => (output += data));
    await until(() => output.includes('the schedule is'), 'the start');
    const lines = () =>
      existsSync(reportFile) ? readFileSync(reportFile, 'utf8').trim().split('\n') : [];
    const invalidations = [() => set('[]'), () => set('{"backup":null}'), () => rmSync(config)];
    for (const [at, work] of invalidations.entries()) {
      work();
      await until(() => lines().length === at + 1, `failure ${at}`);
      await until(() => /_healthy(\{[^}]*\})? 0/.test(readFileSync(metrics, 'utf8')), 'the metric');
      expect(await isFree(9821)).toBe(true);
      set(JSON.stringify({ backup: settings }));
      await until(
        () => output.split('can be read again').length === at + 2,
        'settings that are mended',
      );
    }
    expect(lines()).toEqual(invalidations.map(() => 'KG_CONFIG_INVALID'));
    expect(output).not.toMatch(/no backups are made|answers on/);
    // The last valid schedule stays in force.
    set(JSON.stringify({ backup: { ...settings, schedule: '* * * * * *' } }));
    await until(() => output.includes('made '), 'a backup');
    set('"spoilt"');
    const made = output.split('made ').length;
    await until(
      () => lines().length === invalidations.length + 1 && output.split('made ').length > made + 1,
      'backups by the last valid settings',
    );
    child.kill('SIGTERM');
    await new Promise((resolve) => child.once('exit', resolve));
    mkdirSync(path.join(root, '../done'));
  });
});

describe('a configuration that is not a file', () => {
  const kinds = {
    'a pipe': (file) => run('mkfifo', [file]),
    'a device': (file) => symlinkSync('/dev/zero', file),
    'a directory': (file) => mkdirSync(file),
  };
  for (const [kind, make] of Object.entries(kinds)) {
    test(`but ${kind} fails health, and no command waits for it or reads it`, async () => {
      const { root } = makeProject();
      const config = path.join(root, '.kg/config.json');
      rmSync(config);
      make(config);
      const health = await runKg(['diag', 'health', '--project', root], { timeout: 10_000 });
      expect([health.status, health.stdout]).toEqual([
        4,
        expect.stringContaining('KG_ISSUE_CONFIG_INVALID'),
      ]);
      const repair = await runKg(['diag', 'repair', '--auto', '--project', root], {
        timeout: 10_000,
      });
      expect(repair.signal ?? null).toBe(null);
    });
  }
});
