'use strict';

/** An error of this package; see index.d.ts. */
class KgError extends Error {
  /** @param {{ code: string, message: string, remedy: string, cause?: string }} error */
  constructor({ code, message, remedy, cause }) {
    super(`${message}. ${remedy}.`, cause === undefined ? undefined : { cause: new Error(cause) });
    this.name = 'KgError';
    this.code = code;
    this.remedy = remedy;
  }
}

/** The error with which an aborted call rejects, in the shape of Node's own AbortError. */
class AbortError extends Error {
  constructor(reason) {
    super('The operation was aborted', { cause: reason });
    this.name = 'AbortError';
    this.code = 'ABORT_ERR';
  }
}

function invalidOption(message, remedy) {
  return new KgError({ code: 'KG_INVALID_OPTION', message, remedy });
}

module.exports = { AbortError, KgError, invalidOption };
