// Users of the host's backup manager find its options again.

import { readFileSync } from 'node:fs';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test, vi } from 'vitest';

import { makeProject } from './support/project.mjs';

/** Collects the process warnings of this package until the end of the test. */
function hostWarnings() {
  const warnings = [];
  const emit = vi.spyOn(process, 'emitWarning').mockImplementation((message, options) => {
    warnings.push({ message, code: options.code });
  });
  onTestFinished(() => emit.mockRestore());
  return warnings;
}

describe('an option of the host', () => {
  test('whose meaning is clear is accepted with a warning', async () => {
    const { root, backups } = makeProject({ nodes: 20 });
    const warnings = hostWarnings();
    const manager = createBackupManager({
      projectRoot: root,
      backupPath: backups,
      maxBackups: 5,
      compress: false,
      enabled: true,
      includeDatabase: true,
      includeConfig: true,
      includeCache: false,
    });
    const about = (list) => list.map(({ message }) => /`(\w+)/.exec(message)[1]).sort();
    expect(about(warnings)).toEqual([
      'backupPath',
      'compress',
      'enabled',
      'includeCache',
      'includeConfig',
      'includeDatabase',
    ]);
    expect(new Set(warnings.map(({ code }) => code))).toEqual(new Set(['KG_HOST_OPTION']));
    expect(manager.backupDir).toBe(backups);
    const plain = await manager.createBackup();
    expect(plain.path).toMatch(/\.tar$/);
    expect(plain.contents).toMatchObject({ database: true, config: true });
    warnings.length = 0;
    const compressed = await manager.createBackup({ compress: true, includeConfig: true });
    expect(compressed.path).toMatch(/\.tar\.gz$/);
    expect(about(warnings)).toEqual(['compress', 'includeConfig']);
    warnings.length = 0;
    await manager.createBackup({ compression: true });
    expect(warnings).toEqual([]);
  });

  test.each([
    [{ includeDatabase: false }, 'restore({ only })'],
    [{ includeConfig: false }, 'excludePatterns'],
    [{ includeCache: true }, 'No backup contains caches'],
    [{ includeDatabase: 'yes' }, 'Every backup contains the database'],
    [{ compress: true, compression: true }, 'Leave out `compress`'],
    [{ compress: 'lz4' }, 'compression'],
  ])('that asks for something else is refused with a remedy: %j', async (options, remedy) => {
    const { root, backups } = makeProject({ nodes: 5 });
    hostWarnings();
    const refused = { code: 'KG_INVALID_OPTION', message: expect.stringContaining(remedy) };
    const config = { projectRoot: root, backupDir: backups };
    expect(() => createBackupManager({ ...config, ...options })).toThrow(
      expect.objectContaining(refused),
    );
    const manager = createBackupManager(config);
    await expect(manager.createBackup(options)).rejects.toMatchObject(refused);
    expect(await manager.listBackups().catch(({ code }) => code)).toEqual([]);
  });

  test('of a timer, or the path of a database as the first argument, is refused with a remedy', () => {
    expect(() => createBackupManager({ interval: 86_400_000 })).toThrow(/scheduler\(\{ schedule/);
    expect(() => createBackupManager('.kg/knowledge.db', { maxBackups: 5 })).toThrow(
      /`\{ projectRoot \}`: the directory that contains \.kg\//,
    );
  });
});

test('the guide for a migration names each option and call of the host', () => {
  const guide = readFileSync(new URL('../docs/guide/migrate.md', import.meta.url), 'utf8');
  for (const name of [
    'backupDir',
    'backupPath',
    'maxBackups',
    'compress',
    'includeDatabase',
    'includeCache',
    'includeConfig',
    'enabled',
    'interval',
    'createBackup()',
    'restore(id)',
    'listBackups()',
    'getBackup(id)',
    'getLatestBackup()',
    'deleteBackup(id)',
    'verifyBackup(id)',
    'getConfig()',
    'updateConfig(config)',
    'startAutoBackup()',
    'stopAutoBackup()',
    'isAutoBackupRunning()',
    'BackupInfo',
    'RestoreResult',
    'RecoveryOptions',
    'IntegrityCheckResult',
    'TableIntegrity',
    'checkDatabaseIntegrity',
  ])
    expect(guide, name).toContain(`\`${name}\``);
});
