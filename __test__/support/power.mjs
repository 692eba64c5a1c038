// A simulated loss of power. The file system is an image file, which is copied while data that was
// not synced is still only in memory.

import { spawnSync } from 'node:child_process';
import { copyFileSync, constants, mkdirSync } from 'node:fs';
import path from 'node:path';

import { onTestFinished } from 'vitest';

import { kgPath, run } from './processes.mjs';
import { temporaryDirectory } from './project.mjs';
import { isRoot } from './users.mjs';

/** The calls that make changes durable. */
export const SYNCS = 'fsync,fdatasync,syncfs';
/** The power can be lost before or after each of these calls. */
const CALLS = `${SYNCS},rename,renameat,renameat2,linkat,unlink,unlinkat`;
/**
 * These options prevent writeback during a test and make a rename not wait for the data of its
 * file.
 */
const OPTIONS = 'loop,commit=300,noauto_da_alloc';

/** Whether this process can mount an image file. */
export const canMount =
  isRoot &&
  spawnSync('sh', ['-c', 'losetup -f && command -v mkfs.ext4'], { stdio: 'ignore' }).status === 0;

/** Makes a separate file system, mounted at `root`. */
export function makeDisk(megabytes = 48) {
  const dir = temporaryDirectory();
  const [image, frozen, lost, root] = ['image', 'frozen', 'lost', 'mounted'].map((name) =>
    path.join(dir, name),
  );
  run('truncate', ['-s', `${megabytes}M`, image]);
  run('mkfs.ext4', ['-q', '-E', 'lazy_itable_init=0,lazy_journal_init=0', image]);
  mkdirSync(root);
  const mount = (file) => run('mount', ['-o', OPTIONS, file, root]);
  const unmount = () => spawnSync('umount', [root]);
  onTestFinished(unmount);
  mount(image);
  const copyTo = (from, to) => copyFileSync(from, to, constants.COPYFILE_FICLONE);
  return {
    root,
    /** Makes the current state the starting point of each run. */
    freeze() {
      unmount();
      copyTo(image, frozen);
      mount(image);
    },
    /**
     * Runs `kg` from the frozen state up to number `k` of `calls`, which fails, and cuts the power.
     * Mounts the data that had reached the disk. Returns false if the run ended before that call.
     */
    loseAt(k, args, cwd, calls = CALLS) {
      unmount();
      copyTo(frozen, image);
      mount(image);
      const inject = `inject=${calls}:error=EIO:signal=KILL:when=${k}`;
      const { signal, status } = spawnSync(
        'strace',
        ['-f', '-o', '/dev/null', '-e', `trace=${calls}`, '-e', inject, kgPath, ...args],
        { cwd, encoding: 'utf8' },
      );
      copyTo(image, lost);
      unmount();
      mount(lost);
      return signal === 'SIGKILL' || status === 137;
    },
  };
}
