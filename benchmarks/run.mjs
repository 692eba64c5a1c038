// Runs one command and measures its time and the memory of all of its processes together.

import { spawn } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';

import { memoryBytes } from './in-host.mjs';

const SAMPLE_INTERVAL_MS = 5;

/**
 * Returns the process and its descendants. Reads them from /proc because our worker has its own
 * process group.
 */
function tree(pid) {
  try {
    const tasks = readdirSync(`/proc/${pid}/task`);
    const children = tasks.flatMap((task) =>
      readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean),
    );
    return [pid, ...children.flatMap((child) => tree(Number(child)))];
  } catch {
    return [];
  }
}

/**
 * Runs `script` in bash with `env`. With `sampled`, samples the memory, which slows the script down
 * a little. Kills the script after `limitSeconds` and sets `isUnfinished` in the result. The result
 * includes what the script printed as JSON.
 */
export function run(script, env, { sampled = false, limitSeconds } = {}) {
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const child = spawn('bash', ['-eo', 'pipefail', '-c', script], {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let printed = '';
    let complaints = '';
    let peakBytes = 0;
    let isUnfinished = false;
    child.stdout.on('data', (text) => (printed += text));
    child.stderr.on('data', (text) => (complaints += text));
    const sample = () => (peakBytes = Math.max(peakBytes, memoryBytes(tree(child.pid))));
    const sampler = sampled ? setInterval(sample, SAMPLE_INTERVAL_MS) : undefined;
    const end = () => {
      isUnfinished = true;
      for (const pid of tree(child.pid)) process.kill(pid, 'SIGKILL');
    };
    const limit = limitSeconds === undefined ? undefined : setTimeout(end, limitSeconds * 1000);
    child.on('error', reject);
    child.on('close', (status) => {
      clearInterval(sampler);
      clearTimeout(limit);
      const seconds = (performance.now() - began) / 1000;
      if (status !== 0 && !isUnfinished)
        reject(new Error(`${script}\nfailed (${status}): ${complaints || printed}`));
      else
        resolve({
          seconds,
          ...(sampled && { peakBytes }),
          isUnfinished,
          ...(printed.startsWith('{') && JSON.parse(printed)),
        });
    });
  });
}
