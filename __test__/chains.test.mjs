// How an operator manages chains: pinning, consolidation, deletion and partial restores.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  cpSync,
  existsSync,
  lchownSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { digestOf, describeFiles, rewriteManifest, seal } from './support/forge.mjs';
import { kg, kgPath, run, until } from './support/processes.mjs';
import {
  contents,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const KILLS = 60;

const change = (database, sql) => withDatabase(database, (db) => db.exec(sql));
const sidecar = (backup) => `${backup.path}.manifest.json`;
const idsOf = (backups) => backups.map(({ id }) => id);
const sha256 = (file) => createHash('sha256').update(readFileSync(file)).digest('hex');
const leftovers = (dir) => readdirSync(dir).filter((name) => /^\.kg-(partial|snapshot)/.test(name));

/**
 * Makes a full backup and incrementals on it, oldest first. Each one changes the title of another
 * node.
 */
async function chain(length, { nodes = 1000, config } = {}) {
  const project = makeProject({ nodes });
  const managerWith = (more) =>
    createBackupManager({ projectRoot: project.root, backupDir: project.backups, ...more });
  const manager = managerWith(config);
  const at = (...parts) => path.join(project.root, '.kg', ...parts);
  const incremental = (options) => manager.createBackup({ type: 'incremental', ...options });
  const made = [await manager.createBackup({ description: 'the first' })];
  for (let n = 1; n < length; n += 1) {
    change(project.database, `UPDATE nodes SET title = 'round ${n}' WHERE id = 'n${n}'`);
    writeFileSync(at('plugins/round'), `round ${n}`);
    made.push(await incremental({ description: `round ${n}` }));
  }
  return { ...project, manager, managerWith, at, incremental, made };
}

async function restored(manager, backup, options) {
  const target = path.join(temporaryDirectory(), 'target');
  await manager.restore({ backupPath: backup.path, targetDir: target, ...options });
  return target;
}

describe('a pinned backup', () => {
  test('stays with its chain, and does not count against the limits, until it is unpinned', async () => {
    const { manager, managerWith, made } = await chain(3);
    const pinned = await manager.pin(made[1].id, 'before the migration');
    const { reusedBytes, ...listed } = made[1];
    expect(reusedBytes).toBe(0);
    expect(pinned).toEqual({
      ...listed,
      warnings: [],
      pinned: { reason: 'before the migration', at: expect.any(Number) },
    });
    expect(Math.abs(Date.now() - pinned.pinned.at)).toBeLessThan(60_000);
    const full = await manager.createBackup();
    const one = managerWith({ maxBackups: 1 });
    const planned = await one.prune({ dryRun: true });
    const { decisions } = await one.prune();
    expect(planned.decisions).toEqual(decisions);
    expect(decisions.map(({ id, kept, reason }) => [id, kept, reason])).toEqual([
      [full.id, true, 'newest-good'],
      [made[2].id, false, 'too-many'],
      [made[1].id, true, 'pinned'],
      [made[0].id, true, 'needed'],
    ]);
    await manager.pin(full.id);
    const next = await one.createBackup({ type: 'snapshot' });
    const last = await one.createBackup({ type: 'snapshot' });
    expect(idsOf(await manager.listBackups()), 'pins take no place of the one').toEqual([
      last.id,
      full.id,
      made[1].id,
      made[0].id,
    ]);
    expect(next.id).not.toBe(last.id);
    expect((await manager.unpin(made[1].id)).pinned).toBeUndefined();
    expect((await manager.unpin(full.id)).pinned).toBeUndefined();
    await one.prune();
    expect(idsOf(await manager.listBackups()), 'a snapshot is not all of a project').toEqual([
      last.id,
      full.id,
    ]);
  });

  test('is not deleted, nor are the members of its chain', async () => {
    const { manager, backups, made } = await chain(3);
    await manager.pin(made[2].id, 'for the audit');
    const refused = {
      code: 'KG_BACKUP_PINNED',
      message: expect.stringContaining('for the audit'),
      remedy: expect.stringContaining('kg diag unpin'),
    };
    await expect(manager.deleteBackup(made[2].id)).rejects.toMatchObject(refused);
    await expect(manager.deleteBackup(made[0].id, { cascade: true })).rejects.toMatchObject(
      refused,
    );
    await expect(manager.deleteBackup(made[0].id)).rejects.toMatchObject({
      code: 'KG_BACKUP_NEEDED',
    });
    expect(idsOf(await manager.listBackups())).toEqual(idsOf(made).reverse());
    await manager.unpin(made[2].id);
    expect(await manager.deleteBackup(made[0].id, { cascade: true })).toEqual(
      idsOf(made).reverse(),
    );
    expect(readdirSync(backups)).toEqual(['.kg-store.lock']);
  });

  test('verifies as before, and stays pinned without its sidecar, in a copied store, and while its archive is missing', async () => {
    const { manager, managerWith, made, backups } = await chain(2);
    const [first] = made;
    await manager.pin(first.id, 'why');
    expect((await manager.checkBackup(first.path)).problems).toEqual([]);
    rmSync(sidecar(first));
    await manager.createBackup({ type: 'snapshot' });
    expect((await manager.getBackup(first.id)).pinned).toMatchObject({ reason: 'why' });

    const copy = path.join(temporaryDirectory(), 'copy');
    cpSync(backups, copy, { recursive: true, verbatimSymlinks: true });
    expect((await managerWith({ backupDir: copy }).getBackup(first.id)).pinned).toMatchObject({
      reason: 'why',
    });

    const aside = path.join(temporaryDirectory(), 'aside');
    renameSync(first.path, aside);
    await manager.createBackup({ type: 'snapshot' });
    renameSync(aside, first.path);
    await manager.createBackup({ type: 'snapshot' });
    expect((await manager.getBackup(first.id)).pinned).toMatchObject({ reason: 'why' });
    // The existence of the file pins the backup, whatever its content is.
    writeFileSync(`${first.path}.pin.json`, '');
    expect((await manager.getBackup(first.id)).pinned).toEqual({ at: expect.any(Number) });
    await expect(manager.deleteBackup(first.id, { cascade: true })).rejects.toMatchObject({
      code: 'KG_BACKUP_PINNED',
    });
  });

  test('exists, and its reason is a text of limited length', async () => {
    const { manager, made, backups } = await chain(1);
    await expect(manager.pin(made[0].id, 'x'.repeat(5000))).rejects.toMatchObject({
      code: 'KG_INVALID_OPTION',
    });
    await expect(manager.pin(made[0].id, 7)).rejects.toMatchObject({ code: 'KG_INVALID_OPTION' });
    await expect(manager.pin('latest')).rejects.toMatchObject({ code: 'KG_BACKUP_NOT_FOUND' });
    await expect(manager.unpin('backup-20200101-000000')).rejects.toMatchObject({
      code: 'KG_BACKUP_NOT_FOUND',
    });
    rmSync(backups, { recursive: true });
    await expect(manager.pin(made[0].id)).rejects.toMatchObject({ code: 'KG_BACKUP_NOT_FOUND' });
    expect(existsSync(backups)).toBe(false);
  });
});

test('pin, unpin and consolidate warn of an archive that cannot be listed, like backup', async () => {
  const { manager, made, root, backups } = await chain(2);
  const [full, incremental] = made;
  const cut = path.join(backups, 'kg-backup-20200101-000000.tar.gz');
  writeFileSync(cut, readFileSync(full.path).subarray(0, -1));
  const warned = [
    expect.objectContaining({
      code: 'KG_WARN_STORE',
      message: expect.stringContaining(`${cut} is not listed`),
    }),
  ];
  expect((await manager.pin(full.id)).warnings).toEqual(warned);
  expect((await manager.unpin(full.id)).warnings).toEqual(warned);
  expect((await manager.consolidate(incremental.id)).warnings).toEqual(warned);
  expect((await manager.getBackup(full.id)).warnings).toEqual([]);
  const { stderr } = await kg(['diag', 'backup', '--output', backups, '--pin', full.id], {
    cwd: root,
  });
  expect(stderr).toMatch(/^warning: .*is not listed.*\n$/);
});

test('kg pins, lists, unpins and deletes, with the exit status of each error', async () => {
  const { root, backups, made } = await chain(2);
  const diag = (...args) => kg(['diag', 'backup', '--output', backups, ...args], { cwd: root });
  const [full, incremental] = made;
  expect(await diag('--pin', incremental.id, '--reason', 'for the audit')).toMatchObject({
    status: 0,
    stdout: expect.stringContaining(`Pinned ${incremental.id}`),
  });
  expect((await diag('--list')).stdout).toMatch(
    new RegExp(`${incremental.id} .* \\[pinned: for the audit\\] round 1\n`),
  );
  expect(resultOf((await diag('--list', '--json')).stdout).backups[0].pinned).toEqual({
    reason: 'for the audit',
    at: expect.any(Number),
  });
  expect(await diag('--delete', full.id, '--cascade')).toMatchObject({
    status: 4,
    stderr: expect.stringContaining('KG_BACKUP_PINNED'),
  });
  const unpinned = resultOf((await diag('--unpin', incremental.id, '--json')).stdout);
  expect([unpinned.id, unpinned.pinned]).toEqual([incremental.id, undefined]);
  const needed = await diag('--delete', full.id, '--json');
  expect([needed.status, resultOf(needed.stdout).error.code]).toEqual([4, 'KG_BACKUP_NEEDED']);
  expect(await diag('--delete', 'backup-20200101-000000')).toMatchObject({
    status: 4,
    stderr: expect.stringContaining('KG_BACKUP_NOT_FOUND'),
  });
  const deleted = await diag('--delete', full.id, '--cascade', '--json');
  expect([deleted.status, resultOf(deleted.stdout)]).toEqual([
    0,
    { deleted: [incremental.id, full.id] },
  ]);
  for (const usage of [
    ['--cascade'],
    ['--reason', 'x'],
    ['--delete', full.id, '--pin', full.id],
    ['--list', '--delete', full.id],
  ]) {
    expect((await diag(...usage)).status, usage.join(' ')).toBe(2);
  }
  expect((await kg(['diag', 'backup', '--help'])).stdout).toMatch(
    /--cascade\n *Also remove the backups that depend on it/,
  );
});

describe('a backup that is consolidated from a chain', () => {
  /**
   * Makes a chain in which files of every kind, and their owners, appear, change, stay and
   * disappear.
   */
  async function makeVariedChain() {
    const made = await chain(3, { nodes: 2000 });
    const { at, database, incremental } = made;
    mkdirSync(at('plugins/empty'));
    symlinkSync('glossary/terms.json', at('plugins/link'));
    writeFileSync(at('plugins/own'), 'own');
    change(at('vectors.db'), 'CREATE TABLE embeddings (id); INSERT INTO embeddings VALUES (1)');
    if (process.getuid() === 0)
      for (const name of ['empty', 'link', 'own']) lchownSync(at('plugins', name), 1234, 4321);
    made.made.push(await incremental({ compression: false }));
    rmSync(at('vectors/a.f32'));
    change(database, 'DELETE FROM edges WHERE id < 300; VACUUM');
    made.made.push(await incremental({ description: 'what the full one is of' }));
    return { ...made, last: made.made.at(-1) };
  }

  test('is a full backup of the same moment that opens with tar and needs no base', async () => {
    const { manager, root, last, made } = await makeVariedChain();
    const expected = await restored(manager, last);
    const full = await manager.consolidate(last.id);
    expect(full).toMatchObject({
      id: expect.stringContaining(`${last.id.slice(0, 22)}-`),
      type: 'full',
      consolidatedFrom: last.id,
      warnings: [],
    });
    for (const field of ['timestamp', 'description', 'contents', 'integrity'])
      expect(full[field], field).toEqual(last[field]);
    expect(full.stats).toEqual({ ...last.stats, compressedSize: full.size });
    expect([full.basedOn, full.pinned]).toEqual([undefined, undefined]);
    expect((await manager.listBackups())[0]).toEqual(full);
    expect(readlinkSync(path.join(path.dirname(full.path), 'latest.tar.gz'))).toBe(
      path.basename(full.path),
    );

    for (const id of idsOf(made).reverse()) await manager.deleteBackup(id);
    const { problems, manifest } = await manager.checkBackup(full.path);
    expect(problems).toEqual([]);
    expect(manifest).toMatchObject({
      type: 'full',
      consolidatedFrom: last.id,
      project: expect.any(String),
    });
    const out = temporaryDirectory();
    run('tar', ['-xzf', full.path, '-C', out]);
    run('sha256sum', ['--quiet', '-c', 'checksums.sha256'], { cwd: out });
    const unpacked = path.join(out, 'database.sqlite');
    expect(run('sqlite3', [unpacked, 'PRAGMA integrity_check']).trim()).toBe('ok');
    expect(
      readFileSync(unpacked).equals(readFileSync(path.join(expected, '.kg/knowledge.db'))),
      'byte for byte',
    ).toBe(true);
    const target = await restored(manager, full);
    expect(contents(target)).toEqual(contents(expected));
    expect(contents(target)).toEqual(contents(root));
  });

  test('has the entries of a full backup: their order, modes, times and owners', async () => {
    const { manager, last } = await makeVariedChain();
    const full = await manager.createBackup();
    const consolidated = await manager.consolidate(last.id, { compression: false });
    expect(consolidated.path).toMatch(/\.tar$/);
    // The entries that describe the backup have its time.
    const entries = (archive) =>
      run('tar', ['--numeric-owner', '--full-time', '-tvf', archive])
        .split('\n')
        .filter((line) => !/(files\.jsonl|manifest\.json|checksums\.sha256)$/.test(line));
    expect(entries(consolidated.path)).toEqual(entries(full.path));
    const filesOf = async ({ path: archive }) =>
      (await manager.checkBackup(archive, { listFiles: true })).files;
    expect(await filesOf(consolidated)).toEqual(await filesOf(full));
  });

  test('is the base of the next incremental backup, and earlier ones keep their old base', async () => {
    const { manager, managerWith, root, made, database, incremental } = await chain(3);
    const full = await manager.consolidate(made[1].id);
    expect(idsOf(await manager.listBackups())).toEqual([
      made[2].id,
      full.id,
      made[1].id,
      made[0].id,
    ]);
    expect(await manager.verifyBackup(made[2].path)).toBe(true);
    await expect(manager.deleteBackup(made[1].id)).rejects.toMatchObject({
      code: 'KG_BACKUP_NEEDED',
    });
    const newest = await manager.consolidate(made[2].id);
    change(database, 'DELETE FROM edges');
    const next = await incremental();
    expect(next.basedOn).toBe(newest.id);
    await managerWith({ maxBackups: 2 }).prune();
    expect(idsOf(await manager.listBackups())).toEqual([next.id, newest.id]);
    const target = await restored(manager, next);
    expect(contents(target)).toEqual(contents(root));
    expect(integrityOf(path.join(target, '.kg/knowledge.db'))).toBe('ok');
  });

  test('cannot be made from a full backup or a broken or damaged chain, and the failure leaves no files', async () => {
    const { manager, made, backups } = await chain(3);
    const listed = await manager.listBackups();
    await expect(manager.consolidate(made[0].id)).rejects.toMatchObject({
      code: 'KG_INVALID_OPTION',
      message: expect.stringContaining('depends on no other'),
    });
    await expect(manager.consolidate('backup-20200101-000000')).rejects.toMatchObject({
      code: 'KG_BACKUP_NOT_FOUND',
    });
    await expect(manager.consolidate(made[2].id, { type: 'full' })).rejects.toMatchObject({
      code: 'KG_INVALID_OPTION',
    });
    const whole = readFileSync(made[0].path);
    const damaged = Buffer.from(whole);
    damaged[Math.floor(whole.length / 2)] ^= 1;
    writeFileSync(made[0].path, damaged);
    await expect(manager.consolidate(made[2].id)).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
    });
    rmSync(made[0].path);
    await expect(manager.consolidate(made[2].id)).rejects.toMatchObject({
      code: 'KG_CHAIN_BROKEN',
    });
    writeFileSync(made[0].path, whole);
    const aborting = new AbortController();
    const aborted = manager.consolidate(made[2].id, {
      signal: aborting.signal,
      onProgress: () => aborting.abort(),
    });
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    expect(leftovers(backups)).toEqual([]);
    await manager.consolidate(made[2].id).then(({ id }) => manager.deleteBackup(id));
    // Listing removed the sidecar of the missing archive and rebuilt it. Only the writer of an
    // archive knows `sidecarSize`.
    const withoutSidecars = (backups) => backups.map(({ sidecarSize, ...backup }) => backup);
    expect(withoutSidecars(await manager.listBackups())).toEqual(withoutSidecars(listed));
  });

  test('that does not fit on the disk leaves the chain unchanged and frees its space', () => {
    const { root } = makeProject({ nodes: 1500 });
    const script = `
      disk=$(mktemp -d); mount -t tmpfs -o size=3m tmpfs "$disk"; trap 'umount "$disk"; rmdir "$disk"' EXIT
      kg() { timeout 60 "${kgPath}" "$@"; }
      kg diag backup --quiet --output "$disk"
      kg diag backup --quiet --output "$disk" --type incremental
      id=$(kg diag list --backup-dir "$disk" | grep -o '^backup-[0-9-]* *incremental' | cut -d' ' -f1)
      before=$(df --output=used "$disk" | tail -1)
      head -c 1200000 /dev/zero > "$disk/other"
      kg diag consolidate "$id" --backup-dir "$disk" 2>&1 | grep -o KG_NO_SPACE
      rm "$disk/other"
      test "$(df --output=used "$disk" | tail -1)" -le "$((before + 8))" && echo 'space given back'
      kg diag consolidate "$id" --backup-dir "$disk" | grep -o 'without a base'
      kg diag verify "$disk/latest.tar.gz" | grep -o 'as it was written'`;
    const output = run('unshare', [process.getuid() === 0 ? '-m' : '-rm', 'sh', '-ec', script], {
      cwd: root,
    })
      .trim()
      .split('\n');
    expect(output).toEqual([
      'KG_NO_SPACE',
      'space given back',
      'without a base',
      'as it was written',
    ]);
  });

  test(`is complete or absent after a kill, ${KILLS} times`, async () => {
    const { root, manager, made, backups } = await chain(3, { nodes: 3000 });
    const last = made[2];
    const before = made.map(({ path: archive }) => sha256(archive));
    const args = ['diag', 'backup', '--consolidate', last.id, '--output', backups];
    const began = performance.now();
    const { stdout } = await kg([...args, '--json'], { cwd: root });
    // Later runs shorten this if the first one was slowed by other processes.
    let takesMs = performance.now() - began;
    await manager.deleteBackup(resultOf(stdout).id);
    const seen = { interrupted: 0, atWork: 0, done: 0 };
    for (let n = 0; n < KILLS; n += 1) {
      const child = spawn(kgPath, [...args, '--quiet'], { cwd: root, stdio: 'ignore' });
      const exited = once(child, 'exit');
      const started = performance.now();
      const end = started + (n / KILLS) * 1.2 * takesMs;
      await until(() => performance.now() >= end || child.exitCode !== null, 'the instant');
      if (child.exitCode !== null) takesMs = Math.min(takesMs, performance.now() - started);
      child.kill('SIGKILL');
      const [, signal] = await exited;
      if (signal === 'SIGKILL') seen.interrupted += 1;
      if (leftovers(backups).length > 0) seen.atWork += 1;
      const listed = await manager.listBackups();
      expect(idsOf(listed.filter(({ consolidatedFrom }) => !consolidatedFrom))).toEqual(
        idsOf(made).reverse(),
      );
      for (const { id, path: archive } of listed.filter(
        ({ consolidatedFrom }) => consolidatedFrom,
      )) {
        seen.done += 1;
        expect(await manager.verifyBackup(archive), id).toBe(true);
        await manager.deleteBackup(id);
      }
      expect(made.map(({ path: archive }) => sha256(archive))).toEqual(before);
    }
    console.log(`a consolidation of ${takesMs.toFixed()} ms was killed:`, seen);
    expect(seen.atWork).toBeGreaterThan(KILLS / 6);
    const full = await manager.consolidate(last.id);
    expect(await manager.verifyBackup(full.path)).toBe(true);
    expect(leftovers(backups)).toEqual([]);
    expect(contents(await restored(manager, full))).toEqual(contents(root));
  });

  test('is made by kg', async () => {
    const { root, backups, made } = await chain(2);
    const args = ['diag', 'backup', '--output', backups, '--consolidate', made[1].id];
    const created = await kg([...args, '--json', '--level', '1'], { cwd: root });
    expect([created.status, resultOf(created.stdout)]).toMatchObject([
      0,
      { type: 'full', consolidatedFrom: made[1].id },
    ]);
    expect(await kg([...args, '--compression', 'none'], { cwd: root })).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/backup-[\d-]+\.tar\n/),
    });
    expect((await kg([...args.slice(0, -1), made[0].id], { cwd: root })).status).toBe(2);
  });
});

describe('the length of a chain', () => {
  test('is limited: then a full backup is made, and retention can remove the old ones', async () => {
    const { manager, made } = await chain(3, { config: { maxChainLength: 3, maxBackups: 2 } });
    expect(made.map(({ type }) => type)).toEqual(['full', 'incremental', 'incremental']);
    const fourth = await manager.createBackup({ type: 'incremental' });
    expect(fourth).toMatchObject({
      type: 'full',
      warnings: [{ code: 'KG_WARN_FULL', message: expect.stringContaining('chain of 3') }],
    });
    const fifth = await manager.createBackup({ type: 'incremental' });
    expect(fifth).toMatchObject({ type: 'incremental', basedOn: fourth.id, warnings: [] });
    expect(idsOf(await manager.listBackups())).toEqual([fifth.id, fourth.id]);
  });

  test('is not limited for a base that the caller names', async () => {
    const { incremental, made, root, backups, manager } = await chain(2, {
      config: { maxChainLength: 2 },
    });
    expect(await incremental({ basedOn: made[1].id })).toMatchObject({
      type: 'incremental',
      warnings: [],
    });
    const args = ['diag', 'backup', '--type', 'incremental', '--output', backups, '--json'];
    expect(resultOf((await kg([...args, '--max-chain', '4'], { cwd: root })).stdout).type).toBe(
      'incremental',
    );
    expect(resultOf((await kg([...args, '--max-chain', '4'], { cwd: root })).stdout)).toMatchObject(
      { type: 'full', warnings: [{ code: 'KG_WARN_FULL' }] },
    );
    expect((await manager.listBackups())[0].type).toBe('full');
    expect((await kg([...args, '--max-chain', '0'], { cwd: root })).status).toBe(2);
    expect(() => createBackupManager({ projectRoot: root, maxChainLength: 0 })).toThrow(
      expect.objectContaining({ code: 'KG_INVALID_OPTION' }),
    );
  });
});

describe('a restore from a chain', () => {
  test('unpacks only the selected parts', async () => {
    const { root, manager, made, at, incremental, database } = await chain(3, { nodes: 4000 });
    writeFileSync(at('plugins/large'), Buffer.alloc(6_000_000, 'x'));
    made.push(await incremental());
    rmSync(at('plugins/large'));
    change(database, "UPDATE nodes SET title = 'again' WHERE rowid % 9 = 0");
    made.push(await incremental());
    // The limit kills the process if it writes a larger file.
    const restore = (bytes, ...args) => {
      const target = path.join(temporaryDirectory(), 'target');
      const command = `ulimit -f ${Math.ceil(bytes / 512)} || exit; exec "${kgPath}" diag restore --quiet --file "${made.at(-1).path}" --target "${target}" ${args.join(' ')}`;
      run('sh', ['-c', command], { cwd: root });
      return target;
    };
    const target = restore(1_000_000, "--path 'plugins/**'");
    expect(readdirSync(path.join(target, '.kg/plugins')).sort()).toEqual(['glossary', 'round']);
    expect(readFileSync(path.join(target, '.kg/plugins/round'), 'utf8')).toBe('round 2');
    expect(existsSync(path.join(target, '.kg/knowledge.db'))).toBe(false);
    restore(1_000_000, '--config-only');
    expect(() => restore(1_000_000)).toThrow();
    // Even a complete restore skips a file that exists only in an earlier member.
    const { files } = await manager.checkBackup(made.at(-1).path, { listFiles: true });
    const { size } = files.find((file) => file.path === '.kg/knowledge.db');
    expect(size).toBeLessThan(5_000_000);
    expect(contents(restore(size))).toEqual(contents(root));
    const only = await restored(manager, made.at(-1), { only: ['database'] });
    expect(contents(only).map((line) => line.split(' ')[0])).toEqual(['.kg', '.kg/knowledge.db']);
  });

  test('runs the checks of a verification in a dry run', async () => {
    const { manager, made } = await chain(3);
    const forged = path.join(path.dirname(made[2].path), 'kg-backup-20200101-000000.tar.gz');
    const forge = (change) =>
      writeFileSync(forged, seal(rewriteManifest(gunzipSync(readFileSync(made[2].path)), change)));
    forge(() => {});
    const dry = {
      backupPath: forged,
      targetDir: path.join(temporaryDirectory(), 'target'),
      dryRun: true,
    };
    expect(await manager.restore(dry)).toMatchObject({ dryRun: true, id: made[2].id });
    forge(
      (manifest) =>
        (manifest.files.find((file) => file.path === '.kg/knowledge.db').pages.root = '0'.repeat(
          64,
        )),
    );
    expect(await manager.verifyBackup(forged)).toBe(false);
    await expect(manager.restore(dry)).rejects.toMatchObject({ code: 'KG_CHECKSUM_MISMATCH' });
    expect(existsSync(dry.targetDir)).toBe(false);
  });

  test('compares the digest of a database that only an earlier member changed', async () => {
    const { manager, made, incremental, at } = await chain(2);
    writeFileSync(at('plugins/round'), 'only this');
    const last = await incremental();
    const wrong = (manifest) =>
      (manifest.files.find((file) => file.path === '.kg/knowledge.db').blocks.root = '0'.repeat(
        64,
      ));
    const forge = (backup, change) => {
      const archive = seal(rewriteManifest(gunzipSync(readFileSync(backup.path)), change));
      writeFileSync(backup.path, archive);
      rmSync(sidecar(backup));
      return digestOf(archive);
    };
    const { files } = await manager.checkBackup(last.path, { listFiles: true });
    wrong({ files });
    const checksum = forge(made[1], wrong);
    forge(last, (manifest) => {
      expect(manifest.files.map((file) => file.path)).not.toContain('.kg/knowledge.db');
      manifest.basedOnChecksum = checksum;
      manifest.fileList = describeFiles(files);
    });
    await expect(restored(manager, last)).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
      message: expect.stringContaining('after it is assembled'),
    });
    await expect(manager.consolidate(last.id)).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
    });
  });
});

describe('a backup that arrived without its sidecar', () => {
  test('protects its chain from deletion', async () => {
    const { manager, made, root, backups } = await chain(3);
    rmSync(sidecar(made[2]));
    await expect(manager.deleteBackup(made[1].id)).rejects.toMatchObject({
      code: 'KG_BACKUP_NEEDED',
      message: expect.stringContaining(made[2].id),
    });
    expect(idsOf(await manager.listBackups())).toEqual(idsOf(made).reverse());
    rmSync(sidecar(made[2]));
    const refused = await kg(['diag', 'backup', '--delete', made[0].id, '--output', backups], {
      cwd: root,
    });
    expect(refused).toMatchObject({
      status: 4,
      stderr: expect.stringContaining('KG_BACKUP_NEEDED'),
    });
    rmSync(sidecar(made[1]));
    expect(await manager.deleteBackup(made[1].id, { cascade: true })).toEqual([
      made[2].id,
      made[1].id,
    ]);
  });

  test('protects its chain from retention, and a dry run gives the same result', async () => {
    const { manager, managerWith, made, database } = await chain(2);
    const other = await manager.createBackup({ type: 'snapshot' });
    change(database, 'DELETE FROM edges');
    const last = await manager.createBackup({ type: 'incremental', basedOn: made[1].id });
    rmSync(sidecar(last));
    writeFileSync(path.join(path.dirname(last.path), 'kg-backup-20200101-000000.tar.gz'), 'noise');
    const one = managerWith({ maxBackups: 1 });
    const planned = await one.prune({ dryRun: true });
    expect(existsSync(sidecar(last)), 'a dry run writes nothing').toBe(false);
    const { decisions, warnings } = await one.prune();
    expect(planned).toMatchObject({ decisions, warnings });
    expect(warnings).toMatchObject([
      {
        code: 'KG_WARN_STORE',
        message: expect.stringContaining('kg-backup-20200101-000000.tar.gz'),
      },
    ]);
    expect(decisions.map(({ id, reason }) => [id, reason])).toEqual([
      [last.id, 'newest-good'],
      [other.id, 'too-many'],
      [made[1].id, 'needed'],
      [made[0].id, 'needed'],
    ]);
    expect(await manager.verifyBackup(last.path)).toBe(true);
  });
});
