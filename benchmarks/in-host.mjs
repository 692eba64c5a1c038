// Measures one call inside a Node process that already runs, as a host does: its time and the
// stalls of the JavaScript thread.

import { readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';

/**
 * Returns the memory of the processes `pids` in bytes. A page that several of them share counts
 * once. A process that has ended counts as 0.
 */
export function memoryBytes(pids) {
  let kilobytes = 0;
  for (const pid of pids) {
    try {
      kilobytes += Number(
        readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8').match(/^Pss:\s+(\d+)/m)[1],
      );
    } catch {
      // The process has just ended.
    }
  }
  return kilobytes * 1024;
}

/** Prints the measurements of `work` as JSON. Needs `node --expose-gc`. */
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
