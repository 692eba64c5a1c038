// The platforms that have a package with the native parts, and the files of such a package.
//
//   node scripts/platforms.mjs --write        writes npm/<platform>/ anew from this file
//
// The packages differ only in their names, so each file of them has one template here. A test
// compares them.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');
export const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));

/** The native parts of a platform, with the name of the file that cargo builds. */
export const ADDON = 'knowledge-graph-agent.node';
export const PROGRAM = 'kg';

/** The Rust target of each platform. */
export const platforms = {
  'darwin-arm64': { target: 'aarch64-apple-darwin' },
  'darwin-x64': { target: 'x86_64-apple-darwin' },
  'linux-arm64-gnu': { target: 'aarch64-unknown-linux-gnu' },
  'linux-arm64-musl': { target: 'aarch64-unknown-linux-musl' },
  'linux-x64-gnu': { target: 'x86_64-unknown-linux-gnu' },
  'linux-x64-musl': { target: 'x86_64-unknown-linux-musl' },
};

const MEGABYTE = 1_000_000;
/**
 * The size that a part may have in a release. One that outgrows its limit has gained a dependency, or
 * was built without optimisation.
 */
export const sizeLimits = { [ADDON]: 14 * MEGABYTE, [PROGRAM]: 22 * MEGABYTE };

/** The oldest glibc and macOS that the packages run on. */
export const OLDEST_GLIBC = '2.17';
export const OLDEST_MACOS = '11.0';

/** Returns the name of the package of a platform. */
export const packageName = (platform) => `${manifest.name}-${platform}`;

/** Returns the manifest of the package of a platform. */
export function platformManifest(platform) {
  const [os, cpu, libc] = platform.split('-');
  const { name, version, license, engines, publishConfig } = manifest;
  return {
    name: packageName(platform),
    version,
    description: `The native parts of ${name} for ${platform}`,
    license,
    os: [os],
    cpu: [cpu],
    ...(libc && { libc: [libc === 'gnu' ? 'glibc' : libc] }),
    main: 'index.js',
    files: ['index.js', ADDON, PROGRAM, 'THIRD-PARTY-NOTICES'],
    engines,
    // Yarn keeps packages in archives, from which no program can be started.
    preferUnplugged: true,
    publishConfig,
  };
}

const INDEX = `'use strict';

// Where the native parts are. Bundlers recognise these expressions and bring the files along.

const path = require('node:path');

module.exports = {
  addonPath: path.join(__dirname, '${ADDON}'),
  kgPath: path.join(__dirname, '${PROGRAM}'),
};
`;

const README = (platform) => `# ${packageName(platform)}

The native parts of [${manifest.name}](https://www.npmjs.com/package/${manifest.name}) for
${platform}. Install that package; it brings this one.
`;

/** Returns the files of the package of a platform, without the native parts. */
export function platformFiles(platform) {
  return {
    'README.md': README(platform),
    'index.js': INDEX,
    'package.json': `${JSON.stringify(platformManifest(platform), null, 2)}\n`,
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url) && process.argv.includes('--write')) {
  for (const platform of Object.keys(platforms)) {
    const directory = path.join(root, 'npm', platform);
    mkdirSync(directory, { recursive: true });
    for (const [file, content] of Object.entries(platformFiles(platform)))
      writeFileSync(path.join(directory, file), content);
  }
}
