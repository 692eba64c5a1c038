// The methods that JavaScript and its runtimes call by symbols.

/**
 * The method of `await using`. Early releases of Node 20 lack the symbol; compilers then look for
 * this one.
 *
 * @type {typeof Symbol.asyncDispose}
 */
export const ASYNC_DISPOSE = /** @type {any} */ (
  Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')
);

/** The method with which Node, Bun and Deno show an object on the console. */
export const INSPECT = Symbol.for('nodejs.util.inspect.custom');

/** Returns what the console shows of an object: its class and these fields. */
export function show(object, depth, options, inspect, fields) {
  const { name } = object.constructor;
  return depth < 0 ? `[${name}]` : `${name} ${inspect(fields, options)}`;
}
