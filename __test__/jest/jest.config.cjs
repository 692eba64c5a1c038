const path = require('node:path');

module.exports = {
  rootDir: path.join(__dirname, '../..'),
  roots: ['<rootDir>/__test__/jest'],
  testMatch: ['**/*.test.cjs'],
  transform: {},
};
