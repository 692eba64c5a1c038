import os from 'node:os';

import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    globalSetup: 'scripts/commonjs.mjs',
    include: ['__test__/*.test.mjs'],
    // Locks belong to a process, so each test file gets its own process.
    pool: 'forks',
    maxWorkers: os.availableParallelism(),
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
