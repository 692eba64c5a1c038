/**
 * Backup and recovery for knowledge-graph projects.
 *
 * A project is a directory that holds `.kg/`: a SQLite database that several processes write, configuration,
 * embeddings, plugin data. A {@link BackupManager} saves it while it is in use, verifies archives, and brings it back.
 *
 * ```ts
 * import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
 *
 * const manager = createBackupManager({ projectRoot: '/path/to/project', backupDir: '/path/to/backups' });
 * const backup = await manager.createBackup({ description: 'Pre-migration backup' });
 * if (await manager.verifyBackup(backup.path)) console.log(`${backup.id}: ${backup.size} bytes`);
 * ```
 *
 * Calls are safe while this very process has the database open (better-sqlite3, node:sqlite): every file of the project is
 * read in a process of its own. Work happens off the JavaScript thread. All errors are {@link KgError}s with a stable
 * `code`, except that an aborted call rejects with an `AbortError`; `docs/reference/errors.md` explains each code.
 */

/**
 * Makes a manager. Nothing is opened or created until a call needs it.
 *
 * @throws {KgError} `KG_INVALID_OPTION` for an unknown option or an impossible value; `KG_UNSUPPORTED` for what this release
 * does not do; `KG_BACKUP_DIR_INVALID` where `backupDir` is a file.
 */
export declare function createBackupManager(config?: BackupManagerConfig): BackupManager;

/**
 * What a manager backs up, where to, and how. The guide's section "Backup Configuration". What is absent is as the project's
 * `.kg/config.json` has it (`kg config show --all`, `docs/guide/schedule.md`), and otherwise as the defaults here say. A setting there that cannot be
 * used does not count, and is a `KG_WARN_CONFIG` of each backup. If the whole file cannot be used, what writes or removes backups rejects with
 * `KG_CONFIG_INVALID`, unless `backupDir` and `encryption` are given.
 */
export interface BackupConfig {
  /**
   * The directory of the backups, made when it is needed. Relative paths start at the working directory of the moment.
   * It may not lie inside `.kg/`, except as `.kg/backups`. Default: `backup.dir` of `.kg/config.json`, else `.kg/backups` of the project.
   */
  backupDir: string;
  /**
   * `true` and `'gzip'` write `.tar.gz`, which every system opens; `'zstd'` writes `.tar.zst`, faster and smaller, for systems that
   * have zstd; `false` writes a plain `.tar`. Default: true.
   */
  compression: boolean | 'gzip' | 'zstd';
  /**
   * 1 (fast) to 9 (small), as gzip and zstd mean them. Default: 6 for gzip, 3 for zstd. Databases take the same time up to gzip's 6, and are smaller
   * than a copy is with gzip's (`docs/internals/benchmarks.md`).
   */
  compressionLevel: number;
  /**
   * After each backup, remove those that are older than this whole number of days, from 1. The newest backup whose source
   * was not damaged always stays. Default: nothing is removed.
   */
  retentionDays: number;
  /** After each backup, keep only this many, from 1. The newest good one always stays, and pinned ones do not count. Default: no limit. */
  maxBackups: number;
  /** Save `.kg/vectors/`, `.kg/vectors.db` and `.kg/reasoning-bank/`; a snapshot never does. Default: true. */
  includeVectors: boolean;
  /** Save `.kg/plugins/`; a snapshot never does. Default: true. */
  includePluginData: boolean;
  /**
   * Of the good backups, keep the newest of each of the last so many hours, days, ISO weeks, months and years (of `backup.timezone` in the project's settings, else UTC) that have one, and the
   * `last` so many at all, as restic's `forget` does; whatever `retentionDays` and `maxBackups` say. Where neither of those is set,
   * everything else is removed. Default: no rules.
   */
  keep: KeepRules;
  /**
   * How many backups a chain may have, the full one included, from 1. An incremental backup without `basedOn` that would make a longer one becomes
   * a full backup, with `KG_WARN_FULL`: a restore reads the whole chain, and none of it can be removed before its last. Default: 64.
   */
  maxChainLength: number;
  /** What a restore replaced is kept for this whole number of days, from 1. Default: 7. */
  undoRetentionDays: number;
  /**
   * Reject with `KG_INCOMPLETE` where a backup would not hold the project as it is: a file that cannot be read or changed
   * meanwhile, a link out of the project, a damaged database, commits to another WAL. Default: false, which reports them in `warnings`.
   */
  strict: boolean;
  /**
   * Files to leave out, as in a `.gitignore` at the project's root or in `.kg`: `*.tmp`, `plugins/cache/`, `!keep.tmp`, or an absolute path inside
   * the project. They never apply to the graph database; one that matches nothing is a `KG_WARN_EXCLUDE`. `docs/guide/recovery.md` describes them. Default: none.
   */
  excludePatterns: string[];
  /** A cron expression, for {@link BackupManager.scheduler}. By itself it starts nothing. Default: none. */
  schedule: string;
  /** Called after each backup. What it throws becomes a warning of the process and changes nothing. */
  onSuccess: (backup: Backup) => void;
  /** Called after each `createBackup` that rejects, with what it rejects with. */
  onFailure: (error: Error) => void;
}

/** How many backups to keep of each period: whole numbers from 1. A rule that is not used up keeps the oldest backup too. */
export interface KeepRules {
  last?: number;
  hourly?: number;
  daily?: number;
  weekly?: number;
  monthly?: number;
  yearly?: number;
}

/** The argument of {@link createBackupManager}: any part of a {@link BackupConfig}, and the following. */
export interface BackupManagerConfig extends Partial<BackupConfig> {
  /** The directory that holds `.kg/`. Default: the working directory of the moment. */
  projectRoot?: string;
  /** Look in what is saved for what SQLite's `quick_check` finds. Default: true. */
  checkSource?: boolean;
  /**
   * How long, in milliseconds, a call waits for another writer of the same `backupDir`, and for a lock that another process
   * holds on a database. Default: 60000.
   */
  lockTimeout?: number;
  /**
   * Keys of encrypted backups. Where this is given, new backups are encrypted with it, and what is encrypted is opened with it. Default: the keys
   * that `.kg/config.json` names (`backup.passphraseFile`, `backup.recipients`, `backup.identityFile`); whether new backups are encrypted, `backup.encrypt`
   * says there. `false`: new backups are plain, also after an encrypted one, which is `KG_KEY_INVALID` otherwise.
   */
  encryption?: EncryptionOptions | false;
  /** For object stores, which this release does not have: setting it is `KG_UNSUPPORTED`. */
  storageOptions?: Record<string, string | undefined>;
  /** The `kg` executable that reads the project's files. Default: the one of this installation. For bundlers. */
  kgPath?: string;
}

/**
 * Keys for the encryption of [age](https://age-encryption.org/v1). New backups are encrypted to `recipients`, where there are any; else by the passphrase; else to the
 * identities. Backups are opened by passphrase and identities, whichever fits.
 *
 * Whoever loses them loses the backups: keep a copy elsewhere. Wrong ones are `KG_KEY_INVALID` and `KG_INVALID_OPTION` here, and `KG_KEY_WRONG` where a
 * backup is opened; without any that could open it, it is `KG_KEY_NEEDED`.
 */
export interface EncryptionOptions {
  /** One line that is not blank. Each archive that is made or opened with it takes half a second and 256 MiB of memory, which is what makes guessing dear. */
  passphrase?: string;
  /**
   * A file whose only line is the passphrase; read when it is needed, and not by this process. It may not lie in `.kg/`. If others can read or replace it, or
   * it lies next to the backups, each use has a `KG_WARN_KEY_EXPOSED`.
   */
  passphraseFile?: string | URL;
  /** Public keys, `age1…`, at most 128: each of their owners can open what is made, and nobody else; this machine only with the `identityFile` of one. */
  recipients?: string[];
  /** A file that `age-keygen` wrote. Its identities open backups. It may not lie in `.kg/`. Others may not read it, as of `passphraseFile`. */
  identityFile?: string | URL;
  /**
   * Refuse to restore, verify or rehearse a backup that is not encrypted (`KG_NOT_ENCRYPTED`): whoever can write to the directory of the
   * backups can put a plain one there. Without this, such a backup has a `KG_WARN_NOT_ENCRYPTED`. Default: false.
   */
  requireEncryption?: boolean;
}

/** Backs up and restores one project. */
export declare class BackupManager {
  /** As {@link createBackupManager}. */
  constructor(config?: BackupManagerConfig);

  /** Absolute. */
  readonly projectRoot: string;
  /** Absolute. Where neither the configuration nor `.kg/config.json` names one: `.kg/backups`. The latter is looked up each time. */
  readonly backupDir: string;

  /**
   * Saves the project as it is at one moment, while others write to it. When the promise resolves, archive and manifest are
   * on the disk; when it rejects, nothing of the attempt is left.
   *
   * A database that fails its check is saved all the same: see `integrity` and `warnings` of the result.
   *
   * @throws {KgError} `KG_NO_PROJECT`, `KG_NO_DATABASE`, `KG_DATABASE_BUSY`, `KG_DATABASE_UNREADABLE`, `KG_BACKUP_DIR_INVALID`,
   * `KG_BACKUP_DIR_IN_PROJECT`, `KG_STORE_LOCKED`, `KG_TARGET_LOCKED`, `KG_INCOMPLETE`, `KG_BACKUP_NOT_FOUND`,
   * `KG_BASE_UNUSABLE`, `KG_CHAIN_BROKEN`, `KG_CHECKSUM_MISMATCH`, `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`,
   * `KG_READER_…`, `KG_KEY_NEEDED`, `KG_KEY_WRONG`, `KG_KEY_INVALID`, `KG_INVALID_OPTION`, `KG_UNSUPPORTED`
   */
  createBackup(options?: CreateBackupOptions): Promise<CreatedBackup>;

  /** All backups of `backupDir`, those of other projects too, newest first, and last those that are dated ahead; none where the directory does not exist. */
  listBackups(): Promise<Backup[]>;

  /** @throws {KgError} `KG_BACKUP_NOT_FOUND` */
  getBackup(id: string): Promise<Backup>;

  /**
   * The newest good backup, which is what `latest` and `latest.tar.gz` mean too: its source was not found damaged, all that it rests on is there,
   * and it is not the safety backup of a repair. Where there is no such one, the newest. Of this project, where it has any in `backupDir`; the link is of all.
   *
   * @throws {KgError} `KG_NO_BACKUPS` where there is none
   */
  getLatestBackup(): Promise<Backup>;

  /**
   * Removes a backup, its archive and manifest. One that incremental backups rest on is refused, or removed with them.
   *
   * @returns the ids of what was removed
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_BACKUP_NEEDED`, `KG_BACKUP_PINNED` (then nothing is removed), `KG_STORE_LOCKED`,
   * `KG_PERMISSION_DENIED`, `KG_IO`
   */
  deleteBackup(id: string, options?: DeleteOptions): Promise<string[]>;

  /**
   * Keeps a backup, and what it rests on, until it is unpinned: retention keeps it beside those that its limits and rules keep, and
   * {@link deleteBackup} refuses it. The pin is a file beside the archive. Pinned again, it gets the new reason.
   *
   * ```ts
   * await manager.pin(backup.id, 'the state that the audit saw');
   * ```
   *
   * @param reason at most 4096 bytes
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_INVALID_OPTION`, `KG_STORE_LOCKED`, `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  pin(id: string, reason?: string): Promise<Backup>;

  /**
   * Takes the pin of a backup away; one that has none stays as it is.
   *
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_STORE_LOCKED`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  unpin(id: string): Promise<Backup>;

  /**
   * Writes a full backup of what an incremental one and those that it rests on describe, without the project. It has the `timestamp`,
   * `description` and `integrity` of the incremental one, an id of the same second, and `consolidatedFrom`. Every byte of the chain is
   * checked; nothing that exists is changed, and no retention runs. It is encrypted where that one is, or where new backups are. `backupDir` needs room for the project as it is restored, and the new archive.
   *
   * Afterwards the chain can be deleted, as far as no other incremental backup rests on it.
   *
   * @throws {KgError} `KG_INVALID_OPTION` where the backup rests on no other; `KG_BACKUP_NOT_FOUND`, `KG_CHAIN_BROKEN`, `KG_CHECKSUM_MISMATCH`,
   * `KG_NOT_A_BACKUP`, `KG_FORMAT_NEWER`, `KG_KEY_NEEDED`, `KG_KEY_WRONG`, `KG_KEY_INVALID`, `KG_STORE_LOCKED`, `KG_NO_SPACE`, `KG_PERMISSION_DENIED`,
   * `KG_IO`
   */
  consolidate(id: string, options?: ConsolidateOptions): Promise<Backup>;

  /**
   * Removes what `retentionDays`, `maxBackups` and `keep` of the configuration do not keep. Each successful backup does so too.
   *
   * @throws {KgError} `KG_INVALID_OPTION` where none is set; `KG_STORE_LOCKED`, `KG_IO`
   */
  prune(options?: PruneOptions): Promise<PruneResult>;

  /**
   * Whether every byte of an archive is as it was written, and the manifest beside it (if there is one) agrees.
   *
   * @param backup path of an archive, id of a backup, or `'latest'`
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_KEY_NEEDED`, `KG_KEY_WRONG`, `KG_KEY_INVALID`, `KG_FORMAT_NEWER`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  verifyBackup(backup: string, options?: LongCallOptions): Promise<boolean>;

  /** As {@link verifyBackup}, with a report of what is wrong, what it affects, and what to do. */
  checkBackup(backup: string, options?: LongCallOptions): Promise<CheckReport>;

  /**
   * Restores a backup, or parts of it. The archive is unpacked beside its place and every byte checked before the target is
   * touched. Files that the backup does not hold stay as they are.
   *
   * With `overwrite`, what is replaced is kept in `safetyCopy` of the result. A sound database gets its new content through
   * SQLite, in one transaction: whoever has it open, this process too, keeps its connection and sees the new content. A
   * damaged one, or one of another page size, is replaced as a file, which is refused while a process has it open. Both are refused
   * while a process commits to another WAL than the one next to the database.
   *
   * It is done as a whole or not at all: a failure puts everything back, and after a kill at any instant the next backup or
   * restore of the project puts everything back or completes it (`KG_WARN_RECOVERED`). No symbolic link is followed.
   *
   * @throws {KgError} `KG_TARGET_EXISTS`, `KG_DATABASE_IN_USE`, `KG_CHECKSUM_MISMATCH`, `KG_CHAIN_BROKEN`, `KG_BACKUP_NOT_FOUND`,
   * `KG_NO_BACKUPS`, `KG_FORMAT_NEWER`, `KG_TARGET_INVALID`, `KG_TARGET_LOCKED`, `KG_NOT_A_BACKUP`, `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`,
   * `KG_KEY_NEEDED`, `KG_KEY_WRONG`, `KG_KEY_INVALID`, `KG_READER_…`, `KG_INVALID_OPTION`
   */
  restore(options: RestoreOptions): Promise<RestoreResult>;

  /**
   * Puts back what the newest restore into a project replaced, and takes away what it added; into a database that is open,
   * through SQLite, as {@link restore} does. What is there before is kept in its turn: undoing twice leads back. With `earlier`, each call goes one
   * restore further back instead.
   *
   * @throws {KgError} `KG_NOTHING_TO_UNDO`, `KG_NO_PROJECT`, `KG_DATABASE_IN_USE`, `KG_DATABASE_BUSY`, `KG_TARGET_INVALID`,
   * `KG_TARGET_LOCKED`, `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`, `KG_READER_…`, `KG_INVALID_OPTION`
   */
  undoRestore(options?: UndoOptions): Promise<UndoResult>;

  /**
   * Proves that a backup can be restored: restores it into a temporary directory, checks what comes of it, counts its nodes and edges, and
   * says how long that took. The project is not touched and nothing is left; what a killed process leaves, the next one removes.
   *
   * @throws {KgError} what {@link restore} and {@link IntegrityChecker.runChecks} reject with
   */
  rehearse(options?: RehearseOptions): Promise<Rehearsal>;

  /**
   * A scheduler of this manager, with the `schedule` of its configuration unless `options` has one. The `onSuccess` and `onFailure` of
   * the configuration are called for each backup as ever, also for an attempt that is retried; those of `options` belong to the scheduler.
   *
   * @throws {KgError} `KG_INVALID_OPTION` for a wrong option, or where there is no schedule
   */
  scheduler(options?: Partial<Omit<BackupSchedulerOptions, 'backupManager'>>): BackupScheduler;
}

/**
 * Makes backups on a schedule, in this process, from `start()` to `stop()`. `kg serve` does the same without one.
 *
 * ```ts
 * const scheduler = new BackupScheduler({ backupManager, schedule: '0 2 * * *', type: 'incremental', fullBackupInterval: 7 });
 * scheduler.start();
 * ```
 *
 * A run is one backup, with the wait for another writer of the store. Runs never overlap; times of the schedule that pass during a run
 * are dealt with by it. See `docs/guide/schedule.md` for what happens when clocks change, machines sleep and backups fail.
 */
export declare class BackupScheduler {
  /** @throws {KgError} `KG_INVALID_OPTION`: a wrong expression is refused here, with the field that is wrong. */
  constructor(options: BackupSchedulerOptions);

  /** From now on, until `stop()`. Does nothing where it is started already. */
  start(): void;

  /** Resolves when no run is in progress; nothing begins any more. A failure that would have been retried is reported now. */
  stop(options?: StopOptions): Promise<void>;

  /**
   * A backup as the schedule makes them, at once, whether started or not; where a run is in progress, after it (calls that wait share one).
   * A failure is not retried: it is reported and rejects.
   */
  runNow(): Promise<CreatedBackup>;

  /** When the next run begins, with its jitter; `null` while stopped. */
  nextRun(): Date | null;

  status(): SchedulerStatus;
}

/** The argument of {@link BackupScheduler}. */
export interface BackupSchedulerOptions {
  backupManager: BackupManager;
  /**
   * Cron: minute, hour, day of the month, month, day of the week, with an optional field for seconds before them. Names (`MON`), lists,
   * ranges, steps, `L` (last), `#` (`FRI#2`, the second Friday), `W` (the nearest weekday), `@hourly` to `@yearly`.
   */
  schedule: string;
  /** Default: `full`. An incremental backup with nothing whole to rest on becomes a full one. */
  type?: BackupType;
  /**
   * With `incremental`: a full backup where the newest one was made this whole number of days ago or more, from 1; days of the calendar in
   * `timezone`. Default: never for its age.
   */
  fullBackupInterval?: number;
  /** A name of the IANA database: `Europe/Berlin`. Default: the time zone of the system. */
  timezone?: string;
  /**
   * Make up, with one run, for times that were missed while the machine slept or no process ran: those since the newest backup of this
   * project (for other types than `snapshot`, the newest that is not one). Default: true.
   */
  catchUp?: boolean;
  /** Begin each run up to this many milliseconds after its time, to spread load; up to one day. Default: 0. */
  jitter?: number;
  /** How often a failed run is tried again before it is reported, up to 100. Default: 3. */
  retries?: number;
  /** Before the first retry, in milliseconds; it doubles with each, up to one hour. Default: 60000. */
  retryDelay?: number;
  /** Keep Node running while the scheduler is started. Default: false. A run in progress always does. */
  keepAlive?: boolean;
  /** For tests: where the time comes from. Default: that of the system. */
  clock?: SchedulerClock;
  /** Called after each run. What it throws becomes a warning of the process and changes nothing. */
  onSuccess?: (backup: CreatedBackup) => void;
  /** Called for each failed run once its retries have failed too. An aborted run is no failure. */
  onFailure?: (error: Error) => void;
}

export interface SchedulerClock {
  /** Milliseconds since the epoch. */
  now(): number;
  setTimeout(callback: () => void, ms: number): unknown;
  clearTimeout(timer: unknown): void;
}

export interface StopOptions {
  /** End a run in progress instead of waiting for it. It leaves nothing. Default: false. */
  abort?: boolean;
}

/** `catch-up`: its time had been missed. `manual`: {@link BackupScheduler.runNow}. */
export type RunTrigger = 'schedule' | 'catch-up' | 'retry' | 'manual';

/** Times are milliseconds since the epoch. Counts are of this object. */
export interface SchedulerStatus {
  started: boolean;
  running: { trigger: RunTrigger; startedAt: number } | null;
  nextRun: number | null;
  lastRun: SchedulerRun | null;
  /** Each attempt counts. */
  runs: number;
  failures: number;
  consecutiveFailures: number;
}

/** Has `backup` or `error`. */
export interface SchedulerRun {
  trigger: RunTrigger;
  startedAt: number;
  durationMs: number;
  backup?: CreatedBackup;
  error?: Error;
}

/** What every long call takes. */
export interface LongCallOptions {
  /** Told how far the call is, at most ten times in any second. What it throws becomes a warning of the process. */
  onProgress?: (progress: Progress) => void;
  /** Ends the call: it rejects with an `AbortError` (`code` `'ABORT_ERR'`, `cause` the signal's reason) and leaves nothing. */
  signal?: AbortSignal;
}

export interface Progress {
  /**
   * `waiting` for another writer, `saving` (also what is consolidated), `verifying`, `unpacking`, `applying` what was unpacked, `checking`,
   * `repairing`.
   */
  phase: 'waiting' | 'saving' | 'verifying' | 'unpacking' | 'applying' | 'checking' | 'repairing';
  /** Bytes of the project when saving, bytes to read when checking, bytes of the archive otherwise. */
  bytesDone: number;
  /** 0 while it is not known. */
  bytesTotal: number;
}

/**
 * The guide's section "Backup Types". `full` is everything below `.kg/`, `snapshot` the graph database alone, `incremental` what
 * differs from another backup: files whose content changed, and the changed pages of databases.
 */
export type BackupType = 'full' | 'snapshot' | 'incremental';

/** The argument of {@link BackupManager.createBackup}. What is absent comes from the manager's configuration. */
export interface CreateBackupOptions
  extends LongCallOptions,
    Partial<
      Pick<
        BackupManagerConfig,
        'compression' | 'compressionLevel' | 'includeVectors' | 'includePluginData' | 'excludePatterns' | 'checkSource' | 'strict'
      >
    > {
  /** Default: `backup.type` of `.kg/config.json`, else `full`. */
  type?: BackupType;
  /** A note that is kept with the backup. */
  description?: string;
  /**
   * The id of the backup that an incremental one rests on, however long the chain gets. Default: the newest good one of this project; where
   * there is none, or its chain has `maxChainLength` backups, a full backup is made, with `KG_WARN_FULL`.
   */
  basedOn?: string;
  /**
   * Encrypt it. Default: whether `encryption` of the manager is given, else `backup.encrypt` of `.kg/config.json`. A chain is encrypted as a whole, with one key, or not
   * at all: an incremental backup rests on the newest one that is like it; with another key a full one is made, with `KG_WARN_FULL`.
   * Only `false` makes a plain backup after an encrypted one.
   */
  encrypt?: boolean;
}

/** A backup. */
export interface Backup {
  /** `backup-{YYYYMMDD-HHMMSS}`, in UTC, with a suffix `-2`, `-3` … where that second is taken. */
  id: string;
  type: BackupType;
  /** Of the archive, absolute. */
  path: string;
  /** Of the archive, in bytes. */
  size: number;
  /** Of the sidecar next to it, in bytes. Both together are what the backup takes on the disk. */
  sidecarSize: number;
  /** Of the archive: `sha256:` and 64 hexadecimal digits. */
  checksum: string;
  /** When the backup began, in milliseconds since the epoch. */
  timestamp: number;
  /** Of an encrypted one only as the result of `createBackup` and `consolidate`: beside the archive nothing is written that names or quotes what is in it. */
  description?: string;
  /** Which parts the backup holds. */
  contents: BackupContents;
  stats: BackupStats;
  /** What was found, of what `quick_check` looks for, in the databases as they were saved. */
  integrity: SourceIntegrity;
  /** What did not stop the backup but should be seen. In lists, none of an encrypted one. */
  warnings: Warning[];
  /**
   * Present if the backup does not hold all of the project as it was: a file or directory could not be read or changed meanwhile, or a link leads out
   * of the project. The warnings of `createBackup` name what. What `excludePatterns` leaves out does not count.
   */
  incomplete?: true;
  /**
   * Present if the graph database has 0 bytes, or no table while an earlier good backup has some: `latest` means this backup only if there is no good
   * one.
   */
  emptied?: true;
  /** Present where only a key opens it. */
  encrypted?: true;
  /** The backup that an incremental one rests on. */
  basedOn?: string;
  /** The incremental backup that this full one was made of. */
  consolidatedFrom?: string;
  /** Made before a repair, of what was about to be repaired: never what `latest` means while there is another good backup. */
  safetyBackup?: true;
  /** Present while nothing removes it: why, and since when, in milliseconds since the epoch. */
  pinned?: { reason?: string; at: number };
}

/** The result of {@link BackupManager.createBackup}. */
export interface CreatedBackup extends Backup {
  /**
   * Bytes of the archive that were taken over from an earlier one of the store, because what they hold did not change. The archive is
   * none the less whole by itself. 0 where there was none of the same compression.
   */
  reusedBytes: number;
  /** What the success of this backup removed; absent where no limit is set. */
  retention?: PruneResult;
  /** Why the limits were not applied, where some are set: an old backup could not be read, so none was removed. */
  retentionError?: { code: KgErrorCode; message: string; remedy: string };
}

/** The second argument of {@link BackupManager.deleteBackup}. */
export interface DeleteOptions extends LongCallOptions {
  /** Remove the backups that rest on it too. Default: false. */
  cascade?: boolean;
}

/** The second argument of {@link BackupManager.consolidate}. What is absent comes from the manager's configuration. */
export interface ConsolidateOptions
  extends LongCallOptions,
    Partial<Pick<BackupManagerConfig, 'compression' | 'compressionLevel'>> {}

/** The argument of {@link BackupManager.prune}. */
export interface PruneOptions extends LongCallOptions {
  /** Only say what would be removed. Default: false. */
  dryRun?: boolean;
}

export interface PruneResult {
  dryRun: boolean;
  /** One for every backup, newest first. */
  decisions: PruneDecision[];
  /** Bytes of the archives and sidecars that were (with `dryRun`, would be) removed. */
  bytesFreed: number;
  /** Archives that could not be decided on: they are not whole. */
  warnings: Warning[];
}

export interface PruneDecision {
  /** Of the backup. */
  id: string;
  kept: boolean;
  /**
   * `pinned`, `newest-good`, `just-made`, `keep-…` (a rule), `within-limits` and `needed` (by one that is kept) keep a backup; `too-old`, `too-many`
   * and `no-rule` remove it. If the newest good backup is a snapshot, of a graph without nodes, or incomplete, the newest good one that is none of it
   * is `newest-good` too, and the newest of a graph with nodes.
   */
  reason:
    | 'pinned'
    | 'newest-good'
    | 'just-made'
    | 'keep-last'
    | 'keep-hourly'
    | 'keep-daily'
    | 'keep-weekly'
    | 'keep-monthly'
    | 'keep-yearly'
    | 'within-limits'
    | 'needed'
    | 'too-old'
    | 'too-many'
    | 'no-rule';
  /** Why it should have been removed and could not be. */
  error?: { code: KgErrorCode; message: string; remedy: string };
}

export interface BackupContents {
  database: boolean;
  config: boolean;
  vectors: boolean;
  plugins: boolean;
}

export interface BackupStats {
  totalFiles: number;
  /** Bytes before compression. */
  totalSize: number;
  /** Bytes of the archive. */
  compressedSize: number;
  /** Rows of `nodes` in the saved database; 0 where there is no such table. */
  nodeCount: number;
  /** Rows of `edges` in the saved database; 0 where there is no such table. */
  edgeCount: number;
  /** Tables of the saved graph database, without SQLite's own. Absent if it could not be read. */
  tableCount?: number;
}

export interface SourceIntegrity {
  /**
   * `partial`: everything that could be checked is sound, and `notChecked` names the rest; such a backup is good. `failed`: damage was found, or the
   * graph database has no table any more. `skipped`: `checkSource` is off.
   */
  status: 'ok' | 'partial' | 'failed' | 'skipped';
  /** SQLite's findings, each after the path of its database; at most 100 a database. */
  messages: string[];
  /** With `partial`: what could not be checked, and the function, collation, tokenizer or module that SQLite lacks here. */
  notChecked?: string[];
  /**
   * Full-text indexes were read through too, which can take longer than everything else together. An incremental backup that rests on one
   * with sound databases checks every page, table and index of them, and leaves full-text indexes, which FTS5 can make again, to
   * the next full backup and to {@link IntegrityChecker}.
   */
  fullText: boolean;
}

export interface Warning {
  code:
    | 'KG_WARN_SOURCE_DAMAGED'
    | 'KG_WARN_NOT_CHECKED'
    | 'KG_WARN_CONSTRAINT'
    | 'KG_WARN_DATABASE_EMPTY'
    | 'KG_WARN_FILE_CHANGED'
    | 'KG_WARN_FILE_UNREADABLE'
    | 'KG_WARN_NOT_A_FILE'
    | 'KG_WARN_LINK_OUTSIDE'
    | 'KG_WARN_CONFIG'
    | 'KG_WARN_STORE'
    | 'KG_WARN_ATTRIBUTES'
    | 'KG_WARN_FULL'
    | 'KG_WARN_RECOVERED'
    | 'KG_WARN_HOOK'
    | 'KG_WARN_VECTORS'
    | 'KG_WARN_OTHER_PROJECT'
    | 'KG_WARN_SAME_FILE'
    | 'KG_WARN_WAL_NOT_IN_USE'
    | 'KG_WARN_PASSED_OVER'
    | 'KG_WARN_INCOMPLETE'
    | 'KG_WARN_STORE_EMPTIED'
    | 'KG_WARN_EXCLUDE'
    | 'KG_WARN_KEY_EXPOSED'
    | 'KG_WARN_SETTINGS_CHANGED'
    | 'KG_WARN_NOT_ENCRYPTED';
  message: string;
  /** What it is about, relative to the project, where that is one file. */
  path?: string;
}

/** The result of {@link BackupManager.checkBackup}. */
export interface CheckReport {
  /** No problem was found. */
  valid: boolean;
  problems: Problem[];
  /** Of the archive. */
  path: string;
  /** The manifest inside the archive; absent where it could not be read. */
  manifest?: Manifest;
  /**
   * `KG_WARN_PASSED_OVER` if `latest` was asked for and means an older backup than the newest; and what concerns the keys that
   * opened it, or the settings.
   */
  warnings: Warning[];
  /** Bytes of the archive. */
  size: number;
  /** Of the archive as it is, 64 hexadecimal digits. */
  sha256: string;
  durationMs: number;
}

export interface Problem {
  code:
    | 'KG_PROBLEM_ARCHIVE'
    | 'KG_PROBLEM_BLOCK'
    | 'KG_PROBLEM_STRUCTURE'
    | 'KG_PROBLEM_ENTRY'
    | 'KG_PROBLEM_CHAIN'
    | 'KG_PROBLEM_SIDECAR';
  message: string;
  /** Entries of the archive; empty where it is the archive as a whole. */
  affects: string[];
  /** What to do. */
  remedy: string;
}

/** `manifest.json` of an archive: the guide's section "Backup Manifest", and `docs/reference/format.md`. */
export interface Manifest {
  /** Of the format. */
  version: string;
  id: string;
  type: BackupType;
  /** RFC 3339, in UTC. */
  timestamp: string;
  description?: string;
  contents: BackupContents;
  /** Here `compressedSize` is the size of the archive before its manifest. */
  stats: BackupStats;
  /** Entry to `sha256:` and 64 hexadecimal digits. */
  checksums: Record<string, string>;
  /** Files, directories and links, in the order of the archive. */
  files: ManifestFile[];
  integrity: SourceIntegrity;
  warnings?: Warning[];
  basedOn?: string;
  /** Of a full backup that was made of an incremental one: the id of that. */
  consolidatedFrom?: string;
  /** Of a backup that was made before a repair, of what was about to be repaired. */
  safetyBackup?: true;
  /** It does not hold all of the project. */
  incomplete?: true;
  /** Its graph database has 0 bytes, or no table while an earlier good backup of the project has some. */
  emptied?: true;
  /** Of an incremental backup: `sha256:` and the digest of the archive that it rests on. */
  basedOnChecksum?: string;
  /** Of an incremental backup: paths of the one it rests on that are no more. */
  deleted?: string[];
  /** `gzip -6` and so on; absent for a plain archive. */
  compression?: string;
  project?: string;
  tool: { name: string; version: string };
}

export interface ManifestFile {
  /** Its name in the archive. */
  entry: string;
  /** Where it lay, relative to the project's root, with `/`; `%` and bytes that are not UTF-8 as `%XX`. */
  path: string;
  component: Component;
  /** Absent for a file. */
  type?: 'directory' | 'link';
  /** Of a link: where it points to, written like `path`. */
  target?: string;
  /** Present and true for a SQLite database. */
  database?: boolean;
  /** In bytes. */
  size: number;
  /** Permission bits. */
  mode: number;
  /** Of an incremental backup: `base` where the file is as it is there, `pages` where the entry has the changed pages alone. */
  stored?: 'base' | 'pages';
  /** Where `stored` is there: of the restored content, 64 hexadecimal digits. */
  sha256?: string;
  /** Where `stored` is `pages`: see `docs/reference/format.md`. */
  pages?: { pageSize: number; changed: number; root: string };
  /** RFC 3339, in UTC. */
  mtime: string;
}

/** A part of a project that can be restored by itself; `files` is everything below `.kg/` that is none of the others. */
export type Component = 'database' | 'config' | 'vectors' | 'plugins' | 'files';

/** The argument of {@link BackupManager.restore}: one of `backupPath` and `backupId` is needed. */
export interface RestoreOptions extends LongCallOptions {
  /** Path of an archive. Its neighbours are not needed. */
  backupPath?: string;
  /** Id of a backup of `backupDir`, or `'latest'`. */
  backupId?: string;
  /** The project's root to restore into, made where it does not exist. Default: the manager's `projectRoot`. */
  targetDir?: string;
  /** Replace files that exist, keeping what they were. Default: false, which rejects with `KG_TARGET_EXISTS`. */
  overwrite?: boolean;
  /** Restore only these parts. Default: all that the backup holds. */
  only?: Component[];
  /**
   * Restore only what matches one of these patterns, read as those of `excludePatterns`: `['plugins/glossary', 'vectors/*.f32']`. One of several that
   * matches nothing is a `KG_WARN_INCOMPLETE`. Default: everything.
   */
  paths?: string[];
  /**
   * Replace a database that cannot be replaced through SQLite even while another process has it open, or commits to another WAL.
   * That process keeps the old file. Default: false.
   */
  force?: boolean;
  /** Check everything that {@link BackupManager.verifyBackup} does, and report what would happen, without changing anything. Default: false. */
  dryRun?: boolean;
}

/** The argument of {@link BackupManager.undoRestore}. */
export interface UndoOptions extends LongCallOptions {
  /** The project's root. Default: the manager's `projectRoot`. */
  targetDir?: string;
  /** Undo no undo, but the newest restore that is not undone: called again and again, it leads to what was before the first one. Default: false. */
  earlier?: boolean;
  /** As for {@link RestoreOptions}. Default: false. */
  force?: boolean;
  /** Report what would happen, without changing anything. Default: false. */
  dryRun?: boolean;
}

/** The result of {@link BackupManager.undoRestore}. With `dryRun`, what it would do. */
export interface UndoResult {
  /** The backup whose restore was undone; `'repair'` where a repair had replaced a damaged database. */
  id: string;
  /** When that was restored, in milliseconds since the epoch. */
  restoredAt: number;
  targetDir: string;
  dryRun: boolean;
  /** Files that were put back. */
  filesRestored: number;
  /** Files that the restore had added. */
  filesRemoved: number;
  /** The directory that keeps what was there before this undo; absent in a dry run. */
  safetyCopy?: string;
  warnings: Warning[];
  durationMs: number;
}

/** The result of {@link BackupManager.restore}. With `dryRun`, what a restore would do. */
export interface RestoreResult {
  /** Of the backup. */
  id: string;
  /** Its archive. */
  backupPath: string;
  targetDir: string;
  dryRun: boolean;
  filesRestored: number;
  bytesRestored: number;
  /** How many of them took the place of an existing file. */
  filesReplaced: number;
  /** The directory that keeps what was replaced, under the paths it had in the project. */
  safetyCopy?: string;
  warnings: Warning[];
  durationMs: number;
}

/**
 * Checks a database, the files of its project and its vectors, and repairs what can be repaired without guessing. The guide's section
 * "Recovery Verification".
 *
 * Everything happens in a process of its own, on a private copy of one commit: whoever writes the database goes on, the host's
 * connections and locks stay as they are, and a check changes nothing.
 *
 * ```ts
 * const checker = new IntegrityChecker(db);
 * const { healthy, issues } = await checker.runChecks();
 * if (!healthy) console.log(await checker.repair(issues));
 * ```
 */
export declare class IntegrityChecker {
  /**
   * @param db the path of a database or of a project's root; or a better-sqlite3 handle, a node:sqlite handle or the host's
   * `KnowledgeGraphDatabase`, of which only the path is asked for. A database that lies in `.kg/`, or that the configuration of the
   * nearest project above it names, is checked with that project, any other one alone.
   * @throws {KgError} `KG_INVALID_OPTION` for a database in memory, which has no file, and for what is no database
   */
  constructor(db: string | object, options?: IntegrityCheckerOptions);

  /** What is checked: the absolute path of a database or of a project's root. */
  readonly path: string;

  /**
   * Runs the checks. Whatever is wrong is an issue of the result; it rejects only where checks could not be run at all.
   *
   * A check of a database takes a copy of it in the system's directory for temporary files (`TMPDIR`), which is gone afterwards.
   *
   * @throws {KgError} `KG_NO_PROJECT`, `KG_DATABASE_BUSY`, `KG_DATABASE_UNREADABLE`, `KG_TARGET_LOCKED`, `KG_NO_SPACE`,
   * `KG_PERMISSION_DENIED`, `KG_IO`, `KG_READER_…`, `KG_INVALID_OPTION`; with `repairMode` also what {@link repair} rejects with
   */
  runChecks(options?: CheckOptions): Promise<IntegrityResult>;

  /**
   * Repairs. First a backup is made: a snapshot, or a full one where vectors are to be changed. Then indexes and full-text indexes are
   * built again, and edges, rows of `node_tags` and vectors that lead nowhere are moved to the table `kg_repair_removed` of the same
   * database, as JSON with time and reason; in one transaction a database, through SQLite, so that open connections go on with what is
   * right. Then everything is checked again.
   *
   * Of a damaged database what can be read is saved in a new one, which takes its place while nothing has it open; the damaged one is
   * kept in `.kg/restore-undo/`, and {@link BackupManager.undoRestore} puts it back. What leads nowhere because its row was lost is
   * moved aside in the same call where it is an error. Where a newer good backup exists, restoring it brings back more.
   *
   * Of the issues that are handed in only the codes count: what they stand for is searched for again. What cannot be repaired is left as
   * it is. Where there is nothing to repair, nothing is changed and no backup is made.
   *
   * @throws {KgError} `KG_NO_PROJECT` where pages of a database are damaged that belongs to no project, so that nothing could keep the damaged one;
   * `KG_DATABASE_BUSY`; `KG_DATABASE_IN_USE` where a damaged database is open in this process or another one, or a process commits to another WAL than
   * the one next to it: close it first; `KG_INVALID_OPTION` where the configured database lies outside the project and was not named; and
   * what {@link runChecks} and {@link BackupManager.createBackup} reject with
   */
  repair(issues: Pick<Issue, 'code'>[], options?: LongCallOptions): Promise<RepairResult>;
}

/** The second argument of {@link IntegrityChecker}. */
export interface IntegrityCheckerOptions {
  /**
   * The project's root, where the database's path does not tell. A database outside the project is repaired only if it is named, so:
   * `new IntegrityChecker('/var/lib/graph.db', { projectRoot })`.
   */
  projectRoot?: string;
  /** Where the backup before a repair goes. Default: `.kg/backups` of the project. */
  backupDir?: string;
  /** Encrypt that backup. Default: whether and how `.kg/config.json` says. `false`: it is plain, also after an encrypted one. */
  encryption?: EncryptionOptions | false;
  /** How long, in milliseconds, to wait for a lock that another process holds. Default: 60000. */
  lockTimeout?: number;
  /** As in {@link BackupManagerConfig}. */
  kgPath?: string;
}

/** The argument of {@link IntegrityChecker.runChecks}. */
export interface CheckOptions extends LongCallOptions {
  /** Pages, indexes, full-text indexes, references, rows, the WAL. Default: true. */
  checkDatabase?: boolean;
  /** Configuration, documents of nodes, what cannot be read, permissions. Default: true. */
  checkFiles?: boolean;
  /** `.kg/vectors.db`, and `NAME.f32` with `index.json` in `.kg/vectors/`. Default: true. */
  checkVectors?: boolean;
  /** Repair everything that can be repaired, as {@link IntegrityChecker.repair}; goes with all of the checks. Default: false. */
  repairMode?: boolean;
}

/** The result of {@link IntegrityChecker.runChecks}; with `repairMode`, what is so after the repair. */
export interface IntegrityResult {
  /** No issue is of the severity `error`. */
  healthy: boolean;
  /** Errors first. */
  issues: Issue[];
  checked: Checked;
  durationMs: number;
  /** With `repairMode`. */
  repair?: RepairSummary;
}

/** What was checked. */
export interface Checked {
  /** The project's root; absent for a database that belongs to none. */
  project?: string;
  database: string;
  /** Of the database, in bytes. */
  databaseSize: number;
  /** Rows; 0 where the structure is damaged or was not looked at. */
  nodes: number;
  edges: number;
  /** How many nodes name a document. */
  documents: number;
  /** Files below `.kg/`. */
  files: number;
  vectors: number;
}

/** One kind of thing that is wrong in one place, however often. */
export interface Issue {
  code: IssueCode;
  /** `error`: not healthy; `warning`: somebody should see to it; `info`: good to know. */
  severity: 'error' | 'warning' | 'info';
  component: 'database' | 'files' | 'vectors' | 'backups';
  /** What is wrong, without a full stop. */
  message: string;
  /** What to do, without a full stop. */
  remedy: string;
  table?: string;
  index?: string;
  /** Of the first row. */
  rowid?: number;
  /** The first page, from 1. */
  page?: number;
  /** The file, relative to the project where it lies in it. */
  path?: string;
  /** How often. */
  count: number;
  /** The first ten of them. */
  examples: string[];
  repairable: boolean;
  /** What repair would do; present where it can do something. */
  repair?: string;
}

/** The codes of {@link Issue}; `docs/reference/errors.md` explains each. */
export type IssueCode =
  | 'KG_ISSUE_DATABASE_MISSING'
  | 'KG_ISSUE_DATABASE_UNREADABLE'
  | 'KG_ISSUE_DATABASE_EMPTY'
  | 'KG_ISSUE_NOT_A_DATABASE'
  | 'KG_ISSUE_DATABASE_DAMAGED'
  | 'KG_ISSUE_INDEX_DAMAGED'
  | 'KG_ISSUE_FTS_DAMAGED'
  | 'KG_ISSUE_CONSTRAINT'
  | 'KG_ISSUE_FOREIGN_KEY'
  | 'KG_ISSUE_EDGE_SOURCE'
  | 'KG_ISSUE_EDGE_TARGET'
  | 'KG_ISSUE_TAG_ORPHAN'
  | 'KG_ISSUE_FRONTMATTER'
  | 'KG_ISSUE_DUPLICATE_PATH'
  | 'KG_ISSUE_TABLE_MISSING'
  | 'KG_ISSUE_TRIGGER_MISSING'
  | 'KG_ISSUE_WAL_UNREADABLE'
  | 'KG_ISSUE_WAL_FOREIGN'
  | 'KG_ISSUE_WAL_NOT_IN_USE'
  | 'KG_ISSUE_DATABASE_OUTSIDE'
  | 'KG_ISSUE_NETWORK_FILE_SYSTEM'
  | 'KG_ISSUE_SQLITE_OLD'
  | 'KG_ISSUE_DATABASE_LINKED'
  | 'KG_ISSUE_NOT_CHECKED'
  | 'KG_ISSUE_RESTORE_PENDING'
  | 'KG_ISSUE_CONFIG_INVALID'
  | 'KG_ISSUE_CONFIG_VALUE'
  | 'KG_ISSUE_DOCUMENT_MISSING'
  | 'KG_ISSUE_DOCUMENT_UNINDEXED'
  | 'KG_ISSUE_FILE_UNREADABLE'
  | 'KG_ISSUE_PERMISSIONS'
  | 'KG_ISSUE_KEY_EXPOSED'
  | 'KG_ISSUE_VECTOR_LENGTH'
  | 'KG_ISSUE_VECTOR_DIMENSIONS'
  | 'KG_ISSUE_VECTOR_NOT_FINITE'
  | 'KG_ISSUE_VECTOR_ZERO'
  | 'KG_ISSUE_VECTOR_ORPHAN'
  | 'KG_ISSUE_VECTOR_MISSING'
  | 'KG_ISSUE_VECTOR_FILE'
  | 'KG_ISSUE_VECTOR_INDEX'
  | 'KG_ISSUE_BACKUP_NONE'
  | 'KG_ISSUE_BACKUP_OLD'
  | 'KG_ISSUE_BACKUP_CHAIN'
  | 'KG_ISSUE_BACKUP_UNLISTED'
  | 'KG_ISSUE_BACKUP_DIR'
  | 'KG_ISSUE_STORE_EMPTIED'
  | 'KG_ISSUE_BACKUP_PASSED_OVER'
  | 'KG_ISSUE_BACKUP_INCOMPLETE'
  | 'KG_ISSUE_BACKUP_FAILED'
  | 'KG_ISSUE_SERVICE_STOPPED'
  | 'KG_ISSUE_SERVICE_IDLE'
  | 'KG_ISSUE_BACKUP_REFUSED'
  | 'KG_ISSUE_SERVICE_UNKNOWN'
  | 'KG_ISSUE_DISK_SPACE';

/** What a repair did. */
export interface RepairSummary {
  /** Issues that are gone. */
  fixed: number;
  /** Issues that were worked on and are still there. */
  failed: number;
  /** Issues that repair can do nothing about, and codes of which there is no issue. */
  skipped: number;
  /** The backup from before; absent where there was nothing to repair, and nothing was changed. */
  safetyBackup?: { id: string; path: string };
  /**
   * Instead of a backup, where the database belongs to no project: the path of a copy of it from before, beside it,
   * `NAME-before-repair-{YYYYMMDD-HHMMSS}.sqlite`. Nothing removes it.
   */
  safetyCopy?: string;
  actions: RepairAction[];
}

/** The result of {@link IntegrityChecker.repair}: what was done, and what is wrong after that. */
export interface RepairResult extends RepairSummary, Omit<IntegrityResult, 'repair'> {}

export interface RepairAction {
  code: IssueCode;
  component: Issue['component'];
  /** What was done, or was to be done. */
  action: string;
  done: boolean;
  /** Rows that were moved to `kg_repair_removed`. */
  rowsRemoved: number;
  /** What was saved of a damaged database. */
  salvage?: Salvage;
  /** Why it was not done. */
  error?: { code: KgErrorCode; message: string; remedy: string };
}

/** What was saved of a damaged database. */
export interface Salvage {
  /** Where the damaged database is kept, with its WAL or journal: an absolute path. */
  kept: string;
  /** In bytes. */
  pageSizeBytes: number;
  /** Pages of the damaged database, those of its WAL included. */
  pageCount: number;
  /** Whether the header could be believed. Without it the user version, application id and journal mode are SQLite's defaults. */
  headerReadable: boolean;
  /** Whether the schema was there as a whole. Where it was not, the host's own tables were made as they are documented. */
  schemaReadable: boolean;
  /** `ignored` where it is damaged or of another database; a warning says why. */
  wal: 'none' | 'applied' | 'ignored';
  /** The rollback journal that a killed writer left: `applied` is the database as it was before that transaction. */
  journal: 'none' | 'applied' | 'ignored';
  tables: SalvagedTable[];
  /** Over all tables, without what was put aside. */
  rowsRecovered: number;
  /** `page` counts from 1; `first` names the first 100. */
  unreadablePages: { count: number; first: { page: number; reason: string }[] };
  /** Everything of the schema but the tables that were made; `failed` says why one is not there, or not with its content. */
  objects: { kind: string; name: string; failed?: string }[];
  /** The table for rows that could not be given to a table with certainty; `null` where there are none. */
  lostAndFound: { table: string; rows: number } | null;
  /** Pages with old content, of deleted rows or earlier versions, that were left where they are. */
  leftoverPages: number;
  /** Sentences for a person. */
  warnings: string[];
}

/** A table of {@link Salvage}. */
export interface SalvagedTable {
  name: string;
  rowsRecovered: number;
  /** Rows that are known or supposed to be lost to this table, those in `lostAndFound` among them. */
  rowsLost: number;
  /**
   * How that number came about: `aside`, just those in `lostAndFound`; `index` names exactly these, a damaged index `atLeast` these; `estimate`
   * counts for each lost page as many rows as the others hold.
   */
  rowsLostBy: 'nothing' | 'aside' | 'index' | 'atLeast' | 'estimate';
  /** Rows of this table that are in `lostAndFound`. */
  rowsAside: number;
  /** Pages that were to be parts of this table, but could not be read. */
  pagesLost: number;
  /** Pages that had lost their parent, and were found to belong here. */
  pagesReassigned: number;
}

/** The argument of {@link BackupManager.rehearse}. */
export interface RehearseOptions extends LongCallOptions {
  /** Path of an archive, id of a backup, or `'latest'`. Default: `latest`. */
  backup?: string;
  /** Where to restore to, in a directory of its own. Default: the system's directory for temporary files. */
  directory?: string;
}

/** The result of {@link BackupManager.rehearse}. */
export interface Rehearsal {
  /** The restored project is healthy, and has the nodes and edges that the manifest promises. */
  passed: boolean;
  /** Of the backup. */
  id: string;
  backupPath: string;
  /** How old the backup is: what was written since would be lost. */
  ageMs: number;
  filesRestored: number;
  bytesRestored: number;
  /** The time to recover: how long the restore took. */
  restoreMs: number;
  /** How long the checks took. */
  checkMs: number;
  nodes: { expected: number; found: number };
  edges: { expected: number; found: number };
  issues: Issue[];
  warnings: Warning[];
  durationMs: number;
}

/**
 * A check for the guide's health monitor: whether the newest good backup is young enough.
 *
 * ```ts
 * healthMonitor.addCheck(backupFreshnessCheck(manager, { maxAge: '24h' }));
 * ```
 *
 * `check` resolves to false where there is no good backup, and rejects where `backupDir` cannot be read.
 *
 * @throws {KgError} `KG_INVALID_OPTION`
 */
export declare function backupFreshnessCheck(manager: BackupManager, options?: FreshnessOptions): FreshnessCheck;

export interface FreshnessOptions {
  /** Milliseconds, or a number and `s`, `m`, `h` or `d`. Default: `'24h'`. */
  maxAge?: number | string;
  /** How often the monitor should ask. Default: `'1h'`. */
  interval?: string;
  /** Default: `'backup-freshness'`. */
  name?: string;
}

export interface FreshnessCheck {
  name: string;
  interval: string;
  check: () => Promise<boolean>;
}

/** The codes of {@link KgError}; `docs/reference/errors.md` gives cause and remedy of each. */
export type KgErrorCode =
  | 'KG_INVALID_OPTION'
  | 'KG_UNSUPPORTED'
  | 'KG_CONFIG_INVALID'
  | 'KG_HOOKS_INVALID'
  | 'KG_NO_PROJECT'
  | 'KG_INCOMPLETE'
  | 'KG_NO_DATABASE'
  | 'KG_DATABASE_BUSY'
  | 'KG_DATABASE_DAMAGED'
  | 'KG_DATABASE_UNREADABLE'
  | 'KG_DATABASE_IN_USE'
  | 'KG_BACKUP_DIR_INVALID'
  | 'KG_BACKUP_DIR_IN_PROJECT'
  | 'KG_STORE_LOCKED'
  | 'KG_NO_BACKUPS'
  | 'KG_BACKUP_NOT_FOUND'
  | 'KG_NOT_A_BACKUP'
  | 'KG_CHECKSUM_MISMATCH'
  | 'KG_KEY_NEEDED'
  | 'KG_KEY_WRONG'
  | 'KG_NOT_ENCRYPTED'
  | 'KG_KEY_INVALID'
  | 'KG_CHAIN_BROKEN'
  | 'KG_BASE_UNUSABLE'
  | 'KG_BACKUP_NEEDED'
  | 'KG_BACKUP_PINNED'
  | 'KG_FORMAT_NEWER'
  | 'KG_TARGET_EXISTS'
  | 'KG_TARGET_INVALID'
  | 'KG_TARGET_LOCKED'
  | 'KG_UNSAFE_FILE'
  | 'KG_LIMIT'
  | 'KG_NOTHING_TO_UNDO'
  | 'KG_PERMISSION_DENIED'
  | 'KG_NO_SPACE'
  | 'KG_IO'
  | 'KG_READER_START'
  | 'KG_READER_DIED'
  | 'KG_READER_VERSION'
  | 'KG_READER_PROTOCOL'
  | 'KG_SERVICE'
  | 'KG_KILLED'
  | 'KG_INTERNAL'
  /** Thrown when the package is loaded: there are no native parts for this platform, for example musl or Windows. */
  | 'KG_PLATFORM_UNSUPPORTED'
  /** Thrown when the package is loaded: its native parts are not installed, cannot be loaded, or a bundler lost them. */
  | 'KG_NATIVE_MISSING';

/** What happened and what to do about it. The message holds both. */
export declare class KgError extends Error {
  readonly name: 'KgError';
  readonly code: KgErrorCode;
  /** What to do. */
  readonly remedy: string;
}
