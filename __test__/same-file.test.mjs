// One database with several names. A backup reads it through the name whose WAL is in use and saves
// it once.

import {
  copyFileSync,
  cpSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';

import { inBindMount, kg, kgPath, run, startHost } from './support/processes.mjs';
import { fillDatabase, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const isRoot = process.getuid() === 0;
const ADD = (name) => `INSERT INTO metadata VALUES ('${name}', 'committed')`;
const names = (database) =>
  withDatabase(database, (db) => db.prepare('SELECT key FROM metadata ORDER BY key').pluck().all());

/** Makes a backup and restores it elsewhere. `at` returns paths in the restored project. */
async function roundTrip(root, { args = [], status = 0, through = [] } = {}) {
  const base = path.join(root, '..');
  const command = [
    'diag',
    'backup',
    '--project',
    root,
    '--output',
    path.join(base, 'backups'),
    '--json',
    ...args,
  ];
  const ran =
    through.length > 0
      ? { status: 0, stdout: run(through[0], [...through.slice(1), kgPath, ...command]) }
      : await kg(command);
  expect(ran).toMatchObject({ status });
  const target = path.join(temporaryDirectory(), 'restored');
  const restored = await kg([
    'diag',
    'restore',
    '--file',
    path.join(base, 'backups/latest.tar.gz'),
    '--target',
    target,
    '--json',
  ]);
  expect(restored).toMatchObject({ status: 0 });
  const { warnings } = resultOf(ran.stdout);
  const about = (code) => warnings.filter((warning) => warning.code === code);
  return { target, at: (name) => path.join(target, '.kg', name), about, warnings };
}

/** Makes a project whose graph has a hard link as its second name. */
function makeLinkedProject(alias = 'plugins/glossary/alias.sqlite') {
  const project = makeProject();
  const other = path.join(project.root, '.kg', alias);
  mkdirSync(path.dirname(other), { recursive: true });
  linkSync(project.database, other);
  return { ...project, alias: other };
}

/** Commits through a name and leaves the WAL: `live` or `killed`. */
async function commit(database, state, name = 'in the WAL') {
  const host = await startHost(database);
  await host.tell(ADD(name));
  if (state === 'killed') await host.kill();
  return host;
}

describe('the graph database with a hard link', () => {
  for (const state of ['live', 'killed']) {
    for (const used of ['database', 'alias']) {
      test(`is saved with the commits of a ${state} process that uses its ${used === 'alias' ? 'other' : 'own'} name`, async () => {
        const project = makeLinkedProject();
        await commit(project[used], state);
        const { at, about } = await roundTrip(project.root, { args: ['--strict'] });
        expect(names(at('knowledge.db'))).toEqual(['in the WAL']);
        expect(readlinkSync(at('plugins/glossary/alias.sqlite'))).toBe('../../knowledge.db');
        expect(names(at('plugins/glossary/alias.sqlite'))).toEqual(['in the WAL']);
        const [warning, ...more] = about('KG_WARN_SAME_FILE');
        expect(more).toEqual([]);
        expect(warning.path).toBe('.kg/plugins/glossary/alias.sqlite');
        expect(warning.message).toContain('saved as a symbolic link to .kg/knowledge.db');
      });
    }
  }

  for (const [where, alias, args] of [
    ['in a part that is left out', 'plugins/alias.sqlite', ['--no-plugins']],
    ['that a pattern leaves out', 'other/alias.sqlite', ['--exclude', '*.sqlite']],
    ['where no backup looks', 'cache/alias.sqlite', []],
    ['in a backup of the graph alone', 'plugins/alias.sqlite', ['--type', 'snapshot']],
  ]) {
    test(`${where} is read through that name, if its WAL is in use`, async () => {
      const project = makeLinkedProject(alias);
      await commit(project.alias, 'live');
      const { at } = await roundTrip(project.root, { args });
      expect(names(at('knowledge.db'))).toEqual(['in the WAL']);
      expect(existsSync(at(alias))).toBe(false);
    });
  }

  test('is read through the name next to which a killed writer left its journal', async () => {
    const project = makeLinkedProject();
    withDatabase(project.database, (db) => db.pragma('journal_mode = delete'));
    const host = await startHost(project.alias);
    await host.tell('PRAGMA cache_spill = 1');
    await host.tell('PRAGMA cache_size = 2');
    await host.tell('BEGIN');
    await host.tell(ADD('half done'));
    await host.tell("UPDATE nodes SET content = content || 'x'");
    await host.kill();
    expect(existsSync(`${project.alias}-journal`)).toBe(true);
    const { at } = await roundTrip(project.root);
    expect(names(at('knowledge.db'))).toEqual([]);
    expect(run('sqlite3', [at('knowledge.db'), 'PRAGMA integrity_check'])).toBe('ok\n');
  });

  test('with a WAL for each of two names makes the backup incomplete, and both are named', async () => {
    const project = makeLinkedProject();
    await commit(project.database, 'killed', 'one');
    copyFileSync(`${project.database}-wal`, `${project.alias}-wal`);
    const { at, about } = await roundTrip(project.root, { status: expect.any(Number) });
    expect(names(at('knowledge.db'))).toEqual(['one']);
    const [warning] = about('KG_WARN_SAME_FILE');
    for (const name of ['.kg/knowledge.db', '.kg/plugins/glossary/alias.sqlite'])
      expect(warning.message).toContain(name);
    expect(about('KG_WARN_WAL_NOT_IN_USE')).toMatchObject([
      { path: '.kg/plugins/glossary/alias.sqlite' },
    ]);
    const strict = await kg([
      'diag',
      'backup',
      '--strict',
      '--project',
      project.root,
      '--output',
      path.join(project.root, '../strict'),
    ]);
    expect(strict.status).not.toBe(0);
    expect(strict.stderr).toContain('KG_INCOMPLETE');
  });

  test('is reported if it is outside the project', async () => {
    const project = makeProject();
    linkSync(project.database, path.join(temporaryDirectory(), 'other.db'));
    const { about } = await roundTrip(project.root, { args: ['--strict'] });
    expect(about('KG_WARN_SAME_FILE')).toMatchObject([
      { path: '.kg/knowledge.db', message: expect.stringContaining('1 more names') },
    ]);
  });

  test('is not healthy if its other name has a WAL', async () => {
    const project = makeLinkedProject();
    await commit(project.alias, 'killed');
    const { status, stdout } = await kg(['diag', 'health', '--project', project.root, '--json']);
    expect(status).toBe(3);
    expect(stdout).toContain('KG_ISSUE_WAL_NOT_IN_USE');
    expect(stdout).toContain('alias.sqlite-wal');
  });

  test('is restored while a process has it open, and that process sees the restored content', async () => {
    const project = makeLinkedProject();
    const backup = ['diag', 'backup', '--project', project.root, '--output', project.backups];
    expect(await kg(backup)).toMatchObject({ status: 0 });
    const host = await commit(project.database, 'live');
    const restore = [
      'diag',
      'restore',
      '--project',
      project.root,
      '--file',
      path.join(project.backups, 'latest.tar.gz'),
      '--yes',
    ];
    expect(await kg(restore)).toMatchObject({ status: 0 });
    expect(await host.tell('SELECT key FROM metadata')).toEqual([]);
    await host.tell(ADD('afterwards'));
    expect(names(project.alias)).toEqual(['afterwards']);
    expect(lstatSync(project.alias).isSymbolicLink()).toBe(true);
    expect(
      await kg(['diag', 'restore', '--project', project.root, '--undo', '--yes']),
    ).toMatchObject({ status: 0 });
    expect(await host.tell('SELECT key FROM metadata')).toEqual([{ key: 'in the WAL' }]);
  });

  test('is not restored while a process has its other name open', async () => {
    const project = makeLinkedProject();
    expect(
      await kg(['diag', 'backup', '--project', project.root, '--output', project.backups]),
    ).toMatchObject({ status: 0 });
    const host = await commit(project.alias, 'live');
    const restore = [
      'diag',
      'restore',
      '--project',
      project.root,
      '--file',
      path.join(project.backups, 'latest.tar.gz'),
      '--yes',
    ];
    expect(await kg(restore)).toMatchObject({
      status: 3,
      stderr: expect.stringContaining('KG_DATABASE_IN_USE'),
    });
    expect(await host.tell('SELECT key FROM metadata')).toEqual([{ key: 'in the WAL' }]);
  });

  test('is not restored while a name outside the backup has a WAL', async () => {
    const project = makeLinkedProject('cache/alias.sqlite');
    expect(
      await kg(['diag', 'backup', '--project', project.root, '--output', project.backups]),
    ).toMatchObject({ status: 0 });
    await commit(project.alias, 'killed');
    const restore = [
      'diag',
      'restore',
      '--project',
      project.root,
      '--file',
      path.join(project.backups, 'latest.tar.gz'),
      '--yes',
    ];
    expect(await kg(restore)).toMatchObject({
      status: 3,
      stderr: expect.stringContaining('cache/alias.sqlite'),
    });
    // With --force, the database becomes a separate file and the other name keeps its content.
    expect(await kg([...restore, '--force'])).toMatchObject({ status: 0 });
    expect(names(project.database)).toEqual([]);
    expect(names(project.alias)).toEqual(['in the WAL']);
  });

  test('that an earlier release saved twice is restored over both names', async () => {
    const project = makeProject();
    const alias = path.join(project.root, '.kg/plugins/alias.sqlite');
    copyFileSync(project.database, alias);
    expect(
      await kg(['diag', 'backup', '--project', project.root, '--output', project.backups]),
    ).toMatchObject({ status: 0 });
    rmSync(alias);
    linkSync(project.database, alias);
    const restore = [
      'diag',
      'restore',
      '--project',
      project.root,
      '--file',
      path.join(project.backups, 'latest.tar.gz'),
      '--yes',
    ];
    expect(await kg(restore)).toMatchObject({ status: 0 });
    for (const database of [project.database, alias])
      expect(run('sqlite3', [database, 'PRAGMA integrity_check'])).toBe('ok\n');
  });

  test('is saved by incremental backups too, before and after it gets the link', async () => {
    const project = makeProject();
    const { at: before } = await roundTrip(project.root);
    expect(names(before('knowledge.db'))).toEqual([]);
    const alias = path.join(project.root, '.kg/plugins/alias.sqlite');
    linkSync(project.database, alias);
    const host = await commit(alias, 'live', 'one');
    const { at: linkedOne } = await roundTrip(project.root, { args: ['--type', 'incremental'] });
    expect(names(linkedOne('knowledge.db'))).toEqual(['one']);
    await host.tell(ADD('two'));
    const { at: again } = await roundTrip(project.root, { args: ['--type', 'incremental'] });
    expect(names(again('plugins/alias.sqlite'))).toEqual(['one', 'two']);
  });

  test('that is damaged is saved once, with the WAL of the name in use', async () => {
    const project = makeLinkedProject();
    await commit(project.alias, 'killed');
    truncateSync(project.database, 4096 * 3);
    const { at, about } = await roundTrip(project.root, { status: expect.any(Number) });
    expect(about('KG_WARN_SOURCE_DAMAGED')).toMatchObject([{ path: '.kg/knowledge.db' }]);
    expect(lstatSync(at('plugins/glossary/alias.sqlite')).isSymbolicLink()).toBe(true);
  });

  test.skipIf(!isRoot)('counts as one with its bind mount', async () => {
    const project = makeProject();
    const mounted = path.join(project.root, '.kg/plugins/x.db');
    writeFileSync(mounted, '');
    const mount = inBindMount(project.database, mounted);
    const host = await startHost(mounted, { through: mount });
    await host.tell(ADD('in the WAL'));
    const { at, about } = await roundTrip(project.root, {
      through: ['nsenter', '-m', '-t', String(host.pid)],
    });
    expect(names(at('knowledge.db'))).toEqual(['in the WAL']);
    expect(readlinkSync(at('plugins/x.db'))).toBe('../knowledge.db');
    expect(about('KG_WARN_SAME_FILE')).toHaveLength(1);
    await host.stop();
  });
});

test('a graph database outside the project is opened once, even if it has a name in the project', async () => {
  const { root, database } = makeProject();
  const outside = path.join(temporaryDirectory(), 'graph.db');
  renameSync(database, outside);
  linkSync(outside, path.join(root, '.kg/plugins/alias.db'));
  writeFileSync(
    path.join(root, '.kg/config.json'),
    JSON.stringify({ database: { path: outside } }),
  );
  await commit(path.join(root, '.kg/plugins/alias.db'), 'live');
  const { at, about } = await roundTrip(root);
  expect(names(at('knowledge.db'))).toEqual(['in the WAL']);
  expect(existsSync(at('plugins/alias.db'))).toBe(false);
  expect(about('KG_WARN_SAME_FILE')).toMatchObject([{ path: '.kg/plugins/alias.db' }]);
});

test('a project with a linked .kg uses the file names inside .kg', async () => {
  const { root, alias } = makeLinkedProject();
  const real = path.join(temporaryDirectory(), 'state');
  cpSync(path.join(root, '.kg'), real, { recursive: true });
  rmSync(path.join(root, '.kg'), { recursive: true });
  symlinkSync(real, path.join(root, '.kg'));
  rmSync(alias);
  linkSync(path.join(real, 'knowledge.db'), alias);
  await commit(alias, 'live');
  const { at, about } = await roundTrip(root, { args: ['--strict'] });
  expect(names(at('knowledge.db'))).toEqual(['in the WAL']);
  expect(about('KG_WARN_SAME_FILE')).toMatchObject([
    {
      path: '.kg/plugins/glossary/alias.sqlite',
      message: expect.stringContaining('read as .kg/plugins/glossary/alias.sqlite'),
    },
  ]);
});

describe('symbolic links', () => {
  test('to the graph database are saved as they are', async () => {
    const { root, database } = makeProject();
    symlinkSync('../knowledge.db', path.join(root, '.kg/plugins/graph.db'));
    await commit(database, 'live');
    const { at, warnings } = await roundTrip(root, { args: ['--strict'] });
    expect(readlinkSync(at('plugins/graph.db'))).toBe('../knowledge.db');
    expect(names(at('plugins/graph.db'))).toEqual(['in the WAL']);
    expect(warnings).toEqual([]);
  });

  test('to the graph database that are absolute lead to the restored database', async () => {
    const { root, database } = makeProject();
    symlinkSync(database, path.join(root, '.kg/plugins/graph.db'));
    const { at, about } = await roundTrip(root, { args: ['--strict'] });
    expect(readlinkSync(at('plugins/graph.db'))).toBe('../knowledge.db');
    expect(about('KG_WARN_SAME_FILE')).toHaveLength(1);
  });

  test('named by the configuration lead to a database in the project, which keeps its place', async () => {
    const { root, database } = makeProject();
    mkdirSync(path.join(root, '.kg/store'));
    renameSync(database, path.join(root, '.kg/store/real.db'));
    symlinkSync('store/real.db', database);
    await commit(database, 'live');
    const { at, about } = await roundTrip(root, { args: ['--strict'] });
    for (const name of ['knowledge.db', 'store/real.db'])
      expect(names(at(name))).toEqual(['in the WAL']);
    expect(about('KG_WARN_SAME_FILE')).toMatchObject([{ path: '.kg/store/real.db' }]);
  });
});

describe('another database with two names', () => {
  for (const [first, second] of [
    ['plugins/a/x.sqlite', 'plugins/b/x.sqlite'],
    ['vectors.db', 'plugins/vectors-copy.db'],
  ]) {
    for (const used of [first, second]) {
      test(`is saved under ${used} of ${first} and ${second}, if that name has the WAL`, async () => {
        const { root } = makeProject();
        const at = (name) => path.join(root, '.kg', name);
        [first, second].forEach((name) => mkdirSync(path.dirname(at(name)), { recursive: true }));
        fillDatabase(at(first), { nodes: 5 });
        linkSync(at(first), at(second));
        await commit(at(used), 'live');
        const restored = await roundTrip(root, { args: ['--strict'] });
        expect(lstatSync(restored.at(used)).isFile()).toBe(true);
        for (const name of [first, second])
          expect(names(restored.at(name))).toEqual(['in the WAL']);
        expect(restored.about('KG_WARN_SAME_FILE')).toHaveLength(1);
      });
    }
  }
});

test('a file that is not a database is saved under each of its names', async () => {
  const { root } = makeProject();
  linkSync(
    path.join(root, '.kg/plugins/glossary/terms.json'),
    path.join(root, '.kg/plugins/again.json'),
  );
  const { at, warnings } = await roundTrip(root, { args: ['--strict'] });
  expect(warnings).toEqual([]);
  for (const name of ['plugins/again.json', 'plugins/glossary/terms.json']) {
    expect(lstatSync(at(name)).isFile()).toBe(true);
    expect(readFileSync(at(name), 'utf8')).toBe('["graph","node"]\n');
  }
  expect(
    new Database(at('knowledge.db'), { readonly: true })
      .prepare('SELECT count(*) FROM nodes')
      .pluck()
      .get(),
  ).toBe(200);
});
