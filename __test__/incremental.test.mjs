// Incremental backups hold the changes since a base. A restore assembles the project from the
// chain.

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { rewriteManifest, seal } from './support/forge.mjs';
import { kg, repository, run, startWriter } from './support/processes.mjs';
import {
  contents,
  fillDatabase,
  integrityOf,
  makeProject,
  pageCache,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

function setUp(options, config) {
  const project = makeProject({ nodes: 3000, ...options });
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    ...config,
  });
  const incremental = (given) => manager.createBackup({ type: 'incremental', ...given });
  return {
    ...project,
    manager,
    incremental,
    at: (...parts) => path.join(project.root, '.kg', ...parts),
  };
}

async function restored(manager, backup) {
  const target = path.join(temporaryDirectory(), 'target');
  const result = await manager.restore({ backupPath: backup.path, targetDir: target });
  return { target, result, database: path.join(target, '.kg/knowledge.db') };
}

/** Returns what an incremental backup lists: the differences from its base. */
function changesIn(backup) {
  const lines = run('tar', ['-xOf', backup.path, 'files.jsonl']).split('\n').slice(0, -1);
  return lines.map((line) => JSON.parse(line));
}

/** Expects the backup to verify and to restore the current state of the project. */
async function expectState(manager, backup, root) {
  expect((await manager.checkBackup(backup.path)).problems).toEqual([]);
  const { target, database } = await restored(manager, backup);
  expect(contents(target)).toEqual(contents(root));
  if (existsSync(database) && statSync(database).size > 0) expect(integrityOf(database)).toBe('ok');
}

const change = (database, sql) => withDatabase(database, (db) => db.exec(sql));

test('the first backup of a store becomes a full one, with a warning', async () => {
  const { root, manager, incremental } = setUp();
  const first = await incremental();
  expect(first.type).toBe('full');
  expect(first.basedOn).toBeUndefined();
  expect(first.warnings).toMatchObject([{ code: 'KG_WARN_FULL' }]);
  await expectState(manager, first, root);
});

for (const journalMode of ['wal', 'delete']) {
  test(`a chain restores each state that it saved, in ${journalMode} mode`, async () => {
    const { root, manager, incremental, database, at } = setUp({ journalMode });
    const states = [];
    const save = async (backup) => states.push({ backup, is: contents(root) });
    const full = await manager.createBackup();
    await save(full);
    change(database, "UPDATE nodes SET title = 'changed' WHERE id = 'n7'");
    writeFileSync(at('plugins/glossary/terms.json'), '["changed"]');
    await save(await incremental());
    rmSync(at('vectors'), { recursive: true });
    mkdirSync(at('plugins/new'));
    writeFileSync(at('plugins/new/file'), 'x'.repeat(9_000_000));
    await save(await incremental());
    change(
      database,
      "INSERT INTO nodes (id, title) VALUES ('new', 'node'); DELETE FROM edges WHERE id < 50",
    );
    await save(await incremental());
    await save(await incremental());

    expect(states.map(({ backup }) => backup.basedOn)).toEqual([
      undefined,
      ...states.slice(0, -1).map(({ backup }) => backup.id),
    ]);
    for (const { backup, is } of states) {
      const { target, database: back } = await restored(manager, backup);
      expect(contents(target), backup.id).toEqual(is);
      expect(integrityOf(back)).toBe('ok');
      expect(await manager.verifyBackup(backup.path)).toBe(true);
    }
    const sizes = states.map(({ backup }) => backup.size);
    for (const size of sizes.slice(1)) expect(size).toBeLessThan(sizes[0] / 5);
    expect(sizes[4]).toBeLessThan(8 * 1024);
    const deleted = changesIn(states[2].backup).filter(({ stored }) => stored === 'deleted');
    expect(deleted.map((file) => file.path)).toEqual(['.kg/vectors', '.kg/vectors/a.f32']);
  });
}

describe('the database as pages', () => {
  const transformations = {
    'that shrank': (database) => change(database, 'DELETE FROM nodes WHERE rowid > 100; VACUUM'),
    'that was vacuumed': (database) => change(database, 'VACUUM'),
    'of another page size': (database) =>
      change(
        database,
        'PRAGMA journal_mode = delete; PRAGMA page_size = 8192; VACUUM; PRAGMA journal_mode = wal',
      ),
    'that was replaced by another': (database) => {
      for (const suffix of ['', '-wal', '-shm']) rmSync(database + suffix, { force: true });
      fillDatabase(database, { nodes: 77 });
    },
    'that is empty now': (database) => {
      for (const suffix of ['', '-wal', '-shm']) rmSync(database + suffix, { force: true });
      writeFileSync(database, '');
    },
    'in another journal mode': (database) => change(database, 'PRAGMA journal_mode = delete'),
    'that doubled its size': (database) =>
      change(database, "INSERT INTO nodes (id, content) SELECT id || 'x', content FROM nodes"),
  };
  for (const [what, transform] of Object.entries(transformations)) {
    test(`of one ${what} are restored`, async () => {
      const { root, manager, incremental, database } = setUp();
      await manager.createBackup();
      transform(database);
      const second = await incremental();
      await expectState(manager, second, root);
      if (what !== 'that is empty now') change(database, 'CREATE TABLE again (a)');
      await expectState(manager, await incremental(), root);
    });
  }

  test('are of one commit while a process writes', async () => {
    const { manager, incremental, database } = setUp();
    await manager.createBackup();
    const writer = await startWriter(database);
    const made = [];
    for (let n = 0; n < 6; n += 1) made.push(await incremental());
    await writer.stop();
    for (const backup of made) {
      const { database: back } = await restored(manager, backup);
      const [nodes, counter] = withDatabase(back, (db) => [
        db.prepare("SELECT count(*) FROM nodes WHERE id LIKE 'w%'").pluck().get(),
        Number(db.prepare("SELECT value FROM metadata WHERE key = 'written'").pluck().get()),
      ]);
      expect(nodes).toBe(counter);
      expect(integrityOf(back)).toBe('ok');
    }
  });

  test('are not stored for a damaged database, which is saved whole', async () => {
    const { root, manager, incremental, database, at } = setUp();
    await manager.createBackup();
    for (const suffix of ['-wal', '-shm']) rmSync(database + suffix, { force: true });
    writeFileSync(at('plugins/broken.db'), `SQLite format 3\0${'x'.repeat(5000)}`);
    const second = await incremental();
    expect(second.integrity.status).toBe('failed');
    const third = await incremental();
    expect(third.basedOn, 'no damaged source is rested on').not.toBe(second.id);
    for (const backup of [second, third])
      expect((await manager.checkBackup(backup.path)).problems).toEqual([]);
    const target = path.join(temporaryDirectory(), 'target');
    await manager.restore({ backupPath: third.path, targetDir: target });
    expect(readFileSync(path.join(target, '.kg/plugins/broken.db'))).toEqual(
      readFileSync(path.join(root, '.kg/plugins/broken.db')),
    );
  });
});

describe('the check of the source', () => {
  const unsafely = (database, sql) => withDatabase(database, (db) => db.unsafeMode().exec(sql));
  const tearIndex = (database) => unsafely(database, 'DELETE FROM nodes_fts_data WHERE id > 10');
  const found = ({ integrity: { status, fullText } }) => [status, fullText];

  test('postpones the full-text indexes of a sound database to the next full backup', async () => {
    const { manager, incremental, database } = setUp();
    expect(found(await manager.createBackup())).toEqual(['ok', true]);
    tearIndex(database);
    expect(found(await incremental())).toEqual(['ok', false]);
    expect(found(await incremental()), 'of the very same pages').toEqual(['ok', false]);
    expect(found(await manager.createBackup()), 'of the very same pages').toEqual(['failed', true]);
  });

  test('finds damage on any page during an incremental backup', async () => {
    const { manager, incremental, database } = setUp();
    await manager.createBackup();
    unsafely(
      database,
      "PRAGMA writable_schema = on; UPDATE sqlite_schema SET rootpage = 5 WHERE name = 'edges'",
    );
    const second = await incremental();
    expect(second.integrity).toMatchObject({ status: 'failed', fullText: false });
    expect(second.warnings).toMatchObject([{ code: 'KG_WARN_SOURCE_DAMAGED' }]);
  });

  test('reads every page if the base was not checked', async () => {
    const { manager, incremental, database, root, backups } = setUp();
    await createBackupManager({
      projectRoot: root,
      backupDir: backups,
      checkSource: false,
    }).createBackup();
    tearIndex(database);
    expect(found(await incremental())).toEqual(['failed', true]);
    expect(found(await manager.createBackup())).toEqual(['failed', true]);
  });
});

test('a file of the same size and time is compared by its content', async () => {
  const { root, manager, incremental, at } = setUp();
  writeFileSync(at('plugins/state'), 'aaaa');
  run('touch', ['-d', '2020-01-01', at('plugins/state')]);
  await manager.createBackup();
  writeFileSync(at('plugins/state'), 'bbbb');
  run('touch', ['-d', '2020-01-01', at('plugins/state')]);
  const second = await incremental();
  await expectState(manager, second, root);
});

test('a base that was made with other options omits no files from the next backup', async () => {
  const { root, manager, incremental } = setUp();
  for (const options of [
    { type: 'snapshot' },
    { includeVectors: false, includePluginData: false },
    { compression: false },
  ]) {
    await manager.createBackup(options);
    await expectState(manager, await incremental(), root);
  }
  const without = await incremental({ includeVectors: false });
  const { target } = await restored(manager, without);
  expect(existsSync(path.join(target, '.kg/vectors'))).toBe(false);
});

describe('a base', () => {
  test('can be named, and need not be the newest backup', async () => {
    const { root, manager, incremental, database } = setUp();
    const first = await manager.createBackup();
    change(database, 'DELETE FROM edges');
    await manager.createBackup();
    const third = await incremental({ basedOn: first.id });
    expect(third.basedOn).toBe(first.id);
    await expectState(manager, third, root);
    const made = await kg(
      [
        'diag',
        'backup',
        '--type',
        'incremental',
        '--base-backup',
        first.id,
        '--output',
        path.dirname(first.path),
        '--json',
      ],
      { cwd: root },
    );
    expect(resultOf(made.stdout)).toMatchObject({ type: 'incremental', basedOn: first.id });
  });

  test('that does not exist, is of another project, or does not fit the type is an error', async () => {
    const { root, backups, manager, incremental } = setUp();
    await expect(incremental({ basedOn: 'backup-20200101-000000' })).rejects.toMatchObject({
      code: 'KG_BACKUP_NOT_FOUND',
    });
    const other = makeProject();
    const foreign = await createBackupManager({
      projectRoot: other.root,
      backupDir: backups,
    }).createBackup();
    await expect(incremental({ basedOn: foreign.id })).rejects.toMatchObject({
      code: 'KG_BASE_UNUSABLE',
    });
    await expect(manager.createBackup({ basedOn: foreign.id })).rejects.toMatchObject({
      code: 'KG_INVALID_OPTION',
    });
    expect((await manager.listBackups()).map(({ id }) => id)).toEqual([foreign.id]);
    const own = await incremental();
    expect(own.type, 'another project is never rested on').toBe('full');
    await expectState(manager, own, root);
  });

  test('that is damaged is an error, and the attempt leaves no files', async () => {
    const { manager, incremental, backups, database } = setUp();
    const full = await manager.createBackup();
    change(database, 'DELETE FROM edges');
    const whole = readFileSync(full.path);
    const damaged = Buffer.from(whole);
    damaged[Math.floor(whole.length / 2)] ^= 1;
    writeFileSync(full.path, damaged);
    await expect(incremental({ basedOn: full.id })).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
    });
    expect(
      readdirSync(backups).filter(
        (name) => name.startsWith('.kg-partial') || name.startsWith('.kg-snapshot'),
      ),
    ).toEqual([]);
    // The caller does not name a base here, so a full backup is made instead.
    const instead = await incremental();
    expect(instead).toMatchObject({ type: 'full', warnings: [{ code: 'KG_WARN_FULL' }] });
    expect(await manager.verifyBackup(instead.path)).toBe(true);
    await manager.deleteBackup(instead.id);
    writeFileSync(full.path, whole);
    expect((await incremental()).basedOn).toBe(full.id);
  });

  test('whose page hashes are missing, damaged or of another archive is read instead', async () => {
    const { root, manager, incremental, database, at } = setUp();
    const cache = () => path.join(pageCache(root), readdirSync(pageCache(root))[0]);
    const damages = [
      () => rmSync(at('cache'), { recursive: true }),
      () => truncateSync(cache(), 100),
      () => writeFileSync(cache(), 'noise'),
      () => {
        const bytes = readFileSync(cache());
        bytes[bytes.length - 100] ^= 1;
        writeFileSync(cache(), bytes);
      },
      async () => {
        const name = cache();
        const copy = readFileSync(name);
        await incremental();
        writeFileSync(cache(), copy);
      },
    ];
    await manager.createBackup();
    for (const [n, damagePageHashes] of damages.entries()) {
      await damagePageHashes();
      change(database, `UPDATE nodes SET title = 'round ${n}' WHERE rowid % 500 = ${n}`);
      const next = await incremental();
      expect(next.type).toBe('incremental');
      await expectState(manager, next, root);
    }
  });

  test('is found if the project cannot store page hashes', async () => {
    const { root, manager, incremental, at } = setUp();
    writeFileSync(at('cache'), 'a file');
    await manager.createBackup();
    await expectState(manager, await incremental(), root);
  });
});

describe('a chain', () => {
  async function chain() {
    const project = setUp();
    const { manager, incremental, database } = project;
    const backups = [await manager.createBackup()];
    for (let n = 0; n < 3; n += 1) {
      change(database, `UPDATE nodes SET title = 'round ${n}' WHERE id = 'n${n}'`);
      backups.push(await incremental());
    }
    return { ...project, made: backups };
  }

  test('with a missing member names it', async () => {
    const { manager, made, root } = await chain();
    const aside = path.join(temporaryDirectory(), 'aside');
    renameSync(made[1].path, aside);
    const report = await manager.checkBackup(made[3].path);
    expect(report).toMatchObject({
      valid: false,
      problems: [{ code: 'KG_PROBLEM_CHAIN', message: expect.stringContaining(made[1].id) }],
    });
    const before = contents(root);
    await expect(manager.restore({ backupId: made[3].id, overwrite: true })).rejects.toMatchObject({
      code: 'KG_CHAIN_BROKEN',
      message: expect.stringContaining(made[1].id),
    });
    expect(contents(root)).toEqual(before);
    expect(
      (await manager.createBackup({ type: 'incremental' })).basedOn,
      'the newest whole one',
    ).toBe(made[0].id);
    renameSync(aside, made[1].path);
    expect(await manager.verifyBackup(made[3].path)).toBe(true);
  });

  test('with a damaged member reports it', async () => {
    const { manager, made } = await chain();
    const bytes = readFileSync(made[0].path);
    bytes[Math.floor(bytes.length / 2)] ^= 1;
    writeFileSync(made[0].path, bytes);
    const { valid, problems } = await manager.checkBackup(made[3].path);
    expect(valid).toBe(false);
    expect(
      problems.some(
        ({ code, message }) => code === 'KG_PROBLEM_CHAIN' && message.includes(made[0].path),
      ),
    ).toBe(true);
    await expect(
      manager.restore({ backupId: made[2].id, targetDir: path.join(temporaryDirectory(), 't') }),
    ).rejects.toMatchObject({ code: 'KG_CHECKSUM_MISMATCH' });
  });

  test('whose member was replaced by another one is invalid', async () => {
    const { manager, made, incremental, database } = await chain();
    change(database, 'DELETE FROM edges');
    const other = await incremental({ basedOn: made[0].id });
    // A sound archive under the name of another one.
    for (const suffix of ['', '.manifest.json'])
      copyFileSync(other.path + suffix, made[2].path + suffix);
    const { valid } = await manager.checkBackup(made[3].path);
    expect(valid).toBe(false);
    const next = await incremental();
    expect(await manager.verifyBackup(next.path), 'nothing rests on it from now on').toBe(true);
    await expect(
      manager.restore({ backupId: made[3].id, targetDir: path.join(temporaryDirectory(), 't') }),
    ).rejects.toMatchObject({
      code: expect.stringMatching(/KG_CHAIN_BROKEN|KG_CHECKSUM_MISMATCH/),
    });
  });

  test('keeps the members that a later one needs, but can be deleted as a whole', async () => {
    const { manager, made } = await chain();
    await expect(manager.deleteBackup(made[1].id)).rejects.toMatchObject({
      code: 'KG_BACKUP_NEEDED',
      message: expect.stringContaining(made[3].id),
    });
    expect(await manager.listBackups()).toHaveLength(4);
    expect(await manager.deleteBackup(made[3].id)).toEqual([made[3].id]);
    expect(await manager.deleteBackup(made[1].id, { cascade: true })).toEqual([
      made[2].id,
      made[1].id,
    ]);
    expect((await manager.listBackups()).map(({ id }) => id)).toEqual([made[0].id]);
  });

  test('is kept by retention while a kept backup depends on it', async () => {
    const { root, backups, made, manager } = await chain();
    const two = createBackupManager({ projectRoot: root, backupDir: backups, maxBackups: 2 });
    const dry = await two.prune({ dryRun: true });
    expect(dry.decisions.map(({ id, kept, reason }) => [id, kept, reason])).toEqual([
      [made[3].id, true, 'newest-good'],
      [made[2].id, true, 'within-limits'],
      [made[1].id, true, 'needed'],
      [made[0].id, true, 'needed'],
    ]);
    const full = await two.createBackup();
    expect(full.retention.decisions.filter(({ kept }) => !kept)).toEqual([]);
    const next = await two.createBackup();
    expect(next.retention.decisions.filter(({ kept }) => !kept).map(({ id }) => id)).toEqual(
      made.map(({ id }) => id).reverse(),
    );
    expect((await manager.listBackups()).map(({ id }) => id)).toEqual([next.id, full.id]);
  });
});

test('an archive that does not match the base it names is not a backup', async () => {
  const { manager, incremental, database } = setUp();
  await manager.createBackup();
  change(database, "UPDATE nodes SET title = 'changed' WHERE rowid % 100 = 0");
  const { path: archive } = await incremental();
  const tar = gunzipSync(readFileSync(archive));
  const graph = (manifest) => manifest.files.find((file) => file.path === '.kg/knowledge.db');
  const forgeries = {
    'pages without a base': (manifest) => delete manifest.basedOn,
    'pages of another archive': (manifest) =>
      (manifest.basedOnChecksum = `sha256:${'0'.repeat(64)}`),
    'pages without a digest': (manifest) => delete graph(manifest).blocks,
    'pages with another digest': (manifest) => (graph(manifest).blocks.root = '0'.repeat(64)),
    'blocks of size zero': (manifest) => (graph(manifest).blocks.size = 0),
    'pages with another root hash': (manifest) => (graph(manifest).pages.root = '0'.repeat(64)),
    'a database of terabytes': (manifest) => (graph(manifest).size = 2 ** 43),
    'half a page': (manifest) => (graph(manifest).size += 1),
    'pages of size zero': (manifest) => (graph(manifest).pages.pageSize = 0),
    'a file that its base lacks': (manifest) =>
      manifest.files.unshift({
        ...graph(manifest),
        pages: undefined,
        stored: 'base',
        entry: 'plugins/x',
        path: '.kg/plugins/x',
        component: 'plugins',
        database: false,
      }),
  };
  for (const [what, forge] of Object.entries(forgeries)) {
    const forged = path.join(path.dirname(archive), 'kg-backup-20200101-000000.tar.gz');
    writeFileSync(forged, seal(rewriteManifest(tar, forge)));
    // That digest is of the assembled database, so only a restore can compare it. The root covers
    // the stored pages.
    if (what !== 'pages with another digest')
      expect(await manager.verifyBackup(forged), what).toBe(false);
    if (what === 'pages with another root hash') continue;
    const target = path.join(temporaryDirectory(), 'target');
    await expect(
      manager.restore({ backupPath: forged, targetDir: target }),
      what,
    ).rejects.toMatchObject({ code: 'KG_CHECKSUM_MISMATCH' });
    expect(existsSync(target), what).toBe(false);
  }
});

test('a path that belongs to another part of the project than in the base is restored', async () => {
  const { root, manager, incremental, at } = setUp({ nodes: 200 });
  fillDatabase(at('plugins/own.db'), { nodes: 400 });
  mkdirSync(at('terms.json'));
  writeFileSync(at('terms.json/one'), 'one');
  const states = [{ backup: await manager.createBackup(), is: contents(root) }];
  const save = async () => states.push({ backup: await incremental(), is: contents(root) });
  // Each of the two databases becomes, or was, the graph database.
  const settings = readFileSync(at('config.json'), 'utf8');
  writeFileSync(at('config.json'), '{"database":{"path":".kg/plugins/own.db"}}');
  await save();
  change(at('plugins/own.db'), "UPDATE nodes SET title = 'changed' WHERE rowid % 50 = 0");
  await save();
  writeFileSync(at('config.json'), settings);
  await save();
  // A JSON file directly below `.kg` is configuration, a directory of that name is not.
  rmSync(at('terms.json'), { recursive: true });
  writeFileSync(at('terms.json'), '[]');
  await save();
  rmSync(at('terms.json'));
  mkdirSync(at('terms.json'));
  await save();
  for (const { backup, is } of states) {
    expect((await manager.checkBackup(backup.path)).problems, backup.id).toEqual([]);
    const { target } = await restored(manager, backup);
    expect(contents(target), backup.id).toEqual(is);
  }
  const script = readFileSync(path.join(repository, 'docs/reference/format.md'), 'utf8')
    .split('```python\n')[1]
    .split('```')[0];
  const target = path.join(temporaryDirectory(), 'target');
  const unpack = ['-c', script, states.at(-2).backup.path, target];
  run('python3', unpack);
  expect(readFileSync(path.join(target, '.kg/terms.json'), 'utf8')).toBe('[]');
  expect(integrityOf(path.join(target, '.kg/plugins/own.db'))).toBe('ok');
});

test('random changes over a long chain are all restored', async () => {
  const { root, manager, incremental, database, at } = setUp({ nodes: 400 });
  let state = 7;
  const random = (below) => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % below;
  const db = new Database(database);
  onTestFinished(() => db.close());
  const changes = [
    () =>
      db.exec(`UPDATE nodes SET content = content || 'more' WHERE rowid % ${1 + random(50)} = 0`),
    () => db.exec(`DELETE FROM nodes WHERE rowid % ${2 + random(5)} = 1`),
    () =>
      db.exec(
        `INSERT INTO nodes (id, title, content) SELECT 'r${random(1e9)}' || id, title, content FROM nodes LIMIT ${random(300)}`,
      ),
    () => db.exec('VACUUM'),
    () => writeFileSync(at(`plugins/f${random(4)}`), String(random(1e9)).repeat(random(1000))),
    () => rmSync(at(`plugins/f${random(4)}`), { force: true }),
    () => mkdirSync(at(`plugins/d${random(3)}`), { recursive: true }),
    () => rmSync(at(`plugins/d${random(3)}`), { recursive: true, force: true }),
  ];
  const saved = [];
  for (let n = 0; n < 25; n += 1) {
    for (let times = random(4); times >= 0; times -= 1) changes[random(changes.length)]();
    saved.push({ backup: await incremental(), is: contents(root) });
  }
  for (const { backup, is } of [...saved.filter((_, n) => n % 6 === 0), saved.at(-1)]) {
    const { target } = await restored(manager, backup);
    expect(contents(target)).toEqual(is);
  }
  expect(await manager.verifyBackup(saved.at(-1).backup.path)).toBe(true);
});

test('the restorer in docs/reference/format.md restores a chain with only Python', async () => {
  const { manager, incremental, database, at } = setUp();
  await manager.createBackup();
  change(database, "UPDATE nodes SET title = 'changed' WHERE rowid % 100 = 0");
  rmSync(at('vectors/a.f32'));
  await incremental();
  change(database, 'DELETE FROM edges; VACUUM');
  writeFileSync(at('plugins/glossary/terms.json'), '[]');
  const last = await incremental();
  const [, script] = readFileSync(path.join(repository, 'docs/reference/format.md'), 'utf8').match(
    /```python\n([^]*?)```/,
  );
  const out = path.join(temporaryDirectory(), 'out');
  run('python3', ['-c', script, last.path, out]);
  const { target } = await restored(manager, last);
  const files = (root) => contents(root).filter((line) => !line.endsWith(' directory'));
  expect(files(out)).toEqual(files(target));
  expect(integrityOf(path.join(out, '.kg/knowledge.db'))).toBe('ok');
});
