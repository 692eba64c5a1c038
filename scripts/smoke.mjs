// `npm run smoke`: installs the packages of a platform from this checkout into a directory, and uses
// them there: `kg --version`, a backup, its verification, a restore and a check.
//
//   node scripts/smoke.mjs [PLATFORM ...]
//
// Without names, it tries the platform of this machine. Those of scripts/systems.mjs can be tried
// too, on Linux x64.

import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { fillDatabase } from '../__test__/support/database.mjs';
import { platformName } from '../lib/platform-name.mjs';
import makeCommonJs from './commonjs.mjs';
import { manifest, packageName, PROGRAM, root } from './platforms.mjs';
import { installSystem, isRunnable } from './systems.mjs';

const NODES = 500;

/** Makes a project. The Node that tries the package needs no SQLite for this. */
function makeProject(directory) {
  mkdirSync(path.join(directory, '.kg'), { recursive: true });
  fillDatabase(path.join(directory, '.kg/knowledge.db'), { nodes: NODES });
  writeFileSync(
    path.join(directory, '.kg/config.json'),
    '{"database":{"path":".kg/knowledge.db"}}',
  );
}

/** Lays the packages out as an installation does. */
function install(directory, platform) {
  const modules = path.join(directory, 'node_modules');
  const main = path.join(modules, manifest.name);
  for (const file of ['package.json', ...manifest.files])
    cpSync(path.join(root, file), path.join(main, file), { recursive: true });
  const native = path.join(modules, packageName(platform));
  cpSync(path.join(root, 'npm', platform), native, { recursive: true });
  copyFileSync(path.join(root, 'scripts/try-package.mjs'), path.join(directory, 'try-package.mjs'));
  return { kgJs: path.join(main, 'bin/kg.js'), program: path.join(native, PROGRAM) };
}

/** Tries a platform. Returns what `kg --version` and scripts/try-package.mjs printed. */
export function smoke(platform) {
  const base = mkdtempSync(path.join(os.tmpdir(), 'kg-smoke-'));
  try {
    const isHere = platform === platformName();
    const system = isHere ? { node: process.execPath } : installSystem(platform);
    const command = isHere ? [] : system.command(os.tmpdir());
    const { kgJs, program } = install(base, platform);
    const run = (...args) => {
      const [file, ...rest] = [...command, ...args];
      return execFileSync(file, rest, { cwd: base, encoding: 'utf8' }).trim();
    };
    const version = run(program, '--version');
    const project = path.join(base, 'project');
    makeProject(project);
    const found = JSON.parse(
      run(system.node, path.join(base, 'try-package.mjs'), project, path.join(base, 'backups')),
    );
    const health = run(system.node, kgJs, 'diag', 'health', '--check-db', '--project', project);
    const node = run(system.node, '--version');
    const isGood =
      version === `kg ${manifest.version}` &&
      found.nodes === NODES &&
      found.isVerified &&
      found.healthy &&
      /Healthy/.test(health);
    if (!isGood) throw new Error(`${platform}: ${version}, ${JSON.stringify(found)}\n${health}`);
    return { version, node, ...found };
  } finally {
    rmSync(base, { recursive: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const named = process.argv.slice(2);
  await makeCommonJs();
  for (const platform of named.length > 0 ? named : [platformName()]) {
    if (platform !== platformName() && !isRunnable(platform))
      throw new Error(`${platform} cannot be tried on this machine`);
    const began = performance.now();
    const { version, node } = smoke(platform);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    console.log(`${platform}: ${version} in Node ${node} passes in ${seconds} s`);
  }
}
