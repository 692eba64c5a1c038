// A directory with the same handles as the object stores of the tests.

import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

export async function startDirectory() {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-directory-'));
  const at = (name) => path.join(dir, name);
  return {
    objects: {
      async names(prefix) {
        try {
          return readdirSync(at(prefix)).sort();
        } catch (error) {
          if (error.code !== 'ENOENT') throw error;
          return [];
        }
      },
      async read(name) {
        try {
          return readFileSync(at(name));
        } catch (error) {
          if (error.code !== 'ENOENT') throw error;
          return null;
        }
      },
      async write(name, bytes) {
        mkdirSync(path.dirname(at(name)), { recursive: true });
        writeFileSync(at(name), bytes);
      },
      async remove(name) {
        rmSync(at(name));
      },
    },
    url: at,
    storageOptions: undefined,
    env: {},
    async stop() {
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
