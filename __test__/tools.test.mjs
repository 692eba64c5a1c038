// A full backup can be opened without this tool, with standard programs of any system.

import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { run } from './support/processes.mjs';
import { makeProject, temporaryDirectory, text } from './support/project.mjs';

async function backup(options = {}) {
  const project = makeProject({ nodes: 5000 });
  const manager = createBackupManager({ projectRoot: project.root, backupDir: project.backups });
  return { ...project, manager, made: await manager.createBackup(options) };
}

function sha256(file) {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}

for (const compression of [true, false]) {
  const kind = compression ? 'tar.gz' : 'tar';

  test(`tar, sha256sum and sqlite3 restore a .${kind}`, async () => {
    const { made, backups } = await backup({ compression });
    expect(path.basename(made.path)).toMatch(new RegExp(`^kg-backup-\\d{8}-\\d{6}\\.${kind}$`));
    expect(realpathSync(path.join(backups, `latest.${kind}`))).toBe(realpathSync(made.path));
    const out = temporaryDirectory();
    run('tar', [compression ? '-xzf' : '-xf', made.path], { cwd: out });
    expect(run('sha256sum', ['-c', 'checksums.sha256'], { cwd: out })).not.toContain('FAILED');
    expect(
      run('sqlite3', ['database.sqlite', 'PRAGMA integrity_check; SELECT count(*) FROM nodes'], {
        cwd: out,
      }),
    ).toBe('ok\n5000\n');
    expect(run('tar', ['-tf', made.path]).trim().split('\n')).toEqual([
      'database.sqlite',
      'config.json',
      'vectors',
      'vectors/a.f32',
      'plugins',
      'plugins/glossary',
      'plugins/glossary/terms.json',
      'files.jsonl',
      'manifest.json',
      'checksums.sha256',
    ]);
    const python = 'import sys, tarfile; print(len(tarfile.open(sys.argv[1]).getmembers()))';
    expect(run('python3', ['-c', python, made.path]).trim()).toBe('10');
  });
}

test('gzip, pigz and zlib decompress it to the same bytes', async () => {
  const { made } = await backup();
  const plain = gunzipSync(readFileSync(made.path));
  for (const tool of ['gzip', 'pigz']) {
    run(tool, ['-t', made.path]);
    const bytes = run(tool, ['-dc', made.path], { encoding: 'buffer', maxBuffer: 1 << 30 });
    expect(bytes.equals(plain), tool).toBe(true);
  }
});

test('the manifest and the sidecar have the form that the guide describes', async () => {
  const { made } = await backup({ description: 'Scheduled backup' });
  const inside = JSON.parse(run('tar', ['-xzOf', made.path, 'manifest.json']));
  expect(inside).toMatchObject({
    version: '1.0.0',
    id: made.id,
    type: 'full',
    description: 'Scheduled backup',
    contents: { database: true, config: true, vectors: true, plugins: true },
    stats: { totalFiles: 4, nodeCount: 5000, edgeCount: 4999 },
    integrity: { status: 'ok', messages: [] },
  });
  expect(Date.parse(inside.timestamp)).toBe(made.timestamp);
  expect(Object.keys(inside.checksums)).toEqual(['config.json', 'database.sqlite']);
  const out = temporaryDirectory();
  run('tar', ['-xzf', made.path], { cwd: out });
  for (const [entry, checksum] of Object.entries(inside.checksums)) {
    expect(checksum).toBe(`sha256:${sha256(path.join(out, entry))}`);
  }
  const sidecar = JSON.parse(readFileSync(`${made.path}.manifest.json`, 'utf8'));
  expect(sidecar.archive).toEqual({
    name: path.basename(made.path),
    size: made.size,
    sha256: sha256(made.path),
    root: expect.stringMatching(/^[0-9a-f]{64}$/),
    listOffset: expect.any(Number),
  });
  expect(made.checksum).toBe(`sha256:${sha256(made.path)}`);
  expect({ ...sidecar, archive: undefined, stats: inside.stats }).toEqual({
    ...inside,
    archive: undefined,
  });
});

test('names that tar and sha256sum must escape or store separately are preserved', async () => {
  const { root, backups } = makeProject();
  const names = [
    'with space',
    'back\\slash',
    'line\nend',
    'ünïcödé',
    '-dash',
    `${'long/'.repeat(40)}name`,
    'quote"\'s',
  ];
  for (const name of names) {
    const file = path.join(root, '.kg/plugins', name);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, text(name.length));
  }
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const made = await manager.createBackup();
  expect(made.warnings).toEqual([]);
  const out = temporaryDirectory();
  run('tar', ['-xzf', made.path], { cwd: out });
  run('sha256sum', ['--strict', '-c', 'checksums.sha256'], { cwd: out });
  for (const name of names)
    expect(readFileSync(path.join(out, 'plugins', name), 'utf8')).toBe(text(name.length));
  expect(await manager.verifyBackup(made.id)).toBe(true);
});
