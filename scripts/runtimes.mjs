// Installs the JavaScript runtimes and package managers with which the tests try the package. They
// come from the npm registry, at the versions of runtimes/package-lock.json, once, into
// `target/test-tools`.

import path from 'node:path';

import { installLocked } from './locked.mjs';

/** Installs what a fresh clone lacks. Returns the path of each program. */
export function installRuntimes() {
  const programs = path.join(installLocked('scripts/runtimes'), 'node_modules/.bin');
  return {
    bun: path.join(programs, 'bun'),
    deno: path.join(programs, 'deno'),
    pnpm: path.join(programs, 'pnpm'),
    yarn: path.join(programs, 'yarn'),
  };
}
