// Calls the addon with JSON, and converts the JSON that it returns to results, errors and callbacks
// of this realm.

import { AbortError, KgError, invalidOption } from './errors.mjs';
import { nativeParts } from './native-parts.mjs';

/** Adds the path of `kg` to a configuration that does not name one. */
function withKg(config) {
  return config.kgPath === undefined ? { ...config, kgPath: nativeParts().kgPath } : config;
}

/**
 * Serializes options as JSON. Refuses values that JSON would change silently, such as NaN (to null)
 * or a function (to nothing).
 */
function encode(value) {
  return JSON.stringify(value, (key, field) => {
    const isLost =
      ['bigint', 'function', 'symbol'].includes(typeof field) ||
      (typeof field === 'number' && !Number.isFinite(field));
    if (isLost) {
      throw invalidOption(
        `\`${key}\` is ${String(field)}, which is not a valid option value`,
        'See index.d.ts for the options',
      );
    }
    return field;
  });
}

function decode(text) {
  const { ok, error } = JSON.parse(text);
  if (error) throw new KgError(error);
  return ok;
}

/** Calls a callback. If it throws, or if its promise rejects, the process emits a warning. */
export function callBack(name, callback, argument) {
  const warn = (thrown) => {
    const text = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
    process.emitWarning(`${name} threw: ${text}`, { type: 'KgWarning', code: 'KG_CALLBACK_THREW' });
  };
  try {
    const returned = callback(argument);
    if (typeof returned?.then === 'function') returned.then(undefined, warn);
  } catch (thrown) {
    warn(thrown);
  }
}

export function assertFunction(name, value) {
  if (value !== undefined && value !== null && typeof value !== 'function') {
    throw invalidOption(`\`${name}\` is not a function`, 'Give a function, or leave it out');
  }
}

function assertSignal(signal) {
  if (signal !== undefined && signal !== null && typeof signal.addEventListener !== 'function') {
    throw invalidOption(
      '`signal` is not an AbortSignal',
      'Give the `signal` of an AbortController, or leave it out',
    );
  }
}

/**
 * Runs a call of the addon on another thread.
 *
 * @param {object} request
 * @param {import('../index.js').LongCallOptions} control
 */
export async function call(request, { onProgress, signal } = {}) {
  assertFunction('onProgress', onProgress);
  assertSignal(signal);
  const text = encode({ ...request, config: withKg(request.config) });
  if (signal?.aborted) throw new AbortError(signal.reason);
  const { addon } = nativeParts();
  const cancellation = new addon.Cancellation();
  const onAbort = () => cancellation.cancel();
  signal?.addEventListener('abort', onAbort, { once: true });
  const report =
    onProgress && ((progress) => callBack('onProgress', onProgress, JSON.parse(progress)));
  try {
    return decode(await addon.run(text, cancellation, report));
  } catch (error) {
    throw error.code === 'KG_ABORTED' ? new AbortError(signal?.reason) : error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
    cancellation.release();
  }
}

/** Throws if a configuration cannot be used. */
export function checkConfig(config) {
  decode(nativeParts().addon.checkConfig(encode(withKg(config))));
}

/** Returns the directory of the backups for a configuration without `backupDir`. */
export function backupDir(config) {
  return decode(nativeParts().addon.backupDir(encode(withKg(config))));
}

/** Returns what a scheduler does next; see src/calls/schedule.rs. */
export function planSchedule(request) {
  return decode(nativeParts().addon.planSchedule(encode(request)));
}
