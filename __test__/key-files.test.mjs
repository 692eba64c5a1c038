// Key files: who else can read them, their place, their content, and when kg asks for a passphrase.

import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { kg as runKg, kgPath, run } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

/** Makes a project with an identity next to it. Recipients are fast, unlike passphrases. */
function setUp() {
  const project = makeProject({ nodes: 5 });
  const base = path.dirname(project.root);
  const identity = path.join(base, 'identity');
  run('age-keygen', ['-o', identity]);
  const recipient = run('age-keygen', ['-y', identity]).trim();
  const kg = (...args) => runKg(['diag', ...args], { cwd: project.root });
  const file = (name, text, mode = 0o600) => {
    writeFileSync(path.join(base, name), text, { mode });
    return path.join(base, name);
  };
  return { ...project, base, identity, recipient, kg, file };
}

const exposed = (result) =>
  result.warnings
    ?.filter(({ code }) => code === 'KG_WARN_KEY_EXPOSED')
    .map(({ message }) => message) ?? [];

describe('a key that others have', () => {
  /** Returns the warnings about the identity for each of its uses. */
  async function warningsOfUses({ root, backups, base, recipient, kg }, identityFile) {
    const manager = createBackupManager({
      projectRoot: root,
      backupDir: backups,
      encryption: { identityFile, recipients: [recipient] },
    });
    const backup = await manager.createBackup();
    const key = ['--identity', identityFile];
    const json = async (...args) => resultOf((await kg(...args, ...key, '--json')).stdout);
    const target = path.join(base, `target-${Math.random()}`);
    return {
      backup: exposed(backup),
      verify: exposed(await manager.checkBackup(backup.id)),
      restore: exposed(await manager.restore({ backupId: backup.id, targetDir: target })),
      drill: exposed(await manager.rehearse({ backup: backup.id })),
      'kg verify': exposed(await json('backup', '--verify', backup.path)),
      'kg restore': exposed(
        await json('restore', '--file', backup.path, '--target', `${target}-kg`),
      ),
      'kg drill': exposed(await json('drill', '--file', backup.path)),
    };
  }

  test('is a warning on every use, and a private key is not', async () => {
    const project = setUp();
    const private_ = Object.entries(await warningsOfUses(project, project.identity));
    for (const [use, messages] of private_) expect(messages, use).toEqual([]);
    for (const mode of [0o640, 0o604]) {
      chmodSync(project.identity, mode);
      for (const [use, messages] of Object.entries(
        await warningsOfUses(project, project.identity),
      )) {
        expect(messages, `${use} ${mode.toString(8)}`).toEqual([
          expect.stringContaining('users other than its owner can read it'),
        ]);
      }
    }
    chmodSync(project.identity, 0o620);
    expect((await warningsOfUses(project, project.identity)).backup).toEqual([
      expect.stringContaining('users other than its owner can replace it'),
    ]);
    const { stderr } = await project.kg(
      'backup',
      '--verify',
      'latest',
      '--output',
      project.backups,
      '--identity',
      project.identity,
    );
    expect(stderr).toContain('[KG_WARN_KEY_EXPOSED]');
  });

  test('is in the backup directory, even under another name', async () => {
    const project = setUp();
    mkdirSync(project.backups);
    const here = path.join(project.backups, 'identity');
    execFileSync('cp', ['-p', project.identity, here]);
    symlinkSync(here, path.join(project.base, 'link'));
    for (const name of [here, path.join(project.base, 'link')]) {
      for (const [use, messages] of Object.entries(await warningsOfUses(project, name))) {
        expect(messages, use).toEqual([
          expect.stringContaining('lies in the directory of the backups'),
        ]);
      }
    }
  });

  test.skipIf(process.getuid() !== 0)('belongs to another user (needs root)', async () => {
    const project = setUp();
    chownSync(project.identity, 65534, 65534);
    expect((await warningsOfUses(project, project.identity)).backup).toEqual([
      expect.stringContaining('belongs to another user, 65534'),
    ]);
  });

  test('can be replaced in a directory, or a parent directory, that others can write', async () => {
    const project = setUp();
    mkdirSync(path.join(project.base, 'outer/inner'), { recursive: true });
    const [outer, inner] = [
      path.join(project.base, 'outer'),
      path.join(project.base, 'outer/inner'),
    ];
    const identity = path.join(inner, 'identity');
    execFileSync('cp', ['-p', project.identity, identity]);
    for (const [dir, mode] of [
      [inner, 0o777],
      [outer, 0o777],
      [outer, 0o757],
    ]) {
      chmodSync(dir, mode);
      for (const [use, messages] of Object.entries(await warningsOfUses(project, identity))) {
        expect(messages, `${use} ${mode.toString(8)}`).toEqual([
          expect.stringContaining(
            `users other than its owner can replace it, because they can write to ${dir} (chmod go-w '${dir}')`,
          ),
        ]);
      }
      chmodSync(dir, 0o755);
    }
    // In a sticky directory, other users cannot rename files that they do not own.
    chmodSync(outer, 0o1777);
    expect((await warningsOfUses(project, identity)).backup).toEqual([]);
    // Other users can replace a link in a directory that they can write.
    const open = path.join(project.base, 'open');
    mkdirSync(open);
    chmodSync(open, 0o777);
    symlinkSync(identity, path.join(open, 'link'));
    expect((await warningsOfUses(project, path.join(open, 'link'))).backup).toEqual([
      expect.stringContaining(`write to ${open} `),
    ]);
  });

  test.skipIf(process.getuid() !== 0)(
    'can be replaced by the owner of a directory (needs root)',
    async () => {
      const project = setUp();
      const dir = path.join(project.base, 'theirs');
      mkdirSync(dir);
      execFileSync('cp', ['-p', project.identity, path.join(dir, 'identity')]);
      chownSync(dir, 65534, 65534);
      for (const mode of [0o755, 0o1777]) {
        chmodSync(dir, mode);
        expect((await warningsOfUses(project, path.join(dir, 'identity'))).backup).toEqual([
          expect.stringContaining(
            `user 65534 can replace it, because ${dir} belongs to that user: move it to a directory of your own`,
          ),
        ]);
      }
      chmodSync(dir, 0o775);
      chownSync(dir, 0, 65534);
      expect((await warningsOfUses(project, path.join(dir, 'identity'))).backup).toEqual([
        expect.stringContaining(`they can write to ${dir} `),
      ]);
      // The group with the same number as the owner has no other member.
      chownSync(dir, 0, 0);
      expect((await warningsOfUses(project, path.join(dir, 'identity'))).backup).toEqual([]);
    },
  );

  test('is also a warning for a passphrase, and for keys that the settings or a service use', async () => {
    const { root, kg, file } = setUp();
    file('key', 'correct horse\n', 0o644);
    writeFileSync(
      path.join(root, '.kg/config.json'),
      JSON.stringify({ backup: { encrypt: true, passphraseFile: '../key' } }),
    );
    expect(exposed(resultOf((await kg('backup', '--json')).stdout))).toHaveLength(1);
  });
});

describe('the content of a passphrase file', () => {
  test('is the same with and without a byte order mark, and old backups still open', async () => {
    const { root, backups, file } = setUp();
    const manage = (encryption) =>
      createBackupManager({ projectRoot: root, backupDir: backups, encryption });
    const marked = manage({ passphraseFile: file('marked', '\ufeffcorrect horse\r\n') });
    const backup = await marked.createBackup();
    expect(await manage({ passphrase: 'correct horse' }).verifyBackup(backup.id)).toBe(true);
    // An earlier release kept the mark as a part of the passphrase.
    const old = await manage({ passphrase: '\ufeffcorrect horse' }).createBackup();
    expect(await marked.verifyBackup(old.id)).toBe(true);
  });

  test('is refused if it is blank or longer than a key can be', async () => {
    const { root, backups, file } = setUp();
    const texts = {
      spaces: '   \n',
      tabs: '\t\t',
      'no-break': '\u00a0\n',
      mark: '\ufeff \n',
      unseen: '\u200b',
      long: `${'x'.repeat(65_536)}y`,
    };
    for (const [what, text] of Object.entries(texts)) {
      const manager = createBackupManager({
        projectRoot: root,
        backupDir: backups,
        encryption: { passphraseFile: file(what, text) },
      });
      await expect(manager.createBackup(), what).rejects.toMatchObject({
        code: 'KG_KEY_INVALID',
        message: expect.stringMatching(/blanks|larger than 64 KiB/),
      });
    }
    for (const passphrase of ['  ', '\t', '\u00a0\u00a0']) {
      expect(() => createBackupManager({ projectRoot: root, encryption: { passphrase } })).toThrow(
        /`passphrase` consists of blanks/,
      );
    }
  });

  test('is read from a path or a file URL only', async () => {
    const { root, backups, identity } = setUp();
    const manage = (encryption) =>
      createBackupManager({ projectRoot: root, backupDir: backups, encryption });
    const url = pathToFileURL(identity);
    expect((await manage({ identityFile: url }).createBackup()).encrypted).toBe(true);
    for (const name of ['passphraseFile', 'identityFile']) {
      const wrong = [
        new URL('https://host/key'),
        new URL('file://host/key'),
        { href: url.href },
        'https://host/key',
        url.href,
        '',
        7,
        null,
        [identity],
        Buffer.from(identity),
      ];
      for (const value of wrong) {
        expect(() => manage({ [name]: value }), String(value)).toThrow(
          expect.objectContaining({
            code: 'KG_INVALID_OPTION',
            message: expect.stringContaining(`encryption.${name}`),
          }),
        );
      }
    }
    for (const passphrase of [url, new URL('https://host/'), new String('x'), null]) {
      expect(() => manage({ passphrase })).toThrow(
        expect.objectContaining({
          code: 'KG_INVALID_OPTION',
          message: expect.stringContaining('encryption.passphrase'),
        }),
      );
    }
  });
});

describe('at a terminal', () => {
  /**
   * Runs a command on a terminal and returns its output. Fails if the command asks for a
   * passphrase.
   */
  const runWithoutPrompt = (command, cwd, env) => {
    const script = `
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0: os.execvp('sh', ['sh', '-ec', sys.argv[1]])
said = b''
while True:
    try: piece = os.read(terminal, 4096)
    except OSError: break
    if not piece: break
    said += piece
    if b'assphrase' in said: os.kill(pid, 9)
print(said.decode()); sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`;
    return execFileSync('python3', ['-c', script, command], {
      cwd,
      env: { ...process.env, ...env },
      encoding: 'utf8',
    });
  };

  test('kg does not ask for a passphrase that the environment gives or the restore does not need', async () => {
    const { root, base, backups, kg, file } = setUp();
    const key = file('secret', 'correct horse\n');
    expect((await kg('backup', '--output', backups)).status).toBe(0);
    // The snapshot holds no configuration, so `latest` with --config-only means the plain backup.
    expect(
      (await kg('backup', '--output', backups, '--type', 'snapshot', '--passphrase-file', key))
        .status,
    ).toBe(0);
    const restore = (args) =>
      `'${kgPath}' diag restore --backup-dir '${backups}' --file latest --target '${base}/restored' --yes ${args}`;
    expect(runWithoutPrompt(restore('--config-only'), root, {})).toContain('Restored 1 file (');
    expect(
      runWithoutPrompt(restore('--db-only --decrypt'), root, { KG_PASSPHRASE_FILE: key }),
    ).toContain('Restored');
  });
});
