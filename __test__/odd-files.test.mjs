// Directories, links and names are restored unchanged. A file that changes or cannot be read is a
// warning, or an error with `strict`.

import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, run } from './support/processes.mjs';
import { contents, makeProject, temporaryDirectory } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

function setUp(config) {
  const project = makeProject();
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    ...config,
  });
  return { ...project, manager, at: (...parts) => path.join(project.root, '.kg', ...parts) };
}

async function restored(manager, backup) {
  const target = path.join(temporaryDirectory(), 'target');
  const result = await manager.restore({ backupPath: backup.path, targetDir: target });
  return { target, result, at: (...parts) => path.join(target, '.kg', ...parts) };
}

test('empty directories, modes, times and links inside the project are restored', async () => {
  const { manager, root, at } = setUp();
  mkdirSync(at('plugins/cache-of-mine/deep'), { recursive: true });
  mkdirSync(at('empty'), { mode: 0o700 });
  mkdirSync(at('read-only'));
  writeFileSync(at('read-only/file'), 'x', { mode: 0o400 });
  symlinkSync('glossary/terms.json', at('plugins/terms'));
  symlinkSync('../docs', at('docs'));
  symlinkSync('missing', at(`dangling-${'x'.repeat(90)}`));
  symlinkSync(`${'y/'.repeat(80)}z`, at('far'));
  for (const dir of ['empty', 'plugins/cache-of-mine'])
    run('touch', ['-d', '2001-02-03 04:05:06.5', at(dir)]);
  run('touch', ['-h', '-d', '2002-03-04 05:06:07', at('docs')]);
  chmodSync(at('read-only'), 0o555);
  onTestFinished(() => chmodSync(at('read-only'), 0o755));

  const backup = await manager.createBackup();
  expect(backup.warnings).toEqual([]);
  expect(backup.stats.totalFiles).toBe(5);
  const { target, at: back, result } = await restored(manager, backup);
  onTestFinished(() => chmodSync(back('read-only'), 0o755));
  expect(contents(target)).toEqual(contents(root));
  expect(result.filesRestored).toBe(9);
  const attributes = (place) =>
    ['empty', 'read-only', 'read-only/file', 'plugins/cache-of-mine', 'docs', 'vectors'].map(
      (name) => {
        const { mode, mtimeMs } = lstatSync(place(name));
        return [name, mode, mtimeMs];
      },
    );
  expect(attributes(back)).toEqual(attributes(at));
  expect(await manager.verifyBackup(backup.path)).toBe(true);
});

test('tar restores a backup with its directories and links', async () => {
  const { manager, at } = setUp();
  mkdirSync(at('plugins/empty'));
  symlinkSync('glossary/terms.json', at('plugins/terms'));
  const { path: archive } = await manager.createBackup();
  const out = temporaryDirectory();
  run('tar', ['-xzf', archive, '-C', out]);
  run('sha256sum', ['--quiet', '-c', 'checksums.sha256'], { cwd: out });
  expect(statSync(path.join(out, 'plugins/empty')).isDirectory()).toBe(true);
  expect(readFileSync(path.join(out, 'plugins/terms'), 'utf8')).toContain('graph');
});

test('names with any bytes are restored, and lists show them as text', async () => {
  const { manager, root, at } = setUp();
  const odd = [
    Buffer.from('caf\xe9', 'latin1'),
    Buffer.from([0xff, 0xfe, 0x25]),
    Buffer.from('50%'),
    Buffer.from('a\\b\nc "d"'),
    Buffer.from('ü'),
  ];
  const write = (name) => writeFileSync(Buffer.concat([Buffer.from(`${at()}/`), name]), name);
  odd.forEach(write);
  const inside = Buffer.concat([Buffer.from(`${at('plugins')}/`), odd[0]]);
  mkdirSync(inside);
  writeFileSync(Buffer.concat([inside, Buffer.from('/deep')]), 'x');
  symlinkSync(odd[0], at('link'));
  const backup = await manager.createBackup();
  expect(backup.warnings).toEqual([]);
  const { target } = await restored(manager, backup);
  const list = (dir) =>
    run(
      'sh',
      [
        '-c',
        'find . -not -path "./.kg/cache*" -not -name "*-wal" -not -name "*-shm" -print0 | LC_ALL=C sort -z | od -c',
      ],
      { cwd: dir },
    );
  expect(list(target)).toBe(list(root));
  expect(readlinkSync(path.join(target, '.kg/link'), 'buffer')).toEqual(odd[0]);
  const { files } = await manager.checkBackup(backup.path, { listFiles: true });
  expect(files.map((file) => file.path)).toEqual(
    expect.arrayContaining(['.kg/caf%E9', '.kg/50%25', '.kg/ü']),
  );
  const { filesRestored } = await manager.restore({
    backupPath: backup.path,
    targetDir: path.join(temporaryDirectory(), 't'),
    paths: ['50%'],
  });
  expect(filesRestored).toBe(1);
});

describe('an entry that is not saved is a warning, and an error with strict', () => {
  const oddities = {
    'a link that leads out of the project': {
      make: (at) => symlinkSync('../../elsewhere', at('out')),
      code: 'KG_WARN_LINK_OUTSIDE',
      path: '.kg/out',
    },
    'an absolute link': {
      make: (at) => symlinkSync(at('config.json'), at('absolute')),
      code: 'KG_WARN_LINK_OUTSIDE',
      path: '.kg/absolute',
    },
    'a name that climbs on Windows': {
      make: (at) => writeFileSync(at('..\\x'), ''),
      code: 'KG_WARN_FILE_UNREADABLE',
      path: '.kg/..\\x',
    },
    'a damaged database': {
      make: (at) => writeFileSync(at('plugins/broken.db'), `SQLite format 3\0${'x'.repeat(5000)}`),
      code: 'KG_WARN_SOURCE_DAMAGED',
      path: '.kg/plugins/broken.db',
    },
  };
  for (const [what, { make, code, path: about }] of Object.entries(oddities)) {
    test(what, async () => {
      const { root, backups, manager, at } = setUp();
      make(at);
      const { warnings } = await manager.createBackup();
      expect(warnings.map((warning) => [warning.code, warning.path])).toEqual([[code, about]]);
      const before = await manager.listBackups();
      await expect(manager.createBackup({ strict: true })).rejects.toMatchObject({
        code: 'KG_INCOMPLETE',
        message: expect.stringContaining(about),
      });
      const refused = await kg(['diag', 'backup', '--strict', '--output', backups], { cwd: root });
      expect([refused.status, refused.stderr]).toEqual([
        4,
        expect.stringContaining('KG_INCOMPLETE'),
      ]);
      expect(await manager.listBackups()).toEqual(before);
      expect(run('ls', ['-A', backups])).not.toContain('.kg-partial');
    });
  }

  test('a socket or pipe has no content to save', async () => {
    const { manager, at } = setUp({ strict: true });
    run('mkfifo', [at('pipe')]);
    const { warnings } = await manager.createBackup();
    expect(warnings).toMatchObject([{ code: 'KG_WARN_NOT_A_FILE', path: '.kg/pipe' }]);
  });

  // Root can read every file.
  test.runIf(process.getuid() === 0)('an unreadable file and directory', async () => {
    const { root, backups, at } = setUp();
    writeFileSync(at('secret'), 'x');
    mkdirSync(at('closed'), { mode: 0o000 });
    chmodSync(at('secret'), 0o000);
    run('chown', ['-R', 'nobody', path.dirname(root)]);
    run('chmod', ['755', path.dirname(root)]);
    run('chown', ['root', at('secret'), at('closed')]);
    const asNobody = (...args) =>
      kg(['diag', 'backup', '--json', '--output', backups, ...args], {
        cwd: root,
        uid: 65534,
        gid: 65534,
      });
    const { stdout } = await asNobody();
    expect(
      resultOf(stdout)
        .warnings.map(({ code, path: about }) => [code, about])
        .sort(),
    ).toEqual([
      ['KG_WARN_FILE_UNREADABLE', '.kg/closed'],
      ['KG_WARN_FILE_UNREADABLE', '.kg/secret'],
    ]);
    expect((await asNobody('--strict')).status).toBe(4);
  });

  test.runIf(process.getuid() === 0)(
    'a file that an incremental backup cannot read keeps its base content',
    async () => {
      const { root, backups, at } = setUp();
      writeFileSync(at('secret'), 'then');
      run('chown', ['-R', 'nobody', path.dirname(root)]);
      run('chmod', ['755', path.dirname(root)]);
      const asNobody = async (...args) =>
        resultOf(
          (
            await kg(['diag', 'backup', '--json', '--output', backups, ...args], {
              cwd: root,
              uid: 65534,
              gid: 65534,
            })
          ).stdout,
        );
      await asNobody();
      writeFileSync(at('secret'), 'now');
      chmodSync(at('secret'), 0o000);
      run('chown', ['root', at('secret')]);
      const { id, type, warnings } = await asNobody('--type', 'incremental');
      expect([type, warnings]).toEqual([
        'incremental',
        [
          {
            code: 'KG_WARN_FILE_UNREADABLE',
            path: '.kg/secret',
            message: expect.stringContaining('kept as it is in the base'),
          },
        ],
      ]);
      const target = path.join(temporaryDirectory(), 'target');
      expect(
        (
          await kg(['diag', 'restore', '--file', id, '--backup-dir', backups, '--target', target], {
            cwd: root,
          })
        ).status,
      ).toBe(0);
      expect(readFileSync(path.join(target, '.kg/secret'), 'utf8')).toBe('then');
    },
  );
});

describe('paths', () => {
  test('restores matching files and changes no others', async () => {
    const { manager, root, at } = setUp();
    mkdirSync(at('plugins/other'));
    writeFileSync(at('plugins/other/state'), 'then');
    writeFileSync(at('plugins/glossary/more'), 'then');
    const backup = await manager.createBackup();
    for (const file of ['plugins/other/state', 'plugins/glossary/more', 'config.json'])
      writeFileSync(at(file), 'now');
    const result = await manager.restore({
      backupId: backup.id,
      overwrite: true,
      paths: ['plugins/glossary/**'],
    });
    expect(result).toMatchObject({ filesRestored: 2, filesReplaced: 2 });
    const read = (file) => readFileSync(at(file), 'utf8');
    expect([
      read('plugins/glossary/more'),
      read('plugins/other/state'),
      read('config.json'),
    ]).toEqual(['then', 'now', 'now']);

    // The archive has no sidecar here, and `--path` is combined with a part.
    rmSync(`${backup.path}.manifest.json`);
    const done = await kg(
      ['diag', 'restore', '--file', backup.path, '--path', '**/*.json', '--config-only', '--json'],
      { cwd: root },
    );
    expect(resultOf(done.stdout).filesRestored).toBe(1);
    expect(read('config.json')).toContain('dark');
  });

  test('a database takes its WAL along, and a pattern without a match is an error', async () => {
    const { manager, at } = setUp();
    writeFileSync(at('plugins/broken.db'), `SQLite format 3\0${'x'.repeat(5000)}`);
    writeFileSync(at('plugins/broken.db-wal'), 'its WAL');
    await manager.createBackup();
    const target = path.join(temporaryDirectory(), 'target');
    expect(
      (
        await manager.restore({
          backupId: 'latest',
          targetDir: target,
          paths: ['plugins/broken.db'],
        })
      ).filesRestored,
    ).toBe(2);
    for (const paths of [['plugins/nothing'], [''], ['a['], []]) {
      const refused = manager.restore({
        backupId: 'latest',
        targetDir: path.join(temporaryDirectory(), 't'),
        paths,
      });
      await expect(refused, String(paths)).rejects.toMatchObject({ code: 'KG_INVALID_OPTION' });
    }
  });
});

test('restored files have the saved mode, whatever the umask is', async () => {
  const { manager, at } = setUp();
  writeFileSync(at('open'), 'x');
  chmodSync(at('open'), 0o666);
  const backup = await manager.createBackup();
  const target = path.join(temporaryDirectory(), 'target');
  run('sh', [
    '-c',
    'umask 077; exec "$0" diag restore --file "$1" --target "$2" --quiet',
    kgPath,
    backup.path,
    target,
  ]);
  expect(statSync(path.join(target, '.kg/open')).mode & 0o777).toBe(0o666);
});

// Only root can give files away.
test.runIf(process.getuid() === 0)(
  'a backup by root in a project belongs to its owner, who can continue with it',
  async () => {
    const { root } = makeProject();
    run('chown', ['-R', '65534:65534', path.dirname(root)]);
    expect((await kg(['diag', 'backup'], { cwd: root })).status).toBe(0);
    const owned = readdirSync(path.join(root, '.kg/backups')).map(
      (name) => lstatSync(path.join(root, '.kg/backups', name)).uid,
    );
    expect(new Set(owned)).toEqual(new Set([65534]));
    const next = await kg(['diag', 'backup', '--max-backups', '1', '--json'], {
      cwd: root,
      uid: 65534,
      gid: 65534,
    });
    expect(resultOf(next.stdout)).toMatchObject({
      warnings: [],
      retention: { decisions: [{ kept: true }, { kept: false }] },
    });
  },
);

test.runIf(process.getuid() === 0)(
  'a file restored by root belongs to the owner of the file it replaces, or of the project',
  async () => {
    const { manager, at } = setUp();
    await manager.createBackup();
    run('chown', ['-R', '1234:1234', at()]);
    run('chown', ['4321:4321', at('config.json')]);
    rmSync(at('plugins'), { recursive: true });
    await manager.restore({ backupId: 'latest', overwrite: true });
    const owner = (file) => statSync(at(file)).uid;
    const back = [
      'config.json',
      'knowledge.db',
      'plugins',
      'plugins/glossary/terms.json',
      'restore-undo',
    ];
    expect(back.map(owner)).toEqual([4321, 1234, 1234, 1234, 1234]);
  },
);
