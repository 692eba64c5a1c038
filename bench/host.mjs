// One call of the API in a process of its own, and what it costs its host: node host.mjs PROJECT BACKUPS CALL
// Prints JSON: how long it took, how long the JavaScript thread stalled (99th percentile and longest), and how much the
// memory of host and reader grew.

import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';

const [, , projectRoot, backupDir, call] = process.argv;

function memory(pid, field) {
  try {
    return Number(readFileSync(`/proc/${pid}/status`, 'utf8').match(new RegExp(`${field}:\\s+(\\d+)`))[1]) * 1024;
  } catch {
    return 0;
  }
}

function readers() {
  const children = readdirSync(`/proc/${process.pid}/task`).flatMap((task) =>
    readFileSync(`/proc/${process.pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean),
  );
  return children;
}

const manager = createBackupManager({ projectRoot, backupDir });
const calls = {
  backup: () => manager.createBackup(),
  incremental: () => manager.createBackup({ type: 'incremental' }),
  verify: () => manager.verifyBackup('latest'),
  restore: () => manager.restore({ backupId: 'latest', targetDir: `${backupDir}/restored` }),
};

let readerPeak = 0;
const sampler = setInterval(() => {
  readerPeak = Math.max(readerPeak, ...readers().map((pid) => memory(pid, 'VmHWM')));
}, 50);
global.gc?.();
writeFileSync('/proc/self/clear_refs', '5'); // resets the peak
const before = memory(process.pid, 'VmRSS');
const delays = monitorEventLoopDelay({ resolution: 1 });
delays.enable();
const began = performance.now();
const result = await calls[call]();
const seconds = (performance.now() - began) / 1000;
delays.disable();
clearInterval(sampler);
console.log(
  JSON.stringify({
    seconds,
    bytes: result.size,
    stallP99: delays.percentile(99) / 1e6,
    stallMax: delays.max / 1e6,
    grown: memory(process.pid, 'VmHWM') - before + readerPeak,
  }),
);
