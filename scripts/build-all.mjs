// `npm run build:all`: builds the native parts of every platform on Linux x64, into npm/<platform>/,
// and checks them.
//
//   npm run build:all -- [PLATFORM ...]
//
// Zig has the headers of each platform, and glibc in each version; macos-sdk/ lists what it lacks of
// macOS. Where a platform can be run here, natively or emulated, its packages are tried too.

import { copyFileSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';

import { platformName } from '../lib/platform-name.mjs';
import { partProblems } from './binaries.mjs';
import makeCommonJs from './commonjs.mjs';
import { ADDON, OLDEST_GLIBC, platforms, PROGRAM, root } from './platforms.mjs';
import { smoke } from './smoke.mjs';
import { isRunnable } from './systems.mjs';
import { cargoFor } from './zig.mjs';

/** Builds the native parts of a platform and copies them to npm/. */
function build(platform) {
  const { target } = platforms[platform];
  const oldest = target.endsWith('-gnu') ? `${target}.${OLDEST_GLIBC}` : target;
  cargoFor(oldest, 'build', ['--profile', 'dist']);
  const library = target.endsWith('-darwin') ? 'libkg_backup.dylib' : 'libkg_backup.so';
  const built = path.join(process.env.CARGO_TARGET_DIR ?? path.join(root, 'target'), target);
  for (const [from, part] of [
    [library, ADDON],
    ['kg', PROGRAM],
  ]) {
    const to = path.join(root, 'npm', platform, part);
    // A running process keeps the old file.
    rmSync(to, { force: true });
    copyFileSync(path.join(built, 'dist', from), to);
  }
}

const named = process.argv.slice(2);
const unknown = named.filter((platform) => !(platform in platforms));
if (unknown.length > 0) {
  console.error(`Unknown: ${unknown.join(', ')}. Known: ${Object.keys(platforms).join(', ')}`);
  process.exit(2);
}
/** Builds a platform, checks and tries it. Returns a line of the table and what is wrong. */
function make(platform) {
  const began = performance.now();
  build(platform);
  const seconds = Math.round((performance.now() - began) / 1000);
  const directory = path.join(root, 'npm', platform);
  const problems = partProblems(platform, directory);
  const megabytes = (part) => (statSync(path.join(directory, part)).size / 1e6).toFixed(1);
  let trial = 'only built';
  if (problems.length === 0 && (platform === platformName() || isRunnable(platform))) {
    try {
      trial = `passes in Node ${smoke(platform).node}`;
    } catch (error) {
      problems.push(`${platform}: ${error.message}`);
    }
  }
  const sizes = `kg ${megabytes(PROGRAM)} MB, addon ${megabytes(ADDON)} MB`;
  return { line: `${platform.padEnd(18)} ${sizes}, ${seconds} s, ${trial}`, problems };
}

await makeCommonJs();
const made = (named.length > 0 ? named : Object.keys(platforms)).map(make);
console.log(`\n${made.map(({ line }) => line).join('\n')}`);
const problems = made.flatMap((one) => one.problems);
if (problems.length > 0) {
  console.error(`\n${problems.join('\n')}`);
  process.exitCode = 1;
}
