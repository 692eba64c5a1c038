'use strict';

/** The name of this machine's folder in npm/ and of its package. */
function platformName() {
  const name = `${process.platform}-${process.arch}`;
  if (process.platform !== 'linux') return name;
  const isGlibc = Boolean(process.report.getReport().header.glibcVersionRuntime);
  return `${name}-${isGlibc ? 'gnu' : 'musl'}`;
}

module.exports = { platformName };
