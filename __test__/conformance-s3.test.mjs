import { startObjectStore } from './support/object-store.mjs';
import { conformance } from './support/conformance.mjs';

conformance('S3, as SeaweedFS has it', startObjectStore, { pageSize: 1000, listsUploads: true });
