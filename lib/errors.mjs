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
}

/** The error with which an aborted call rejects, in the shape of Node's own AbortError. */
export class AbortError extends Error {
  constructor(reason) {
    super('The operation was aborted', { cause: reason });
    this.name = 'AbortError';
    this.code = 'ABORT_ERR';
  }
}

export function invalidOption(message, remedy) {
  return new KgError({ code: 'KG_INVALID_OPTION', message, remedy });
}
