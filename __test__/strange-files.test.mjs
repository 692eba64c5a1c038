// Pipes, devices, links and files with several names in the places of the files of a project or
// store. No command waits for one, reads one without end, or writes through one.

import {
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { kg, run } from './support/processes.mjs';
import { makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';

/**
 * Makes a project with a backup, a restore that can be undone, settings, a history and an empty
 * log.
 */
async function makeUsedProject() {
  const project = makeProject({ nodes: 20 });
  const { root } = project;
  mkdirSync(path.join(root, '.kg/logs'), { recursive: true });
  for (const args of [
    ['config', 'set', 'backup.maxBackups', '9'],
    ['config', 'set', 'backup.hooks.timeout', '5'],
    ['diag', 'backup'],
    ['diag', 'restore', '--file', 'latest', '--yes'],
    ['diag', 'backup'],
  ]) {
    const done = await kg(args, { cwd: root });
    expect([args, done.status, done.stderr]).toEqual([args, 0, '']);
  }
  const [archive] = run('ls', ['-t', path.join(root, '.kg/backups')])
    .split('\n')
    .filter((name) => /^kg-backup-.*gz$/.test(name));
  const [undo] = run('ls', [path.join(root, '.kg/restore-undo')]).split('\n');
  return { ...project, archive, undo };
}

/** The files below `.kg` that commands read or write for their own use. */
const OWN = ({ archive, undo }) => [
  'config.json',
  'hooks.json',
  'config.lock',
  'backup-service.lock',
  'logs/backup-service.log',
  'restore-journal.json',
  `restore-undo/${undo}/undo.json`,
  'cache/backup-runs.json',
  'cache/backup-runs.lock',
  'cache/backup-service.json',
  'cache/backup-pages/stores.json',
  'knowledge.db-wal',
  'knowledge.db-shm',
  'knowledge.db-journal',
  'backups/.kg-store.lock',
  `backups/${archive}.manifest.json`,
  `backups/${archive}.pin.json`,
];

const COMMANDS = [
  ['diag', 'health'],
  ['diag', 'integrity'],
  ['diag', 'backup', '--list'],
  ['diag', 'backup', '--status'],
  ['diag', 'backup', '--verify', 'latest'],
  ['diag', 'backup'],
  ['diag', 'backup', '--type', 'incremental'],
  ['diag', 'prune', '--max-backups', '1'],
  ['diag', 'restore', '--file', 'latest', '--dry-run'],
  ['diag', 'restore', '--file', 'latest', '--yes'],
  ['diag', 'restore', '--undo', '--yes'],
  ['diag', 'repair', '--auto'],
  ['config', 'show'],
  ['config', 'set', 'backup.maxBackups', '8'],
  ['serve', '--all'],
  ['serve', '--status'],
  ['serve', '--stop'],
];

/** Runs every command. A command that exceeds the time limit is considered to hang. */
async function runAll({ root }) {
  const hung = [];
  for (const args of COMMANDS) {
    const { status, stderr } = await kg(args, {
      cwd: root,
      timeout: 20_000,
      killSignal: 'SIGKILL',
    });
    if (status === null) hung.push(args.join(' '));
    expect([args, stderr]).toEqual([args, expect.not.stringContaining('KG_INTERNAL')]);
  }
  return hung;
}

describe.each(['a pipe', '/dev/zero'])('%s in the place of a file', (what) => {
  test('blocks no command and is not read without end', async () => {
    const project = await makeUsedProject();
    const whole = temporaryDirectory();
    run('cp', ['-a', `${project.root}/.`, whole]);
    for (const name of OWN(project)) {
      const at = path.join(project.root, '.kg', name);
      rmSync(at, { force: true });
      if (what === 'a pipe') run('mkfifo', [at]);
      else symlinkSync(what, at);
      expect([name, await runAll(project)]).toEqual([name, []]);
      rmSync(project.root, { recursive: true });
      run('cp', ['-a', `${whole}/.`, project.root]);
    }
  });
});

test.each(['-wal', '-shm', '-journal'])(
  'a %s with a second name is not written by a restore, which moves it away',
  async (suffix) => {
    const { root, database } = await makeUsedProject();
    const victim = path.join(temporaryDirectory(), 'victim');
    writeFileSync(victim, 'of somebody else');
    linkSync(victim, database + suffix);
    expect(await kg(['diag', 'restore', '--file', 'latest', '--yes'], { cwd: root })).toMatchObject(
      { status: 0 },
    );
    expect(readFileSync(victim, 'utf8')).toBe('of somebody else');
    expect(run('sqlite3', [database, 'PRAGMA integrity_check'])).toBe('ok\n');
  },
);

/**
 * Files that are written in place, and the command that writes each. All others are replaced by a
 * rename.
 */
const WRITTEN = {
  'config.lock': ['config', 'set', 'backup.maxBackups', '8'],
  'backup-service.lock': ['serve', '--all'],
  'logs/backup-service.log': ['serve', '--all'],
  'cache/backup-runs.lock': ['diag', 'backup'],
  'backups/.kg-store.lock': ['diag', 'backup'],
};

describe.each(Object.entries(WRITTEN))('%s that is another name of another file', (name, args) => {
  test.each([
    ['a symbolic link', symlinkSync],
    ['a hard link', linkSync],
  ])('as %s is not written through, and a message says so', async (_, link) => {
    const project = await makeUsedProject();
    for (const setting of [
      ['schedule', '0 2 * * *'],
      ['enabled', 'true'],
      ['listen', 'off'],
    ]) {
      await kg(['config', 'set', `backup.${setting[0]}`, setting[1]], { cwd: project.root });
    }
    const at = path.join(project.root, '.kg', name);
    rmSync(at, { force: true });
    const victim = path.join(temporaryDirectory(), 'victim.db');
    withDatabase(victim, (db) => db.exec('CREATE TABLE t (a)'));
    const state = () => [
      readFileSync(victim),
      statSync(victim).mtimeMs,
      statSync(victim).uid,
      statSync(victim).mode,
    ];
    const before = state();
    link(victim, at);
    const { status, stderr } = await kg(args, { cwd: project.root, timeout: 20_000 });
    expect(stderr).toContain(`${at} was not used: it `);
    // A backup succeeds without its line in the history. A service that cannot start reports the
    // reason.
    const statuses = name === 'cache/backup-runs.lock' ? [0] : args[0] === 'serve' ? [1, 4] : [4];
    expect(statuses).toContain(status);
    expect(state()).toEqual(before);
  });
});
