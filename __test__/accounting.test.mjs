// The size, age and period of backups, reported as a user would count them.

import { readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { kg } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const json = ({ stdout }) => resultOf(stdout);

/** Changes the date of a backup. */
function setBackupDate(backup, at) {
  const file = `${backup.path}.manifest.json`;
  writeFileSync(
    file,
    JSON.stringify({
      ...JSON.parse(readFileSync(file, 'utf8')),
      timestamp: new Date(at).toISOString(),
    }),
  );
}

test('sizes include the sidecar in lists, status, metrics, the forecast and the space that retention frees', async () => {
  const { root } = makeProject({ nodes: 10 });
  const diag = (...args) => kg(['diag', ...args], { cwd: root });
  const manager = createBackupManager({ projectRoot: root });
  const first = await manager.createBackup();
  const second = await manager.createBackup();
  const onDisk = ({ path: archive }) =>
    statSync(archive).size + statSync(`${archive}.manifest.json`).size;
  expect(first.size + first.sidecarSize).toBe(onDisk(first));
  expect(first.sidecarSize).toBeGreaterThan(0);
  const listed = (await diag('backup', '--list')).stdout;
  expect(listed).toContain(` ${(onDisk(second) / 1000).toFixed(1)} kB `);
  const status = json(await diag('backup', '--status', '--json'));
  expect([status.totalSize, status.sizes]).toEqual([
    onDisk(first) + onDisk(second),
    [onDisk(first), onDisk(second)],
  ]);
  expect(json(await diag('health', '--json')).backups.nextBytes).toBe(onDisk(second));
  const freed = onDisk(first);
  expect(json(await diag('prune', '--max-backups', '1', '--dry-run', '--json')).bytesFreed).toBe(
    freed,
  );
  const before = readdirSync(path.join(root, '.kg/backups')).length;
  expect((await createBackupManager({ projectRoot: root, maxBackups: 1 }).prune()).bytesFreed).toBe(
    freed,
  );
  expect(readdirSync(path.join(root, '.kg/backups'))).toHaveLength(before - 2);
  const metrics = path.join(root, 'kg.prom');
  const last = json(await diag('backup', '--json', '--metrics-file', metrics));
  expect(readFileSync(metrics, 'utf8')).toMatch(
    new RegExp(`^kg_backup_last_size_bytes\\{.*\\} ${onDisk(last)}$`, 'm'),
  );
  expect(readFileSync(metrics, 'utf8')).toMatch(
    new RegExp(`^kg_backup_kept_size_bytes\\{.*\\} ${onDisk(last) + onDisk(second)}$`, 'm'),
  );
});

test('ages have a unit that fits their size', async () => {
  const { root } = makeProject({ nodes: 10 });
  const diag = (...args) => kg(['diag', ...args], { cwd: root });
  const backup = await createBackupManager({ projectRoot: root }).createBackup();
  const reports = async () =>
    [(await diag('drill')).stdout, (await diag('health')).stdout].join('\n');
  expect(await reports()).toMatch(/written in the \d+ s since that backup[^]*, \d+ s old/);
  // The drill reads the archive itself.
  for (const [ms, age] of [
    [5 * 60_000, '5 min'],
    [26 * 3_600_000, '26 h'],
    [75 * 3_600_000, '3 d'],
  ]) {
    setBackupDate(backup, Date.now() - ms - 1000);
    expect((await diag('health')).stdout).toContain(`${backup.id}, ${age} old`);
    expect((await diag('backup', '--status')).stdout).toContain(`${age} ago`);
  }
});

test('retention counts days in `backup.timezone`, by command and by API, and in UTC without it', async () => {
  const { root } = makeProject({ nodes: 10 });
  const manager = createBackupManager({ projectRoot: root, keep: { daily: 2 } });
  // Newest first. The second and third are on one day in Berlin, the third and fourth in UTC.
  const times = [
    '2026-06-03T12:00:00Z',
    '2026-06-02T22:30:00Z',
    '2026-06-02T21:30:00Z',
    '2026-06-02T00:30:00Z',
  ];
  const made = [];
  for (const time of times) {
    const backup = await createBackupManager({ projectRoot: root }).createBackup({
      type: 'snapshot',
    });
    made.push(backup);
    setBackupDate(backup, time);
  }
  const left = ({ decisions }) =>
    decisions
      .filter(({ kept }) => kept)
      .map(({ id }) => made.findIndex((backup) => backup.id === id));
  const both = async () => {
    const cli = await kg(['diag', 'prune', '--keep-daily', '2', '--dry-run', '--json'], {
      cwd: root,
    });
    return [left(json(cli)), left(await manager.prune({ dryRun: true }))];
  };
  expect(await both()).toEqual([
    [0, 1],
    [0, 1],
  ]);
  await kg(['config', 'set', 'backup.timezone', 'Europe/Berlin'], { cwd: root });
  expect(await both()).toEqual([
    [0, 2],
    [0, 2],
  ]);
});
