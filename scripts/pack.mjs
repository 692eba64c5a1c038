// `npm run pack`: makes the packages of a release from this checkout and the native parts in npm/.
//
//   node scripts/pack.mjs [--out DIR] [--trial PLATFORM]
//
// The package itself names the packages of the platforms in its `optionalDependencies`. A checkout
// cannot: `npm ci` refuses a lock file without them, and they exist only after a release. So this
// script adds them to a copy. It refuses a release that lacks a part or has one that does not run
// where its package says. `--trial` packs any build of one platform, such as that of the tests,
// without its debug information.

import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { partProblems } from './binaries.mjs';
import makeCommonJs from './commonjs.mjs';
import { notices, sbom } from './dependencies.mjs';
import {
  ADDON,
  manifest,
  packageName,
  platformFiles,
  platformManifest,
  platforms,
  PROGRAM,
  root,
} from './platforms.mjs';

/** Packs a directory into a tarball in `out`, and returns its path. */
function npmPack(directory, out) {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', out];
  const printed = execFileSync('npm', args, {
    cwd: directory,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  return path.join(out, JSON.parse(printed)[0].filename);
}

const writeJson = (file, value) => writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);

/**
 * Returns the fields that name the repository. The registry accepts the statement of provenance
 * only if they name the one whose workflow publishes, so that workflow is asked.
 */
function repositoryFields(directory) {
  const { GITHUB_SERVER_URL: server, GITHUB_REPOSITORY: name } = process.env;
  if (!server || !name) return {};
  const url = `${server}/${name}`;
  return {
    repository: { type: 'git', url: `git+${url}.git`, ...(directory && { directory }) },
    homepage: `${url}#readme`,
    bugs: { url: `${url}/issues` },
  };
}

/** Packs the package itself, with the packages of the platforms at exactly this version. */
function packMain(names, out, work) {
  const checkout = npmPack(root, work);
  execFileSync('tar', ['-xzf', checkout, '-C', work]);
  const { devDependencies, scripts, allowScripts, ...published } = manifest;
  const staged = path.join(work, 'package');
  writeJson(path.join(staged, 'package.json'), {
    ...published,
    ...repositoryFields(),
    optionalDependencies: Object.fromEntries(
      names.map((platform) => [packageName(platform), manifest.version]),
    ),
  });
  return npmPack(staged, out);
}

/** Packs the package of a platform. */
function packPlatform(platform, out, work, isTrial) {
  const staged = path.join(work, platform);
  mkdirSync(staged);
  for (const [file, content] of Object.entries(platformFiles(platform)))
    writeFileSync(path.join(staged, file), content);
  writeJson(path.join(staged, 'package.json'), {
    ...platformManifest(platform),
    ...repositoryFields(`npm/${platform}`),
  });
  writeFileSync(path.join(staged, 'THIRD-PARTY-NOTICES'), notices(platform));
  copyFileSync(path.join(root, 'LICENSE'), path.join(staged, 'LICENSE'));
  for (const part of [ADDON, PROGRAM]) {
    copyFileSync(path.join(root, 'npm', platform, part), path.join(staged, part));
    chmodSync(path.join(staged, part), 0o755);
    if (isTrial) execFileSync('strip', ['--strip-debug', path.join(staged, part)]);
  }
  writeJson(path.join(out, `${platform}.cdx.json`), sbom(platform, packageName(platform)));
  return npmPack(staged, out);
}

/** Returns why the packages in npm/ cannot be released, one line each. */
export function releaseProblems() {
  return Object.keys(platforms).flatMap((platform) => {
    const directory = path.join(root, 'npm', platform);
    const { version } = JSON.parse(readFileSync(path.join(directory, 'package.json'), 'utf8'));
    const isOther = version !== manifest.version;
    return [
      ...(isOther ? [`${platform}: is version ${version}, not ${manifest.version}`] : []),
      ...partProblems(platform, directory),
    ];
  });
}

/**
 * Packs the packages of the platforms and the package itself. A trial packs only one platform.
 * Returns the paths of the tarballs.
 */
export function pack(out, trialPlatform) {
  const names = trialPlatform ? [trialPlatform] : Object.keys(platforms);
  mkdirSync(out, { recursive: true });
  const work = mkdtempSync(path.join(os.tmpdir(), 'kg-pack-'));
  try {
    return [
      ...names.map((platform) => packPlatform(platform, out, work, trialPlatform !== undefined)),
      packMain(names, out, work),
    ];
  } finally {
    rmSync(work, { recursive: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { out: { type: 'string' }, trial: { type: 'string' } } });
  const problems = values.trial ? [] : releaseProblems();
  if (problems.length > 0) {
    console.error(`This is not a release:\n  ${problems.join('\n  ')}`);
    process.exit(1);
  }
  await makeCommonJs();
  const out = path.resolve(values.out ?? path.join(root, 'target/packages'));
  for (const tarball of pack(out, values.trial)) console.log(tarball);
}
