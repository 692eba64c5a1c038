// Makes the CommonJS of index.mjs and bin/kg.mjs, next to them and with all that they import.
//
// Node loads index.js for `import` too, so that a process has each class once. Bundlers read the ES
// modules, because CommonJS in a bundle of ES modules would have no `require`. `kg` is CommonJS
// because Yarn Plug'n'Play has no ES modules in a project that does not ask for them.

import { chmodSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { build } from 'rolldown';

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');

/**
 * Drops the `require` that ES modules have to make. CommonJS has one, and tools that copy what a
 * program needs look for it.
 */
const plainRequire = {
  name: 'plain-require',
  transform: {
    filter: { id: /platform-packages\.mjs$/ },
    handler(code) {
      const plain = code.replace(/^const require = .*;$/m, '');
      if (plain === code) throw new Error('lib/platform-packages.mjs makes no `require`');
      return plain;
    },
  },
};

/** Writes the files. vitest calls this before the tests, so that they test the present sources. */
export default async function makeCommonJs() {
  for (const entry of ['index', 'bin/kg']) {
    await build({
      cwd: root,
      input: `${entry}.mjs`,
      platform: 'node',
      external: /^@weavelogic\//,
      plugins: [plainRequire],
      output: {
        file: `${entry}.js`,
        format: 'cjs',
        exports: 'named',
        strict: true,
        banner: '// Made by scripts/commonjs.mjs.',
      },
    });
  }
  chmodSync(path.join(root, 'bin/kg.js'), 0o755);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await makeCommonJs();
