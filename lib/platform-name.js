'use strict';

const fs = require('node:fs');

/** How much of an executable to read: the program headers of an ELF file, and the name of its loader, are at its start. */
const HEADER_BYTES = 4096;

/**
 * Whether this Node runs on musl (Alpine Linux), as the loader that its executable asks for says. `process.report` would say
 * too, but it looks up the names of all open connections, which can block the event loop for minutes.
 */
function isMusl() {
  let file;
  try {
    file = fs.openSync(process.execPath, 'r');
    const header = Buffer.alloc(HEADER_BYTES);
    return header.subarray(0, fs.readSync(file, header, 0, HEADER_BYTES, 0)).includes('/ld-musl-');
  } catch {
    return false;
  } finally {
    if (file !== undefined) fs.closeSync(file);
  }
}

/** The name of this machine's folder in npm/ and of its package. */
function platformName() {
  const name = `${process.platform}-${process.arch}`;
  return process.platform === 'linux' ? `${name}-${isMusl() ? 'musl' : 'gnu'}` : name;
}

module.exports = { platformName };
