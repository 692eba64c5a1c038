// index.d.ts in the programs of its users: with the module systems, libraries and compilers that
// they have, from the packed package, with no error in any declaration file.

import { execFile } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { installLocked } from '../scripts/locked.mjs';
import { repository, run } from './support/processes.mjs';

const NAME = '@weavelogic/knowledge-graph-agent';
const sources = path.join(repository, '__test__/types');
const tools = path.join(installLocked('__test__/types'), 'node_modules');

/** How programs load the package. `type` is that of their package.json. */
const MODULES = {
  'NodeNext, ES modules': { module: 'NodeNext', type: 'module' },
  'NodeNext, CommonJS': { module: 'NodeNext', type: 'commonjs' },
  'Node16, ES modules': { module: 'Node16', type: 'module' },
  'Node16, CommonJS': { module: 'Node16', type: 'commonjs' },
  Bundler: { module: 'ESNext', moduleResolution: 'Bundler', type: 'module' },
  CommonJS: { module: 'CommonJS', moduleResolution: 'Node10', type: 'commonjs' },
};

/** What programs know of their surroundings, and the files of __test__/types that need it. */
const SURROUNDINGS = {
  'neither dom nor node': {
    lib: ['ES2020'],
    types: [],
    files: ['no-globals.ts', 'console.d.ts', 'process.d.ts'],
  },
  'dom, not node': {
    lib: ['ES2020', 'DOM'],
    types: [],
    files: ['globals.ts', 'process.d.ts'],
  },
  'node, not dom': { lib: ['ES2022'], types: ['node'], files: ['globals.ts', 'disposal.ts'] },
  'dom and node': {
    lib: ['ESNext', 'DOM', 'DOM.Iterable'],
    types: ['node'],
    files: ['globals.ts', 'disposal.ts'],
  },
};

/** TypeScript 7 resolves the packages of CommonJS programs as bundlers do. */
const COMPILERS = {
  'TypeScript 5.9': { script: path.join(tools, 'typescript-5/bin/tsc') },
  'TypeScript 7': { script: path.join(tools, 'typescript-7/bin/tsc'), withoutNode10: true },
};

const everywhere = Object.keys(MODULES).map((name) => [name, 'neither dom nor node']);
const others = Object.keys(SURROUNDINGS).map((name) => ['NodeNext, ES modules', name]);
const COMBINATIONS = Object.keys(COMPILERS).flatMap((compiler) =>
  [...everywhere, ...others.slice(1)].map(([modules, surroundings]) => ({
    compiler,
    modules,
    surroundings,
  })),
);

const guide = readFileSync(path.join(repository, 'docs/reference/specification.md'), 'utf8');
const blocks = [...guide.matchAll(/^```typescript\n([^]*?)^```$/gm)].map(([, code]) => code);

/** Only ES modules may await outside a function. */
function asProgram(block, type) {
  if (type === 'module') return `${block}\nexport {};\n`;
  const isImport = (line) => line.startsWith('import ');
  const lines = block.split('\n');
  const rest = lines.filter((line) => !isImport(line));
  return [...lines.filter(isImport), 'export async function block() {', ...rest, '}\n'].join('\n');
}

const home = mkdtempSync(path.join(os.tmpdir(), 'kg-test-types-'));
let packed;

beforeAll(() => {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', home];
  const [{ filename }] = JSON.parse(run('npm', args, { cwd: repository }));
  packed = path.join(home, filename);
  run('tar', ['-xzf', packed, '-C', home]);
});
afterAll(() => rmSync(home, { recursive: true }));

/**
 * Compiles the guide's blocks and the files of __test__/types, and `extra` with them. Resolves to
 * what the compiler says.
 */
async function complaints({ compiler, modules, surroundings }, extra = '') {
  const directory = mkdtempSync(path.join(home, 'program-'));
  const { type, ...moduleOptions } = MODULES[modules];
  const { files, ...known } = SURROUNDINGS[surroundings];
  const { script, withoutNode10 } = COMPILERS[compiler];
  if (withoutNode10 && moduleOptions.moduleResolution === 'Node10')
    moduleOptions.moduleResolution = 'Bundler';
  const copied = ['consumer.ts', 'misuse.ts', 'guide.d.ts', ...files];
  for (const file of copied) cpSync(path.join(sources, file), path.join(directory, file));
  const written = { 'package.json': JSON.stringify({ type }), 'extra.ts': `${extra}\nexport {};` };
  for (const [index, block] of blocks.entries())
    written[`block-${index}.ts`] = asProgram(block, type);
  const compilerOptions = {
    ...moduleOptions,
    ...known,
    typeRoots: [path.join(tools, '@types')],
    target: 'ES2022',
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    skipLibCheck: false,
    // The libraries of the compiler itself are not in question.
    skipDefaultLibCheck: true,
    noEmit: true,
  };
  const programs = Object.keys(written).filter((file) => file.endsWith('.ts'));
  const configuration = { compilerOptions, files: [...copied, ...programs] };
  written['tsconfig.json'] = JSON.stringify(configuration);
  for (const [file, content] of Object.entries(written))
    writeFileSync(path.join(directory, file), content);
  cpSync(path.join(home, 'package'), path.join(directory, 'node_modules', NAME), {
    recursive: true,
  });
  const compiled = promisify(execFile)(process.execPath, [script], { cwd: directory });
  return compiled.then(
    ({ stdout }) => stdout,
    (failure) => failure.stdout || String(failure),
  );
}

test('the guide has TypeScript blocks', () => expect(blocks.length).toBeGreaterThanOrEqual(9));

describe.concurrent('programs compile, and their mistakes do not', () => {
  test.each(COMBINATIONS)('$compiler: $modules; $surroundings', async (combination) => {
    expect(await complaints(combination)).toBe('');
  });

  test.each(Object.keys(COMPILERS))('%s reads the types of the package', async (compiler) => {
    const combination = { ...COMBINATIONS[0], compiler };
    const mistake = `const backup: number = await backupManager.getLatestBackup();`;
    expect(await complaints(combination, mistake)).toMatch(
      /^extra\.ts\(1,7\): error TS2322: Type 'Backup' is not assignable to type 'number'\.\n$/,
    );
  });
});

test('publint finds nothing in the packed package', async () => {
  const { publint } = await import(pathToFileURL(path.join(tools, 'publint/src/index-node.js')));
  const { formatMessage } = await import(pathToFileURL(path.join(tools, 'publint/src/utils.js')));
  const tarball = new Uint8Array(readFileSync(packed)).buffer;
  const { messages, pkg } = await publint({ pack: { tarball }, strict: true });
  expect(pkg.name).toBe(NAME);
  expect(messages.map((message) => formatMessage(message, pkg))).toEqual([]);
});

test('every way of module resolution finds the types and the code', () => {
  const attw = path.join(tools, '@arethetypeswrong/cli/dist/index.js');
  const args = [attw, packed, '--format', 'json', '--no-definitely-typed'];
  const { analysis, problems } = JSON.parse(run(process.execPath, args));
  expect(Object.keys(analysis.entrypoints)).toContain('.');
  expect(problems ?? {}).toEqual({});
});
