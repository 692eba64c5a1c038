// A restore says which backup settings it changes, and keeps them if it is asked to.

import { mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { killed } from './support/faults.mjs';
import { kg } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';

const OLD = '{\n  "theme": "dark",\n  "backup": { "maxBackups": 3 },\n  "limit": 1.50e3\n}\n';
const SETTINGS =
  '{"enabled": true, "schedule": "0 2 * * *", "retention": 30, "maxBackups": 3,\n"encrypt": true, "passphraseFile": "../key"}';
const PRESENT = `{"theme":"light","backup":${SETTINGS},"own":[1]}\n`;
/** The configuration of the backup with the settings of the project. */
const MERGED = OLD.replace('{ "maxBackups": 3 }', SETTINGS);
const CHANGED = [
  { key: 'backup.enabled', before: true },
  { key: 'backup.schedule', before: '0 2 * * *' },
  { key: 'backup.retention', before: 30 },
  { key: 'backup.encrypt', before: true },
  { key: 'backup.passphraseFile', before: '../key' },
];

/** Makes a backup without encryption of a project that encrypts its backups now. */
async function setUp({ old = OLD, present = PRESENT, type = 'full' } = {}) {
  const project = makeProject({ nodes: 20 });
  const config = path.join(project.root, '.kg/config.json');
  writeFileSync(path.join(project.root, '../key'), 'correct horse battery staple\n', {
    mode: 0o600,
  });
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    encryption: false,
  });
  writeFileSync(config, old);
  let backup = await manager.createBackup();
  if (type === 'incremental') {
    writeFileSync(path.join(project.root, '.kg/plugins/glossary/terms.json'), '["changed"]\n');
    backup = await manager.createBackup({ type, basedOn: backup.id });
  }
  writeFileSync(config, present);
  return {
    ...project,
    manager,
    backup,
    config: () => readFileSync(config, 'utf8'),
    file: config,
  };
}

const byKey = (changes) => [...changes].sort((a, b) => (a.key < b.key ? -1 : 1));

describe('a restore of a configuration with other settings', () => {
  test.each(['full', 'incremental'])('says so, and so does its dry run (%s)', async (type) => {
    const { manager, backup, config } = await setUp({ type });
    const dry = await manager.restore({ backupId: backup.id, overwrite: true, dryRun: true });
    expect(byKey(dry.settingsChanged)).toEqual(byKey(CHANGED));
    expect(dry.warnings).toContainEqual({
      code: 'KG_WARN_SETTINGS_CHANGED',
      path: '.kg/config.json',
      message: expect.stringMatching(
        /would change backup settings: .*backup\.encrypt from true to not set.*Scheduled backups would be off\. New backups would be without encryption\. .*`keepSettings`/,
      ),
    });
    expect(config()).toBe(PRESENT);
    const restored = await manager.restore({ backupId: backup.id, overwrite: true });
    expect(byKey(restored.settingsChanged)).toEqual(byKey(CHANGED));
    expect(restored.warnings).toContainEqual({
      code: 'KG_WARN_SETTINGS_CHANGED',
      path: '.kg/config.json',
      message: expect.stringContaining('New backups are now without encryption'),
    });
    expect(config()).toBe(OLD);
    const undone = await manager.undoRestore();
    expect(undone.settingsChanged).toContainEqual({ key: 'backup.encrypt', after: true });
    expect(config()).toBe(PRESENT);
  });

  test('names each setting on the command line, and no secret', async () => {
    const { root, backups, backup, config } = await setUp({
      present: JSON.stringify({
        backup: { recipients: ['AGE-SECRET-KEY-1QQQQQQQQQQQQ'], dir: 's3://key:hidden@bucket/x' },
      }),
    });
    const args = ['diag', 'restore', '--file', backup.id, '--backup-dir', backups];
    const dry = await kg([...args, '--dry-run'], { cwd: root });
    expect(dry).toMatchObject({ status: 0 });
    expect(dry.stdout + dry.stderr).toMatch(/would change backup settings: .*`--keep-settings`/s);
    const json = await kg([...args, '--dry-run', '--json'], { cwd: root });
    const { settingsChanged } = JSON.parse(json.stdout).result;
    expect(settingsChanged.map(({ key }) => key)).toContain('backup.maxBackups');
    for (const { stdout, stderr } of [dry, json])
      expect(stdout + stderr).not.toMatch(/SECRET|hidden/);
    expect(config()).toContain('AGE-SECRET');
  });

  test('says that an unusable setting goes, which refused backups without encryption', async () => {
    const { root, backups, manager, backup } = await setUp({
      present: '{"backup": {"maxBackups": 3, "recipients": "nobody", "schedul": "0 2 * * *"}}',
    });
    const unsure = createBackupManager({ projectRoot: root, backupDir: backups });
    await expect(unsure.createBackup()).rejects.toMatchObject({ code: 'KG_KEY_INVALID' });
    const restored = await manager.restore({ backupId: backup.id, overwrite: true });
    expect(byKey(restored.settingsChanged)).toEqual([
      { key: 'backup.recipients', beforeUnusable: true },
      { key: 'backup.schedule', beforeUnusable: true },
    ]);
    expect(restored.warnings).toContainEqual({
      code: 'KG_WARN_SETTINGS_CHANGED',
      path: '.kg/config.json',
      message: expect.stringMatching(
        /backup\.recipients from an unusable value to not set.*New backups are now without enc/,
      ),
    });
  });

  test('says that a configuration that it restores cannot be used', async () => {
    const { manager, backup } = await setUp({ old: '{bad' });
    for (const dryRun of [true, false]) {
      const { warnings } = await manager.restore({ backupId: backup.id, overwrite: true, dryRun });
      expect(warnings).toContainEqual({
        code: 'KG_WARN_SETTINGS_CHANGED',
        path: '.kg/config.json',
        message: expect.stringMatching(/configuration that the backup contains.*cannot be used/),
      });
    }
  });

  test('says nothing if the settings are the same, or are not restored', async () => {
    const { manager, backup } = await setUp({ present: OLD.replace('dark', 'light') });
    const same = await manager.restore({ backupId: backup.id, overwrite: true });
    expect(same).toMatchObject({ settingsChanged: [], warnings: [] });
    const other = await setUp();
    const part = { backupId: other.backup.id, overwrite: true, only: ['database'] };
    for (const dryRun of [true, false])
      expect(await other.manager.restore({ ...part, dryRun })).toMatchObject({
        settingsChanged: [],
        warnings: [],
      });
  });
});

describe('with keepSettings', () => {
  test.each(['full', 'incremental'])(
    'the settings stay byte for byte, and an undo takes all of it back (%s)',
    async (type) => {
      const { manager, backup, config, root } = await setUp({ type });
      const options = { backupId: backup.id, overwrite: true, keepSettings: true };
      const dry = await manager.restore({ ...options, dryRun: true });
      expect(dry).toMatchObject({ settingsChanged: [], warnings: [] });
      expect(config()).toBe(PRESENT);
      const restored = await manager.restore(options);
      expect(restored).toMatchObject({ settingsChanged: [], warnings: [] });
      expect(config()).toBe(MERGED);
      // The next backup is encrypted, as the kept settings say.
      const next = createBackupManager({ projectRoot: root, backupDir: `${root}-next` });
      expect(await next.createBackup()).toMatchObject({ encrypted: true });
      expect(await manager.undoRestore()).toMatchObject({ settingsChanged: [], warnings: [] });
      expect(config()).toBe(PRESENT);
      await manager.undoRestore();
      expect(config()).toBe(MERGED);
    },
  );

  test('settings that the project does not have are not restored either', async () => {
    const { root, backups, backup, config } = await setUp({ old: PRESENT, present: '{"a":1}' });
    const args = ['--file', backup.id, '--backup-dir', backups, '--keep-settings', '--json'];
    const restored = await kg(['diag', 'restore', ...args], { cwd: root });
    expect(JSON.parse(restored.stdout).result).toMatchObject({ settingsChanged: [] });
    expect(config()).toBe(PRESENT.replace(SETTINGS, '{}'));
  });

  test('a project without a configuration gets the settings of the backup, with a warning', async () => {
    const { manager, backup, root } = await setUp();
    const targetDir = path.join(root, '../restored');
    const restored = await manager.restore({ backupId: backup.id, targetDir, keepSettings: true });
    expect(restored.warnings).toContainEqual({
      code: 'KG_WARN_SETTINGS_CHANGED',
      path: '.kg/config.json',
      message: expect.stringContaining('no .kg/config.json with settings to keep'),
    });
    expect(readFileSync(path.join(targetDir, '.kg/config.json'), 'utf8')).toBe(OLD);
  });

  test('a configuration that cannot be read is refused, and nothing changes', async () => {
    const refused = {
      code: 'KG_CONFIG_INVALID',
      message: expect.stringContaining('cannot be kept'),
    };
    for (const [old, present] of [
      [OLD, '{"backup": '],
      [OLD, '{"backup": 7}'],
      ['not JSON', PRESENT],
      ['{"backup":[]}', PRESENT],
    ]) {
      const { manager, backup, config } = await setUp({ old, present });
      const options = { backupId: backup.id, overwrite: true, keepSettings: true };
      for (const dryRun of [true, false])
        await expect(manager.restore({ ...options, dryRun })).rejects.toMatchObject(refused);
      expect(config()).toBe(present);
    }
  });

  test('a configuration that is a link in the project keeps its settings', async () => {
    const { manager, backup, root, file, config } = await setUp();
    const shared = path.join(root, '.kg/plugins/config.json');
    mkdirSync(path.dirname(shared), { recursive: true });
    writeFileSync(shared, PRESENT);
    symlinkSync('plugins/config.json', `${file}.link`);
    renameSync(`${file}.link`, file);
    await manager.restore({ backupId: backup.id, overwrite: true, keepSettings: true });
    expect(config()).toBe(MERGED);
  });

  test('a configuration that is a link in the backup keeps them through the link, or is refused', async () => {
    for (const isInBackup of [true, false]) {
      const { root, manager, file, config, backups } = await setUp();
      const real = path.join(root, '.kg/plugins/config.json');
      writeFileSync(real, OLD);
      rmSync(file);
      symlinkSync('plugins/config.json', file);
      const linked = createBackupManager({
        projectRoot: root,
        backupDir: backups,
        encryption: false,
        excludePatterns: isInBackup ? [] : ['/.kg/plugins/'],
      });
      const { id } = await linked.createBackup();
      rmSync(file);
      writeFileSync(file, PRESENT);
      const options = { backupId: id, overwrite: true, keepSettings: true };
      if (isInBackup) {
        expect(await manager.restore(options)).toMatchObject({ settingsChanged: [] });
        expect(config()).toBe(MERGED);
        expect(readFileSync(real, 'utf8')).toBe(MERGED);
      } else {
        await expect(manager.restore(options)).rejects.toMatchObject({ code: 'KG_CONFIG_INVALID' });
        expect(config()).toBe(PRESENT);
      }
    }
  });

  test('a run that is killed leaves the old configuration or the restored one with the settings', async () => {
    const { root, backups, backup, config, file } = await setUp();
    const restore = ['diag', 'restore', '--file', backup.id, '--backup-dir', backups];
    const seen = new Set();
    for (let when = 1; ; when += 1) {
      writeFileSync(file, PRESENT);
      const args = [...restore, '--keep-settings', '--yes'];
      const run = killed('rename,renameat,renameat2', args, { when, cwd: root });
      if (!run.isKilled) break;
      // The next restore completes the killed one, or rolls it back.
      const next = await kg([...restore, '--db-only', '--yes'], { cwd: root });
      expect(next).toMatchObject({ status: 0 });
      expect([PRESENT, MERGED]).toContain(config());
      seen.add(config());
    }
    expect(config()).toBe(MERGED);
    expect(seen).toEqual(new Set([PRESENT, MERGED]));
  });
});
