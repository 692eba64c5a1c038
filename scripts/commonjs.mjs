// Makes index.js, which `require` and Node's `import` load, from index.mjs and lib/. Bundlers read
// these sources themselves: CommonJS in a bundle of ES modules would have no `require`.

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

/** Writes index.js. vitest calls it before the tests, so that they test the present sources. */
export default async function makeCommonJs() {
  await build({
    cwd: root,
    input: 'index.mjs',
    platform: 'node',
    external: /^@weavelogic\//,
    plugins: [plainRequire],
    output: {
      file: 'index.js',
      format: 'cjs',
      exports: 'named',
      banner: "'use strict'; // Made from index.mjs and lib/ by scripts/commonjs.mjs.",
    },
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await makeCommonJs();
