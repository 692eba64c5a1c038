// Records of a directory tree, and commands of other users who look at it.

import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
} from 'node:fs';
import path from 'node:path';

import { kgPath, repository } from './processes.mjs';

/**
 * Returns a text for each path in `dir`: inode, owner and mode, the size and hash of a file, the
 * target of a link. `ignore` excludes a path and everything below it.
 */
export function treeOf(dir, { ignore = () => false, contentOf = () => true } = {}) {
  const tree = {};
  const visit = (file, name) => {
    if (ignore(name)) return;
    const found = lstatSync(file);
    const facts = [
      `inode ${found.ino}`,
      `owner ${found.uid}:${found.gid}`,
      `mode ${found.mode.toString(8)}`,
    ];
    if (found.isFile() && contentOf(name))
      facts.push(
        `size ${found.size}`,
        createHash('sha256').update(readFileSync(file)).digest('hex'),
      );
    if (found.isSymbolicLink()) facts.push(`to ${readlinkSync(file)}`);
    tree[name] = facts.join(' ');
    if (found.isDirectory())
      for (const entry of readdirSync(file).sort())
        visit(path.join(file, entry), path.join(name, entry));
  };
  visit(dir, '.');
  return tree;
}

/** Returns a line for each path that differs between two records. */
export function changes(before, after) {
  const paths = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
  return paths
    .filter((name) => before[name] !== after[name])
    .map((name) => `${name}: ${before[name] ?? 'absent'} -> ${after[name] ?? 'absent'}`);
}

/** Gives everything in `dir` to a user. */
export function giveTo(dir, [uid, gid]) {
  execFileSync('chown', ['-R', '-h', `${uid}:${gid}`, dir]);
}

/**
 * Returns the command line that runs a command as a user. `without` removes a capability from root.
 */
export function commandAs({ uid, gid, without }, command) {
  if (without)
    return ['setpriv', `--bounding-set=-${without}`, `--inh-caps=-${without}`, '--', ...command];
  if (uid === process.getuid()) return command;
  return ['setpriv', `--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--', ...command];
}

/** Copies `kg` into `dir`, where other users can reach it, and returns its path. */
export function reachableKg(dir) {
  chmodSync(dir, 0o755);
  const copy = path.join(dir, 'kg');
  copyFileSync(kgPath, copy);
  chmodSync(copy, 0o755);
  return copy;
}

/** Makes a directory that only one user can enter. */
export function ownDirectory(dir, { uid, gid }) {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  chownSync(dir, uid, gid);
  return dir;
}

/**
 * Returns a command that runs the statements `sql` on the database `file` as a user, and then
 * `then`. The process changes its user after it has loaded its modules, because another user may
 * not reach this repository.
 */
export function hostCommand({ uid, gid }, file, sql, then = 'db.close()') {
  const script = `
    const Database = require('better-sqlite3');
    new Database(':memory:').close();
    process.setgroups([]);
    process.setgid(${gid});
    process.setuid(${uid});
    const db = new Database(process.argv[1]);
    for (const statement of JSON.parse(process.argv[2])) db.exec(statement);
    ${then};`;
  return [process.execPath, '-e', script, file, JSON.stringify(sql)];
}

/** Runs such a command to its end. */
export function asHost(user, file, sql, then) {
  const [command, ...args] = hostCommand(user, file, sql, then);
  return spawnSync(command, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd: repository,
  });
}

/** Runs a command as a user, to its end. */
export function runAs(user, command, options = {}) {
  const [file, ...args] = commandAs(user, command);
  return spawnSync(file, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd: '/',
    ...options,
  });
}
