'use strict';

const path = require('node:path');
const { fileURLToPath } = require('node:url');

const { invalidOption } = require('./errors.js');

/** An options object without the fields that do not go to the addon. */
function split(name, options = {}) {
  if (options === null || typeof options !== 'object' || Array.isArray(options)) {
    throw invalidOption(`${name} takes an object of options`, 'See index.d.ts for the options');
  }
  const { onProgress, signal, ...rest } = options;
  return [rest, { onProgress, signal }];
}

function toPath(value) {
  return value instanceof URL && value.protocol === 'file:' ? fileURLToPath(value) : value;
}

/** Absolute, so that a later change of the working directory means nothing. */
function toAbsolute(value) {
  const given = toPath(value);
  const isLocal = typeof given === 'string' && given !== '' && !given.includes('://');
  return isLocal ? path.resolve(given) : given;
}

module.exports = { split, toAbsolute, toPath };
