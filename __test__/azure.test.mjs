// Backups in Azure Blob Storage, as Azurite has it.

import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, expect, test } from 'vitest';

import { azuriteBlob, installAzurite } from '../scripts/object-server.mjs';
import { until } from './support/processes.mjs';
import { integrityOf, makeProject, withDatabase } from './support/project.mjs';

const ACCOUNT = 'devstoreaccount1';
/** The key of the account that Azurite always has. */
const KEY =
  'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
const CONTAINER = 'kg-tests';

let server;
let dir;
let endpoint;

/** Creates the container. The signature is that of "Authorize with Shared Key". */
async function createContainer() {
  const date = new Date().toUTCString();
  const version = '2021-08-06';
  const signed = [
    'PUT',
    ...Array(11).fill(''),
    `x-ms-date:${date}`,
    `x-ms-version:${version}`,
    `/${ACCOUNT}/${ACCOUNT}/${CONTAINER}`,
    'restype:container',
  ].join('\n');
  const signature = createHmac('sha256', Buffer.from(KEY, 'base64'))
    .update(signed)
    .digest('base64');
  const answer = await fetch(`${endpoint}/${CONTAINER}?restype=container`, {
    method: 'PUT',
    headers: {
      'x-ms-date': date,
      'x-ms-version': version,
      authorization: `SharedKey ${ACCOUNT}:${signature}`,
    },
  }).catch(() => null);
  if (answer !== null && ![201, 409].includes(answer.status))
    throw new Error(`${answer.status} ${await answer.text()}`);
  return answer !== null;
}

beforeAll(async () => {
  installAzurite();
  dir = mkdtempSync(path.join(os.tmpdir(), 'kg-azurite-'));
  const port = await new Promise((resolve) => {
    const free = createServer();
    free.listen(0, '127.0.0.1', () => {
      const { port: found } = free.address();
      free.close(() => resolve(found));
    });
  });
  const args = ['--blobHost', '127.0.0.1', '--blobPort', String(port), '--location', dir];
  server = spawn(process.execPath, [azuriteBlob, ...args, '--silent', '--skipApiVersionCheck'], {
    stdio: 'ignore',
  });
  endpoint = `http://127.0.0.1:${port}/${ACCOUNT}`;
  await until(createContainer, 'Azurite');
});

afterAll(() => {
  server?.kill('SIGKILL');
  if (dir) rmSync(dir, { recursive: true, force: true });
});

test('backups in Azure Blob Storage are made, listed, verified, chained, restored and removed', async () => {
  const { root, database } = makeProject({ nodes: 50 });
  const noise = Buffer.alloc(20_000_000);
  for (let at = 0; at < noise.length; at += 4)
    noise.writeUInt32LE(Math.imul(at, 2654435761) >>> 0, at);
  writeFileSync(path.join(root, '.kg/plugins/noise.bin'), noise);
  const manager = createBackupManager({
    projectRoot: root,
    backupDir: `az://${CONTAINER}/stores/one`,
    storageOptions: { endpoint, allowHttp: true, account: ACCOUNT, accessKey: KEY },
  });
  const full = await manager.createBackup();
  expect(full.warnings).toEqual([]);
  withDatabase(database, (db) => db.exec("INSERT INTO nodes (id) VALUES ('new')"));
  const incremental = await manager.createBackup({ type: 'incremental' });
  expect(incremental).toMatchObject({ type: 'incremental', basedOn: full.id, warnings: [] });
  const listed = await manager.listBackups();
  expect(listed.map(({ id }) => id)).toEqual([incremental.id, full.id]);
  for (const { id } of listed) expect(await manager.verifyBackup(id)).toBe(true);

  const other = path.join(path.dirname(root), 'restored');
  await manager.restore({ backupId: 'latest', targetDir: other });
  expect(integrityOf(path.join(other, '.kg/knowledge.db'))).toBe('ok');
  expect(readFileSync(path.join(other, '.kg/plugins/noise.bin')).equals(noise)).toBe(true);

  await manager.pin(full.id, 'release');
  await expect(manager.deleteBackup(full.id, { cascade: true })).rejects.toMatchObject({
    code: 'KG_BACKUP_PINNED',
  });
  await manager.unpin(full.id);
  await manager.deleteBackup(full.id, { cascade: true });
  expect(await manager.listBackups()).toEqual([]);
});

test('a wrong key is reported as such', async () => {
  const { root } = makeProject({ nodes: 5 });
  const manager = createBackupManager({
    projectRoot: root,
    backupDir: `az://${CONTAINER}/stores/two`,
    storageOptions: {
      endpoint,
      allowHttp: true,
      account: ACCOUNT,
      accessKey: Buffer.from('wrong').toString('base64'),
    },
  });
  await expect(manager.createBackup()).rejects.toMatchObject({ code: 'KG_STORE_DENIED' });
});
