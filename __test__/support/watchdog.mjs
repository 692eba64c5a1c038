// Servers that end with the process that started them, in whatever way it ends.

import { spawn } from 'node:child_process';

// The shell waits on a pipe from this process, and kills the server when that ends.
const SCRIPT = `
exec 3<&0
"$@" > "$LOG" 2>&1 < /dev/null 3<&- &
server=$!
(cat <&3 > /dev/null; kill -9 $server) &
wait $server
`;

/** Starts a server. `log` is the file for its output. */
export function startServer(command, { log, env = {} }) {
  const child = spawn('sh', ['-c', SCRIPT, 'sh', ...command], {
    env: { ...process.env, ...env, LOG: log },
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  return {
    hasEnded: () => child.exitCode !== null,
    async stop() {
      child.stdin.end();
      await ended;
    },
  };
}
