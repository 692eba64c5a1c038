// A command that only looks changes no byte, owner, mode, inode or name in the project. This holds
// for every state of the project and for every user.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
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

import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { repository } from './support/processes.mjs';
import { fillDatabase, temporaryDirectory, withDatabase } from './support/project.mjs';
import {
  asHost,
  changes,
  giveTo,
  hostCommand,
  ownDirectory,
  reachableKg,
  runAs,
  treeOf,
} from './support/tree.mjs';
import { resultOf } from './support/json-output.mjs';

const isRoot = process.getuid() === 0;
const OWNER = { uid: 1001, gid: 2000 };
const MEMBER = { uid: 1002, gid: 2000 };
const USERS = {
  root: { uid: 0, gid: 0 },
  'root without CAP_CHOWN': { uid: 0, gid: 0, without: 'chown' },
  'the owner': OWNER,
  'a user who may write as a member of the group': MEMBER,
  'a user who may only read': { uid: 1003, gid: 1003 },
};
/** These users run all of the commands. The others run only the commands in `looks`. */
const THOROUGH = ['root', 'a user who may write as a member of the group'];
/** A backup stores page hashes and its history in the cache. The first one creates the id. */
const isOwn = (file) => ['project/.kg/cache', 'project/.kg/backup-project-id'].includes(file);

/**
 * Makes a project of `OWNER` that the group may write. The process that made the databases has
 * closed them.
 */
function makeProject() {
  const base = temporaryDirectory();
  const root = path.join(base, 'place/project');
  mkdirSync(path.join(root, '.kg/plugins/jobs'), { recursive: true });
  fillDatabase(path.join(root, '.kg/knowledge.db'), { nodes: 60 });
  for (const name of ['.kg/plugins/jobs/jobs.sqlite', '.kg/vectors.db']) {
    const db = new Database(path.join(root, name));
    db.exec(
      'PRAGMA journal_mode = wal; CREATE TABLE embeddings (id TEXT, embedding BLOB); INSERT INTO embeddings VALUES (1, zeroblob(2000))',
    );
    db.close();
  }
  writeFileSync(path.join(root, '.kg/config.json'), '{"theme":"dark"}\n');
  writeFileSync(path.join(root, '.kg/plugins/jobs/settings.json'), '{}\n');
  const kg = reachableKg(base);
  const project = {
    base,
    place: path.join(base, 'place'),
    root,
    database: path.join(root, '.kg/knowledge.db'),
    kg,
  };
  chmodSync(project.place, 0o755);
  return project;
}

/** Gives the project to its owner. Tests call it before they change the project further. */
function handOver({ place }) {
  giveTo(place, [OWNER.uid, OWNER.gid]);
  for (const name of ['', ...readdirSync(place, { recursive: true })]) {
    const file = path.join(place, name);
    chmodSync(file, statSync(file).isDirectory() ? 0o2775 : 0o664);
  }
}

const KILLED = "process.kill(process.pid, 'SIGKILL')";
const COMMITTED = ['PRAGMA wal_autocheckpoint = 0', "INSERT INTO metadata VALUES ('late', 'yes')"];

function as(user, file, sql, then) {
  expect(asHost(user, file, sql, then).stderr).toBe('');
}

/** Kills the host, which leaves a WAL with content. */
const killHost = ({ database }) => as(OWNER, database, COMMITTED, KILLED);

const cutOff = (size, { keepShm = false } = {}) => ({
  isCutOff: true,
  prepare(project) {
    killHost(project);
    truncateSync(project.database, size);
    if (!keepShm) rmSync(`${project.database}-shm`);
  },
});

function hotJournal({ database }) {
  as(
    OWNER,
    database,
    [
      'PRAGMA journal_mode = delete',
      'PRAGMA cache_size = 2',
      'PRAGMA cache_spill = 2',
      'BEGIN',
      "UPDATE nodes SET content = 'half'",
    ],
    KILLED,
  );
  expect(statSync(`${database}-journal`).size).toBeGreaterThan(0);
}

const SITUATIONS = {
  'a database that no process has open': { isSound: true },
  'a database in rollback mode': {
    isSound: true,
    prepare: ({ database }) => as(OWNER, database, ['PRAGMA journal_mode = delete']),
  },
  'a host that was killed': { isSound: true, keeps: 'yes', prepare: killHost },
  'a host that was killed, and no -shm': {
    isSound: true,
    keeps: 'yes',
    prepare(project) {
      killHost(project);
      rmSync(`${project.database}-shm`);
    },
  },
  'a -shm without a WAL': {
    isSound: true,
    prepare(project) {
      killHost(project);
      rmSync(`${project.database}-wal`);
    },
  },
  'an empty database next to its WAL': cutOff(0),
  'an empty database next to its WAL and -shm': cutOff(0, { keepShm: true }),
  'a database of one byte next to its WAL': cutOff(1),
  'half a header next to a WAL': cutOff(50),
  'a header alone next to a WAL and -shm': cutOff(100, { keepShm: true }),
  'half a page next to a WAL': cutOff(2048),
  'an empty database of a plugin next to its WAL': {
    prepare({ root }) {
      const file = path.join(root, '.kg/plugins/jobs/jobs.sqlite');
      as(OWNER, file, ['INSERT INTO embeddings VALUES (2, 2)'], KILLED);
      truncateSync(file, 0);
    },
  },
  'a hot journal': { isSound: true, prepare: hotJournal },
  'an empty database next to a journal': {
    isCutOff: true,
    prepare(project) {
      hotJournal(project);
      truncateSync(project.database, 0);
    },
  },
  'sidecars of another user': {
    isSound: true,
    keeps: 'yes',
    prepare: ({ database }) => as(MEMBER, database, COMMITTED, KILLED),
  },
  'empty sidecars of another user': {
    isSound: true,
    prepare({ database }) {
      for (const suffix of ['-wal', '-shm']) {
        writeFileSync(database + suffix, '');
        giveTo(database + suffix, [MEMBER.uid, MEMBER.gid]);
        chmodSync(database + suffix, 0o664);
      }
    },
  },
  'a database in use': {
    isSound: true,
    keeps: 'yes',
    prepare: ({ database }) => startIdleHost(OWNER, database),
  },
  'a database that another user has in use': {
    isSound: true,
    keeps: 'yes',
    prepare: ({ database }) => startIdleHost(MEMBER, database),
  },
  'a directory that may not be read': {
    prepare: ({ root }) => chmodSync(path.join(root, '.kg/plugins/jobs'), 0o000),
  },
  'a damaged database': {
    prepare: ({ database }) =>
      writeFileSync(database, readFileSync(database).fill(0xa5, 2 * 4096, 4 * 4096)),
  },
  'a file that is not a database': {
    prepare: ({ database }) => writeFileSync(database, 'not a database\n'.repeat(600)),
  },
  'no configuration': {
    isSound: true,
    prepare: ({ root }) => rmSync(path.join(root, '.kg/config.json')),
  },
  'a configuration that cannot be read': {
    prepare: ({ root }) => writeFileSync(path.join(root, '.kg/config.json'), '{'),
  },
  'a database outside the project': {
    prepare({ place, root, database }) {
      const outside = path.join(place, 'elsewhere/graph.db');
      mkdirSync(path.dirname(outside));
      renameSync(database, outside);
      writeFileSync(
        path.join(root, '.kg/config.json'),
        JSON.stringify({ database: { path: outside } }),
      );
      handOver({ place });
    },
  },
};

/**
 * Starts a process that has the database open until the test ends. `then` must print when it is
 * ready.
 */
async function startHost(user, database, sql, then) {
  const [command, ...args] = hostCommand(user, database, sql, then);
  const host = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'], cwd: repository });
  onTestFinished(() => host.kill('SIGKILL'));
  await once(host.stdout, 'data');
  return host;
}

/** Starts an idle process that has committed rows in the WAL. */
async function startIdleHost(user, database) {
  await startHost(user, database, COMMITTED, "console.log('open'); process.stdin.resume()");
  return { isInUse: true };
}

/** The commands that open every source of the project. */
const lookCommands = (store) => [
  ['diag', 'health', '--backup-dir', store],
  ['diag', 'integrity'],
  ['diag', 'backup', '--output', store],
  ['diag', 'restore', '--backup-dir', store, '--file', 'latest', '--dry-run', '--overwrite'],
];

const moreLookCommands = (store) => [
  ['diag', 'health', '--check-db', '--backup-dir', store],
  ['diag', 'backup', '--output', store, '--type', 'incremental'],
  ['diag', 'backup', '--output', store, '--list'],
  ['diag', 'backup', '--output', store, '--status'],
  ['diag', 'backup', '--output', store, '--verify', 'latest'],
  ['diag', 'drill', '--backup-dir', store],
  ['diag', 'prune', '--output', store, '--keep-last', '1', '--dry-run'],
  ['diag', 'repair', '--backup-dir', store],
  ['graph', '--regenerate-vectors'],
  ['config', 'show'],
];

/**
 * Runs the commands as a user. Returns the changes, the leftover temporary files, and the results
 * by command name.
 */
function runLookCommands(
  { base, place, root, kg },
  name,
  { isInUse = false, isChanging = false } = {},
) {
  const user = USERS[name];
  const own = ownDirectory(path.join(base, name.replaceAll(' ', '-')), user);
  const [store, temporary] = ['store', 'tmp'].map((dir) => ownDirectory(path.join(own, dir), user));
  const env = { ...process.env, TMPDIR: temporary, HOME: own };
  // While the database is open, processes share its -shm as memory.
  const contentOf = (file) => !isChanging && !(isInUse && file.endsWith('-shm'));
  const found = [];
  const results = {};
  let before = treeOf(place, { contentOf, ignore: isOwn });
  for (const arguments_ of [
    ...lookCommands(store),
    ...(THOROUGH.includes(name) ? moreLookCommands(store) : []),
  ]) {
    const done = runAs(user, [kg, ...arguments_, '--project', root, '--json'], { env });
    const after = treeOf(place, { contentOf, ignore: isOwn });
    const command = `${name}: kg ${arguments_.filter((argument) => argument !== store).join(' ')}`;
    found.push(...changes(before, after).map((change) => `${command}: ${change}`));
    found.push(...readdirSync(temporary).map((left) => `${command} left ${left}`));
    if (done.signal) found.push(`${command}: ${done.signal}`);
    results[arguments_[1]] ??= done;
    before = after;
  }
  return { found, results, store };
}

/** Restores the newest backup in `store` and expects warnings with these codes. */
function restored({ base, kg }, store, warnings = []) {
  const target = path.join(base, 'restored');
  rmSync(target, { recursive: true, force: true });
  const done = runAs(USERS.root, [
    kg,
    'diag',
    'restore',
    '--backup-dir',
    store,
    '--file',
    'latest',
    '--target',
    target,
    '--project',
    base,
  ]);
  expect(
    done.stderr
      .trimEnd()
      .split('\n')
      .filter(Boolean)
      .map((line) => line.match(/\[(KG_WARN_\w+)\]$/)?.[1]),
  ).toEqual(warnings);
  return path.join(target, '.kg');
}

describe.skipIf(!isRoot)('looking changes nothing', () => {
  test.for(Object.entries(SITUATIONS))(
    'of %s',
    async ([, { prepare = () => {}, keeps, isSound, isCutOff }]) => {
      const project = makeProject();
      handOver(project);
      const state = await prepare(project);
      for (const name of Object.keys(USERS)) {
        const { found, results, store } = runLookCommands(project, name, state);
        expect(found, name).toEqual([]);
        if (isSound) {
          expect(results.health.status, results.health.stdout).toBe(0);
          expect(results.backup.status, results.backup.stderr).toBe(0);
          expect(resultOf(results.backup.stdout).integrity.status).toBe('ok');
          const row = withDatabase(path.join(restored(project, store), 'knowledge.db'), (db) =>
            db.prepare("SELECT value FROM metadata WHERE key = 'late'").get(),
          );
          expect(row?.value, name).toBe(keeps);
        }
        if (isCutOff) {
          expect(results.integrity.stdout).toContain('KG_ISSUE_DATABASE_DAMAGED');
          expect(results.integrity.status).not.toBe(0);
          // Moving the WAL away would lose the remaining data.
          expect(results.integrity.stdout).not.toContain('KG_ISSUE_WAL_FOREIGN');
          expect(results.backup.stdout).toContain('KG_WARN_SOURCE_DAMAGED');
        }
      }
      if (isSound) as(OWNER, project.database, ["UPDATE nodes SET title = 'written'"]);
    },
  );
});

describe.skipIf(!isRoot)('during writes by another process', () => {
  test.for([OWNER, MEMBER])(
    'each user reads one commit, and the writer continues: writer %o',
    async (writer) => {
      const project = makeProject();
      handOver(project);
      const sql = [
        'PRAGMA busy_timeout = 10000',
        "INSERT INTO metadata VALUES ('a', '0'), ('b', '0')",
      ];
      // Each transaction keeps two rows equal.
      const step = `
      const step = () => {
        db.exec("BEGIN IMMEDIATE; UPDATE metadata SET value = value + 1 WHERE key IN ('a', 'b'); INSERT INTO nodes (id, content) SELECT max(rowid) + 1, 'more' FROM nodes; COMMIT");
        setImmediate(step);
      };
      step();
      console.log('open')`;
      const host = await startHost(writer, project.database, sql, step);
      const names = () => treeOf(project.place, { contentOf: () => false, ignore: isOwn });
      const before = names();
      for (const name of Object.keys(USERS)) {
        const { results, store } = runLookCommands(project, name, { isChanging: true });
        expect(results.health.stdout).not.toContain('KG_ISSUE_WAL_FOREIGN');
        expect(results.backup.status, `${name}: ${results.backup.stderr}`).toBe(0);
        const rows = withDatabase(path.join(restored(project, store), 'knowledge.db'), (db) =>
          db.prepare("SELECT value FROM metadata WHERE key IN ('a', 'b')").all(),
        );
        expect(rows[0]).toEqual(rows[1]);
      }
      expect(changes(before, names())).toEqual([]);
      expect(host.exitCode).toBe(null);
    },
  );
});

test.skipIf(!isRoot)('a project on a read-only mount is read with the content of its WAL', () => {
  for (const prepare of [killHost, ({ database }) => as(OWNER, database, COMMITTED)]) {
    const project = makeProject();
    const { base, place, root, kg } = project;
    handOver(project);
    prepare(project);
    const before = treeOf(place);
    const store = ownDirectory(path.join(base, 'store'), USERS.root);
    const script =
      'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && "$2" diag health --project "$3" --backup-dir "$4" && "$2" diag backup --project "$3" --output "$4"';
    const done = runAs(USERS.root, [
      'unshare',
      '-m',
      'sh',
      '-c',
      script,
      'sh',
      place,
      kg,
      root,
      store,
    ]);
    expect(done.status, done.stderr).toBe(0);
    expect(changes(before, treeOf(place, { ignore: isOwn }))).toEqual([]);
    const row = withDatabase(path.join(restored(project, store), 'knowledge.db'), (db) =>
      db.prepare("SELECT value FROM metadata WHERE key = 'late'").get(),
    );
    expect(row).toEqual({ value: 'yes' });
  }
});

test.skipIf(!isRoot)(
  'a truncated database is saved with its WAL, byte for byte, and restored',
  () => {
    const project = makeProject();
    handOver(project);
    cutOff(50).prepare(project);
    SITUATIONS['an empty database of a plugin next to its WAL'].prepare(project);
    const names = [
      'knowledge.db',
      'knowledge.db-wal',
      'plugins/jobs/jobs.sqlite',
      'plugins/jobs/jobs.sqlite-wal',
    ];
    const files = names.map((name) => [name, readFileSync(path.join(project.root, '.kg', name))]);
    const { store } = runLookCommands(project, 'root');
    const state = restored(project, store, ['KG_WARN_SOURCE_DAMAGED']);
    for (const [name, bytes] of files)
      expect(readFileSync(path.join(state, name)).equals(bytes), name).toBe(true);
  },
);
