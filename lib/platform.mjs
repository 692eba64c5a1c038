// Finds the native parts for this machine: the addon, and the executable `kg` that the addon starts
// as its worker. A checkout has them in npm/<platform>/ (`npm run build`), an installation in a
// package of its own.

import fs from 'node:fs';
import nodeModule from 'node:module';
import path from 'node:path';

import { KgError } from './errors.mjs';
import { platformName } from './platform-name.mjs';

const NAME = '@weavelogic/knowledge-graph-agent';
const ADDON = 'knowledge-graph-agent.node';
/** The platforms for which a package exists. */
const PLATFORMS = ['darwin-arm64', 'darwin-x64', 'linux-arm64-gnu', 'linux-x64-gnu'];

const BUNDLED =
  'a bundler has moved this code away from its package: leave the package out of the bundle ' +
  `(esbuild \`--external:${NAME}\`, Rollup \`external\`, webpack \`externals\`) and install it where the bundle runs`;

// A bundle of CommonJS has no `import.meta.url`. createRequire is called as a member of its module
// because webpack replaces the imported function.
const require = nodeModule.createRequire(import.meta.url ?? __filename);

/** Returns the directory of this package, or null if a bundler has moved this code out of it. */
function packageDirectory() {
  try {
    return path.dirname(require.resolve(`${NAME}/package.json`));
  } catch {
    return null;
  }
}

const root = packageDirectory();

function unsupported(platform) {
  const remedy = platform.endsWith('-musl')
    ? 'This Node runs on musl (Alpine Linux): use an image with glibc, such as `node:22-slim`'
    : platform.startsWith('win32')
      ? 'Run it in the Windows Subsystem for Linux (WSL 2)'
      : `There are packages for ${PLATFORMS.join(', ')}`;
  const message = `${NAME} has no native parts for ${platform}`;
  return new KgError({ code: 'KG_PLATFORM_UNSUPPORTED', message, remedy });
}

function missing(platform, cause) {
  const message = `The native parts of ${NAME} for ${platform} were not found: the package ${NAME}-${platform} is not installed`;
  const remedy = root
    ? 'Install again on this machine without `--omit=optional` (a node_modules directory from another system contains other native parts), or run `npm run build` in a checkout'
    : `It seems that ${BUNDLED}`;
  return new KgError({ code: 'KG_NATIVE_MISSING', message, remedy, cause });
}

function nativeDirectory(platform) {
  if (root) {
    const checkout = path.join(root, 'npm', platform);
    if (fs.existsSync(path.join(checkout, ADDON))) return checkout;
  }
  try {
    return path.dirname(require.resolve(`${NAME}-${platform}/package.json`));
  } catch (cause) {
    throw PLATFORMS.includes(platform) ? missing(platform, cause.message) : unsupported(platform);
  }
}

const platform = platformName();
const directory = nativeDirectory(platform);

/** Loads the addon. Throws `KG_NATIVE_MISSING` with the loader's reason if that fails. */
export function loadAddon() {
  const addonPath = path.join(directory, ADDON);
  try {
    return require(addonPath);
  } catch (cause) {
    const message = `The native parts of ${NAME} for ${platform} could not be loaded: ${cause.message}`;
    const remedy = root
      ? 'Install the package again on this machine; the system must have at least the glibc that the message names'
      : `It seems that ${BUNDLED}`;
    throw new KgError({ code: 'KG_NATIVE_MISSING', message, remedy, cause: cause.message });
  }
}

export const kgPath = path.join(directory, process.platform === 'win32' ? 'kg.exe' : 'kg');
