/** Returns the text of a value that was thrown. */
export function textOf(thrown) {
  try {
    return typeof thrown?.message === 'string' ? thrown.message : String(thrown);
  } catch {
    // An object without a prototype, for example.
    return Object.prototype.toString.call(thrown);
  }
}

/**
 * Returns a value that was thrown as JSON. An error keeps its name, message, code and cause, but
 * not its stack, which names paths of the host.
 */
function thrownToJson(thrown, outer = []) {
  if (typeof thrown?.message !== 'string' || outer.includes(thrown)) return textOf(thrown);
  return {
    name: String(thrown.name),
    message: thrown.message,
    ...(typeof thrown.code === 'string' && { code: thrown.code }),
    ...causeToJson(thrown, outer),
  };
}

function causeToJson(error, outer = []) {
  return 'cause' in error && { cause: thrownToJson(error.cause, [...outer, error]) };
}

/**
 * Marks every KgError. A process may contain this class twice, because `require` loads index.js and
 * a bundle contains index.mjs.
 */
const BRAND = Symbol.for('@weavelogic/knowledge-graph-agent.KgError');

/** An error of this package; see index.d.ts. */
export class KgError extends Error {
  static [Symbol.hasInstance](value) {
    return this === KgError
      ? value instanceof Error && value[BRAND] === true
      : Function.prototype[Symbol.hasInstance].call(this, value);
  }

  /** @param {{ code: string, message: string, remedy: string, cause?: string }} error */
  constructor({ code, message, remedy, cause }) {
    super(`${message}. ${remedy}.`, cause === undefined ? undefined : { cause: new Error(cause) });
    this.name = 'KgError';
    this.code = code;
    this.remedy = remedy;
  }

  get [BRAND]() {
    return true;
  }

  toJSON() {
    const { name, code, message, remedy } = this;
    return { name, code, message, remedy, ...causeToJson(this) };
  }
}

const GUARD_FAILED = 'KG_GUARD_FAILED';

/**
 * Returns the message and the remedy of a guard whose function failed.
 *
 * @param {{ cause: unknown, backup: any, restored?: any, restoreError?: unknown }} failure
 */
function describeFailure({ cause, backup, restored, ...failed }) {
  const sentence = (thrown) => textOf(thrown).replace(/\.$/, '');
  const what = `The guarded function failed: ${sentence(cause)}`;
  const goBack = `call restore({ backupId: '${backup.id}', overwrite: true })`;
  if (restored !== undefined) {
    return {
      message: `${what}. The project was restored from ${backup.id}`,
      remedy: 'Mend the cause and try again; undoRestore() brings back what the function left',
    };
  }
  if ('restoreError' in failed) {
    const why = sentence(failed.restoreError);
    return {
      message: `${what}. The project could not be restored from ${backup.id}: ${why}`,
      remedy: `To try again, ${goBack}`,
    };
  }
  return {
    message: `${what}. The project is as the function left it`,
    remedy: `To go back, ${goBack}`,
  };
}

/** The error of a guard whose function failed; see index.d.ts. */
export class GuardError extends KgError {
  static [Symbol.hasInstance](value) {
    return this === GuardError
      ? value instanceof KgError && value.code === GUARD_FAILED
      : super[Symbol.hasInstance](value);
  }

  /** @param {{ cause: unknown, backup: any, restored?: any, restoreError?: unknown }} failure */
  constructor(failure) {
    super({ code: GUARD_FAILED, ...describeFailure(failure) });
    this.name = 'GuardError';
    // As an Error shows its cause: on the console, but not in a loop over its properties.
    const { cause } = failure;
    Object.defineProperty(this, 'cause', { value: cause, writable: true, configurable: true });
    this.backup = failure.backup;
    if ('restored' in failure) this.restored = failure.restored;
    if ('restoreError' in failure) this.restoreError = failure.restoreError;
  }

  toJSON() {
    return {
      ...super.toJSON(),
      backupId: this.backup.id,
      restored: this.restored !== undefined,
      ...('restoreError' in this && { restoreError: thrownToJson(this.restoreError) }),
    };
  }
}

/** The error with which an aborted call rejects, in the shape of Node's own AbortError. */
export class AbortError extends Error {
  constructor(reason) {
    super('The operation was aborted', { cause: reason });
    this.name = 'AbortError';
    this.code = 'ABORT_ERR';
  }

  toJSON() {
    return thrownToJson(this);
  }
}

export function invalidOption(message, remedy) {
  return new KgError({ code: 'KG_INVALID_OPTION', message, remedy });
}

export function managerClosed() {
  return new KgError({
    code: 'KG_CLOSED',
    message: 'The manager is closed',
    remedy: 'Make another one with createBackupManager()',
  });
}
