// `kg diag health`: its report on backups, the service, and the users who may write.

import { chmodSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, onTestFinished, test } from 'vitest';

import { kg } from './support/processes.mjs';
import { makeProject, withDatabase } from './support/project.mjs';
import { isRoot, projectOf } from './support/users.mjs';
import { resultOf } from './support/json-output.mjs';

function setUp(backup) {
  const { root, database } = makeProject();
  writeFileSync(
    path.join(root, '.kg/config.json'),
    JSON.stringify({ database: { path: '.kg/knowledge.db' }, backup }),
  );
  const health = async (...args) => {
    const { status, stdout } = await kg(['diag', 'health', '--json', ...args], { cwd: root });
    const health = resultOf(stdout);
    return { status, ...health, codes: health.issues.map(({ code }) => code) };
  };
  return { root, database, health, kg: (...args) => kg(args, { cwd: root }) };
}

test('health, drill and the safety backup of a repair use the configured directory', async () => {
  const { root, health, kg, database } = setUp({ dir: '../elsewhere' });
  const dir = path.join(root, '../elsewhere');
  const { id } = resultOf((await kg('diag', 'backup', '--json')).stdout);
  expect(await health()).toMatchObject({
    status: 0,
    backups: { backupDir: dir, count: 1, newestGood: id },
  });
  expect(resultOf((await kg('diag', 'drill', '--json')).stdout)).toMatchObject({
    id,
    passed: true,
  });
  withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 5)"));
  const { repair } = resultOf((await kg('diag', 'repair', '--auto', '--json')).stdout);
  expect(path.dirname(repair.safetyBackup.path)).toBe(dir);
  // A directory in the arguments overrides the settings.
  expect(await health('--backup-dir', 'none')).toMatchObject({
    backups: { backupDir: path.join(root, 'none'), count: 0 },
  });
});

test('a name with a dot is reported as one name, with the closest objects', async () => {
  const { root, health } = setUp();
  const cases = [
    [
      { 'backup.encrypt': true },
      '`backup.encrypt` is not a setting: a name with a dot must be nested, as in `{"backup": {"encrypt": …}}`',
    ],
    [
      { 'backup.encrpyt': true },
      '`backup.encrpyt` is not a setting: a name with a dot must be nested, as in `{"backup": {"encrypt": …}}`',
    ],
    [
      { backup: { 'keep.daily': 7 } },
      '`backup.keep.daily` is not a setting: a name with a dot must be nested, as in `{"backup": {"keep": {"daily": …}}}`',
    ],
  ];
  for (const [config, said] of cases) {
    writeFileSync(path.join(root, '.kg/config.json'), JSON.stringify(config));
    const { issues } = await health();
    expect(issues.find(({ code }) => code === 'KG_ISSUE_CONFIG_VALUE').examples[0]).toContain(said);
  }
});

test.skipIf(!isRoot)(
  'a configuration that cannot be read is not reported as invalid JSON (needs root)',
  () => {
    const { root, asOwner } = projectOf(1001);
    for (const name of ['config.json', 'agents.json']) {
      const file = path.join(root, '.kg', name);
      rmSync(file, { force: true });
      // The file belongs to root.
      writeFileSync(file, '{}', { mode: 0o600 });
      const { stdout } = asOwner('diag', 'health');
      expect(stdout).toContain(`.kg/${name} cannot be read: Permission denied`);
      expect(stdout).not.toContain('not JSON');
      rmSync(file);
    }
  },
);

test('a failed run is reported until there is a good backup', async () => {
  const { root, health, kg } = setUp({ dir: './backups' });
  writeFileSync(path.join(root, 'backups'), 'in the way');
  expect((await kg('diag', 'backup')).status).not.toBe(0);
  rmSync(path.join(root, 'backups'));
  mkdirSync(path.join(root, '.kg/odd'));
  symlinkSync('/nowhere', path.join(root, '.kg/odd/link'));
  const strict = await kg('diag', 'backup', '--strict');
  expect(strict.status).not.toBe(0);
  const failed = await health();
  expect(failed.codes).toContain('KG_ISSUE_BACKUP_FAILED');
  const issue = failed.issues.find(({ code }) => code === 'KG_ISSUE_BACKUP_FAILED');
  expect(issue).toMatchObject({
    severity: 'warning',
    component: 'backups',
    message: expect.stringMatching(/The last backup failed, \d+ s ago: .*\[KG_/),
  });
  expect(failed.service.lastRun.error.code).toMatch(/^KG_/);
  await createBackupManager({ projectRoot: root }).createBackup();
  expect((await health()).codes).not.toContain('KG_ISSUE_BACKUP_FAILED');
});

test('a schedule without a service is a warning, but not if it is disabled', async () => {
  const { root, health, kg: run } = setUp({ enabled: true, schedule: '0 2 * * *' });
  onTestFinished(() => kg(['serve', '--stop'], { cwd: root }));
  await run('diag', 'backup');
  expect(await health()).toMatchObject({
    status: 0,
    service: { isEnabled: true },
    codes: expect.arrayContaining(['KG_ISSUE_SERVICE_STOPPED']),
  });
  expect((await run('diag', 'health')).stdout).toMatch(/^Service {3}does not run$/m);
  const { service } = resultOf((await run('serve', '--all', '--json')).stdout);
  const served = await health();
  expect(served).toMatchObject({
    status: 0,
    service: { isEnabled: true, process: { pid: service.pid } },
  });
  expect(served.codes).not.toContain('KG_ISSUE_SERVICE_STOPPED');
  expect((await run('diag', 'health')).stdout).toMatch(
    new RegExp(`^Service {3}runs as process ${service.pid} on `, 'm'),
  );
  await run('serve', '--stop');
  await run('config', 'set', 'backup.enabled', 'false');
  const disabled = await health();
  expect(disabled.service.isEnabled).toBe(false);
  expect(disabled.codes).not.toContain('KG_ISSUE_SERVICE_STOPPED');
});

test('a backup directory that every user can write is a warning, unless only owners can remove files', async () => {
  const { root, health, kg } = setUp({ dir: './backups' });
  await kg('diag', 'backup');
  const dir = path.join(root, 'backups');
  for (const [mode, warns] of [
    [0o700, false],
    [0o777, true],
    [0o1777, false],
  ]) {
    chmodSync(dir, mode);
    const { issues, status } = await health();
    expect(status).toBe(0);
    expect(
      issues.some(
        ({ code, component }) => code === 'KG_ISSUE_PERMISSIONS' && component === 'backups',
      ),
      mode.toString(8),
    ).toBe(warns);
  }
});
