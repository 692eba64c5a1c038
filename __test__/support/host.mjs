// A process that has a database open and runs statements: node host.mjs DATABASE
//
// Each input line is a statement in JSON. Each answer is a line of JSON: the rows, or
// `{"error": …}`. The process ends at the end of standard input. It prints `ready` once it has
// opened and read the database.

import { createInterface } from 'node:readline';

import Database from 'better-sqlite3';

const db = new Database(process.argv[2], { timeout: 30_000 });
// Keeps committed pages in the WAL until this process ends it.
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
