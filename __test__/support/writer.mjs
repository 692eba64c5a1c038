// A process that writes all the time: node writer.mjs DATABASE
//
// Each transaction adds a node, increments the counter that must match, and updates another node.
// Prints `ready` after the first. At the end of standard input it prints one line of JSON: the
// number of transactions and the longest duration.

import Database from 'better-sqlite3';

const db = new Database(process.argv[2], { timeout: 30_000 });
const add = db.prepare('INSERT INTO nodes (id, title, content) VALUES (?, ?, ?)');
const count = db.prepare(
  "INSERT INTO metadata VALUES ('written', '1') ON CONFLICT DO UPDATE SET value = value + 1",
);
const touch = db.prepare("UPDATE nodes SET content = content || ' more' WHERE id = ?");

let written = 0;
let longestMs = 0;
const write = db.transaction(() => {
  add.run(`w${written}`, `Written ${written}`, `content ${written} `.repeat(20));
  touch.run(`n${written % 100}`);
  count.run();
});

let ended = false;
process.stdin.on('end', () => {
  ended = true;
});
process.stdin.resume();

function step() {
  if (ended) {
    db.close();
    console.log(JSON.stringify({ written, longestMs }));
    return;
  }
  const began = performance.now();
  write();
  longestMs = Math.max(longestMs, performance.now() - began);
  written += 1;
  if (written === 1) console.log('ready');
  setImmediate(step);
}
step();
