// The places that a restore writes to, the targets that it refuses, and the files that it leaves
// alone.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { rewriteManifest, seal } from './support/forge.mjs';
import { run } from './support/processes.mjs';
import {
  fingerprint,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';

async function setUp(options) {
  const project = makeProject(options);
  const manager = createBackupManager({ projectRoot: project.root, backupDir: project.backups });
  return { ...project, manager, backup: await manager.createBackup() };
}

function nodes(database) {
  return withDatabase(database, (db) => db.prepare('SELECT count(*) FROM nodes').pluck().get());
}

describe('without overwrite', () => {
  test('a restore over existing files is refused and changes nothing', async () => {
    const { manager, root, database } = await setUp();
    withDatabase(database, (db) => db.exec('DELETE FROM nodes'));
    const before = fingerprint(root);
    const refused = manager.restore({ backupId: 'latest' });
    await expect(refused).rejects.toMatchObject({
      code: 'KG_TARGET_EXISTS',
      message: expect.stringContaining('knowledge.db'),
    });
    expect(fingerprint(root)).toEqual(before);
    expect(readdirSync(path.join(root, '.kg')).some((name) => name.startsWith('restore-'))).toBe(
      false,
    );
  });

  test('a WAL in the place of the database is an existing file too', async () => {
    const { manager, database } = await setUp();
    const target = temporaryDirectory();
    mkdirSync(path.join(target, '.kg'));
    writeFileSync(path.join(target, '.kg/knowledge.db-wal'), readFileSync(database));
    await expect(manager.restore({ backupId: 'latest', targetDir: target })).rejects.toMatchObject({
      code: 'KG_TARGET_EXISTS',
    });
  });

  test('files with other names stay', async () => {
    const { manager } = await setUp();
    const target = temporaryDirectory();
    mkdirSync(path.join(target, '.kg/plugins'), { recursive: true });
    writeFileSync(path.join(target, '.kg/plugins/own'), 'own');
    const result = await manager.restore({ backupId: 'latest', targetDir: target });
    expect(result).toMatchObject({ filesRestored: 4, filesReplaced: 0 });
    expect(result.safetyCopy).toBeUndefined();
    expect(readFileSync(path.join(target, '.kg/plugins/own'), 'utf8')).toBe('own');
  });
});

describe('with overwrite', () => {
  test('only replaced files are kept, each under its path', async () => {
    const { manager, root, database, backup } = await setUp();
    withDatabase(database, (db) => db.exec('DELETE FROM nodes'));
    writeFileSync(path.join(root, '.kg/config.json'), '{"theme":"light"}');
    writeFileSync(path.join(root, '.kg/notes.txt'), 'newer than the backup');
    const result = await manager.restore({
      backupId: backup.id,
      overwrite: true,
      only: ['database', 'config'],
    });
    expect(result).toMatchObject({ filesRestored: 2, filesReplaced: 2 });
    expect(path.dirname(result.safetyCopy)).toBe(path.join(root, '.kg/restore-undo'));
    expect(nodes(database)).toBe(200);
    expect(readFileSync(path.join(root, '.kg/config.json'), 'utf8')).toContain('dark');
    expect(readFileSync(path.join(root, '.kg/notes.txt'), 'utf8')).toBe('newer than the backup');
    expect(nodes(path.join(result.safetyCopy, '.kg/knowledge.db'))).toBe(0);
    expect(readFileSync(path.join(result.safetyCopy, '.kg/config.json'), 'utf8')).toContain(
      'light',
    );
    expect(existsSync(path.join(result.safetyCopy, '.kg/plugins'))).toBe(false);
  });

  test('no WAL, index or journal of another database is left next to the restored one', async () => {
    const { manager, database } = await setUp();
    const other = makeProject({ nodes: 900 });
    const db = new Database(other.database);
    onTestFinished(() => db.close());
    db.exec("UPDATE nodes SET title = 'foreign'");
    for (const suffix of ['-wal', '-shm']) run('cp', [other.database + suffix, database + suffix]);
    writeFileSync(`${database}-journal`, 'foreign');
    const { safetyCopy } = await manager.restore({ backupId: 'latest', overwrite: true });
    for (const suffix of ['-wal', '-shm', '-journal']) {
      expect(existsSync(database + suffix), suffix).toBe(false);
      expect(existsSync(path.join(safetyCopy, `.kg/knowledge.db${suffix}`)), suffix).toBe(true);
    }
    expect(integrityOf(database)).toBe('ok');
    expect(nodes(database)).toBe(200);
  });

  test('a damaged or missing database is replaced', async () => {
    for (const damage of [(file) => writeFileSync(file, 'noise'), (file) => rmSync(file)]) {
      const { manager, database } = await setUp();
      damage(database);
      await manager.restore({ backupId: 'latest', overwrite: true });
      expect(integrityOf(database)).toBe('ok');
    }
  });

  test('a dry run reports the changes and makes none', async () => {
    const { manager, root } = await setUp();
    const before = fingerprint(root);
    const result = await manager.restore({ backupId: 'latest', overwrite: true, dryRun: true });
    expect(result).toMatchObject({ dryRun: true, filesRestored: 4, filesReplaced: 4 });
    expect(result.safetyCopy).toBeUndefined();
    expect(fingerprint(root)).toEqual(before);
  });
});

describe('parts', () => {
  test('`only` selects any of the parts, and refuses one that the backup does not contain', async () => {
    const { manager } = await setUp();
    const expected = {
      database: ['backup-project-id', 'knowledge.db'],
      config: ['config.json'],
      vectors: ['vectors'],
      plugins: ['plugins'],
    };
    for (const [part, files] of Object.entries(expected)) {
      const target = temporaryDirectory();
      await manager.restore({ backupId: 'latest', targetDir: target, only: [part] });
      expect(readdirSync(path.join(target, '.kg')).sort(), part).toEqual(files);
    }
    const snapshot = await manager.createBackup({ type: 'snapshot' });
    const refused = manager.restore({
      backupId: snapshot.id,
      targetDir: temporaryDirectory(),
      only: ['config'],
    });
    await expect(refused).rejects.toMatchObject({
      code: 'KG_INVALID_OPTION',
      message: expect.stringContaining('config'),
    });
  });

  test('the database is restored to the path in the restored configuration', async () => {
    const { manager, root, database } = await setUp();
    writeFileSync(path.join(root, '.kg/config.json'), '{"database":{"path":".kg/moved.db"}}');
    run('cp', [database, path.join(root, '.kg/moved.db')]);
    withDatabase(path.join(root, '.kg/moved.db'), (db) =>
      db.exec("DELETE FROM nodes WHERE id <> 'n1'"),
    );
    await manager.restore({ backupId: 'latest', overwrite: true });
    expect(nodes(database)).toBe(200);
    expect(nodes(path.join(root, '.kg/moved.db'))).toBe(1);
  });

  test('the database alone is restored to the path in the configuration of the target', async () => {
    const { manager } = await setUp();
    const target = temporaryDirectory();
    mkdirSync(path.join(target, '.kg'));
    writeFileSync(path.join(target, '.kg/config.json'), '{"database":{"path":"data/graph.db"}}');
    await manager.restore({ backupId: 'latest', targetDir: target, only: ['database'] });
    expect(nodes(path.join(target, 'data/graph.db'))).toBe(200);
  });
});

describe('an unsuitable target', () => {
  const obstacles = {
    'is a file': (target) => writeFileSync(target, ''),
    'has a file for .kg': (target) => {
      mkdirSync(target);
      writeFileSync(path.join(target, '.kg'), '');
    },
    'has a directory where a file goes': (target) =>
      mkdirSync(path.join(target, '.kg/config.json'), { recursive: true }),
    'has a link where a directory goes': (target) => {
      mkdirSync(path.join(target, '.kg'), { recursive: true });
      symlinkSync('/tmp', path.join(target, '.kg/plugins'));
    },
  };
  test('does not include a .kg that is a link of the user: the restore writes behind it', async () => {
    const { manager } = await setUp();
    const target = temporaryDirectory();
    const real = temporaryDirectory();
    symlinkSync(real, path.join(target, '.kg'));
    await manager.restore({ backupId: 'latest', targetDir: target });
    expect(readdirSync(real).sort()).toEqual([
      'backup-project-id',
      'config.json',
      'knowledge.db',
      'plugins',
      'vectors',
    ]);
  });

  for (const [what, obstruct] of Object.entries(obstacles)) {
    test(`that ${what} is refused and left as it was`, async () => {
      const { manager } = await setUp();
      const target = path.join(temporaryDirectory(), 'target');
      obstruct(target);
      const list = () => run('find', [target, '-printf', '%p %y %s\n']);
      const before = list();
      await expect(
        manager.restore({ backupId: 'latest', targetDir: target, overwrite: true }),
      ).rejects.toMatchObject({
        code: 'KG_TARGET_INVALID',
      });
      expect(list()).toBe(before);
    });
  }

  // Only an immutable directory refuses root too, and only root can make one.
  test.runIf(process.getuid() === 0)(
    'that refuses a file after others were replaced: everything is rolled back',
    async () => {
      const { manager, root } = await setUp();
      writeFileSync(path.join(root, '.kg/config.json'), '{"theme":"light"}');
      // No user, not even root, can write to an immutable directory.
      const plugins = path.join(root, '.kg/plugins/glossary');
      run('chattr', ['+i', plugins]);
      onTestFinished(() => run('chattr', ['-i', plugins]));
      const before = fingerprint(root);
      await expect(manager.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
        code: 'KG_PERMISSION_DENIED',
      });
      expect(fingerprint(root)).toEqual(before);
      expect(existsSync(path.join(root, '.kg/restore-undo'))).toBe(false);
    },
  );
});

test('an invalid manifest is a problem, not a panic', async () => {
  const { manager, backup } = await setUp();
  const forged = path.join(temporaryDirectory(), 'forged.tar.gz');
  for (const change of [
    (manifest) => (manifest.stats = 'none'),
    (manifest) => (manifest.files = 'none'),
  ]) {
    writeFileSync(forged, seal(rewriteManifest(gunzipSync(readFileSync(backup.path)), change)));
    copyFileSync(`${backup.path}.manifest.json`, `${forged}.manifest.json`);
    expect(await manager.verifyBackup(forged)).toBe(false);
  }
});

test('restores into one target wait for each other', async () => {
  const { manager, root, database, backups } = await setUp();
  const results = await Promise.all(
    [1, 2, 3].map(() => manager.restore({ backupId: 'latest', overwrite: true })),
  );
  expect(new Set(results.map((result) => result.safetyCopy)).size).toBe(3);
  expect(integrityOf(database)).toBe('ok');

  const holder = spawn('flock', [
    '--no-fork',
    path.join(root, '.kg'),
    'sh',
    '-c',
    'echo held; exec sleep 60',
  ]);
  onTestFinished(() => holder.kill('SIGKILL'));
  await once(holder.stdout, 'data');
  const impatient = createBackupManager({
    projectRoot: root,
    backupDir: backups,
    lockTimeout: 100,
  });
  await expect(impatient.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
    code: 'KG_TARGET_LOCKED',
  });
});

test('a staging directory of a killed restore is removed by the next one', async () => {
  const { manager, root } = await setUp();
  const left = path.join(root, '.kg/restore-staging-left');
  mkdirSync(left);
  writeFileSync(path.join(left, '0'), 'half');
  await manager.restore({ backupId: 'latest', overwrite: true });
  expect(existsSync(left)).toBe(false);
  expect(statSync(path.join(root, '.kg')).isDirectory()).toBe(true);
});
