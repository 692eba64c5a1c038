// Any changed, missing or added byte is detected, with the sidecar of an archive and without it. A
// restore of a damaged archive does not change the target. tests/integration/damage.rs changes
// every single byte of a small archive.

import {
  appendFileSync,
  copyFileSync,
  existsSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import { fingerprint, makeProject, temporaryDirectory } from './support/project.mjs';

const PLACES = 60;

async function damaged(compression, alone, change) {
  const project = makeProject({ nodes: 2000 });
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    compression,
  });
  const made = await manager.createBackup();
  const archive = path.join(temporaryDirectory(), path.basename(made.path));
  copyFileSync(made.path, archive);
  if (!alone) copyFileSync(`${made.path}.manifest.json`, `${archive}.manifest.json`);
  expect(await manager.verifyBackup(archive)).toBe(true);
  await change(archive, readFileSync(archive), manager, project);
}

async function expectCaught(manager, project, archive, what) {
  expect(await manager.verifyBackup(archive), what).toBe(false);
  const before = fingerprint(project.root);
  await expect(
    manager.restore({ backupPath: archive, overwrite: true }),
    what,
  ).rejects.toMatchObject({
    code: 'KG_CHECKSUM_MISMATCH',
  });
  expect(fingerprint(project.root), what).toEqual(before);
  const target = path.join(temporaryDirectory(), 'new');
  await expect(manager.restore({ backupPath: archive, targetDir: target }), what).rejects.toThrow(
    /Checksum mismatch/,
  );
  expect(existsSync(target), what).toBe(false);
}

for (const compression of [true, false]) {
  for (const alone of [true, false]) {
    describe(`a ${compression ? 'compressed' : 'plain'} archive ${alone ? 'alone' : 'with its sidecar'}`, () => {
      test('fails the check after a change of any bit', async () => {
        await damaged(compression, alone, async (archive, whole, manager, project) => {
          for (let n = 0; n < PLACES; n += 1) {
            const at =
              n < 20
                ? n
                : n < 40
                  ? whole.length - 1 - (n - 20) * 7
                  : Math.floor((whole.length * (n - 40)) / 20);
            const changed = Buffer.from(whole);
            changed[at] ^= 1 << (n % 8);
            writeFileSync(archive, changed);
            expect(await manager.verifyBackup(archive), `byte ${at}`).toBe(false);
            if (n % 10 === 0) await expectCaught(manager, project, archive, `byte ${at}`);
          }
        });
      });

      test('fails the check after it was truncated', async () => {
        await damaged(compression, alone, async (archive, whole, manager, project) => {
          for (const length of [
            0,
            1,
            20,
            511,
            512,
            Math.floor(whole.length / 2),
            whole.length - 512,
            whole.length - 58,
            whole.length - 1,
          ]) {
            writeFileSync(archive, whole);
            truncateSync(archive, length);
            await expectCaught(manager, project, archive, `cut to ${length}`);
          }
        });
      });

      test('fails the check after bytes were added', async () => {
        await damaged(compression, alone, async (archive, whole, manager, project) => {
          for (const added of [Buffer.from([0]), Buffer.alloc(512), Buffer.alloc(10240), whole]) {
            writeFileSync(archive, whole);
            appendFileSync(archive, added);
            await expectCaught(manager, project, archive, `${added.length} bytes added`);
          }
        });
      });
    });
  }
}

test('the report names the problem, its effect and the next step', async () => {
  await damaged(true, true, async (archive, whole, manager) => {
    const changed = Buffer.from(whole);
    changed[Math.floor(whole.length / 2)] ^= 255;
    writeFileSync(archive, changed);
    const report = await manager.checkBackup(archive);
    expect(report.valid).toBe(false);
    expect(report.problems.map((problem) => problem.code)).toEqual(
      expect.arrayContaining(['KG_PROBLEM_BLOCK', 'KG_PROBLEM_ARCHIVE', 'KG_PROBLEM_ENTRY']),
    );
    const block = report.problems.find((problem) => problem.code === 'KG_PROBLEM_BLOCK');
    expect(block.affects).toEqual(['database.sqlite']);
    for (const problem of report.problems) expect(problem.remedy).not.toBe('');
  });
});

test('a sidecar of another archive is a problem, and without it the archive is sound', async () => {
  await damaged(true, false, async (archive, whole, manager) => {
    const sidecar = `${archive}.manifest.json`;
    for (const text of [
      readFileSync(sidecar, 'utf8').replace(/"nodeCount": \d+/, '"nodeCount": 7'),
      '{"cut',
      '{}',
    ]) {
      writeFileSync(sidecar, text);
      const report = await manager.checkBackup(archive);
      expect(
        report.problems.map((problem) => problem.code),
        text,
      ).toContain('KG_PROBLEM_SIDECAR');
    }
  });
});

test('a file that is not an archive is refused', async () => {
  const { root, backups } = makeProject();
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const file = path.join(temporaryDirectory(), 'kg-backup-20240115-020000.tar.gz');
  for (const content of ['', 'not an archive', Buffer.from([0x1f, 0x8b]), Buffer.alloc(100_000)]) {
    writeFileSync(file, content);
    expect(await manager.verifyBackup(file)).toBe(false);
    await expect(manager.restore({ backupPath: file, overwrite: true })).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
    });
  }
});
