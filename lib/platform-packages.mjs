// The packages with the native parts, one for each platform. This table is the list of the
// platforms.

import nodeModule from 'node:module';

// Bundlers cannot move native parts into a bundle, so they must not follow these calls. They leave
// them alone because `require` is a variable here, and because createRequire is called as a member
// of its module. Tools that copy what a program needs (`@vercel/nft` in Next.js) look for calls of
// `require` with a literal, and do follow them. A bundle of CommonJS has no `import.meta.url`.
const require = (name) => nodeModule.createRequire(import.meta.url ?? __filename)(name);

/**
 * Each entry returns the `addonPath` and `kgPath` of its package, or `failure` with the reason why
 * that cannot be loaded.
 */
export const PACKAGES = {
  'darwin-arm64'() {
    try {
      return require('@weavelogic/knowledge-graph-agent-darwin-arm64');
    } catch (failure) {
      return { failure };
    }
  },
  'darwin-x64'() {
    try {
      return require('@weavelogic/knowledge-graph-agent-darwin-x64');
    } catch (failure) {
      return { failure };
    }
  },
  'linux-arm64-gnu'() {
    try {
      return require('@weavelogic/knowledge-graph-agent-linux-arm64-gnu');
    } catch (failure) {
      return { failure };
    }
  },
  'linux-arm64-musl'() {
    try {
      return require('@weavelogic/knowledge-graph-agent-linux-arm64-musl');
    } catch (failure) {
      return { failure };
    }
  },
  'linux-x64-gnu'() {
    try {
      return require('@weavelogic/knowledge-graph-agent-linux-x64-gnu');
    } catch (failure) {
      return { failure };
    }
  },
  'linux-x64-musl'() {
    try {
      return require('@weavelogic/knowledge-graph-agent-linux-x64-musl');
    } catch (failure) {
      return { failure };
    }
  },
};
