// Takes all contenders through the steps, in turn, so that a drift of the machine hits all of them alike.
//
// Round 0 is not counted: it warms caches, and the memory is looked at in it. Everyone finds the project in the page cache and a disk
// with nothing left to write, and ends when what it kept is synced. In each round each contender has a fresh copy of the project.

import { execFileSync, spawn } from 'node:child_process';
import { cpSync, lstatSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { once } from 'node:events';
import path from 'node:path';

import Database from 'better-sqlite3';

import { root } from '../scripts/setup.mjs';
import { places } from './contenders.mjs';
import { run } from './run.mjs';

/** Beside a writer some never end: they are given this much longer than without one, and at least so long. */
const LIMIT_FACTOR = 2;
const LEAST_LIMIT_SECONDS = 10;

export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** A copy of the project and empty places for one contender. */
async function prepare(contender, project, dir) {
  const env = places(dir, path.join(dir, 'project'));
  rmSync(dir, { recursive: true, force: true });
  for (const place of [env.STORE, env.COPY, env.RESTORED]) mkdirSync(place, { recursive: true });
  cpSync(project, env.PROJECT, { recursive: true });
  if (contender.prepare) await run(contender.prepare, env);
  execFileSync('sync');
  return env;
}

/** Bytes of the files below a directory, each once however many names it has. */
function storedBytes(dir) {
  const files = readdirSync(dir, { recursive: true }).map((name) =>
    lstatSync(path.join(dir, name)),
  );
  return [
    ...new Map(files.filter((file) => file.isFile()).map(({ ino, size }) => [ino, size])).values(),
  ].reduce((a, b) => a + b, 0);
}

/** Changes the text of so many rows, spread over the table. The length stays. `turn` chooses another set each time. */
function change(project, percent, turn) {
  const db = new Database(path.join(project, '.kg/knowledge.db'));
  const perMille = percent * 10;
  db.prepare(
    "UPDATE nodes SET content = substr(content, 9) || ' changed' WHERE (rowid * 7919 + ?) % 1000 < ?",
  ).run(turn * perMille, perMille);
  db.close();
}

/** One contender through all steps it has. Returns what each took, by the keys of the steps. */
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

/** Adds the fields of one run to lists over all runs. */
function collect(lists, taken) {
  for (const [field, value] of Object.entries(taken)) (lists[field] ??= []).push(value);
}

/** Everyone through all steps, `runs` times. Returns a list of `{ key, name, steps }`; a step has the
 * memory of round 0, and each other field is a list over the runs. */
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

/** Lets a writer work with a copy of the project during `work`. Returns what `work` returned and the writer's longest commit. */
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
 * The longest commit of a writer while each contender makes a backup, and with nobody there. Adds `writer` to each of `results`, and
 * returns the times with nobody there.
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
