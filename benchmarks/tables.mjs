// Formats the results of one size as Markdown: three tables, with a row for each contender.

import { median } from './measure.mjs';
import { STEPS } from './steps.mjs';

const NONE = '–';

/** Returns the median, followed by the minimum and the maximum in parentheses. */
export function spread(numbers, digits = 2) {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)].map((number) =>
    number.toFixed(digits),
  );
  return `${median(numbers).toFixed(digits)} (${least}–${most})`;
}

function table(head, rows) {
  return [head, head.map(() => '---'), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n');
}

const seconds = (step) => (step ? spread(step.seconds) : NONE);
const megabytes = (bytes) => {
  const value = bytes / 1e6;
  return value.toFixed(value < 0.1 ? 4 : value < 10 ? 2 : 1);
};
const kept = (step) => (step ? megabytes(median(step.keptBytes)) : NONE);
const ratio = (own, other) =>
  own === undefined || other === undefined ? NONE : (other / own).toFixed(2);

/**
 * Returns a table of the times and sizes of single steps, with their ratios to those of the first
 * contender.
 */
function calls(contenders) {
  const [own] = contenders;
  const rows = contenders.map(({ name, steps }) => {
    const times = ['backup', 'verify', 'restore'].flatMap((key) => [
      seconds(steps[key]),
      ratio(median(own.steps[key].seconds), median(steps[key].seconds)),
    ]);
    const bytes = median(steps.backup.keptBytes);
    return [
      name,
      ...times,
      megabytes(bytes),
      (bytes / median(own.steps.backup.keptBytes)).toFixed(3),
    ];
  });
  return table(
    ['', 'backup s', 'ratio', 'verify s', 'ratio', 'restore s', 'ratio', 'MB kept', 'ratio'],
    rows,
  );
}

/** Returns a table of the costs of the next backup. */
function next(contenders) {
  const later = STEPS.filter(({ key }) => /^(full|incremental)/.test(key));
  const rows = contenders.map(({ name, steps }) => [
    name,
    ...later.flatMap(({ key }) => [seconds(steps[key]), kept(steps[key])]),
  ]);
  return table(['', ...later.flatMap(({ label }) => [`${label}: s`, 'MB'])], rows);
}

function memory({ memory: { peakBytes, baseBytes } }) {
  const peak = (peakBytes / 2 ** 20).toFixed(0);
  return baseBytes
    ? `${peak} (${Math.max(0, (peakBytes - baseBytes) / 2 ** 20).toFixed(0)})`
    : peak;
}

/**
 * Returns how long the backup took next to a writer. Some contenders restart at each commit and
 * never end.
 */
function besideWriter({ seconds, isUnfinished }) {
  const ended = seconds.filter((_, run) => !isUnfinished[run]);
  const limits = seconds.filter((_, run) => isUnfinished[run]);
  const unfinished =
    limits.length > 0 &&
    `not ended in ${median(limits).toFixed(0)} s (${limits.length} of ${seconds.length})`;
  return [ended.length > 0 && spread(ended), unfinished].filter(Boolean).join(', ');
}

/**
 * Returns a table of what a backup costs other processes: memory, the longest commit of a writer,
 * and stalls of the JavaScript thread.
 */
function costs({ contenders, writerAloneMs }) {
  const rows = contenders.map(({ name, steps: { backup, verify, restore }, writer }) => [
    name,
    ...[backup, verify, restore].map(memory),
    besideWriter(writer),
    spread(writer.longestMs, 1),
    ...(backup.stallMaxMs
      ? [spread(backup.stallP99Ms, 1), spread(backup.stallMaxMs, 1)]
      : [NONE, NONE]),
  ]);
  const nobody = ['*no backup*', NONE, NONE, NONE, NONE, spread(writerAloneMs, 1), NONE, NONE];
  return table(
    [
      '',
      'peak memory MiB, backup',
      'verify',
      'restore',
      'backup beside a writer s',
      'longest commit of the writer ms',
      'JS thread, p99 ms',
      'longest stall ms',
    ],
    [...rows, nobody],
  );
}

/** Returns all tables of one size, with their headings. */
export function tablesOf(measured) {
  const { databaseBytes, files, fresh, runs, contenders } = measured;
  const withFiles = files > 0 ? ` and ${files} files of 1 kB` : '';
  const age = fresh ? ' fresh from VACUUM' : '';
  const head = `### ${(databaseBytes / 1e6).toFixed(0)} MB${age}${withFiles}\n\n${runs} runs. Ratios are to ${contenders[0].name}; larger is slower, or larger in size.`;
  return [
    head,
    calls(contenders),
    'The next backup into the same store:',
    next(contenders),
    'In parentheses: above what Node itself takes before the call.',
    costs(measured),
  ].join('\n\n');
}
