// A process commits to another WAL than the one next to the database. Every command reports this
// and overwrites nothing.

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager, IntegrityChecker } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { inBindMount, kg, kgPath, run, startHost } from './support/processes.mjs';
import {
  fillDatabase,
  fingerprint,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const isRoot = process.getuid() === 0;
const ADD = (name) => `INSERT INTO metadata VALUES ('${name}', 'committed')`;
const names = (database) =>
  withDatabase(database, (db) => db.prepare('SELECT key FROM metadata ORDER BY key').pluck().all());

/** Makes a project with a backup in a separate store. */
async function makeSavedProject() {
  const project = makeProject({ nodes: 300 });
  expect(
    await kg(['diag', 'backup', '--project', project.root, '--output', project.backups]),
  ).toMatchObject({ status: 0 });
  return project;
}

const remove = (database, ...suffixes) => suffixes.forEach((suffix) => rmSync(database + suffix));

/**
 * Ways to make a live host commit elsewhere. Each returns the host, which has the database open.
 */
const WAYS = {
  'whose WAL and its index were deleted': async ({ database }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    remove(database, '-wal', '-shm');
    return host;
  },
  'whose WAL was deleted without its index': async ({ database }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    remove(database, '-wal');
    return host;
  },
  'whose WAL was deleted before its first commit': async ({ database }) => {
    const host = await startHost(database);
    await host.tell('SELECT count(*) FROM nodes');
    remove(database, '-wal');
    return host;
  },
  'whose WAL was replaced by another one': async ({ database }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    const other = path.join(temporaryDirectory(), 'other.db');
    fillDatabase(other, { nodes: 1 });
    const source = await startHost(other);
    for (let n = 0; n < 20; n += 1) await source.tell(ADD(`other ${n}`));
    copyFileSync(`${other}-wal`, `${database}-new`);
    renameSync(`${database}-new`, `${database}-wal`);
    return host;
  },
  'whose WAL was deleted, and another process has made a new one': async ({ database }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    remove(database, '-wal', '-shm');
    const second = await startHost(database);
    await second.tell('SELECT count(*) FROM nodes');
    return host;
  },
  'that has another hard link open': async ({ database }) => {
    const other = path.join(temporaryDirectory(), 'other.db');
    linkSync(database, other);
    return startHost(other);
  },
  'that has another hard link open, while another process has this name open': async ({
    database,
  }) => {
    const sound = await startHost(database);
    await sound.tell('SELECT count(*) FROM nodes');
    const other = path.join(temporaryDirectory(), 'other.db');
    linkSync(database, other);
    const host = await startHost(other);
    return { ...host, kill: () => Promise.all([sound.kill(), host.kill()]) };
  },
  'over whose database another file was renamed': async ({ database }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    fillDatabase(`${database}-new`, { nodes: 300 });
    renameSync(`${database}-new`, database);
    return host;
  },
  'whose database was moved away and replaced': async ({ root, database }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    mkdirSync(path.join(root, 'old'));
    renameSync(database, path.join(root, 'old/knowledge.db'));
    fillDatabase(`${database}-new`, { nodes: 300 });
    renameSync(`${database}-new`, database);
    return host;
  },
  'whose database was moved away, and whose replacement another process has open': async ({
    root,
    database,
  }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    mkdirSync(path.join(root, 'old'));
    renameSync(database, path.join(root, 'old/knowledge.db'));
    fillDatabase(`${database}-new`, { nodes: 300 });
    renameSync(`${database}-new`, database);
    const second = await startHost(database);
    await second.tell('SELECT count(*) FROM sqlite_schema');
    return host;
  },
  'whose database, WAL and index were replaced': async ({ database }) => {
    const host = await startHost(database);
    await host.tell(ADD('before'));
    remove(database, '', '-wal', '-shm');
    fillDatabase(database, { nodes: 300 });
    return host;
  },
};

/** Expects every command to report that the host of this project commits elsewhere. */
async function expectReported({ root, database, backups }, holder) {
  const lookCommands = [
    ['health'],
    ['integrity'],
    ['backup', '--strict', '--output', path.join(root, '../strict')],
  ];
  const [health, integrity, backup] = await Promise.all(
    lookCommands.map((args) => kg(['diag', ...args, '--project', root, '--json'])),
  );
  for (const { status, stdout } of [health, integrity]) {
    expect(status).toBe(3);
    const [issue] = resultOf(stdout).issues.filter(
      ({ code }) => code === 'KG_ISSUE_WAL_NOT_IN_USE',
    );
    expect(issue).toMatchObject({ severity: 'error', message: expect.stringContaining(holder) });
    expect(issue.message).toContain('WAL');
  }
  expect(backup.status).not.toBe(0);
  expect(backup.stdout + backup.stderr).toContain('KG_INCOMPLETE');
  expect(backup.stdout + backup.stderr).toContain(holder);

  const before = fingerprint(root);
  const restore = [
    'diag',
    'restore',
    '--project',
    root,
    '--file',
    path.join(backups, 'latest.tar.gz'),
    '--yes',
  ];
  for (const args of [
    restore,
    [...restore, '--dry-run'],
    ['diag', 'repair', '--auto', '--project', root],
  ]) {
    const { status, stderr } = await kg(args);
    expect([args, status, stderr]).toEqual([
      args,
      3,
      expect.stringContaining('KG_DATABASE_IN_USE'),
    ]);
    expect(stderr).toContain(holder);
  }
  expect(fingerprint(root)).toEqual(before);
  expect(statSync(database).isFile()).toBe(true);
}

describe('a process', () => {
  for (const [way, arrange] of Object.entries(WAYS)) {
    test(`${way} is named, and neither a restore nor a repair overwrites the database`, async () => {
      const project = await makeSavedProject();
      const host = await arrange(project);
      await host.tell(ADD('after'));
      await expectReported(project, `process ${host.pid} (node)`);
      // The host continues with its own content.
      expect(await host.tell("SELECT value FROM metadata WHERE key = 'after'")).toEqual([
        { value: 'committed' },
      ]);
      await host.kill();
      expect(
        await kg([
          'diag',
          'restore',
          '--project',
          project.root,
          '--file',
          path.join(project.backups, 'latest.tar.gz'),
          '--yes',
        ]),
      ).toMatchObject({
        status: 0,
      });
      expect(names(project.database)).toEqual([]);
      const { stdout } = await kg(['diag', 'health', '--project', project.root, '--json']);
      expect(stdout).not.toContain('KG_ISSUE_WAL_NOT_IN_USE');
    });
  }

  test('in rollback mode, whose database was replaced, is named', async () => {
    const project = await makeSavedProject();
    withDatabase(project.database, (db) => db.pragma('journal_mode = delete'));
    const host = await startHost(project.database);
    remove(project.database, '');
    fillDatabase(project.database, { nodes: 300 });
    await expectReported(project, `process ${host.pid} (node)`);
  });

  test('whose database is deleted is named, with what to do before it ends', async () => {
    const project = await makeSavedProject();
    const host = await startHost(project.database);
    await host.tell(ADD('before'));
    remove(project.database, '', '-wal', '-shm');
    const { status, stdout } = await kg(['diag', 'health', '--project', project.root]);
    expect(status).toBe(3);
    expect(stdout).toContain(`process ${host.pid} (node)`);
    expect(stdout).toContain('VACUUM INTO');
    const restore = [
      'diag',
      'restore',
      '--project',
      project.root,
      '--file',
      path.join(project.backups, 'latest.tar.gz'),
      '--yes',
    ];
    expect(await kg(restore)).toMatchObject({
      status: 3,
      stderr: expect.stringContaining('KG_DATABASE_IN_USE'),
    });
    const copy = path.join(temporaryDirectory(), 'copy.db');
    await host.tell(`VACUUM INTO '${copy}'`);
    await host.kill();
    expect(names(copy)).toEqual(['before']);
    expect(await kg(restore)).toMatchObject({ status: 0 });
  });

  test.skipIf(!isRoot)(
    'in another mount namespace that holds only the database file is named',
    async () => {
      const project = await makeSavedProject();
      const elsewhere = temporaryDirectory();
      const mounted = path.join(elsewhere, 'app.db');
      writeFileSync(mounted, '');
      const mount = inBindMount(project.database, mounted);
      const host = await startHost(mounted, { through: mount });
      await host.tell(ADD('in the container'));
      await expectReported(project, `process ${host.pid} (node)`);
      await host.stop();
    },
  );

  test.skipIf(!isRoot)('that is invisible here may be one in another container', async () => {
    const project = await makeSavedProject();
    const host = await startHost(project.database);
    await host.tell(ADD('before'));
    remove(project.database, '-wal', '-shm');
    // A separate PID namespace, in which the process of the host is invisible.
    const kgArgs = ['diag', 'health', '--project', project.root, '--json'];
    const inside = spawn('unshare', ['-m', '-p', '-f', '--mount-proc', kgPath, ...kgArgs]);
    let output = '';
    inside.stdout.on('data', (text) => (output += text));
    await once(inside, 'close');
    expect(output).toContain('KG_ISSUE_WAL_NOT_IN_USE');
    expect(output).toContain('another container');
  });
});

test('a WAL that SQLite ignores makes a backup incomplete, and is reported without a wait', async () => {
  const { root, database, backups } = await makeSavedProject();
  writeFileSync(`${database}-wal`, Buffer.alloc(41_000, 'y'));
  writeFileSync(`${database}-shm`, Buffer.alloc(32_768));
  const { status, stdout } = await kg(
    ['diag', 'backup', '--project', root, '--output', backups, '--json'],
    { timeout: 8000 },
  );
  expect(status).toBe(6);
  const { warnings, incomplete } = resultOf(stdout);
  expect(incomplete).toBe(true);
  expect(warnings).toEqual([
    expect.objectContaining({
      code: 'KG_WARN_WAL_NOT_IN_USE',
      message: expect.stringContaining('SQLite ignores'),
    }),
  ]);
  const strict = await kg(['diag', 'backup', '--project', root, '--output', backups, '--strict'], {
    timeout: 8000,
  });
  expect(strict.stderr).toContain('KG_INCOMPLETE');
});

test('an incomplete WAL header of a killed writer is no loss', async () => {
  const { root, database, backups } = await makeSavedProject();
  writeFileSync(`${database}-shm`, Buffer.alloc(32_768));
  for (const length of [1, 16, 32, 567]) {
    writeFileSync(`${database}-wal`, Buffer.alloc(length, 'y'));
    const { status, stdout } = await kg([
      'diag',
      'backup',
      '--project',
      root,
      '--output',
      backups,
      '--strict',
      '--json',
    ]);
    expect([length, status, resultOf(stdout).warnings]).toEqual([length, 0, []]);
  }
});

test('the API reports it too', async () => {
  const project = await makeSavedProject();
  const host = await startHost(project.database);
  await host.tell(ADD('before'));
  remove(project.database, '-wal', '-shm');
  const manager = createBackupManager({ projectRoot: project.root, backupDir: project.backups });
  const { warnings } = await manager.createBackup();
  const [warning] = warnings.filter(({ code }) => code === 'KG_WARN_WAL_NOT_IN_USE');
  expect(warning).toMatchObject({
    path: '.kg/knowledge.db',
    message: expect.stringContaining(`process ${host.pid} (node)`),
  });
  await expect(manager.createBackup({ strict: true })).rejects.toMatchObject({
    code: 'KG_INCOMPLETE',
  });
  await expect(manager.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
    code: 'KG_DATABASE_IN_USE',
  });
  await expect(
    new IntegrityChecker(project.root).runChecks({ repairMode: true }),
  ).rejects.toMatchObject({ code: 'KG_DATABASE_IN_USE' });
});

test('a forced restore replaces the file, and the process keeps its own content', async () => {
  const project = await makeSavedProject();
  const host = await startHost(project.database);
  await host.tell(ADD('before'));
  remove(project.database, '-wal', '-shm');
  const restore = [
    'diag',
    'restore',
    '--project',
    project.root,
    '--file',
    path.join(project.backups, 'latest.tar.gz'),
    '--yes',
    '--force',
  ];
  expect(await kg(restore)).toMatchObject({ status: 0 });
  await host.tell(ADD('after'));
  await host.tell('PRAGMA wal_checkpoint(TRUNCATE)');
  expect(await host.tell('SELECT key FROM metadata ORDER BY key')).toEqual([
    { key: 'after' },
    { key: 'before' },
  ]);
  expect(names(project.database)).toEqual([]);
  expect(run('sqlite3', [project.database, 'PRAGMA integrity_check'])).toBe('ok\n');
});

describe('there is no alarm', () => {
  const kgOutput = async (root) => {
    const backup = kg([
      'diag',
      'backup',
      '--strict',
      '--project',
      root,
      '--output',
      path.join(root, '../other'),
    ]);
    const second = kg([
      'diag',
      'backup',
      '--strict',
      '--project',
      root,
      '--output',
      path.join(root, '../second'),
    ]);
    const health = kg(['diag', 'health', '--project', root]);
    const all = await Promise.all([backup, second, health]);
    expect(all.map(({ status }) => status)).toEqual([0, 0, 0]);
    return all.map(({ stdout, stderr }) => stdout + stderr).join('');
  };
  const expectNoAlarm = (text) => expect(text).not.toMatch(/WAL_NOT_IN_USE|SAME_FILE/);

  test('of a live host, during two backups and a check', async () => {
    const { root, database } = makeProject();
    const host = await startHost(database);
    await host.tell(ADD('before'));
    expectNoAlarm(await kgOutput(root));
  });

  test.skipIf(!isRoot)(
    'of a host in another mount namespace with the whole directory',
    async () => {
      const { root, database } = makeProject();
      const elsewhere = temporaryDirectory();
      const mount = inBindMount(path.dirname(database), elsewhere);
      const host = await startHost(path.join(elsewhere, 'knowledge.db'), { through: mount });
      await host.tell(ADD('before'));
      expectNoAlarm(await kgOutput(root));
      await host.stop();
    },
  );

  test('of a host that checkpoints and restarts its WAL', async () => {
    const { root, database } = makeProject();
    const host = await startHost(database);
    for (const mode of ['PASSIVE', 'RESTART', 'TRUNCATE']) {
      await host.tell(ADD(mode));
      await host.tell(`PRAGMA wal_checkpoint(${mode})`);
      expectNoAlarm(await kgOutput(root));
      await host.tell(ADD(`${mode} again`));
      expectNoAlarm(await kgOutput(root));
    }
  });

  test.skipIf(!isRoot)(
    'of a host of another user, whose files this user can read, or cannot',
    async () => {
      const { root, database } = makeProject();
      const base = path.join(root, '..');
      chmodSync(base, 0o755);
      const program = path.join(base, 'kg');
      copyFileSync(kgPath, program);
      chmodSync(program, 0o755);
      run('chown', ['-R', '65534:65534', root]);
      const script = `
import os, sqlite3, sys
os.umask(int(sys.argv[2], 8))
c = sqlite3.connect(sys.argv[1]); c.execute("insert or replace into metadata values ('n', 1)"); c.commit()
print("ready", flush=True); sys.stdin.read()`;
      const as = (user) => ['setpriv', `--reuid=${user}`, `--regid=${user}`, '--clear-groups'];
      for (const mask of ['022', '077']) {
        if (mask === '077') chmodSync(database, 0o644);
        const [command, ...args] = [...as(65534), '/usr/bin/python3', '-c', script, database, mask];
        const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
        onTestFinished(() => child.kill('SIGKILL'));
        await once(child.stdout, 'data');
        if (mask === '077')
          ['-wal', '-shm'].forEach((suffix) => chmodSync(database + suffix, 0o600));
        for (const user of ['0', '65534', '65533']) {
          const [setpriv, ...rest] = [...as(user), program, 'diag', 'health', '--project', root];
          const healthOutput = await new Promise((resolve) =>
            execFile(setpriv, rest, { cwd: '/' }, (_, stdout, stderr) => resolve(stdout + stderr)),
          );
          expectNoAlarm(healthOutput);
          expect(healthOutput).toContain('knowledge.db');
        }
        child.stdin.end();
        await once(child, 'exit');
      }
    },
  );

  test('of a host in rollback mode during a read', async () => {
    const { root, database } = makeProject({ journalMode: 'delete' });
    const host = await startHost(database);
    await host.tell('BEGIN');
    await host.tell('SELECT count(*) FROM nodes');
    expectNoAlarm(await kgOutput(root));
  });

  test('of a host that read its own database as a file, and has lost its lock', async () => {
    const { root, database } = makeProject();
    const db = new Database(database);
    onTestFinished(() => db.close());
    db.exec(ADD('before'));
    for (const suffix of ['', '-shm']) {
      readFileSync(database + suffix);
      expectNoAlarm(await kgOutput(root));
    }
  });

  test('of a host that opens and closes its database repeatedly', async () => {
    const { root, database } = makeProject();
    const script = `
import sqlite3, sys
print("ready", flush=True)
while True:
    c = sqlite3.connect(sys.argv[1], timeout=30); c.execute("insert or replace into metadata values ('n', 1)"); c.commit(); c.close()`;
    const child = spawn('python3', ['-c', script, database], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    onTestFinished(() => child.kill('SIGKILL'));
    await once(child.stdout, 'data');
    for (let n = 0; n < 3; n += 1) expectNoAlarm(await kgOutput(root));
  });

  test('of a child that inherited descriptors of a database whose WAL is deleted', async () => {
    const { root, database } = makeProject();
    const script = `
import os, sqlite3, sys
c = sqlite3.connect(sys.argv[1]); c.execute("insert or replace into metadata values ('n', 1)"); c.commit()
if os.fork() == 0:
    sys.stdin.read(); os._exit(0)
c.close()
print("ready", flush=True); os.wait()`;
    const child = spawn('python3', ['-c', script, database], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    onTestFinished(() => child.stdin.end());
    await once(child.stdout, 'data');
    expectNoAlarm(await kgOutput(root));
  });

  test('of a host that ended and left its WAL', async () => {
    const { root, database } = makeProject();
    const host = await startHost(database);
    await host.tell(ADD('before'));
    await host.kill();
    expect(statSync(`${database}-wal`).size).toBeGreaterThan(0);
    expectNoAlarm(await kgOutput(root));
    // No process uses this truncated WAL, so it is damage and has a different issue.
    truncateSync(`${database}-wal`, 100);
    const { stdout } = await kg(['diag', 'health', '--project', root]);
    expect(stdout).not.toContain('WAL_NOT_IN_USE');
  });
});
