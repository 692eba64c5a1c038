// Names the platform of this process, as npm/ and the packages of the native parts do.

import fs from 'node:fs';

/** More program headers than any executable has. Their number in a file is only a claim. */
const MAX_PROGRAM_HEADERS = 64;
const MAX_PATH_BYTES = 4096;
const PROGRAM_HEADER_BYTES = 56;
const PT_INTERP = 3;

/** Reads up to `length` bytes of an open file. */
function read(file, position, length) {
  const bytes = Buffer.alloc(length);
  return bytes.subarray(0, fs.readSync(file, bytes, 0, length, position));
}

/** Returns the loader that a 64-bit ELF file requests, or null if it requests none. */
function elfInterpreter(file) {
  const header = read(file, 0, 64);
  if (header.toString('latin1', 0, 6) !== '\x7fELF\x02\x01') return null;
  const count = Math.min(header.readUInt16LE(56), MAX_PROGRAM_HEADERS);
  const table = read(file, Number(header.readBigUInt64LE(32)), count * PROGRAM_HEADER_BYTES);
  for (let at = 0; at + PROGRAM_HEADER_BYTES <= table.length; at += PROGRAM_HEADER_BYTES) {
    if (table.readUInt32LE(at) !== PT_INTERP) continue;
    const length = Math.min(Number(table.readBigUInt64LE(at + 32)), MAX_PATH_BYTES);
    return read(file, Number(table.readBigUInt64LE(at + 8)), length).toString('latin1');
  }
  return null;
}

/**
 * Returns the C libraries that this process may have. It is the one whose loader the executable
 * requests, be it of Node, Bun, Deno or a compiled program. An executable that requests none could
 * have either.
 *
 * `process.report` has the answer too, but it resolves the names of all open connections, which can
 * block the event loop for minutes.
 */
function libcs() {
  let file;
  try {
    file = fs.openSync(process.execPath, 'r');
    const interpreter = elfInterpreter(file) ?? '';
    if (interpreter.includes('ld-musl-')) return ['musl'];
    if (interpreter.includes('ld-linux-')) return ['gnu'];
  } catch {
    // Nothing is known about an executable that cannot be read.
  } finally {
    if (file !== undefined) fs.closeSync(file);
  }
  return ['gnu', 'musl'];
}

/** Returns the names that the platform of this process may have, most often one. */
export function platformNames() {
  const name = `${process.platform}-${process.arch}`;
  return process.platform === 'linux' ? libcs().map((libc) => `${name}-${libc}`) : [name];
}

/** Returns the name of this machine's directory in npm/, for scripts and tests. */
export const platformName = () => platformNames()[0];
