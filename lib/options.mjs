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

/**
 * The options of the backup manager of the host, with what each value means here: the option that
 * takes its place, or what to write instead of it. `ignored` values ask for what happens anyway.
 */
const HOST_OPTIONS = {
  compress: { becomes: 'compression' },
  backupPath: { becomes: 'backupDir' },
  enabled: {
    ignored: [true, false],
    remedy: 'Backups on a schedule begin with `manager.scheduler({ schedule }).start()`',
  },
  interval: {
    ignored: [],
    remedy: "Give a cron expression: `manager.scheduler({ schedule: '0 2 * * *' }).start()`",
  },
  includeDatabase: {
    ignored: [true],
    remedy:
      'Every backup contains the database. To restore only other parts, use `restore({ only })`',
  },
  includeConfig: {
    ignored: [true],
    remedy: "To leave the configuration out, use `excludePatterns: ['/.kg/*.json']`",
  },
  includeCache: { ignored: [false], remedy: 'No backup contains caches; the host makes them anew' },
};

/**
 * Replaces the options of the host's backup manager. Emits a process warning for each whose meaning
 * is clear, and refuses the others.
 *
 * @template T
 * @param {string} name
 * @param {T} options
 * @param {string[]} accepted the names of the host's options that this call takes
 * @returns {T}
 */
export function withoutHostOptions(name, options, accepted) {
  const rest = { .../** @type {any} */ (options) };
  for (const option of accepted) {
    const value = rest[option];
    delete rest[option];
    if (value === undefined) continue;
    const { becomes, ignored, remedy } = HOST_OPTIONS[option];
    const refuse = (what, instead) => invalidOption(`${name}: \`${option}\` ${what}`, instead);
    if (becomes === undefined) {
      if (!ignored.includes(value))
        throw refuse(`is ${String(value)}, which has no equivalent`, remedy);
      warnOfHostOption(`${name}: \`${option}: ${String(value)}\` has no effect. ${remedy}`);
      continue;
    }
    if (rest[becomes] !== undefined)
      throw refuse(`means the same as \`${becomes}\``, `Leave out \`${option}\``);
    rest[becomes] = value;
    warnOfHostOption(`${name}: \`${option}\` is called \`${becomes}\` here`);
  }
  return rest;
}

function warnOfHostOption(message) {
  process.emitWarning(`${message}. See docs/guide/migrate.md`, {
    type: 'KgWarning',
    code: 'KG_HOST_OPTION',
  });
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
