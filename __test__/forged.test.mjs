// Forged archives. Each is sealed like an archive of this tool and has one hostile change. The
// restore refuses it with its code, writes nothing and leaves an existing project as it is.

import { execFileSync } from 'node:child_process';
import {
  existsSync,
  readFileSync,
  readdirSync,
  renameSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, test } from 'vitest';

import * as forge from './support/forge.mjs';
import { kg, kgPath, measure } from './support/processes.mjs';
import { fingerprint, integrityOf, makeProject, temporaryDirectory } from './support/project.mjs';

const MB = 1024 * 1024;
const NOTHING = Buffer.alloc(0);
const NODES = 20;
/** The place that forged absolute paths name. No test may create anything there. */
const OUTSIDE = '/tmp/kg-forged';

// ---- Forgeries ----

let tar;

/** Returns the tar of a real backup, from which every forgery is made. */
async function genuine() {
  if (!tar) {
    const { root, backups } = makeProject({ nodes: NODES });
    const { path: archive } = await createBackupManager({
      projectRoot: root,
      backupDir: backups,
    }).createBackup();
    tar = gunzipSync(readFileSync(archive));
  }
  return tar;
}

/** A forgery with matching changes in its manifest and its entries. */
const changed = (change) => (tar) => forge.seal(forge.rewriteManifest(tar, change));
/** A forgery with a replaced manifest. */
const withManifestText = (text, change) => (tar) =>
  forge.seal(forge.tarOf(forge.changedEntries(tar, { change, text })));
/** A forgery with a replaced list of files. */
const withListText = (listed) => (tar) =>
  forge.seal(forge.tarOf(forge.changedEntries(tar, { listed })));
/** A forgery whose tar does not have the entries that its manifest and checksums list. */
const rearrangedEntries = (rearrange, change) => (tar) => {
  const entries = forge.changedEntries(tar, { change });
  return forge.seal(forge.tarOf(rearrange(entries) ?? entries));
};

const at = (entries, name) => entries.find((entry) => entry.name === name);
const recordOf = (manifest, entry) => manifest.files.find((record) => record.entry === entry);
const vectors = 'vectors/a.f32';

/** Forgeries that place a file, a directory, a link or the graph database at `path`. */
const placed = {
  file: (to) => changed((manifest) => (recordOf(manifest, vectors).path = to)),
  directory: (to) =>
    changed((m, e) => forge.addEntry(m, e, { entry: 'files/forged', path: to, directory: true })),
  link: (to) =>
    changed((m, e) =>
      forge.addEntry(m, e, { entry: 'files/forged', path: to, target: 'config.json' }),
    ),
  database: (to) => changed((manifest) => (recordOf(manifest, 'database.sqlite').path = to)),
};
/** A forgery that adds a link to `target`. */
const linked = (target, more) =>
  changed((m, e) =>
    forge.addEntry(m, e, { entry: 'files/forged', path: '.kg/plugins/forged', target, ...more }),
  );
/** A forgery that adds files. */
const added = (...files) =>
  changed((m, e) => {
    files.forEach((file, n) =>
      forge.addEntry(m, e, { entry: `files/forged${n}`, content: Buffer.from('forged'), ...file }),
    );
  });
/** A forgery that changes the record of a file. */
const recorded = (change, entry = vectors) =>
  changed((manifest) => change(recordOf(manifest, entry), manifest));

// ---- Expectations ----

/** Returns every name below a directory. */
const namesIn = (dir) => readdirSync(dir, { recursive: true }).sort();

/** Writes `archive` under a valid name; `sidecarText` is the text of its sidecar. */
function store({ archive, sidecarText }, ending = 'tar.gz') {
  const file = path.join(temporaryDirectory(), `forged.${ending}`);
  writeFileSync(file, archive);
  if (sidecarText !== undefined) writeFileSync(`${file}.manifest.json`, sidecarText);
  return file;
}

/**
 * Restores `archive` into a new directory and over a project. Both must fail with `code` and leave
 * no trace.
 */
async function expectRefused(archive, code) {
  const { root } = makeProject({ nodes: NODES });
  const manager = createBackupManager({ projectRoot: root });
  const base = temporaryDirectory();
  const intoNothing = manager.restore({
    backupPath: archive,
    targetDir: path.join(base, 'target'),
  });
  await expect.soft(intoNothing, 'into nothing').rejects.toMatchObject({ code });
  expect.soft(readdirSync(base), 'beside what did not exist').toEqual([]);
  const before = [namesIn(path.dirname(root)), fingerprint(root)];
  const overProject = manager.restore({ backupPath: archive, overwrite: true });
  await expect.soft(overProject, 'over a project').rejects.toMatchObject({ code });
  expect.soft([namesIn(path.dirname(root)), fingerprint(root)], 'the project').toEqual(before);
  expect(existsSync(OUTSIDE)).toBe(false);
}

/**
 * Expects a restore to refuse each of `forgeries` with `code`. `valid` is the expected result of a
 * check, which does not restore.
 */
function refuses(code, { valid, ending }, forgeries) {
  for (const [what, forgery] of Object.entries(forgeries)) {
    test(`${what}: refused`, async () => {
      const forged = forgery(await genuine());
      const archive = store(Buffer.isBuffer(forged) ? { archive: forged } : forged, ending);
      const report = await createBackupManager({ projectRoot: temporaryDirectory() }).checkBackup(
        archive,
      );
      expect.soft(report.valid, JSON.stringify(report.problems)).toBe(valid);
      await expectRefused(archive, code);
    });
  }
}

/** Only a restore can refuse these, because the archive itself is consistent. */
const NOT_OURS = ['KG_NOT_A_BACKUP', { valid: true }];
/** The parts of the archive contradict each other. */
const MISMATCH = ['KG_CHECKSUM_MISMATCH', { valid: false }];

const forgeriesFor = (texts, forgery) =>
  Object.fromEntries(texts.map((text) => [JSON.stringify(text), forgery(text)]));

// ---- Destinations ----

const LEADING_OUT = [
  OUTSIDE,
  '.kg/../../kg-forged',
  '../kg-forged',
  'C:\\kg-forged',
  '\\\\host\\share\\x',
  '.kg\\..\\..\\kg-forged',
  '.kg/%2e%2e/%2e%2e/kg-forged',
  '.kg/forged\0',
  '.kg/restore-undo/x',
  '.kg/restore-journal.json',
];
const ODD_PATHS = [
  ...[
    '',
    '.',
    '..',
    '/',
    '.kg',
    '.kg/',
    '.kg/.',
    '.kg/..',
    './.kg/x',
    '.kg/./x',
    '.kg//x',
    '.kg/x/',
    '//x',
    '.kg/x/../y',
  ],
  ...['C:x', 'c:/x', '\\x', '..\\..\\x', '.kg/plugins\\..\\..\\..\\x', '.kg/..\\x'],
  ...[
    '%2e%2e/x',
    '%2E%2E/x',
    '.kg%2Fx',
    '.kg/%2Fx',
    '.kg/caf%c3%a9',
    '.kg/caf%C3%A9',
    '.kg/%ff',
    '.kg/%61',
    '.kg/%25%',
    '.kg/%',
    '.kg/%4',
  ],
  ...['.kg/%zz', '.kg/%+1', '.kg/% 1', '.kg/%00', '\0', '.kg/a\0/../../x'],
  ...['.git/hooks/post-commit', 'package.json', '.KG/x', '.kgx/y', '.kg '],
  ...[
    '.kg/restore-undo',
    '.kg/restore-staging-x',
    '.kg/restore-staging-x/0',
    '.kg/.kg-partial-x',
    '.kg/.kg-partial-x/y',
  ],
  ...['.kg/backups/kg-backup-20240101-000000.tar.gz', '.kg/cache/x', '.kg/logs/x', '.kg/tmp/x'],
  ...['.kg/x.lock', '.kg/x.pid', '.kg/x.log', '.kg/x.sock', '.kg/.kg-store.lock'],
];

describe('a file at', () => {
  refuses(...NOT_OURS, forgeriesFor([...LEADING_OUT, ...ODD_PATHS], placed.file));
});

describe('a file that would run or be called here after a backup, as', () => {
  /** A forgery with one more file, in the right component: only its name is wrong. */
  const named = (to) =>
    added({ path: to, component: /^\.kg\/[^/]+\.json$/.test(to) ? 'config' : 'files' });
  // File systems that ignore case treat `ſ` as a lowercase `s`, so that name counts too.
  refuses(
    ...NOT_OURS,
    forgeriesFor(
      [
        '.kg/hooks.json',
        '.kg/HOOKS.json',
        '.kg/Hooks.JSON',
        '.kg/hook\u017f.json',
        '.kg/hooks.json/x',
      ],
      named,
    ),
  );

  test('another file of that kind is restored, so only the name is refused', async () => {
    const target = path.join(temporaryDirectory(), 'target');
    const archive = store({ archive: named('.kg/hook.json')(await genuine()) });
    await createBackupManager().restore({ backupPath: archive, targetDir: target });
    expect(readFileSync(path.join(target, '.kg/hook.json'), 'utf8')).toBe('forged');
  });
});

describe('a directory at', () => {
  refuses(
    ...NOT_OURS,
    forgeriesFor(
      [...LEADING_OUT, '.kg', '.git/hooks', '.kg/backups', '.kg/restore-staging-x'],
      placed.directory,
    ),
  );
});

describe('a link at', () => {
  refuses(
    ...NOT_OURS,
    forgeriesFor([...LEADING_OUT, '.kg', '.git/hooks/post-commit', '.kg/x.lock'], placed.link),
  );
});

describe('the graph database', () => {
  const configured = (to) => (manifest, entries) => {
    const config = at(entries, 'config.json');
    config.content = Buffer.from(JSON.stringify({ database: { path: to } }));
    recordOf(manifest, 'config.json').size = config.content.length;
    manifest.checksums['config.json'] = forge.digestOf(config.content);
  };
  const withoutConfig = (manifest, entries) => {
    for (const list of [manifest.files, entries]) list.splice(1, 1);
    delete manifest.checksums['config.json'];
  };
  const alone = (to) =>
    changed((manifest, entries) => {
      recordOf(manifest, 'database.sqlite').path = to;
      withoutConfig(manifest, entries);
    });
  /**
   * Applies `change` and makes the database a script. Any content is possible because a damaged
   * database is saved byte for byte.
   */
  const script = (change) =>
    changed((manifest, entries) => {
      const [database, record] = [
        at(entries, 'database.sqlite'),
        recordOf(manifest, 'database.sqlite'),
      ];
      database.content = Buffer.from('#!/bin/sh\ntouch /tmp/kg-forged\n');
      Object.assign(record, { size: database.content.length, mode: 0o755 });
      manifest.checksums['database.sqlite'] = forge.digestOf(database.content);
      change(manifest, entries);
    });
  const companion = (suffix, more) =>
    added({ entry: `database.sqlite${suffix}`, component: 'database', ...more });

  describe('at', () =>
    refuses(
      ...NOT_OURS,
      forgeriesFor([...LEADING_OUT, '.kg/', '.kg/restore-staging-x/0'], placed.database),
    ));
  describe('without a configuration, at', () => {
    refuses(
      ...NOT_OURS,
      forgeriesFor([...LEADING_OUT, '.', '.kg/config.json/', '.kg', '.kg/.kg-partial-x'], alone),
    );
  });
  refuses(...NOT_OURS, {
    'without the mark of a database': recorded(
      (record) => delete record.database,
      'database.sqlite',
    ),
    'as a companion that SQLite does not have': companion('-forged', {
      path: '.kg/knowledge.db-forged',
    }),
    'as a companion whose name climbs': companion('-d/../../../kg-forged', { path: '.kg/other' }),
    'as a companion whose path climbs': companion('-wal', { path: '../kg-forged-wal' }),
    'as a companion whose path is absolute': companion('-journal', { path: `${OUTSIDE}-journal` }),
    'as a companion that is a link': companion('-wal', {
      path: '.kg/knowledge.db-wal',
      target: 'x',
      content: NOTHING,
    }),
    'as a companion that is a directory': companion('-journal', {
      path: '.kg/knowledge.db-journal',
      directory: true,
      content: NOTHING,
    }),
    'under another name': added({ component: 'database', path: '.kg/x' }),
    'at the configured path, if that is a file of a restore': changed(
      configured('.kg/restore-journal.json'),
    ),
    'at the configured path, if that file runs after backups': changed(
      configured('.kg/Hooks.json'),
    ),
    'at the configured path, if that is below the undo directory': changed(
      configured('.kg/restore-undo/x'),
    ),
    'at the configured path, if that is the project': changed(configured('.')),
    'at the configured path, if that is the .kg directory': changed(configured('.kg')),
    'at the configured path, if that is the configuration': changed(configured('.kg/config.json')),
    'at the configured path, if that is below a file': changed(configured('.kg/config.json/x')),
    'at the configured path, if that has a zero byte': changed(configured('.kg/a\0b')),
    'at the configured path, if that is a hook of git': script(
      configured('.git/hooks/post-commit'),
    ),
    'as a hook of git, without a configuration': script((manifest, entries) => {
      recordOf(manifest, 'database.sqlite').path = '.git/hooks/post-commit';
      withoutConfig(manifest, entries);
    }),
  });
  // SQLite would apply these companions to the database, so a forger could control its content.
  refuses(...NOT_OURS, {
    'with a file that is its WAL': added({ path: '.kg/knowledge.db-wal' }),
    'with a file that is its journal': added({ path: '.kg/knowledge.db-journal' }),
    'with a file that is its index': added({ path: '.kg/knowledge.db-shm' }),
    'with a WAL, although it is sound': companion('-wal', { path: '.kg/knowledge.db-wal' }),
    'with a journal, although it is sound': companion('-journal', {
      path: '.kg/knowledge.db-journal',
    }),
    // When a process opens the database, SQLite deletes the super-journal that the journal names.
    'with a journal that names a file outside': companion('-journal', {
      path: '.kg/knowledge.db-journal',
      content: journalOf(OUTSIDE),
    }),
  });

  test('that the archive configures outside the project is restored to its default path', async () => {
    const forged = changed(configured(path.join(OUTSIDE, 'graph.db')))(await genuine());
    const target = path.join(temporaryDirectory(), 'target');
    const { warnings } = await createBackupManager().restore({
      backupPath: store({ archive: forged }),
      targetDir: target,
    });
    expect(warnings).toMatchObject([{ code: 'KG_WARN_CONFIG' }]);
    expect(integrityOf(path.join(target, '.kg/knowledge.db'))).toBe('ok');
    expect(existsSync(OUTSIDE)).toBe(false);
  });
});

describe('two entries in one place, because', () => {
  refuses(...NOT_OURS, {
    'two files use it': changed(
      (manifest) => (recordOf(manifest, vectors).path = '.kg/config.json'),
    ),
    'a file uses that of the database': changed(
      (manifest) => (recordOf(manifest, vectors).path = '.kg/knowledge.db'),
    ),
    'a file and a directory use it': placed.directory('.kg/config.json'),
    'a link and a directory use it': placed.link('.kg/plugins'),
    'a file lies below a file': added({ path: '.kg/config.json/x' }),
    'a file lies far below a file': added({ path: '.kg/config.json/x/y/z' }),
    'a directory lies below a file': placed.directory('.kg/config.json/x'),
    'a file lies below a link': changed((m, e) => {
      forge.addEntry(m, e, { entry: 'files/link', path: '.kg/link', target: 'plugins' });
      forge.addEntry(m, e, { entry: 'files/x', path: '.kg/link/x' });
    }),
    'a link lies below a link': changed((m, e) => {
      forge.addEntry(m, e, { entry: 'files/link', path: '.kg/link', target: 'plugins' });
      forge.addEntry(m, e, { entry: 'files/x', path: '.kg/link/x', target: 'y' });
    }),
  });
});

describe('a link', () => {
  refuses(...NOT_OURS, {
    'to an absolute path': linked('/etc/passwd'),
    'to the root': linked('/'),
    'that climbs out': linked('../../../kg-forged'),
    'that climbs out and returns': linked('../../../project/.kg/config.json'),
    'that goes down before it climbs out': linked('a/b/../../../../../kg-forged'),
    'to an empty path': linked(''),
    'that is declared as a database': linked('terms.json', { database: true }),
    'that leads out through another link': changed((m, e) => {
      mkdirRecord(m, e, '.kg/plugins/a');
      forge.addEntry(m, e, { entry: 'files/up', path: '.kg/plugins/a/up', target: '../..' });
      forge.addEntry(m, e, {
        entry: 'files/out',
        path: '.kg/out',
        target: 'plugins/a/up/../../kg-forged',
      });
    }),
    'that is a file with a target': recorded((record) => (record.target = 'x')),
    'that is a directory with a target': recorded((record) => (record.target = 'x'), 'vectors'),
  });
  refuses(...MISMATCH, {
    'that climbs out only in the tar': linked('terms.json', {
      tar: { link: '../../../etc/passwd' },
    }),
    'that climbs out only in the manifest': linked('../../../etc/passwd', {
      tar: { link: 'terms.json' },
    }),
    'whose target is written in another way': linked('%74erms.json', {
      tar: { link: 'terms.json' },
    }),
    'whose target climbs with percent signs': linked('%2e%2e/%2e%2e/%2e%2e/x', {
      tar: { link: '../../../x' },
    }),
    'whose target has a zero byte': linked('a\0b'),
    'without a target': linked('x', {
      target: undefined,
      type: 'link',
      tar: { type: '2', link: 'x' },
    }),
    'with content': linked('x', { tar: { content: Buffer.from('content') } }),
    'whose long target has no end': rearrangedEntries((entries) => {
      entries.splice(1, 0, { name: '././@LongLink', type: 'K', content: Buffer.from('no end') });
    }),
    'whose long target has a zero byte': rearrangedEntries(
      (entries) => void entries.splice(1, 0, forge.longName('a\0b', 'K')),
    ),
    'whose long target occurs twice': rearrangedEntries((entries) => {
      entries.splice(1, 0, forge.longName('a', 'K'), forge.longName('a', 'K'));
    }),
  });
});

/**
 * Returns a journal without pages that names a super-journal
 * (<https://sqlite.org/fileformat2.html#the_rollback_journal>).
 */
function journalOf(superJournal) {
  const magic = Buffer.from('d9d505f920a163d7', 'hex');
  const numbers = (...values) =>
    Buffer.concat(values.map((value) => Buffer.from(value.toString(16).padStart(8, '0'), 'hex')));
  const [page, sector] = [4096, 512];
  const header = Buffer.concat([magic, numbers(0, 1, 1, sector, page)]);
  const name = Buffer.from(superJournal);
  const sum = name.reduce((total, byte) => total + byte, 0);
  const lockPage = 2 ** 30 / page + 1;
  return Buffer.concat([
    header,
    Buffer.alloc(sector - header.length),
    numbers(lockPage),
    name,
    numbers(name.length, sum),
    magic,
  ]);
}

function mkdirRecord(manifest, entries, to) {
  forge.addEntry(manifest, entries, { entry: `files/${to}`, path: to, directory: true });
}

// ---- The structure of the tar ----

const TYPES = {
  'a hard link': '1',
  'a character device': '3',
  'a block device': '4',
  'a FIFO': '6',
  'a contiguous file': '7',
  'a GNU sparse file': 'S',
  'a GNU volume name': 'V',
  'a GNU continuation of another volume': 'M',
  'a GNU list of names': 'D',
  'an extended header of a file': 'x',
  'an extended header of all files': 'g',
  'an extended header of Solaris': 'X',
  'an unknown type': 'Z',
};

describe('an entry of a type that no backup contains:', () => {
  const typed = (type) =>
    rearrangedEntries(
      (entries) => void Object.assign(at(entries, vectors), { type, link: 'config.json' }),
    );
  const extra = (type) =>
    rearrangedEntries(
      (entries) =>
        void entries.splice(3, 0, {
          name: 'config.json',
          type,
          link: 'database.sqlite',
          content: Buffer.alloc(0),
        }),
    );
  const listed = (table, forgery, suffix) =>
    Object.fromEntries(
      Object.entries(table).map(([what, type]) => [`${what}${suffix}`, forgery(type)]),
    );
  refuses(...MISMATCH, listed(TYPES, typed, ' instead of a file'));
  refuses(...MISMATCH, listed(TYPES, extra, ' between the others'));
  refuses(...MISMATCH, {
    'a path in an extended header': rearrangedEntries((entries) => {
      entries.splice(1, 0, {
        name: 'pax',
        type: 'x',
        content: Buffer.from('27 path=../../kg-forged.x\n'),
      });
    }),
    'a size in an extended header': rearrangedEntries((entries) => {
      entries.splice(1, 0, { name: 'pax', type: 'x', content: Buffer.from('13 size=1000\n') });
    }),
    'a directory with content': rearrangedEntries(
      (entries) => void (at(entries, 'vectors').content = Buffer.from('content')),
    ),
    'a directory where the manifest has a file': rearrangedEntries((entries) => {
      Object.assign(at(entries, vectors), { type: '5', content: Buffer.alloc(0) });
    }),
    'a link where the manifest has a file': rearrangedEntries((entries) => {
      Object.assign(at(entries, vectors), { type: '2', link: 'x', content: Buffer.alloc(0) });
    }),
    'a file where the manifest has a directory': rearrangedEntries(
      (entries) => void (at(entries, 'vectors').type = '0'),
    ),
    'a file where the manifest has a link': linked('x', { tar: { type: '0' } }),
  });
});

describe('a name', () => {
  const before = (...entries) => rearrangedEntries((all) => void all.splice(1, 0, ...entries));
  const named = (name) => rearrangedEntries((entries) => void (at(entries, vectors).name = name));
  refuses(...MISMATCH, {
    'that is not UTF-8': named(Buffer.from([0x66, 0xff, 0xfe])),
    'that is empty': named(''),
    'that climbs and differs from the manifest': named('../../kg-forged'),
    'that is absolute and differs from the manifest': named(OUTSIDE),
    'that is long and not UTF-8': before(forge.longName(Buffer.from([0x66, 0xff]))),
    'that is long and empty': before(forge.longName('')),
    'that is long and hides another': before(forge.longName(OUTSIDE)),
    'that is long and does not end': before({
      name: '././@LongLink',
      type: 'L',
      content: Buffer.from('config.json'),
    }),
    'that is long and has a zero byte': before(forge.longName('config.json\0../../x')),
    'that is long and has no bytes': before({
      name: '././@LongLink',
      type: 'L',
      content: Buffer.alloc(0),
    }),
    'that is longer than a path': before(forge.longName('a'.repeat(4097))),
    'that is long and occurs twice': before(
      forge.longName('config.json'),
      forge.longName('config.json'),
    ),
    'that is long and has no entry after it': rearrangedEntries(
      (entries) => void entries.push(forge.longName('config.json')),
    ),
    'that is long and precedes another entry than the manifest it names': rearrangedEntries(
      (entries) => {
        entries.splice(1, 0, forge.longName('manifest.json'));
      },
    ),
  });

  test('of an entry is never used as a path', async () => {
    const names = ['../../kg-forged', OUTSIDE, '.git/hooks/post-commit', 'C:\\x', 'a//b/./c/'];
    const content = Buffer.from('forged');
    const files = names.map((entry, n) => ({ entry, path: `.kg/forged${n}`, content }));
    const base = temporaryDirectory();
    const archive = store({ archive: added(...files)(await genuine()) });
    await createBackupManager().restore({
      backupPath: archive,
      targetDir: path.join(base, 'target'),
    });
    for (const file of files)
      expect(readFileSync(path.join(base, 'target', file.path))).toEqual(content);
    expect([
      readdirSync(base),
      readdirSync(path.join(base, 'target')),
      existsSync(OUTSIDE),
    ]).toEqual([['target'], ['.kg'], false]);
  });
});

describe('entries that', () => {
  const swap = (list, a, b) => ([list[a], list[b]] = [list[b], list[a]]);
  const move = (name, to) =>
    rearrangedEntries((entries) => {
      const [entry] = entries.splice(entries.indexOf(at(entries, name)), 1);
      entries.splice(to, 0, entry);
    });
  refuses(...MISMATCH, {
    'occur twice': rearrangedEntries((entries) => void entries.splice(3, 0, at(entries, vectors))),
    'occur twice, with other content': rearrangedEntries((entries) => {
      entries.splice(3, 0, { ...at(entries, vectors), content: Buffer.from('forged') });
    }),
    'are not in the manifest': rearrangedEntries(
      (entries) => void entries.splice(3, 0, { name: 'x', content: Buffer.from('x') }),
    ),
    'are not in the tar': rearrangedEntries((entries) =>
      entries.filter((entry) => entry.name !== vectors),
    ),
    'are in another order': rearrangedEntries((entries) => void swap(entries, 0, 1)),
    'are in another order in the list': (tar) =>
      forge.seal(
        forge.tarOf(
          forge.changedEntries(tar, {
            change: (manifest) => swap(manifest.files, 0, 1),
            inOrder: false,
          }),
        ),
      ),
    'are in the order of the list, but not of a backup': (tar) => {
      const change = (manifest, entries) =>
        [manifest.files, entries].forEach((list) => swap(list, 0, 1));
      return forge.seal(forge.tarOf(forge.changedEntries(tar, { change, inOrder: false })));
    },
    'belong to two records': changed((manifest) =>
      manifest.files.push({ ...recordOf(manifest, vectors), path: '.kg/x' }),
    ),
    'are the manifest itself': changed((manifest) =>
      manifest.files.push({
        ...recordOf(manifest, vectors),
        entry: 'manifest.json',
        path: '.kg/x',
      }),
    ),
    'are the list itself': changed((manifest) =>
      manifest.files.push({ ...recordOf(manifest, vectors), entry: 'files.jsonl', path: '.kg/x' }),
    ),
    'do not exist': () => forge.seal(forge.tarOf([])),
    'are only a manifest': rearrangedEntries((entries) => [at(entries, 'manifest.json')]),
    'lack a manifest': rearrangedEntries((entries) =>
      entries.filter((entry) => entry.name !== 'manifest.json'),
    ),
    'lack a list of files': rearrangedEntries((entries) =>
      entries.filter((entry) => entry.name !== 'files.jsonl'),
    ),
    'are two lists of files': rearrangedEntries(
      (entries) => void entries.splice(-2, 0, at(entries, 'files.jsonl')),
    ),
    'lack checksums': rearrangedEntries((entries) => entries.slice(0, -1)),
    'are two manifests': rearrangedEntries(
      (entries) => void entries.splice(-1, 0, at(entries, 'manifest.json')),
    ),
    'are two manifests that differ': rearrangedEntries((entries) => {
      const { content } = at(entries, 'manifest.json');
      entries.unshift({
        name: 'manifest.json',
        content: Buffer.from(String(content).replace('.kg/vectors', '.kg/forged')),
      });
    }),
    'are two lists of checksums': rearrangedEntries((entries) => void entries.push(entries.at(-1))),
    'come after the manifest': move(vectors, -1),
    'come after the checksums': rearrangedEntries(
      (entries) => void entries.push({ name: 'x', content: Buffer.from('x') }),
    ),
    'come after the checksums, as in the manifest': move(vectors, 99),
    'have the manifest first': move('manifest.json', 0),
    'have the checksums first': move('checksums.sha256', 0),
    'have the manifest as a link': rearrangedEntries((entries) => {
      entries.splice(-1, 0, { name: 'manifest.json', type: '2', link: '/etc/passwd' });
    }),
    'have the manifest as a directory': rearrangedEntries(
      (entries) => void entries.splice(-2, 1, { name: 'manifest.json', type: '5' }),
    ),
  });
});

describe('checksums that', () => {
  const summed = (checksums) => (tar) =>
    forge.seal(forge.tarOf(forge.changedEntries(tar, { checksums })));
  refuses(...MISMATCH, {
    'are empty': summed(() => ''),
    'lack a line': summed((lines) => lines.slice(lines.indexOf('\n') + 1)),
    'have an extra line': summed((lines) => `${lines}${'0'.repeat(64)}  x\n`),
    'have another digest': summed((lines) =>
      lines.replace(/^./, (digit) => (digit === '0' ? '1' : '0')),
    ),
    'have capital letters': summed((lines) => lines.toUpperCase()),
    'are in another order': summed(
      (lines) => `${lines.trimEnd().split('\n').reverse().join('\n')}\n`,
    ),
    'end lines as Windows does': summed((lines) => lines.replaceAll('\n', '\r\n')),
    'are not text': summed(() => Buffer.from([0xff, 0, 0xfe])),
  });
});

describe('a tar that', () => {
  const genuineTar = (tar) => forge.tarOf(forge.changedEntries(tar, {}));
  const rewritten = (rewrite) => (tar) => forge.seal(rewrite(genuineTar(tar)));
  const vectorsWith = (fields) =>
    rearrangedEntries((entries) => void Object.assign(at(entries, vectors), fields));
  refuses(...MISMATCH, {
    'ends within an entry': rewritten((tar) => tar.subarray(0, 3 * forge.BLOCK + 100)),
    'ends within a header': rewritten((tar) => tar.subarray(0, tar.length - 5 * forge.BLOCK + 100)),
    'ends without its two blocks of zeros': rewritten((tar) => tar.subarray(0, -2 * forge.BLOCK)),
    'is empty': rewritten(() => Buffer.alloc(0)),
    'is a single byte': rewritten(() => Buffer.from([1])),
    'begins with its end': rewritten((tar) => Buffer.concat([Buffer.alloc(2 * forge.BLOCK), tar])),
    'continues after its end': rewritten((tar) => Buffer.concat([tar, tar])),
    'continues with zeros after its end': rewritten((tar) =>
      Buffer.concat([tar, Buffer.alloc(64 * forge.BLOCK)]),
    ),
    'has a header with a wrong checksum': vectorsWith({ damage: (header) => (header[0] ^= 1) }),
    'has a header whose checksum is not a number': vectorsWith({
      damage: (header) => header.fill('x', 148, 156),
    }),
    'has a size that is not a number': vectorsWith({ size: Buffer.from('99999999999\0') }),
    'has a negative size': vectorsWith({ size: -512 }),
    'has the largest possible size': vectorsWith({ size: 2n ** 64n - 1n }),
    'has a size that ends at the largest number': vectorsWith({ size: 2n ** 64n - 4096n }),
    'declares too small a size for an entry': vectorsWith({ size: 1 }),
    'declares too large a size for an entry': vectorsWith({ size: 2 * forge.BLOCK }),
    'declares a gigantic directory': rearrangedEntries(
      (entries) => void (at(entries, 'vectors').size = 2n ** 62n),
    ),
    'declares a gigantic manifest': rearrangedEntries(
      (entries) => void (at(entries, 'manifest.json').size = 2n ** 40n),
    ),
    'declares gigantic checksums': rearrangedEntries(
      (entries) => void (entries.at(-1).size = 2n ** 40n),
    ),
    'declares a gigantic long name': rearrangedEntries((entries) => {
      entries.splice(1, 0, { name: '././@LongLink', type: 'L', size: 2n ** 62n });
    }),
  });
  refuses(
    'KG_CHECKSUM_MISMATCH',
    { valid: false, ending: 'tar' },
    {
      'is plain and has a FIFO': (tar) =>
        forge.sealPlain(forge.tarOf([...forge.changedEntries(tar, {}), { name: 'x', type: '6' }])),
      'is plain and continues after its end': (tar) =>
        forge.sealPlain(Buffer.concat([genuineTar(tar), tar])),
      'is plain and has only a seal': () => forge.sealPlain(Buffer.alloc(0)),
    },
  );
  refuses(
    'KG_NOT_A_BACKUP',
    { valid: true, ending: 'tar' },
    {
      'is plain and climbs': (tar) =>
        forge.sealPlain(
          forge.rewriteManifest(tar, (manifest) => (manifest.files[3].path = '../x')),
        ),
    },
  );
});

describe('a block that', () => {
  const withMember = (member) => (tar) => {
    const members = forge.membersOf(forge.tarOf(forge.changedEntries(tar, {})));
    return forge.sealMembers([...members, member]);
  };
  const content = Buffer.alloc(forge.BLOCK);
  const sized = (size) => {
    const member = forge.member(content);
    member.writeUInt32LE(size, 16);
    return member;
  };
  refuses(...MISMATCH, {
    'claims an impossible length': withMember(forge.member(content, { length: 2 ** 32 - 1 })),
    'claims the largest length': withMember(forge.member(content, { length: forge.MAX_MEMBER })),
    'holds more than it declares': withMember(forge.member(content, { length: 1 })),
    'has another CRC': withMember(forge.member(content, { crc: 1 })),
    'is not a deflate stream': withMember(
      forge.member(content, { deflated: Buffer.alloc(64, 0xff) }),
    ),
    'has a size of zero': withMember(sized(0)),
    'is smaller than its header': withMember(sized(20)),
    'has a gigantic size': withMember(sized(2 ** 32 - 1)),
    'continues after the end of the archive': withMember(sized(10_000)),
    'does not begin like a block': withMember(Buffer.from('not a gzip member at all')),
    'is a seal in the middle': withMember(forge.seal(Buffer.alloc(0)).subarray(-58)),
  });
});

// ---- The manifest ----

describe('a manifest that', () => {
  refuses(...MISMATCH, {
    'has a smaller size': recorded((record) => (record.size -= 1)),
    'has a larger size': recorded((record) => (record.size += 1)),
    'has a huge size': withListText((lines) =>
      lines.replace('"size":12,', '"size":18446744073709551615,'),
    ),
    'has a size that does not fit in a number': withListText((lines) =>
      lines.replace('"size":12,', '"size":18446744073709551616,'),
    ),
    'has a negative size': recorded((record) => (record.size = -1)),
    'has half a byte': recorded((record) => (record.size = 11.5)),
    'has a size for a directory': recorded((record) => (record.size = 1), 'vectors'),
    'has another digest': recorded(
      (record, manifest) => (manifest.checksums[vectors] = `sha256:${'0'.repeat(64)}`),
    ),
    'has no digest': recorded((record, manifest) => delete manifest.checksums[vectors]),
    'has a digest of another kind': recorded(
      (record, { checksums }) => (checksums[vectors] = checksums[vectors].replace('sha256', 'md5')),
    ),
    'has a digest in capital letters': recorded((record, { checksums }) => {
      checksums[vectors] = `sha256:${checksums[vectors].slice(7).toUpperCase()}`;
    }),
    'has an unknown component': recorded((record) => (record.component = 'forged')),
    'has an unknown type of entry': recorded((record) => (record.type = 'device')),
    'has a file as a directory': recorded((record) => (record.type = 'directory')),
    'has a file as a link': recorded((record) =>
      Object.assign(record, { type: 'link', target: 'x' }),
    ),
    'has a directory as a file': recorded((record) => delete record.type, 'vectors'),
    'has no files': changed((manifest) => (manifest.files = [])),
    'has files of another shape': changed((manifest) => (manifest.files = { 0: 'x' })),
    'has a path that is a number': recorded((record) => (record.path = 7)),
    'has a path that is a list': recorded((record) => (record.path = ['.kg', 'x'])),
    'has negative permissions': recorded((record) => (record.mode = -1)),
    'has an invalid time': recorded((record) => (record.mtime = '9999999-99-99')),
    'lacks a field': changed((manifest) => delete manifest.stats),
    'has a field of another type': changed((manifest) => (manifest.integrity = [])),
    'has a field twice': withManifestText((json) =>
      json.replace('{"version"', '{"id":"x","version"'),
    ),
    'is a list': withManifestText(() => '[]'),
    'is null': withManifestText(() => 'null'),
    'is a number': withManifestText(() => '1e999'),
    'is empty': withManifestText(() => ''),
    'is not UTF-8': withManifestText((json) =>
      Buffer.concat([Buffer.from([0xff]), Buffer.from(json)]),
    ),
    'is followed by another': withManifestText((json) => json + json),
    'is truncated': withManifestText((json) => json.slice(0, -10)),
    'has nested lists': withManifestText((json) =>
      json.replace('"messages":[', `"messages":[${'['.repeat(1_000_000)}`),
    ),
    'has another list of files': changed((manifest) => manifest.files.pop()),
    'counts another number of files': withManifestText((json) =>
      json.replace('"records":', '"records":1'),
    ),
    'does not identify the list': withManifestText((json) =>
      json.replace('"fileList":', '"other":'),
    ),
    'has another checksum of the database': withManifestText((json) =>
      json.replace(/"database.sqlite":"sha256:./, '"database.sqlite":"sha256:x'),
    ),
    'has nested lists in its version': withManifestText((json) =>
      json.replace('"version":', `"version":${'['.repeat(1_000_000)}`),
    ),
    'has nested objects': withManifestText((json) =>
      json.replace('"contents":{', `"contents":{${'"x":{'.repeat(1_000_000)}`),
    ),
  });
  refuses(...NOT_OURS, {
    'declares a directory as a database': recorded((record) => (record.database = true), 'vectors'),
    'declares a file as a part of the graph database': recorded(
      (record) => (record.component = 'database'),
    ),
    'declares a plugin as configuration': recorded(
      (record) => (record.component = 'config'),
      'plugins/glossary/terms.json',
    ),
    'declares the graph database as vectors': recorded(
      (record) => (record.component = 'vectors'),
      'database.sqlite',
    ),
  });

  test('has a later format is refused with a code of its own', async () => {
    for (const version of ['2.0.0', '99999999999999999999.0.0', 'x', '']) {
      const archive = store({
        archive: changed((manifest) => (manifest.version = version))(await genuine()),
      });
      const check = createBackupManager().checkBackup(archive);
      await expect(check).rejects.toMatchObject({ code: 'KG_FORMAT_NEWER' });
      await expectRefused(archive, 'KG_FORMAT_NEWER');
    }
  });

  test('has fields of a later release, at any depth, can be restored', async () => {
    const deep = `"later":${'['.repeat(100_000)}${']'.repeat(100_000)},`;
    const archive = store({
      archive: withManifestText((json) => json.replace('{', `{${deep}`))(await genuine()),
    });
    expect((await createBackupManager().checkBackup(archive)).problems).toEqual([]);
    const target = path.join(temporaryDirectory(), 'target');
    expect(
      await createBackupManager().restore({ backupPath: archive, targetDir: target }),
    ).toMatchObject({ filesRestored: 4 });
  });

  test('asks for every permission gets only those of a regular file', async () => {
    const archive = store({
      archive: recorded((record) => (record.mode = 0xffffffff))(await genuine()),
    });
    const target = path.join(temporaryDirectory(), 'target');
    await createBackupManager().restore({ backupPath: archive, targetDir: target });
    expect(statSync(path.join(target, '.kg', vectors)).mode & 0o7000).toBe(0);
  });
});

describe('a sidecar that', () => {
  /** A forgery with a real archive and a false sidecar. */
  const lies =
    (change, text = (json) => json) =>
    (tar) => {
      const entries = forge.changedEntries(tar, {});
      const archive = forge.seal(forge.tarOf(entries));
      return {
        archive,
        sidecarText: text(
          forge.sidecarOf(archive, JSON.parse(at(entries, 'manifest.json').content), change),
        ),
      };
    };
  refuses(...MISMATCH, {
    'has another size of the files': lies((manifest) => (manifest.stats.totalSize = 10)),
    'has another checksum': lies(
      (manifest) => (manifest.checksums['config.json'] = `sha256:${'0'.repeat(64)}`),
    ),
    'has the list in another place': lies((manifest) => (manifest.archive.listOffset = 0)),
    'has the list beyond the end': lies((manifest) => (manifest.archive.listOffset = 2 ** 50)),
    'has the list within a block': lies((manifest) => (manifest.archive.listOffset = 30)),
    'has another list of files': lies((manifest) => (manifest.fileList.sha256 = '0'.repeat(64))),
    'lacks the list of files': lies((manifest) => delete manifest.fileList),
    'is of the first format': lies((manifest) => delete manifest.format),
    'has another digest of the archive': lies(
      (manifest) => (manifest.archive.sha256 = '0'.repeat(64)),
    ),
    'has another size of the archive': lies((manifest) => (manifest.archive.size += 1)),
    'does not describe the archive': lies((manifest) => delete manifest.archive),
    'describes the archive as a number': lies((manifest) => (manifest.archive = 7)),
    'is of a later format': lies((manifest) => (manifest.version = '2.0.0')),
    'is a list': lies(undefined, () => '[]'),
    'is empty': lies(undefined, () => ''),
    'is nested lists': lies(undefined, () => '['.repeat(1_000_000)),
  });

  test('is a pipe blocks no command', async () => {
    const archive = store(lies()(await genuine()));
    execFileSync('rm', [`${archive}.manifest.json`]);
    execFileSync('mkfifo', [`${archive}.manifest.json`]);
    const { signal } = await kg(['diag', 'backup', '--verify', archive], {
      timeout: 3_000,
      killSignal: 'SIGKILL',
    });
    expect(signal).toBeFalsy();
  });

  test('has millions of checksums takes little memory and time, also in a list', async () => {
    const many = (json) =>
      json.replace(
        '"checksums":{',
        () =>
          `"checksums":{${Array.from({ length: 6_000_000 }, (_, number) => `"${number}":"",`).join('')}`,
      );
    const named = store(lies(undefined, many)(await genuine()));
    // A list finds only archives with a name of this form.
    const archive = path.join(path.dirname(named), 'kg-backup-20240101-000000.tar.gz');
    for (const ending of ['', '.manifest.json']) renameSync(named + ending, archive + ending);
    expect(statSync(`${archive}.manifest.json`).size).toBeGreaterThan(60 * MB);
    const soon = { peakBytes: expect.toBeBelow(MEMORY), status: expect.toBeBelow(6) };
    expect(
      measureKg(['diag', 'backup', '--list', '--output', path.dirname(archive)]),
    ).toMatchObject(soon);
    expect(measureKg(['diag', 'backup', '--verify', archive])).toMatchObject({
      ...soon,
      status: 5,
    });
  });

  test('is gigantic takes little memory', async () => {
    const archive = store(lies()(await genuine()));
    truncateSync(`${archive}.manifest.json`, 1024 * MB);
    expect(measureKg(['diag', 'backup', '--verify', archive])).toMatchObject({
      peakBytes: expect.toBeBelow(MEMORY),
    });
  });
});

// ---- Large input ----

/**
 * The memory limit for a forged archive that contains no text of that size. The peak depends on how
 * far the threads are ahead of each other.
 */
const MEMORY = 448 * MB;
const DISK = 64 * MB;
const SECONDS = 8;

/** Measures the native `kg`, which may use the processor for a few seconds. */
function measureKg(args, cwd = temporaryDirectory()) {
  return measure(['prlimit', `--cpu=${SECONDS}:${SECONDS}`, kgPath, ...args], cwd);
}

/** Inserts these members after the first entry of the real archive. Call it after `genuine`. */
const between = (members) => {
  const [first, ...rest] = forge.changedEntries(tar, {}).map(forge.blocksOf);
  const last = Buffer.concat([...rest, Buffer.alloc(2 * forge.BLOCK)]);
  return forge.sealMembers([...forge.membersOf(first), ...members, ...forge.membersOf(last)]);
};

/** Returns the members of an entry that contains `bytes` zeros. */
const zeros = (bytes, fields) => [
  forge.member(forge.headerOf({ ...fields, size: bytes })),
  ...forge.zeros(bytes),
];

/**
 * Replaces the content of `name`, the manifest or the checksums, with these members of `size`
 * bytes.
 */
const withText = (tar, name, members, size) => {
  const blocks = forge
    .changedEntries(tar, {})
    .map((entry) =>
      entry.name === name
        ? [
            forge.member(forge.headerOf({ name, size })),
            ...members,
            ...forge.zeros((forge.BLOCK - (size % forge.BLOCK)) % forge.BLOCK),
          ]
        : forge.membersOf(forge.blocksOf(entry)),
    );
  return forge.sealMembers([...blocks.flat(), ...forge.zeros(2 * forge.BLOCK)]);
};

/**
 * Expects each of `forgeries` to be refused with little memory and time, and without filling the
 * disk.
 */
function refusesSoon({ memory = MEMORY, code = 'KG_CHECKSUM_MISMATCH', valid = false }, forgeries) {
  for (const [what, forgery] of Object.entries(forgeries)) {
    test(`${what}: refused quickly`, async () => {
      const forged = forgery(await genuine());
      const archive = store(Buffer.isBuffer(forged) ? { archive: forged } : forged);
      const limits = { peakBytes: expect.toBeBelow(memory), writtenBytes: expect.toBeBelow(DISK) };
      const checked = measureKg(['diag', 'backup', '--verify', archive]);
      expect.soft(checked, 'check').toMatchObject({ ...limits, status: valid ? 0 : 5 });
      const base = temporaryDirectory();
      const restored = measureKg(
        ['diag', 'restore', '--file', archive, '--target', path.join(base, 'target')],
        base,
      );
      expect
        .soft(restored, 'restore')
        .toMatchObject({ ...limits, status: code === 'KG_NO_SPACE' ? 4 : 5 });
      expect.soft(readdirSync(base)).toEqual([]);
      if (checked.seconds + restored.seconds < 1) await expectRefused(archive, code);
    });
  }
}

expect.extend({
  toBeBelow: (actual, limit) => ({
    pass: actual < limit,
    message: () => `${actual} is not below ${limit}`,
  }),
});

describe('gigabytes in', () => {
  const name = 'files/forged';
  const terabyte = (tar) => {
    const change = (manifest) => (recordOf(manifest, vectors).size = 2 ** 50);
    const entries = forge.changedEntries(tar, { change });
    at(entries, vectors).size = 2 ** 50;
    return { archive: forge.seal(forge.tarOf(entries)), entries };
  };
  refusesSoon(
    {},
    {
      'an extended header': () => between(zeros(400 * MB, { name, type: 'x' })),
      'an extended header for all files': () => between(zeros(400 * MB, { name, type: 'g' })),
      'a long name': () => between(zeros(400 * MB, { name, type: 'L' })),
      'a long link': () => between(zeros(400 * MB, { name, type: 'K' })),
      'an entry of an unknown type': () => between(zeros(400 * MB, { name, type: 'Z' })),
      'a directory': () => between(zeros(400 * MB, { name, type: '5' })),
      'a file whose size is 10 bytes in the sidecar': (tar) => {
        const archive = between(zeros(300 * MB, { name }));
        const manifest = JSON.parse(at(forge.changedEntries(tar, {}), 'manifest.json').content);
        const add = ({ stats }) => (stats.totalSize += 10);
        return { archive, sidecarText: forge.sidecarOf(archive, manifest, add) };
      },
      'a file that the sidecar lacks': (tar) => {
        const archive = between(zeros(300 * MB, { name }));
        const manifest = JSON.parse(at(forge.changedEntries(tar, {}), 'manifest.json').content);
        return { archive, sidecarText: forge.sidecarOf(archive, manifest) };
      },
      'blocks that only declare that much content': () => {
        const claim = forge.member(Buffer.alloc(0), {
          length: forge.MAX_MEMBER,
          crc: 1,
          deflated: Buffer.alloc(1),
        });
        return between([
          forge.member(forge.headerOf({ name, size: 1024 * MB })),
          ...new Array(64).fill(claim),
        ]);
      },
      'a file that is larger than the disk, but not in the sidecar': (tar) => {
        const { archive, entries } = terabyte(tar);
        const manifest = JSON.parse(at(entries, 'manifest.json').content);
        return {
          archive,
          sidecarText: forge.sidecarOf(archive, manifest),
        };
      },
      'a manifest beyond the maximum length': (tar) =>
        withText(tar, 'manifest.json', forge.zeros(600 * MB), 600 * MB),
      'checksums beyond the maximum length': (tar) =>
        withText(tar, 'checksums.sha256', forge.zeros(600 * MB), 600 * MB),
    },
  );
  refusesSoon(
    { code: 'KG_NO_SPACE' },
    {
      'a file that is larger than the disk': terabyte,
      'a file that is larger than the disk, also in the sidecar': (tar) => {
        const { archive, entries } = terabyte(tar);
        const manifest = JSON.parse(at(entries, 'manifest.json').content);
        const add = ({ stats }) => (stats.totalSize += 2 ** 50);
        return { archive, sidecarText: forge.sidecarOf(archive, manifest, add) };
      },
    },
  );
  refusesSoon(
    { memory: 640 * MB },
    {
      'a manifest of blanks': (tar) => {
        return withText(
          tar,
          'manifest.json',
          forge.repeated(Buffer.alloc(forge.BLOCK, ' '), 819_200),
          400 * MB,
        );
      },
      'checksums of zeros': (tar) =>
        withText(tar, 'checksums.sha256', forge.zeros(400 * MB), 400 * MB),
    },
  );
});

describe('a million of', () => {
  refusesSoon(
    {},
    {
      'entries that the manifest lacks': () =>
        between(forge.repeated(forge.headerOf({ name: 'x', type: '5' }), 1_000_000)),
      'entries beyond the maximum number': () =>
        between(forge.repeated(forge.headerOf({ name: 'x', type: '5' }), 1_200_000)),
      'entries of another type': () =>
        between(forge.repeated(forge.headerOf({ name: 'x', type: 'Z' }), 1_000_000)),
      'bytes of names, repeated hundreds of times': () => {
        const link = [
          forge.longName('n'.repeat(4096)),
          forge.longName('l'.repeat(4095), 'K'),
          { name: 'x', type: '2' },
        ];
        return between(forge.repeated(Buffer.concat(link.map(forge.blocksOf)), 60_000));
      },
      'damaged blocks and entries that may be in them': () => {
        const damaged = forge.member(Buffer.alloc(0), { crc: 1, deflated: Buffer.alloc(1) });
        const entries = forge.repeated(forge.headerOf({ name: 'x', type: '5' }), 200_000);
        return between([...entries, ...new Array(200_000).fill(damaged)]);
      },
    },
  );
  refusesSoon(
    { memory: 1024 * MB },
    {
      'records for one entry': (tar) => {
        const record =
          '{"entry":"x","path":".kg/x","component":"files","size":0,"mode":420,"mtime":"2024-01-01T00:00:00Z"}';
        const line = Buffer.from(`${record.padEnd(127)}\n`);
        const members = forge.repeated(line, 1_000_000);
        return withText(tar, 'files.jsonl', members, 128 * 1_000_000);
      },
      'letters in one line of the list': (tar) =>
        withText(tar, 'files.jsonl', forge.repeated(Buffer.alloc(512, 'x'), 2_000), 1_024_000),
    },
  );
  refusesSoon(
    { code: 'KG_NOT_A_BACKUP', valid: true },
    {
      'directories in a path, or nearly': added({ path: `.kg/${'a/'.repeat(30_000)}x` }),
      'letters in a name, nearly': added({ path: `.kg/${'a'.repeat(100_000)}` }),
      'letters in the target of a link': changed((m, e) => {
        e.push(forge.longName('l'.repeat(4096), 'K'));
        forge.addEntry(m, e, {
          entry: 'files/forged',
          path: '.kg/forged',
          target: 'l'.repeat(4096),
        });
      }),
    },
  );
});

test('tens of thousands of files that the manifest does not list are refused', async () => {
  await genuine();
  const archive = store({
    archive: between(forge.repeated(forge.headerOf({ name: 'x' }), 20_000)),
  });
  expect((await createBackupManager().checkBackup(archive)).valid).toBe(false);
  await expectRefused(archive, 'KG_CHECKSUM_MISMATCH');
});
