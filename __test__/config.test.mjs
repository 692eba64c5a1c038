// `kg config`, and the effect of its settings on backups by command and by API.

import {
  chmodSync,
  existsSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { kg, kgPath, run } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

function setUp() {
  const project = makeProject();
  const file = path.join(project.root, '.kg/config.json');
  return {
    ...project,
    file,
    config: () => JSON.parse(readFileSync(file, 'utf8')),
    kg: (...args) => kg(args, { cwd: project.root }),
  };
}

describe('kg config', () => {
  test('the commands of the guide work as written', async () => {
    const { root, config, kg } = setUp();
    run(
      'sh',
      [
        '-ec',
        `PATH="${path.dirname(kgPath)}:$PATH"
      kg config set backup.enabled true
      kg config set backup.schedule "0 2 * * *"
      kg config set backup.retention 30
      kg config set backup.maxBackups 5
      kg diag status`,
      ],
      { cwd: root },
    );
    expect(config()).toEqual({
      database: { path: '.kg/knowledge.db' },
      theme: 'dark',
      backup: { enabled: true, schedule: '0 2 * * *', retention: 30, maxBackups: 5 },
    });
    await kg('config', 'set', 'backup.retentionDays', '7');
    expect(config().backup).toEqual({
      enabled: true,
      schedule: '0 2 * * *',
      maxBackups: 5,
      retentionDays: 7,
    });
  });

  test('keeps other content byte for byte, the mode of the file, and a link to it', async () => {
    const { root, file, kg } = setUp();
    const written =
      '{\n\t"theme":   "dark",\n\t"limits": { "ratio": 1.50e3 },\n\t"backup": {\n\t\t"mine": "kept"\n\t}\n}';
    const elsewhere = path.join(root, 'shared.json');
    writeFileSync(elsewhere, written);
    chmodSync(elsewhere, 0o640);
    rmSync(file);
    symlinkSync('../shared.json', file);
    await kg('config', 'set', 'backup.enabled', 'true');
    expect(readFileSync(elsewhere, 'utf8')).toBe(
      written.replace('"kept"', '"kept",\n\t\t"enabled": true'),
    );
    expect(statSync(elsewhere).mode & 0o777).toBe(0o640);
    await kg('config', 'unset', 'backup.enabled');
    expect(readFileSync(elsewhere, 'utf8')).toBe(written);
  });

  test('unset also removes a misspelt name, and refuses a missing one', async () => {
    const { file, kg } = setUp();
    writeFileSync(file, '{"backup":{"dri":"x","dir":"y"}}');
    expect(await kg('config', 'unset', 'backup.dri')).toMatchObject({
      status: 0,
      stdout: 'backup.dri was removed from .kg/config.json\n',
    });
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual({ backup: { dir: 'y' } });
    expect(await kg('config', 'unset', 'backup.dri')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('backup.dir'),
    });
  });

  test('writes nothing through a link out of the project, or over a link to nothing', async () => {
    const { root, file, kg } = setUp();
    const outside = path.join(root, '../outside.json');
    writeFileSync(outside, '{ "theme": "dark" }');
    rmSync(file);
    symlinkSync(outside, file);
    const set = () => kg('config', 'set', 'backup.enabled', 'true');
    expect(await set()).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/is a link to .*outside\.json.*\[KG_UNSAFE_FILE\]/),
    });
    expect(readFileSync(outside, 'utf8')).toBe('{ "theme": "dark" }');
    // The settings behind the link still apply.
    expect((await kg('diag', 'health')).stdout).not.toContain('KG_ISSUE_CONFIG');
    rmSync(outside);
    expect((await kg('diag', 'health')).stdout).toMatch(
      /config\.json is a link that leads nowhere[^]*Mount what it leads to/,
    );
    expect(await set()).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/leads nowhere.*\[KG_CONFIG_INVALID\]/),
    });
    expect(readlinkSync(file)).toBe(outside);
  });

  test('get, show and unset print and remove settings', async () => {
    const { kg } = setUp();
    expect(await kg('config', 'get', 'backup.schedule')).toMatchObject({ status: 1, stdout: '' });
    await kg('config', 'set', 'backup.schedule', '@daily');
    await kg('config', 'set', 'backup.excludePatterns', '*.tmp, cache/');
    expect(await kg('config', 'get', 'backup.schedule')).toMatchObject({
      status: 0,
      stdout: '@daily\n',
    });
    expect((await kg('config', 'show')).stdout).toBe(
      'backup.schedule = @daily\nbackup.excludePatterns = ["*.tmp","cache/"]\n',
    );
    expect(resultOf((await kg('config', 'show', '--json')).stdout)).toEqual({
      'backup.schedule': '@daily',
      'backup.excludePatterns': ['*.tmp', 'cache/'],
    });
    expect((await kg('config', 'show', '--all')).stdout).toMatch(
      /backup\.compressionLevel +not set +compression level/,
    );
    expect((await kg('config', 'unset', 'backup.schedule')).status).toBe(0);
    expect((await kg('config', 'get', 'backup.schedule')).status).toBe(1);
  });

  test('creates a missing file', async () => {
    const { file, kg } = setUp();
    rmSync(file);
    await kg('config', 'set', 'backup.keep.daily', '7');
    expect(readFileSync(file, 'utf8')).toBe(
      '{\n  "backup": {\n    "keep": {\n      "daily": 7\n    }\n  }\n}\n',
    );
  });

  test('refuses unknown keys and invalid values, and names the valid ones', async () => {
    const { file, kg } = setUp();
    const before = readFileSync(file);
    const cases = [
      [['backup.retension', '30'], /`backup\.retension` is not a setting/],
      [['backup.retention', '-1'], /`backup\.retention` is "-1", not a whole number from 1/],
      [['backup.schedule', '0 25 * * *'], /`backup\.schedule`: Field 2 .* the hour `25`/],
      [['backup.type', 'partial'], /not one of full, incremental, snapshot/],
    ];
    for (const [args, message] of cases) {
      const { status, stderr } = await kg('config', 'set', '--', ...args);
      expect([status, stderr]).toEqual([2, expect.stringMatching(message)]);
    }
    expect(readFileSync(file)).toEqual(before);
  });

  test('does not change a file with an invalid configuration', async () => {
    for (const text of ['{ "theme": ', '[]', '{"backup": 7}']) {
      const { file, kg } = setUp();
      writeFileSync(file, text);
      const { status, stderr } = await kg('config', 'set', 'backup.enabled', 'true');
      expect([status, stderr]).toEqual([2, expect.stringContaining('KG_CONFIG_INVALID')]);
      expect(readFileSync(file, 'utf8')).toBe(text);
    }
  });

  test('loses no setting when many processes set different keys at once', async () => {
    const { config, kg } = setUp();
    const periods = ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'];
    await Promise.all(
      periods.map((period, at) => kg('config', 'set', `backup.keep.${period}`, String(at + 1))),
    );
    expect(config().backup.keep).toMatchObject({
      last: 1,
      hourly: 2,
      daily: 3,
      weekly: 4,
      monthly: 5,
      yearly: 6,
    });
  });
});

describe('settings', () => {
  const configure = async (kg, settings) => {
    for (const [key, value] of Object.entries(settings))
      expect((await kg('config', 'set', `backup.${key}`, value)).status).toBe(0);
  };

  test('that cannot be used make no scheduled backups, which --status reports', async () => {
    const { kg, file } = setUp();
    await kg('diag', 'backup');
    const health = async () =>
      resultOf((await kg('diag', 'backup', '--status', '--json')).stdout).health;
    expect(await health()).toEqual({ ok: true, messages: [] });
    writeFileSync(file, '{"backup": {"enabled": true, "schedule": "0 2 * * *"');
    expect(await health()).toMatchObject({
      ok: false,
      messages: [expect.stringContaining('Its backup settings are ignored')],
    });
  });

  test('are defaults for kg and the API alike', async () => {
    const { root, kg } = setUp();
    await configure(kg, {
      dir: 'saved',
      type: 'incremental',
      compression: 'false',
      includeVectors: 'false',
      maxBackups: '3',
    });
    const first = resultOf((await kg('diag', 'backup', '--json')).stdout);
    expect(first).toMatchObject({ type: 'full', contents: { vectors: false, plugins: true } });
    expect(first.path).toMatch(/\/project\/saved\/kg-backup-.*\.tar$/);
    const manager = createBackupManager({ projectRoot: root });
    expect(manager.backupDir).toBe(path.join(root, 'saved'));
    const second = await manager.createBackup();
    expect(second).toMatchObject({ type: 'incremental', basedOn: first.id, warnings: [] });
    for (let more = 0; more < 3; more += 1) await manager.createBackup({ type: 'full' });
    expect((await manager.listBackups()).length).toBe(3);
    expect((await manager.getLatestBackup()).contents.vectors).toBe(false);
    expect(existsSync(path.join(root, '.kg/backups'))).toBe(false);
    expect((await kg('diag', 'restore', '--file', 'latest', '--dry-run')).status).toBe(0);
  });

  test('yield to the configuration of a manager and to arguments', async () => {
    const { root, kg, backups } = setUp();
    await configure(kg, {
      dir: 'saved',
      type: 'snapshot',
      includeVectors: 'false',
      compression: 'false',
    });
    const manager = createBackupManager({
      projectRoot: root,
      backupDir: backups,
      compression: true,
      includeVectors: false,
    });
    const backup = await manager.createBackup({ type: 'full', includeVectors: true });
    expect(backup).toMatchObject({ type: 'full', contents: { vectors: true } });
    expect(backup.path).toMatch(/\/backups\/kg-backup-.*\.tar\.gz$/);
    const args = ['--type', 'full', '--include-vectors', '--output', 'other', '--level', '1'];
    const made = resultOf((await kg('diag', 'backup', '--json', ...args)).stdout);
    expect(made).toMatchObject({ type: 'full', contents: { vectors: true } });
    expect(made.path).toMatch(/\/other\/kg-backup-.*\.tar\.gz$/);
  });

  test('that cannot be used cause a warning in each backup and have no effect', async () => {
    const { root, file, kg } = setUp();
    writeFileSync(
      file,
      '{"database":{"path":".kg/knowledge.db"},"backup":{"maxBackups":"one","type":"partial"}}',
    );
    for (const made of [
      resultOf((await kg('diag', 'backup', '--json')).stdout),
      await createBackupManager({ projectRoot: root }).createBackup(),
    ]) {
      expect(made.type).toBe('full');
      expect(made.warnings.map((warning) => warning.code)).toEqual([
        'KG_WARN_CONFIG',
        'KG_WARN_CONFIG',
      ]);
      expect(made.warnings[1].message).toMatch(
        /`backup\.maxBackups` is "one", not a whole number from 1; it was ignored/,
      );
    }
    expect(await createBackupManager({ projectRoot: root }).listBackups()).toHaveLength(2);
  });
});
