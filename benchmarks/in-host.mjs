// Measures one call inside a Node process that is there anyway, as a host is: its time, and how the JavaScript thread stalled.

import { readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';

/** What the processes `pids` hold in memory, in bytes, a page that several of them share counted once. Those that ended hold nothing. */
export function memoryBytes(pids) {
  let kilobytes = 0;
  for (const pid of pids) {
    try {
      kilobytes += Number(
        readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8').match(/^Pss:\s+(\d+)/m)[1],
      );
    } catch {
      // It has just ended.
    }
  }
  return kilobytes * 1024;
}

/** Prints the figures of `work` as JSON. Needs `node --expose-gc`. */
export async function measureCall(work) {
  global.gc();
  const baseBytes = memoryBytes([process.pid]);
  const delays = monitorEventLoopDelay({ resolution: 1 });
  delays.enable();
  const began = performance.now();
  await work();
  const seconds = (performance.now() - began) / 1000;
  delays.disable();
  console.log(
    JSON.stringify({
      seconds,
      baseBytes,
      stallP99Ms: delays.percentile(99) / 1e6,
      stallMaxMs: delays.max / 1e6,
    }),
  );
}
