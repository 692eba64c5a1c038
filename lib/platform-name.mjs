import fs from 'node:fs';

/**
 * The number of bytes to read from an executable. The program headers of an ELF file and the name
 * of its loader are at its start.
 */
const HEADER_BYTES = 4096;

/**
 * Returns whether this Node runs on musl (Alpine Linux), according to the loader that its
 * executable requests. `process.report` has the answer too, but it resolves the names of all open
 * connections, which can block the event loop for minutes.
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

/**
 * Returns the name of this machine's directory in npm/, which is also the suffix of its package.
 */
export function platformName() {
  const name = `${process.platform}-${process.arch}`;
  return process.platform === 'linux' ? `${name}-${isMusl() ? 'musl' : 'gnu'}` : name;
}
