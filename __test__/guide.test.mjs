// The TypeScript blocks of the guide compile as written, under `strict` and NodeNext.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import ts from 'typescript';
import { expect, onTestFinished, test } from 'vitest';

import { repository } from './support/processes.mjs';

/** Declarations that the text around a block provides. */
const SURROUNDINGS = `
  import type { Backup as _Backup, BackupManager as _Manager, createBackupManager as _create } from '@weavelogic/knowledge-graph-agent';
  declare global {
    const createBackupManager: typeof _create;
    const backupManager: _Manager;
    const backupPath: string;
    const lastFullBackup: _Backup;
    const db: object;
    const healthMonitor: { addCheck(check: { name: string; interval: string; check: () => Promise<boolean> }): void };
    type Backup = _Backup;
  }`;

function blocks() {
  const guide = readFileSync(path.join(repository, 'docs/reference/specification.md'), 'utf8');
  let heading = '';
  const found = [];
  for (const [, title, code] of guide.matchAll(/^#{2,4} (.+)$|^```typescript\n([^]*?)^```$/gm)) {
    if (title) heading = title;
    else found.push({ heading, code });
  }
  return found;
}

function complaints(code) {
  // The directory is inside the repository so that the package can import itself by name.
  const dir = mkdtempSync(path.join(repository, '__test__/.guide-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  mkdirSync(dir, { recursive: true });
  const [file, surroundings] = ['block.mts', 'surroundings.d.mts'].map((name) =>
    path.join(dir, name),
  );
  writeFileSync(surroundings, SURROUNDINGS);
  writeFileSync(file, `${code}\nexport {};\n`);
  const options = {
    strict: true,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    types: ['node'],
    typeRoots: [path.join(repository, 'node_modules/@types')],
    noEmit: true,
  };
  const program = ts.createProgram([file, surroundings], options);
  return ts
    .getPreEmitDiagnostics(program)
    .map((found) => ts.flattenDiagnosticMessageText(found.messageText, '\n'));
}

test('the guide has TypeScript blocks', () => expect(blocks().length).toBeGreaterThanOrEqual(9));

for (const { heading, code } of blocks()) {
  test(`"${heading}" compiles`, () => expect(complaints(code)).toEqual([]));
}
