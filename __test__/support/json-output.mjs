// Reads what `kg … --json` prints.

/**
 * Returns the result in the object that `kg … --json` prints. If the command failed without one,
 * returns the other fields, such as `error`.
 */
export function resultOf(printed) {
  const { result, ...rest } = JSON.parse(printed);
  if (rest.version !== 1) throw new Error(`not an object of kg: ${printed}`);
  return result === undefined ? rest : result;
}
