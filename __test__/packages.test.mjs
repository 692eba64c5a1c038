// The packages of the platforms, and what a release refuses.

import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  readFileSync,
  readdirSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

import { describe, expect, test } from 'vitest';

import { PACKAGES } from '../lib/platform-packages.mjs';
import { platformName } from '../lib/platform-name.mjs';
import { partProblems } from '../scripts/binaries.mjs';
import { crates, notices, sbom } from '../scripts/dependencies.mjs';
import { installLocked } from '../scripts/locked.mjs';
import {
  ADDON,
  manifest,
  packageName,
  platformFiles,
  platforms,
  PROGRAM,
  sizeLimits,
} from '../scripts/platforms.mjs';
import { releaseProblems } from '../scripts/pack.mjs';
import { kgPath, repository, run } from './support/processes.mjs';
import { temporaryDirectory } from './support/project.mjs';

const read = (file) => readFileSync(path.join(repository, file), 'utf8');

test('npm/ has what `node scripts/platforms.mjs --write` writes', () => {
  expect(readdirSync(path.join(repository, 'npm')).sort()).toEqual(Object.keys(platforms).sort());
  for (const platform of Object.keys(platforms)) {
    for (const [file, content] of Object.entries(platformFiles(platform)))
      expect(read(`npm/${platform}/${file}`), `npm/${platform}/${file}`).toBe(content);
  }
});

test('all packages and the crate have one release number', () => {
  for (const platform of Object.keys(platforms))
    expect(JSON.parse(read(`npm/${platform}/package.json`)).version).toBe(manifest.version);
  expect(read('Cargo.toml')).toContain(`version = "${manifest.version}"`);
  expect(JSON.parse(read('package-lock.json')).version).toBe(manifest.version);
});

test('the loader, the docs and npm/ name the same platforms', () => {
  expect(Object.keys(PACKAGES)).toEqual(Object.keys(platforms));
  const table = read('docs/reference/platforms.md');
  for (const platform of Object.keys(platforms)) expect(table).toContain(`| \`${platform}\` |`);
});

describe('a release is refused', () => {
  /** Returns a directory with the native parts of the tests, which are no release. */
  function parts() {
    const directory = temporaryDirectory();
    for (const part of [ADDON, PROGRAM])
      copyFileSync(path.join(path.dirname(kgPath), part), path.join(directory, part));
    return directory;
  }

  test('if a part is missing', () => {
    expect(partProblems('linux-x64-gnu', temporaryDirectory())).toEqual([
      `linux-x64-gnu: ${ADDON} is missing`,
      `linux-x64-gnu: ${PROGRAM} is missing`,
    ]);
  });

  test('if a part is empty', () => {
    const directory = parts();
    writeFileSync(path.join(directory, ADDON), '');
    expect(partProblems('linux-x64-gnu', directory)).toContain(`linux-x64-gnu: ${ADDON} is empty`);
  });

  test('if kg is not executable', () => {
    const directory = parts();
    chmodSync(path.join(directory, PROGRAM), 0o644);
    expect(partProblems('linux-x64-gnu', directory)).toContain(
      `linux-x64-gnu: ${PROGRAM} is not executable`,
    );
  });

  test('if a part is larger than its limit, as with debug information', () => {
    const directory = parts();
    appendFileSync(path.join(directory, PROGRAM), Buffer.alloc(sizeLimits[PROGRAM]));
    expect(partProblems('linux-x64-gnu', directory).join('\n')).toMatch(
      /kg has \d+ bytes, more than \d+/,
    );
  });

  test('if a part is for another processor or another C library', () => {
    const directory = parts();
    expect(partProblems('linux-arm64-gnu', directory)).toContain(
      `linux-arm64-gnu: ${ADDON} is for EM_X86_64`,
    );
    expect(partProblems('linux-x64-musl', directory)).toContain(
      `linux-x64-musl: ${ADDON} needs libc.so.6`,
    );
    expect(partProblems('darwin-arm64', directory)).toContain(
      `darwin-arm64: ${ADDON} is not a Mach-O file`,
    );
  });

  test('if a part needs a newer glibc than is supported', () => {
    const directory = temporaryDirectory();
    const source = path.join(directory, 'newer.c');
    writeFileSync(
      source,
      '#include <pthread.h>\nint main() { return pthread_create(0, 0, 0, 0); }\n',
    );
    run('cc', ['-o', path.join(directory, PROGRAM), source]);
    run('cc', ['-shared', '-fPIC', '-o', path.join(directory, ADDON), source]);
    expect(partProblems(`linux-x64-gnu`, directory)).toEqual([
      `linux-x64-gnu: ${ADDON} needs GLIBC_2.34`,
      `linux-x64-gnu: ${PROGRAM} needs GLIBC_2.34`,
    ]);
  });

  test('with the build of the tests', () => {
    expect(releaseProblems().join('\n')).toContain(`${platformName()}: `);
  });
});

describe('what the native parts contain', () => {
  const { all } = crates('linux-x64-gnu');
  const names = all.map(({ name }) => name);

  test('is every crate that is linked, and none that only builds', () => {
    expect(names).toEqual(expect.arrayContaining(['libsqlite3-sys', 'rusqlite', 'age', 'libc']));
    for (const absent of ['syn', 'cc', 'proptest', 'windows-sys', manifest.name])
      expect(names).not.toContain(absent);
  });

  test('has a license in the notices', () => {
    const text = notices('linux-x64-gnu');
    for (const { name, version } of all) expect(text).toContain(`\n${name} ${version}: `);
    expect(text).toContain('Copyright (c) Meta Platforms, Inc. and affiliates');
  });

  const bom = sbom('linux-x64-gnu', packageName('linux-x64-gnu'));

  test('has an SBOM that the schema of CycloneDX accepts', async () => {
    const validators = path.join(installLocked('scripts/validators'), 'package.json');
    const { Spec, Validation } = createRequire(validators)('@cyclonedx/cyclonedx-library');
    const validator = new Validation.JsonStrictValidator(Spec.Version.v1dot6);
    expect(await validator.validate(JSON.stringify(bom))).toBeNull();
    const wrong = { ...bom, components: [{ type: 'nonsense' }] };
    expect(await validator.validate(JSON.stringify(wrong))).not.toBeNull();
  });

  test('is in the SBOM with its checksum and its dependencies', () => {
    expect(bom.components.map(({ name }) => name)).toEqual(names);
    const references = new Set(bom.components.map((component) => component['bom-ref']));
    for (const { name, hashes, licenses } of bom.components) {
      expect(hashes[0].content, name).toMatch(/^[0-9a-f]{64}$/);
      expect(licenses[0].expression, name).toMatch(/\w/);
    }
    for (const { dependsOn } of bom.dependencies)
      for (const reference of dependsOn) expect(references).toContain(reference);
  });
});
