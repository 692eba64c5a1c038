// Finds and loads the native parts for this machine: the addon, and the executable `kg` that the
// addon starts as its worker. A checkout has them in npm/<platform>/ (`npm run build`), an
// installation in a package of its own.
//
// Nothing here runs before the first call that needs them, so that a program that makes no backup
// starts on every platform.

import nodeModule from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { KgError } from './errors.mjs';
import { PACKAGES } from './platform-packages.mjs';
import { platformNames } from './platform-name.mjs';

const NAME = '@weavelogic/knowledge-graph-agent';

/** Returns `__filename` of CommonJS, if this code is in a bundle of that form. */
function commonJsFile() {
  try {
    return __filename;
  } catch {
    // Not `typeof`: webpack replaces it with an answer that is wrong in a bundle of ES modules.
    return undefined;
  }
}

/**
 * Returns the files from which the native parts may be found: this one, the main script, and the
 * executable, which is the program itself after `bun build --compile`. Some bundlers write the path
 * of the source instead of `import.meta.url`, others instead of `__filename`.
 */
function origins() {
  const files = [import.meta.url, commonJsFile(), process.argv[1], process.execPath];
  return files.filter((file) => typeof file === 'string');
}

/** Returns the directory of this package as code in `file` finds it, or null. */
function packageDirectory(file) {
  try {
    return path.dirname(nodeModule.createRequire(file).resolve(`${NAME}/package.json`));
  } catch {
    return null;
  }
}

/** Requires a module as code in `file` does. Returns `{ failure }` if that fails. */
function requireFrom(file, name) {
  try {
    return nodeModule.createRequire(file)(name);
  } catch (failure) {
    return { failure };
  }
}

/**
 * Yields what may be the native parts of a platform: `{ addonPath, kgPath }`, or `{ failure }` with
 * the reason why a place does not have them.
 */
function* candidates(platform) {
  const [own] = origins();
  const root = packageDirectory(own);
  const checkout = root ? requireFrom(own, path.join(root, 'npm', platform)) : {};
  if (checkout.addonPath) yield checkout;
  yield PACKAGES[platform]();
  for (const file of origins()) {
    yield requireFrom(file, `${NAME}-${platform}`);
    // pnpm lets only this package find the package of the platform.
    const found = packageDirectory(file);
    if (found) yield requireFrom(path.join(found, 'package.json'), `${NAME}-${platform}`);
  }
}

/**
 * Electron shows the content of an archive `app.asar` as a directory. The parts have to be outside,
 * because the system cannot load or start them from an archive.
 */
const outsideAsar = (file) => file.replace(/\.asar(?=[\\/])/, '.asar.unpacked');

/**
 * Loads the native parts of a platform. Returns `{ addon, kgPath }` or `{ failure }`.
 *
 * @returns {{ addon?: any, kgPath?: string, failure?: any }}
 */
function load(platform) {
  const failures = [];
  for (const { addonPath, kgPath, failure } of candidates(platform)) {
    try {
      if (failure) throw failure;
      const addonFile = outsideAsar(addonPath);
      return {
        addon: nodeModule.createRequire(addonFile)(addonFile),
        kgPath: outsideAsar(kgPath),
      };
    } catch (reason) {
      failures.push(reason);
    }
  }
  // Parts that exist and cannot be loaded say more than a place that does not have them.
  return { failure: failures.find(isUnloadable) ?? failures[0] };
}

const isUnloadable = ({ code }) => code !== 'MODULE_NOT_FOUND';

/** @param {string} platform */
function unsupported(platform) {
  const windows =
    process.platform === 'win32' ? '. On Windows, use the Windows Subsystem for Linux (WSL 2)' : '';
  return new KgError({
    code: 'KG_PLATFORM_UNSUPPORTED',
    message: `${NAME} has no native parts for ${platform}`,
    remedy: `The supported platforms are ${Object.keys(PACKAGES).join(', ')}${windows}`,
  });
}

/** Returns whether this file is still in its package. A bundler moves it out. */
function isInPackage() {
  const [own] = origins();
  const file = own.startsWith('file:') ? fileURLToPath(own) : own;
  const directory = packageDirectory(own);
  return directory !== null && file.startsWith(directory + path.sep);
}

function remedyFor(failures) {
  const texts = failures.filter(isUnloadable).map(({ message }) => message);
  const [, glibc] = /\bGLIBC_([\d.]+)/.exec(texts.join()) ?? [];
  if (glibc) return `They need glibc ${glibc} or newer: use a newer system or container image`;
  if (failures.some(({ name }) => name === 'NotCapable'))
    return 'Give Deno the permission that the reason names; native code needs `--allow-ffi`';
  if (!isInPackage())
    return (
      'It seems that a bundler has moved this code out of its package: leave the package out of ' +
      `the bundle (esbuild \`--external:${NAME}\`, Rollup and Vite \`external\`, webpack ` +
      '`externals`, Next.js `serverExternalPackages`) and install it where the bundle runs'
    );
  return texts.length > 0
    ? 'Install the package again on this machine, because a node_modules directory from another system contains other native parts'
    : 'Install again on this machine without `--omit=optional` (a node_modules directory from another system contains other native parts), or run `npm run build` in a checkout';
}

function missing(tried) {
  const reasons = tried.map(({ platform, failure }) =>
    isUnloadable(failure)
      ? `those for ${platform} could not be loaded: ${failure.message.replace(/\.$/, '')}`
      : `the package ${NAME}-${platform} is not installed`,
  );
  const failures = tried.map(({ failure }) => failure);
  return new KgError({
    code: 'KG_NATIVE_MISSING',
    message: `The native parts of ${NAME} cannot be used: ${reasons.join(', and ')}`,
    remedy: remedyFor(failures),
    cause: failures.map(({ message }) => message).join('\n'),
  });
}

let parts;

/**
 * Returns the addon and the path of `kg`, and loads the addon at the first call. Throws
 * `KG_PLATFORM_UNSUPPORTED` or `KG_NATIVE_MISSING`.
 *
 * @returns {{ addon: any, kgPath: string }}
 */
export function nativeParts() {
  if (parts) return parts;
  const names = platformNames();
  const supported = names.filter((name) => PACKAGES[name]);
  if (supported.length === 0) throw unsupported(names[0]);
  const tried = [];
  for (const platform of supported) {
    const { addon, kgPath, failure } = load(platform);
    if (addon) return (parts = { addon, kgPath });
    tried.push({ platform, failure });
  }
  throw missing(tried);
}
