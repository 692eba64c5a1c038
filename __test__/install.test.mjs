// The packages as users install them: from a registry, with each package manager, into an empty
// directory, with caches and a home of their own and without a compiler.

import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { installRuntimes } from '../scripts/runtimes.mjs';
import { packageName } from '../scripts/platforms.mjs';
import { platformName } from '../lib/platform-name.mjs';
import { once, repository, spawn } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { startRegistry } from './support/registry.mjs';

const PACKAGE = '@weavelogic/knowledge-graph-agent';
/** What an installation may start: a shell and its tools, but neither a compiler nor cargo. */
const TOOLS = ['sh', 'env', 'uname', 'cat', 'dirname', 'basename', 'sed', 'mkdir', 'sqlite3'];

let shared;
beforeAll(async () => {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'kg-test-'));
  const bin = path.join(directory, 'bin');
  mkdirSync(bin);
  symlinkSync(process.execPath, path.join(bin, 'node'));
  const npm = path.join(path.dirname(process.execPath), 'npm');
  for (const name of ['npm', 'npx']) symlinkSync(npm.replace(/npm$/, name), path.join(bin, name));
  for (const [name, file] of Object.entries(installRuntimes()))
    symlinkSync(file, path.join(bin, name));
  for (const name of TOOLS) symlinkSync(`/usr/bin/${name}`, path.join(bin, name));
  shared = { directory, bin, registry: await startRegistry(directory) };
});
afterAll(() => {
  shared.registry.close();
  rmSync(shared.directory, { recursive: true, force: true });
});

/** An empty directory with settings of its own, as on the machine of a new user. */
function newUser() {
  const home = temporaryDirectory();
  const directory = path.join(home, 'app');
  mkdirSync(directory);
  const { url } = shared.registry;
  writeFileSync(path.join(home, '.npmrc'), `registry=${url}/\n`);
  writeFileSync(
    path.join(directory, 'bunfig.toml'),
    `[install]\nregistry = "${url}/"\nlinker = "hoisted"\n`,
  );
  const env = {
    HOME: home,
    PATH: shared.bin,
    TMPDIR: os.tmpdir(),
    XDG_CACHE_HOME: path.join(home, 'cache'),
    npm_config_registry: `${url}/`,
    NPM_CONFIG_REGISTRY: `${url}/`,
    npm_config_cache: path.join(home, 'cache/npm'),
    npm_config_update_notifier: 'false',
    npm_config_audit: 'false',
    npm_config_fund: 'false',
    YARN_NPM_REGISTRY_SERVER: url,
    YARN_UNSAFE_HTTP_WHITELIST: '127.0.0.1',
    YARN_ENABLE_TELEMETRY: 'false',
    YARN_ENABLE_GLOBAL_CACHE: 'false',
    YARN_NPM_MINIMAL_AGE_GATE: '0',
    DENO_DIR: path.join(home, 'cache/deno'),
    DENO_NO_UPDATE_CHECK: '1',
    DENO_NO_PROMPT: '1',
    BUN_INSTALL_CACHE_DIR: path.join(home, 'cache/bun'),
    DO_NOT_TRACK: '1',
  };
  return { home, directory, env };
}

/** Runs a command line as a user types it. Resolves to its exit status and output. */
async function shell(script, { directory, env }) {
  const child = spawn('/bin/sh', ['-ec', script], {
    cwd: directory,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  let stdout = '';
  child.stdout.on('data', (text) => {
    stdout += text;
    output += text;
  });
  child.stderr.on('data', (text) => (output += text));
  const [status] = await once(child, 'close');
  return { status, stdout, output };
}

async function must(script, user) {
  const { status, stdout, output } = await shell(script, user);
  expect(status, `${script}\n${output}`).toBe(0);
  return stdout;
}

/** Deno asks what a program may do: load the addon, find it, and (in the script itself) write. */
const DENO = 'deno run --node-modules-dir=manual --allow-ffi --allow-read';

/** How each manager installs the package, and how its runtime runs a script and `kg`. */
const managers = {
  npm: {
    install: [`npm install ${PACKAGE}`],
    script: 'node',
    kg: 'npx --no-install kg',
  },
  pnpm: {
    install: [`pnpm add ${PACKAGE}`],
    script: 'node',
    kg: 'pnpm exec kg',
  },
  "Yarn's Plug'n'Play": {
    // Yarn resolves imports, apart from require, only for a package of modules.
    install: [`echo '{ "type": "module" }' > package.json`, `yarn add ${PACKAGE}`],
    script: 'yarn node',
    kg: 'yarn kg',
  },
  Bun: {
    install: [`bun add ${PACKAGE}`],
    script: 'bun',
    kg: 'bun node_modules/.bin/kg',
  },
  Deno: {
    install: [
      'echo "{}" > package.json',
      `deno add --node-modules-dir=manual npm:${PACKAGE}`,
      'deno install',
    ],
    script: `${DENO} --allow-write`,
    kg: `${DENO} --allow-env --allow-run node_modules/${PACKAGE}/bin/kg.js`,
  },
};

describe.each(Object.entries(managers))('%s', (name, { install, script, kg }) => {
  test('installs the package, which then backs up, verifies, restores and checks', async () => {
    const user = newUser();
    for (const command of install) await must(command, user);
    const { root, database, backups } = makeProject({ nodes: 300 });

    cpSync(
      path.join(repository, 'scripts/try-package.mjs'),
      path.join(user.directory, 'try-package.mjs'),
    );
    const found = JSON.parse(await must(`${script} ./try-package.mjs ${root} ${backups}`, user));
    expect(found).toEqual({
      nodes: 300,
      isVerified: true,
      filesRestored: expect.any(Number),
      healthy: true,
      required: 'function',
    });
    expect(integrityOf(database)).toBe('ok');

    const at = `--project ${root}`;
    await must(`${kg} diag backup ${at} --output ${backups}`, user);
    await must(`${kg} diag backup --verify ${backups}/latest.tar.gz`, user);
    writeFileSync(database, 'destroyed');
    await must(`${kg} diag restore ${at} --file ${backups}/latest.tar.gz --yes`, user);
    await must(`${kg} diag integrity ${at}`, user);
    expect(integrityOf(database)).toBe('ok');
    const missing = await shell(`${kg} diag backup --verify ${backups}/none.tar.gz`, user);
    expect(missing.status, missing.output).toBe(4);
  });
});

test('the commands of the README lead from an empty directory to a restored backup', async () => {
  const readme = readFileSync(path.join(repository, 'README.md'), 'utf8');
  const commands = readme
    .match(/^```sh\n([^]*?)^```$/m)[1]
    .trim()
    .split('\n');
  expect(commands).toHaveLength(4);
  const user = newUser();
  const began = performance.now();
  for (const command of commands) await must(command, user);
  const seconds = (performance.now() - began) / 1000;
  console.log(`four commands took ${seconds.toFixed(1)} s`);
  expect(seconds).toBeLessThan(120);
  expect(existsSync(path.join(user.directory, 'backups/latest.tar.gz'))).toBe(true);
  const nodes = withDatabase(path.join(user.directory, '.kg/knowledge.db'), (db) =>
    db.prepare('SELECT title FROM nodes').pluck().all(),
  );
  expect(nodes).toEqual(['Hello']);
});

describe('without native parts', () => {
  const TRY = `
    import { createBackupManager, KgError } from '${PACKAGE}';
    try {
      await createBackupManager({ projectRoot: '.' }).listBackups();
    } catch (error) {
      const { code, message } = error;
      console.log(JSON.stringify({ code, message, isOurs: error instanceof KgError }));
    }`;

  async function fail(user) {
    writeFileSync(path.join(user.directory, 'try.mjs'), TRY);
    return JSON.parse(await must('node try.mjs', user));
  }

  test('an installation without optional packages says what to install', async () => {
    const user = newUser();
    await must(`npm install --omit=optional ${PACKAGE}`, user);
    const { code, message, isOurs } = await fail(user);
    expect({ code, isOurs }).toEqual({ code: 'KG_NATIVE_MISSING', isOurs: true });
    expect(message).toContain(packageName(platformName()));
    expect(message).toContain('--omit=optional');
    const kg = await shell('npx --no-install kg --version', user);
    expect(kg.status).toBe(1);
    expect(kg.output).toMatch(/^kg: .*KG_NATIVE_MISSING/);
    expect(kg.output).not.toMatch(/\n\s+at /);
  });

  test('an installation for another system says that this is another one', async () => {
    const user = newUser();
    await must(`npm install --os=darwin --cpu=arm64 ${PACKAGE}`, user);
    expect(existsSync(path.join(user.directory, 'node_modules', packageName(platformName())))).toBe(
      false,
    );
    expect((await fail(user)).code).toBe('KG_NATIVE_MISSING');
  });

  test('on an unsupported platform the package loads, and its first call fails', async () => {
    const user = newUser();
    await must(`npm install ${PACKAGE}`, user);
    writeFileSync(
      path.join(user.directory, 'other.mjs'),
      "Object.defineProperty(process, 'platform', { value: 'sunos' });",
    );
    user.env.NODE_OPTIONS = '--import ./other.mjs';
    const { code, message } = await fail(user);
    expect(code).toBe('KG_PLATFORM_UNSUPPORTED');
    expect(message).toContain('sunos');
    expect(message).toContain('linux-x64-gnu');
  });
});

test('an installation asks for these packages alone, because they depend on no others', () => {
  const { asked } = shared.registry;
  expect(asked).toContain(PACKAGE);
  expect(asked.filter((name) => !name.includes('knowledge-graph-agent'))).toEqual([]);
});
