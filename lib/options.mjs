import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { invalidOption } from './errors.mjs';

/**
 * Splits options into those that go to the addon and those that stay in JavaScript.
 *
 * @template {object} T
 * @param {string} name
 * @param {T & import('../index.js').LongCallOptions} [options]
 * @returns {[Omit<T, 'onProgress' | 'signal'>, import('../index.js').LongCallOptions]}
 */
export function split(name, options = /** @type {any} */ ({})) {
  if (options === null || typeof options !== 'object' || Array.isArray(options)) {
    throw invalidOption(`${name} takes an object of options`, 'See index.d.ts for the options');
  }
  const { onProgress, signal, ...rest } = options;
  return [rest, { onProgress, signal }];
}

export function toPath(value) {
  return value instanceof URL && value.protocol === 'file:' ? fileURLToPath(value) : value;
}

/** Makes a path absolute, so that a later change of the working directory has no effect. */
export function toAbsolute(value) {
  const given = toPath(value);
  const isLocal = typeof given === 'string' && given !== '' && !given.includes('://');
  return isLocal ? path.resolve(given) : given;
}

/**
 * Checks the keys of encrypted backups. The check is in JavaScript because the messages of the
 * addon quote values, and no secret may appear in a message.
 */
export function toEncryption(value) {
  if (value === undefined || value === false) return value;
  const refuse = (what) =>
    invalidOption(
      what,
      'Give { passphrase }, { passphraseFile }, { recipients } or { identityFile }',
    );
  if (value === null || typeof value !== 'object' || Array.isArray(value))
    throw refuse('`encryption` is not an object');
  // A URL names a file, never a passphrase.
  if (!['string', 'undefined'].includes(typeof value.passphrase))
    throw refuse('`encryption.passphrase` is not a string');
  for (const name of ['passphraseFile', 'identityFile']) {
    if (value[name] === undefined) continue;
    const isUrl =
      value[name] instanceof URL && value[name].protocol === 'file:' && value[name].host === '';
    const isPath =
      typeof value[name] === 'string' && value[name] !== '' && !value[name].includes('://');
    if (!isUrl && !isPath) throw refuse(`\`encryption.${name}\` is not the path of a file`);
  }
  const { recipients = [] } = value;
  const isList = Array.isArray(recipients) && recipients.every((one) => typeof one === 'string');
  if (!isList) throw refuse('`encryption.recipients` is not a list of strings');
  const absolute = (file) => (file === undefined ? undefined : toAbsolute(file));
  return {
    ...value,
    passphraseFile: absolute(value.passphraseFile),
    identityFile: absolute(value.identityFile),
  };
}
