// A loss of power at each call that syncs, renames or removes. Afterwards the old or the new state
// exists, and the next run recovers it.

import { cpSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { count } from './support/figures.mjs';
import { kgPath, run } from './support/processes.mjs';
import { SYNCS, canMount, makeDisk } from './support/power.mjs';
import { fillDatabase, integrityOf, makeProject, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

/** The long run tries every call; other runs try a sample. */
const EVERY = process.env.KG_TEST_LONG ? 1 : 9;

const DATABASES = ['knowledge.db', 'plugins/a.db', 'plugins/b.db'];
const kg = (root, ...args) => resultOf(run(kgPath, [...args, '--json'], { cwd: root }));
const write = (root, value) =>
  DATABASES.forEach((name) =>
    withDatabase(path.join(root, '.kg', name), (db) =>
      db.exec(`UPDATE nodes SET title = '${value}'`),
    ),
  );

/** Returns the titles in each database and checks that it is sound. */
function titles(root) {
  return DATABASES.map((name) => {
    const file = path.join(root, '.kg', name);
    expect([name, integrityOf(file)]).toEqual([name, 'ok']);
    return withDatabase(file, (db) =>
      db.prepare('SELECT group_concat(DISTINCT title) FROM nodes').pluck().get(),
    );
  });
}

/**
 * Makes a project with three live databases on a separate disk, and a backup of their earlier
 * content.
 */
function makeSavedProject() {
  const disk = makeDisk();
  const root = path.join(disk.root, 'project');
  cpSync(makeProject({ nodes: 60 }).root, root, { recursive: true });
  mkdirSync(path.join(root, '.kg/plugins'), { recursive: true });
  DATABASES.slice(1).forEach((name) => fillDatabase(path.join(root, '.kg', name), { nodes: 60 }));
  write(root, 'saved');
  const { id } = kg(root, 'diag', 'backup');
  write(root, 'newer');
  return { disk, root, id };
}

/**
 * Cuts the power at every call of a command and passes the resulting state to `look`. Returns the
 * number of losses.
 */
function atEachCall(disk, root, args, look) {
  disk.freeze();
  let lost = 0;
  for (let k = 1; disk.loseAt(k, args, root); k += EVERY) {
    lost += 1;
    look(`${args.join(' ')}: call ${k}`);
  }
  count({ 'power cuts': lost });
  return lost;
}

describe.skipIf(!canMount)('a loss of power', () => {
  test('in a restore leaves every database old or every one restored', () => {
    const { disk, root, id } = makeSavedProject();
    const seen = { newer: 0, saved: 0 };
    const lost = atEachCall(disk, root, ['diag', 'restore', '--file', id, '--yes'], (at) => {
      kg(root, 'diag', 'backup', '--type', 'snapshot');
      const [first, ...others] = titles(root);
      expect([at, first, others]).toEqual([
        at,
        expect.stringMatching(/^(saved|newer)$/),
        [first, first],
      ]);
      seen[first] += 1;
    });
    console.log(`the power was lost ${lost} times in a restore`, seen);
    expect(lost).toBeGreaterThan(3);
  });

  // From 64 files on, a restore syncs the file system instead of each file.
  test('in a restore of many files leaves every file old or every one restored', () => {
    const { disk, root, id: empty } = makeSavedProject();
    const files = Array.from({ length: 150 }, (_, n) => `.kg/plugins/many/${n % 70}/${n}.json`);
    const fill = (text) =>
      files.forEach((file) => {
        mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
        writeFileSync(path.join(root, file), text.repeat(50));
      });
    fill('saved');
    const { id } = kg(root, 'diag', 'backup');
    expect(id).not.toBe(empty);
    fill('newer');
    disk.freeze();
    const seen = { newer: 0, saved: 0 };
    let k = 1;
    for (
      ;
      disk.loseAt(k, ['diag', 'restore', '--file', id, '--yes'], root, SYNCS);
      k += Math.ceil(EVERY / 3)
    ) {
      kg(root, 'diag', 'backup', '--type', 'snapshot');
      const texts = new Set(files.map((file) => readFileSync(path.join(root, file), 'utf8')));
      expect([k, texts.size]).toEqual([k, 1]);
      const [text] = texts;
      expect(text).toMatch(/^((saved){50}|(newer){50})$/);
      seen[text.slice(0, 5)] += 1;
    }
    count({ 'power cuts': seen.newer + seen.saved });
    // One sync for each file or directory would be more than 200.
    expect(k).toBeLessThan(60);
    console.log(`the power was lost before ${k} syncs`, seen);
    expect(seen.newer).toBeGreaterThan(3);
    expect(seen.saved).toBeGreaterThan(0);
  });

  test('in an undo leaves every database restored or every one as before', () => {
    const { disk, root, id } = makeSavedProject();
    kg(root, 'diag', 'restore', '--file', id, '--yes');
    const lost = atEachCall(disk, root, ['diag', 'restore', '--undo', '--yes'], (at) => {
      kg(root, 'diag', 'backup', '--type', 'snapshot');
      const [first, ...others] = titles(root);
      expect([at, first, others]).toEqual([
        at,
        expect.stringMatching(/^(saved|newer)$/),
        [first, first],
      ]);
    });
    console.log(`the power was lost ${lost} times in an undo`);
    expect(lost).toBeGreaterThan(3);
  });

  test('in a repair leaves a database that the next repair fixes', () => {
    const { disk, root } = makeSavedProject();
    withDatabase(path.join(root, '.kg/knowledge.db'), (db) => {
      db.pragma('foreign_keys = off');
      db.exec(
        "INSERT INTO edges (source_id, target_id, type, weight) VALUES ('gone', 'n1', 'links', 1.0)",
      );
    });
    const lost = atEachCall(disk, root, ['diag', 'repair', '--auto'], (at) => {
      const { healthy } = kg(root, 'diag', 'repair', '--auto');
      expect([at, healthy, titles(root)]).toEqual([at, true, ['newer', 'newer', 'newer']]);
    });
    console.log(`the power was lost ${lost} times in a repair`);
    expect(lost).toBeGreaterThan(0);
  });

  test.each([
    ['a backup', ['diag', 'backup', '--max-backups', '2']],
    ['an incremental backup', ['diag', 'backup', '--type', 'incremental']],
    ['a consolidation', ['diag', 'backup', '--consolidate', 'INCREMENTAL']],
    ['a pin', ['diag', 'backup', '--pin', 'INCREMENTAL', '--reason', 'why']],
    ['a deletion', ['diag', 'backup', '--delete', 'INCREMENTAL']],
  ])('in %s leaves every listed backup complete', (_, args) => {
    const { disk, root, id } = makeSavedProject();
    const incremental = kg(root, 'diag', 'backup', '--type', 'incremental');
    const lost = atEachCall(
      disk,
      root,
      args.map((arg) => (arg === 'INCREMENTAL' ? incremental.id : arg)),
      (at) => {
        const { backups: listed } = kg(root, 'diag', 'list');
        expect([
          at,
          listed.some((backup) => backup.id === id || backup.id > incremental.id),
        ]).toEqual([at, true]);
        for (const backup of listed)
          expect([at, kg(root, 'diag', 'backup', '--verify', backup.id).valid]).toEqual([at, true]);
        // The next backup removes the leftovers of the killed run.
        kg(root, 'diag', 'backup');
        expect([
          at,
          readdirSync(path.join(root, '.kg/backups')).filter((name) =>
            name.startsWith('.kg-partial'),
          ),
        ]).toEqual([at, []]);
      },
    );
    expect(lost).toBeGreaterThan(0);
  });

  test('in a change of a setting leaves the old or the new configuration', () => {
    const { disk, root } = makeSavedProject();
    const file = path.join(root, '.kg/config.json');
    const before = readFileSync(file, 'utf8');
    const lost = atEachCall(disk, root, ['config', 'set', 'backup.maxBackups', '7'], (at) => {
      const now = readFileSync(file, 'utf8');
      if (now !== before) expect([at, JSON.parse(now).backup]).toEqual([at, { maxBackups: 7 }]);
    });
    expect(lost).toBeGreaterThan(0);
  });
});
