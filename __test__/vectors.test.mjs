// `kg graph --regenerate-vectors` finds missing vectors, and a command of the host makes them.

import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { expect, test } from 'vitest';

import { kg, kgPath, repository, run } from './support/processes.mjs';
import { integrityOf, makeProject, temporaryDirectory } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const TABLE =
  'CREATE TABLE IF NOT EXISTS embeddings (id TEXT PRIMARY KEY, embedding BLOB, dimensions INTEGER)';
const embed = `sqlite3 .kg/vectors.db "${TABLE}; ATTACH '.kg/knowledge.db' AS g; INSERT OR IGNORE INTO embeddings SELECT id, x'0000803f', 1 FROM g.nodes"`;

function setUp() {
  const { root } = makeProject({ nodes: 20 });
  return {
    root,
    regenerate: (args = [], env = {}) =>
      kg(['graph', '--regenerate-vectors', ...args], {
        cwd: root,
        env: { ...process.env, ...env },
      }),
  };
}

test('without a command it warns of missing vectors, and says that only another program can make them', async () => {
  const { regenerate } = setUp();
  const { status, stdout, stderr } = await regenerate();
  expect([status, stdout]).toEqual([0, '']);
  expect(stderr).toMatch(
    /^warning: 20 of 20 nodes have no vector .* no model to create them\. Restore them with .*--command`\. \[KG_WARN_VECTORS\]\n$/,
  );
  const report = resultOf((await regenerate(['--json'])).stdout);
  expect(report).toMatchObject({
    nodes: 20,
    missing: 20,
    ran: false,
    warnings: [{ code: 'KG_WARN_VECTORS' }],
  });
});

test('with --strict, missing vectors are an error', async () => {
  const { regenerate } = setUp();
  expect(await regenerate(['--strict'])).toMatchObject({
    status: 4,
    stdout: '',
    stderr: expect.stringMatching(/20 of 20 nodes have no vector .*\[KG_INCOMPLETE\]/),
  });
  expect(await regenerate(['--strict', '--command', embed])).toMatchObject({
    status: 0,
    stderr: '',
  });
});

test('a command makes missing vectors, and does not run if none are missing', async () => {
  const { root, regenerate } = setUp();
  const command = `${embed} && echo ran >> ran.txt`;
  expect(await regenerate(['--command', command])).toMatchObject({
    status: 0,
    stdout: expect.stringContaining('Each of 20 nodes has a vector'),
  });
  const again = await regenerate(['--json'], { KG_VECTORS_COMMAND: command });
  expect(resultOf(again.stdout)).toEqual({ nodes: 20, missing: 0, ran: false, warnings: [] });
  expect(readFileSync(path.join(root, 'ran.txt'), 'utf8')).toBe('ran\n');
  run('sqlite3', [
    path.join(root, '.kg/vectors.db'),
    "DELETE FROM embeddings WHERE id IN ('n3', 'n4')",
  ]);
  expect((await regenerate([], { KG_VECTORS_COMMAND: command })).stdout).toMatch(
    /^2 of 20 nodes without a vector; running: /,
  );
  expect(readFileSync(path.join(root, 'ran.txt'), 'utf8')).toBe('ran\nran\n');
});

test('vectors in files are counted by their index', async () => {
  const { root, regenerate } = setUp();
  const ids = Array.from({ length: 20 }, (_, at) => `n${at}`);
  mkdirSync(path.join(root, '.kg/vectors'), { recursive: true });
  writeFileSync(
    path.join(root, '.kg/vectors/index.json'),
    JSON.stringify({ model: 'm', dimensions: 1, ids }),
  );
  expect((await regenerate()).status).toBe(0);
});

test('a command that fails or does not make the vectors is an error', async () => {
  const { regenerate } = setUp();
  expect(await regenerate(['--command', 'exit 7'])).toMatchObject({
    status: 4,
    stderr: expect.stringContaining('`exit 7` failed (exit status: 7)'),
  });
  expect(await regenerate(['--command', 'true'])).toMatchObject({
    status: 4,
    stderr: expect.stringContaining('even after the command'),
  });
});

test('a script that follows Level 2 of the guide completes without vectors', () => {
  const { root } = setUp();
  run(kgPath, ['diag', 'backup', '--no-vectors', '--output', '../backups'], { cwd: root });
  const [, block] = readFileSync(
    path.join(repository, 'docs/reference/specification.md'),
    'utf8',
  ).match(/^#### Level 2.*\n\n```bash\n([^]*?)^```$/m);
  const [install, ...steps] = block.split('\n').filter((line) => line && !line.startsWith('#'));
  expect(install).toMatch(/^npm install/);
  const machine = temporaryDirectory();
  cpSync(path.join(root, '../backups/latest.tar.gz'), path.join(machine, 'backup.tar.gz'), {
    dereference: true,
  });
  const output = run('sh', ['-ec', `${steps.join('\n')}\necho the end`], {
    cwd: machine,
    env: { ...process.env, PATH: `${path.dirname(kgPath)}:${process.env.PATH}` },
  });
  expect(output).toMatch(/Healthy\n[^]*the end\n$/);
  expect(integrityOf(path.join(machine, '.kg/knowledge.db'))).toBe('ok');
});

test('a command is never read from the configuration, which may come from an archive', async () => {
  const { root, regenerate } = setUp();
  writeFileSync(
    path.join(root, '.kg/config.json'),
    JSON.stringify({ vectors: { command: 'touch harmed' }, graph: { command: 'touch harmed' } }),
  );
  expect((await regenerate()).stderr).toContain('[KG_WARN_VECTORS]');
  expect(run('ls', [root])).not.toContain('harmed');
});
