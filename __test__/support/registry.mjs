// A registry on the loopback interface that serves the packages of this checkout and nothing else.

import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import path from 'node:path';

import { platformName } from '../../lib/platform-name.mjs';
import { pack } from '../../scripts/pack.mjs';
import { run } from './processes.mjs';

/** What a package manager asks a registry about a package. */
function describePackage(tarball, url) {
  const manifest = JSON.parse(run('tar', ['-xOzf', tarball, 'package/package.json']));
  const bytes = readFileSync(tarball);
  const digest = (algorithm, encoding) => createHash(algorithm).update(bytes).digest(encoding);
  const dist = {
    tarball: `${url}/-/${path.basename(tarball)}`,
    integrity: `sha512-${digest('sha512', 'base64')}`,
    shasum: digest('sha1', 'hex'),
  };
  return {
    name: manifest.name,
    'dist-tags': { latest: manifest.version },
    versions: { [manifest.version]: { ...manifest, dist } },
  };
}

/**
 * Packs the build of this checkout below `directory` and serves it. Resolves to the address of the
 * registry, the tarballs, the paths that were asked for, and `close()`.
 */
export async function startRegistry(directory) {
  const out = path.join(directory, 'packages');
  const tarballs = pack(out, platformName());
  const asked = [];
  const server = createServer(({ url: from }, response) => {
    const name = decodeURIComponent(from.slice(1));
    asked.push(name);
    const tarball = tarballs.find((file) => name === `-/${path.basename(file)}`);
    if (tarball) response.end(readFileSync(tarball));
    else if (!documents.has(name)) response.writeHead(404).end('{}');
    else response.setHeader('content-type', 'application/json').end(documents.get(name));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const url = `http://127.0.0.1:${server.address().port}`;
  const documents = new Map(
    tarballs.map((tarball) => {
      const description = describePackage(tarball, url);
      return [description.name, JSON.stringify(description)];
    }),
  );
  return {
    url,
    tarballs,
    asked,
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}
