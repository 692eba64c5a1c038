// Archives of the first format, whose manifests list all files, stay usable.

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { expect, test } from 'vitest';

import { digestOf, entriesOf, seal, tarOf } from './support/forge.mjs';
import { run } from './support/processes.mjs';
import { contents, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';

/** Returns the records of a list of files. */
const recordsIn = (list) =>
  list
    .toString()
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));

/** Compares the places of two records in the first format: by component, then by path as text. */
function firstOrder(one, other) {
  const components = ['database', 'config', 'vectors', 'plugins', 'files'];
  const place = ({ component }) => components.indexOf(component);
  return place(one) - place(other) || (one.path < other.path ? -1 : 1);
}

/** Returns the manifest of the first format. `whole` is the list of the whole backup. */
function firstManifest(manifest, whole, changes, entries) {
  const described = (record) => {
    const { stored, pages, sha256, ...rest } = changes.get(record.path) ?? {
      ...record,
      stored: manifest.basedOn ? 'base' : undefined,
    };
    return { ...rest, stored, pages, sha256: stored ? sha256 : undefined };
  };
  const files = whole.map(described).sort(firstOrder);
  const digests = entries
    .filter(({ type }) => type === '0')
    .map(({ name, content }) => [name, digestOf(content)]);
  const deleted = [...changes.values()].filter(({ stored }) => stored === 'deleted');
  const { format: _format, fileList: _fileList, ...rest } = manifest;
  return {
    ...rest,
    checksums: Object.fromEntries(digests),
    files,
    deleted: deleted.length > 0 ? deleted.map((file) => file.path) : undefined,
  };
}

/**
 * Rewrites the archive of a backup, and its sidecar, in the first format. Returns the digest of the
 * new archive.
 */
async function rewrite(manager, backup, basedOnChecksum) {
  const { files } = await manager.checkBackup(backup.path, { listFiles: true });
  const entries = entriesOf(gunzipSync(readFileSync(backup.path)));
  const [list, manifest] = entries.splice(-3);
  const listed = recordsIn(list.content);
  const changes = new Map(listed.map((record) => [record.path, record]));
  const first = firstManifest(JSON.parse(manifest.content), files, changes, entries);
  Object.assign(first, { basedOnChecksum });
  const place = ({ name }) => first.files.findIndex((record) => record.entry === name);
  entries.sort((one, other) => place(one) - place(other));
  entries.push({ name: 'manifest.json', type: '0', content: Buffer.from(JSON.stringify(first)) });
  const lines = entries
    .filter(({ type }) => type === '0')
    .map(({ name, content }) => `${digestOf(content).slice('sha256:'.length)}  ${name}\n`);
  const checksums = { name: 'checksums.sha256', content: Buffer.from(lines.join('')) };
  const archive = seal(tarOf([...entries, checksums]));
  const sha256 = digestOf(archive);
  first.stats.compressedSize = archive.length;
  first.archive = {
    name: path.basename(backup.path),
    size: archive.length,
    sha256: sha256.slice('sha256:'.length),
  };
  writeFileSync(backup.path, archive);
  writeFileSync(`${backup.path}.manifest.json`, JSON.stringify(first));
  return sha256;
}

/** Makes a chain of three backups in the first format, and the state that each of them saved. */
async function makeChain() {
  const project = makeProject({ nodes: 3000 });
  const { root, backups, database } = project;
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  const at = (...parts) => path.join(root, '.kg', ...parts);
  // The two formats have these in another order.
  for (const name of ['glossary-b', 'glossary.c', 'round'])
    writeFileSync(at('plugins', name), name);
  const states = [];
  const save = async (type) =>
    states.push({ backup: await manager.createBackup({ type }), is: contents(root) });
  await save('full');
  withDatabase(database, (db) => db.exec("UPDATE nodes SET title = 'x' WHERE rowid % 100 = 0"));
  rmSync(at('vectors/a.f32'));
  writeFileSync(at('plugins/round'), 'changed');
  await save('incremental');
  writeFileSync(at('plugins/new'), 'new');
  await save('incremental');
  // Each manifest names the digest of the archive before it, which changes last.
  const whole = [];
  for (const { backup } of states) whole.push(await rewriteLater(manager, backup));
  let before;
  for (const write of whole) before = await write(before);
  return { ...project, manager, at, states, save };
}

/** Reads a backup before its base changes, and returns what rewrites it. */
async function rewriteLater(manager, backup) {
  const report = await manager.checkBackup(backup.path, { listFiles: true });
  return (basedOnChecksum) => rewrite({ checkBackup: async () => report }, backup, basedOnChecksum);
}

async function expectStates(manager, states) {
  for (const { backup, is } of states) {
    const target = path.join(temporaryDirectory(), 'target');
    await manager.restore({ backupPath: backup.path, targetDir: target });
    expect(contents(target), backup.id).toEqual(is);
  }
}

test('archives of the first format are listed, verified and restored, also in parts', async () => {
  const { manager, states } = await makeChain();
  const ids = states.map(({ backup }) => backup.id).reverse();
  expect((await manager.listBackups()).map(({ id }) => id)).toEqual(ids);
  for (const id of ids)
    expect(await manager.checkBackup(id)).toMatchObject({ valid: true, problems: [] });
  await expectStates(manager, states);
  const target = path.join(temporaryDirectory(), 'target');
  await manager.restore({ backupId: ids[0], targetDir: target, paths: ['plugins/**'] });
  expect(run('find', ['.kg', '-type', 'f'], { cwd: target }).split('\n').sort()).toEqual([
    '',
    '.kg/plugins/glossary-b',
    '.kg/plugins/glossary.c',
    '.kg/plugins/glossary/terms.json',
    '.kg/plugins/new',
    '.kg/plugins/round',
  ]);
});

test('a backup of the first format can be a base, and a full one can replace its chain', async () => {
  const { manager, states, save, at } = await makeChain();
  writeFileSync(at('plugins/round'), 'changed again');
  rmSync(at('plugins/new'));
  await save('incremental');
  await save('incremental');
  for (const { backup } of states.slice(-2)) {
    expect(backup).toMatchObject({ type: 'incremental', warnings: [] });
    expect(await manager.checkBackup(backup.id)).toMatchObject({ valid: true, problems: [] });
  }
  await expectStates(manager, states);
  const full = await manager.consolidate(states.at(-1).backup.id);
  for (const { backup } of [...states].reverse()) await manager.deleteBackup(backup.id);
  await expectStates(manager, [{ backup: full, is: states.at(-1).is }]);
});

test('a sidecar of the first format that differs from its archive is found', async () => {
  const { manager, states } = await makeChain();
  const [{ backup }] = states;
  const file = `${backup.path}.manifest.json`;
  for (const change of [
    (manifest) => (manifest.files[1].size += 1),
    (manifest) => void manifest.files.pop(),
    (manifest) => (manifest.stats.nodeCount += 1),
  ]) {
    const text = readFileSync(file);
    const manifest = JSON.parse(text);
    change(manifest);
    writeFileSync(file, JSON.stringify(manifest));
    expect((await manager.checkBackup(backup.path)).problems).toMatchObject([
      { code: 'KG_PROBLEM_SIDECAR' },
    ]);
    writeFileSync(file, text);
  }
});
