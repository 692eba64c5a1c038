// The promises of createBackupManager and its methods in index.d.ts.

import {
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

import * as esm from '@weavelogic/knowledge-graph-agent';
import { createBackupManager, KgError } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test, vi } from 'vitest';

import { repository, run } from './support/processes.mjs';
import { fillDatabase, makeProject, temporaryDirectory } from './support/project.mjs';

function setUp(config = {}, project = makeProject()) {
  return {
    ...project,
    manager: createBackupManager({
      projectRoot: project.root,
      backupDir: project.backups,
      ...config,
    }),
  };
}

test('import and require provide every export by name', () => {
  const cjs = createRequire(import.meta.url)('@weavelogic/knowledge-graph-agent');
  const names = [
    'BackupManager',
    'BackupScheduler',
    'GuardError',
    'IntegrityChecker',
    'KgError',
    'backupFreshnessCheck',
    'createBackupManager',
    'createIntegrityChecker',
  ];
  expect(Object.keys(cjs).sort()).toEqual(names);
  for (const name of names) expect(esm).toHaveProperty(name);
  const inNode = `import * as esm from '@weavelogic/knowledge-graph-agent';
    import { createRequire } from 'node:module';
    const cjs = createRequire(import.meta.url)('@weavelogic/knowledge-graph-agent');
    console.log(Object.keys(cjs).filter((name) => esm[name] === cjs[name]).sort().join());`;
  const same = run(process.execPath, ['--input-type=module', '-e', inNode], { cwd: repository });
  expect(same).toBe(`${names.join()}\n`);
});

test('an error of the ES modules is a KgError of the CommonJS build, and the other way round', async () => {
  const cjs = createRequire(import.meta.url)('@weavelogic/knowledge-graph-agent');
  const modules = await import('../index.mjs');
  const thrown = (create) => {
    try {
      return create({ compressionLevel: 12 });
    } catch (error) {
      return error;
    }
  };
  for (const { createBackupManager: create } of [modules, cjs]) {
    expect(thrown(create)).toBeInstanceOf(modules.KgError);
    expect(thrown(create)).toBeInstanceOf(cjs.KgError);
  }
  class Special extends modules.KgError {}
  expect(thrown(cjs.createBackupManager)).not.toBeInstanceOf(Special);
  expect(new Special({ code: 'X', message: 'x', remedy: 'x' })).toBeInstanceOf(cjs.KgError);
  for (const other of [new Error('x'), {}, null, undefined])
    expect(other).not.toBeInstanceOf(modules.KgError);
});

/** The form in which a new backup is listed later. */
const listed = ({ reusedBytes, ...backup }) => backup;

describe('createBackup', () => {
  test('resolves to the backup, which is then listed, found and the latest', async () => {
    const { manager, root, backups } = setUp();
    const before = Date.now();
    const backup = await manager.createBackup({ description: 'first' });
    expect(backup).toMatchObject({
      id: expect.stringMatching(/^backup-\d{8}-\d{6}$/),
      type: 'full',
      path: expect.stringMatching(new RegExp(`^${backups}/kg-backup-\\d{8}-\\d{6}\\.tar\\.gz$`)),
      size: statSync(backup.path).size,
      checksum: expect.stringMatching(/^sha256:[0-9a-f]{64}$/),
      description: 'first',
      contents: { database: true, config: true, vectors: true, plugins: true },
      stats: { totalFiles: 4, compressedSize: backup.size, nodeCount: 200, edgeCount: 199 },
      integrity: { status: 'ok', messages: [], fullText: true },
      warnings: [],
    });
    expect(backup.timestamp).toBeGreaterThanOrEqual(before);
    expect(backup.timestamp).toBeLessThanOrEqual(Date.now());
    const second = await manager.createBackup();
    expect(await manager.listBackups()).toEqual([second, backup].map(listed));
    expect(await manager.getBackup(backup.id)).toEqual(listed(backup));
    expect(await manager.getLatestBackup()).toEqual(listed(second));
    expect(readdirSync(root)).toEqual(['.kg']);
  });

  test('gives backups of the same second different ids', async () => {
    const { manager } = setUp();
    const made = await Promise.all(
      Array.from({ length: 5 }, () => manager.createBackup({ type: 'snapshot' })),
    );
    expect(new Set(made.map((backup) => backup.id)).size).toBe(5);
    expect((await manager.listBackups()).map((backup) => backup.id).sort()).toEqual(
      made.map((backup) => backup.id).sort(),
    );
  });

  test('saves only the database as a snapshot', async () => {
    const { manager } = setUp();
    const backup = await manager.createBackup({ type: 'snapshot' });
    expect(backup.type).toBe('snapshot');
    expect(backup.contents).toEqual({
      database: true,
      config: false,
      vectors: false,
      plugins: false,
    });
    expect(run('tar', ['-tzf', backup.path])).toBe(
      'database.sqlite\nfiles.jsonl\nmanifest.json\nchecksums.sha256\n',
    );
  });

  test('omits vectors, plugins and patterns, by configuration or by call', async () => {
    const { manager } = setUp({ includeVectors: false, excludePatterns: ['config.json'] });
    const configured = await manager.createBackup();
    expect(configured.contents).toEqual({
      database: true,
      config: false,
      vectors: false,
      plugins: true,
    });
    const called = await manager.createBackup({
      includeVectors: true,
      includePluginData: false,
      excludePatterns: [],
    });
    expect(called.contents).toEqual({
      database: true,
      config: true,
      vectors: true,
      plugins: false,
    });
  });

  test('reports a project without vectors or plugins', async () => {
    const project = makeProject();
    for (const name of ['vectors', 'plugins', 'config.json'])
      rmSync(path.join(project.root, '.kg', name), { recursive: true });
    const { manager } = setUp({}, project);
    expect((await manager.createBackup()).contents).toEqual({
      database: true,
      config: false,
      vectors: false,
      plugins: false,
    });
  });

  test('compresses more at a higher level, and not at all without compression', async () => {
    const { manager } = setUp({}, makeProject({ nodes: 3000 }));
    const size = async (options) => (await manager.createBackup(options)).size;
    const [fast, usual, small, plain] = [
      await size({ compressionLevel: 1 }),
      await size({}),
      await size({ compressionLevel: 9 }),
      await size({ compression: false }),
    ];
    expect(fast).toBeGreaterThan(usual);
    expect(usual).toBeGreaterThan(small);
    expect(plain).toBeGreaterThan(fast);
  });

  test('saves other SQLite files as snapshots too, and the database at its configured path', async () => {
    const project = makeProject();
    mkdirSync(path.join(project.root, 'data'));
    for (const suffix of ['', '-wal', '-shm']) {
      const from = project.database + suffix;
      if (existsSync(from)) renameSync(from, path.join(project.root, `data/graph.db${suffix}`));
    }
    writeFileSync(
      path.join(project.root, '.kg/config.json'),
      '{"database":{"path":"data/graph.db"}}',
    );
    fillDatabase(path.join(project.root, '.kg/plugins/own.db'), {
      nodes: 7,
      journalMode: 'delete',
    });
    const { manager, root } = setUp({}, project);
    const { id } = await manager.createBackup();
    const { files } = await manager.checkBackup(id, { listFiles: true });
    const places = files.map(({ entry, path: place, database }) => [
      entry,
      place,
      database ?? false,
    ]);
    expect(places).toContainEqual(['database.sqlite', 'data/graph.db', true]);
    expect(places).toContainEqual(['plugins/own.db', '.kg/plugins/own.db', true]);
    rmSync(root, { recursive: true });
    await manager.restore({ backupId: 'latest' });
    expect(run('sqlite3', [`${root}/data/graph.db`, 'SELECT count(*) FROM nodes'])).toBe('200\n');
    expect(run('sqlite3', [`${root}/.kg/plugins/own.db`, 'SELECT count(*) FROM nodes'])).toBe(
      '7\n',
    );
  });

  test('keeps the default backup directory out of the backup', async () => {
    const { root } = makeProject();
    const manager = createBackupManager({ projectRoot: root });
    expect(manager.backupDir).toBe(path.join(root, '.kg/backups'));
    await manager.createBackup();
    const backup = await manager.createBackup();
    expect(run('tar', ['-tzf', backup.path])).not.toContain('backups');
  });

  test('can skip the check of the source', async () => {
    const { manager } = setUp({ checkSource: false });
    expect((await manager.createBackup()).integrity).toEqual({
      status: 'skipped',
      messages: [],
      fullText: false,
    });
  });
});

describe('the other calls', () => {
  test('find no latest backup and an empty list if the directory does not exist', async () => {
    const { manager } = setUp();
    expect(await manager.listBackups()).toEqual([]);
    await expect(manager.getLatestBackup()).rejects.toMatchObject({ code: 'KG_NO_BACKUPS' });
  });

  test('deleteBackup removes archive and sidecar and updates the link', async () => {
    const { manager, backups } = setUp();
    const first = await manager.createBackup();
    const second = await manager.createBackup();
    await manager.deleteBackup(second.id);
    expect(await manager.listBackups()).toEqual([listed(first)]);
    await manager.deleteBackup(first.id);
    expect(readdirSync(backups)).toEqual(['.kg-store.lock']);
    await expect(manager.deleteBackup(first.id)).rejects.toMatchObject({
      code: 'KG_BACKUP_NOT_FOUND',
    });
  });

  test('verifyBackup accepts a path, an id, a file URL and latest', async () => {
    const { manager } = setUp();
    const { id, path: file } = await manager.createBackup();
    for (const reference of [file, id, pathToFileURL(file), 'latest', path.basename(file)]) {
      expect(await manager.verifyBackup(reference)).toBe(true);
    }
    await expect(manager.verifyBackup('/no/such/file.tar.gz')).rejects.toMatchObject({
      code: 'KG_BACKUP_NOT_FOUND',
    });
  });

  test('an archive that was copied alone into the directory is listed after the next backup', async () => {
    const { manager, backups } = setUp();
    const { id, path: file } = await manager.createBackup();
    rmSync(`${file}.manifest.json`);
    expect(await manager.listBackups()).toEqual([]);
    writeFileSync(path.join(backups, 'kg-backup-20200101-000000.tar.gz'), 'not whole');
    const next = await manager.createBackup();
    expect((await manager.listBackups()).map((backup) => backup.id)).toEqual([next.id, id]);
    expect(next.warnings).toMatchObject([
      { code: 'KG_WARN_STORE', message: expect.stringContaining('kg-backup-20200101-000000') },
    ]);
    expect(await manager.verifyBackup(id)).toBe(true);
  });
});

describe('callbacks', () => {
  test('onProgress receives phases and bytes, at most ten times a second', async () => {
    const { manager } = setUp({}, makeProject({ nodes: 30_000 }));
    const events = [];
    const onProgress = (progress) => events.push({ ...progress, at: performance.now() });
    const { path: file } = await manager.createBackup({ onProgress });
    await manager.verifyBackup(file, { onProgress });
    await manager.restore({ backupPath: file, targetDir: temporaryDirectory(), onProgress });
    const phases = events
      .map((progress) => progress.phase)
      .filter((phase, n, all) => phase !== all[n - 1]);
    expect(phases).toEqual(['saving', 'verifying', 'unpacking', 'applying']);
    for (const [n, { at, bytesDone, bytesTotal }] of events.entries()) {
      expect(bytesDone).toBeLessThanOrEqual(bytesTotal);
      const window = events
        .slice(n)
        .filter((later) => later.at - at < 900 && later.phase === events[n].phase);
      expect(window.length).toBeLessThanOrEqual(10);
    }
    expect(events.filter((progress) => progress.phase === 'saving').at(-1)).toMatchObject({
      bytesDone: events.at(0).bytesTotal,
    });
  });

  test('onSuccess and onFailure are each called once, for their own result', async () => {
    const onSuccess = vi.fn();
    const onFailure = vi.fn();
    const { manager, root } = setUp({ onSuccess, onFailure });
    const backup = await manager.createBackup();
    expect(onSuccess.mock.calls).toEqual([[backup]]);
    expect(onFailure).not.toHaveBeenCalled();
    rmSync(path.join(root, '.kg/knowledge.db'));
    await expect(manager.createBackup()).rejects.toMatchObject({ code: 'KG_NO_DATABASE' });
    expect(onFailure.mock.calls).toMatchObject([[{ code: 'KG_NO_DATABASE' }]]);
    expect(onSuccess).toHaveBeenCalledTimes(1);
  });

  test('an exception in one becomes a process warning and does not affect the backup', async () => {
    const warned = [];
    const listen = (warning) => warned.push(warning);
    process.on('warning', listen);
    onTestFinished(() => process.off('warning', listen));
    const throws = () => {
      throw new Error('on purpose');
    };
    const { manager } = setUp({ onSuccess: async () => throws(), onFailure: throws });
    const backup = await manager.createBackup({ onProgress: throws });
    expect(await manager.verifyBackup(backup.id)).toBe(true);
    await expect(manager.createBackup({ basedOn: 'backup-1' })).rejects.toMatchObject({
      code: 'KG_INVALID_OPTION',
    });
    await vi.waitFor(() =>
      expect(new Set(warned.map((warning) => warning.message.split(' ')[0])).size).toBe(3),
    );
    expect(warned.every((warning) => warning.code === 'KG_CALLBACK_THREW')).toBe(true);
  });
});

describe('signal', () => {
  const calls = {
    createBackup: (manager, signal, onProgress) => manager.createBackup({ signal, onProgress }),
    verifyBackup: (manager, signal, onProgress) =>
      manager.verifyBackup('latest', { signal, onProgress }),
    checkBackup: (manager, signal, onProgress) =>
      manager.checkBackup('latest', { signal, onProgress }),
    restore: (manager, signal, onProgress) =>
      manager.restore({
        backupId: 'latest',
        targetDir: path.join(manager.projectRoot, '../new'),
        signal,
        onProgress,
      }),
  };
  for (const [name, start] of Object.entries(calls)) {
    test(`ends ${name} with an AbortError and leaves none of its files`, async () => {
      const { manager, backups, root } = setUp({}, makeProject({ nodes: 30_000 }));
      const { id } = await manager.createBackup();
      const before = readdirSync(backups);
      const already = AbortSignal.abort('early');
      await expect(start(manager, already)).rejects.toMatchObject({
        name: 'AbortError',
        code: 'ABORT_ERR',
        cause: 'early',
      });
      const controller = new AbortController();
      const running = start(manager, controller.signal, () => controller.abort('later'));
      await expect(running).rejects.toMatchObject({
        name: 'AbortError',
        code: 'ABORT_ERR',
        cause: 'later',
      });
      expect(readdirSync(backups)).toEqual(before);
      expect(readdirSync(path.join(root, '..')).sort()).toEqual(['backups', 'project']);
      expect((await manager.listBackups()).map((backup) => backup.id)).toEqual([id]);
    });
  }
});

describe('bad input', () => {
  const refused = {
    'an unknown option of the configuration': { backupdir: 'x' },
    'a level of 12': { compressionLevel: 12 },
    'a level of 2.5': { compressionLevel: 2.5 },
    'a level that is text': { compressionLevel: '6' },
    NaN: { maxBackups: Number.NaN },
    'zero backups': { maxBackups: 0 },
    'half a day': { retentionDays: 0.5 },
    'patterns that are not a list': { excludePatterns: '*.tmp' },
    'a callback that is not a function': { onSuccess: 'x' },
    'an empty directory': { backupDir: '' },
    'a directory that is a number': { backupDir: 7 },
  };
  for (const [what, config] of Object.entries(refused)) {
    test(`${what} is refused when the manager is made`, () => {
      const make = () => createBackupManager({ projectRoot: '/tmp', ...config });
      expect(make).toThrow(KgError);
      expect(make).toThrow(expect.objectContaining({ code: 'KG_INVALID_OPTION' }));
    });
  }

  test('options of calls are refused with a rejection, never an exception', async () => {
    const { manager } = setUp();
    const rejected = [
      ['KG_INVALID_OPTION', () => manager.createBackup({ type: 'partial' })],
      ['KG_INVALID_OPTION', () => manager.createBackup({ typ: 'full' })],
      ['KG_INVALID_OPTION', () => manager.createBackup('full')],
      ['KG_INVALID_OPTION', () => manager.createBackup(null)],
      ['KG_INVALID_OPTION', () => manager.createBackup({ compressionLevel: 0 })],
      ['KG_INVALID_OPTION', () => manager.createBackup({ excludePatterns: ['{a'] })],
      ['KG_INVALID_OPTION', () => manager.createBackup({ basedOn: 'backup-20240115-020000' })],
      ['KG_INVALID_OPTION', () => manager.createBackup({ onProgress: 7 })],
      ['KG_INVALID_OPTION', () => manager.createBackup({ signal: true })],
      ['KG_INVALID_OPTION', () => manager.createBackup({ description: 7n })],
      ['KG_INVALID_OPTION', () => manager.createBackup({ type: 'differential' })],
      ['KG_INVALID_OPTION', () => manager.deleteBackup('backup-20240101-000000', { force: true })],
      ['KG_INVALID_OPTION', () => manager.getBackup()],
      ['KG_BACKUP_NOT_FOUND', () => manager.getBackup('../../etc/passwd')],
      ['KG_INVALID_OPTION', () => manager.deleteBackup('')],
      ['KG_INVALID_OPTION', () => manager.verifyBackup(undefined)],
      ['KG_INVALID_OPTION', () => manager.verifyBackup('latest', { deep: true })],
      ['KG_INVALID_OPTION', () => manager.restore()],
      ['KG_INVALID_OPTION', () => manager.restore({ backupPath: 'a', backupId: 'b' })],
      ['KG_INVALID_OPTION', () => manager.restore({ backupId: 'latest', only: [] })],
      ['KG_INVALID_OPTION', () => manager.restore({ backupId: 'latest', only: ['everything'] })],
      ['KG_NO_BACKUPS', () => manager.restore({ backupId: 'latest' })],
    ];
    for (const [code, call] of rejected) {
      let promise;
      expect(() => (promise = call())).not.toThrow();
      await expect(promise, call.toString()).rejects.toMatchObject({ name: 'KgError', code });
      await promise.catch((error) => expect(error).toBeInstanceOf(KgError));
    }
  });

  test('unusable paths are refused, and no file is made', async () => {
    const { root } = makeProject();
    const file = path.join(temporaryDirectory(), 'file');
    writeFileSync(file, '');
    const create = (config) => async () =>
      createBackupManager({ projectRoot: root, ...config }).createBackup();
    const cases = [
      ['KG_NO_PROJECT', create({ projectRoot: temporaryDirectory() })],
      ['KG_NO_PROJECT', create({ projectRoot: '/no/such/directory' })],
      ['KG_BACKUP_DIR_INVALID', create({ backupDir: file })],
      ['KG_BACKUP_DIR_INVALID', create({ backupDir: path.join(file, 'below') })],
      ['KG_BACKUP_DIR_IN_PROJECT', create({ backupDir: path.join(root, '.kg') })],
      ['KG_BACKUP_DIR_IN_PROJECT', create({ backupDir: path.join(root, '.kg/plugins/new') })],
      ['KG_IO', create({ backupDir: '/proc/new' })],
    ];
    for (const [code, call] of cases) {
      await expect(call(), call.toString()).rejects.toMatchObject({ code });
    }
    expect(readdirSync(path.join(root, '.kg')).sort()).toEqual([
      'config.json',
      'knowledge.db',
      'plugins',
      'vectors',
    ]);
  });

  test('an archive of a newer format is refused with advice', async () => {
    const { manager, backups } = setUp();
    const { path: file } = await manager.createBackup();
    const { newerFormat } = await import('./support/forge.mjs');
    const forged = path.join(backups, '../forged.tar.gz');
    newerFormat(file, forged);
    await expect(manager.verifyBackup(forged)).rejects.toMatchObject({
      code: 'KG_FORMAT_NEWER',
      remedy: expect.stringContaining('Update'),
    });
    await expect(manager.restore({ backupPath: forged, overwrite: true })).rejects.toMatchObject({
      code: 'KG_FORMAT_NEWER',
    });
  });
});
