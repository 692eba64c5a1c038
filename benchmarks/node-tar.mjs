// The usual way inside Node: better-sqlite3's backup() into a copy, then npm's tar with gzip. All
// of them have their default settings.
//
//   node --expose-gc node-tar.mjs PROJECT STORE COPY RESTORED CALL

import { createHash } from 'node:crypto';
import { cpSync, createReadStream, readdirSync, rmSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';

import Database from 'better-sqlite3';
import * as tar from 'tar';

import { measureCall } from './in-host.mjs';

const [, , project, store, copy, restored, call] = process.argv;
const below = (dir) => [
  dir,
  ...readdirSync(dir, { recursive: true }).map((name) => path.join(dir, name)),
];

async function sync(files) {
  for (const file of files) {
    const handle = await open(file);
    await handle.sync();
    await handle.close();
  }
}

function newest() {
  const archives = readdirSync(store).map((name) => path.join(store, name));
  return archives.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)[0];
}

const calls = {
  async backup() {
    const db = new Database(path.join(project, '.kg/knowledge.db'), { readonly: true });
    await db.backup(path.join(copy, 'knowledge.db'));
    db.close();
    for (const name of readdirSync(path.join(project, '.kg')).filter(
      (name) => !name.startsWith('knowledge.db'),
    )) {
      cpSync(path.join(project, '.kg', name), path.join(copy, name), { recursive: true });
    }
    const file = path.join(store, `${Date.now()}.tar.gz`);
    await tar.create({ gzip: { level: 6 }, file, cwd: copy }, ['.']);
    for (const name of readdirSync(copy)) rmSync(path.join(copy, name), { recursive: true });
    await sync([file, store]);
  },
  async verify() {
    const file = newest();
    await tar.list({ file, strict: true });
    await pipeline(createReadStream(file), createHash('sha256'));
  },
  async restore() {
    await tar.extract({ file: newest(), cwd: restored, strict: true });
    await sync(below(restored));
  },
};
await measureCall(calls[call]);
