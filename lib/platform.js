'use strict';

// Finds the native parts for this machine: the addon, and the executable `kg` that the addon starts as its reader.
// A checkout has them in npm/<platform>/ (`npm run build`), an installation in a package of its own.

const fs = require('node:fs');
const path = require('node:path');

const { platformName } = require('./platform-name.js');

const ADDON = 'knowledge-graph-agent.node';

function nativeDirectory() {
  const platform = platformName();
  const checkout = path.join(__dirname, '..', 'npm', platform);
  if (fs.existsSync(path.join(checkout, ADDON))) return checkout;
  try {
    return path.dirname(require.resolve(`@weavelogic/knowledge-graph-agent-${platform}/package.json`));
  } catch (cause) {
    throw new Error(
      `@weavelogic/knowledge-graph-agent has no native parts for ${platform}. ` +
        'Install it again with optional dependencies, or run `npm run build` in a checkout.',
      { cause },
    );
  }
}

const directory = nativeDirectory();

module.exports = {
  addonPath: path.join(directory, ADDON),
  kgPath: path.join(directory, process.platform === 'win32' ? 'kg.exe' : 'kg'),
};
