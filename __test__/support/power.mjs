// A power loss, replayed: a file system in a file, whose bytes are taken while what was not synced is still in memory alone.

import { spawnSync } from 'node:child_process';
import { copyFileSync, constants, mkdirSync } from 'node:fs';
import path from 'node:path';

import { onTestFinished } from 'vitest';

import { kgPath, run } from './processes.mjs';
import { temporaryDirectory } from './project.mjs';
import { isRoot } from './users.mjs';

/** The calls before and after each of which the power may be lost. */
const CALLS = 'fsync,fdatasync,rename,renameat,renameat2,linkat,unlink,unlinkat';
/** Nothing is written back by itself while a test runs, and a rename does not wait for the data of its file. */
const OPTIONS = 'loop,commit=300,noauto_da_alloc';

/** Whether this process may mount a file system from a file. */
export const canMount =
  isRoot &&
  spawnSync('sh', ['-c', 'losetup -f && command -v mkfs.ext4'], { stdio: 'ignore' }).status === 0;

/** A file system of its own. `root` is where it is mounted. */
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
    /** What is there now is where each run starts from. */
    freeze() {
      unmount();
      copyTo(image, frozen);
      mount(image);
    },
    /**
     * Runs `kg` from there until its call number `k`, which it does not make, and loses the power. What had reached the disk by
     * then is mounted. Returns false if the run came to its end before.
     */
    loseAt(k, args, cwd) {
      unmount();
      copyTo(frozen, image);
      mount(image);
      const inject = `inject=${CALLS}:error=EIO:signal=KILL:when=${k}`;
      const { signal, status } = spawnSync(
        'strace',
        ['-f', '-o', '/dev/null', '-e', `trace=${CALLS}`, '-e', inject, kgPath, ...args],
        { cwd, encoding: 'utf8' },
      );
      copyTo(image, lost);
      unmount();
      mount(lost);
      return signal === 'SIGKILL' || status === 137;
    },
  };
}
