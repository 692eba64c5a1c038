// A process that writes to the database during a backup: node writer.mjs DATABASE
//
// Commits a small transaction every few milliseconds. Prints `ready` after the first. When standard
// input ends, prints the number of later commits and the time of the longest in milliseconds, as
// JSON.

import { setTimeout } from 'node:timers/promises';

import Database from 'better-sqlite3';

const PAUSE_MS = 5;

const db = new Database(process.argv[2], { timeout: 120_000 });
const insert = db.prepare(
  "INSERT INTO nodes (id, title, content) VALUES (?, 'Written meanwhile', ?)",
);
let ended = false;
process.stdin.on('end', () => {
  ended = true;
});
process.stdin.resume();

/** Commits one row. Returns the time that this took, in milliseconds. */
function commit(number) {
  const began = performance.now();
  insert.run(`meanwhile-${number}`, 'A few words about what was found. '.repeat(10));
  return performance.now() - began;
}

commit(0);
console.log('ready');
let commits = 0;
let longestMs = 0;
while (!ended) {
  commits += 1;
  longestMs = Math.max(longestMs, commit(commits));
  await setTimeout(PAUSE_MS);
}
db.close();
console.log(JSON.stringify({ commits, longestMs }));
