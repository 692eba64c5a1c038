// Who is measured: what each does, as shell commands. To add one, add an object to `CONTENDERS`.
//
// Each command gets these as `$NAME`: PROJECT (the project's root), STORE (where backups are kept, empty at first and then growing),
// COPY (a directory for what is needed meanwhile), RESTORED (an empty directory to restore into). A command ends when what it kept
// is on the disk. One that prints JSON says itself how many `seconds` it took, without the start of its process.
//
// Peers are given the benefit: the copy by `sqlite3` is made with `--async`, as it need not survive a crash.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { root } from '../scripts/setup.mjs';

const node = `exec ${process.execPath} --expose-gc ${path.join(root, 'benchmarks')}`;

/** The database as it is at one moment, and what else the project has, in `$COPY`. */
const TAKE_COPY = `sqlite3 $PROJECT/.kg/knowledge.db ".backup --async $COPY/knowledge.db"
  find $PROJECT/.kg -mindepth 1 -maxdepth 1 ! -name 'knowledge.db*' -exec cp -r {} $COPY/ ';'`;
/** The copy goes first, so that it is never written out. Then each file and directory is synced. */
const SYNC_STORE = 'rm -r $COPY/*; find $STORE -exec sync {} +';
const SYNC_RESTORED = 'find $RESTORED -exec sync {} +';
const NEWEST = '$(ls -t $STORE/* | head -n 1)';

/** This project, with options of `createBackupManager`. */
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

/** A tar of the copy through a compressor. */
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

/** A repository that finds by itself what it has already: its every backup is a full one, and costs what an incremental one does. */
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
  own('ours-zstd', 'this project, zstd', { compression: 'zstd' }),
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

/** What `$NAME` in commands stands for, below a directory that is the contender's own. */
export function places(dir, project) {
  const place = (name) => path.join(dir, name);
  return {
    PROJECT: project,
    STORE: place('store'),
    COPY: place('copy'),
    RESTORED: place('restored'),
  };
}

/** Those of `only` (all, where it is undefined) that can run here. The others are named, with the reason. */
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

/** Why the installed build does not take the options; `undefined` where it does. */
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
