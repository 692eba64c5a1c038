// `--metrics-file`: the metrics that a collector reads after each backup.

import { readFileSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { kg, until } from './support/processes.mjs';
import { makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

/** Returns values by metric and labels. Fails on a line that a collector would reject. */
function parse(file) {
  const lines = readFileSync(file, 'utf8').split('\n');
  expect(lines.pop()).toBe('');
  const values = {};
  for (const line of lines) {
    if (line.startsWith('#')) {
      expect(line).toMatch(/^# (HELP kg_backup_\w+ \S.*\.|TYPE kg_backup_\w+ gauge)$/);
      continue;
    }
    const [, name, labels, value] = line.match(
      /^kg_backup_(\w+)\{project="[^"\n]+"(?:,(\w+="[\w.]+"))?\} (\d+(?:\.\d+)?)$/,
    );
    values[labels ? `${name} ${labels}` : name] = Number(value);
  }
  return values;
}

function setUp() {
  const { root, database } = makeProject();
  const file = path.join(root, 'kg.prom');
  return { root, database, file, kg: (...args) => kg(args, { cwd: root }) };
}

test('a backup writes metrics that every user can read, completely or not at all', async () => {
  const { root, file, kg } = setUp();
  const before = Date.now() / 1000;
  const made = resultOf((await kg('diag', 'backup', '--metrics-file', 'kg.prom', '--json')).stdout);
  const values = parse(file);
  expect(values).toMatchObject({
    last_size_bytes: made.size + made.sidecarSize,
    last_source_size_bytes: made.stats.totalSize,
    'kept type="full"': 1,
    'kept type="incremental"': 0,
    kept_size_bytes: made.size + made.sidecarSize,
    chain_length: 1,
    retention_failures: 0,
    healthy: 1,
  });
  expect(values.last_success_timestamp_seconds).toBeGreaterThanOrEqual(before);
  expect(values.last_duration_seconds).toBeLessThan(60);
  expect(values).not.toHaveProperty('last_failure_timestamp_seconds');
  expect(values).not.toHaveProperty('next_run_timestamp_seconds');
  expect(values).not.toHaveProperty('running');
  expect(statSync(file).mode & 0o777).toBe(0o644);
  expect(readdirSync(root).filter((name) => name.startsWith('.kg-partial'))).toEqual([]);
});

test('a failed backup writes metrics too', async () => {
  const { file, database, kg } = setUp();
  await kg('diag', 'backup', '--metrics-file', file);
  renameSync(database, `${database}.away`);
  expect((await kg('diag', 'backup', '--metrics-file', file)).status).toBe(3);
  const {
    healthy,
    last_failure_timestamp_seconds: failed,
    last_success_timestamp_seconds: succeeded,
  } = parse(file);
  expect(healthy).toBe(0);
  expect(failed).toBeGreaterThan(succeeded);
});

test('backups of another project in the same directory do not count', async () => {
  const [ours, theirs] = [setUp(), setUp()];
  const store = path.join(temporaryDirectory(), 'shared');
  const made = await ours.kg('diag', 'backup', '--output', store, '--json');
  const first = resultOf(made.stdout);
  await ours.kg('config', 'set', 'backup.dir', store);
  rmSync(ours.database);
  expect((await ours.kg('diag', 'backup', '--quiet', '--metrics-file', ours.file)).status).toBe(3);
  const { last_success_timestamp_seconds: succeeded } = parse(ours.file);
  expect((await theirs.kg('diag', 'backup', '--output', store, '--quiet')).status).toBe(0);
  expect((await ours.kg('diag', 'backup', '--quiet', '--metrics-file', ours.file)).status).toBe(3);
  const values = parse(ours.file);
  expect(values).toMatchObject({
    last_success_timestamp_seconds: succeeded,
    last_size_bytes: first.size + first.sidecarSize,
    'kept type="full"': 2,
    chain_length: 1,
  });
  const third = setUp();
  await third.kg('config', 'set', 'backup.dir', store);
  const { health } = resultOf((await third.kg('diag', 'backup', '--status', '--json')).stdout);
  expect(health).toEqual({
    ok: false,
    messages: [expect.stringContaining('there is no backup of this project')],
  });
});

test('the safety backup of a repair is not a successful backup', async () => {
  const { root, database, file, kg } = setUp();
  await kg('diag', 'backup', '--quiet');
  const succeeded = async () => {
    renameSync(database, `${database}.away`);
    await kg('diag', 'backup', '--quiet', '--metrics-file', file);
    renameSync(`${database}.away`, database);
    return parse(file).last_success_timestamp_seconds;
  };
  const before = await succeeded();
  withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 5)"));
  const { repair } = resultOf((await kg('diag', 'repair', '--auto', '--json')).stdout);
  expect(repair.safetyBackup.path).toContain(root);
  expect(await succeeded()).toBe(before);
});

test('a failed run is reported until there is a good backup by any command', async () => {
  const { root, database, kg } = setUp();
  const health = async () =>
    resultOf((await kg('diag', 'backup', '--status', '--json')).stdout).health;
  renameSync(database, `${database}.away`);
  await kg('diag', 'backup', '--quiet');
  renameSync(`${database}.away`, database);
  expect((await health()).messages.join()).toContain('the last run failed');
  await createBackupManager({ projectRoot: root }).createBackup();
  expect(await health()).toEqual({ ok: true, messages: [] });
});

test('metrics that cannot be written are a warning, and the backup succeeds', async () => {
  const { kg } = setUp();
  const { status, stdout, stderr } = await kg(
    'diag',
    'backup',
    '--metrics-file',
    '/no/such/directory/kg.prom',
  );
  expect([status, stdout]).toEqual([0, expect.stringContaining('Backup created')]);
  expect(stderr).toContain('The metrics could not be written');
});

test('the service writes them after each run, with the time of the next run', async () => {
  const { file, kg } = setUp();
  await kg('config', 'set', 'backup.enabled', 'true');
  await kg('config', 'set', 'backup.schedule', '* * * * * *');
  await kg('serve', '--all', '--listen', 'off', '--metrics-file', 'kg.prom');
  try {
    const has = () => {
      try {
        return parse(file);
      } catch (error) {
        if (error.code === 'ENOENT') return {};
        throw error;
      }
    };
    const values = await until(
      () => (has()['kept type="full"'] >= 1 ? has() : undefined),
      'metrics of a run',
    );
    expect(values.next_run_timestamp_seconds).toBeGreaterThan(
      values.last_success_timestamp_seconds - 2,
    );
  } finally {
    await kg('serve', '--stop');
  }
});
