// A process that has a database open and does what it is told: node host.mjs DATABASE
//
// Reads lines of JSON, each a statement; answers each with a line of JSON: the rows, or `{"error": …}`. Ends at the end of standard
// input. Says `ready` once the database is open and was read.

import { createInterface } from 'node:readline';

import Database from 'better-sqlite3';

const db = new Database(process.argv[2], { timeout: 30_000 });
// What is committed stays in the WAL, as long as this process does not end it.
db.pragma('wal_autocheckpoint = 0');
db.prepare('SELECT count(*) FROM sqlite_schema').get();
console.log('ready');

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(answer(JSON.parse(line))));
}
db.close();

function answer(sql) {
  try {
    const statement = db.prepare(sql);
    return statement.reader ? statement.all() : statement.run();
  } catch (error) {
    return { error: error.message };
  }
}
