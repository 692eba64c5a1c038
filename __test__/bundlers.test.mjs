// The lines of docs/reference/bundlers.md. A program is built with each of them and moved away from
// its packages, as a deployment moves it. Then it makes, verifies and restores a backup.

import { execFile } from 'node:child_process';
import {
  accessSync,
  constants,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { platformName } from '../lib/platform-name.mjs';
import { installLocked } from '../scripts/locked.mjs';
import { installRuntimes } from '../scripts/runtimes.mjs';
import { repository, run } from './support/processes.mjs';
import { fillDatabase, integrityOf } from './support/project.mjs';

const PACKAGE = '@weavelogic/knowledge-graph-agent';
const PARTS = `${PACKAGE}-${platformName()}`;

const WORK = `
  console.log('loaded');
  const work = async (projectRoot, backupDir, targetDir) => {
    const manager = createBackupManager({ projectRoot, backupDir });
    const backup = await manager.createBackup();
    const valid = await manager.verifyBackup(backup.path);
    const { filesRestored } = await manager.restore({ backupPath: backup.path, targetDir });
    console.log(JSON.stringify({ valid, filesRestored }));
  };
  work(...process.argv.slice(-3)).catch((error) => {
    console.log(error instanceof KgError, error.code, error.message);
  });`;
const SOURCES = {
  'app.mjs': `import { createBackupManager, KgError } from '${PACKAGE}';${WORK}`,
  'app.cjs': `const { createBackupManager, KgError } = require('${PACKAGE}');${WORK}`,
  'package.json': JSON.stringify({ name: 'app', dependencies: { [PACKAGE]: '*' } }),
};
const DONE = 'loaded\n{"valid":true,"filesRestored":2}\n';
/** What the error of a lost bundle says, on one line. */
const LOST = /^loaded\ntrue KG_NATIVE_MISSING .*bundler.*`--external:@weavelogic.*\n$/;

/** Returns the rows of the table whose first heading is `name`, as lists of cells. */
function table(name) {
  const document = readFileSync(path.join(repository, 'docs/reference/bundlers.md'), 'utf8');
  const [, rows] = new RegExp(`^\\| ${name} \\|.*\n\\| --- .*\n((?:\\|.*\n)+)`, 'm').exec(document);
  const lines = rows.trim().split('\n');
  return lines.map((row) => row.slice(2, -2).split(' | '));
}
const uncode = (cell) => cell.replaceAll('`', '');

const execute = promisify(execFile);
let shared;
let installed;
let env;

/** Runs a command with the bundlers and runtimes in its path. Resolves to its output. */
async function command(cwd, program, ...args) {
  const { stdout } = await execute(program, args, { cwd, env });
  return stdout;
}
const shell = (cwd, line) => command(cwd, 'sh', '-ec', line);
const makeDirectory = () => mkdtempSync(path.join(shared, 'kg-'));

beforeAll(() => {
  shared = mkdtempSync(path.join(os.tmpdir(), 'kg-test-'));
  const bundlers = path.join(installLocked('__test__/bundlers'), 'node_modules');
  const programs = path.dirname(installRuntimes().bun);
  env = {
    ...process.env,
    NODE_PATH: bundlers,
    PATH: [path.join(bundlers, '.bin'), programs, process.env.PATH].join(':'),
  };
  const native = path.join(shared, 'native');
  cpSync(path.join(repository, 'npm', platformName()), native, { recursive: true });
  // Without its symbols, the build of the tests is packed and copied much faster.
  for (const part of ['kg', 'knowledge-graph-agent.node'])
    run('strip', ['-s', path.join(native, part)]);
  installed = path.join(shared, 'packages');
  const pack = ['pack', '--json', '--ignore-scripts', '--pack-destination', shared];
  for (const [name, cwd] of Object.entries({ [PACKAGE]: repository, [PARTS]: native })) {
    const [{ filename }] = JSON.parse(run('npm', pack, { cwd }));
    const to = path.join(installed, name);
    mkdirSync(to, { recursive: true });
    run('tar', ['-xzf', path.join(shared, filename), '--strip-components=1', '-C', to]);
  }
  const project = path.join(shared, 'project');
  mkdirSync(path.join(project, '.kg'), { recursive: true });
  fillDatabase(path.join(project, '.kg/knowledge.db'));
  writeFileSync(path.join(project, '.kg/config.json'), '{}\n');
});
afterAll(() => rmSync(shared, { recursive: true }));

/** Puts packages into `node_modules` of a directory. */
function install(directory, ...names) {
  const to = path.join(directory, 'node_modules/@weavelogic');
  mkdirSync(to, { recursive: true });
  for (const name of names) run('cp', ['-al', path.join(installed, name), to]);
}

/** Makes a directory `app` with the sources of a program and its packages. */
function makeApp() {
  const app = path.join(makeDirectory(), 'app');
  mkdirSync(path.join(app, 'dist'), { recursive: true });
  for (const [name, content] of Object.entries(SOURCES))
    writeFileSync(path.join(app, name), content);
  install(app, PACKAGE, PARTS);
  return app;
}

/** Moves what was built to another directory with the named packages, and deletes the rest. */
function deploy(app, ...names) {
  const deployment = makeDirectory();
  renameSync(path.join(app, 'dist'), path.join(deployment, 'dist'));
  rmSync(app, { recursive: true });
  if (names.length > 0) install(deployment, ...names);
  return deployment;
}

/** Runs a program, whose last part is a path below `deployment`. Resolves to its output. */
async function start(deployment, program) {
  const base = makeDirectory();
  cpSync(path.join(shared, 'project'), path.join(base, 'project'), { recursive: true });
  const paths = ['project', 'backups', 'restored'].map((name) => path.join(base, name));
  const file = path.join(deployment, program.at(-1));
  const output = await command('/', ...program.slice(0, -1), file, ...paths);
  if (output === DONE) {
    expect(integrityOf(path.join(base, 'restored/.kg/knowledge.db'))).toBe('ok');
    expect(readFileSync(path.join(base, 'restored/.kg/config.json'), 'utf8')).toBe('{}\n');
  }
  return output;
}

/** Runs webpack with the given text in its configuration. It may not even warn. */
async function webpack(app, configuration) {
  const script = `const done = (error, stats) => {
      if (error || stats.hasErrors() || stats.hasWarnings()) throw error ?? stats.toString();
    };
    require('webpack')({ mode: 'production', context: __dirname, ${configuration} }, done);`;
  writeFileSync(path.join(app, 'build.cjs'), script);
  await command(app, 'node', 'build.cjs');
}

async function rollup(app, configuration) {
  const script = `const { nodeResolve } = require('@rollup/plugin-node-resolve');
    const commonjs = require('@rollup/plugin-commonjs');
    const onLog = (level, log) => { throw log };
    const plugins = [nodeResolve({ preferBuiltins: true }), commonjs()];
    require('rollup').rollup({ input: 'app.mjs', plugins, onLog, ${configuration} })
      .then((bundle) => bundle.write({ file: 'dist/app.mjs', format: 'es' }));`;
  writeFileSync(path.join(app, 'build.cjs'), script);
  await command(app, 'node', 'build.cjs');
}

async function vite(app, configuration) {
  writeFileSync(path.join(app, 'vite.config.mjs'), `export default { ${configuration} }`);
  await command(app, 'vite', 'build', '--ssr', 'app.mjs', '--outDir', 'dist');
}

/**
 * Builds as Next.js does: webpack makes the named packages external, and the output contains the
 * files that `@vercel/nft` traces.
 */
async function next(app, configuration) {
  const { serverExternalPackages = [] } = new Function(`return { ${configuration} }`)();
  const externals = serverExternalPackages.map((name) => [name, `commonjs ${name}`]);
  await webpack(
    app,
    `target: 'node20', entry: './app.mjs', output: { path: __dirname + '/server', filename: 'app.js' },
     externals: ${JSON.stringify(Object.fromEntries(externals))}`,
  );
  await shell(app, 'nft build server/app.js -o dist');
}

const node20 = (output, more) => `target: 'node20', entry: './app.mjs',
  output: { path: __dirname + '/dist', ${output} }, experiments: { outputModule: true }, ${more}`;

/** Each bundler with the program that it makes. `build` receives the configuration of the table. */
const BUNDLERS = {
  'esbuild, CommonJS': {
    build: (app, flags) =>
      shell(app, `esbuild app.cjs --bundle --platform=node --outfile=dist/app.cjs ${flags}`),
    program: ['node', 'dist/app.cjs'],
  },
  'esbuild, ES modules': {
    build: (app, flags) =>
      shell(
        app,
        `esbuild app.mjs --bundle --platform=node --format=esm --outfile=dist/app.mjs ${flags}`,
      ),
    program: ['node', 'dist/app.mjs'],
  },
  'webpack 5, CommonJS': {
    build: (app, configuration) => webpack(app, node20("filename: 'app.cjs'", configuration)),
    program: ['node', 'dist/app.cjs'],
  },
  'webpack 5, ES modules': {
    build: (app, configuration) =>
      webpack(app, node20("filename: 'app.mjs', module: true", configuration)),
    program: ['node', 'dist/app.mjs'],
  },
  'Next.js, standalone': { build: next, program: ['node', 'dist/server/app.js'], isTraced: true },
  Rollup: { build: rollup, program: ['node', 'dist/app.mjs'] },
  'Vite, SSR': { build: vite, program: ['node', 'dist/app.mjs'], isExternal: true },
  'Vite, SSR with `noExternal`': {
    build: (app, configuration) => vite(app, configuration || 'ssr: { noExternal: true }'),
    program: ['node', 'dist/app.mjs'],
  },
  Bun: {
    build: (app, flags) => shell(app, `bun build app.mjs --target=bun --outdir=dist ${flags}`),
    program: ['bun', '--no-install', 'dist/app.js'],
  },
  'Bun, executable': {
    build: (app, flags) => shell(app, `bun build app.mjs --compile --outfile=dist/app ${flags}`),
    program: ['dist/app'],
  },
};

test('each bundler of the document is tested', () => {
  expect(table('bundler').map(([bundler]) => bundler)).toEqual(Object.keys(BUNDLERS));
  expect(table('tool').map(([tool]) => tool)).toEqual(Object.keys(TOOLS));
});

describe.concurrent.each(table('bundler'))('%s', (bundler, without, configuration) => {
  const { build, program, isTraced, isExternal } = BUNDLERS[bundler];

  test(`without configuration: ${without}`, async () => {
    const app = makeApp();
    await build(app, '');
    const deployment = deploy(app, ...(isTraced ? [] : isExternal ? [PACKAGE, PARTS] : [PARTS]));
    const output = await start(deployment, program);
    if (without === 'works') expect(output).toBe(DONE);
    else expect(output).toMatch(LOST);
    // An external package would be missed at the import, before its code runs.
    if (isTraced || isExternal) return;
    rmSync(path.join(deployment, 'node_modules'), { recursive: true });
    expect(await start(deployment, program)).toMatch(LOST);
  });

  if (configuration === 'not possible') return;
  test(`left out of the bundle with ${configuration}`, async () => {
    const app = makeApp();
    await build(app, uncode(configuration));
    const deployment = deploy(app, ...(isTraced ? [] : [PACKAGE, PARTS]));
    const bundle = path.join(deployment, program.at(-1));
    expect(readFileSync(bundle).includes('KG_NATIVE_MISSING')).toBe(false);
    expect(await start(deployment, program)).toBe(DONE);
  });
});

const TOOLS = {
  '`@vercel/nft`': async (app, line) => {
    await shell(app, line);
    expect(await start(deploy(app), ['node', 'dist/app.mjs'])).toBe(DONE);
  },
  'Node.js, executable': async (app, line) => {
    await shell(app, line);
    const options = {
      main: 'dist/app.cjs',
      output: 'app.blob',
      disableExperimentalSEAWarning: true,
    };
    writeFileSync(path.join(app, 'sea.json'), JSON.stringify(options));
    await command(app, process.execPath, '--experimental-sea-config', 'sea.json');
    cpSync(process.execPath, path.join(app, 'dist/app'));
    const fuse = 'NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2';
    await shell(app, `postject dist/app NODE_SEA_BLOB app.blob --sentinel-fuse ${fuse}`);
    const deployment = deploy(app, PARTS);
    expect(await start(deployment, ['dist/app'])).toBe(DONE);
    rmSync(path.join(deployment, 'node_modules'), { recursive: true });
    expect(await start(deployment, ['dist/app'])).toMatch(LOST);
  },
  Deno: async (app, line) => {
    expect(await start(app, line.split(' '))).toBe(DONE);
    const forbidden = await start(app, line.replace('--allow-ffi', '--no-prompt').split(' '));
    expect(forbidden).toMatch(/^loaded\ntrue KG_NATIVE_MISSING .*ffi access .*`--allow-ffi`/);
  },
  Electron: async (app, line) => {
    const base = path.dirname(app);
    rmSync(path.join(app, 'dist'), { recursive: true });
    await shell(base, `mkdir dist; ${line}`);
    const unpacked = path.join(base, 'dist/app.asar.unpacked/node_modules', PARTS);
    accessSync(path.join(unpacked, 'kg'), constants.X_OK);
    // Electron shows an archive as a directory. A program of the system sees only a file, so what
    // must be outside is removed from this directory.
    await shell(base, 'asar extract dist/app.asar view; rm -r app dist/app.asar');
    const inside = path.join(base, 'view/node_modules', PARTS);
    for (const part of ['kg', 'knowledge-graph-agent.node']) rmSync(path.join(inside, part));
    renameSync(path.join(base, 'view'), path.join(base, 'dist/app.asar'));
    expect(await start(base, ['node', 'dist/app.asar/app.mjs'])).toBe(DONE);
  },
  'vitest, jest': async (app) => {
    // __test__/jest tests jest.
    const check = `test('works', async () => {
      const { createBackupManager, KgError } = await import('${PACKAGE}');
      expect(() => createBackupManager({ compressionLevel: 12 })).toThrow(KgError);
      const manager = createBackupManager({ projectRoot: '/nowhere' });
      await expect(manager.createBackup()).rejects.toMatchObject({ code: 'KG_NO_PROJECT' });
    })`;
    writeFileSync(path.join(app, 'app.test.mjs'), check);
    const vitest = path.join(repository, 'node_modules/vitest/vitest.mjs');
    for (const inline of ['', '/weavelogic/']) {
      const deps = `{ deps: { inline: [${inline}] } }`;
      const config = `export default { test: { globals: true, server: ${deps} } }`;
      writeFileSync(path.join(app, 'vitest.config.mjs'), config);
      await command(app, 'node', vitest, 'run');
    }
  },
};

describe.concurrent.each(table('tool'))('%s', (tool, line) => {
  test(`works with ${line}`, () => TOOLS[tool](makeApp(), uncode(line)));
});

test('a bundle finds the package of the platform in the layout of pnpm', async () => {
  const app = makeApp();
  await BUNDLERS['esbuild, ES modules'].build(app, '');
  const deployment = deploy(app);
  const store = path.join(deployment, 'node_modules/.pnpm/kg');
  install(store, PACKAGE, PARTS);
  const visible = path.join(deployment, 'node_modules', PACKAGE);
  mkdirSync(path.dirname(visible));
  symlinkSync(path.join(store, 'node_modules', PACKAGE), visible);
  expect(await start(deployment, ['node', 'dist/app.mjs'])).toBe(DONE);
});
