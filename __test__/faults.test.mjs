// A system call fails in each command, or the command is killed at it. Earlier backups stay. A command that reports a failure has changed
// nothing, the project is in its old state or the new one, nothing panics, and the next run works.
//
// It is the k-th call of a thread, of every kind of call and error; of writes that are torn, the k-th of the process. `npm run test:long`
// tries each k; otherwise a few are drawn, from the same numbers every time.

import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';

import { describe, expect, test } from 'vitest';

import { callsOf, failing, killed, torn } from './support/faults.mjs';
import { count } from './support/figures.mjs';
import { kgPath, run } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';

const ALL = Boolean(process.env.KG_TEST_LONG);
/** How many k are drawn for each call and error. */
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
/** At which of them a run is killed: those that change something. */
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

/** What happens to a run, and how often at most: `meet` lets it happen the `k`th time. */
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
const json = (root, ...args) => JSON.parse(kg(root, ...args, '--json'));

/** What the graph and the configuration of a project hold; fails if the database is damaged. */
function stateOf(root) {
  const database = path.join(root, '.kg/knowledge.db');
  expect(integrityOf(database)).toBe('ok');
  const titles = withDatabase(database, (db) =>
    db.prepare('SELECT group_concat(DISTINCT title) FROM nodes').pluck().get(),
  );
  return `${titles} ${JSON.parse(readFileSync(path.join(root, '.kg/config.json'), 'utf8')).theme}`;
}

/** A project with a chain of two backups, the second of which is pinned, and a newer full one; `newer` is in no backup. */
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
  /** As it was, at its own place: a project is known by that. */
  const renew = () => {
    rmSync(root, { recursive: true, force: true });
    execFileSync('cp', ['-a', kept, root]);
  };
  return { root, backups: [first, second, third].map(({ id }) => id), renew };
}

/** The commands, what they may take away, and the states that a project may be in afterwards. */
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

/** A linear congruential generator: the same draws in each run. */
function draws() {
  let state = 20_261_129;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state % below;
  };
}

const listed = (root) => json(root, 'backup', '--list').map(({ id }) => id);

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

      /** Meets one fault, and looks at what came of it. */
      function meets({ kind, meet }, k) {
        renew();
        const scratch = temporaryDirectory();
        const { status, stderr, stdout, injected, isKilled } = meet(k, {
          cwd: root,
          env: { ...process.env, TMPDIR: scratch },
        });
        // A run is not to the call as the one before.
        if (injected === 0) return;
        met[kind] += 1;
        if (status !== 0 && !isKilled) met['failures of the command'] += 1;
        expect(status === null).toBe(isKilled);
        expect(stderr).not.toMatch(/panicked|KG_INTERNAL/);
        // What could not be read once is not said to be damaged. A thread that reads it again may fail at its k-th read too.
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
        // One that was said to have failed is none; one that is said to be there is.
        const isThere = makes && (status === 0 || status === 6);
        // A run that is killed has said nothing, and that the result could not be told is an error too.
        const isUntold = makes && (isKilled || /standard output/.test(stderr));
        if (!isUntold)
          expect([status, stderr, added]).toEqual([
            status,
            stderr,
            isThere ? [JSON.parse(stdout).id] : [],
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
          // The runner hears of this process in between.
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
    'that reads the live database once, in %s, it is not said to be damaged',
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
