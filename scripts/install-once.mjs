// Installs tools that only some runs need, each once, into `target/test-tools`.

import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');
export const tools = path.join(root, 'target/test-tools');

/**
 * Fills a directory in `tools` unless an earlier run did. `fill` receives an empty directory, which
 * gets its name only when it is complete. Returns the path of the directory.
 *
 * @param {string} name
 * @param {(directory: string) => void} fill
 */
export function installOnce(name, fill) {
  const installed = path.join(tools, name);
  if (existsSync(installed)) return installed;
  const partial = `${installed}.${process.pid}`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  fill(partial);
  try {
    renameSync(partial, installed);
  } catch (error) {
    // Another process may have installed it meanwhile.
    if (!existsSync(installed)) throw error;
    rmSync(partial, { recursive: true });
  }
  return installed;
}
