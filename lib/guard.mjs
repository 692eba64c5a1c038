// A backup before a function, and a way back if the function fails.

import { AbortError, GuardError, invalidOption, textOf } from './errors.mjs';
import { split } from './options.mjs';

const DESCRIPTION = 'Before a guarded function';
const DECISIONS = ['keep', 'restore'];

function assertOptions(fn, onError, pin) {
  if (typeof fn !== 'function') {
    throw invalidOption(
      `guard takes a function, not ${textOf(fn)}`,
      'Give the function that is to run after the backup',
    );
  }
  if (typeof onError !== 'function' && !DECISIONS.includes(onError)) {
    throw invalidOption(
      `\`onError\` is ${textOf(onError)}`,
      "Give 'keep', 'restore' or a function that returns one of them",
    );
  }
  if (pin !== undefined && typeof pin !== 'boolean')
    throw invalidOption('`pin` is neither true nor false', 'Give one of them');
}

/** Pins a backup while the function runs. Resolves to a function that removes this very pin. */
async function hold(manager, { id }) {
  const reason = `guard() of process ${process.pid} runs a function that can need this backup`;
  const { pinned } = await manager.pin(id, reason);
  return async () => {
    try {
      const now = (await manager.getBackup(id)).pinned;
      // Someone may have pinned the backup for a reason of their own.
      if (now?.reason === reason && now.at === pinned.at) await manager.unpin(id);
    } catch (error) {
      // The function has succeeded or failed, and its result matters more.
      const warning = `guard() could not unpin ${id}: ${error.message}`;
      process.emitWarning(warning, { type: 'KgWarning', code: 'KG_GUARD_PIN' });
    }
  };
}

/** Restores the backup if `onError` says so. Resolves to the properties of the GuardError. */
async function recover(manager, onError, cause, backup, onProgress) {
  try {
    const decision = typeof onError === 'function' ? await onError(cause, backup) : onError;
    if (decision === 'keep') return {};
    if (decision !== 'restore') {
      throw invalidOption(
        `\`onError\` returned ${textOf(decision)}`,
        "Return 'keep' or 'restore', or a promise of one of them",
      );
    }
    const restored = await manager.restore({ backupPath: backup, overwrite: true, onProgress });
    return { restored };
  } catch (restoreError) {
    return { restoreError };
  }
}

/**
 * Makes a backup, runs a function, and takes its changes back if it fails and `onError` says so.
 *
 * @param {any} manager stays open until the end
 */
export async function guard(manager, fn, options) {
  const [{ onError = 'keep', pin, ...given }, { onProgress, signal }] = split('guard', options);
  assertOptions(fn, onError, pin);
  const saving = { description: DESCRIPTION, ...given, onProgress, signal };
  const backup = await manager.createBackup(saving);
  const release = await hold(manager, backup);
  let staysPinned = pin ?? false;
  try {
    if (onError !== 'keep') {
      const trial = { backupPath: backup, overwrite: true, dryRun: true, onProgress, signal };
      await manager.restore(trial);
    }
    try {
      const result = await fn(backup);
      // The function may have seen the signal and stopped halfway.
      if (signal?.aborted) throw new AbortError(signal.reason);
      return result;
    } catch (cause) {
      const outcome = await recover(manager, onError, cause, backup, onProgress);
      staysPinned = pin ?? outcome.restored === undefined;
      throw new GuardError({ cause, backup, ...outcome });
    }
  } finally {
    if (!staysPinned) await release();
  }
}
