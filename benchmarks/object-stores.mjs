// Backups in a real object store on loopback (SeaweedFS), against the usual ways to get one there.
//
// The server runs on the same machine and takes about as much CPU as the client. So the times favour
// no contender, but are longer than with a server elsewhere. The CPU time is that of the client alone.

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import path from 'node:path';

import { BUCKET, startObjectStore } from '../__test__/support/object-store.mjs';
import { nativeParts } from '../lib/native-parts.mjs';
import { TAKE_COPY } from './contenders.mjs';
import { median } from './measure.mjs';
import { run } from './run.mjs';
import { spread } from './tables.mjs';

const kg = `${nativeParts().kgPath} diag`;
const python = (code) => `python3 -c '
import boto3, os, sys
s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
bucket, prefix, store = os.environ["BUCKET"], os.environ["PREFIX"], os.environ["STORE"]
${code}'`;
const UPLOAD = python(`for name in os.listdir(store):
    if name.startswith("kg-backup"): s3.upload_file(store + "/" + name, bucket, prefix + "/" + name)`);
const DOWNLOAD = python(`os.makedirs(store, exist_ok=True)
for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix + "/")["Contents"]:
    name = item["Key"].rsplit("/")[-1]
    if name.startswith("kg-backup"): s3.download_file(bucket, item["Key"], store + "/" + name)`);
const RESTIC =
  'RESTIC_PASSWORD=bench restic -q --cache-dir $COPY.cache -r s3:$AWS_ENDPOINT_URL/$BUCKET/$PREFIX';

const CONTENDERS = [
  {
    name: 'this project, to the object store',
    backup: `${kg} backup --quiet --project $PROJECT --output s3://$BUCKET/$PREFIX`,
    restore: `${kg} restore --quiet --file latest --backup-dir s3://$BUCKET/$PREFIX --target $RESTORED --yes`,
  },
  {
    name: 'this project, to a directory',
    backup: `${kg} backup --quiet --project $PROJECT --output $STORE`,
    restore: `${kg} restore --quiet --file latest --backup-dir $STORE --target $RESTORED --yes`,
  },
  {
    name: 'this project, to a directory, then boto3',
    needs: ['boto3'],
    backup: `${kg} backup --quiet --project $PROJECT --output $STORE; ${UPLOAD}; rm -r $STORE`,
    restore: `${DOWNLOAD}; ${kg} restore --quiet --file latest --backup-dir $STORE --target $RESTORED --yes`,
  },
  {
    name: '`.backup`, tar, pigz -6, boto3',
    needs: ['boto3', 'sqlite3', 'pigz'],
    backup: `${TAKE_COPY}
      tar -C $COPY -c . | pigz -6 -q | ${python('s3.upload_fileobj(sys.stdin.buffer, bucket, prefix + "/a.tar.gz")')}
      rm -r $COPY/*`,
    restore: `${python('s3.download_fileobj(bucket, prefix + "/a.tar.gz", sys.stdout.buffer)')} | pigz -q -dc | tar -C $RESTORED -x; sync -f $RESTORED`,
  },
  {
    name: '`.backup`, restic',
    needs: ['restic', 'sqlite3'],
    prepare: `${RESTIC} init`,
    backup: `${TAKE_COPY}
      ${RESTIC} backup $COPY
      rm -r $COPY/*`,
    restore: `${RESTIC} restore latest --target $RESTORED; sync -f $RESTORED`,
  },
];

function isThere(tool) {
  const [command, ...args] =
    tool === 'boto3' ? ['python3', '-c', 'import boto3'] : ['sh', '-c', `command -v ${tool}`];
  return spawnSync(command, args).status === 0;
}

/** Runs a command and returns its time, and the CPU time of all its processes, in seconds. */
async function timed(script, env) {
  const { seconds, cpu } = await run(
    `exec 3>&1; TIMEFORMAT='{"cpu": [%U, %S]}'; { time { ${script}; } >/dev/null 2>/dev/null; } 2>&3`,
    env,
  );
  return { seconds, cpu: cpu[0] + cpu[1] };
}

/** Measures a full backup into an empty store, and its restore. Returns the table. */
export async function objectStores(project, dir, runs) {
  const server = await startObjectStore();
  const present = CONTENDERS.filter(({ name, needs = [] }) => {
    const missing = needs.filter((tool) => !isThere(tool));
    if (missing.length > 0)
      console.log(`Left out, not available (${missing.join(' and ')} not installed): ${name}`);
    return missing.length === 0;
  });
  const results = present.map(() => ({ backup: [], restore: [] }));
  try {
    for (let round = 0; round <= runs; round += 1) {
      for (const [index, { prepare, ...steps }] of present.entries()) {
        const place = (name) => path.join(dir, 'object-stores', name);
        const env = {
          ...server.env,
          PROJECT: project,
          BUCKET,
          PREFIX: `bench/${round}-${index}`,
          STORE: place('store'),
          COPY: place('copy'),
          RESTORED: place('restored'),
        };
        mkdirSync(env.COPY, { recursive: true });
        mkdirSync(env.RESTORED);
        // Each contender begins without a cache.
        rmSync(path.join(project, '.kg/cache'), { recursive: true, force: true });
        if (prepare) await run(prepare, env);
        for (const step of ['backup', 'restore']) {
          execFileSync('sync');
          const figures = await timed(steps[step], env);
          if (round > 0) results[index][step].push(figures);
        }
        rmSync(place(''), { recursive: true });
      }
    }
  } finally {
    await server.stop();
  }
  return tableOf(present, results);
}

function tableOf(contenders, results) {
  const figures = (step, key) => results.map((result) => result[step].map((run) => run[key]));
  const columns = [
    ['backup', 'seconds'],
    ['backup', 'cpu'],
    ['restore', 'seconds'],
    ['restore', 'cpu'],
  ].map(([step, key]) => {
    const of = figures(step, key);
    return of.map((numbers) => [spread(numbers), (median(numbers) / median(of[0])).toFixed(2)]);
  });
  const row = (cells) => `| ${cells.join(' | ')} |`;
  return [
    row(['', 'backup s', 'ratio', 'CPU s', 'ratio', 'restore s', 'ratio', 'CPU s', 'ratio']),
    row(Array(9).fill('---')),
    ...contenders.map(({ name }, index) =>
      row([name, ...columns.flatMap((column) => column[index])]),
    ),
  ].join('\n');
}
