import { invalidOption } from './errors.mjs';
import { INSPECT, show } from './host-symbols.mjs';
import { call } from './native.mjs';
import { split, toAbsolute, toEncryption } from './options.mjs';

const SUBJECTS =
  'Give the path of a database or project, a handle of better-sqlite3, node:sqlite or bun:sqlite, ' +
  "or the host's KnowledgeGraphDatabase";

/**
 * Returns the path of the database of a handle. It only reads the path and leaves the handle alone.
 */
function fileOf(db) {
  if (typeof db.getDatabase === 'function') return fileOf(db.getDatabase());
  if (typeof db.location === 'function') return db.location();
  if (typeof db.name === 'string') return db.memory === true ? ':memory:' : db.name;
  if (typeof db.filename === 'string') return db.filename;
  return db.dbPath;
}

function subjectOf(db) {
  if (db === null || db === undefined)
    throw invalidOption(`${String(db)} is not a database`, SUBJECTS);
  const isHandle = typeof db === 'object' && !(db instanceof URL);
  const file = isHandle ? fileOf(db) : db;
  // For a database in memory, node:sqlite returns null, and better-sqlite3 and bun:sqlite an empty
  // name.
  if (file === ':memory:' || file === null || file === '') {
    throw invalidOption(
      'A database in memory has no file to check',
      'Write it to a file first, with VACUUM INTO',
    );
  }
  const absolute = toAbsolute(file);
  if (typeof absolute !== 'string')
    throw invalidOption(`${String(file)} does not name a database`, SUBJECTS);
  return absolute;
}

export class IntegrityChecker {
  #config;

  /** @param {import('../index.js').IntegrityCheckerOptions} options */
  constructor(db, options = {}) {
    const [
      { projectRoot, backupDir, storageOptions, encryption, lockTimeout, kgPath, ...unknown },
    ] = split('IntegrityChecker', options);
    const [name] = Object.keys(unknown);
    if (name !== undefined)
      throw invalidOption(
        `IntegrityChecker has no option \`${name}\``,
        'See index.d.ts for the options',
      );
    this.#config = {
      path: subjectOf(db),
      projectRoot: projectRoot === undefined ? undefined : toAbsolute(projectRoot),
      backupDir: backupDir === undefined ? undefined : toAbsolute(backupDir),
      storageOptions,
      encryption: toEncryption(encryption),
      lockTimeout,
      kgPath,
    };
  }

  /** The absolute path of the database, or of the project that the caller named. */
  get path() {
    return this.#config.path;
  }

  [INSPECT](depth, options, inspect) {
    const { path, projectRoot, backupDir } = this.#config;
    const given = { path, projectRoot, backupDir };
    return show(
      this,
      depth,
      options,
      inspect,
      Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
    );
  }

  async runChecks(options) {
    const [given, control] = split('runChecks', options);
    return call({ call: 'runChecks', config: this.#config, options: given }, control);
  }

  async repair(issues, options) {
    if (!Array.isArray(issues) || !issues.every((issue) => typeof issue?.code === 'string')) {
      throw invalidOption(
        'repair takes a list of issues',
        'Give `issues` of the result of runChecks()',
      );
    }
    const [given, control] = split('repair', options);
    const [name] = Object.keys(given);
    if (name !== undefined)
      throw invalidOption(`repair has no option \`${name}\``, 'See index.d.ts for the options');
    const codes = [...new Set(issues.map((issue) => issue.code))];
    const { repair, ...after } = await call(
      { call: 'repair', config: this.#config, codes },
      control,
    );
    return { ...repair, ...after };
  }
}

export function createIntegrityChecker(db, options) {
  return new IntegrityChecker(db, options);
}

/**
 * The method with which a freshness check gets the newest good backup of its manager. `Symbol.for`
 * makes it the same symbol in every realm.
 */
export const NEWEST_GOOD = Symbol.for('@weavelogic/knowledge-graph-agent.newestGood');
const UNITS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Converts a number of milliseconds, or a text such as `24h`, to milliseconds. */
function milliseconds(name, time) {
  const [, number, unit] = /^(\d+)([smhd])$/.exec(time) ?? [];
  const value = typeof time === 'number' ? time : Number(number) * UNITS[unit];
  if (Number.isFinite(value) && value > 0) return value;
  throw invalidOption(
    `\`${name}\` is ${String(time)}, which is not a time`,
    'Give milliseconds, or a text such as `24h`, `30m`, `7d`',
  );
}

/** @param {import('../index.js').FreshnessOptions} options */
export function backupFreshnessCheck(manager, options = {}) {
  const [{ maxAge = '24h', interval = '1h', name = 'backup-freshness', ...unknown }] = split(
    'backupFreshnessCheck',
    options,
  );
  const [extra] = Object.keys(unknown);
  if (extra !== undefined)
    throw invalidOption(
      `backupFreshnessCheck has no option \`${extra}\``,
      'See index.d.ts for the options',
    );
  if (typeof manager?.[NEWEST_GOOD] !== 'function') {
    throw invalidOption(
      'backupFreshnessCheck takes a BackupManager',
      'Make one with createBackupManager()',
    );
  }
  const limit = milliseconds('maxAge', maxAge);
  milliseconds('interval', interval);
  const ageMs = async () => {
    const good = await manager[NEWEST_GOOD]();
    return good === null ? undefined : Date.now() - good.timestamp;
  };
  const check = async () => {
    const age = await ageMs();
    return age !== undefined && age < limit;
  };
  const status = async () => {
    const lastCheck = new Date();
    const unhealthy = (message, metrics) => ({
      name,
      status: 'unhealthy',
      message,
      lastCheck,
      metrics,
    });
    let age;
    try {
      age = await ageMs();
    } catch (error) {
      return unhealthy(`The age of the newest backup is not known. ${error.message}`, {});
    }
    if (age === undefined) return unhealthy('There is no good backup', {});
    const message = `The newest good backup is ${shownAge(age)} old`;
    const metrics = { ageMs: age, maxAgeMs: limit };
    if (age < limit) return { name, status: 'healthy', message, lastCheck, metrics };
    return unhealthy(`${message}, and ${shownAge(limit)} are allowed`, metrics);
  };
  return { name, interval, check, status };
}

/** Formats a time for a message, such as `26 h`. */
function shownAge(ms) {
  const fitting = Object.entries(UNITS).filter(([, size]) => ms >= 2 * size);
  const [unit, size] = fitting.at(-1) ?? ['s', 1000];
  return `${Math.floor(ms / size)} ${{ m: 'min', d: 'days' }[unit] ?? unit}`;
}
