// Runs all contenders through the steps in turn, so that drift of the machine affects all of them
// alike.
//
// Round 0 is not counted: it warms the caches, and the memory is sampled in it. Each contender
// finds the project in the page cache and a disk without pending writes. It ends when the data that
// it kept is synced. In each round each contender has a fresh copy of the project.

import { execFileSync, spawn } from 'node:child_process';
import { lstatSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { once } from 'node:events';
import path from 'node:path';

import Database from 'better-sqlite3';

import { root } from '../scripts/setup.mjs';
import { places } from './contenders.mjs';
import { run } from './run.mjs';

/**
 * The time limit next to a writer, because some contenders never end there. It is this multiple of
 * the time without a writer, and at least this many seconds.
 */
const LIMIT_FACTOR = 2;
const LEAST_LIMIT_SECONDS = 10;

export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Makes a copy of the project and empty directories for one contender. Returns its variables. */
async function prepare(contender, project, dir) {
  const env = places(dir, path.join(dir, 'project'));
  rmSync(dir, { recursive: true, force: true });
  for (const place of [env.STORE, env.COPY, env.RESTORED]) mkdirSync(place, { recursive: true });
  execFileSync('cp', ['-a', project, env.PROJECT]);
  if (contender.prepare) await run(contender.prepare, env);
  execFileSync('sync');
  return env;
}

/**
 * Returns the total size in bytes of the files below a directory. A file with several names counts
 * once.
 */
function storedBytes(dir) {
  const files = readdirSync(dir, { recursive: true }).map((name) =>
    lstatSync(path.join(dir, name)),
  );
  return [
    ...new Map(files.filter((file) => file.isFile()).map(({ ino, size }) => [ino, size])).values(),
  ].reduce((a, b) => a + b, 0);
}

/**
 * Changes the text of `percent` of the rows, spread over the table. The lengths stay the same.
 * `turn` selects a different set of rows each time.
 */
function change(project, percent, turn) {
  const db = new Database(path.join(project, '.kg/knowledge.db'));
  const perMille = percent * 10;
  db.prepare(
    "UPDATE nodes SET content = substr(content, 9) || ' changed' WHERE (rowid * 7919 + ?) % 1000 < ?",
  ).run(turn * perMille, perMille);
  db.close();
}

/**
 * Runs one contender through all of its steps. Returns the measurements by the keys of the steps.
 */
async function pass(contender, steps, project, dir, options) {
  const env = await prepare(contender, project, dir);
  const taken = {};
  for (const [turn, { key, call, changePercent }] of steps.entries()) {
    if (!contender[call]) continue;
    if (changePercent) change(env.PROJECT, changePercent, turn);
    execFileSync('sync');
    const before = storedBytes(env.STORE);
    taken[key] = await run(contender[call], env, options);
    taken[key].keptBytes = storedBytes(env.STORE) - before;
  }
  rmSync(dir, { recursive: true });
  return taken;
}

/** Appends the fields of one run to the lists over all runs. */
function collect(lists, taken) {
  for (const [field, value] of Object.entries(taken)) (lists[field] ??= []).push(value);
}

/**
 * Runs all contenders through all steps, `runs` times. Returns a list of `{ key, name, steps }`. A
 * step has the memory of round 0. Each of its other fields is a list over the runs.
 */
export async function rounds(contenders, steps, project, dir, runs) {
  const results = contenders.map(({ key, name }) => ({ key, name, steps: {} }));
  for (let round = 0; round <= runs; round += 1) {
    for (const [index, contender] of contenders.entries()) {
      console.error(`${path.basename(project)}, round ${round} of ${runs}: ${contender.name}`);
      const taken = await pass(contender, steps, project, dir, { sampled: round === 0 });
      for (const [key, step] of Object.entries(taken)) {
        const { peakBytes, baseBytes, ...figures } = step;
        if (round === 0) results[index].steps[key] = { memory: { peakBytes, baseBytes } };
        else collect(results[index].steps[key], figures);
      }
    }
  }
  return results;
}

/**
 * Runs a writer on a copy of the project during `work`. Returns the result of `work` and the
 * longest commit of the writer.
 */
async function besideWriter(env, work) {
  const child = spawn(
    process.execPath,
    [path.join(root, 'benchmarks/writer.mjs'), path.join(env.PROJECT, '.kg/knowledge.db')],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  let printed = '';
  child.stdout.on('data', (text) => (printed += text));
  const closed = once(child, 'close');
  await Promise.race([once(child.stdout, 'data'), closed]);
  let result;
  try {
    result = await work();
  } finally {
    child.stdin.end();
    await closed;
  }
  return { ...result, longestMs: JSON.parse(printed.trim().split('\n').at(-1)).longestMs };
}

/**
 * Measures the longest commit of a writer while each contender makes a backup, and while no backup
 * runs. Adds `writer` to each of `results`. Returns the times without a backup, in milliseconds.
 */
export async function writers(contenders, results, project, dir, runs) {
  const quiet = results.map(({ steps }) => median(steps.backup.seconds));
  const alone = [];
  for (let round = 0; round < runs; round += 1) {
    console.error(`${path.basename(project)}, beside a writer, round ${round + 1} of ${runs}`);
    const nobody = await prepare({}, project, dir);
    const wait = () => new Promise((resolve) => setTimeout(resolve, Math.max(...quiet) * 1000));
    alone.push((await besideWriter(nobody, wait)).longestMs);
    for (const [index, contender] of contenders.entries()) {
      const env = await prepare(contender, project, dir);
      const limitSeconds = Math.max(LEAST_LIMIT_SECONDS, LIMIT_FACTOR * quiet[index]);
      const { seconds, longestMs, isUnfinished } = await besideWriter(env, () =>
        run(contender.backup, env, { limitSeconds }),
      );
      collect((results[index].writer ??= {}), { seconds, longestMs, isUnfinished });
    }
  }
  rmSync(dir, { recursive: true });
  return alone;
}
