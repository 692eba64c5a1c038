// Measures single `kg` commands. Each one gives a line of the result.

import { execFileSync, spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import path from 'node:path';

import { nativeParts } from '../lib/native-parts.mjs';
import { median } from './measure.mjs';
import { spread } from './tables.mjs';

const { kgPath } = nativeParts();
const SMALL_RUNS = 10;
/** The SQL with which SQLite's own shell makes the same checks. */
const SHELL_CHECKS = `PRAGMA integrity_check; PRAGMA foreign_key_check;
  INSERT INTO nodes_fts(nodes_fts, rank) VALUES ('integrity-check', 1);`;

/**
 * Runs `works` in turn in each of `runs` rounds. Returns the times of each in seconds. One more
 * round before them is not counted.
 */
function timed(works, runs) {
  const times = works.map(() => []);
  for (let round = 0; round <= runs; round += 1) {
    for (const [index, work] of works.entries()) {
      const began = performance.now();
      work();
      if (round > 0) times[index].push((performance.now() - began) / 1000);
    }
  }
  return times;
}

/** Measures the backup of a small project, run as a command as cron does. */
export function commandLine(project, store) {
  const backUp = () => {
    rmSync(store, { recursive: true, force: true });
    execFileSync(kgPath, ['diag', 'backup', '--quiet', '--output', store], {
      cwd: project,
    });
  };
  const [times] = timed([backUp], SMALL_RUNS);
  rmSync(store, { recursive: true });
  return `\`kg diag backup\` of a project of 2 MB: ${spread(times, 3)} s, ${SMALL_RUNS} runs`;
}

/** Compares a check of the whole database with the same checks by the sqlite3 shell. */
export function checks(project, runs) {
  const quiet = { stdio: ['ignore', 'ignore', 'inherit'] };
  const ours = () =>
    execFileSync(
      kgPath,
      ['diag', 'integrity', '--no-files', '--no-vectors', '--project', project],
      quiet,
    );
  const label = '`kg diag integrity --no-files --no-vectors`';
  if (spawnSync('sqlite3', ['--version']).error)
    return `${label}: ${spread(timed([ours], runs)[0])} s (no sqlite3 here to compare with)`;
  const shell = () =>
    execFileSync('sqlite3', [path.join(project, '.kg/knowledge.db'), SHELL_CHECKS], quiet);
  const [own, others] = timed([ours, shell], runs);
  const ratio = (median(own) / median(others)).toFixed(2);
  return `${label}: ${spread(own)} s; integrity_check, foreign_key_check and FTS5's integrity-check in the sqlite3 shell: ${spread(others)} s; ${ratio} times that`;
}
