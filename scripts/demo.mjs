// `npm run demo`: demonstrates the main job on real input and prints each step.
//
// Makes a project from the Markdown of this repository and backs it up while another process writes
// to it. Then verifies the backup, damages the database, restores it and checks the result.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';

import { prepare, require, root } from './setup.mjs';

await prepare();
const Database = require('better-sqlite3');
const { createBackupManager } = require('../index.js');

const base = mkdtempSync(path.join(os.tmpdir(), 'kg-demo-'));
const project = path.join(base, 'project');
const database = path.join(project, '.kg/knowledge.db');

function say(text) {
  console.log(text);
}

async function timed(work) {
  const began = performance.now();
  const result = await work();
  return [result, `${(performance.now() - began).toFixed(0)} ms`];
}

function markdownBelow(dir) {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    if (['node_modules', 'target', '.git', 'benchmarks'].includes(entry.name)) return [];
    const full = path.join(dir, entry.name);
    return entry.isDirectory() ? markdownBelow(full) : entry.name.endsWith('.md') ? [full] : [];
  });
}

function makeProject() {
  mkdirSync(path.dirname(database), { recursive: true });
  writeFileSync(
    path.join(project, '.kg/config.json'),
    '{"database":{"path":".kg/knowledge.db"}}\n',
  );
  const db = new Database(database);
  db.exec(`PRAGMA journal_mode = wal;
    CREATE TABLE nodes (id TEXT PRIMARY KEY, path TEXT, title TEXT, content TEXT);
    CREATE TABLE edges (id INTEGER PRIMARY KEY, source_id TEXT REFERENCES nodes(id), target_id TEXT, type TEXT);
    CREATE TABLE metadata (key TEXT PRIMARY KEY, value INTEGER);
    INSERT INTO metadata VALUES ('written', 0);`);
  const node = db.prepare('INSERT INTO nodes VALUES (?, ?, ?, ?)');
  const edge = db.prepare("INSERT INTO edges (source_id, target_id, type) VALUES (?, ?, 'next')");
  let previous;
  db.transaction(() => {
    for (const file of markdownBelow(root)) {
      const sections = readFileSync(file, 'utf8').split(/^(?=#+ )/m);
      for (const [n, section] of sections.entries()) {
        const id = `${path.relative(root, file)}#${n}`;
        node.run(id, path.relative(root, file), section.split('\n', 1)[0], section);
        if (previous) edge.run(previous, id);
        previous = id;
      }
    }
  })();
  const nodes = db.prepare('SELECT count(*) FROM nodes').pluck().get();
  db.close();
  return nodes;
}

const WRITER = `
  const db = require('better-sqlite3')(process.argv[1]);
  const node = db.prepare('INSERT INTO nodes VALUES (?, ?, ?, ?)');
  const count = db.prepare("UPDATE metadata SET value = value + 1 WHERE key = 'written'");
  const write = db.transaction((n) => { node.run('w' + n, 'w', 'w', 'written '.repeat(50)); count.run(); });
  let n = 0, ended = false;
  process.stdin.on('end', () => { ended = true; }).resume();
  (function step() {
    if (ended) { db.close(); console.log(n); return; }
    write(n += 1);
    if (n === 100) console.log('writing');
    setImmediate(step);
  })();`;

async function startWriter() {
  const child = spawn(process.execPath, ['-e', WRITER, database], {
    cwd: root,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return async () => {
    child.stdin.end();
    const { value } = await lines.next();
    await once(child, 'exit');
    return Number(value);
  };
}

function damage() {
  const size = statSync(database).size;
  const noise = Buffer.alloc(Math.floor(size / 4), 0xa5);
  const file = openSync(database, 'r+');
  writeSync(file, noise, 0, noise.length, Math.floor(size / 3));
  closeSync(file);
  return noise.length;
}

function integrity() {
  const db = new Database(database);
  try {
    const [{ integrity_check: found }] = db.pragma('integrity_check');
    return found.split('\n')[0];
  } catch (error) {
    return error.message;
  } finally {
    db.close();
  }
}

try {
  say(`\nA project: ${makeProject()} nodes from the Markdown of this repository, in ${project}`);
  const stop = await startWriter();
  say('Another process now writes to its database, as fast as it can.');

  const manager = createBackupManager({
    projectRoot: project,
    backupDir: path.join(base, 'backups'),
  });
  const [backup, saving] = await timed(() => manager.createBackup({ description: 'The demo' }));
  say(`Backed up beside it in ${saving}: ${backup.path}`);
  say(
    `  ${backup.size} bytes, ${backup.stats.nodeCount} nodes, source database: ${backup.integrity.status}`,
  );
  const [whole, verifying] = await timed(() => manager.verifyBackup(backup.id));
  say(`Verified in ${verifying}: ${whole ? 'every byte is as it was written' : 'DAMAGED'}`);
  say(`The writer made ${await stop()} commits meanwhile and never failed.`);

  say(`\nNow ${damage()} bytes in the middle of the database are overwritten with noise.`);
  say(`SQLite says: ${integrity()}`);

  const [result, restoring] = await timed(() =>
    manager.restore({ backupId: 'latest', overwrite: true }),
  );
  say(
    `\nRestored ${result.filesRestored} files in ${restoring}; what they replaced is kept in ${result.safetyCopy}`,
  );
  const db = new Database(database, { readonly: true });
  const nodes = db.prepare('SELECT count(*) FROM nodes').pluck().get();
  const written = db
    .prepare("SELECT count(*) = (SELECT value FROM metadata) FROM nodes WHERE path = 'w'")
    .pluck()
    .get();
  db.close();
  say(`SQLite says: ${integrity()}`);
  const good = nodes === backup.stats.nodeCount && written === 1 && integrity() === 'ok';
  say(
    `${nodes} nodes, as in the backup; each of the writer's transactions is there whole or not at all: ${written === 1}`,
  );
  say(good ? '\nAll is well.' : '\nSomething is WRONG.');
  process.exitCode = good ? 0 : 1;
} finally {
  rmSync(base, { recursive: true });
}
