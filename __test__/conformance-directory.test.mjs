import { startDirectory } from './support/directory-store.mjs';
import { conformance } from './support/conformance.mjs';

conformance('a directory', startDirectory);
