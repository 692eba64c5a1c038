// `kg` for an operator: its output, its exit status, a closed pipe and Ctrl-C.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  truncateSync,
} from 'node:fs';
import path from 'node:path';

import { describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgOnTerminal, kgPath, repository, run } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

/** Makes a project and a `kg` that runs inside it. */
function setUp(options) {
  const project = makeProject(options);
  return { ...project, kg: (...args) => kg(args, { cwd: project.root }) };
}

describe('kg diag backup', () => {
  test('makes a backup and prints its path, content and size', async () => {
    const { kg, root } = setUp();
    const { status, stdout, stderr } = await kg(
      'diag',
      'backup',
      '--output',
      './backups',
      '--description',
      'by hand',
    );
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).toMatch(
      /^Backup created: .*\/backups\/kg-backup-\d{8}-\d{6}\.tar\.gz\n {2}id {8}backup-/,
    );
    expect(stdout).toContain('database, config, vectors, plugins; 200 nodes, 199 edges');
    expect(existsSync(path.join(root, 'backups/latest.tar.gz'))).toBe(true);
  });

  test('uses .kg/backups and the project above the working directory by default', async () => {
    const { root } = setUp();
    mkdirSync(path.join(root, 'docs/deep'), { recursive: true });
    const { status } = await kg(['diag', 'backup'], { cwd: path.join(root, 'docs/deep') });
    expect(status).toBe(0);
    expect(readdirSync(path.join(root, '.kg/backups'))).toContain('latest.tar.gz');
  });

  test('--json prints the result of the API, --quiet prints nothing', async () => {
    const { kg } = setUp();
    const made = resultOf((await kg('diag', 'backup', '--json')).stdout);
    expect(made).toMatchObject({ type: 'full', contents: { database: true }, warnings: [] });
    expect(await kg('diag', 'backup', '--quiet', '--type', 'snapshot')).toMatchObject({
      status: 0,
      stdout: '',
      stderr: '',
    });
    const { backups: listed } = resultOf((await kg('diag', 'backup', '--list', '--json')).stdout);
    expect(listed.map((backup) => backup.type)).toEqual(['snapshot', 'full']);
    const status = resultOf((await kg('diag', 'backup', '--status', '--json')).stdout);
    expect(status).toMatchObject({ count: 2, latest: { id: listed[0].id } });
  });

  test('--list and --status print readable text, with and without backups', async () => {
    const { kg } = setUp();
    expect((await kg('diag', 'backup', '--list')).stdout).toMatch(/contains no backup/);
    expect((await kg('diag', 'backup', '--status')).stdout).toMatch(/none yet/);
    await kg('diag', 'backup', '--description', 'before the change');
    expect((await kg('diag', 'backup', '--list')).stdout).toMatch(
      /ID .*\nbackup-\d{8}-\d{6} +full .* before the change\n$/,
    );
    expect((await kg('diag', 'backup', '--status')).stdout).toMatch(
      /last .* s ago[^]*kept {6}1 backup,/,
    );
  });

  test('--include-vectors, --no-vectors, --no-plugins and --exclude select the content', async () => {
    const { kg } = setUp();
    const contents = async (...args) =>
      resultOf((await kg('diag', 'backup', '--json', ...args)).stdout).contents;
    expect(await contents('--type', 'full', '--include-vectors')).toMatchObject({
      vectors: true,
      plugins: true,
    });
    expect(await contents('--no-vectors', '--no-plugins')).toMatchObject({
      vectors: false,
      plugins: false,
    });
    expect(await contents('--exclude', 'config.json', '--exclude', '*.f32')).toMatchObject({
      config: false,
      vectors: false,
    });
  });

  test('--verify exits with 0 for a sound backup and 5 for a damaged one', async () => {
    const { kg, root } = setUp();
    await kg('diag', 'backup', '--output', 'backups');
    expect(await kg('diag', 'backup', '--verify', './backups/latest.tar.gz')).toMatchObject({
      status: 0,
    });
    const damaged = path.join(root, 'damaged.tar.gz');
    copyFileSync(path.join(root, 'backups/latest.tar.gz'), damaged);
    truncateSync(damaged, 1000);
    const { status, stdout } = await kg('diag', 'backup', '--verify', damaged);
    expect(status).toBe(5);
    expect(stdout).toMatch(/checksum mismatch, this backup is DAMAGED[^]*to do: /);
    const { stdout: json, status: again } = await kg(
      'diag',
      'backup',
      '--verify',
      damaged,
      '--json',
    );
    expect(again).toBe(5);
    expect(resultOf(json)).toMatchObject({ valid: false });
  });
});

describe('kg diag restore', () => {
  test('restores into an existing project without more flags and names the place of the old files', async () => {
    const { kg, database } = setUp();
    await kg('diag', 'backup', '--output', './backups');
    run('sqlite3', [database, 'DELETE FROM nodes']);
    const { status, stdout } = await kg('diag', 'restore', '--file', './backups/latest.tar.gz');
    expect(status).toBe(0);
    const kept = stdout.match(/kept in (.*restore-undo\/\d{8}-\d{6})\n/)[1];
    expect(run('sqlite3', [database, 'SELECT count(*) FROM nodes'])).toBe('200\n');
    expect(
      run('sqlite3', [path.join(kept, '.kg/knowledge.db'), 'SELECT count(*) FROM nodes']),
    ).toBe('0\n');
  });

  test('accepts a path, latest, the name of the link or an id, and restores into another directory', async () => {
    const { kg, root } = setUp();
    const { id, path: file } = resultOf((await kg('diag', 'backup', '--json')).stdout);
    for (const reference of [file, 'latest', 'latest.tar.gz', id]) {
      const target = temporaryDirectory();
      expect(await kg('diag', 'restore', '--file', reference, '--target', target)).toMatchObject({
        status: 0,
        stderr: '',
      });
      expect(readFileSync(path.join(target, '.kg/config.json'))).toEqual(
        readFileSync(path.join(root, '.kg/config.json')),
      );
    }
  });

  test('--config-only and --db-only restore only that part, as after a full loss (Level 2 of the guide)', async () => {
    const { kg, root, database } = setUp();
    await kg('diag', 'backup', '--output', 'backups');
    rmSync(path.join(root, '.kg'), { recursive: true });
    const files = () =>
      readdirSync(path.join(root, '.kg'))
        .filter((name) => name !== 'restore-undo')
        .sort();
    await kg('diag', 'restore', '--file', 'backups/latest.tar.gz', '--config-only');
    expect(files()).toEqual(['config.json']);
    await kg('diag', 'restore', '--file', 'backups/latest.tar.gz', '--db-only');
    expect(files()).toEqual(['backup-project-id', 'config.json', 'knowledge.db']);
    expect(run('sqlite3', [database, 'SELECT count(*) FROM nodes'])).toBe('200\n');
  });

  test('--dry-run changes nothing and reports the planned changes', async () => {
    const { kg, root } = setUp();
    await kg('diag', 'backup', '--output', 'backups');
    const { stdout, status } = await kg(
      'diag',
      'restore',
      '--file',
      'backups/latest.tar.gz',
      '--dry-run',
    );
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /is intact\. A restore would write 4 files[^]*replace 4 of them\. Nothing was changed/,
    );
    expect(readdirSync(path.join(root, '.kg'))).not.toContain('restore-undo');
  });

  test('asks on a terminal, and "no" changes nothing', async () => {
    const { kg, root } = setUp();
    await kg('diag', 'backup', '--output', 'backups');
    const restore = ['diag', 'restore', '--file', 'backups/latest.tar.gz'];
    const answer = (text, ...more) => kgOnTerminal([...restore, ...more], root, text);
    expect(() => answer('n\n')).toThrow(
      expect.objectContaining({ status: 1, stdout: expect.stringContaining('KG_NOT_CONFIRMED') }),
    );
    expect(readdirSync(path.join(root, '.kg'))).not.toContain('restore-undo');
    expect(answer('y\n')).toMatch(/Restore over the project in .*\[y\/N\][^]*Restored 4 files/);
    expect(answer('', '--yes')).not.toContain('[y/N]');
  });
});

describe('exit status and errors', () => {
  const cases = [
    [2, 'KG_NO_PROJECT', ['diag', 'backup', '--project', '/tmp/no-such-project']],
    [2, null, ['diag', 'backup', '--type', 'partial']],
    [2, null, ['diag', 'backup', '--level', '12']],
    [
      4,
      'KG_BACKUP_NOT_FOUND',
      ['diag', 'backup', '--type', 'incremental', '--base-backup', 'backup-20200101-000000'],
    ],
    [2, null, ['diag', 'restore']],
    [2, null, ['no-such-command']],
    [3, 'KG_NO_DATABASE', ['diag', 'backup', '--project', () => withoutDatabase()]],
    [4, 'KG_BACKUP_NOT_FOUND', ['diag', 'restore', '--file', 'no-such-file.tar.gz']],
    [4, 'KG_NO_BACKUPS', ['diag', 'restore', '--file', 'latest']],
    [4, 'KG_BACKUP_DIR_INVALID', ['diag', 'backup', '--output', '/etc/passwd']],
    [5, 'KG_NOT_A_BACKUP', ['diag', 'restore', '--file', () => path.join(repository, 'README.md')]],
    [5, 'KG_CHECKSUM_MISMATCH', ['diag', 'restore', '--file', () => notABackup()]],
  ];
  for (const [status, code, args] of cases) {
    test(`${status} for ${code ?? 'usage'}: kg ${args.map((arg) => (typeof arg === 'function' ? '…' : arg)).join(' ')}`, async () => {
      const { kg } = setUp();
      const result = await kg(...args.map((arg) => (typeof arg === 'function' ? arg() : arg)));
      expect(result.status).toBe(status);
      expect(result.stdout).toBe('');
      if (code) expect(result.stderr).toMatch(new RegExp(`^kg: .* \\[${code}\\]\\n {4}.*\\.\\n$`));
    });
  }

  function withoutDatabase() {
    const { root, database } = makeProject();
    rmSync(database);
    return root;
  }

  function notABackup() {
    const file = path.join(temporaryDirectory(), 'backup.tar.gz');
    copyFileSync(path.join(repository, 'README.md'), file);
    return file;
  }

  test('--json prints the error as an object', async () => {
    const { kg } = setUp();
    const { stdout, status } = await kg('diag', 'restore', '--file', 'latest', '--json');
    expect(status).toBe(4);
    expect(resultOf(stdout).error).toMatchObject({
      code: 'KG_NO_BACKUPS',
      remedy: expect.any(String),
    });
  });

  test('help has examples and names every flag of the guide', async () => {
    const { kg } = setUp();
    const backup = await kg('diag', 'backup', '--help');
    for (const flag of [
      '--output',
      '--type',
      '--include-vectors',
      '--description',
      '--status',
      '--verify',
      '--list',
      '--project',
      '--json',
      '--quiet',
    ]) {
      expect(backup.stdout).toContain(flag);
    }
    const restore = await kg('diag', 'restore', '--help');
    for (const flag of [
      '--file',
      '--target',
      '--config-only',
      '--db-only',
      '--overwrite',
      '--dry-run',
      '--json',
      '--yes',
    ]) {
      expect(restore.stdout).toContain(flag);
    }
    for (const { stdout, status } of [backup, restore]) {
      expect(stdout).toContain('Examples:');
      expect(status).toBe(0);
    }
    expect((await kg('completions', 'bash')).stdout).toContain('complete -F');
  });
});

test('a closed pipe neither panics nor harms the backup', async () => {
  const { root } = setUp();
  const { status } = await new Promise((resolve) => {
    const child = spawn(
      'sh',
      [
        '-c',
        `"${kgPath}" diag backup --output b 2>&1 | true; "${kgPath}" diag backup --help | head -1`,
      ],
      { cwd: root },
    );
    child.on('exit', (code) => resolve({ status: code }));
  });
  expect(status).toBe(0);
  const listed = await kg(['diag', 'backup', '--list', '--output', 'b', '--json'], { cwd: root });
  expect(resultOf(listed.stdout).backups).toHaveLength(1);
  expect(await kg(['diag', 'backup', '--verify', 'b/latest.tar.gz'], { cwd: root })).toMatchObject({
    status: 0,
  });
});

test('Ctrl-C ends a backup with 130 and leaves no files', async () => {
  const { root, backups } = setUp({ nodes: 60_000 });
  const child = spawn(kgPath, ['diag', 'backup', '--output', backups, '--level', '9'], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  onTestFinished(() => child.kill('SIGKILL'));
  let stderr = '';
  child.stderr.on('data', (text) => (stderr += text));
  const { until } = await import('./support/processes.mjs');
  await until(
    () =>
      existsSync(backups) && readdirSync(backups).some((name) => name.startsWith('.kg-partial-')),
    'a partial archive',
  );
  child.kill('SIGINT');
  const [status] = await once(child, 'exit');
  expect(status).toBe(130);
  expect(stderr).toContain('KG_ABORTED');
  expect(readdirSync(backups)).toEqual(['.kg-store.lock']);
});

test('the kg of package.json is the native one, with its exit status', async () => {
  const { bin } = JSON.parse(readFileSync(path.join(repository, 'package.json'), 'utf8'));
  const { root } = setUp();
  const shim = path.join(repository, bin.kg);
  expect(run(process.execPath, [shim, '--version'])).toMatch(/^kg \d/);
  expect(() =>
    run(process.execPath, [shim, 'diag', 'restore', '--file', 'latest'], { cwd: root }),
  ).toThrow(expect.objectContaining({ status: 4 }));
});
