// Root works in a project whose owner forges records, plants links and swaps directories. Nothing
// outside the project may change. These tests need root.

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  constants,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { describe, expect, onTestFinished, test } from 'vitest';

import { makeProject, withDatabase } from './support/project.mjs';
import { isRoot, notOwnedBy, projectOf } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

const OWNER = 1001;
/** The number of times that root runs each command while the owner swaps. */
const TURNS = process.env.KG_TEST_LONG ? 20 : 1;

/** Makes a project of `OWNER`, and a directory that only root can enter. */
function setUp(options = { nodes: 5 }) {
  const project = projectOf(OWNER, options);
  const { base, root, run } = project;
  const secrets = path.join(base, 'secrets');
  mkdirSync(secrets, { mode: 0o700 });
  writeFileSync(path.join(secrets, 'mine'), 'secret');
  const at = (name) => path.join(root, '.kg', name);
  /** Returns every file in the directory of root, with its content. */
  const secret = () =>
    readdirSync(secrets).map((name) => [name, readFileSync(path.join(secrets, name), 'utf8')]);
  /** Writes a file that belongs to the owner. */
  const forge = (name, content) => {
    mkdirSync(path.dirname(at(name)), { recursive: true });
    writeFileSync(at(name), JSON.stringify(content));
    run(['chown', '-R', `${OWNER}:${OWNER}`, root]);
  };
  return { ...project, secrets, secret, at, forge };
}

const unsafe = {
  status: 4,
  stderr: expect.stringMatching(
    /it belongs to user 1001, but this process runs as user 0.*\[KG_UNSAFE_FILE\][^]*Run this as that user/,
  ),
};
const UNTOUCHED = [['mine', 'secret']];

describe.runIf(isRoot)('root does not follow a record that the owner of the project wrote', () => {
  test('of an interrupted restore', () => {
    const { asRoot, asOwner, at, forge, secrets, secret, backups } = setUp();
    const outside = path.join(secrets, 'mine');
    const moves = [{ from: '.kg/stolen', to: outside, identity: [0, 0] }];
    const intent = {
      decided: false,
      token: '1',
      opened: [],
      made: [],
      moves,
      swaps: [],
      emptied: [`${secrets}/made`],
      outside,
    };
    forge('restore-journal.json', intent);
    for (const args of [
      ['backup', '--output', backups],
      ['restore', '--undo', '--yes'],
    ])
      expect(asRoot('diag', ...args)).toMatchObject(unsafe);
    expect([secret(), existsSync(at('stolen'))]).toEqual([UNTOUCHED, false]);
    // The owner cannot read files of root, with or without the record.
    expect(asOwner('diag', 'backup').status).not.toBe(0);
    rmSync(at('restore-journal.json'));
    expect(asRoot('diag', 'backup').status).toBe(0);
  });

  test('of a restore that can be undone', () => {
    const { asRoot, forge, secrets, secret } = setUp();
    const outside = path.join(secrets, 'mine');
    const files = [{ path: outside, kept: 'theirs', database: true }];
    const record = {
      version: 1,
      of: 'backup-20240101-000000',
      at: '2024-01-01T00:00:00Z',
      files,
      made: [],
      outside,
    };
    forge('restore-undo/20990101-000000/theirs', {});
    forge('restore-undo/20990101-000000/undo.json', record);
    expect(asRoot('diag', 'restore', '--undo', '--yes')).toMatchObject(unsafe);
    expect(secret()).toEqual(UNTOUCHED);
  });

  test('while root and the owner resume operations that root began', () => {
    const { asRoot, asOwner, at } = setUp();
    expect(asRoot('diag', 'backup').status).toBe(0);
    for (const asOther of [asRoot, asOwner]) {
      writeFileSync(at('config.json'), '{"theme":"light"}');
      expect(asRoot('diag', 'restore', '--file', 'latest', '--yes').status).toBe(0);
      expect(readFileSync(at('config.json'), 'utf8')).not.toContain('light');
      expect(asOther('diag', 'restore', '--undo', '--yes')).toMatchObject({
        status: 0,
        stderr: '',
      });
      expect(readFileSync(at('config.json'), 'utf8')).toContain('light');
    }
  });
});

test.runIf(isRoot)(
  'a killed restore is completed by the user who began it, and others see the name of that user',
  () => {
    const { asOwner, asRoot, at, executable, run } = setUp();
    const kill = (...as) =>
      run([
        'strace',
        '-f',
        '-o',
        '/dev/null',
        '-e',
        'trace=renameat,renameat2',
        '-e',
        'inject=renameat,renameat2:signal=KILL:when=3',
        ...as,
        executable,
        'diag',
        'restore',
        '--file',
        'latest',
        '--yes',
      ]);
    expect(asOwner('diag', 'backup').status).toBe(0);
    const cases = [
      [[], asRoot, asOwner, 'as user 0'],
      [
        ['setpriv', `--reuid=${OWNER}`, `--regid=${OWNER}`, '--clear-groups'],
        asOwner,
        asRoot,
        'as that user',
      ],
    ];
    for (const [as, whoever, other, who] of cases) {
      writeFileSync(at('config.json'), '{"theme":"light"}');
      expect(kill(...as).status).not.toBe(0);
      expect(existsSync(at('restore-journal.json'))).toBe(true);
      expect(other('diag', 'backup')).toMatchObject({
        status: 4,
        stderr: expect.stringMatching(new RegExp(`An earlier restore [^]*${who}`)),
      });
      expect(other('diag', 'health').stdout).toMatch(
        /Run `kg diag backup` as user \d+, which first rolls/,
      );
      expect(whoever('diag', 'backup')).toMatchObject({
        status: 0,
        stderr: expect.stringContaining('has been rolled back'),
      });
      expect(other('diag', 'backup').status).toBe(0);
    }
  },
);

test.runIf(isRoot)(
  'a database that the settings put into a directory of root is not written',
  () => {
    const { asRoot, at, base, forge, run, root, secrets, secret, backups } = setUp();
    const theirs = path.join(base, 'theirs');
    mkdirSync(theirs);
    run(['chown', `${OWNER}:${OWNER}`, theirs]);
    const configure = (dir) =>
      forge('config.json', { database: { path: path.join(dir, 'graph.db') } });
    configure(theirs);
    renameSync(at('knowledge.db'), path.join(theirs, 'graph.db'));
    expect(asRoot('diag', 'backup', '--output', backups).status).toBe(0);
    configure(secrets);
    const restore = () =>
      asRoot('diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--db-only', '--yes');
    expect(restore()).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(
        /neither it nor its directory belongs to the owner of the project, user 1001.*\[KG_TARGET_INVALID\]/,
      ),
    });
    expect(secret()).toEqual(UNTOUCHED);
    configure(theirs);
    rmSync(path.join(theirs, 'graph.db'));
    expect(restore().status).toBe(0);
    expect(
      withDatabase(path.join(theirs, 'graph.db'), (db) =>
        db.prepare('SELECT count(*) FROM nodes').pluck().get(),
      ),
    ).toBe(5);
    expect(
      readdirSync(path.join(root, '.kg')).filter((name) => name.startsWith('restore-staging')),
    ).toEqual([]);
  },
);

describe.runIf(isRoot)('a link of the owner does not lead root out of the project', () => {
  test('in the place of a directory that backups and restores use', () => {
    const { asRoot, at, secrets, secret, run, backups } = setUp();
    const link = (name) => {
      rmSync(at(name), { recursive: true, force: true });
      symlinkSync(secrets, at(name));
      run(['chown', '-h', `${OWNER}:${OWNER}`, at(name)]);
    };
    link('cache');
    const made = asRoot('diag', 'backup', '--output', backups, '--json');
    expect(made.status).toBe(0);
    expect(resultOf(made.stdout).warnings).toContainEqual(
      expect.objectContaining({
        message: expect.stringContaining('is a link of user 1001, which is not followed'),
      }),
    );
    expect(secret()).toEqual(UNTOUCHED);
    rmSync(at('cache'));
    link('restore-undo');
    expect(
      asRoot('diag', 'restore', '--file', 'latest', '--backup-dir', backups, '--yes'),
    ).toMatchObject({ status: 4, stderr: expect.stringContaining('restore-undo is in the way') });
    expect(secret()).toEqual(UNTOUCHED);
  });

  test('in the place of the whole state of the project, unless it leads to files of the owner', () => {
    const { asRoot, asOwner, at, root, secrets, secret, base, run } = setUp();
    const theirs = path.join(base, 'theirs');
    renameSync(at(''), theirs);
    const link = (to, user) => {
      rmSync(path.join(root, '.kg'), { force: true });
      symlinkSync(to, path.join(root, '.kg'));
      run(['chown', '-h', `${user}:${user}`, path.join(root, '.kg')]);
    };
    link(theirs, OWNER);
    for (const asOther of [asOwner, asRoot])
      expect(asOther('diag', 'backup')).toMatchObject({ status: 0, stderr: '' });
    expect(asRoot('diag', 'restore', '--file', 'latest', '--yes').status).toBe(0);
    link(secrets, OWNER);
    const refused = {
      status: 4,
      stderr: expect.stringMatching(
        /\.kg is a link of user 1001, which is not followed: it leads to .*secrets, which belongs to user 0 \[KG_UNSAFE_FILE\][^]*chown -h 0 /,
      ),
    };
    for (const args of [
      ['backup'],
      ['restore', '--file', 'latest', '--backup-dir', path.join(theirs, 'backups'), '--yes'],
    ])
      expect(asRoot('diag', ...args)).toMatchObject(refused);
    expect(secret()).toEqual(UNTOUCHED);
    link(secrets, 0);
    writeFileSync(path.join(secrets, 'config.json'), '{}');
    expect(asRoot('config', 'set', 'backup.maxBackups', '3').status).toBe(0);
    expect(readFileSync(path.join(secrets, 'config.json'), 'utf8')).toContain('maxBackups');
  });

  test('put in the place of the staging directory during a restore', async () => {
    const { asRoot, root, secrets, secret, run, backups, at } = setUp({ nodes: 50 });
    const many = at('plugins/many');
    mkdirSync(many, { recursive: true });
    for (let number = 0; number < 300; number += 1)
      writeFileSync(path.join(many, `${number}`), `${number}`);
    run(['chown', '-R', `${OWNER}:${OWNER}`, root]);
    expect(asRoot('diag', 'backup', '--output', backups).status).toBe(0);
    // A user who may write to a directory may rename its entries.
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
    const node = spawn(
      'setpriv',
      [`--reuid=${OWNER}`, `--regid=${OWNER}`, '--clear-groups', process.execPath, '-e', swaps],
      { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] },
    );
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

test.runIf(isRoot)('a process of another user that keeps the project locked is named', async () => {
  const { asOwner, root } = setUp();
  const as = [
    '--reuid=1002',
    '--regid=1002',
    '--clear-groups',
    'flock',
    '.kg',
    'sh',
    '-c',
    'echo ready; read end',
  ];
  const holder = spawn('setpriv', as, { cwd: root, stdio: ['pipe', 'pipe', 'inherit'] });
  onTestFinished(() => holder.kill('SIGKILL'));
  await new Promise((resolve) => holder.stdout.once('data', resolve));
  const { status, stderr } = asOwner('diag', 'backup', '--lock-timeout', '1');
  expect([status, stderr]).toEqual([
    4,
    expect.stringMatching(
      new RegExp(
        `\\.kg is in use: a restore into it is running \\(process ${holder.pid} \\(flock\\)\\) \\[KG_TARGET_LOCKED\\]`,
      ),
    ),
  ]);
});

/** Returns every entry below a directory, with owner, mode, time and content. */
function everything(dir) {
  const found = {};
  const visit = (file) => {
    const { mode, uid, gid, size, mtimeMs } = lstatSync(file);
    const isFile = (mode & constants.S_IFMT) === constants.S_IFREG;
    found[path.relative(dir, file)] = [
      mode,
      uid,
      gid,
      size,
      mtimeMs,
      isFile ? createHash('sha256').update(readFileSync(file)).digest('hex') : '',
    ];
    if ((mode & constants.S_IFMT) === constants.S_IFDIR)
      for (const name of readdirSync(file)) visit(path.join(file, name));
  };
  visit(dir);
  return found;
}

/** The commands of root. `ID` is a backup of the project in its default store. */
const COMMANDS = [
  ['backup'],
  ['backup', '--type', 'incremental'],
  ['backup', '--output', 'STORE'],
  ['backup', '--list'],
  ['backup', '--verify', 'latest'],
  ['backup', '--pin', 'ID'],
  ['backup', '--unpin', 'ID'],
  ['backup', '--delete', 'latest'],
  ['backup', '--consolidate', 'latest'],
  ['prune', '--max-backups', '3'],
  ['restore', '--file', 'latest', '--yes'],
  ['restore', '--file', 'latest', '--backup-dir', 'STORE', '--yes'],
  ['restore', '--undo', '--yes'],
  ['drill'],
  ['health'],
  ['integrity'],
  ['repair', '--auto'],
  ['config', 'set', 'backup.maxBackups', '9'],
  ['config', 'unset', 'backup.maxBackups'],
  ['serve', '--status'],
  ['serve', '--stop'],
  ['config', 'show'],
];

/**
 * The entries that the owner replaces with links, in a loop. Each link leads to the same name in
 * the project of root.
 */
const SWAPPED = [
  '.kg',
  '.kg/backups',
  '.kg/cache',
  '.kg/restore-undo',
  '.kg/logs',
  '.kg/plugins',
  '.kg/knowledge.db',
  '.kg/config.json',
  '.kg/backups/kg-backup-',
];
/** Only some runs create these names, so a swap may never find one. */
const PASSING = [
  '.kg/restore-staging-',
  '.kg/.kg-partial-',
  '.kg/cache/.kg-partial-',
  '.kg/backups/.kg-partial-',
  '.kg/backups/.kg-snapshot-',
];

test.runIf(isRoot)(
  'root changes nothing in the project by a path that the owner could redirect',
  () => {
    const { asRoot, root, run, at, executable, base } = setUp({ nodes: 300 });
    const store = path.join(base, 'store');
    const { id } = resultOf(asRoot('diag', 'backup', '--json').stdout);
    expect(asRoot('diag', 'backup', '--output', store).status).toBe(0);
    const log = path.join(base, 'strace');
    const calls =
      'openat,open,creat,chmod,chown,lchown,fchmodat,fchownat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,truncate,utimensat';
    /**
     * Returns the system calls of a command that change something in the project by its absolute
     * path.
     */
    const byPath = (args) => {
      const command = args.map((arg) => ({ ID: id, STORE: store })[arg] ?? arg);
      run([
        'strace',
        '-f',
        '-o',
        log,
        '-e',
        `trace=${calls}`,
        executable,
        ...(['config', 'serve'].includes(args[0]) ? [] : ['diag']),
        ...command,
      ]);
      const changes = (line) =>
        !/ open(at)?\(/.test(line) || /O_(WRONLY|RDWR|CREAT|TRUNC)/.test(line);
      return readFileSync(log, 'utf8')
        .split('\n')
        .filter((line) => line.includes(`"${root}/.kg`) && changes(line));
    };
    for (const args of COMMANDS) expect([args, byPath(args)]).toEqual([args, []]);
    const damaged = readFileSync(at('knowledge.db')).fill(7, 5 * 4096, 9 * 4096);
    writeFileSync(at('knowledge.db'), damaged);
    expect(byPath(['repair', '--auto'])).toEqual([]);
    expect(asRoot('diag', 'integrity').status).toBe(0);
  },
);

test.runIf(isRoot)(
  'files that root keeps in its own directory stay with root, even below a `.kg` of another user',
  () => {
    const { asRoot, base, run, executable } = setUp();
    const shared = path.join(base, 'shared');
    run([
      'sh',
      '-c',
      `mkdir -m 1777 '${shared}' && mkdir '${shared}/store' '${shared}/.kg' && chown ${OWNER}:${OWNER} '${shared}/.kg'`,
    ]);
    const store = path.join(shared, 'store');
    expect(asRoot('diag', 'backup', '--output', store).status).toBe(0);
    expect(notOwnedBy(store, 0)).toEqual([]);
    // A store of root can also lie in a directory of another user.
    const { root: mine } = makeProject({ nodes: 3 });
    const theirs = path.join(base, 'theirs');
    run(['sh', '-c', `mkdir -p '${theirs}/.kg' && chown -R ${OWNER}:${OWNER} '${theirs}'`]);
    expect(
      spawnSync(executable, ['diag', 'backup', '--output', theirs], {
        cwd: mine,
        encoding: 'utf8',
      }),
    ).toMatchObject({ status: 0 });
    expect(
      notOwnedBy(theirs, 0).filter((name) => !/^(\.|\.kg|\.kg-store\.lock) /.test(name)),
    ).toEqual([]);
  },
);

/** Leftovers of killed runs and expired files, which the next run removes. */
const LEFTOVERS = [
  'restore-undo/20200101-000000',
  'restore-staging-left',
  'backups/.kg-snapshot-left',
];

describe.runIf(isRoot)(
  'while the owner swaps directories and files of the project for links to a project of root',
  () => {
    test.each([...SWAPPED, ...PASSING])(
      '(%s) no command of root changes that project',
      async (swapped) => {
        const { asRoot, root, run, base, secrets, executable } = setUp({ nodes: 30 });
        const mine = path.join(secrets, 'project');
        for (const [name, content] of [
          ['plugins/data', 'data'],
          ['logs/backup-service.log', 'log\n'],
        ]) {
          mkdirSync(path.join(root, '.kg', path.dirname(name)), { recursive: true });
          writeFileSync(path.join(root, '.kg', name), content);
        }
        // The project of root has every kind of file that a project can have.
        cpSync(root, mine, { recursive: true });
        const asRootThere = (...args) =>
          expect(spawnSync(executable, args, { cwd: mine, encoding: 'utf8' })).toMatchObject({
            status: 0,
          });
        for (const args of [['backup'], ['restore', '--file', 'latest', '--yes'], ['backup']])
          asRootThere('diag', ...args);
        for (const name of LEFTOVERS) mkdirSync(path.join(mine, '.kg', name), { recursive: true });
        run(['chown', '-R', '0:0', mine]);
        for (const args of [['backup'], ['restore', '--file', 'latest', '--yes'], ['backup']])
          expect(asRoot('diag', ...args).status).toBe(0);
        run(['chown', '-R', `${OWNER}:${OWNER}`, root]);
        const store = path.join(base, 'store');
        expect(asRoot('diag', 'backup', '--output', store).status).toBe(0);
        const { id } = resultOf(asRoot('diag', 'backup', '--json').stdout);
        const before = everything(mine);

        const swaps = `
      const fs = require('node:fs');
      const path = require('node:path');
      const [swapped, mine, ...leftovers] = process.argv.slice(1);
      const [dir, start] = [path.dirname(swapped), path.basename(swapped)];
      let done = 0;
      let back = () => {};
      process.on('SIGTERM', () => { back(); fs.writeFileSync('swapped', String(done)); process.exit(); });
      const swap = () => {
        back();
        back = () => {};
        // The leftovers here have the names of directories in the project of root.
        for (const name of leftovers) try { fs.mkdirSync('.kg/' + name, { recursive: true }); } catch {}
        let names = [];
        try { names = fs.readdirSync(dir).filter((name) => name === start || (/-$/.test(start) && name.startsWith(start))); } catch {}
        for (const name of names.slice(0, 1)) {
          const [at, away] = [path.join(dir, name), path.join(dir, 'away')];
          // The other project has no temporary file of this name, so link to its directory.
          const to = fs.existsSync(path.join(mine, at)) ? path.join(mine, at) : path.join(mine, dir);
          try {
            fs.renameSync(at, away);
            fs.symlinkSync(to, at);
            done += 1;
            back = () => { try { fs.unlinkSync(at); } catch {} try { fs.renameSync(away, at); } catch {} };
          } catch { try { fs.renameSync(away, at); } catch {} }
        }
        // The random pause lets a swap meet a command at any point.
        setTimeout(swap, Math.random() * 12);
      };
      console.log('ready');
      swap();`;
        const as = [
          `--reuid=${OWNER}`,
          `--regid=${OWNER}`,
          '--clear-groups',
          process.execPath,
          '-e',
          swaps,
          swapped,
          mine,
          ...LEFTOVERS,
        ];
        // The owner cannot list the directory of root but knows the names in it.
        run(['chmod', '711', secrets]);
        const node = spawn('setpriv', as, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
        onTestFinished(() => node.kill('SIGKILL'));
        await new Promise((resolve) => node.stdout.once('data', resolve));
        for (let turn = 0; turn < TURNS; turn += 1) {
          for (const args of COMMANDS) {
            const command = args.map((arg) => ({ ID: id, STORE: store })[arg] ?? arg);
            const all = ['config', 'serve'].includes(command[0]) ? command : ['diag', ...command];
            const { stderr } = asRoot(...all);
            expect([args, stderr]).toEqual([args, expect.not.stringContaining('panicked')]);
            expect([args, everything(mine)]).toEqual([args, before]);
          }
        }
        const ended = new Promise((resolve) => node.once('exit', resolve));
        node.kill('SIGTERM');
        await ended;
        if (SWAPPED.includes(swapped))
          expect(Number(readFileSync(path.join(root, 'swapped'), 'utf8'))).toBeGreaterThan(0);
      },
    );
  },
);
