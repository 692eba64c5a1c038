// Describes the software of others in the native parts: an SBOM in the form of CycloneDX for
// machines, and the licenses for people.

import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';

import { manifest, platforms, root } from './platforms.mjs';

/** Names of files with a license or a notice. */
const LICENSE_FILE = /^(licen[cs]e|copying|copyright|notice|unlicense)/i;

const cargo = (...args) =>
  execFileSync('cargo', args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });

/**
 * Returns the crates that are linked into the native parts of a platform, sorted by name, each with
 * the crates that it depends on. Build scripts and procedural macros only run during the build.
 */
export function crates(platform) {
  const { packages, resolve } = JSON.parse(
    cargo(
      ...['metadata', '--locked', '--format-version', '1'],
      ...['--filter-platform', platforms[platform].target],
    ),
  );
  const packageOf = new Map(packages.map((entry) => [entry.id, entry]));
  const nodeOf = new Map(resolve.nodes.map((node) => [node.id, node]));
  const isLinked = (id) =>
    packageOf
      .get(id)
      .targets.some(({ kind }) => kind.some((name) => /^(r?lib|staticlib)$/.test(name)));
  const linked = (id) =>
    nodeOf
      .get(id)
      .deps.filter(({ dep_kinds: kinds }) => kinds.some(({ kind }) => kind === null))
      .map(({ pkg }) => pkg)
      .filter(isLinked);
  const found = new Map();
  const visit = (id) => {
    if (found.has(id)) return;
    const dependencies = linked(id);
    found.set(id, { ...packageOf.get(id), dependencies });
    dependencies.forEach(visit);
  };
  visit(resolve.root);
  found.delete(resolve.root);
  return {
    direct: linked(resolve.root),
    all: [...found.values()].sort((a, b) => (a.id < b.id ? -1 : 1)),
  };
}

/** Returns the checksums of `Cargo.lock` by `name@version`. */
function checksums() {
  const lock = readFileSync(path.join(root, 'Cargo.lock'), 'utf8');
  const entries = lock.matchAll(
    /^name = "(.+)"\nversion = "(.+)"\nsource = .+\nchecksum = "(.+)"$/gm,
  );
  return new Map([...entries].map(([, name, version, sum]) => [`${name}@${version}`, sum]));
}

const purl = ({ name, version }) => `pkg:cargo/${name}@${version}`;

/** Returns the SBOM of the package of a platform, in CycloneDX 1.6. */
export function sbom(platform, name) {
  const sums = checksums();
  const { direct, all } = crates(platform);
  const reference = new Map(all.map((crate) => [crate.id, purl(crate)]));
  const self = `pkg:npm/${name.replace('@', '%40')}@${manifest.version}`;
  const dependsOn = (ids) => [...new Set(ids.map((id) => reference.get(id)))].sort();
  return {
    $schema: 'http://cyclonedx.org/schema/bom-1.6.schema.json',
    bomFormat: 'CycloneDX',
    specVersion: '1.6',
    version: 1,
    metadata: {
      component: {
        type: 'library',
        'bom-ref': self,
        name,
        version: manifest.version,
        purl: self,
        licenses: [{ expression: manifest.license }],
      },
    },
    components: all.map((crate) => ({
      type: 'library',
      'bom-ref': purl(crate),
      name: crate.name,
      version: crate.version,
      purl: purl(crate),
      ...(crate.license && { licenses: [{ expression: spdx(crate.license) }] }),
      hashes: [{ alg: 'SHA-256', content: sums.get(`${crate.name}@${crate.version}`) }],
    })),
    dependencies: [
      { ref: self, dependsOn: dependsOn(direct) },
      ...all.map((crate) => ({ ref: purl(crate), dependsOn: dependsOn(crate.dependencies) })),
    ],
  };
}

/** Old crates separate licenses by `/`, which means OR. */
const spdx = (license) => license.replaceAll('/', ' OR ');

/** Returns the license files below a directory, also those of a C library inside a crate. */
function licenseFiles(directory, depth = 2) {
  const entries = readdirSync(directory, { withFileTypes: true });
  const here = entries
    .filter((entry) => entry.isFile() && LICENSE_FILE.test(entry.name))
    .map((entry) => path.join(directory, entry.name));
  const below = depth === 0 ? [] : entries.filter((entry) => entry.isDirectory());
  return [
    ...here,
    ...below.flatMap((entry) => licenseFiles(path.join(directory, entry.name), depth - 1)),
  ];
}

const LICENSES = 'share/doc/rust/licenses';

/** Returns a license text of the toolchain. */
function standardText(file) {
  const sysroot = execFileSync('rustc', ['--print', 'sysroot'], { encoding: 'utf8' }).trim();
  return readFileSync(path.join(sysroot, LICENSES, file), 'utf8');
}

/** The parts of the toolchain that end up in each native part. */
function toolchain(platform) {
  const library = {
    name: 'The Rust standard library',
    license: 'MIT OR Apache-2.0',
    texts: [`Copyright (c) The Rust Project Contributors\n\n${standardText('MIT.txt')}`],
  };
  const llvm = {
    name: 'LLVM compiler-rt and libunwind',
    license: 'Apache-2.0 WITH LLVM-exception',
    texts: [`${standardText('Apache-2.0.txt')}\n${standardText('LLVM-exception.txt')}`],
  };
  return platform.startsWith('linux') ? [library, llvm] : [library];
}

/** Returns the license texts of a crate. Some crates name their license but lack its text. */
function texts({ name, license, authors, repository, manifest_path: file }) {
  const own = licenseFiles(path.dirname(file)).map((found) => readFileSync(found, 'utf8'));
  if (own.length > 0) return own;
  if (!license?.includes('MIT')) throw new Error(`the crate ${name} has no license text`);
  const holders = authors.length > 0 ? authors.join(', ') : `The authors of ${repository}`;
  return [`Copyright (c) ${holders}\n\n${standardText('MIT.txt')}`];
}

/**
 * Returns the licenses of everything that the native parts of a platform contain. A text that
 * several crates share stands there once, below their names.
 */
export function notices(platform) {
  const parts = [
    ...toolchain(platform),
    ...crates(platform).all.map((crate) => ({
      name: `${crate.name} ${crate.version}`,
      license: spdx(crate.license ?? 'see its text'),
      texts: texts(crate),
    })),
  ];
  // Copies of a license often differ in their line breaks alone.
  const used = new Map();
  for (const { name, texts } of parts) {
    for (const text of texts) {
      const words = text.replace(/\s+/g, ' ').trim();
      const { names } = used.get(words) ?? used.set(words, { text, names: new Set() }).get(words);
      names.add(name);
    }
  }
  const rule = '-'.repeat(80);
  const sections = [...used.values()].map(
    ({ text, names }) =>
      `${rule}\n${[...names].join(', ')}\n${rule}\n\n${text.replaceAll('\r\n', '\n').trim()}\n`,
  );
  return [
    `The native parts of ${manifest.name} contain the following software. SQLite, which`,
    'libsqlite3-sys contains, is in the public domain.',
    '',
    ...parts.map(({ name, license }) => `${name}: ${license}`),
    '',
    ...sections,
  ].join('\n');
}
