// The contenders, each described by shell commands. To add one, add an object to `CONTENDERS`.
//
// Each command gets these variables:
//   PROJECT   the root of the project
//   STORE     where backups are kept: empty at first, then growing
//   COPY      a directory for temporary data
//   RESTORED  an empty directory to restore into
//
// A command ends when the data that it keeps is on disk. A command that prints JSON reports its own
// time in `seconds`, without the start of its process.
//
// Choices favour the peers: `sqlite3` makes its copy with `--async` because the copy need not
// survive a crash.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { root } from '../scripts/setup.mjs';

const node = `exec ${process.execPath} --expose-gc ${path.join(root, 'benchmarks')}`;

/** Copies the database as it is at one moment, and the rest of `.kg`, to `$COPY`. */
export const TAKE_COPY = `sqlite3 $PROJECT/.kg/knowledge.db ".backup --async $COPY/knowledge.db"
  find $PROJECT/.kg -mindepth 1 -maxdepth 1 ! -name 'knowledge.db*' -exec cp -r {} $COPY/ ';'`;
/**
 * Deletes the copy first, so that it is never written to disk. Then syncs each file and directory.
 */
const SYNC_STORE = 'rm -r $COPY/*; find $STORE -exec sync {} +';
/** One call for the file system, because a project may have very many files. */
const SYNC_RESTORED = 'sync -f $RESTORED';
const NEWEST = '$(ls -t $STORE/* | head -n 1)';

/** Returns the contender that is this project with these options of `createBackupManager`. */
function own(key, name, options) {
  const call = (what) =>
    `${node}/host.mjs $PROJECT $STORE $RESTORED ${what} '${JSON.stringify(options)}'`;
  return {
    key,
    name,
    isHost: true,
    backup: call('backup'),
    incremental: call('incremental'),
    verify: call('verify'),
    restore: call('restore'),
    refuses: () => refuses(call('nothing')),
  };
}

const AGE_IDENTITY = path.join(root, 'benchmarks/age-identity');
const AGE_RECIPIENT = 'age1rwr2hu4mw7evx8yy5986uxf3ectsaltyuhlplavf0gxukqxpndrq4p0anf';

/** Returns a contender that sends a tar of the copy through a compressor. */
function pipeline(key, tool, compress, ending) {
  return {
    key,
    name: `sqlite3 .backup, tar, ${compress}`,
    needs: ['sqlite3', 'tar', tool],
    backup: `${TAKE_COPY}
      tar -C $COPY -c . | ${compress} -q > $STORE/$(date +%s%N).${ending}
      ${SYNC_STORE}`,
    verify: `${tool} -q -t ${NEWEST}; sha256sum ${NEWEST}`,
    restore: `${tool} -q -dc ${NEWEST} | tar -C $RESTORED -x; ${SYNC_RESTORED}`,
  };
}

const nodeTar = (what) => `${node}/node-tar.mjs $PROJECT $STORE $COPY $RESTORED ${what}`;
const RESTIC = 'RESTIC_PASSWORD=bench restic -q --cache-dir $COPY.cache -r $STORE';
const BORG =
  'BORG_BASE_DIR=$COPY.borg BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes borg';

/**
 * restic and borg find by themselves the data that they already have. Each backup is a full one and
 * costs as much as an incremental one.
 */
const restic = {
  key: 'restic',
  name: 'sqlite3 .backup, restic',
  needs: ['sqlite3', 'restic'],
  prepare: `${RESTIC} init`,
  backup: `${TAKE_COPY}
    ${RESTIC} backup $COPY
    ${SYNC_STORE}`,
  verify: `${RESTIC} check --read-data`,
  restore: `${RESTIC} restore latest --target $RESTORED; ${SYNC_RESTORED}`,
};
const borg = {
  key: 'borg',
  name: 'sqlite3 .backup, borg (zstd,3)',
  needs: ['sqlite3', 'borg'],
  prepare: `${BORG} init --encryption none $STORE`,
  backup: `${TAKE_COPY}
    ${BORG} create --compression zstd,3 $STORE::$(date +%s%N) $COPY
    ${SYNC_STORE}`,
  verify: `${BORG} check --verify-data $STORE`,
  restore: `cd $RESTORED; ${BORG} extract $STORE::$(${BORG} list --last 1 --short $STORE); ${SYNC_RESTORED}`,
};

export const CONTENDERS = [
  own('ours', 'this project', {}),
  own('ours-1', 'this project, level 1', { compressionLevel: 1 }),
  own('ours-zstd', 'this project, zstd', { compression: 'zstd' }),
  own('ours-zstd-1', 'this project, zstd, level 1', { compression: 'zstd', compressionLevel: 1 }),
  own('ours-age', 'this project, encrypted', { encryption: { identityFile: AGE_IDENTITY } }),
  pipeline('gzip', 'gzip', 'gzip -6', 'tar.gz'),
  pipeline('pigz', 'pigz', 'pigz -6', 'tar.gz'),
  pipeline('zstd', 'zstd', 'zstd -3 -T0', 'tar.zst'),
  {
    key: 'pigz-age',
    name: 'sqlite3 .backup, tar, pigz -6, age',
    needs: ['sqlite3', 'tar', 'pigz', 'age'],
    backup: `${TAKE_COPY}
      tar -C $COPY -c . | pigz -6 -q | age -r ${AGE_RECIPIENT} > $STORE/$(date +%s%N).tar.gz.age
      ${SYNC_STORE}`,
    verify: `age -d -i ${AGE_IDENTITY} ${NEWEST} | pigz -q -t; sha256sum ${NEWEST}`,
    restore: `age -d -i ${AGE_IDENTITY} ${NEWEST} | pigz -q -dc | tar -C $RESTORED -x; ${SYNC_RESTORED}`,
  },
  {
    key: 'node-tar',
    name: 'better-sqlite3 backup(), npm tar',
    isHost: true,
    backup: nodeTar('backup'),
    verify: nodeTar('verify'),
    restore: nodeTar('restore'),
  },
  { ...restic, incremental: restic.backup },
  { ...borg, incremental: borg.backup },
];

/**
 * Returns the variables of the commands. Their paths are below `dir`, which only this contender
 * uses.
 */
export function places(dir, project) {
  const place = (name) => path.join(dir, name);
  return {
    PROJECT: project,
    STORE: place('store'),
    COPY: place('copy'),
    RESTORED: place('restored'),
  };
}

/**
 * Returns the contenders of `only` (default: all) that can run here. Prints the others with the
 * reason. Throws if `only` has an unknown key.
 */
export function available(only) {
  const unknown = only?.find((key) => !CONTENDERS.some((contender) => contender.key === key));
  if (unknown !== undefined)
    throw new Error(`${unknown} is none of ${CONTENDERS.map(({ key }) => key).join(', ')}`);
  return CONTENDERS.filter((contender) => only?.includes(contender.key) ?? true).filter(
    ({ name, needs = [], refuses }) => {
      const missing = needs.filter(
        (tool) => spawnSync('sh', ['-c', `command -v ${tool}`]).status !== 0,
      );
      const reason = missing.length > 0 ? `${missing.join(' and ')} not installed` : refuses?.();
      if (reason) console.log(`Left out, not available (${reason}): ${name}`);
      return !reason;
    },
  );
}

/** Returns why the installed build rejects the options, or `undefined` if it accepts them. */
function refuses(command) {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-bench-'));
  try {
    const env = { ...process.env, ...places(dir, dir) };
    const { status, stderr } = spawnSync('sh', ['-ec', command], { env, encoding: 'utf8' });
    return status === 0 ? undefined : (stderr.match(/^\S*Error.*$/m)?.[0] ?? stderr);
  } finally {
    rmSync(dir, { recursive: true });
  }
}
