// What happens when a program loads the package: on any platform nothing, until the first call that
// needs the native parts. If they cannot be used, that call says why.

import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { PACKAGES } from '../lib/platform-packages.mjs';
import { platformName } from '../lib/platform-name.mjs';
import { kgPath, repository, run } from './support/processes.mjs';
import { temporaryDirectory } from './support/project.mjs';

const PACKAGE = '@weavelogic/knowledge-graph-agent';
const platforms = Object.keys(PACKAGES);

/** Runs JavaScript in a separate process and returns its output and exit status. */
function node(script, options) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', script], {
    encoding: 'utf8',
    cwd: repository,
    ...options,
  });
  return { status, output: stdout + stderr };
}

/** A script that runs `before`, loads the package, and prints the error of the first call. */
const firstCall = (before = '') => `${before}
  const { createBackupManager, KgError } = require('./index.js');
  console.log('loaded');
  try { createBackupManager(); console.log('works') }
  catch (e) { console.log(e instanceof KgError, e.code, e.message) }`;

/** A statement that pretends that `object` has another value. */
const set = (object, name, value) =>
  `Object.defineProperty(${object}, '${name}', { value: ${JSON.stringify(value)} });`;

/** Writes an executable that requests `interpreter` as its loader, far behind its start. */
function executable(interpreter) {
  const header = Buffer.alloc(64);
  header.write('\x7fELF\x02\x01\x01', 'latin1');
  header.writeBigUInt64LE(64n, 32);
  header.writeUInt16LE(56, 54);
  header.writeUInt16LE(2, 56);
  const load = Buffer.alloc(56);
  load.writeUInt32LE(1);
  const table = Buffer.alloc(56);
  table.writeUInt32LE(interpreter ? 3 : 2);
  table.writeBigUInt64LE(10_000n, 8);
  table.writeBigUInt64LE(BigInt(interpreter.length + 1), 32);
  const content = Buffer.alloc(11_000);
  Buffer.concat([header, load, table]).copy(content);
  content.write(interpreter, 10_000, 'latin1');
  const file = path.join(temporaryDirectory(), 'node');
  writeFileSync(file, content);
  return set('process', 'execPath', file);
}

/** Copies what an installation contains, without native parts. */
function installation() {
  const copy = path.join(temporaryDirectory(), 'package');
  for (const part of ['lib', 'bin', 'package.json', 'index.js', 'index.mjs'])
    cpSync(path.join(repository, part), path.join(copy, part), { recursive: true });
  return copy;
}

describe('before the first call', () => {
  test('no file of the native parts is looked for, on no platform', () => {
    const watch = `
      const fs = require('node:fs');
      const nodeModule = require('node:module');
      const resolve = nodeModule._resolveFilename;
      nodeModule._resolveFilename = function (name, ...rest) {
        if (name.includes('knowledge-graph-agent-') || name.endsWith('.node')) console.log('looked for', name);
        return resolve.call(this, name, ...rest);
      };
      const open = fs.openSync;
      fs.openSync = (file, ...rest) => { console.log('opened', file); return open(file, ...rest) };`;
    const loaded = `${watch}
      const { BackupManager, BackupScheduler, KgError, backupFreshnessCheck } = require('./index.js');
      class Mine extends BackupManager {}
      try { backupFreshnessCheck({}) } catch (e) { console.log(e.code) }`;
    for (const before of ['', set('process', 'platform', 'sunos')])
      expect(node(before + loaded)).toEqual({ status: 0, output: 'KG_INVALID_OPTION\n' });
    // The watch does see the first call.
    expect(node(`${loaded}; { ${firstCall()} }`).output).toMatch(
      /loaded\nopened .*\nlooked for .*knowledge-graph-agent.node\nworks/s,
    );
  });

  test('an ES module that only imports the package starts on every platform', () => {
    const script = `${set('process', 'platform', 'sunos')}
      import('./index.mjs').then(({ createBackupManager, KgError }) => {
        console.log(typeof createBackupManager);
        try { createBackupManager() } catch (e) { console.log(e.code) }
      });`;
    expect(node(script).output).toBe('function\nKG_PLATFORM_UNSUPPORTED\n');
  });
});

test('no process report is requested, which can block the event loop', () => {
  const script = `Object.defineProperty(process, 'report', { get() { throw new Error('blocked') } });`;
  expect(node(firstCall(script)).output).toBe('loaded\nworks\n');
});

describe('the platform', () => {
  test('is refused by name if it is unsupported, with a list of the supported ones', () => {
    const unsupported = (before) => {
      const { output } = node(firstCall(before));
      expect(output).toMatch(/^loaded\ntrue KG_PLATFORM_UNSUPPORTED /);
      for (const platform of platforms) expect(output).toContain(platform);
      return output;
    };
    expect(unsupported(set('process', 'arch', 'riscv64'))).toContain(
      'parts for linux-riscv64-gnu.',
    );
    expect(unsupported(set('process', 'platform', 'sunos'))).toContain('parts for sunos-x64.');
    expect(unsupported(set('process', 'platform', 'win32'))).toMatch(/win32-x64.*WSL 2/);
    // If it is not known whether the C library is glibc or musl, either would be unsupported.
    expect(unsupported(set('process', 'arch', 'x') + executable(''))).toContain('linux-x-gnu');
  });

  test('is musl if the executable requests its loader', () => {
    for (const loader of ['/lib/ld-musl-x86_64.so.1', '/opt/odd/lib/ld-musl-aarch64.so.1'])
      expect(node(firstCall(executable(loader))).output).toMatch(
        // This checkout may contain the parts of other platforms, which cannot be loaded here.
        new RegExp(
          `KG_NATIVE_MISSING .*: (the package ${PACKAGE}-linux-\\w+-musl is not installed|` +
            'those for linux-\\w+-musl could not be loaded)',
        ),
      );
    for (const loader of [
      '/lib64/ld-linux-x86-64.so.2',
      '/nix/store/x-glibc-2.40/lib/ld-linux-aarch64.so.1',
    ])
      expect(node(firstCall(executable(loader))).output).toBe('loaded\nworks\n');
  });

  test('is either if the executable requests no loader, and a failure names both', () => {
    expect(node(firstCall(executable(''))).output).toBe('loaded\nworks\n');
    const { output } = node(firstCall(executable('') + set('process', 'arch', 'arm64')));
    expect(output).toMatch(
      /KG_NATIVE_MISSING .*linux-arm64-gnu (is|could) not .*, and .*linux-arm64-musl (is|could) not/,
    );
    // The same for an executable that is gone, cut off, or makes absurd claims.
    const absurd = Buffer.alloc(200, 0xff);
    absurd.write('\x7fELF\x02\x01\x01', 'latin1');
    for (const content of [absurd, absurd.subarray(0, 20), Buffer.alloc(0)]) {
      const file = path.join(temporaryDirectory(), 'node');
      writeFileSync(file, content);
      expect(node(firstCall(set('process', 'execPath', file))).output).toBe('loaded\nworks\n');
    }
    expect(node(firstCall(set('process', 'execPath', '/nowhere'))).output).toBe('loaded\nworks\n');
  });

  test('has a package, and the packages of all platforms find their parts in the same way', () => {
    expect(readdirSync(path.join(repository, 'npm')).sort()).toEqual(platforms);
    const read = (platform) =>
      readFileSync(path.join(repository, 'npm', platform, 'index.js'), 'utf8');
    for (const platform of platforms) {
      expect(read(platform)).toBe(read(platforms[0]));
      const manifest = JSON.parse(
        readFileSync(path.join(repository, 'npm', platform, 'package.json'), 'utf8'),
      );
      expect(manifest).toMatchObject({ name: `${PACKAGE}-${platform}`, main: 'index.js' });
      // Yarn would keep the package in an archive, from which `kg` cannot be started.
      expect(manifest.preferUnplugged).toBe(true);
    }
    const here = createRequire(import.meta.url)(`../npm/${platformName()}`);
    expect(here).toEqual({
      addonPath: path.join(path.dirname(kgPath), 'knowledge-graph-agent.node'),
      kgPath,
    });
  });
});

describe('missing native parts', () => {
  const native = (copy) => path.join(copy, 'node_modules', `${PACKAGE}-${platformName()}`);
  const kg = (copy) =>
    spawnSync(process.execPath, [path.join(copy, 'bin/kg.js'), '--version'], { encoding: 'utf8' });

  /** Installs a package of this platform with an addon of the given content. */
  function withAddon(content) {
    const copy = installation();
    mkdirSync(native(copy), { recursive: true });
    cpSync(
      path.join(repository, 'npm', platformName(), 'index.js'),
      path.join(native(copy), 'index.js'),
    );
    writeFileSync(path.join(native(copy), 'knowledge-graph-agent.node'), content);
    return copy;
  }

  test('are reported with the package to install, by the API and by the command', () => {
    const copy = installation();
    expect(node(firstCall(), { cwd: copy }).output).toMatch(
      new RegExp(
        `^loaded\ntrue KG_NATIVE_MISSING .*${PACKAGE}-${platformName()} is not installed.*--omit=optional`,
      ),
    );
    const { status, stdout, stderr } = kg(copy);
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(/^kg: .*is not installed.*\[KG_NATIVE_MISSING\]\n$/);
  });

  test('of another system are reported with the reason of the loader', () => {
    const copy = withAddon('of another system');
    expect(node(firstCall(), { cwd: copy }).output).toMatch(
      /KG_NATIVE_MISSING .*could not be loaded: .*knowledge-graph-agent\.node.*another system/,
    );
    expect(kg(copy).stderr).toMatch(/^kg: .*could not be loaded.*\[KG_NATIVE_MISSING\]\n$/);
  });

  test('name the glibc that they need', () => {
    const dir = temporaryDirectory();
    const build = (output, source, ...args) => {
      writeFileSync(path.join(dir, 'source.c'), source);
      run('cc', ['-shared', '-fPIC', '-o', output, 'source.c', ...args], { cwd: dir });
    };
    const buildLibrary = (version) => {
      writeFileSync(path.join(dir, 'versions'), `${version} { global: answer; };`);
      build('libc-of-test.so', 'int answer(void) { return 42; }', '-Wl,--version-script=versions');
    };
    // The addon is linked with a newer version of a library than the one that it finds later.
    buildLibrary('GLIBC_9.99');
    const call = 'extern int answer(void); int call(void) { return answer(); }';
    build('addon.node', call, 'libc-of-test.so', '-Wl,-rpath,$ORIGIN');
    buildLibrary('GLIBC_1.0');
    const addon = path.join(dir, 'addon.node');
    const library = path.join(dir, 'libc-of-test.so');
    const copy = withAddon(readFileSync(addon));
    cpSync(library, path.join(native(copy), 'libc-of-test.so'));
    expect(node(firstCall(), { cwd: copy }).output).toMatch(
      /KG_NATIVE_MISSING .*GLIBC_9\.99.*They need glibc 9\.99 or newer/,
    );
  });

  test('of a package without its addon, and code that a bundler moved, are reported too', () => {
    const copy = withAddon('');
    rmSync(path.join(native(copy), 'knowledge-graph-agent.node'));
    expect(node(firstCall(), { cwd: copy }).output).toContain('KG_NATIVE_MISSING');
    const moved = temporaryDirectory();
    cpSync(path.join(repository, 'lib'), path.join(moved, 'bundle'), { recursive: true });
    const script = `import('./bundle/native.mjs').then(({ checkConfig }) => checkConfig({}))
      .catch((e) => console.log(e.code, e.message))`;
    expect(node(script, { cwd: moved }).output).toMatch(
      /KG_NATIVE_MISSING .*bundler.*--external:@weavelogic\/knowledge-graph-agent/,
    );
  });

  test('on an unsupported platform make the command print one sentence', () => {
    const preload = path.join(temporaryDirectory(), 'preload.cjs');
    writeFileSync(preload, set('process', 'platform', 'sunos'));
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ['--require', preload, path.join(repository, 'bin/kg.js'), 'diag', 'backup'],
      { encoding: 'utf8' },
    );
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(
      /^kg: .* no native parts for sunos-x64\. .*\[KG_PLATFORM_UNSUPPORTED\]\n$/,
    );
  });
});
