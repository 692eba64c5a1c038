// The backups that retention removes, keeps and reports. src/store/retention.rs tests the decisions
// over random histories.

import {
  copyFileSync,
  existsSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, run } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const DAY = 24 * 60 * 60 * 1000;

/**
 * Makes a backup that is dated `days` ago. The archive keeps its date, because these tests only
 * list backups.
 */
async function makeAgedBackup(manager, days) {
  const backup = await manager.createBackup({ type: 'snapshot' });
  const timestamp = new Date(Date.now() - days * DAY).toISOString();
  const id = `backup-${timestamp.slice(0, 19).replace(/[-:]/g, '').replace('T', '-')}`;
  const archive = path.join(path.dirname(backup.path), `kg-${id}.tar.gz`);
  const manifest = JSON.parse(readFileSync(`${backup.path}.manifest.json`, 'utf8'));
  renameSync(backup.path, archive);
  writeFileSync(`${archive}.manifest.json`, JSON.stringify({ ...manifest, id, timestamp }));
  run('rm', [`${backup.path}.manifest.json`]);
  return id;
}

function setUp(config = {}) {
  const { root, backups, database } = makeProject();
  const plain = createBackupManager({ projectRoot: root, backupDir: backups });
  return {
    root,
    backups,
    database,
    plain,
    manager: createBackupManager({ projectRoot: root, backupDir: backups, ...config }),
  };
}

test('each backup removes and reports backups older than retentionDays or beyond maxBackups', async () => {
  const { plain, manager, backups } = setUp({ retentionDays: 30, maxBackups: 3 });
  const ids = [];
  for (const days of [100, 31, 20, 10, 5]) ids.push(await makeAgedBackup(plain, days));
  const made = await manager.createBackup();
  expect(made.warnings).toEqual([]);
  expect(made.retention.decisions.map(({ id, kept, reason }) => [id, kept, reason])).toEqual([
    [made.id, true, 'newest-good'],
    [ids[4], true, 'within-limits'],
    [ids[3], true, 'within-limits'],
    [ids[2], false, 'too-many'],
    [ids[1], false, 'too-many'],
    [ids[0], false, 'too-many'],
  ]);
  expect((await plain.listBackups()).map((backup) => backup.id)).toEqual([made.id, ids[4], ids[3]]);
  expect(readdirSync(backups).filter((name) => name.endsWith('.tar.gz'))).toHaveLength(4);
});

test('prune does exactly what its dry run reports', async () => {
  const { plain, manager } = setUp({ retentionDays: 7 });
  for (const days of [9, 8, 6]) await makeAgedBackup(plain, days);
  const before = await plain.listBackups();
  const { decisions: planned, ...dry } = await manager.prune({ dryRun: true });
  expect(dry.dryRun).toBe(true);
  expect(await plain.listBackups()).toEqual(before);
  const { decisions, bytesFreed } = await manager.prune();
  expect([decisions, bytesFreed]).toEqual([planned, dry.bytesFreed]);
  expect(decisions.map((decision) => decision.reason)).toEqual([
    'newest-good',
    'too-old',
    'too-old',
  ]);
  expect(await plain.listBackups()).toHaveLength(1);
  expect((await manager.prune()).decisions.every((decision) => decision.kept)).toBe(true);
});

test('the newest backup of a sound database survives newer ones of a damaged database', async () => {
  const { plain, manager, database } = setUp({ maxBackups: 1 });
  const good = await makeAgedBackup(plain, 3);
  writeFileSync(database, 'noise');
  const damaged = await manager.createBackup();
  expect(damaged.integrity.status).toBe('failed');
  const again = await manager.createBackup();
  expect((await plain.listBackups()).map((backup) => backup.id)).toEqual([again.id, good]);
});

// Only root can make a file that even root cannot remove.
test.runIf(process.getuid() === 0)(
  'backups that cannot be removed are reported, and the new backup succeeds',
  async () => {
    const { plain, manager, backups } = setUp({ retentionDays: 1 });
    const old = await makeAgedBackup(plain, 2);
    const archive = path.join(backups, `kg-${old}.tar.gz`);
    run('chattr', ['+i', archive]);
    onTestFinished(() => run('chattr', ['-i', archive]));
    const made = await manager.createBackup();
    expect(made.warnings).toMatchObject([
      { code: 'KG_WARN_STORE', message: expect.stringContaining(old) },
    ]);
    expect(made.retention.decisions.at(-1)).toMatchObject({
      id: old,
      kept: true,
      error: { code: 'KG_PERMISSION_DENIED' },
    });
    expect(existsSync(archive)).toBe(true);
  },
);

test('without a limit no backup is removed, and prune is refused', async () => {
  const { plain } = setUp();
  await makeAgedBackup(plain, 4000);
  expect((await plain.createBackup()).retention).toBeUndefined();
  expect(await plain.listBackups()).toHaveLength(2);
  await expect(plain.prune()).rejects.toMatchObject({ code: 'KG_INVALID_OPTION' });
});

test('kg accepts the limits with a backup, and kg diag prune shows and applies them', async () => {
  const { plain, root, backups } = setUp();
  for (const days of [40, 35, 3]) await makeAgedBackup(plain, days);
  const at = ['--output', backups];
  const dry = await kg(['diag', 'prune', ...at, '--retention-days', '36', '--dry-run'], {
    cwd: root,
  });
  expect(dry).toMatchObject({
    status: 0,
    stdout: expect.stringMatching(/would be removed: too-old\n[\d.]+ kB would be freed\n$/),
  });
  const pruned = await kg(['diag', 'prune', ...at, '--retention-days', '36', '--json'], {
    cwd: root,
  });
  expect(resultOf(pruned.stdout)).toMatchObject({
    dryRun: false,
    decisions: [{ kept: true }, { kept: true }, { kept: false }],
  });
  const made = await kg(['diag', 'backup', ...at, '--max-backups', '1'], { cwd: root });
  expect(made.stdout).toMatch(/kept {6}1 backup; 2 removed/);
  expect(await kg(['diag', 'prune', ...at], { cwd: root })).toMatchObject({ status: 2 });
});

test('rules keep the newest backup of each period, by API and by command', async () => {
  const { root, backups, plain, manager } = setUp({ keep: { daily: 2, weekly: 2 } });
  const ids = [];
  for (const days of [30, 29, 15, 14, 1.02, 1, 0.001])
    ids.unshift(await makeAgedBackup(plain, days));
  const { decisions } = await manager.prune({ dryRun: true });
  expect(decisions.map(({ id }) => id)).toEqual(ids);
  expect(decisions[0]).toMatchObject({ kept: true, reason: 'newest-good' });
  expect(decisions.filter(({ reason }) => reason === 'keep-daily')).toHaveLength(1);
  expect(decisions.filter(({ reason }) => reason === 'no-rule').length).toBeGreaterThan(2);
  const dry = await kg(
    [
      'diag',
      'prune',
      '--output',
      backups,
      '--keep-daily',
      '2',
      '--keep-weekly',
      '2',
      '--dry-run',
      '--json',
    ],
    { cwd: root },
  );
  expect(resultOf(dry.stdout).decisions).toEqual(decisions);
  await manager.prune();
  expect((await plain.listBackups()).map(({ id }) => id)).toEqual(
    decisions.filter(({ kept }) => kept).map(({ id }) => id),
  );
  expect((await manager.prune()).decisions.every(({ kept }) => kept)).toBe(true);
});

test('prune reads each sidecar a few times, however many backups it removes', async () => {
  const { root, backups, plain } = setUp();
  const count = 24;
  for (let days = 1; days <= count; days++) await makeAgedBackup(plain, days);
  const trace = path.join(root, '../trace');
  run(
    'strace',
    [
      '-f',
      '-e',
      'trace=openat',
      '-o',
      trace,
      kgPath,
      'diag',
      'prune',
      '--max-backups',
      '2',
      '--backup-dir',
      backups,
    ],
    { cwd: root },
  );
  expect(await plain.listBackups()).toHaveLength(2);
  const opened = readFileSync(trace, 'utf8').match(/\.manifest\.json", O_RDONLY/g);
  expect(opened.length).toBeLessThan(count * 6);
  expect(realpathSync(path.join(backups, 'latest.tar.gz'))).toBe(
    (await plain.listBackups())[0].path,
  );
});

test('prune creates no directory, and reports that it is missing', async () => {
  const { root, backups, manager } = setUp({ maxBackups: 2 });
  for (const more of [[], ['--dry-run']]) {
    const pruned = await kg(
      ['diag', 'prune', '--max-backups', '2', '--backup-dir', backups, ...more],
      { cwd: root },
    );
    expect(pruned).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/does not exist \[KG_NO_BACKUPS\]/),
    });
  }
  // The directory of the project appears with its first backup.
  expect(await kg(['diag', 'prune', '--max-backups', '2'], { cwd: root })).toMatchObject({
    status: 0,
    stderr: expect.stringMatching(/does not exist: there was nothing to remove \[KG_WARN_STORE\]/),
  });
  expect(await manager.prune()).toMatchObject({
    decisions: [],
    bytesFreed: 0,
    warnings: [{ code: 'KG_WARN_STORE' }],
  });
  expect(existsSync(backups)).toBe(false);
});

test('the latest link names the remaining one of two archives with the same id', async () => {
  const { backups, plain } = setUp();
  const { id, path: archive } = await plain.createBackup();
  const second = archive.replace(/\.tar\.gz$/, '.tar.zst');
  const manifest = JSON.parse(readFileSync(`${archive}.manifest.json`, 'utf8'));
  copyFileSync(archive, second);
  writeFileSync(
    `${second}.manifest.json`,
    JSON.stringify({ ...manifest, archive: { ...manifest.archive, name: path.basename(second) } }),
  );
  expect(await plain.listBackups()).toHaveLength(2);
  await plain.deleteBackup(id);
  const [left, ...more] = await plain.listBackups();
  expect(more).toEqual([]);
  const links = readdirSync(backups).filter((name) => name.startsWith('latest'));
  expect(links.map((name) => realpathSync(path.join(backups, name)))).toEqual([left.path]);
});
