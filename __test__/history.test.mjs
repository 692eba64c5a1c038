// Stores with a long history.

import { linkSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { kgPath, run } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';

const BACKUPS = 60;
/** A sidecar is remembered if it did not change for two seconds. */
const SETTLED_MS = 2200;

/** Makes a project whose store has many backups of earlier days. */
async function setUp() {
  const { root, backups } = makeProject({ nodes: 20 });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const made = await manager.createBackup();
  const sidecar = JSON.parse(readFileSync(`${made.path}.manifest.json`, 'utf8'));
  for (let day = 1; day < BACKUPS; day += 1) {
    const at = new Date(Date.UTC(2020, 0, day, 2));
    const stamp = at
      .toISOString()
      .replace(/[-:]|\..*/g, '')
      .replace('T', '-');
    const name = `kg-backup-${stamp}.tar.gz`;
    linkSync(made.path, path.join(backups, name));
    const described = {
      ...sidecar,
      id: `backup-${stamp}`,
      timestamp: at.toISOString(),
      archive: { ...sidecar.archive, name },
    };
    writeFileSync(path.join(backups, `${name}.manifest.json`), JSON.stringify(described));
  }
  await new Promise((resolve) => setTimeout(resolve, SETTLED_MS));
  return { root, backups, manager };
}

test('a run reads each sidecar once, however many questions it has', async () => {
  const { root, backups, manager } = await setUp();
  expect(await manager.listBackups()).toHaveLength(BACKUPS);
  for (const args of [[], ['--type', 'incremental'], ['--max-backups', '1000'], ['--list']]) {
    const log = path.join(temporaryDirectory(), 'log');
    const strace = ['-f', '-qq', '-e', 'trace=open,openat,openat2', '-o', log];
    run('strace', [...strace, kgPath, 'diag', 'backup', '--output', backups, ...args], {
      cwd: root,
    });
    const opened = readFileSync(log, 'utf8').match(/kg-backup-2020[^"]*\.manifest\.json/g);
    expect(opened, args.join(' ')).toHaveLength(BACKUPS - 1);
  }
});

test('a sidecar that another program changes meanwhile is read again', async () => {
  const { backups, manager } = await setUp();
  const [{ path: archive }] = (await manager.listBackups()).slice(-1);
  const file = `${archive}.manifest.json`;
  const text = readFileSync(file, 'utf8');
  const described = async () => (await manager.listBackups()).at(-1).description;
  for (const description of ['one', 'two', 'six']) {
    writeFileSync(file, text.replace('{', `{"description":"${description}",`));
    expect(await described()).toBe(description);
  }
  writeFileSync(file, 'none');
  const listed = await manager.listBackups();
  expect(listed).toHaveLength(BACKUPS - 1);
  expect(path.dirname(listed[0].path)).toBe(backups);
});
