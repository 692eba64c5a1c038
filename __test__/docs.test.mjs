// The docs match the code: their commands run, their codes exist in the source, and their links
// have targets.

import { existsSync, readFileSync, readdirSync, symlinkSync } from 'node:fs';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { kgPath, repository, run } from './support/processes.mjs';
import { makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const read = (file) => readFileSync(path.join(repository, file), 'utf8');
const own = [
  'README.md',
  ...readdirSync(path.join(repository, 'docs'), { recursive: true }).map((name) => `docs/${name}`),
].filter((file) => file.endsWith('.md') && file !== 'docs/reference/specification.md');

for (const file of own) {
  const blocks = [...read(file).matchAll(/^```bash\n([^]*?)^```$/gm)].map(([, block]) => block);
  if (blocks.length === 0) continue;
  test(`the commands of ${file} run as written`, () => {
    const bin = temporaryDirectory();
    symlinkSync(kgPath, path.join(bin, 'kg'));
    for (const block of blocks) {
      const { root } = makeProject();
      const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` };
      run('sh', ['-ec', 'kg diag backup --quiet --output ./backups'], { cwd: root, env });
      const output = run('sh', ['-ec', block], { cwd: root, env });
      expect(output, block).not.toMatch(/DAMAGED|FAILED|malformed/);
    }
  });
}

describe('the commands between the blocks of docs/guide/recovery.md run', () => {
  const outside = read('docs/guide/recovery.md').replace(/^```bash\n[^]*?^```$/gm, '');
  const commands = new Set(
    [...outside.matchAll(/`((?:kg|sqlite3) [^`]+)`/g)].map(([, command]) => command),
  );
  test('some commands exist', () => expect(commands.size).toBeGreaterThan(8));
  test.each([...commands])('%s', async (command) => {
    // Makes a project that was backed up, restored and repaired.
    const { root, database } = makeProject();
    const kg = (...args) => run(kgPath, args, { cwd: root });
    kg('diag', 'backup');
    kg('diag', 'restore', '--file', 'latest');
    withDatabase(database, (db) => db.exec("INSERT INTO node_tags VALUES ('gone', 5)"));
    const { repair } = resultOf(kg('diag', 'repair', '--auto', '--json'));
    const bin = temporaryDirectory();
    symlinkSync(kgPath, path.join(bin, 'kg'));
    const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` };
    const output = run('sh', ['-ec', command.replace(/\bID\b/, repair.safetyBackup.id)], {
      cwd: root,
      env,
    });
    expect(output).not.toBe('');
    expect(output).not.toMatch(/DAMAGED|FAILED|malformed/);
  });
});

test('links between docs have targets', () => {
  for (const file of own) {
    for (const [, target] of read(file).matchAll(/\]\((?!https?:)([^)#]+)/g)) {
      expect(
        existsSync(path.join(repository, path.dirname(file), target)),
        `${file}: ${target}`,
      ).toBe(true);
    }
  }
});

test('docs/reference/errors.md and index.d.ts list every code of the source, and no others', () => {
  const javascript = (read('lib/native-parts.mjs') + read('lib/errors.mjs')).replaceAll("'", '"');
  const sources =
    read('src/error.rs') +
    read('src/archive/report.rs') +
    read('src/integrity/issue.rs') +
    javascript;
  const codes = (text) => [...new Set(text.match(/\bKG_[A-Z_]+[A-Z]\b/g))].sort();
  const inSource = codes(
    [...sources.matchAll(/"(KG_[A-Z_]+)"/g)].map(([, code]) => code).join(' '),
  );
  expect(
    codes(
      [...read('docs/reference/errors.md').matchAll(/^\| `(KG_[A-Z_]+)`/gm)]
        .map(([, code]) => code)
        .join(' '),
    ),
  ).toEqual(inSource);
  const unions = [...read('index.d.ts').matchAll(/\| '(KG_[A-Z_]+)'/g)]
    .map(([, code]) => code)
    .join(' ');
  // An aborted call rejects with an AbortError, and only `kg` asks questions.
  const notInApi = ['KG_ABORTED', 'KG_NOT_CONFIRMED'];
  expect(codes(unions)).toEqual(inSource.filter((code) => !notInApi.includes(code)));
});

test('docs/reference/errors.md gives the exit status of the source', () => {
  const documented = [
    ...read('docs/reference/errors.md').matchAll(/^\| `(KG_[A-Z_]+)` \| (\d+) /gm),
  ].map(([, code, exit]) => [code, exit]);
  const inSource = [...read('src/error.rs').matchAll(/= "(KG_[A-Z_]+)", exit (\d+);/g)].map(
    ([, code, exit]) => [code, exit],
  );
  expect(documented).toEqual(inSource);
});
