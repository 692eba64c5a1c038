// A store behind a proxy that breaks requests.

import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { onTestFinished } from 'vitest';

import { startFaultProxy } from './fault-proxy.mjs';
import { makeProject } from './project.mjs';

/**
 * Returns a function that makes a project, a manager that talks through a proxy, and one that does
 * not.
 */
export function faultySetUpIn(store) {
  let prefixes = 0;
  return async (choose, { nodes = 20, ...options } = {}) => {
    prefixes += 1;
    const prefix = `faults/${prefixes}`;
    const { root, database } = makeProject({ nodes });
    const proxy = await startFaultProxy(store().endpoint, choose);
    onTestFinished(() => proxy.stop());
    const managerAt = (endpoint, more) =>
      createBackupManager({
        projectRoot: root,
        backupDir: store().url(prefix),
        storageOptions: { ...store().storageOptions, endpoint, timeout: 3000, ...options },
        ...more,
      });
    const other = path.join(path.dirname(root), 'restored');
    return {
      root,
      database,
      prefix,
      proxy,
      other,
      managerAt,
      faulty: managerAt(proxy.endpoint),
      plain: managerAt(store().endpoint),
    };
  };
}
