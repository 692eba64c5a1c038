// `npm run check:windows`: checks that the Rust code compiles for Windows. It makes no program.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { cargoFor } from './zig.mjs';

// The crate napi looks for the library of Node.js, which only a linker would read.
const directory = mkdtempSync(path.join(os.tmpdir(), 'kg-libnode-'));
process.on('exit', () => rmSync(directory, { recursive: true }));
writeFileSync(path.join(directory, 'libnode.dll'), '');
cargoFor('x86_64-pc-windows-gnu', 'check', [], { LIBNODE_PATH: directory });
