// Counters of the long run over all test files. `npm run test:long` prints the sums.

import { appendFileSync } from 'node:fs';

/** Adds to the sums, by name. */
export function count(figures) {
  if (process.env.KG_TEST_FIGURES)
    appendFileSync(process.env.KG_TEST_FIGURES, `${JSON.stringify(figures)}\n`);
}
