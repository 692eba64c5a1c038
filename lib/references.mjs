// What names a backup: an id, a path, or a Backup.

import fs from 'node:fs';
import path from 'node:path';

import { KgError, invalidOption, textOf } from './errors.mjs';
import { toPath } from './options.mjs';

function assertText(name, value) {
  if (typeof value === 'string' && value !== '') return value;
  throw invalidOption(
    `${name} takes a backup, or its path or id, not ${textOf(value)}`,
    'See listBackups() for the backups',
  );
}

const isBackup = (value) => typeof value?.id === 'string' && typeof value.path === 'string';

/** Returns the path of a directory without links, or the path itself if there is no directory. */
function realPath(directory) {
  try {
    return fs.realpathSync(directory);
  } catch {
    return directory;
  }
}

function isInStore(archive, store) {
  const parent = archive.slice(0, -path.posix.basename(archive).length - 1);
  if (store.includes('://')) return parent === store.replace(/\/+$/, '');
  return realPath(path.dirname(archive)) === realPath(store);
}

/**
 * Returns the id that names a backup of the store. Two stores can have backups with the same id, so
 * a Backup of another store is refused.
 *
 * @param {() => string} store returns the directory or the URL of the store
 */
export function toId(name, reference, store) {
  if (!isBackup(reference)) return assertText(name, reference);
  const directory = store();
  if (isInStore(reference.path, directory)) return assertText(name, reference.id);
  throw new KgError({
    code: 'KG_BACKUP_NOT_FOUND',
    message: `The backup ${reference.path} is not in ${directory}`,
    remedy: 'Use a manager of its store, or give the id if you mean a backup of this one',
  });
}

/** Returns the path or the id that names a backup of this or another store. */
export function toLocation(name, reference) {
  return assertText(name, isBackup(reference) ? reference.path : toPath(reference));
}
