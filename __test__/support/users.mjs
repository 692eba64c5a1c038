// Commands as another user, which only root can run.

import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, lstatSync, readdirSync } from 'node:fs';
import path from 'node:path';

import { kgPath } from './processes.mjs';
import { makeProject } from './project.mjs';

export const isRoot = process.getuid() === 0;

/**
 * Makes a project whose directories belong to the user `uid`, and a `kg` that this user can reach.
 */
export function projectOf(uid, options) {
  const project = makeProject(options);
  const base = path.dirname(project.root);
  chmodSync(base, 0o755);
  const executable = path.join(base, 'kg');
  copyFileSync(kgPath, executable);
  execFileSync('chown', ['-R', `${uid}:${uid}`, project.root]);
  const run = (command, env = {}) => {
    const { status, stdout, stderr } = spawnSync(command[0], command.slice(1), {
      cwd: project.root,
      encoding: 'utf8',
      env: { ...process.env, ...env },
    });
    return { status, stdout, stderr };
  };
  const as = (user, args, env) =>
    run(
      ['setpriv', `--reuid=${user}`, `--regid=${user}`, '--clear-groups', executable, ...args],
      env,
    );
  return {
    ...project,
    base,
    executable,
    /** Runs `kg` as the owner of the project or as root, and returns status, stdout and stderr. */
    asOwner: (...args) => as(uid, args, { TMPDIR: undefined }),
    asUser: (user, ...args) => as(user, args),
    asRoot: (...args) => run([executable, ...args]),
    run,
  };
}

/** Returns the paths in `dir`, itself included, that do not belong to `uid`, relative to it. */
export function notOwnedBy(dir, uid) {
  const wrong = [];
  const visit = (file) => {
    const found = lstatSync(file);
    if (found.uid !== uid) wrong.push(`${path.relative(dir, file) || '.'} ${found.uid}`);
    if (found.isDirectory()) for (const name of readdirSync(file)) visit(path.join(file, name));
  };
  if (existsSync(dir)) visit(dir);
  return wrong;
}
