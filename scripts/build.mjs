// Builds the addon and `kg` and copies both into npm/<platform>/, where lib/native-parts.mjs looks
// for them. `--dev` makes the build that the tests need: it compiles faster and keeps the checks of
// debug builds.

import { spawnSync } from 'node:child_process';
import { copyFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { platformName } from '../lib/platform-name.mjs';

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');

const isDev = process.argv.includes('--dev');
const cargo = spawnSync('cargo', ['build', '--locked', ...(isDev ? [] : ['--release'])], {
  cwd: root,
  stdio: 'inherit',
});
if (cargo.error)
  console.error(
    `cargo could not be started (${cargo.error.message}). Install Rust: https://rustup.rs`,
  );
if (cargo.status !== 0) process.exit(1);

const library =
  { darwin: 'libkg_backup.dylib', win32: 'kg_backup.dll' }[process.platform] ?? 'libkg_backup.so';
const target = path.join(root, 'npm', platformName());
for (const [built, name] of [
  [library, 'knowledge-graph-agent.node'],
  ['kg', 'kg'],
]) {
  const to = path.join(target, name);
  // Remove the old file first. A running process keeps it; a copy into it would change the code of
  // that process.
  rmSync(to, { force: true });
  copyFileSync(
    path.join(
      process.env.CARGO_TARGET_DIR ?? path.join(root, 'target'),
      isDev ? 'debug' : 'release',
      built,
    ),
    to,
  );
}
