// Root works in a project whose owner forges records, puts links into the way, and swaps directories meanwhile: nothing outside of the
// project changes. Only root can run these.

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { describe, expect, onTestFinished, test } from 'vitest';

import { withDatabase } from './support/project.mjs';
import { isRoot, projectOf } from './support/users.mjs';

const OWNER = 1001;

/** A project of `OWNER`, and a directory of root's that nobody else may enter. */
function setUp(options = { nodes: 5 }) {
  const project = projectOf(OWNER, options);
  const { base, root, run } = project;
  const secrets = path.join(base, 'secrets');
  mkdirSync(secrets, { mode: 0o700 });
  writeFileSync(path.join(secrets, 'mine'), 'secret');
  const at = (name) => path.join(root, '.kg', name);
  /** Everything in root's directory, with its content. */
  const secret = () => readdirSync(secrets).map((name) => [name, readFileSync(path.join(secrets, name), 'utf8')]);
  /** Writes a file of the owner's. */
  const forge = (name, content) => {
    mkdirSync(path.dirname(at(name)), { recursive: true });
    writeFileSync(at(name), JSON.stringify(content));
    run(['chown', '-R', `${OWNER}:${OWNER}`, root]);
  };
  return { ...project, secrets, secret, at, forge };
}

const unsafe = { status: 4, stderr: expect.stringMatching(/it belongs to user 1001, and this is user 0.*\[KG_UNSAFE_FILE\][^]*Run this as that user/) };
const UNTOUCHED = [['mine', 'secret']];

describe.runIf(isRoot)('a record that the owner of the project wrote is not followed by root', () => {
  test('of an interrupted restore', () => {
    const { asRoot, asOwner, at, forge, secrets, secret, backups } = setUp();
    const outside = path.join(secrets, 'mine');
    const moves = [{ from: '.kg/stolen', to: outside, identity: [0, 0] }];
    const intent = { decided: false, token: '1', opened: [], made: [], moves, swaps: [], emptied: [`${secrets}/made`], outside };
    forge('restore-journal.json', intent);
    for (const args of [['backup', '--output', backups], ['restore', '--undo', '--yes']]) expect(asRoot('diag', ...args)).toMatchObject(unsafe);
    expect([secret(), existsSync(at('stolen'))]).toEqual([UNTOUCHED, false]);
    // Its owner can read nothing of root's, with the record or without.
    expect(asOwner('diag', 'backup').status).not.toBe(0);
    rmSync(at('restore-journal.json'));
    expect(asRoot('diag', 'backup').status).toBe(0);
  });

  test('of what an undo would put back', () => {
    const { asRoot, forge, secrets, secret } = setUp();
    const outside = path.join(secrets, 'mine');
    const files = [{ path: outside, kept: 'theirs', database: true }];
    const record = { version: 1, of: 'backup-20240101-000000', at: '2024-01-01T00:00:00Z', files, made: [], outside };
    forge('restore-undo/20990101-000000/theirs', {});
    forge('restore-undo/20990101-000000/undo.json', record);
    expect(asRoot('diag', 'restore', '--undo', '--yes')).toMatchObject(unsafe);
    expect(secret()).toEqual(UNTOUCHED);
  });

  test('while root and the owner take up what root began', () => {
    const { asRoot, asOwner, at } = setUp();
    expect(asRoot('diag', 'backup').status).toBe(0);
    for (const asOther of [asRoot, asOwner]) {
      writeFileSync(at('config.json'), '{"theme":"light"}');
      expect(asRoot('diag', 'restore', '--file', 'latest', '--yes').status).toBe(0);
      expect(readFileSync(at('config.json'), 'utf8')).not.toContain('light');
      expect(asOther('diag', 'restore', '--undo', '--yes')).toMatchObject({ status: 0, stderr: '' });
      expect(readFileSync(at('config.json'), 'utf8')).toContain('light');
    }
  });
});

test.runIf(isRoot)('a restore that was killed is made whole by whoever began it, and others are told who that is', () => {
  const { asOwner, asRoot, at, executable, run } = setUp();
  const kill = (...as) => run(['strace', '-f', '-o', '/dev/null', '-e', 'trace=renameat,renameat2', '-e', 'inject=renameat,renameat2:signal=KILL:when=3', ...as, executable, 'diag', 'restore', '--file', 'latest', '--yes']);
  expect(asOwner('diag', 'backup').status).toBe(0);
  const cases = [
    [[], asRoot, asOwner, 'as user 0'],
    [['setpriv', `--reuid=${OWNER}`, `--regid=${OWNER}`, '--clear-groups'], asOwner, asRoot, 'as that user'],
  ];
  for (const [as, whoever, other, who] of cases) {
    writeFileSync(at('config.json'), '{"theme":"light"}');
    expect(kill(...as).status).not.toBe(0);
    expect(existsSync(at('restore-journal.json'))).toBe(true);
    expect(other('diag', 'backup')).toMatchObject({ status: 4, stderr: expect.stringMatching(new RegExp(`An earlier restore [^]*${who}`)) });
    expect(other('diag', 'health').stdout).toMatch(/Run `kg diag backup` as user \d+, which first takes/);
    expect(whoever('diag', 'backup')).toMatchObject({ status: 0, stderr: expect.stringContaining('was taken back') });
    expect(other('diag', 'backup').status).toBe(0);
  }
});

test.runIf(isRoot)('a database that the settings put into a directory of root\'s is not written', () => {
  const { asRoot, at, base, forge, run, root, secrets, secret, backups } = setUp();
  const theirs = path.join(base, 'theirs');
  mkdirSync(theirs);
  run(['chown', `${OWNER}:${OWNER}`, theirs]);
  const configure = (dir) => forge('config.json', { database: { path: path.join(dir, 'graph.db') } });
  configure(theirs);
  renameSync(at('knowledge.db'), path.join(theirs, 'graph.db'));
  expect(asRoot('diag', 'backup', '--output', backups).status).toBe(0);
  configure(secrets);
  const restore = () => asRoot('diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--db-only', '--yes');
  expect(restore()).toMatchObject({ status: 4, stderr: expect.stringMatching(/does not belong to its owner, user 1001.*\[KG_TARGET_INVALID\]/) });
  expect(secret()).toEqual(UNTOUCHED);
  configure(theirs);
  rmSync(path.join(theirs, 'graph.db'));
  expect(restore().status).toBe(0);
  expect(withDatabase(path.join(theirs, 'graph.db'), (db) => db.prepare('SELECT count(*) FROM nodes').pluck().get())).toBe(5);
  expect(readdirSync(path.join(root, '.kg')).filter((name) => name.startsWith('restore-staging'))).toEqual([]);
});

describe.runIf(isRoot)('a link of the owner does not lead root out of the project', () => {
  test('in the place of a directory that backups and restores keep', () => {
    const { asRoot, at, secrets, secret, run, backups } = setUp();
    const link = (name) => {
      rmSync(at(name), { recursive: true, force: true });
      symlinkSync(secrets, at(name));
      run(['chown', '-h', `${OWNER}:${OWNER}`, at(name)]);
    };
    link('cache');
    const made = asRoot('diag', 'backup', '--output', backups, '--json');
    expect(made.status).toBe(0);
    expect(JSON.parse(made.stdout).warnings).toContainEqual(expect.objectContaining({ message: expect.stringContaining('is a link of user 1001, which is not followed') }));
    expect(secret()).toEqual(UNTOUCHED);
    rmSync(at('cache'));
    link('restore-undo');
    expect(asRoot('diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--yes')).toMatchObject({ status: 4, stderr: expect.stringContaining('restore-undo is in the way') });
    expect(secret()).toEqual(UNTOUCHED);
  });

  test('put in the place of the directory that a restore unpacks into, while it does', async () => {
    const { asRoot, root, secrets, secret, run, backups, at } = setUp({ nodes: 50 });
    const many = at('plugins/many');
    mkdirSync(many, { recursive: true });
    for (let number = 0; number < 300; number += 1) writeFileSync(path.join(many, `${number}`), `${number}`);
    run(['chown', '-R', `${OWNER}:${OWNER}`, root]);
    expect(asRoot('diag', 'backup', '--output', backups).status).toBe(0);
    // Whoever may write to a directory may rename what is in it.
    const swaps = `
      const fs = require('node:fs');
      let swapped = 0;
      process.on('SIGTERM', () => { fs.writeFileSync('.kg/swapped', String(swapped)); process.exit(); });
      const swap = () => {
        for (const name of fs.readdirSync('.kg')) {
          if (!name.startsWith('restore-staging-')) continue;
          try {
            fs.renameSync('.kg/' + name, '.kg/moved-' + swapped);
            fs.symlinkSync(${JSON.stringify(secrets)}, '.kg/' + name);
            swapped += 1;
          } catch {}
        }
        setImmediate(swap);
      };
      console.log('ready');
      swap();`;
    const node = spawn('setpriv', [`--reuid=${OWNER}`, `--regid=${OWNER}`, '--clear-groups', process.execPath, '-e', swaps], { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    onTestFinished(() => node.kill('SIGKILL'));
    await new Promise((resolve) => node.stdout.once('data', resolve));
    for (let attempt = 0; attempt < 12; attempt += 1) {
      asRoot('diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--yes');
      expect(secret()).toEqual(UNTOUCHED);
    }
    const ended = new Promise((resolve) => node.once('exit', resolve));
    node.kill('SIGTERM');
    await ended;
    expect(Number(readFileSync(at('swapped'), 'utf8'))).toBeGreaterThan(0);
  });
});
