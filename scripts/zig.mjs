// Compiles for other systems: cargo-zigbuild makes Zig the C compiler and linker of cargo.

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { macosSdk } from './macos-sdk.mjs';
import { OLDEST_MACOS, root } from './platforms.mjs';
import { installWheel } from './wheels.mjs';

const ZIG = 'ziglang==0.17.1';
const ZIGBUILD = 'cargo-zigbuild==0.24.1';

/** Runs a command in the repository and shows its output. If it fails, ends this process. */
function must(command, args, env) {
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (status === 0) return;
  console.error(`${[command, ...args].join(' ')} failed${error ? `: ${error.message}` : ''}`);
  process.exit(1);
}

/**
 * Zig's linker exports every function of a library for macOS, and so keeps those that nothing calls.
 * The linker of the Rust toolchain does not.
 */
function forMacos(target, zig) {
  const flags = ['-Clinker=rust-lld', '-Clinker-flavor=ld64.lld'];
  return {
    options: ['--config', `target.${target}.rustflags=${JSON.stringify(flags)}`],
    env: { MACOSX_DEPLOYMENT_TARGET: OLDEST_MACOS, SDKROOT: macosSdk(zig) },
  };
}

/**
 * Runs a command of cargo, such as `zigbuild`, for a Rust target. `target` may end in a version of
 * glibc.
 */
export function cargoFor(target, command, options, env) {
  must('rustup', ['target', 'add', target.replace(/\.[\d.]+$/, '')]);
  const zig = path.join(installWheel(ZIG), 'ziglang');
  const special = target.endsWith('-darwin') ? forMacos(target, zig) : { options: [], env: {} };
  const args = [command, '--locked', '--target', target, ...options, ...special.options];
  must('cargo-zigbuild', args, {
    PATH: `${path.join(installWheel(ZIGBUILD), 'bin')}:${process.env.PATH}`,
    CARGO_ZIGBUILD_ZIG_PATH: path.join(zig, 'zig'),
    ...special.env,
    ...env,
  });
}
