// A system call fails in the midst of each command: earlier backups stay, what is said to have failed has not happened, what is there is
// the old or the new, nothing panics, and the next run works.
//
// The k-th call of each thread fails, of every kind of call and error. `npm run test:long` tries each k; otherwise a few are drawn, from
// the same numbers every time.

import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { callsOf, failing } from './support/faults.mjs';
import { kgPath, run } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';

const ALL = Boolean(process.env.KG_TEST_LONG);
/** How many k are drawn for each call and error. */
const DRAWN = Number(process.env.KG_TEST_FAULTS ?? 1);

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
];

const kg = (root, ...args) => run(kgPath, ['diag', ...args], { cwd: root });
const json = (root, ...args) => JSON.parse(kg(root, ...args, '--json'));

/** What the graph and the configuration of a project hold; fails if the database is damaged. */
function stateOf(root) {
  const database = path.join(root, '.kg/knowledge.db');
  expect(integrityOf(database)).toBe('ok');
  const titles = withDatabase(database, (db) => db.prepare('SELECT group_concat(DISTINCT title) FROM nodes').pluck().get());
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
  'an incremental backup': { args: () => ['backup', '--type', 'incremental', '--json'], makes: true },
  'a restore': { args: ([, second]) => ['restore', '--file', second, '--yes'], states: ['newer newer', 'second second'] },
  'an undo': { before: ['restore', '--file', 'latest', '--yes'], args: () => ['restore', '--undo', '--yes'], states: ['newer newer', 'saved saved'] },
  'a deletion': { args: ([, , third]) => ['backup', '--delete', third], removes: [2] },
  'a prune': { args: () => ['prune', '--max-backups', '1'], removes: [] },
  'a consolidation': { args: ([, second]) => ['backup', '--consolidate', second, '--json'], makes: true },
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
  test.each(Object.entries(COMMANDS))('in %s', (name, { args, before, makes = false, removes = [], states = ['newer newer'] }) => {
    const draw = draws();
    const { root, backups, renew } = setUp(before);
    const most = callsOf(['diag', ...args(backups)], root);
    let [injected, failed] = [0, 0];
    for (const [call, errors] of CALLS) {
      const made = Math.max(0, ...call.split(',').map((name) => most[name] ?? 0));
      for (const error of made ? errors : []) {
        const ks = ALL ? Array.from({ length: made }, (_, k) => k + 1) : Array.from({ length: DRAWN }, () => 1 + draw(made));
        for (const k of ks) {
          renew();
          const what = `${name}: ${call} fails with ${error} the ${k}th time`;
          const scratch = temporaryDirectory();
          const { status, stderr, stdout, injected: times } = failing(call, error, ['diag', ...args(backups)], { cwd: root, when: k, env: { ...process.env, TMPDIR: scratch } });
          // A run is not to the call as the one before.
          if (times === 0) continue;
          injected += 1;
          if (status !== 0) failed += 1;
          expect(status, what).not.toBeNull();
          expect(stderr, what).not.toMatch(/panicked|KG_INTERNAL/);
          // What could not be read once is not said to be damaged. A thread that reads it again may fail at its k-th read too.
          if (times === 1) expect(stdout + stderr, what).not.toMatch(/DAMAGED|KG_CHECKSUM_MISMATCH|KG_NOT_A_BACKUP|KG_CHAIN_BROKEN/);
          const left = listed(root);
          const mayGo = (status === 0 && name === 'a prune') ? [2] : removes;
          expect(backups.filter((id, number) => !mayGo.includes(number) && !left.includes(id)), what).toEqual([]);
          for (const id of left) expect(() => kg(root, 'backup', '--verify', id), `${what}: ${id}`).not.toThrow();
          const added = left.filter((id) => !backups.includes(id));
          // One that was said to have failed is none; one that is said to be there is.
          const isThere = makes && (status === 0 || status === 6);
          // That the result could not be told is an error too.
          const isUntold = makes && /standard output/.test(stderr);
          if (!isUntold) expect(added, `${what}: ${status} ${stderr}`).toEqual(isThere ? [JSON.parse(stdout).id] : []);
          const next = json(root, 'backup');
          expect(states, `${what}: ${status} ${stderr}`).toContain(stateOf(root));
          expect(() => kg(root, 'backup', '--verify', next.id), what).not.toThrow();
          expect(readdirSync(path.join(root, '.kg')).filter((file) => /^(restore-(staging|journal)|\.kg-)/.test(file)), what).toEqual([]);
          rmSync(scratch, { recursive: true });
        }
      }
    }
    console.log(`${name}: ${injected} faults, ${failed} of them failed the command`);
    expect(injected).toBeGreaterThan(5);
  });
});
