// A system call fails in each command, or the command is killed at it. Earlier backups must stay. A
// command that reports a failure has changed nothing. The project is in its old or its new state,
// no command panics, and the next run works.
//
// Every kind of call fails with every error at the k-th call of a thread. Torn writes count the
// writes of the process. `npm run test:long` tries each k; other runs draw a few, with the same
// numbers each time.

import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';

import { describe, expect, test } from 'vitest';

import { callsOf, failing, killed, torn } from './support/faults.mjs';
import { count } from './support/figures.mjs';
import { kgPath, run } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const ALL = Boolean(process.env.KG_TEST_LONG);
/** The number of values of k that are drawn for each call and error. */
const DRAWN = Number(process.env.KG_TEST_FAULTS ?? 1);
const LONGEST = ALL ? { timeout: 3 * 60 * 60_000 } : {};

const CALLS = [
  ['openat', ['EIO', 'EMFILE', 'EACCES']],
  ['read', ['EIO', 'EINTR']],
  ['pread64', ['EIO']],
  ['write', ['ENOSPC', 'EINTR']],
  ['pwrite64', ['ENOSPC', 'EIO']],
  ['fsync', ['EIO']],
  ['fdatasync', ['EIO']],
  ['rename,renameat,renameat2', ['EIO', 'EACCES']],
  ['unlink,unlinkat', ['EIO']],
  ['mkdir,mkdirat', ['ENOSPC']],
  ['statx', ['EIO', 'EACCES']],
  ['ftruncate', ['ENOSPC']],
  ['getdents64', ['EIO']],
  ['clone3', ['EAGAIN']],
  ['copy_file_range', ['EIO', 'ENOSPC']],
];
/** A run is killed at these calls, because they change something. */
const KILLED = [
  'openat',
  'write',
  'pwrite64',
  'fsync',
  'fdatasync',
  'rename,renameat,renameat2',
  'unlink,unlinkat',
  'mkdir,mkdirat',
  'ftruncate',
];
const WRITES = ['write', 'pwrite64', 'writev'];

/**
 * Returns the possible faults of a run and the largest k of each. `meet` injects the fault at the
 * `k`th call.
 */
function faults(args, root) {
  const { most, total } = callsOf(args, root);
  const of = (counts, calls) => Math.max(0, ...calls.split(',').map((name) => counts[name] ?? 0));
  const errors = CALLS.flatMap(([call, errors]) =>
    errors.map((error) => ({
      kind: 'errors',
      what: `${call} fails with ${error}`,
      most: of(most, call),
      meet: (k, options) => failing(call, error, args, { ...options, when: k }),
    })),
  );
  const kills = KILLED.map((call) => ({
    kind: 'kills',
    what: `it is killed at ${call}`,
    most: of(most, call),
    meet: (k, options) => killed(call, args, { ...options, when: k }),
  }));
  const writes = WRITES.reduce((sum, call) => sum + (total[call] ?? 0), 0);
  const tears = ['kill', 'ENOSPC', 'short'].map((then) => ({
    kind: 'torn writes',
    what: `half of a write is made (${then})`,
    most: writes,
    meet: (k, options) => torn(then, args, { ...options, when: k }),
  }));
  return [...errors, ...kills, ...tears].filter(({ most }) => most > 0);
}

const kg = (root, ...args) => run(kgPath, ['diag', ...args], { cwd: root });
const json = (root, ...args) => resultOf(kg(root, ...args, '--json'));

/** Returns the titles in the graph and the theme of a project. Fails if the database is damaged. */
function stateOf(root) {
  const database = path.join(root, '.kg/knowledge.db');
  expect(integrityOf(database)).toBe('ok');
  const titles = withDatabase(database, (db) =>
    db.prepare('SELECT group_concat(DISTINCT title) FROM nodes').pluck().get(),
  );
  return `${titles} ${JSON.parse(readFileSync(path.join(root, '.kg/config.json'), 'utf8')).theme}`;
}

/**
 * Makes a project with a chain of two backups, the second pinned, and a newer full one. No backup
 * contains `newer`.
 */
function setUp(before) {
  const { root, database } = makeProject({ nodes: 40 });
  const set = (value) => {
    withDatabase(database, (db) => db.exec(`UPDATE nodes SET title = '${value}'`));
    writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify({ theme: value }));
  };
  set('first');
  const first = json(root, 'backup');
  set('second');
  const second = json(root, 'backup', '--type', 'incremental');
  kg(root, 'backup', '--pin', second.id);
  set('saved');
  const third = json(root, 'backup');
  set('newer');
  if (before) kg(root, ...before);
  const kept = `${root}-kept`;
  execFileSync('cp', ['-a', root, kept]);
  /** Restores the original state in the same place, because kg knows a project by its path. */
  const renew = () => {
    rmSync(root, { recursive: true, force: true });
    execFileSync('cp', ['-a', kept, root]);
  };
  return { root, backups: [first, second, third].map(({ id }) => id), renew };
}

/**
 * The commands, the backups that they may remove, and the allowed states of the project afterwards.
 */
const COMMANDS = {
  'a backup': { args: () => ['backup', '--json'], makes: true },
  'an incremental backup': {
    args: () => ['backup', '--type', 'incremental', '--json'],
    makes: true,
  },
  'a restore': {
    args: ([, second]) => ['restore', '--file', second, '--yes'],
    states: ['newer newer', 'second second'],
  },
  'an undo': {
    before: ['restore', '--file', 'latest', '--yes'],
    args: () => ['restore', '--undo', '--yes'],
    states: ['newer newer', 'saved saved'],
  },
  'a deletion': { args: ([, , third]) => ['backup', '--delete', third], removes: [2] },
  'a prune': { args: () => ['prune', '--max-backups', '1'], removes: [] },
  'a consolidation': {
    args: ([, second]) => ['backup', '--consolidate', second, '--json'],
    makes: true,
  },
  'an unpinning': { args: ([, second]) => ['backup', '--unpin', second] },
  'a verification': { args: ([, second]) => ['backup', '--verify', second] },
  'a drill': { args: () => ['drill'] },
  'a check': { args: () => ['integrity'] },
};

/** Returns a linear congruential generator, which draws the same numbers in each run. */
function draws() {
  let state = 20_261_129;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state % below;
  };
}

const listed = (root) => json(root, 'list').backups.map(({ id }) => id);

describe('while a system call fails', () => {
  test.each(Object.entries(COMMANDS))(
    'in %s',
    LONGEST,
    async (name, { args, before, makes = false, removes = [], states = ['newer newer'] }) => {
      const draw = draws();
      const { root, backups, renew } = setUp(before);
      const command = ['diag', ...args(backups)];
      const met = { errors: 0, kills: 0, 'torn writes': 0, 'failures of the command': 0 };
      const wrong = [];

      /** Injects one fault and checks the result. */
      function meets({ kind, meet }, k) {
        renew();
        const scratch = temporaryDirectory();
        const { status, stderr, stdout, injected, isKilled } = meet(k, {
          cwd: root,
          env: { ...process.env, TMPDIR: scratch },
        });
        // The number of calls varies, so this run did not reach the k-th call.
        if (injected === 0) return;
        met[kind] += 1;
        if (status !== 0 && !isKilled) met['failures of the command'] += 1;
        expect(status === null).toBe(isKilled);
        expect(stderr).not.toMatch(/panicked|KG_INTERNAL/);
        // One failed read is not damage. A thread that reads again may also fail at its own k-th
        // read.
        if (injected === 1)
          expect(stdout + stderr).not.toMatch(
            /DAMAGED|KG_CHECKSUM_MISMATCH|KG_NOT_A_BACKUP|KG_CHAIN_BROKEN/,
          );
        const left = listed(root);
        const mayGo = (status === 0 || isKilled) && name === 'a prune' ? [2] : removes;
        expect(
          backups.filter((id, number) => !mayGo.includes(number) && !left.includes(id)),
        ).toEqual([]);
        for (const id of left) kg(root, 'backup', '--verify', id);
        const added = left.filter((id) => !backups.includes(id));
        // A backup must exist if the command reported it, and must not exist if the command
        // reported a failure.
        const isThere = makes && (status === 0 || status === 6);
        // A killed run reports no result. A failure to write the result is also an error, although
        // the backup exists.
        const isUntold = makes && (isKilled || /standard output/.test(stderr));
        if (!isUntold)
          expect([status, stderr, added]).toEqual([
            status,
            stderr,
            isThere ? [resultOf(stdout).id] : [],
          ]);
        const next = json(root, 'backup');
        expect(states).toContain(stateOf(root));
        kg(root, 'backup', '--verify', next.id);
        for (const dir of ['.kg', '.kg/backups']) {
          expect(
            readdirSync(path.join(root, dir)).filter((file) =>
              /^(restore-(staging|journal)|\.kg-(partial|snapshot))/.test(file),
            ),
          ).toEqual([]);
        }
        rmSync(scratch, { recursive: true });
      }

      for (const fault of faults(command, root)) {
        const ks = ALL
          ? Array.from({ length: fault.most }, (_, k) => k + 1)
          : Array.from({ length: DRAWN }, () => 1 + draw(fault.most));
        for (const k of ks) {
          try {
            meets(fault, k);
          } catch (error) {
            wrong.push(`${fault.what}, the ${k}th time: ${error.message}`);
          }
          // The test runner needs a turn of the event loop to hear of this process.
          await setImmediate();
        }
      }
      console.log(`${name}:`, met);
      count({ ...met, failures: wrong.length });
      expect(wrong).toEqual([]);
      expect(met.errors).toBeGreaterThan(5);
    },
  );

  test.each([
    ['a restore', [], 'latest'],
    ['an undo', ['restore', '--file', 'latest', '--yes'], undefined],
  ])(
    'one failed read of the live database in %s is not reported as damage',
    (_, before, backup) => {
      const { root, renew } = setUp(before.length > 0 && before);
      const only = path.join(root, '.kg/knowledge.db');
      const command = ['diag', 'restore', ...(backup ? ['--file', backup] : ['--undo']), '--yes'];
      let [met, done] = [0, false];
      for (let when = 1; !done; when += ALL ? 1 : 3) {
        renew();
        const { status, stderr, injected } = failing('pread64', 'EIO', command, {
          only,
          cwd: root,
          when,
        });
        expect([when, stderr]).toEqual([when, expect.not.stringMatching(/DAMAGED|panicked/)]);
        expect(['newer newer', 'saved saved']).toContain(stateOf(root));
        met += injected;
        done = injected === 0 && status === 0;
      }
      count({ errors: met });
      expect(met).toBeGreaterThan(3);
    },
  );
});
