// Results with less than the user asked for: the result, the exit status and every monitor report
// them.

import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { kg, kgPath, run, spawn, until } from './support/processes.mjs';
import { contents, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const isRoot = process.getuid() === 0;
const json = ({ stdout }) => resultOf(stdout);
const codes = (result) => result.warnings.map(({ code }) => code);

/** Returns `kg diag` for a small project with its backups in `.kg/backups`. */
function makeSmallProject({ nodes = 10 } = {}) {
  const { root, database } = makeProject({ nodes });
  const diag = (...args) => kg(['diag', ...args], { cwd: root });
  return { root, database, diag, manager: createBackupManager({ projectRoot: root }) };
}

/** Returns `kg` run by a user without privileges, who owns the project. */
function kgAsUser({ root }) {
  const base = path.dirname(root);
  chmodSync(base, 0o755);
  const copy = path.join(base, 'kg');
  copyFileSync(kgPath, copy);
  run('chown', ['-R', '65534:65534', base]);
  return (...args) => {
    try {
      const as = ['--reuid=65534', '--regid=65534', '--clear-groups', copy, ...args];
      return {
        status: 0,
        stdout: run('setpriv', as, { cwd: root, env: { ...process.env, HOME: base } }),
      };
    } catch ({ status, stdout, stderr }) {
      return { status, stdout, stderr };
    }
  };
}

describe('an incomplete backup', () => {
  const lacking = {
    'a directory link out of the project': (root) => {
      rmSync(path.join(root, '.kg/vectors'), { recursive: true });
      symlinkSync(temporaryDirectory(), path.join(root, '.kg/vectors'));
    },
    'the WAL of a missing database': (root) => {
      writeFileSync(
        path.join(root, '.kg/plugins/gone.db-wal'),
        Buffer.from('377f0682002de218', 'hex'),
      );
    },
  };
  for (const [what, spoil] of Object.entries(lacking)) {
    test(`exits with 6 and is marked everywhere: ${what}`, async () => {
      const { root, diag } = makeSmallProject();
      spoil(root);
      const made = await diag('backup', '--json', '--metrics-file', path.join(root, 'kg.prom'));
      expect(made).toMatchObject({ status: 6 });
      expect(json(made)).toMatchObject({ incomplete: true });
      expect(JSON.parse(readFileSync(`${json(made).path}.manifest.json`)).incomplete).toBe(true);
      expect((await diag('backup', '--list')).stdout).toContain('[incomplete]');
      const status = json(await diag('backup', '--status', '--json'));
      expect(status.health).toMatchObject({
        ok: false,
        messages: [expect.stringContaining('is incomplete')],
      });
      expect(status.lastRun).toMatchObject({ incomplete: true, backup: json(made).id });
      const { issues } = json(await diag('health', '--json'));
      expect(issues).toContainEqual(
        expect.objectContaining({ code: 'KG_ISSUE_BACKUP_INCOMPLETE' }),
      );
      expect(readFileSync(path.join(root, 'kg.prom'), 'utf8')).toMatch(
        /^kg_backup_last_incomplete\{.*\} 1$/m,
      );
      const restored = json(
        await diag('restore', '--file', 'latest', '--target', path.join(root, '../r'), '--json'),
      );
      expect(codes(restored)).toEqual(['KG_WARN_INCOMPLETE']);
      expect((await diag('backup', '--strict')).stderr).toContain('KG_INCOMPLETE');
    });
  }

  test('of the service counts as a success with a warning and is not retried at once', async () => {
    const { root, diag } = makeSmallProject();
    symlinkSync(temporaryDirectory(), path.join(root, '.kg/elsewhere'));
    const inProject = (...args) => kg(args, { cwd: root });
    await inProject('config', 'set', 'backup.enabled', 'true');
    await inProject('config', 'set', 'backup.schedule', '* * * * * *');
    try {
      await inProject('serve', '--all', '--listen', 'off');
      const status = await until(async () => {
        const report = json(await diag('backup', '--status', '--json'));
        return report.lastRun && report;
      }, 'a run of the service');
      expect(status.lastRun).toMatchObject({ incomplete: true, trigger: 'schedule' });
      expect([status.lastFailure, status.health.messages[0]]).toEqual([
        null,
        expect.stringContaining('is incomplete'),
      ]);
      expect((await inProject('serve', '--status')).stdout).toMatch(/last .*, incomplete/);
    } finally {
      await inProject('serve', '--stop');
    }
  });

  test('is complete if the missing part is excluded, and a complete backup is not marked', async () => {
    const { root, diag } = makeSmallProject();
    symlinkSync(temporaryDirectory(), path.join(root, '.kg/elsewhere'));
    const made = await diag('backup', '--exclude', '.kg/elsewhere', '--json');
    expect(made.status).toBe(0);
    expect(json(made)).not.toHaveProperty('incomplete');
    expect((await diag('backup', '--list')).stdout).not.toContain('incomplete');
  });

  test('is reported to the API, to hooks and in an encrypted store, which names no missing file', async () => {
    const { root, diag } = makeSmallProject();
    const reportFile = path.join(root, 'told.json');
    writeFileSync(
      path.join(root, '.kg/hooks.json'),
      JSON.stringify({
        backup: {
          hooks: {
            onSuccess: {
              command: [
                'sh',
                '-c',
                `cat > ${reportFile}; echo $KG_BACKUP_INCOMPLETE >> ${reportFile}`,
              ],
            },
          },
        },
      }),
      { mode: 0o600 },
    );
    symlinkSync(temporaryDirectory(), path.join(root, '.kg/a-secret-name'));
    const key = path.join(temporaryDirectory(), 'key');
    writeFileSync(key, 'a long passphrase\n', { mode: 0o600 });
    expect((await diag('backup', '--passphrase-file', key)).status).toBe(6);
    const manager = createBackupManager({ projectRoot: root, encryption: { passphraseFile: key } });
    const [backup] = await manager.listBackups();
    expect(backup).toMatchObject({ incomplete: true, encrypted: true, warnings: [] });
    expect(readFileSync(`${backup.path}.manifest.json`, 'utf8')).not.toContain('a-secret-name');
    const [, event, variable] = /^(.*\})(.*)\n$/s.exec(readFileSync(reportFile, 'utf8'));
    expect([JSON.parse(event).backup.incomplete, variable]).toEqual([true, '1']);
  });
});

describe('`latest` that passes over newer backups', () => {
  async function chain() {
    const made = makeSmallProject();
    const backups = [];
    for (let n = 0; n < 3; n += 1) {
      withDatabase(made.database, (db) =>
        db.prepare('INSERT INTO nodes (id) VALUES (?)').run(`more${n}`),
      );
      backups.push(await made.manager.createBackup({ type: n ? 'incremental' : 'full' }));
    }
    return { ...made, backups };
  }
  const target = (root) => path.join(root, '..', 'restored');

  /** Expects every interface to warn that `latest` means `chosen`, and to name the skipped ids. */
  async function expectPassedOver({ root, diag, manager }, chosen, ids) {
    const warning = expect.objectContaining({
      code: 'KG_WARN_PASSED_OVER',
      message: expect.stringContaining(ids[0]),
    });
    const restored = await diag('restore', '--file', 'latest', '--target', target(root), '--json');
    expect(json(restored)).toMatchObject({ id: chosen.id, warnings: [warning] });
    for (const id of ids) expect(json(restored).warnings[0].message).toContain(id);
    for (const args of [
      ['restore', '--dry-run', '--file', 'latest'],
      ['backup', '--verify', 'latest'],
      ['drill'],
      ['backup', '--list'],
    ]) {
      expect((await diag(...args)).stderr, args.join(' ')).toContain('KG_WARN_PASSED_OVER');
    }
    const link = path.join(root, '.kg/backups/latest.tar.gz');
    expect((await manager.checkBackup('latest')).warnings).toEqual([warning]);
    expect(
      (await manager.restore({ backupId: 'latest', targetDir: target(root), overwrite: true }))
        .warnings[0],
    ).toEqual(warning);
    expect((await manager.getLatestBackup()).warnings).toEqual([warning]);
    expect((await manager.checkBackup(chosen.id)).warnings).toEqual([]);
    const status = json(await diag('backup', '--status', '--json'));
    expect(status.health.messages.join()).toContain(ids[0]);
    const { issues } = json(await diag('health', '--json'));
    expect(issues).toContainEqual(expect.objectContaining({ code: 'KG_ISSUE_BACKUP_PASSED_OVER' }));
    return link;
  }

  test('because their chain lacks an archive', async () => {
    const made = await chain();
    const [full, second, third] = made.backups;
    rmSync(second.path);
    await expectPassedOver(made, full, [third.id, second.id]);
    const { stdout } = await made.diag('backup', '--list');
    expect(stdout).toMatch(
      new RegExp(
        `${third.id} .*\\[chain broken: depends on ${second.id}, which is missing or cannot be read\\]`,
      ),
    );
    expect(stdout).toMatch(new RegExp(`${second.id} .*\\[archive missing\\]`));
  });

  test('because a sidecar is missing or describes another archive', async () => {
    const made = await chain();
    const [, second, third] = made.backups;
    rmSync(`${third.path}.manifest.json`);
    await expectPassedOver(made, second, [third.id]);
    expect((await made.diag('backup', '--list')).stdout).toMatch(
      new RegExp(`${third.id} .*\\[no manifest\\]`),
    );
    writeFileSync(`${third.path}.manifest.json`, 'not json');
    const { stderr } = await made.diag(
      'restore',
      '--file',
      path.join(made.root, '.kg/backups/latest.tar.gz'),
      '--target',
      target(made.root),
      '--yes',
    );
    expect(stderr).not.toContain('KG_WARN_PASSED_OVER');
    const restored = await made.diag(
      'restore',
      '--file',
      'latest',
      '--target',
      target(made.root),
      '--yes',
      '--json',
    );
    expect(codes(json(restored))).toContain('KG_WARN_PASSED_OVER');
  });

  test('because their source was damaged', async () => {
    const made = makeSmallProject({ nodes: 400 });
    const good = await made.manager.createBackup();
    const bytes = readFileSync(made.database);
    writeFileSync(made.database, bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000));
    const damaged = await made.manager.createBackup();
    await expectPassedOver(made, good, [damaged.id]);
    const asked = json(
      await made.diag(
        'restore',
        '--file',
        damaged.id,
        '--target',
        target(made.root),
        '--yes',
        '--json',
      ),
    );
    expect(codes(asked)).toContain('KG_WARN_SOURCE_DAMAGED');
  });

  test('does not warn about older broken backups', async () => {
    const { root, diag, manager, backups } = await chain();
    rmSync(backups[1].path);
    const full = await manager.createBackup();
    const restored = await diag('restore', '--file', 'latest', '--target', target(root), '--json');
    expect(json(restored)).toMatchObject({ id: full.id, warnings: [] });
  });
});

describe.skipIf(!isRoot)(
  'an incremental backup keeps the base state of a source that it cannot read',
  () => {
    const listedFiles = (root) =>
      contents(root).filter((line) => /^\.kg\/(plugins|vectors)/.test(line));

    /**
     * Makes a project with many kinds of files in `.kg/plugins/a`, which a user without privileges
     * backs up and restores.
     */
    async function makeClosableProject() {
      const made = makeSmallProject();
      const inner = path.join(made.root, '.kg/plugins/a');
      mkdirSync(path.join(inner, 'deep'), { recursive: true });
      writeFileSync(path.join(inner, 'deep/file.json'), '{}');
      writeFileSync(path.join(inner, 'deep/scratch.tmp'), 'left out later');
      symlinkSync('deep/file.json', path.join(inner, 'link'));
      for (const file of ['.kg/plugins/a/deep/own.sqlite', '.kg/vectors.db']) {
        withDatabase(path.join(made.root, file), (db) =>
          db.exec("CREATE TABLE t (x); INSERT INTO t VALUES ('kept')"),
        );
      }
      const asUser = kgAsUser(made);
      const backup = (...args) =>
        asUser('diag', 'backup', '--json', '--type', 'incremental', ...args);
      const restored = async () => {
        const target = path.join(made.root, '..', `restored-${Math.random()}`);
        expect(asUser('diag', 'restore', '--file', 'latest', '--target', target)).toMatchObject({
          status: 0,
        });
        return listedFiles(target);
      };
      expect(asUser('diag', 'backup')).toMatchObject({ status: 0 });
      return { ...made, inner, asUser, backup, restored, before: listedFiles(made.root) };
    }

    test.each(['', 'deep', 'deep/file.json', 'deep/own.sqlite', '../../vectors.db'])(
      '.kg/plugins/a/%s',
      async (closed) => {
        const { root, inner, asUser, backup, restored, before } = await makeClosableProject();
        chmodSync(path.join(inner, closed), 0);
        const made = backup();
        expect(made).toMatchObject({ status: 6 });
        expect(json(made)).toMatchObject({ type: 'incremental', incomplete: true });
        expect(codes(json(made))).toEqual(['KG_WARN_FILE_UNREADABLE']);
        // The next backup must not record anything as deleted either.
        expect(backup()).toMatchObject({ status: 6 });
        expect(await restored()).toEqual(before);
        expect(asUser('diag', 'backup', '--verify', 'latest')).toMatchObject({ status: 0 });
        chmodSync(path.join(inner, closed), 0o755);
        const whole = backup();
        expect(whole).toMatchObject({ status: 0 });
        expect(json(whole)).not.toHaveProperty('incomplete');
        expect(listedFiles(root)).toEqual(before);
        expect(await restored()).toEqual(before);
      },
    );

    test('also of the files and links in a directory that lists names but forbids access', async () => {
      const { inner, backup, restored, before } = await makeClosableProject();
      chmodSync(inner, 0o444);
      expect(backup()).toMatchObject({ status: 6 });
      chmodSync(inner, 0o755);
      expect(await restored()).toEqual(before);
    });

    test('but drops newly excluded files', async () => {
      const { inner, backup, restored, before } = await makeClosableProject();
      chmodSync(path.join(inner, 'deep'), 0);
      expect(backup('--exclude', '*.tmp')).toMatchObject({ status: 6 });
      expect(await restored()).toEqual(before.filter((line) => !line.includes('.tmp')));
    });
  },
);

describe('`health --max-age`', () => {
  const backupIssues = (result) =>
    json(result)
      .issues.filter(({ component }) => component === 'backups')
      .map(({ code, severity }) => [code, severity]);

  test('fails only if it is given and the last backup is missing or older', async () => {
    const { diag, manager } = makeSmallProject();
    const without = await diag('health', '--json');
    expect([without.status, backupIssues(without)]).toEqual([
      0,
      [['KG_ISSUE_BACKUP_NONE', 'warning']],
    ]);
    const none = await diag('health', '--max-age', '24h', '--json');
    expect([none.status, backupIssues(none), json(none).healthy]).toEqual([
      4,
      [['KG_ISSUE_BACKUP_NONE', 'error']],
      false,
    ]);
    const { path: archive } = await manager.createBackup();
    expect((await diag('health', '--max-age', '24h')).status).toBe(0);
    const sidecar = `${archive}.manifest.json`;
    const made = (hours) => new Date(Date.now() - hours * 3_600_000).toISOString();
    const date = (hours) =>
      writeFileSync(
        sidecar,
        JSON.stringify({ ...JSON.parse(readFileSync(sidecar)), timestamp: made(hours) }),
      );
    date(30);
    const old = await diag('health', '--max-age', '24h', '--json');
    expect([old.status, backupIssues(old)]).toEqual([4, [['KG_ISSUE_BACKUP_OLD', 'error']]]);
    expect((await diag('health', '--max-age', '24h')).stdout).toContain(
      'is 30 h old; the limit is 24 h',
    );
    expect((await diag('health', '--max-age', '31h')).status).toBe(0);
    date(9 * 24);
    expect(backupIssues(await diag('health', '--json'))).toEqual([
      ['KG_ISSUE_BACKUP_OLD', 'warning'],
    ]);
  });
});

describe('a killed backup', () => {
  /**
   * Starts a backup that waits for another writer of the store. The test decides when that writer
   * ends.
   */
  async function startWaitingBackup({ root }) {
    const backups = path.join(root, '.kg/backups');
    mkdirSync(backups, { recursive: true });
    const holder = spawn(
      'flock',
      [path.join(backups, '.kg-store.lock'), 'sh', '-c', 'echo held; read end'],
      { stdio: ['pipe', 'pipe', 'inherit'] },
    );
    await new Promise((resolve) => holder.stdout.once('data', resolve));
    const backup = spawn(kgPath, ['diag', 'backup', '--quiet'], { cwd: root, stdio: 'ignore' });
    const ended = new Promise((resolve) =>
      backup.once('exit', (status, signal) => resolve({ status, signal })),
    );
    const records = () =>
      readdirSync(path.join(root, '.kg/cache')).filter((name) => name.endsWith('.started'));
    await until(
      () => existsSync(path.join(root, '.kg/cache')) && records().length === 1,
      'the run',
    );
    return { backup, ended, records, release: () => holder.stdin.end() };
  }
  const lastRun = async (diag) => json(await diag('backup', '--status', '--json'));

  test('is the last failure in status, health and metrics, until there is another backup', async () => {
    const made = makeSmallProject();
    const { diag, root } = made;
    const { backup, ended, records, release } = await startWaitingBackup(made);
    expect((await lastRun(diag)).lastFailure).toBe(null);
    backup.kill('SIGKILL');
    await ended;
    release();
    const status = await lastRun(diag);
    expect(status.lastFailure).toMatchObject({ error: { code: 'KG_KILLED' }, trigger: 'manual' });
    expect(status.health).toMatchObject({
      ok: false,
      messages: [expect.anything(), expect.stringContaining('KG_KILLED')],
    });
    const { issues } = json(await diag('health', '--json'));
    expect(issues).toContainEqual(
      expect.objectContaining({
        code: 'KG_ISSUE_BACKUP_FAILED',
        message: expect.stringContaining('KG_KILLED'),
      }),
    );
    expect((await diag('backup', '--metrics-file', path.join(root, 'kg.prom'))).status).toBe(0);
    expect(readFileSync(path.join(root, 'kg.prom'), 'utf8')).toContain(
      'kg_backup_last_failure_timestamp_seconds{',
    );
    const after = await lastRun(diag);
    expect([after.health.ok, after.lastFailure.error.code, records()]).toEqual([
      true,
      'KG_KILLED',
      [],
    ]);
  });

  test('is not a failure if the user interrupted it, once or twice', async () => {
    const made = makeSmallProject();
    const { backup, ended, records, release } = await startWaitingBackup(made);
    backup.kill('SIGINT');
    expect(await ended).toEqual({ status: 130, signal: null });
    release();
    expect([(await lastRun(made.diag)).lastFailure, records()]).toEqual([null, []]);
  });
});

describe('a store that contained backups at the last run and is empty now', () => {
  const emptyings = {
    'its files are missing': ({ backups }) =>
      readdirSync(backups).forEach((name) => rmSync(path.join(backups, name))),
    'the directory is missing': ({ backups }) => renameSync(backups, `${backups}-unmounted`),
    'another directory is mounted there': ({ backups, stranger }) => {
      renameSync(backups, `${backups}-unmounted`);
      mkdirSync(backups);
      for (const name of readdirSync(stranger))
        if (name.startsWith('kg-'))
          copyFileSync(path.join(stranger, name), path.join(backups, name));
    },
  };

  async function filled() {
    const { root } = makeProject({ nodes: 10 });
    const backups = path.join(root, '../backups');
    const other = makeProject({ nodes: 10 });
    await createBackupManager({ projectRoot: other.root, backupDir: other.backups }).createBackup();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    for (let n = 0; n < 2; n += 1) await manager.createBackup();
    const diag = (...args) => kg(['diag', ...args], { cwd: root });
    return { root, backups, stranger: other.backups, manager, diag };
  }

  test.each(Object.keys(emptyings))(
    'is a warning everywhere, and the backup is made: %s',
    async (how) => {
      const made = await filled();
      const { root, backups, diag } = made;
      emptyings[how](made);
      const at = ['--output', backups];
      expect((await diag('backup', '--list', ...at)).stderr).toMatch(
        /contained 2 backups .* \[KG_WARN_STORE_EMPTIED\]/,
      );
      const before = json(await diag('backup', '--status', '--json', ...at));
      expect([before.storeEmptied, before.health.ok]).toEqual([true, false]);
      const health = await diag('health', '--json', '--backup-dir', backups);
      expect([health.status, json(health).issues.map(({ code }) => code)]).toEqual([
        4,
        expect.arrayContaining(['KG_ISSUE_STORE_EMPTIED']),
      ]);
      const metrics = path.join(root, 'kg.prom');
      const backup = await diag(
        'backup',
        '--json',
        '--max-backups',
        '1',
        '--metrics-file',
        metrics,
        ...at,
      );
      expect(backup.status).toBe(0);
      expect(json(backup).warnings[0]).toMatchObject({ code: 'KG_WARN_STORE_EMPTIED' });
      expect(json(backup)).not.toHaveProperty('retention');
      expect(readFileSync(metrics, 'utf8')).toMatch(/^kg_backup_store_emptied\{.*\} 1$/m);
      const after = json(await diag('backup', '--status', '--json', ...at));
      expect([after.health.ok, codes(after.lastRun)]).toEqual([false, ['KG_WARN_STORE_EMPTIED']]);
      const next = json(await diag('backup', '--json', ...at));
      expect(next.warnings).toEqual([]);
      expect(json(await diag('backup', '--status', '--json', ...at)).health.ok).toBe(true);
    },
  );

  test('is a warning of the API too, but not for deleted backups or a new directory', async () => {
    const { backups, root, manager } = await filled();
    renameSync(backups, `${backups}-unmounted`);
    expect(codes(await manager.createBackup())).toEqual(['KG_WARN_STORE_EMPTIED']);
    for (const { id } of await manager.listBackups()) await manager.deleteBackup(id);
    expect(codes(await manager.createBackup())).toEqual([]);
    const elsewhere = createBackupManager({
      projectRoot: root,
      backupDir: path.join(root, '../others'),
    });
    expect(codes(await elsewhere.createBackup())).toEqual([]);
  });
});

describe('a full backup that is made because no base is left', () => {
  test('is reported in the result, on the terminal, to hooks, in the status and to a scheduler', async () => {
    const { root, diag, manager } = makeSmallProject();
    await diag('backup');
    await kg(['config', 'set', 'backup.type', 'incremental'], { cwd: root });
    const reportFile = path.join(root, 'told.json');
    writeFileSync(
      path.join(root, '.kg/hooks.json'),
      JSON.stringify({
        backup: { hooks: { onSuccess: { command: ['sh', '-c', `cat > ${reportFile}`] } } },
      }),
      { mode: 0o600 },
    );
    const lose = async () => {
      const { path: last } = await manager.createBackup({ type: 'incremental' });
      for (const { path: archive } of await manager.listBackups())
        if (archive !== last) rmSync(archive);
    };
    await lose();
    // The settings ask for an incremental backup, and no flag asks for a full one.
    const made = await diag('backup', '--json');
    expect(json(made)).toMatchObject({ type: 'full', warnings: [{ code: 'KG_WARN_FULL' }] });
    expect(JSON.parse(readFileSync(reportFile)).backup.warnings).toMatchObject([
      { code: 'KG_WARN_FULL' },
    ]);
    expect(codes(json(await diag('backup', '--status', '--json')).lastRun)).toEqual([
      'KG_WARN_FULL',
    ]);
    expect((await diag('backup', '--status')).stdout).toContain('[KG_WARN_FULL]');
    await lose();
    const scheduled = await manager
      .scheduler({ schedule: '0 2 * * *', type: 'incremental' })
      .runNow();
    expect(scheduled).toMatchObject({ type: 'full', warnings: [{ code: 'KG_WARN_FULL' }] });
  });
});

describe('patterns of `--exclude` and `--path`', () => {
  const listedFiles = (backup) =>
    run('tar', ['-xOf', backup.path, 'files.jsonl'])
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line).path);
  const isGlossary = (file) => file.includes('glossary');

  test('match the same files for every way to write a path of the project', async () => {
    const { root, diag } = makeSmallProject();
    await diag('backup');
    const terms = '.kg/plugins/glossary/terms.json';
    for (const pattern of [
      './plugins/glossary',
      'plugins/glossary/',
      '.kg/plugins/glossary',
      './.kg/plugins/x/../glossary',
      'plugins/gloss*',
      'glossary',
      path.join(root, '.kg/plugins/glossary'),
    ]) {
      const made = json(await diag('backup', '--exclude', pattern, '--json'));
      expect([codes(made), listedFiles(made).some(isGlossary)], pattern).toEqual([[], false]);
      rmSync(path.join(root, '.kg/plugins/glossary'), { recursive: true });
      const [first] = json(await diag('backup', '--list', '--json')).backups.slice(-1);
      const restored = await diag('restore', '--file', first.id, '--path', pattern, '--json');
      expect(
        [restored.status, json(restored).filesRestored, existsSync(path.join(root, terms))],
        pattern,
      ).toEqual([0, 1, true]);
    }
  });

  test('that are absolute paths of the project match the same part of another directory', async () => {
    const { root, diag } = makeSmallProject();
    await diag('backup');
    const target = path.join(temporaryDirectory(), 'elsewhere');
    const restored = await diag(
      'restore',
      '--file',
      'latest',
      '--path',
      path.join(root, '.kg/plugins/glossary'),
      '--target',
      target,
      '--json',
    );
    expect([restored.status, json(restored).filesRestored, json(restored).warnings]).toEqual([
      0,
      1,
      [],
    ]);
    expect(existsSync(path.join(target, '.kg/plugins/glossary/terms.json'))).toBe(true);
  });

  test('that are invalid or lead out of the project are refused by both, and no backup is made', async () => {
    const { root, diag, manager } = makeSmallProject();
    await diag('backup');
    for (const pattern of [
      'plugins/[',
      '{a',
      '',
      '../other',
      '/etc/passwd',
      path.join(root, '../other/x'),
    ]) {
      for (const args of [
        ['backup', '--exclude', pattern],
        ['restore', '--file', 'latest', '--path', pattern],
      ]) {
        expect(await diag(...args), pattern).toMatchObject({
          status: 2,
          stderr: expect.stringContaining('KG_INVALID_OPTION'),
        });
      }
      await expect(manager.createBackup({ excludePatterns: [pattern] })).rejects.toMatchObject({
        code: 'KG_INVALID_OPTION',
      });
    }
    expect(await manager.listBackups()).toHaveLength(1);
  });

  test('that match nothing are a warning, except for parts that are left out anyway', async () => {
    const { diag } = makeSmallProject();
    const patterns = ['plugins/glosary', '*.json', 'logs', '/knowledge.db'];
    const made = await diag(
      'backup',
      '--json',
      ...patterns.flatMap((pattern) => ['--exclude', pattern]),
    );
    expect(made.status).toBe(0);
    expect(json(made).warnings.map(({ code, message }) => [code, message.split('`')[1]])).toEqual([
      ['KG_WARN_EXCLUDE', 'plugins/glosary'],
      ['KG_WARN_EXCLUDE', 'logs'],
      ['KG_WARN_EXCLUDE', '/knowledge.db'],
    ]);
    expect(json(made).warnings[0].message).toContain('matched nothing');
    expect(
      codes(json(await diag('backup', '--type', 'snapshot', '--exclude', 'nothing', '--json'))),
    ).toEqual([]);
    const restored = await diag(
      'restore',
      '--file',
      json(made).id,
      '--path',
      'vectors',
      '--path',
      'vector',
      '--json',
    );
    expect(json(restored).warnings).toMatchObject([
      { code: 'KG_WARN_INCOMPLETE', message: expect.stringContaining('`vector`') },
    ]);
  });
});

const hasStrace = (() => {
  try {
    return run('strace', ['-V']).length > 0;
  } catch {
    return false;
  }
})();

test.skipIf(!hasStrace)(
  'a single disk error fails the whole backup, or is a warning of a backup that exists',
  async () => {
    const { root, manager } = makeSmallProject();
    const backups = path.join(root, '.kg/backups');
    await manager.createBackup();
    const archives = () =>
      readdirSync(backups).filter((name) => /^kg-.*\.tar\.gz$/.test(name)).length;
    const outcomes = new Set();
    // Repeats until the command no longer reaches the fault.
    for (let time = 6; !outcomes.has(''); time += 1) {
      const before = (await manager.listBackups()).length;
      const fault = [
        '-P',
        backups,
        '-e',
        'trace=openat',
        '-e',
        `inject=openat:error=EIO:when=${time}`,
      ];
      let made = { status: 0 };
      try {
        made.result = resultOf(
          run('strace', ['-f', '-o', '/dev/null', ...fault, kgPath, 'diag', 'backup', '--json'], {
            cwd: root,
          }),
        );
      } catch ({ status }) {
        made = { status };
      }
      const after = (await manager.listBackups()).length;
      expect([after - before, archives()], `fault ${time}`).toEqual([
        made.status === 0 ? 1 : 0,
        after,
      ]);
      outcomes.add(
        made.result?.warnings
          .map(({ message }) => message.split(' ').slice(0, 4).join(' '))
          .join() ?? 'failed',
      );
    }
    expect([...outcomes]).toEqual(expect.arrayContaining(['failed', 'The backup was made,']));
  },
);
