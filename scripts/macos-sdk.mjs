// What a linker needs from macOS on another system: the names in its libraries.

import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { installOnce, root } from './install-once.mjs';

const FRAMEWORKS = path.join(root, 'scripts/macos-sdk');

/**
 * The libraries that a Rust program is linked with. `c` and `m` are other names of libSystem. The
 * crate libc also names `iconv`, and no code calls a function of it.
 */
const LIBRARIES = ['System', 'c', 'iconv', 'm'];

/**
 * Makes a directory for `SDKROOT` from the files in `macos-sdk/` and Zig's list of the names in
 * libSystem. Returns its path.
 *
 * @param {string} zig the directory of Zig
 */
export function macosSdk(zig) {
  // The linker does not know the variants of processors that only Apple's own programs are for.
  const libSystem = readFileSync(path.join(zig, 'lib/libc/darwin/libSystem.tbd'), 'utf8')
    .replaceAll(/arm64e(\.x1)?-/g, 'arm64-')
    .replaceAll('x86_64h-', 'x86_64-');
  const files = Object.fromEntries(LIBRARIES.map((name) => [`usr/lib/lib${name}.tbd`, libSystem]));
  for (const name of readdirSync(FRAMEWORKS, { recursive: true }))
    if (name.endsWith('.tbd')) files[name] = readFileSync(path.join(FRAMEWORKS, name), 'utf8');

  const digest = createHash('sha256').update(JSON.stringify(files)).digest('hex');
  return installOnce(`macos-sdk-${digest.slice(0, 12)}`, (directory) => {
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(path.dirname(path.join(directory, name)), { recursive: true });
      writeFileSync(path.join(directory, name), text);
    }
  });
}
