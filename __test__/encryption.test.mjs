// Encrypted backups: with a passphrase, to recipients, in chains, damaged, and opened with only the
// `age` command.

import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { inspect } from 'node:util';

import { IntegrityChecker, createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';

import { kg, kgPath, repository, run } from './support/processes.mjs';
import { contents, makeProject, pageCache, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const PASSPHRASE = 'correct horse battery staple';

/** Makes a project, a key pair next to it, and a manager with the public key. */
function setUp({ nodes = 50, ...options } = {}) {
  const project = makeProject({ nodes });
  const base = path.dirname(project.root);
  const file = (name, text) => {
    writeFileSync(path.join(base, name), text);
    return path.join(base, name);
  };
  const identityFile = path.join(base, 'identity');
  run('age-keygen', ['-o', identityFile]);
  const recipient = run('age-keygen', ['-y', identityFile]).trim();
  const manage = (encryption, more) =>
    createBackupManager({
      projectRoot: project.root,
      backupDir: project.backups,
      encryption,
      ...options,
      ...more,
    });
  const change = (seed) =>
    withDatabase(project.database, (db) =>
      db.prepare("UPDATE nodes SET title = 'changed ' || ? WHERE id = 'n1'").run(seed),
    );
  return { ...project, base, file, identityFile, recipient, manage, change };
}

/** Restores into a new directory and compares the result with the project. */
async function expectRestores(manager, backup, { root, base }) {
  const targetDir = path.join(base, `restored-${backup.id}`);
  const result = await manager.restore({ backupId: backup.id, targetDir });
  expect(contents(targetDir)).toEqual(contents(root));
  return result;
}

const sidecarText = (backup) => readFileSync(`${backup.path}.manifest.json`, 'utf8');

describe('with a passphrase', () => {
  test('a backup is made, verified and restored only with that passphrase', async () => {
    const project = setUp();
    const manager = project.manage({ passphrase: PASSPHRASE });
    const backup = await manager.createBackup({ description: 'the quarterly figures' });
    expect(backup).toMatchObject({
      encrypted: true,
      description: 'the quarterly figures',
      warnings: [],
    });
    expect(backup.path).toMatch(/kg-backup-\d{8}-\d{6}\.enc\.tar\.gz$/);
    expect(readFileSync(backup.path).subarray(0, 22).toString()).toBe('age-encryption.org/v1\n');
    expect(run('sha256sum', [backup.path])).toContain(backup.checksum.slice('sha256:'.length));
    expect(await manager.verifyBackup('latest')).toBe(true);
    await expectRestores(manager, backup, project);
    expect((await manager.rehearse()).passed).toBe(true);
    for (const [encryption, code] of [
      [{ passphrase: 'another' }, 'KG_KEY_WRONG'],
      [{ identityFile: project.identityFile }, 'KG_KEY_NEEDED'],
      [undefined, 'KG_KEY_NEEDED'],
    ]) {
      const other = project.manage(encryption);
      await expect(other.verifyBackup(backup.id)).rejects.toMatchObject({ name: 'KgError', code });
      await expect(
        other.restore({ backupId: backup.id, targetDir: path.join(project.base, 'none') }),
      ).rejects.toMatchObject({ code });
    }
    expect(existsSync(path.join(project.base, 'none'))).toBe(false);
  });

  test('the sidecar names no content of the archive, and lists show the other facts', async () => {
    const { manage, database, root } = setUp();
    withDatabase(database, (db) =>
      db.exec('CREATE TABLE secret_table (a TEXT NOT NULL); PRAGMA ignore_check_constraints = 1'),
    );
    writeFileSync(path.join(root, '.kg/plugins/glossary/layoffs.json'), '[]');
    const backup = await manage({ passphrase: PASSPHRASE }).createBackup({
      description: 'the quarterly figures',
    });
    const text = sidecarText(backup);
    expect(text).not.toMatch(
      /quarterly|layoffs|glossary|secret_table|knowledge\.db|database\.sqlite|\.f32/,
    );
    expect(text).not.toContain(root);
    expect(JSON.parse(text)).toMatchObject({
      encrypted: true,
      checksums: {},
      id: backup.id,
      stats: { nodeCount: 50 },
    });
    const [listed] = await manage().listBackups();
    expect(listed).toMatchObject({ id: backup.id, encrypted: true, integrity: { status: 'ok' } });
    expect(listed.description).toBeUndefined();
  });

  test('from a file, which is read when it is needed', async () => {
    const { manage, file, base } = setUp();
    const passphraseFile = file('key', `${PASSPHRASE}\n`);
    const manager = manage({ passphraseFile });
    const backup = await manager.createBackup();
    expect(await manage({ passphrase: PASSPHRASE }).verifyBackup(backup.id)).toBe(true);
    const plain = await manager.createBackup({ encrypt: false });
    expect(plain.path).toMatch(/\d\.tar\.gz$/);
    rmSync(passphraseFile);
    // A plain backup needs no key.
    expect(await manager.verifyBackup(plain.id)).toBe(true);
    expect(await manager.listBackups()).toHaveLength(2);
    for (const work of [() => manager.verifyBackup(backup.id), () => manager.createBackup()]) {
      await expect(work()).rejects.toMatchObject({
        code: 'KG_KEY_INVALID',
        message: expect.stringContaining(path.join(base, 'key')),
      });
    }
  });

  test('a key inside the project cannot encrypt backups but can open them', async () => {
    const { manage, root } = setUp();
    const backup = await manage({ passphrase: PASSPHRASE }).createBackup();
    writeFileSync(path.join(root, '.kg/key'), PASSPHRASE);
    const manager = manage({ passphraseFile: path.join(root, '.kg/key') });
    await expect(manager.createBackup()).rejects.toMatchObject({
      code: 'KG_KEY_INVALID',
      message: expect.stringContaining('so is the key'),
    });
    expect(await manager.verifyBackup(backup.id)).toBe(true);
  });

  test('invalid options are refused at once, and no message contains a secret', async () => {
    const { manage, file } = setUp();
    const cases = [
      [{}, 'KG_KEY_NEEDED'],
      ['hunter2', 'KG_INVALID_OPTION'],
      [{ passphrase: 1234567 }, 'KG_INVALID_OPTION'],
      [{ passphrase: '' }, 'KG_KEY_INVALID'],
      [{ passphrase: 'hunter2\n' }, 'KG_KEY_INVALID'],
      [{ passphrase: 'hunter2', pasphrase: 'hunter2' }, 'KG_INVALID_OPTION'],
      [{ passphrase: 'hunter2', passphraseFile: 'x' }, 'KG_INVALID_OPTION'],
      [{ recipients: ['age1hunter'] }, 'KG_KEY_INVALID'],
      [{ recipients: ['AGE-SECRET-KEY-hunter2'] }, 'KG_KEY_INVALID'],
      [{ recipients: 'AGE-SECRET-KEY-hunter2' }, 'KG_INVALID_OPTION'],
    ];
    for (const [encryption, code] of cases) {
      let thrown;
      try {
        manage(encryption);
      } catch (error) {
        thrown = error;
      }
      expect(thrown, inspect(encryption)).toMatchObject({ name: 'KgError', code });
      expect(inspect(thrown)).not.toMatch(/hunter2|1234567/);
    }
    expect(
      inspect(manage({ passphrase: 'hunter2' }), { depth: 9, showHidden: true }),
    ).not.toContain('hunter2');
    const notText = file('binary', Buffer.from([0xff, 0xfe, 0x68, 0x75]));
    await expect(manage({ passphraseFile: notText }).createBackup()).rejects.toMatchObject({
      code: 'KG_KEY_INVALID',
      message: expect.stringContaining('it is not UTF-8 text'),
    });
  });
});

describe('to recipients', () => {
  test('a machine with only the public key makes full and incremental backups but cannot open them', async () => {
    const project = setUp();
    const maker = project.manage({ recipients: [project.recipient] });
    const made = [await maker.createBackup()];
    for (const seed of [1, 2]) {
      project.change(seed);
      made.push(await maker.createBackup({ type: 'incremental' }));
    }
    expect(made.map(({ type, basedOn }) => [type, basedOn])).toEqual([
      ['full', undefined],
      ['incremental', made[0].id],
      ['incremental', made[1].id],
    ]);
    expect(made[2].size).toBeLessThan(made[0].size / 2);
    await expect(maker.verifyBackup(made[2].id)).rejects.toMatchObject({ code: 'KG_KEY_NEEDED' });
    const owner = project.manage({ identityFile: project.identityFile });
    expect(await owner.checkBackup(made[2].id)).toMatchObject({ valid: true, problems: [] });
    await expectRestores(owner, made[2], project);
    const whole = await owner.consolidate(made[2].id);
    expect(whole).toMatchObject({ type: 'full', encrypted: true });
    await expectRestores(owner, whole, project);
  });

  test('an incremental backup without the cached manifest of its base needs a key, or becomes full', async () => {
    const project = setUp();
    const maker = project.manage({ recipients: [project.recipient] });
    const full = await maker.createBackup();
    const kept = pageCache(project.root);
    const cacheOf = ({ id }) => [id, `${id}.files`, `${id}.manifest`];
    expect(readdirSync(kept).sort()).toEqual(cacheOf(full));
    // One wrong byte makes the cached manifest unusable.
    const file = path.join(kept, `${full.id}.manifest`);
    writeFileSync(file, readFileSync(file, 'utf8').replace('"tool"', '"tooi"'));
    project.change(1);
    expect(await maker.createBackup({ type: 'incremental' })).toMatchObject({
      type: 'full',
      warnings: [
        { code: 'KG_WARN_FULL', message: expect.stringContaining('no identity was given') },
      ],
    });
    await expect(
      maker.createBackup({ type: 'incremental', basedOn: full.id }),
    ).rejects.toMatchObject({ code: 'KG_KEY_NEEDED' });
    rmSync(kept, { recursive: true });
    project.change(2);
    const owner = project.manage({
      identityFile: project.identityFile,
      recipients: [project.recipient],
    });
    const incremental = await owner.createBackup({ type: 'incremental' });
    expect(incremental).toMatchObject({ type: 'incremental', warnings: [] });
    expect(readdirSync(kept).sort()).toEqual(cacheOf(incremental));
    await expectRestores(owner, incremental, project);
  });

  test('up to four stores that are used in turn make incremental backups without a key', async () => {
    const project = setUp();
    const stores = [1, 2, 3, 4, 5].map((number) =>
      project.manage(
        { recipients: [project.recipient] },
        { backupDir: path.join(project.base, `store-${number}`) },
      ),
    );
    const backUp = async (store) => {
      project.change(1);
      const { type, warnings } = await store.createBackup({ type: 'incremental' });
      return [type, warnings.map(({ code }) => code)];
    };
    for (const store of stores) await store.createBackup();
    const lastFour = stores.slice(1);
    for (const store of [...lastFour, ...lastFour])
      expect(await backUp(store)).toEqual(['incremental', []]);
    expect(await backUp(stores[0])).toEqual(['full', ['KG_WARN_FULL']]);
    const cached = readdirSync(path.join(project.root, '.kg/cache/backup-pages'));
    expect(cached.filter((name) => name !== 'stores.json')).toHaveLength(4);
  });

  test('a part of an encrypted chain can be restored', async () => {
    const project = setUp();
    const owner = project.manage({ identityFile: project.identityFile });
    await owner.createBackup();
    project.change(1);
    await owner.createBackup({ type: 'incremental' });
    const targetDir = path.join(project.base, 'part');
    expect(await owner.restore({ backupId: 'latest', targetDir, only: ['config'] })).toMatchObject({
      filesRestored: 1,
    });
    expect(readdirSync(path.join(targetDir, '.kg'))).not.toContain('knowledge.db');
  });
});

describe('a chain has one key', () => {
  const warned = {
    type: 'full',
    warnings: [
      { code: 'KG_WARN_FULL', message: expect.stringContaining('encrypted with another key') },
    ],
  };

  test('an archive that is no longer an age file is damaged, not encrypted with another key', async () => {
    const project = setUp();
    const manager = project.manage({ passphrase: 'one' });
    const full = await manager.createBackup();
    const bytes = readFileSync(full.path);
    writeFileSync(
      full.path,
      Buffer.concat([bytes.subarray(0, 30), Buffer.alloc(bytes.length - 30)]),
    );
    await expect(
      manager.createBackup({ type: 'incremental', basedOn: full.id }),
    ).rejects.toMatchObject({
      code: 'KG_BASE_UNUSABLE',
      message: expect.stringContaining('header'),
    });
  });

  test('another passphrase leads to a full backup, and the same one to an incremental backup', async () => {
    const project = setUp();
    const [one, two] = ['one', 'two'].map((passphrase) => project.manage({ passphrase }));
    const full = await one.createBackup();
    project.change(1);
    expect(await one.createBackup({ type: 'incremental' })).toMatchObject({
      type: 'incremental',
      basedOn: full.id,
      warnings: [],
    });
    project.change(2);
    const other = await two.createBackup({ type: 'incremental' });
    expect(other).toMatchObject(warned);
    await expectRestores(two, other, project);
    await expect(two.createBackup({ type: 'incremental', basedOn: full.id })).rejects.toMatchObject(
      { code: 'KG_KEY_WRONG' },
    );
    // Each archive has its own key, and a call can give several keys.
    const files = ['one', 'two'].flatMap((passphrase) => [
      '--passphrase-file',
      project.file(passphrase, passphrase),
    ]);
    for (const id of [full.id, other.id]) {
      expect(
        (
          await kg(['diag', 'backup', '--verify', id, '--output', project.backups, ...files], {
            cwd: project.root,
          })
        ).status,
      ).toBe(0);
    }
  });

  test('a change of recipients leads to a full backup', async () => {
    const project = setUp();
    const second = path.join(project.base, 'second');
    run('age-keygen', ['-o', second]);
    const both = [project.recipient, run('age-keygen', ['-y', second]).trim()];
    const made = [];
    for (const recipients of [[both[0]], [...both].reverse(), both, [both[1]]]) {
      project.change(made.length);
      made.push(await project.manage({ recipients }).createBackup({ type: 'incremental' }));
    }
    expect(made.map(({ type }) => type)).toEqual(['full', 'full', 'incremental', 'full']);
    expect(made[1]).toMatchObject(warned);
    for (const identityFile of [project.identityFile, second])
      expect(await project.manage({ identityFile }).verifyBackup(made[2].id)).toBe(true);
  });

  test('plain backups have chains of their own', async () => {
    const project = setUp();
    const owner = project.manage({ identityFile: project.identityFile });
    const bases = {};
    for (const encrypt of [true, false])
      bases[encrypt] = (await owner.createBackup({ encrypt })).id;
    for (const encrypt of [true, false]) {
      project.change(`${encrypt}`);
      const backup = await owner.createBackup({ type: 'incremental', encrypt });
      expect(backup).toMatchObject({ type: 'incremental', basedOn: bases[encrypt], warnings: [] });
      await expectRestores(owner, backup, project);
      await expect(
        owner.createBackup({ type: 'incremental', encrypt, basedOn: bases[!encrypt] }),
      ).rejects.toMatchObject({ code: 'KG_BASE_UNUSABLE' });
    }
  });

  test('a decrypted copy next to an encrypted backup does no harm', async () => {
    const project = setUp();
    const owner = project.manage({ identityFile: project.identityFile });
    const full = await owner.createBackup();
    run('sh', [
      '-ec',
      `age -d -i '${project.identityFile}' '${full.path}' > '${full.path.replace('.enc.tar.gz', '.tar.gz')}'`,
    ]);
    project.change(1);
    const next = await owner.createBackup({ type: 'incremental' });
    expect(next).toMatchObject({
      type: 'incremental',
      basedOn: full.id,
      warnings: [{ message: expect.stringContaining(`another archive of ${full.id} next to it`) }],
    });
    await expectRestores(owner, next, project);
  });
});

describe('a change', () => {
  test('anywhere in the archive is found and reported, and that archive is never restored', async () => {
    const project = setUp({ nodes: 800 });
    const manager = project.manage({ identityFile: project.identityFile });
    const backup = await manager.createBackup();
    const whole = readFileSync(backup.path);
    expect(whole.length).toBeGreaterThan(70_000);
    const changes = {
      'the first byte': (bytes) => (bytes[0] ^= 1),
      'the header': (bytes) => (bytes[60] ^= 1),
      'the first piece': (bytes) => (bytes[1000] ^= 1),
      'the last piece': (bytes) => (bytes[bytes.length - 40] ^= 1),
      'the end': (bytes) => bytes.subarray(0, bytes.length - 1),
      'a missing piece': (bytes) =>
        Buffer.concat([bytes.subarray(0, 400), bytes.subarray(400 + 65_552)]),
      'bytes after it': (bytes) => Buffer.concat([bytes, Buffer.from('x')]),
    };
    for (const [what, change] of Object.entries(changes)) {
      for (const manifest of [true, false]) {
        const lone = path.join(project.base, 'lone.enc.tar.gz');
        const bytes = Buffer.from(whole);
        const changed = change(bytes);
        writeFileSync(lone, Buffer.isBuffer(changed) ? changed : bytes);
        if (manifest) writeFileSync(`${lone}.manifest.json`, sidecarText(backup));
        else rmSync(`${lone}.manifest.json`, { force: true });
        // Without its sidecar, an archive with a changed wrapped key looks like one of another key.
        const verified = await manager.verifyBackup(lone).catch((error) => error.code);
        expect([false, manifest ? false : 'KG_KEY_WRONG'], `${what}, ${manifest}`).toContain(
          verified,
        );
        await expect(
          manager.restore({ backupPath: lone, targetDir: path.join(project.base, 'none') }),
        ).rejects.toThrow();
      }
    }
    expect(existsSync(path.join(project.base, 'none'))).toBe(false);
    writeFileSync(
      path.join(project.base, 'lone.enc.tar.gz'),
      Buffer.concat([whole.subarray(0, 30_000), whole.subarray(30_001)]),
    );
    const { problems } = await manager.checkBackup(path.join(project.base, 'lone.enc.tar.gz'));
    expect(problems.map((problem) => problem.message).join('\n')).toMatch(
      /It cannot be decrypted from byte \d+ on/,
    );
  });

  test('in a base makes the next backup a full one', async () => {
    const project = setUp();
    const maker = project.manage({ recipients: [project.recipient] });
    const full = await maker.createBackup();
    const bytes = readFileSync(full.path);
    bytes[bytes.length - 100] ^= 1;
    writeFileSync(full.path, bytes);
    project.change(1);
    const next = await maker.createBackup({ type: 'incremental' });
    expect(next).toMatchObject({ type: 'full', warnings: [{ code: 'KG_WARN_FULL' }] });
  });

  test('that deletes a sidecar is repaired by the next backup with the key', async () => {
    const project = setUp();
    const owner = project.manage({ identityFile: project.identityFile });
    const backup = await owner.createBackup({ description: 'the quarterly figures' });
    rmSync(`${backup.path}.manifest.json`);
    const maker = project.manage({ recipients: [project.recipient] });
    const { warnings } = await maker.createBackup();
    expect(warnings).toMatchObject([
      {
        code: 'KG_WARN_STORE',
        message: expect.stringMatching(
          /is not listed: The backup is encrypted to recipients, but no identity was given; the next backup that is made with its key lists it$/,
        ),
      },
    ]);
    await owner.createBackup();
    expect((await owner.listBackups()).map(({ id }) => id)).toContain(backup.id);
    expect(sidecarText(backup)).not.toContain('quarterly');
    expect(await owner.verifyBackup(backup.id)).toBe(true);
  });
});

describe('a plain backup in place of an expected encrypted one', () => {
  /** Makes a store with an encrypted backup and a plain one that another writer added. */
  async function setUpBoth() {
    const project = setUp();
    const manager = project.manage({ passphrase: PASSPHRASE });
    const encrypted = await manager.createBackup();
    const plain = await project.manage(false).createBackup();
    return { ...project, manager, encrypted, plain, key: project.file('key', `${PASSPHRASE}\n`) };
  }

  test('is a warning if keys are given, and an error if encryption is required', async () => {
    const project = await setUpBoth();
    const { manager, plain, encrypted } = project;
    const warned = expect.objectContaining({
      code: 'KG_WARN_NOT_ENCRYPTED',
      message: expect.stringContaining(plain.path),
    });
    expect((await manager.checkBackup(plain.id)).warnings).toContainEqual(warned);
    expect((await expectRestores(manager, plain, project)).warnings).toContainEqual(warned);
    expect((await manager.rehearse({ backup: plain.id })).warnings).toContainEqual(warned);
    expect((await manager.checkBackup(encrypted.id)).warnings).toEqual([]);
    expect((await project.manage(undefined).checkBackup(plain.id)).warnings).toEqual([]);

    const strict = project.manage({ passphrase: PASSPHRASE, requireEncryption: true });
    const targetDir = path.join(project.base, 'refused');
    for (const call of [
      () => strict.checkBackup(plain.id),
      () => strict.restore({ backupId: plain.id, targetDir }),
      () => strict.rehearse({ backup: plain.id }),
    ]) {
      await expect(call()).rejects.toMatchObject({
        code: 'KG_NOT_ENCRYPTED',
        message: expect.stringContaining(plain.path),
      });
    }
    expect(existsSync(path.join(targetDir, '.kg/knowledge.db'))).toBe(false);
    expect(await strict.verifyBackup(encrypted.id)).toBe(true);
  });

  test('is refused by --decrypt and --require-encryption, and a warning with a key', async () => {
    const { root, base, backups, plain, key } = await setUpBoth();
    const at = (...args) => kg(['diag', ...args, '--passphrase-file', key], { cwd: root });
    const restore = ['restore', '--file', plain.path, '--target', path.join(base, 'other')];
    const refused = { status: 5, stderr: expect.stringContaining('KG_NOT_ENCRYPTED') };
    expect(await at(...restore, '--decrypt')).toMatchObject(refused);
    expect(await at(...restore, '--require-encryption')).toMatchObject(refused);
    expect(await at('backup', '--verify', plain.path, '--require-encryption')).toMatchObject(
      refused,
    );
    expect(
      await at('drill', '--file', plain.id, '--backup-dir', backups, '--require-encryption'),
    ).toMatchObject(refused);
    expect(await at(...restore)).toMatchObject({
      status: 0,
      stderr: expect.stringContaining('KG_WARN_NOT_ENCRYPTED'),
    });
  });

  test('is damage if it has the name of an encrypted one', async () => {
    const { manager, plain, encrypted } = await setUpBoth();
    copyFileSync(plain.path, encrypted.path);
    const report = await manager.checkBackup(encrypted.path);
    expect(report.valid).toBe(false);
    expect(report.problems.map(({ message }) => message)).toContain(
      'Its name says that it is encrypted, but it is not',
    );
    // Without its sidecar, the archive is also damaged.
    rmSync(`${encrypted.path}.manifest.json`);
    expect((await manager.checkBackup(encrypted.path)).valid).toBe(false);
  });
});

describe('with only the `age` command', () => {
  test('a backup is opened by an identity, with tar and sqlite3', async () => {
    const { manage, recipient, identityFile, base } = setUp();
    for (const [compression, flag] of [
      ['gzip', '-xz'],
      ['zstd', '--zstd -x'],
      [false, '-x'],
    ]) {
      const backup = await manage({ recipients: [recipient] }).createBackup({ compression });
      const out = path.join(base, `out-${compression}`);
      mkdirSync(out);
      run('sh', [
        '-ec',
        `age -d -i '${identityFile}' '${backup.path}' | tar ${flag} -C '${out}'; cd '${out}' && sha256sum -c --quiet checksums.sha256`,
      ]);
      const db = new Database(path.join(out, 'database.sqlite'), { readonly: true });
      expect(db.prepare('SELECT count(*) AS n FROM nodes').get().n).toBe(50);
      db.close();
    }
  });

  // age reads a passphrase only from a terminal.
  const typed = (command, ...lines) => {
    const script = `
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0: os.execvp('sh', ['sh', '-ec', sys.argv[1]])
said, asked = b'', 0
while True:
    try: piece = os.read(terminal, 4096)
    except OSError: break
    if not piece: break
    said += piece
    while asked + 2 < len(sys.argv) and said.lower().count(b': ') > asked:
        os.write(terminal, sys.argv[asked + 2].encode() + b'\\n'); asked += 1
print(said.decode()); sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`;
    return execFileSync('python3', ['-c', script, command, ...lines], {
      cwd: repository,
      encoding: 'utf8',
    });
  };

  test('a backup is opened by its passphrase, and `kg` opens an archive that `age` encrypted again', async () => {
    const { manage, base, root } = setUp();
    const manager = manage({ passphrase: PASSPHRASE });
    const backup = await manager.createBackup();
    const plain = path.join(base, 'plain.tar.gz');
    typed(`age -d -o '${plain}' '${backup.path}'`, PASSPHRASE);
    expect(run('tar', ['-tzf', plain])).toContain('database.sqlite');
    const again = path.join(base, 'again.enc.tar.gz');
    typed(`age -p -o '${again}' '${plain}'`, PASSPHRASE, PASSPHRASE);
    expect(await manager.verifyBackup(again)).toBe(true);
    const targetDir = path.join(base, 'again');
    await manager.restore({ backupPath: again, targetDir });
    expect(contents(targetDir)).toEqual(contents(root));
  });

  test('`kg` asks at a terminal for a missing passphrase, twice for a new one', () => {
    const { root, backups, base } = setUp();
    const at = (args) => `cd '${root}' && '${kgPath}' diag ${args}`;
    expect(typed(at(`backup --encrypt --output '${backups}'`), PASSPHRASE, PASSPHRASE)).toContain(
      'encrypted only its key opens it',
    );
    expect(typed(at(`backup --verify '${backups}/latest.enc.tar.gz'`), PASSPHRASE)).toContain(
      'every byte is as it was written',
    );
    expect(
      typed(
        at(`restore --file '${backups}/latest.enc.tar.gz' --decrypt --target '${base}/typed'`),
        PASSPHRASE,
      ),
    ).toContain('Restored');
    expect(contents(path.join(base, 'typed'))).toEqual(contents(root));
    expect(() =>
      typed(at(`backup --encrypt --output '${backups}'`), PASSPHRASE, 'another'),
    ).toThrow();
    expect(() => typed(at(`backup --verify '${backups}/latest.enc.tar.gz'`), 'another')).toThrow();
    expect(
      readdirSync(backups).filter((name) => name.endsWith('.tar.gz') && name.startsWith('kg-')),
    ).toHaveLength(1);
  });
});

describe('on the command line', () => {
  test('the commands of the guide work as written', () => {
    const { root } = setUp();
    writeFileSync(path.join(root, 'key'), `${PASSPHRASE}\n`);
    const env = {
      ...process.env,
      PATH: `${path.dirname(kgPath)}:${process.env.PATH}`,
      KG_PASSPHRASE_FILE: './key',
    };
    const guide = readFileSync(path.join(repository, 'docs/reference/specification.md'), 'utf8');
    const [, block] = guide.match(/```bash\n(# Encrypt backup\n[^]*?)```/);
    const [encrypt, decrypt] = block.split('\n').filter((line) => line.startsWith('kg '));
    expect(run('sh', ['-ec', encrypt], { cwd: root, env })).toContain('.enc.tar.gz');
    run('sh', ['-ec', 'cp .kg/backups/latest.enc.tar.gz backup.enc.tar.gz; rm .kg/knowledge.db*'], {
      cwd: root,
    });
    expect(run('sh', ['-ec', decrypt], { cwd: root, env })).toContain('Restored');
    expect(existsSync(path.join(root, '.kg/knowledge.db'))).toBe(true);
  });

  test('without a key or a terminal, kg reports the missing key; a given key turns encryption on', async () => {
    const { root, backups, file, recipient, identityFile } = setUp();
    const run = (...args) => kg(['diag', ...args], { cwd: root });
    const unkeyed = await run('backup', '--encrypt', '--output', backups);
    expect(unkeyed).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/\[KG_KEY_NEEDED\].*\n.*`--passphrase-file`.*`--recipient`/),
    });
    // An identity opens backups but encrypts none, so the message must not suggest it.
    expect(unkeyed.stderr).not.toContain('--identity');
    expect(existsSync(backups)).toBe(false);
    const key = file('key', PASSPHRASE);
    expect((await run('backup', '--passphrase-file', key, '--output', backups)).stdout).toContain(
      '.enc.tar.gz',
    );
    expect((await run('backup', '-r', recipient, '--output', backups)).stdout).toContain(
      '.enc.tar.gz',
    );
    expect(
      (await run('backup', '--list', '--output', backups)).stdout.match(/\[encrypted\]/g),
    ).toHaveLength(2);
    const latest = path.join(backups, 'latest.enc.tar.gz');
    expect(await run('restore', '--file', latest)).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('[KG_KEY_NEEDED]'),
    });
    expect(await run('backup', '--verify', latest, '--passphrase-file', key)).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('no identity was given [KG_KEY_NEEDED]'),
    });
    expect((await run('backup', '--verify', latest, '--identity', identityFile)).status).toBe(0);
    expect((await run('drill', '--file', latest, '--identity', identityFile)).stdout).toContain(
      'Passed',
    );
  });

  test('the settings encrypt every backup of the project: by command, by API and before a repair', async () => {
    const { root, base, identityFile, recipient, database } = setUp();
    const set = (...args) => kg(['config', 'set', ...args], { cwd: root });
    expect(await set('backup.recipients', 'age1nobody')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('public keys of age'),
    });
    for (const [name, value] of [
      ['backup.recipients', recipient],
      ['backup.identityFile', '../identity'],
      ['backup.encrypt', 'true'],
    ]) {
      expect((await set(name, value)).status, name).toBe(0);
    }
    expect((await kg(['diag', 'backup'], { cwd: root })).stdout).toContain('.enc.tar.gz');
    const manager = createBackupManager({ projectRoot: root });
    expect(await manager.createBackup()).toMatchObject({ encrypted: true });
    expect(await manager.verifyBackup('latest')).toBe(true);
    expect((await manager.createBackup({ encrypt: false })).encrypted).toBeUndefined();
    withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 5)"));
    const { safetyBackup } = resultOf(
      (await kg(['diag', 'repair', '--auto', '--json'], { cwd: root })).stdout,
    ).repair;
    expect(safetyBackup.path).toMatch(/\.enc\.tar\.gz$/);
    expect(
      await createBackupManager({
        projectRoot: root,
        backupDir: path.join(root, '.kg/backups'),
      }).verifyBackup(safetyBackup.id),
    ).toBe(true);
    expect((await kg(['diag', 'backup', '--no-encrypt'], { cwd: root })).stdout).not.toContain(
      '.enc.',
    );
    expect(identityFile).toBe(path.join(base, 'identity'));
  });

  test('invalid settings do not turn encryption off', async () => {
    const { root, recipient } = setUp();
    const dir = '../elsewhere';
    const file = path.join(root, '.kg/config.json');
    const backup = (...args) => kg(['diag', 'backup', ...args], { cwd: root });
    const set = (settings) =>
      writeFileSync(
        file,
        typeof settings === 'string' ? settings : JSON.stringify({ backup: settings }),
      );
    // No backup was encrypted yet, but the store is unknown, so the call must name it.
    set('{');
    expect(await backup()).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('[KG_CONFIG_INVALID]'),
    });
    set({ dir, encrypt: true, recipients: [recipient] });
    expect((await backup()).stdout).toContain('.enc.tar.gz');
    for (const settings of [
      '{',
      { dir, encrypt: 'true', recipients: [recipient] },
      { encrypt: true, recipients: [recipient, 'age1nobody'] },
    ]) {
      set(settings);
      expect(await backup()).toMatchObject({
        status: 2,
        stderr: expect.stringContaining('[KG_KEY_INVALID]'),
      });
      await expect(createBackupManager({ projectRoot: root }).createBackup()).rejects.toMatchObject(
        { code: 'KG_KEY_INVALID' },
      );
      expect(
        (await backup('--no-encrypt', '--json', '--output', path.join(root, dir))).status,
      ).toBe(0);
      expect(
        (await backup('--recipient', recipient, '--output', path.join(root, dir))).stdout,
      ).toContain('.enc.tar.gz');
    }
    const { lastFailure } = resultOf(
      (await kg(['diag', 'backup', '--status', '--json'], { cwd: root })).stdout,
    );
    expect(lastFailure.error.code).toBe('KG_KEY_INVALID');
  });

  test('a key for reading does not change the recipients of new backups', async () => {
    const { root, base, recipient, identityFile, change } = setUp();
    const other = path.join(base, 'other');
    run('age-keygen', ['-o', other]);
    writeFileSync(
      path.join(root, '.kg/config.json'),
      JSON.stringify({
        backup: { encrypt: true, recipients: [recipient, run('age-keygen', ['-y', other]).trim()] },
      }),
    );
    const at = (args, env) => kg(['diag', ...args], { cwd: root, env: { ...process.env, ...env } });
    const json = async (...args) => resultOf((await at(...args)).stdout);
    const opens = async (id) =>
      Promise.all(
        [identityFile, other].map(
          async (file) => (await at(['backup', '--verify', id, '--identity', file])).status,
        ),
      );
    expect(
      await opens((await json(['backup', '--json'], { KG_IDENTITY_FILE: identityFile })).id),
    ).toEqual([0, 0]);
    change(1);
    const incremental = await json(['backup', '--type', 'incremental', '--json']);
    expect(incremental.type).toBe('incremental');
    const whole = await json([
      'backup',
      '--consolidate',
      incremental.id,
      '--identity',
      identityFile,
      '--json',
    ]);
    expect(whole.encrypted).toBe(true);
    expect(await opens(whole.id)).toEqual([0, 0]);
    expect(await opens((await json(['backup', '--recipient', recipient, '--json'])).id)).toEqual([
      0, 2,
    ]);
    const manager = createBackupManager({
      projectRoot: root,
      backupDir: path.join(root, '.kg/backups'),
    });
    await expect(manager.consolidate(incremental.id)).rejects.toMatchObject({
      code: 'KG_KEY_NEEDED',
    });
  });

  test('no file next to the archives reveals content without the key', async () => {
    const { manage, backups, base } = setUp({ nodes: 3000 });
    const tmp = path.join(base, 'tmp');
    mkdirSync(tmp);
    const project = makeProject({ nodes: 3000, journalMode: 'delete' });
    const key = path.join(base, 'key');
    writeFileSync(key, PASSPHRASE);
    const seen = new Set();
    const child = kg(['diag', 'backup', '--output', backups, '--passphrase-file', key], {
      cwd: project.root,
      env: { ...process.env, TMPDIR: tmp },
    });
    let done = false;
    child.then(() => (done = true));
    while (!done) {
      if (existsSync(backups))
        readdirSync(backups, { recursive: true }).forEach((name) =>
          seen.add(name.replace(/-[^-]*$/, '')),
        );
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await child).status).toBe(0);
    expect([...seen].filter((name) => name.includes('snapshot'))).toEqual([]);
    expect(readdirSync(tmp)).toEqual([]);
    expect(await manage({ passphraseFile: key }).verifyBackup('latest')).toBe(true);
  });

  test('the safety backup of a repair follows the encryption options', async () => {
    const { root, database, base } = setUp();
    const broken = () =>
      withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 5)"));
    broken();
    const checker = new IntegrityChecker(root, { encryption: { passphrase: PASSPHRASE } });
    const { repair } = await checker.runChecks({ repairMode: true });
    expect(repair.safetyBackup.path).toMatch(/\.enc\.tar\.gz$/);
    broken();
    const key = path.join(base, 'key');
    writeFileSync(key, PASSPHRASE);
    const repairResult = await kg(
      ['diag', 'repair', '--auto', '--passphrase-file', key, '--json'],
      {
        cwd: root,
      },
    );
    expect(resultOf(repairResult.stdout).repair.safetyBackup.path).toMatch(/\.enc\.tar\.gz$/);
  });
});
