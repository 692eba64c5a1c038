import js from '@eslint/js';
import globals from 'globals';

export default [
  { ignores: ['target/', 'benchmarks/data/', 'npm/', 'index.js', 'bin/kg.js'] },
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2023, globals: globals.node },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      eqeqeq: 'error',
      'no-var': 'error',
      'object-shorthand': 'error',
      'prefer-const': 'error',
      // A leading underscore names what a signature needs and the function does not.
      'no-unused-vars': [
        'error',
        { argsIgnorePattern: '^_', caughtErrors: 'none', ignoreRestSiblings: true },
      ],
    },
  },
  {
    files: ['**/*.cjs'],
    languageOptions: { sourceType: 'commonjs' },
  },
  { files: ['__test__/jest/**'], languageOptions: { globals: globals.jest } },
];
