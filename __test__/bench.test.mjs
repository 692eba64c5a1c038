// The benchmark runs to its end and lists every contender. These figures are not representative.

import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { execFile } from 'node:child_process';

import { expect, test } from 'vitest';

import { repository } from './support/processes.mjs';
import { temporaryDirectory } from './support/project.mjs';

function bench(data, ...options) {
  const script = path.join(repository, 'benchmarks/bench.mjs');
  return promisify(execFile)(process.execPath, [
    script,
    '--no-build',
    '--sizes',
    '1',
    '--runs',
    '1',
    '--data',
    data,
    ...options,
  ]);
}

test('the benchmark has a row for each contender in each table, and figures in every applicable cell', async () => {
  const data = temporaryDirectory();
  const { stdout } = await bench(data, '--only', 'ours,pigz', '--files', '100', '--fresh');
  const written = readFileSync(path.join(data, 'result.md'), 'utf8');
  expect(written).toMatch(/^### \d MB fresh from VACUUM and 100 files of 1 kB$/m);
  for (const name of ['this project', 'sqlite3 .backup, tar, pigz -6']) {
    const rows = written.split('\n').filter((line) => line.startsWith(`| ${name} |`));
    expect(rows).toHaveLength(3);
    for (const row of rows) expect(stdout).toContain(row);
    expect(rows[0]).not.toContain('| – |');
    expect(rows.join('\n')).not.toMatch(/NaN|undefined|Infinity/);
  }
  expect(written).toMatch(
    /^`kg diag integrity .*`: [\d.]+ .* in the sqlite3 shell: [\d.]+ .*; [\d.]+ times that$/m,
  );
  expect(written).toMatch(/^`kg diag backup` of a project of 2 MB: [\d.]+ /m);
  const [size] = JSON.parse(readFileSync(path.join(data, 'result.json'), 'utf8')).tables.sizes;
  expect(size.contenders.map(({ key }) => key)).toEqual(['ours', 'pigz']);
  for (const { key, steps, writer } of size.contenders) {
    const calls = key === 'ours' ? 7 : 5;
    expect(
      Object.values(steps).filter(
        ({ seconds, memory }) => seconds.length === 1 && memory.peakBytes > 0,
      ),
    ).toHaveLength(calls);
    expect(steps.backup.keptBytes[0]).toBeGreaterThan(100_000);
    expect(writer.longestMs[0]).toBeGreaterThan(0);
  }
});

test('the curves are measured and drawn as well-formed SVG', async () => {
  const data = temporaryDirectory();
  await bench(data, '--sweep', '--changes', '0,100', '--plots', '--only', 'ours');
  const plots = path.join(data, 'plots');
  expect(readdirSync(plots).sort()).toEqual([
    'backup-memory.svg',
    'backup-throughput.svg',
    'next-backup.svg',
  ]);
  for (const name of readdirSync(plots)) {
    const parse =
      'import sys, xml.dom.minidom; print(xml.dom.minidom.parse(sys.argv[1]).documentElement.tagName)';
    const { stdout } = await promisify(execFile)('python3', ['-c', parse, path.join(plots, name)]);
    expect(stdout).toBe('svg\n');
    const svg = readFileSync(path.join(plots, name), 'utf8');
    expect(svg).toContain('this project');
    expect(svg).not.toMatch(/NaN|undefined|Infinity/);
  }
});

test('an unknown contender is refused by name', async () => {
  await expect(bench(temporaryDirectory(), '--only', 'nobody')).rejects.toThrow(
    /nobody is none of ours, /,
  );
});

test('backups in an object store are measured', async () => {
  const { stdout } = await bench(temporaryDirectory(), '--object-store');
  for (const name of ['this project, to the object store', 'this project, to a directory']) {
    const [row] = stdout.split('\n').filter((line) => line.startsWith(`| ${name} |`));
    expect(row.split('|')).toHaveLength(11);
    expect(row).not.toMatch(/NaN|undefined|Infinity/);
  }
});
