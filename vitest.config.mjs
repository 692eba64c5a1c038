import os from 'node:os';

import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['__test__/*.test.mjs'],
    // Locks belong to a process: each file gets its own.
    pool: 'forks',
    maxWorkers: os.availableParallelism(),
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
