// System limits for a user or process. A command fails with an error that names the limit; it never
// panics, dies of a signal or leaves files.

import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { isRoot, projectOf } from './support/users.mjs';

/** No other process runs as this user, so only these tests count towards its limits. */
let user = 52_000 + (process.pid % 10_000);

function setUp() {
  user += 1;
  const project = projectOf(user, { nodes: 500 });
  const { backups, root, run, executable } = project;
  mkdirSync(backups, { recursive: true });
  writeFileSync(
    path.join(root, '.kg/plugins/noise.bin'),
    execFileSync('head', ['-c', '300000', '/dev/urandom']),
  );
  run(['chown', '-R', `${user}:${user}`, root, backups]);
  const as = ['setpriv', `--reuid=${user}`, `--regid=${user}`, '--clear-groups'];
  const limited = (limit, ...args) =>
    run([...as, 'prlimit', limit, executable, 'diag', ...args], { TMPDIR: undefined });
  const made = () => readdirSync(backups).filter((name) => name !== '.kg-store.lock');
  return { ...project, limited, made };
}

const isLimited = /\[KG_LIMIT\]/;

describe.runIf(isRoot)('when the system allows no more', () => {
  test('threads, each command works or fails with the limit, and leaves no files', () => {
    const { backups, root, limited, made } = setUp();
    const statuses = new Set();
    const restored = path.join(root, 'restored');
    const attempt = (threads, ...args) => {
      const { status, stderr } = limited(`--nproc=${threads}`, ...args);
      expect(stderr, `${threads} threads, ${args}`).not.toMatch(/panicked/);
      expect(
        status === 0 || isLimited.test(stderr),
        `${threads} threads, ${args}: ${status} ${stderr}`,
      ).toBe(true);
      statuses.add(status);
      return status;
    };
    for (let threads = 1; threads <= 9; threads += 1) {
      const before = made();
      if (attempt(threads, 'backup', '--output', backups) !== 0) expect(made()).toEqual(before);
    }
    expect(attempt(200, 'backup', '--output', backups)).toBe(0);
    for (let threads = 1; threads <= 9; threads += 1) {
      attempt(threads, 'backup', '--output', backups, '--type', 'incremental');
      attempt(threads, 'backup', '--verify', 'latest', '--output', backups);
      attempt(threads, 'restore', '--file', 'latest', '--backup-dir', backups, '--yes');
      attempt(
        threads,
        'restore',
        '--file',
        'latest',
        '--backup-dir',
        backups,
        '--target',
        restored,
        '--yes',
      );
      attempt(threads, 'integrity');
      attempt(threads, 'drill', '--backup-dir', backups);
    }
    expect([...statuses].sort()).toEqual([0, 4]);
    expect(
      readdirSync(path.join(root, '.kg')).filter((name) =>
        /^(restore-(staging|journal)|\.kg-)/.test(name),
      ),
    ).toEqual([]);
  });

  test('bytes in a file, a backup leaves no files, and a restore rolls everything back', () => {
    const { backups, root, limited, made } = setUp();
    const { status, stderr } = limited('--fsize=100000', 'backup', '--output', backups);
    expect({ status, stderr }).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/File too large.*\[KG_LIMIT\][^]*ulimit -f/),
    });
    expect(made()).toEqual([]);
    expect(limited('--fsize=100000000', 'backup', '--output', backups).status).toBe(0);
    const noise = path.join(root, '.kg/plugins/noise.bin');
    writeFileSync(noise, 'newer');
    expect(
      limited('--fsize=100000', 'restore', '--file', 'latest', '--backup-dir', backups, '--yes'),
    ).toMatchObject({ status: 4, stderr: expect.stringMatching(isLimited) });
    expect(readFileSync(noise, 'utf8')).toBe('newer');
  });

  test('than 26 open files, everything works', () => {
    const { backups, limited } = setUp();
    const works = (...args) =>
      expect(limited('--nofile=26:26', ...args), args.join(' ')).toMatchObject({ status: 0 });
    works('backup', '--output', backups);
    works('backup', '--output', backups, '--type', 'incremental');
    works('backup', '--verify', 'latest', '--output', backups);
    works('restore', '--file', 'latest', '--backup-dir', backups, '--yes');
    works('integrity');
    works('drill', '--backup-dir', backups);
  });
});
