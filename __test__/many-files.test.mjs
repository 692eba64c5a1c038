// Restores of projects with many files: little memory, and the attributes of each file.

import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { expect, test } from 'vitest';

import { kgPath, measure } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';

const FILES = 30_000;
const DIRECTORIES = 30;
/** A restore that holds a description of each file needs more than this for so many. */
const MEMORY = 48 * 1024 * 1024;
/** A verification that holds a description of each entry needs more than this for so many. */
const VERIFY_MEMORY = 22 * 1024 * 1024;
const MODES = [0o644, 0o644, 0o644, 0o600, 0o444, 0o755, 0o664];

/** Returns the type, mode, time and content of everything in a directory. */
function attributesOf(dir) {
  const found = {};
  for (const name of readdirSync(dir, { recursive: true }).sort()) {
    const file = path.join(dir, name);
    const { mode, mtimeNs } = lstatSync(file, { bigint: true });
    const facts = [mode.toString(8)];
    if (lstatSync(file).isSymbolicLink()) facts.push(readlinkSync(file));
    else facts.push(mtimeNs);
    if (lstatSync(file).isFile()) facts.push(readFileSync(file, 'utf8'));
    found[name] = facts.join(' ');
  }
  return found;
}

function setUp() {
  const project = makeProject({ nodes: 20 });
  const plugins = path.join(project.root, '.kg/plugins');
  for (let number = 0; number < FILES; number += 1) {
    const dir = path.join(plugins, `many-${number % DIRECTORIES}`);
    if (number < DIRECTORIES) mkdirSync(dir, { recursive: true });
    const file = path.join(dir, `note-${number}.txt`);
    if (number % 1000 === 999) {
      symlinkSync(`note-${number % DIRECTORIES}.txt`, file);
      continue;
    }
    writeFileSync(file, `content of ${number}`);
    chmodSync(file, MODES[number % MODES.length]);
    // Before 1970, and with a fraction of a second.
    if (number % 7000 === 0) utimesSync(file, -1000.25, -1000.25);
  }
  const measureKg = (...args) => measure([kgPath, 'diag', ...args], project.root);
  const { backups } = project;
  mkdirSync(backups, { recursive: true });
  const backUp = (...args) =>
    expect(measureKg('backup', '--output', backups, ...args)).toMatchObject({ status: 0 });
  const restore = (...args) =>
    measureKg('restore', '--file', 'latest', '--backup-dir', backups, '--yes', ...args);
  return { ...project, plugins, backUp, restore, measureKg };
}

const inLittleMemory = { status: 0, peakBytes: expect.toSatisfy((bytes) => bytes < MEMORY) };

test('many files are restored, replaced and put back in little memory', () => {
  const { root, plugins, backUp, restore, measureKg } = setUp();
  backUp();
  const before = attributesOf(plugins);
  const target = path.join(path.dirname(root), 'restored');
  expect(restore('--target', target)).toMatchObject(inLittleMemory);
  expect(attributesOf(path.join(target, '.kg/plugins'))).toEqual(before);
  expect(readdirSync(path.join(target, '.kg')).filter((name) => /^restore/.test(name))).toEqual([]);

  const changed = path.join(plugins, 'many-0/note-0.txt');
  writeFileSync(changed, 'newer');
  rmSync(path.join(plugins, 'many-1'), { recursive: true });
  const newer = attributesOf(plugins);
  // The time of a directory changes with its entries.
  const files = (all) =>
    Object.fromEntries(Object.entries(all).filter(([, facts]) => !facts.startsWith('40')));
  expect(restore()).toMatchObject(inLittleMemory);
  expect(files(attributesOf(plugins))).toEqual(files(before));
  expect(measureKg('restore', '--undo', '--yes')).toMatchObject(inLittleMemory);
  expect(files(attributesOf(plugins))).toEqual(files(newer));
});

test('many files are verified in little memory', () => {
  const { backUp, backups, measureKg } = setUp();
  backUp();
  const { status, peakBytes } = measureKg('backup', '--verify', 'latest', '--output', backups);
  expect(status).toBe(0);
  expect(peakBytes).toBeLessThan(VERIFY_MEMORY);
});

test('many files of a chain have the attributes of the newest backup', () => {
  const { root, plugins, backUp, restore } = setUp();
  backUp();
  for (let number = 0; number < 300; number += 1) {
    const file = path.join(plugins, `many-${number % DIRECTORIES}/note-${number}.txt`);
    chmodSync(file, 0o640);
    writeFileSync(file, `newer content of ${number}`);
  }
  backUp('--type', 'incremental');
  const target = path.join(path.dirname(root), 'restored');
  expect(restore('--target', target)).toMatchObject({ status: 0 });
  expect(attributesOf(path.join(target, '.kg/plugins'))).toEqual(attributesOf(plugins));
});
