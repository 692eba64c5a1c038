const path = require('node:path');

module.exports = {
  rootDir: path.join(__dirname, '../..'),
  roots: ['<rootDir>/__test__/jest'],
  testMatch: ['**/*.test.cjs'],
  // Without the root in `roots`, jest does not find the package by its own name.
  moduleNameMapper: { '^@weavelogic/knowledge-graph-agent$': '<rootDir>/index.js' },
  transform: {},
};
