// Checks that a native part runs where its package says: on its processor, with the oldest C library
// or macOS that is supported, and without a library that such a system may lack.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';

import { ADDON, OLDEST_GLIBC, OLDEST_MACOS, PROGRAM, sizeLimits } from './platforms.mjs';

const capture = (command, args) =>
  execFileSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 28 });

/** The reader of object files in the Rust toolchain knows ELF and Mach-O. */
function readobj() {
  const host = capture('rustc', ['-vV']).match(/^host: (.+)$/m)[1];
  const sysroot = capture('rustc', ['--print', 'sysroot']).trim();
  const file = path.join(sysroot, 'lib/rustlib', host, 'bin/llvm-readobj');
  if (!existsSync(file)) execFileSync('rustup', ['component', 'add', 'llvm-tools']);
  return file;
}

/** Compares versions such as `2.17` by their numbers. */
const compareVersions = (one, other) => one.localeCompare(other, 'en', { numeric: true });

const GLIBC = /^(lib(c|m|pthread|dl|rt|util)\.so\.\d|ld-linux-(x86-64|aarch64)\.so\.\d)$/;
const MACHINES = { x64: 'EM_X86_64', arm64: 'EM_AARCH64' };

function elfProblems(platform, file) {
  const [, cpu, libc] = platform.split('-');
  const [report] = JSON.parse(
    capture(readobj(), [
      ...['--elf-output-style=JSON', '--file-headers', '--needed-libs', '--version-info'],
      file,
    ]),
  );
  const problems = [];
  const machine = report.ElfHeader?.Machine.Name;
  if (machine !== MACHINES[cpu]) problems.push(`is for ${machine}`);
  const allowed = libc === 'gnu' ? GLIBC : /^libc(\.musl-\w+)?\.so(\.1)?$/;
  for (const library of report.NeededLibraries ?? [])
    if (!allowed.test(library)) problems.push(`needs ${library}`);
  if (path.basename(file) === ADDON && !report.NeededLibraries?.length)
    problems.push('contains a C library of its own, apart from that of Node');
  const newest = (report.VersionRequirements ?? [])
    .flatMap(({ Dependency }) => Dependency.Entries.map(({ Entry }) => Entry.Name))
    .filter((name) => name.startsWith('GLIBC_'))
    .sort(compareVersions)
    .at(-1);
  if (newest && compareVersions(newest, `GLIBC_${OLDEST_GLIBC}`) > 0)
    problems.push(`needs ${newest}`);
  return problems;
}

const MAGIC = { signature: 0xfade0cc0, directory: 0xfade0c02 };
const LC_CODE_SIGNATURE = 0x1d;
const LC_BUILD_VERSION = 0x32;
const LC_VERSION_MIN_MACOSX = 0x24;
const LC_LOAD_DYLIB = 0xc;
const MACHO_64 = 0xfeedfacf;
const CPUS = { x64: 0x01000007, arm64: 0x0100000c };

/** Returns the load commands of a Mach-O file, each with its bytes. */
function loadCommands(bytes) {
  const commands = [];
  let at = 32;
  for (let left = bytes.readUInt32LE(16); left > 0; left -= 1) {
    const size = bytes.readUInt32LE(at + 4);
    commands.push({
      kind: bytes.readUInt32LE(at) & 0x7fffffff,
      body: bytes.subarray(at, at + size),
    });
    at += size;
  }
  return commands;
}

/** macOS on arm64 kills a program whose pages do not match the hashes of its signature. */
function signatureProblems(bytes, command) {
  if (!command) return ['has no signature'];
  const blob = bytes.subarray(command.readUInt32LE(8));
  if (blob.readUInt32BE(0) !== MAGIC.signature) return ['has an unreadable signature'];
  const directory = blob.subarray(blob.readUInt32BE(16));
  if (directory.readUInt32BE(0) !== MAGIC.directory) return ['has an unreadable signature'];
  const [hashes, count, end] = [16, 28, 32].map((offset) => directory.readUInt32BE(offset));
  const pageBytes = 2 ** directory[39];
  for (let page = 0; page < count; page += 1) {
    const content = bytes.subarray(page * pageBytes, Math.min((page + 1) * pageBytes, end));
    const digest = createHash('sha256').update(content).digest();
    if (!digest.equals(directory.subarray(hashes + page * 32, hashes + (page + 1) * 32)))
      return [`does not match its signature in page ${page}`];
  }
  return [];
}

function machProblems(platform, file) {
  const bytes = readFileSync(file);
  const [, cpu] = platform.split('-');
  if (bytes.readUInt32LE(0) !== MACHO_64) return ['is not a Mach-O file'];
  const problems = [];
  if (bytes.readUInt32LE(4) !== CPUS[cpu]) problems.push('is for another processor');
  const commands = loadCommands(bytes);
  const find = (kind) => commands.find((command) => command.kind === kind)?.body;
  const oldest =
    find(LC_BUILD_VERSION)?.readUInt32LE(12) ?? find(LC_VERSION_MIN_MACOSX)?.readUInt32LE(8) ?? 0;
  const version = `${oldest >> 16}.${(oldest >> 8) & 0xff}`;
  if (version !== OLDEST_MACOS) problems.push(`is built for macOS ${version}`);
  for (const { body } of commands.filter(({ kind }) => kind === LC_LOAD_DYLIB)) {
    const library = body.subarray(body.readUInt32LE(8)).toString().replace(/\0.*$/s, '');
    if (!/^\/(usr\/lib|System\/Library)\//.test(library)) problems.push(`needs ${library}`);
  }
  if (cpu === 'arm64') problems.push(...signatureProblems(bytes, find(LC_CODE_SIGNATURE)));
  return problems;
}

/** Returns what is wrong with the native parts of a platform in a directory, one line each. */
export function partProblems(platform, directory) {
  return [ADDON, PROGRAM].flatMap((part) => {
    const file = path.join(directory, part);
    if (!existsSync(file)) return [`${platform}: ${part} is missing`];
    const { size, mode } = statSync(file);
    if (size === 0) return [`${platform}: ${part} is empty`];
    const problems = [];
    if (size > sizeLimits[part]) problems.push(`has ${size} bytes, more than ${sizeLimits[part]}`);
    if (part === PROGRAM && (mode & 0o111) !== 0o111) problems.push('is not executable');
    const check = platform.startsWith('darwin') ? machProblems : elfProblems;
    return [...problems, ...check(platform, file)].map((text) => `${platform}: ${part} ${text}`);
  });
}
