// Random faults between `kg` and an object store: none of the backups that were reported done is
// missing or damaged, and the next clean run leaves nothing over.
//
// KG_FAULT_RUNS is the number of rounds, and KG_FAULT_SEED chooses the faults.

import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { KgError } from '@weavelogic/knowledge-graph-agent';
import { afterAll, beforeAll, expect, test } from 'vitest';

import { archives } from './support/conformance.mjs';
import { random, refusal } from './support/fault-proxy.mjs';
import { faultySetUpIn } from './support/faulty-store.mjs';
import { count } from './support/figures.mjs';
import { startObjectStore } from './support/object-store.mjs';

const isLong = process.env.KG_TEST_LONG === '1';
const ROUNDS = Number(process.env.KG_FAULT_RUNS ?? (isLong ? 500 : 30));
const SEED = Number(process.env.KG_FAULT_SEED ?? 7);
const MOST_BACKUPS = 6;
const ROUND_TIMEOUT_MS = 60_000;

let store;
beforeAll(async () => {
  store = await startObjectStore();
});
afterAll(() => store?.stop());

const setUp = faultySetUpIn(() => store);

const isList = (url) => url.includes('list-type=') || url.includes('uploads=');

/** Returns a fault that makes sense for a request. */
function faultFor({ method, url }, next) {
  const general = [
    'reset',
    'lose',
    refusal(503, 'SlowDown'),
    refusal(500, 'InternalError'),
    refusal(429, 'TooManyRequests', { 'retry-after': '0' }),
    { cut: 40 },
  ];
  if (method === 'GET' && !isList(url))
    general.push({
      change: (answer) => {
        const body = Buffer.from(answer.body);
        if (body.length > 0) body[next(body.length)] ^= 1 << next(8);
        return { ...answer, body };
      },
    });
  if (method !== 'GET' && method !== 'HEAD') general.push('twice');
  if (method === 'PUT')
    general.push({
      change: (answer) => ({ ...answer, headers: { ...answer.headers, etag: '"0"' } }),
    });
  if (method === 'POST' && url.includes('uploadId=')) general.push(refusal(200, 'InternalError'));
  return general[next(general.length)];
}

test(
  'random faults lose no backup that was reported done',
  async () => {
    const next = random(SEED);
    let oneIn = 0;
    const counts = { faults: 0, made: 0, refused: 0, restored: 0, unrestored: 0, deleted: 0 };
    const choose = (request) => {
      if (oneIn === 0 || next(oneIn) > 0) return null;
      counts.faults += 1;
      return faultFor(request, next);
    };
    const { root, prefix, faulty, plain, managerAt, other } = await setUp(choose);
    const file = path.join(root, '.kg/plugins/content.bin');
    const target = path.join(other, '.kg/plugins/content.bin');
    /** What was reported done and not deleted. */
    const done = new Map();
    const attempt = async (work) => {
      oneIn = [4, 8, 8, 16, 30][next(5)];
      const result = await work().catch((error) => error);
      oneIn = 0;
      if (result instanceof Error) expect(result, result.stack).toBeInstanceOf(KgError);
      // A process that lost its lock without being able to release it holds it for a minute.
      await store.objects.remove(`${prefix}/.kg-store.lock`).catch(() => {});
      return result;
    };
    const list = async () => (await plain.listBackups()).map(({ id }) => id);
    const expectRestored = async (id) => {
      expect(readFileSync(target).equals(done.get(id)), id).toBe(true);
    };

    for (let round = 0; round < ROUNDS; round += 1) {
      const content = randomBytes(next(5) === 4 ? 7_000_000 + next(12_000_000) : next(100_000));
      writeFileSync(file, content);
      const type = next(2) === 0 ? 'full' : 'incremental';
      const before = await list();
      const made = await attempt(() => faulty.createBackup({ type }));
      counts[made instanceof Error ? 'refused' : 'made'] += 1;
      const listed = await list();
      if (!(made instanceof Error)) {
        done.set(made.id, content);
        expect(await plain.verifyBackup(made.id), `round ${round}`).toBe(true);
      } else {
        // The sidecar may be there if no answer told so. Then the backup is whole.
        for (const id of listed.filter((one) => !before.includes(one))) {
          counts.listedAllTheSame = (counts.listedAllTheSame ?? 0) + 1;
          expect(await plain.verifyBackup(id), `round ${round}`).toBe(true);
        }
      }
      expect(listed, `round ${round}`).toEqual(expect.arrayContaining([...done.keys()]));

      const all = [...done.keys()];
      const chosen = all[next(Math.max(all.length, 1))];
      if (chosen !== undefined) {
        rmSync(other, { recursive: true, force: true });
        const restored = await attempt(() =>
          faulty.restore({ backupId: chosen, targetDir: other }),
        );
        counts[restored instanceof Error ? 'unrestored' : 'restored'] += 1;
        if (!(restored instanceof Error)) await expectRestored(chosen);
      }
      if (listed.length > MOST_BACKUPS) {
        const oldest = listed.at(-1);
        const removed = await attempt(() => faulty.deleteBackup(oldest, { cascade: true }));
        const left = await list();
        // What a failed removal leaves is whole, or is not listed.
        if (removed instanceof Error) {
          for (const id of left) expect(await plain.verifyBackup(id), `round ${round}`).toBe(true);
          for (const id of done.keys()) if (!left.includes(id)) done.delete(id);
        } else {
          counts.deleted += removed.length;
          for (const id of removed) done.delete(id);
          expect(left).toEqual(expect.arrayContaining([...done.keys()]));
        }
      }
    }

    for (const id of await list()) expect(await plain.verifyBackup(id)).toBe(true);
    for (const id of done.keys()) {
      rmSync(other, { recursive: true, force: true });
      await plain.restore({ backupId: id, targetDir: other });
      await expectRestored(id);
    }
    expect(counts.made).toBeGreaterThan(ROUNDS / 3);
    await managerAt(store.endpoint, { maxBackups: 100 }).createBackup();
    await managerAt(store.endpoint, { maxBackups: 100 }).prune();
    const names = await store.objects.names(prefix);
    const sidecars = names.filter((name) => name.endsWith('.manifest.json'));
    expect(sidecars.map((name) => name.slice(0, -'.manifest.json'.length))).toEqual(
      archives(names),
    );
    const known = /^(\.kg-store\.lock|kg-backup-.*(\.tar\.gz|\.manifest\.json))$/;
    expect(names.filter((name) => !known.test(name) && !name.startsWith('.kg-probe'))).toEqual([]);
    expect(await store.unfinishedUploads(prefix)).toEqual([]);
    count({ 'rounds of random faults': ROUNDS, 'random faults': counts.faults });
    if (process.env.KG_FAULT_RUNS)
      console.log(JSON.stringify({ seed: SEED, rounds: ROUNDS, ...counts }));
  },
  ROUNDS * ROUND_TIMEOUT_MS,
);
