/**
 * Backup and recovery for knowledge-graph projects.
 *
 * A project is a directory that contains `.kg/`: a SQLite database that several processes write,
 * configuration, embeddings and plugin data. A {@link BackupManager} backs up a project while it is
 * in use, verifies archives and restores them.
 *
 * ```ts
 * import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
 *
 * const manager = createBackupManager({
 *   projectRoot: '/path/to/project',
 *   backupDir: '/path/to/backups',
 * });
 * const backup = await manager.createBackup({ description: 'Pre-migration backup' });
 * if (await manager.verifyBackup(backup.path)) console.log(`${backup.id}: ${backup.size} bytes`);
 * ```
 *
 * Calls are safe while this process has the database open (better-sqlite3, node:sqlite). A separate
 * worker process reads the files of the project. No call blocks the JavaScript thread.
 *
 * Every error is a {@link KgError} with a stable `code`, except that an aborted call rejects with
 * an `AbortError`. `docs/reference/errors.md` explains each code.
 *
 * A relative path is resolved against the working directory at the time of the call that receives
 * it.
 *
 * The types need no `lib` beyond `es2020` and no `types`: neither `dom` nor `node`.
 */

/** `URL`, if the program that uses these types knows one; otherwise `never`. */
type KnownUrl = typeof globalThis extends { URL: { prototype: infer U } } ? U : never;

/** `Symbol.asyncDispose`, if the program that uses these types knows it; otherwise `never`. */
type KnownAsyncDispose = SymbolConstructor extends { readonly asyncDispose: infer S extends symbol }
  ? S
  : never;

/** The method of `await using`, for programs that know `Symbol.asyncDispose`. */
type KnownAsyncDisposable = { [S in KnownAsyncDispose]: () => Promise<void> };

/**
 * Creates a manager. The manager opens and creates nothing until a call needs it.
 *
 * @throws {KgError} `KG_INVALID_OPTION` for an unknown option or an invalid value; `KG_UNSUPPORTED`
 * for a feature that this release does not have; `KG_BACKUP_DIR_INVALID` if `backupDir` is a file
 */
export declare function createBackupManager(config?: BackupManagerConfig): BackupManager;

/**
 * What a manager backs up, where the backups are kept, and how they are made. See the guide's
 * section "Backup Configuration".
 *
 * An option that is not set takes its value from the project's `.kg/config.json` (`kg config show
 * --all`, `docs/guide/schedule.md`). If that file does not set it either, the default given here
 * applies.
 *
 * An invalid setting in that file is ignored, and each backup reports it as `KG_WARN_CONFIG`.
 * `docs/guide/schedule.md` lists the settings that stop a call instead. If the whole file is
 * unusable, calls that write or remove backups reject with `KG_CONFIG_INVALID`. They continue only
 * if `backupDir` and `encryption` are both given.
 */
export interface BackupConfig {
  /**
   * The directory of the backups, or the URL of an object store: `s3://bucket/prefix`,
   * `gs://bucket/prefix` or `az://container/prefix`. Default: `backup.dir` of `.kg/config.json`,
   * else `.kg/backups` of the project.
   *
   * A directory is created when it is needed. It must not be inside `.kg/`, except as
   * `.kg/backups`. A bucket must exist; `storageOptions` says how to reach it. See
   * `docs/guide/object-stores.md`.
   */
  backupDir: string;
  /**
   * The format of the archive. `true` and `'gzip'` write `.tar.gz`, which every system can open.
   * `'zstd'` writes `.tar.zst`, which is faster and smaller but needs zstd. `false` writes a plain
   * `.tar`. Default: `true`.
   */
  compression: boolean | 'gzip' | 'zstd';
  /**
   * The compression level, a whole number from 1 (fastest) to 9 (smallest), with the meaning that
   * gzip and zstd give it. Default: 6 for gzip, 3 for zstd.
   *
   * Each gzip level makes databases smaller and takes longer than the level before
   * (`docs/internals/benchmarks.md`).
   */
  compressionLevel: number;
  /**
   * The age in days, a whole number from 1, above which each successful backup removes older
   * backups. The newest backup whose source was not damaged is always kept. Default: no limit.
   */
  retentionDays: number;
  /**
   * The number of backups, a whole number from 1, that each successful backup keeps. The newest
   * good backup is always kept, and pinned backups do not count. Default: no limit.
   */
  maxBackups: number;
  /**
   * Whether to save `.kg/vectors/`, `.kg/vectors.db` and `.kg/reasoning-bank/`. A snapshot never
   * contains them. Default: `true`.
   */
  includeVectors: boolean;
  /** Whether to save `.kg/plugins/`. A snapshot never contains it. Default: `true`. */
  includePluginData: boolean;
  /**
   * Rules that keep good backups regardless of `retentionDays` and `maxBackups`, as `forget` of
   * restic does. For each period, the rules keep the newest backup of each of the last periods that
   * contain a backup.
   *
   * If neither `retentionDays` nor `maxBackups` is set, every backup that no rule keeps is removed.
   * Periods follow `backup.timezone` of the project's settings, else UTC. Default: no rules.
   */
  keep?: KeepRules;
  /**
   * The largest number of backups in a chain, including the full backup; a whole number from 1. An
   * incremental backup without `basedOn` that would exceed it becomes a full backup, with the
   * warning `KG_WARN_FULL`.
   *
   * A restore reads the whole chain, and no member can be removed before the last one. Default: 64.
   */
  maxChainLength?: number;
  /**
   * How long the files that a restore replaced are kept, in days; a whole number from 1. Default:
   * 7.
   */
  undoRetentionDays?: number;
  /**
   * Whether to reject with `KG_INCOMPLETE` if a backup would not match the project. A file that is
   * unreadable or changes during the backup is a cause, and so is a link that leads out of the
   * project. The other causes are a damaged database, and commits to another WAL. Default: `false`,
   * which reports them in `warnings`.
   */
  strict?: boolean;
  /**
   * Whether an incremental backup reads every file. Otherwise it does not read a file, except a
   * database, whose size, times and inode are those of its base. A program that writes through a
   * memory map, and some file systems, can change a file and leave these. Default: `false`.
   */
  forceRead?: boolean;
  /**
   * Patterns of files to leave out, with the syntax of a `.gitignore` in the project's root or in
   * `.kg`. Examples: `*.tmp`, `plugins/cache/`, `!keep.tmp`, or an absolute path inside the
   * project.
   *
   * Patterns never exclude the graph database. A pattern that matches nothing causes the warning
   * `KG_WARN_EXCLUDE`. See `docs/guide/backup.md`. Default: none.
   */
  excludePatterns: string[];
  /**
   * The cron expression for {@link BackupManager.scheduler}. It does not start a scheduler.
   * Default: none.
   */
  schedule: string;
  /**
   * A function that is called after each successful backup. If it throws, the process emits a
   * warning and the result does not change.
   */
  onSuccess: (backup: Backup) => void;
  /**
   * A function that is called with the error of each `createBackup` that rejects. If it throws, the
   * process emits a warning and the result does not change.
   */
  onFailure: (error: Error) => void;
}

/**
 * The number of backups to keep for each period; whole numbers from 1. A rule that finds fewer
 * backups than its number also keeps the oldest backup.
 */
export interface KeepRules {
  /** The number of newest backups to keep, regardless of their age. Default: no rule. */
  last?: number;
  /** The number of hours to keep the newest backup of. Default: no rule. */
  hourly?: number;
  /** The number of days to keep the newest backup of. Default: no rule. */
  daily?: number;
  /** The number of ISO weeks to keep the newest backup of. Default: no rule. */
  weekly?: number;
  /** The number of months to keep the newest backup of. Default: no rule. */
  monthly?: number;
  /** The number of years to keep the newest backup of. Default: no rule. */
  yearly?: number;
}

/**
 * Options of the backup manager of the host. They are accepted with the process warning
 * `KG_HOST_OPTION`. Any other value fails with `KG_INVALID_OPTION`; see `docs/guide/migrate.md`.
 */
export interface HostContentOptions {
  /** @deprecated Use `compression`. */
  compress?: boolean;
  /** @deprecated Every backup contains the database. */
  includeDatabase?: true;
  /** @deprecated Use `excludePatterns` to leave the configuration out. */
  includeConfig?: true;
  /** @deprecated No backup contains caches. */
  includeCache?: false;
}

/** Options of the configuration of the host's backup manager. */
export interface HostConfigOptions extends HostContentOptions {
  /** @deprecated Use `backupDir`. */
  backupPath?: string;
  /** @deprecated Use {@link BackupManager.scheduler}. */
  enabled?: boolean;
}

/**
 * The argument of {@link createBackupManager}: any part of a {@link BackupConfig}, and the options
 * below.
 */
export interface BackupManagerConfig extends Partial<BackupConfig>, HostConfigOptions {
  /** The directory that contains `.kg/`. Default: the working directory at the time of the call. */
  projectRoot?: string;
  /**
   * Whether to check each saved database for the problems that SQLite's `quick_check` reports.
   * Default: `true`.
   */
  checkSource?: boolean;
  /**
   * The time in milliseconds that a call waits for another writer of the same `backupDir`, and for
   * a lock that another process holds on a database. Default: 60000.
   */
  lockTimeout?: number;
  /**
   * The keys of encrypted backups. If keys are given, new backups are encrypted with them, and
   * encrypted backups are opened with them.
   *
   * If `false`, new backups are not encrypted, even after an encrypted one. Without `false`, an
   * unencrypted backup after an encrypted one is refused with `KG_KEY_INVALID`.
   *
   * Default: the keys that `.kg/config.json` names (`backup.passphraseFile`, `backup.recipients`,
   * `backup.identityFile`). `backup.encrypt` in the same file decides whether new backups are
   * encrypted.
   */
  encryption?: EncryptionOptions | false;
  /**
   * How to reach the object store that `backupDir` names, and how it keeps what is uploaded. It
   * applies to a URL in `backup.dir` of `.kg/config.json` too. Together with a directory as
   * `backupDir`, it is refused with `KG_INVALID_OPTION`. Default: the environment, see
   * {@link StorageOptions}.
   */
  storageOptions?: StorageOptions;
  /**
   * The path of the `kg` executable that runs as the worker process. It exists for bundlers.
   * Default: the executable of this installation.
   */
  kgPath?: string;
}

/**
 * How to reach an object store. Every option may be `undefined`, which means that it is not given.
 * An option that is not given takes its value from the environment if a default names a variable.
 *
 * An unknown option or an invalid value is refused with `KG_INVALID_OPTION`. The first request
 * fails with `KG_UNSUPPORTED` if an option does not apply to the service of the URL. No message and
 * no log contains the value of an option that is a secret.
 *
 * Every call that uses an object store can reject with `KG_STORE_UNREACHABLE`, `KG_STORE_DENIED`,
 * `KG_STORE_CHANGED` and `KG_BACKUP_DIR_INVALID` too.
 */
export interface StorageOptions {
  /**
   * S3: the access key. It is given together with `secretAccessKey`, and not with `profile`.
   * Default: the chain of credentials that AWS tools share, from `AWS_ACCESS_KEY_ID` to the
   * metadata service of EC2.
   */
  accessKeyId?: string | undefined;
  /** S3: the secret of `accessKeyId`. Default: see `accessKeyId`. */
  secretAccessKey?: string | undefined;
  /** S3: the token of temporary credentials. It needs `accessKeyId`. Default: none. */
  sessionToken?: string | undefined;
  /**
   * S3: the profile of `~/.aws/config` and `~/.aws/credentials` to use, even if the environment has
   * an access key. Default: `AWS_PROFILE`, else `default`.
   */
  profile?: string | undefined;
  /**
   * S3: the region of the bucket. If it is wrong and the service names another one, the client
   * follows. Default: `AWS_REGION`, else `AWS_DEFAULT_REGION`, else `us-east-1`.
   */
  region?: string | undefined;
  /**
   * The URL of a compatible service, without the bucket. `http://` needs `allowHttp`. Default: for
   * S3, `AWS_ENDPOINT_URL_S3`, else `AWS_ENDPOINT_URL`; else the service of the vendor.
   */
  endpoint?: string | undefined;
  /**
   * Whether `endpoint` may begin with `http://`. Everyone on the way can then read and change the
   * backups. Default: `true` if `AWS_ALLOW_HTTP` is `true`, else `false`.
   */
  allowHttp?: boolean | undefined;
  /**
   * S3: whether the bucket is part of the host (`https://bucket.s3.example.com`) and not of the
   * path. Default: `false` with an endpoint; without one, `true` unless the name has a dot.
   */
  virtualHostedStyle?: boolean | undefined;
  /**
   * S3: the encryption by the service, of every object. Default: that of the bucket. It is
   * independent of `encryption`, which encrypts before the upload.
   */
  serverSideEncryption?: 'AES256' | 'aws:kms' | undefined;
  /** S3: the id or ARN of the key for `aws:kms`. Default: the key of the service. */
  kmsKeyId?: string | undefined;
  /**
   * The storage class of archives; sidecars and the other small objects have that of the bucket. Do
   * not use a class that has to be thawed, such as `GLACIER`. Default: that of the bucket.
   */
  storageClass?: string | undefined;
  /**
   * S3 and Azure: tags of every object; at most 10, with keys of at most 128 and values of at most
   * 256 characters. Default: none.
   */
  tags?: Record<string, string> | undefined;
  /**
   * S3: locks each new archive for a number of days, a whole number from 1 to 36,500. The bucket
   * must have object lock. Sidecars are not locked. Default: that of the bucket.
   */
  objectLock?: { mode: 'GOVERNANCE' | 'COMPLIANCE'; days: number } | undefined;
  /** The URL of a proxy. Default: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` apply. */
  proxy?: string | undefined;
  /**
   * The path of a PEM file with certificates of authorities to trust in addition to the usual ones.
   * `KG_INVALID_OPTION` if it contains none. Default: none.
   */
  caFile?: string | undefined;
  /**
   * How long, in milliseconds, a request may make no progress; from 100 to 3,600,000. The client
   * then sends the request again, up to six times in all. Default: 30000.
   */
  timeout?: number | undefined;
  /**
   * The most bytes a second, in each direction; a whole number from 1,024. Default: no limit.
   */
  bandwidthLimit?: number | undefined;
  /** Azure: the name of the storage account. Default: `AZURE_STORAGE_ACCOUNT_NAME`. */
  account?: string | undefined;
  /** Azure: the key of `account`. Default: `AZURE_STORAGE_ACCOUNT_KEY`. */
  accessKey?: string | undefined;
}

/**
 * The keys for the encryption of [age](https://age-encryption.org/v1). New backups are encrypted to
 * `recipients` if there are any, else with the passphrase, else to the identities. The passphrase
 * and the identities open backups, whichever fits.
 *
 * Without its keys, a backup cannot be opened: keep a copy of the keys elsewhere. Invalid keys are
 * refused with `KG_KEY_INVALID` or `KG_INVALID_OPTION`. Opening a backup fails with `KG_KEY_WRONG`
 * if no key fits, and with `KG_KEY_NEEDED` if there is no key that could open it.
 */
export interface EncryptionOptions {
  /**
   * The passphrase: one line that is not blank. Each archive that is written or opened with it
   * takes half a second and 256 MiB of memory, which makes guessing expensive.
   */
  passphrase?: string;
  /**
   * The path of a file whose only line is the passphrase. The worker process reads it when it is
   * needed. It must not be inside `.kg/`.
   *
   * Each use causes the warning `KG_WARN_KEY_EXPOSED` if other users can read or replace the file,
   * or if it is in the same directory as the backups.
   */
  passphraseFile?: string | KnownUrl;
  /**
   * Public keys (`age1…`), at most 128. Only the owners of these keys can open the backup. This
   * machine can open it only with the `identityFile` of one of them.
   */
  recipients?: string[];
  /**
   * The path of a file that `age-keygen` wrote. Its identities open backups. It must not be inside
   * `.kg/`. As with `passphraseFile`, other users must not be able to read it.
   */
  identityFile?: string | KnownUrl;
  /**
   * Whether to refuse to restore, verify or drill a backup that is not encrypted
   * (`KG_NOT_ENCRYPTED`). Anyone who can write to `backupDir` could put an unencrypted backup
   * there. Default: `false`, which reports such a backup as `KG_WARN_NOT_ENCRYPTED`.
   */
  requireEncryption?: boolean;
}

/**
 * What names a backup: its id, or an object with its id and path, such as a {@link Backup}. The
 * backup of an object must be in the store of the manager. Where a path is accepted too, an object
 * means its path, so the backup may be in another store.
 */
export type BackupReference = string | Pick<Backup, 'id' | 'path'>;

/** At the end of an `await using` block, {@link BackupManager.close} is called. */
export interface BackupManager extends KnownAsyncDisposable {}

/**
 * Backs up and restores one project.
 *
 * `console.log(manager)` shows the project, the store and the state, and never a key or another
 * secret.
 */
export declare class BackupManager {
  /**
   * Creates a manager, as {@link createBackupManager} does.
   *
   * @throws {KgError} the errors of {@link createBackupManager}
   */
  constructor(config?: BackupManagerConfig);

  /** The absolute path of the directory that contains `.kg/`. */
  readonly projectRoot: string;
  /**
   * The absolute path of the directory of the backups, or the URL of the object store. If the
   * manager has no `backupDir`, each access reads it from `.kg/config.json`. If that file does not
   * name one either, it is `.kg/backups` of the project.
   */
  readonly backupDir: string;

  /**
   * Saves the state of the project at one moment, while other processes write to it. When the
   * promise resolves, the archive and its sidecar are on disk, or the service has stored them. When
   * it rejects, the attempt leaves nothing.
   *
   * A database that fails its check is saved nevertheless: see `integrity` and `warnings` of the
   * result.
   *
   * @throws {KgError} `KG_NO_PROJECT`, `KG_NO_DATABASE`, `KG_DATABASE_BUSY`,
   * `KG_DATABASE_UNREADABLE`, `KG_BACKUP_DIR_INVALID`, `KG_BACKUP_DIR_IN_PROJECT`,
   * `KG_CONFIG_INVALID`, `KG_STORE_LOCKED`, `KG_TARGET_LOCKED`, `KG_INCOMPLETE`,
   * `KG_BACKUP_NOT_FOUND`, `KG_BASE_UNUSABLE`, `KG_CHAIN_BROKEN`, `KG_CHECKSUM_MISMATCH`,
   * `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`, `KG_READER_…`, `KG_KEY_NEEDED`, `KG_KEY_WRONG`,
   * `KG_KEY_INVALID`, `KG_INVALID_OPTION`, `KG_UNSUPPORTED`
   */
  createBackup(options?: CreateBackupOptions): Promise<CreatedBackup>;

  /**
   * Returns all backups of `backupDir`, including those of other projects, newest first. Backups
   * with a date in the future come last. The list is empty if the directory does not exist.
   */
  listBackups(): Promise<Backup[]>;

  /**
   * Returns the backup as the store lists it now.
   *
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`
   */
  getBackup(backup: BackupReference): Promise<Backup>;

  /**
   * Returns the newest good backup, or the newest backup if none is good. `latest` means the same
   * backup.
   *
   * A backup is good if its source was not found damaged, all members of its chain exist, and it is
   * not the safety backup of a repair. If `backupDir` contains backups of this project, only these
   * are considered. The link `latest.tar.gz` covers the backups of all projects.
   *
   * @throws {KgError} `KG_NO_BACKUPS` if there is no backup, `KG_AMBIGUOUS` if the project lost its
   *   id and the backups of its path come from several projects
   */
  getLatestBackup(): Promise<Backup>;

  /**
   * Removes a backup: its archive and its sidecar. If incremental backups depend on it, the call
   * rejects, or removes them too with `cascade`.
   *
   * @returns the ids of the removed backups
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_BACKUP_NEEDED`, `KG_BACKUP_PINNED` (these remove
   * nothing), `KG_STORE_LOCKED`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  deleteBackup(backup: BackupReference, options?: DeleteOptions): Promise<string[]>;

  /**
   * Keeps a backup and the backups that it depends on until it is unpinned. Retention keeps it in
   * addition to the backups that its limits and rules keep, and {@link deleteBackup} refuses to
   * remove it.
   *
   * The pin is a file in the same directory as the archive. Pinning a backup again replaces the
   * reason.
   *
   * ```ts
   * await manager.pin(backup.id, 'the state that the audit saw');
   * ```
   *
   * @param reason why the backup is kept; at most 4096 bytes
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_INVALID_OPTION`, `KG_STORE_LOCKED`, `KG_NO_SPACE`,
   * `KG_PERMISSION_DENIED`, `KG_IO`
   */
  pin(backup: BackupReference, reason?: string): Promise<Backup>;

  /**
   * Removes the pin of a backup. A backup without a pin does not change.
   *
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_STORE_LOCKED`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  unpin(backup: BackupReference): Promise<Backup>;

  /**
   * Writes a full backup from the chain of an incremental backup, without the project. It has the
   * `timestamp`, `description` and `integrity` of the incremental backup, an id of the same second,
   * and `consolidatedFrom`.
   *
   * The call checks every byte of the chain, changes no existing backup and applies no retention.
   * The result is encrypted if the incremental backup is encrypted or if new backups are.
   * `backupDir` needs space for the restored project and for the new archive.
   *
   * Afterwards, the chain can be deleted unless another incremental backup depends on it.
   *
   * @throws {KgError} `KG_INVALID_OPTION` if the backup depends on no other backup;
   * `KG_BACKUP_NOT_FOUND`, `KG_CHAIN_BROKEN`, `KG_CHECKSUM_MISMATCH`, `KG_NOT_A_BACKUP`,
   * `KG_FORMAT_NEWER`, `KG_KEY_NEEDED`, `KG_KEY_WRONG`, `KG_KEY_INVALID`, `KG_STORE_LOCKED`,
   * `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  consolidate(backup: BackupReference, options?: ConsolidateOptions): Promise<Backup>;

  /**
   * Copies backups to a second store, byte for byte. Without `backupIds`, copies all of the project
   * that the target lacks and that its limits keep, the newest first. Each backup comes with the
   * backups that it depends on.
   *
   * A copy is published only if its digest is that of the backup. A backup that is damaged, removed
   * or in the way of another one is in `failed` of the result, and the others are copied. After an
   * interruption, the target has only complete copies, and the next call continues.
   *
   * The call locks the target but not `backupDir`. It opens no archive, so it needs no key. See
   * `docs/guide/copies.md`.
   *
   * @param store a directory, or a URL such as `s3://bucket/prefix`
   * @throws {KgError} `KG_INVALID_OPTION` if the target is the store itself;
   * `KG_BACKUP_DIR_INVALID`, `KG_BACKUP_NOT_FOUND`, `KG_STORE_LOCKED`, `KG_STORE_UNREACHABLE`,
   * `KG_STORE_DENIED`, `KG_STORE_CHANGED`, `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  copyTo(store: string | KnownUrl, options?: CopyOptions): Promise<CopyResult>;

  /**
   * Removes the backups that `retentionDays`, `maxBackups` and `keep` of the configuration do not
   * keep. Each successful backup does the same.
   *
   * @throws {KgError} `KG_INVALID_OPTION` if no limit and no rule is set; `KG_STORE_LOCKED`,
   * `KG_IO`
   */
  prune(options?: PruneOptions): Promise<PruneResult>;

  /**
   * Returns whether every byte of an archive is as it was written, and whether the sidecar, if
   * there is one, agrees with the archive.
   *
   * @param backup a backup, the path of an archive, or `'latest'`
   * @throws {KgError} `KG_BACKUP_NOT_FOUND`, `KG_KEY_NEEDED`, `KG_KEY_WRONG`, `KG_KEY_INVALID`,
   * `KG_FORMAT_NEWER`, `KG_PERMISSION_DENIED`, `KG_IO`
   */
  verifyBackup(backup: BackupReference | KnownUrl, options?: LongCallOptions): Promise<boolean>;

  /**
   * Verifies a backup as {@link verifyBackup} does, and returns a report of each problem, the files
   * that it affects, and the remedy.
   *
   * @param backup a backup, the path of an archive, or `'latest'`
   * @throws {KgError} the errors of {@link verifyBackup}
   */
  checkBackup(
    backup: BackupReference | KnownUrl,
    options?: CheckBackupOptions,
  ): Promise<CheckReport>;

  /**
   * Restores a backup or parts of it. The archive is unpacked into a staging directory, and every
   * byte is checked before the target changes. Files that the backup does not contain stay
   * unchanged.
   *
   * With `overwrite`, the replaced files are kept in `safetyCopy` of the result. An undamaged
   * database receives its new content through SQLite in one transaction. Every process that has it
   * open, including this one, keeps its connection and sees the new content.
   *
   * A damaged database, or one with another page size, is replaced as a file. This is refused while
   * a process has the database open. Both ways are refused while a process commits to a WAL other
   * than the one next to the database.
   *
   * A restore is atomic: a failure rolls back every change. If the process is killed, the next
   * backup or restore of the project completes the restore or rolls it back (`KG_WARN_RECOVERED`).
   * A restore follows no symbolic link.
   *
   * @throws {KgError} `KG_TARGET_EXISTS`, `KG_DATABASE_IN_USE`, `KG_CHECKSUM_MISMATCH`,
   * `KG_CHAIN_BROKEN`, `KG_BACKUP_NOT_FOUND`, `KG_NO_BACKUPS`, `KG_FORMAT_NEWER`,
   * `KG_TARGET_INVALID`, `KG_TARGET_LOCKED`, `KG_NOT_A_BACKUP`, `KG_NO_SPACE`,
   * `KG_PERMISSION_DENIED`, `KG_IO`, `KG_KEY_NEEDED`, `KG_KEY_WRONG`, `KG_KEY_INVALID`,
   * `KG_READER_…`, `KG_INVALID_OPTION`
   */
  restore(options: RestoreOptions): Promise<RestoreResult>;

  /**
   * Puts back the files that the newest restore into a project replaced, and removes the files that
   * it added. It changes an open database through SQLite, as {@link restore} does.
   *
   * The state before the undo is kept in turn, so a second undo reverses the first. With `earlier`,
   * each call goes one restore further back instead.
   *
   * @throws {KgError} `KG_NOTHING_TO_UNDO`, `KG_NO_PROJECT`, `KG_DATABASE_IN_USE`,
   * `KG_DATABASE_BUSY`, `KG_TARGET_INVALID`, `KG_TARGET_LOCKED`, `KG_NO_SPACE`,
   * `KG_PERMISSION_DENIED`, `KG_IO`, `KG_READER_…`, `KG_INVALID_OPTION`
   */
  undoRestore(options?: UndoOptions): Promise<UndoResult>;

  /**
   * Runs a drill, which proves that a backup can be restored. The drill restores the backup into a
   * temporary directory, checks the result, counts its nodes and edges, and measures the time.
   *
   * The project does not change, and the temporary directory is deleted. If the process is killed,
   * the next drill deletes what it left.
   *
   * @throws {KgError} the errors of {@link restore} and {@link IntegrityChecker.runChecks}
   */
  rehearse(options?: RehearseOptions): Promise<Rehearsal>;

  /**
   * Creates a scheduler for this manager. It uses the `schedule` of the manager's configuration
   * unless `options` has one.
   *
   * `onSuccess` and `onFailure` of the manager's configuration are called for each attempt, even if
   * a failed attempt is retried. Those of `options` are called for each run of the scheduler.
   *
   * @throws {KgError} `KG_INVALID_OPTION` for an invalid option, or if there is no schedule
   */
  scheduler(options?: Partial<Omit<BackupSchedulerOptions, 'backupManager'>>): BackupScheduler;

  /**
   * Makes a backup, calls a function that changes the project, and resolves to its result. If the
   * function fails, the call rejects with a {@link GuardError}, and `onError` decides whether the
   * backup is restored.
   *
   * ```ts
   * const rows = await manager.guard(() => migrate(db), { onError: 'restore' });
   * ```
   *
   * If the backup fails, the function is not called, and the error is that of `createBackup`. The
   * same applies if `onError` could restore and the restore would be refused, for example because
   * this machine has no key that opens the backup.
   *
   * The backup is pinned while the function runs, so no retention removes it. The pin says which
   * process runs the function, and stays if that process is killed.
   *
   * **A restore takes back what everyone wrote since the backup**, not only what the function
   * wrote. It puts back what the backup contains: files that were added stay, and a snapshot holds
   * only the database. {@link undoRestore} reverses it. Use a guard for work that has the project
   * to itself.
   *
   * Guards may be nested: an inner guard that fails makes the outer function fail, unless that
   * function catches the error. A guard holds no lock while the function runs.
   *
   * @param fn the function, or an asynchronous one; it receives the backup
   * @throws {GuardError} if the function fails or `signal` is aborted while it runs
   * @throws {KgError} before the function is called: `KG_INVALID_OPTION`, `KG_CLOSED`, and the
   * errors of {@link createBackup}, {@link pin} and {@link restore}
   */
  guard<T>(fn: (backup: CreatedBackup) => T | PromiseLike<T>, options?: GuardOptions): Promise<T>;

  /**
   * Closes the manager. It stops the schedulers that were started with it, and resolves when none
   * of its calls is in progress. Each later call rejects with `KG_CLOSED`. It never rejects, and
   * closing again does no harm.
   *
   * A guard is one call, including its restore. Therefore do not await `close()` in the function of
   * a guard.
   *
   * ```ts
   * await using manager = createBackupManager();
   * ```
   */
  close(): Promise<void>;
}

/** What becomes of the project if the function of a guard fails. */
export type GuardDecision = 'keep' | 'restore';

/**
 * The second argument of {@link BackupManager.guard}: the options of the backup, and what happens
 * if the function fails.
 *
 * `description` is `'Before a guarded function'` by default. `onProgress` reports the backup, the
 * check of the restore and the restore.
 *
 * `signal` aborts the backup. While the function runs, the guard waits for its end and then treats
 * an aborted signal as a failure, because the function may have stopped halfway: give the function
 * the same signal. A restore that has begun is not aborted.
 */
export interface GuardOptions extends CreateBackupOptions {
  /**
   * What happens if the function fails:
   *
   * - `'keep'`: the project stays as the function left it
   * - `'restore'`: the backup is restored
   * - a function that decides, for example by asking the user; it receives what was thrown and the
   * backup. If it fails, the project stays as it is.
   *
   * Default: `'keep'`.
   */
  onError?:
    | GuardDecision
    | ((error: unknown, backup: CreatedBackup) => GuardDecision | PromiseLike<GuardDecision>);
  /**
   * Whether the backup stays pinned after the call. Default: only if the function failed and the
   * backup was not restored, so that it can be restored later.
   */
  pin?: boolean;
}

/** At the end of an `await using` block, {@link BackupScheduler.stop} is called and waits. */
export interface BackupScheduler extends KnownAsyncDisposable {}

/**
 * Makes backups on a schedule in this process, from `start()` to `stop()`. `kg serve` does the same
 * without a Node process.
 *
 * ```ts
 * const scheduler = new BackupScheduler({
 *   backupManager,
 *   schedule: '0 2 * * *',
 *   type: 'incremental',
 *   fullBackupInterval: 7,
 * });
 * scheduler.start();
 * ```
 *
 * A run is one backup, including the wait for another writer of the store. Runs never overlap.
 * Scheduled times that pass during a run are covered by that run.
 *
 * `docs/guide/schedule.md` explains what happens when clocks change, machines sleep and backups
 * fail.
 */
export declare class BackupScheduler {
  /**
   * Creates a scheduler. It does nothing until `start()` or `runNow()`.
   *
   * @throws {KgError} `KG_INVALID_OPTION` for an invalid option; for an invalid cron expression,
   * the message names the invalid field
   */
  constructor(options: BackupSchedulerOptions);

  /**
   * Starts the schedule, which runs until `stop()`. Has no effect if the scheduler is already
   * started.
   *
   * @throws {KgError} `KG_CLOSED` if the manager is closed
   */
  start(): void;

  /**
   * Stops the schedule. Resolves when no run is in progress; no new run begins. A failure that
   * waits for a retry is reported now.
   */
  stop(options?: StopOptions): Promise<void>;

  /**
   * Makes a backup immediately, with the options of the schedule, whether the scheduler is started
   * or not. If a run is in progress, the backup follows it; all waiting calls share one backup.
   *
   * A failure is not retried: it is reported to `onFailure`, and the promise rejects.
   */
  runNow(): Promise<CreatedBackup>;

  /**
   * Returns the time at which the next run begins, including its jitter, or `null` while the
   * scheduler is stopped.
   */
  nextRun(): Date | null;

  /** Returns the state and the counters of this scheduler. */
  status(): SchedulerStatus;
}

/** The argument of {@link BackupScheduler}. */
export interface BackupSchedulerOptions {
  /** The manager that makes the backups. Required. */
  backupManager: BackupManager;
  /**
   * A cron expression: minute, hour, day of the month, month and day of the week, optionally
   * preceded by a field for seconds. Required, unless {@link BackupManager.scheduler} takes it from
   * the configuration.
   *
   * Fields accept names (`MON`), lists, ranges, steps, `L` (last), `#` (`FRI#2`, the second Friday)
   * and `W` (the nearest weekday). `@hourly` to `@yearly` are accepted too.
   */
  schedule: string;
  /**
   * The type of each backup. An incremental backup that has no usable base becomes a full one.
   * Default: `'full'`.
   */
  type?: BackupType;
  /**
   * The age in days, a whole number from 1, of the newest full backup at which the next run makes a
   * full backup. Days are calendar days in `timezone`. Valid only with the type `'incremental'`.
   * Default: age alone never causes a full backup.
   */
  fullBackupInterval?: number;
  /**
   * The name of a time zone in the IANA database, such as `Europe/Berlin`. Default: the time zone
   * of the system.
   */
  timezone?: string;
  /**
   * Whether one run makes up for scheduled times that were missed while the machine slept or no
   * process ran. Times count as missed if they are later than the newest backup of this project.
   * For types other than `snapshot`, snapshots do not count as that backup. Default: `true`.
   */
  catchUp?: boolean;
  /**
   * The largest delay in milliseconds between a scheduled time and the start of its run, to spread
   * load. A whole number, at most one day. Default: 0.
   */
  jitter?: number;
  /**
   * The number of times that a failed run is retried before the failure is reported; a whole number
   * from 0 to 100. Default: 3.
   */
  retries?: number;
  /**
   * The delay in milliseconds before the first retry. It doubles with each retry, up to one hour.
   * Default: 60000.
   */
  retryDelay?: number;
  /**
   * Whether the started scheduler keeps Node running. A run in progress always does. Default:
   * `false`.
   */
  keepAlive?: boolean;
  /**
   * The source of the time and the timers, for tests. Default: `Date.now`, `setTimeout` and
   * `clearTimeout` as they are at each call, so fake timers apply. See
   * `docs/guide/schedule.md`.
   */
  clock?: SchedulerClock;
  /**
   * A function that is called after each successful run. If it throws, the process emits a warning
   * and the result does not change.
   */
  onSuccess?: (backup: CreatedBackup) => void;
  /**
   * A function that is called for each failed run, after its retries have failed too. An aborted
   * run does not count as failed.
   */
  onFailure?: (error: Error) => void;
}

/** The clock of a {@link BackupScheduler}, for tests. */
export interface SchedulerClock {
  /** Returns the time in milliseconds since the epoch. */
  now(): number;
  /**
   * Starts a timer that calls `callback` after `ms` milliseconds, and returns a handle for
   * `clearTimeout`.
   */
  setTimeout(callback: () => void, ms: number): unknown;
  /** Cancels a timer that `setTimeout` returned. */
  clearTimeout(timer: unknown): void;
}

/** The argument of {@link BackupScheduler.stop}. */
export interface StopOptions {
  /**
   * Whether to abort a run in progress instead of waiting for it. An aborted run leaves nothing.
   * Default: `false`.
   */
  abort?: boolean;
}

/**
 * The cause of a run: its scheduled time (`schedule`), a scheduled time that was missed
 * (`catch-up`), the failure of the previous attempt (`retry`), or {@link BackupScheduler.runNow}
 * (`manual`).
 */
export type RunTrigger = 'schedule' | 'catch-up' | 'retry' | 'manual';

/**
 * The result of {@link BackupScheduler.status}. Times are in milliseconds since the epoch. Counters
 * start at 0 for each scheduler object.
 */
export interface SchedulerStatus {
  /** Whether the schedule is started. */
  started: boolean;
  /** The run in progress, or `null`. */
  running: { trigger: RunTrigger; startedAt: number } | null;
  /** The time at which the next run begins, or `null` while the scheduler is stopped. */
  nextRun: number | null;
  /** The last run that ended, or `null`. */
  lastRun: SchedulerRun | null;
  /** The number of runs that ended. Each attempt counts, including aborted ones. */
  runs: number;
  /** The number of runs that failed. Each attempt counts, except aborted ones. */
  failures: number;
  /** The number of failures since the last success. */
  consecutiveFailures: number;
}

/** A run that ended. It has either `backup` or `error`. */
export interface SchedulerRun {
  /** The cause of the run. */
  trigger: RunTrigger;
  /** The time at which the run began, in milliseconds since the epoch. */
  startedAt: number;
  /** The duration of the run in milliseconds. */
  durationMs: number;
  /** The backup, if the run succeeded. */
  backup?: CreatedBackup;
  /** The error, if the run failed or was aborted. */
  error?: Error;
}

/** The options that every long call accepts. */
export interface LongCallOptions {
  /**
   * A function that is called with the progress of the call, at most ten times per second. If it
   * throws, the process emits a warning and the call continues.
   */
  onProgress?: ((progress: Progress) => void) | undefined;
  /**
   * An `AbortSignal` that aborts the call. The call rejects with an `AbortError`, whose `code` is
   * `'ABORT_ERR'` and whose `cause` is the signal's reason. An aborted call leaves nothing.
   */
  signal?: AbortSignalLike | undefined;
}

/** What a call uses of an `AbortSignal`. Every `AbortSignal` has it. */
export interface AbortSignalLike {
  /** Whether the signal was aborted. */
  readonly aborted: boolean;
  /** The reason of the abort. */
  readonly reason?: any;
  /** Calls `listener` when the signal is aborted. */
  addEventListener(type: 'abort', listener: () => void, options?: { once?: boolean }): void;
  /** Removes a listener. */
  removeEventListener(type: 'abort', listener: () => void): void;
}

/** The progress of a long call. */
export interface Progress {
  /**
   * The current phase. `waiting` waits for another writer, `saving` writes a backup or consolidates
   * a chain, `applying` moves unpacked files to the target. The other names describe themselves.
   */
  phase:
    | 'waiting'
    | 'saving'
    | 'verifying'
    | 'unpacking'
    | 'applying'
    | 'copying'
    | 'checking'
    | 'repairing';
  /**
   * The number of bytes that are done. `saving` counts bytes of the project, `checking` counts
   * bytes to read, and every other phase counts bytes of the archive.
   */
  bytesDone: number;
  /** The total number of bytes of the phase; 0 while it is not known. */
  bytesTotal: number;
}

/**
 * The type of a backup; see the guide's section "Backup Types". `full` contains everything below
 * `.kg/`, and `snapshot` contains only the graph database. `incremental` contains the differences
 * from another backup: files whose content changed, and the changed pages of databases.
 */
export type BackupType = 'full' | 'snapshot' | 'incremental';

/**
 * The argument of {@link BackupManager.createBackup}. An option that is not set takes its value
 * from the manager's configuration.
 */
export interface CreateBackupOptions
  extends
    LongCallOptions,
    HostContentOptions,
    Partial<
      Pick<
        BackupManagerConfig,
        | 'compression'
        | 'compressionLevel'
        | 'includeVectors'
        | 'includePluginData'
        | 'excludePatterns'
        | 'checkSource'
        | 'strict'
        | 'forceRead'
      >
    > {
  /** The type of the backup. Default: `backup.type` of `.kg/config.json`, else `'full'`. */
  type?: BackupType;
  /** A note that is stored with the backup. Default: none. */
  description?: string;
  /**
   * The base of an incremental backup. With it, `maxChainLength` does not apply. Default: the newest
   * good backup of this project.
   *
   * If there is no good backup, or its chain already has `maxChainLength` members, a full backup is
   * made, with the warning `KG_WARN_FULL`.
   */
  basedOn?: BackupReference;
  /**
   * Whether to encrypt the backup. Only `false` makes an unencrypted backup after an encrypted one.
   * Default: `true` if the manager has keys in `encryption`, else `backup.encrypt` of
   * `.kg/config.json`.
   *
   * All members of a chain are encrypted with one key, or none is encrypted. The base of an
   * incremental backup is the newest backup that matches. With another key, a full backup is made,
   * with the warning `KG_WARN_FULL`.
   */
  encrypt?: boolean;
}

/** A backup: an archive and its sidecar. */
export interface Backup {
  /**
   * The id: `backup-{YYYYMMDD-HHMMSS}` in UTC. If that second is taken, the id has a suffix `-2`,
   * `-3` and so on.
   */
  id: string;
  /** The type of the backup. */
  type: BackupType;
  /** The absolute path of the archive, or its URL in an object store. */
  path: string;
  /** The size of the archive in bytes. */
  size: number;
  /** The size of the sidecar in bytes. The backup takes `size` plus `sidecarSize` bytes on disk. */
  sidecarSize: number;
  /** The digest of the archive: `sha256:` and 64 hexadecimal digits. */
  checksum: string;
  /** The time at which the backup began, in milliseconds since the epoch. */
  timestamp: number;
  /**
   * The note given to `createBackup`. For an encrypted backup, only the results of `createBackup`
   * and `consolidate` have it: the sidecar of an encrypted archive reveals nothing of its content.
   */
  description?: string;
  /** The parts of the project that the backup contains. */
  contents: BackupContents;
  /** The sizes and counts of the backup. */
  stats: BackupStats;
  /** The result of checking the saved databases for the problems that `quick_check` reports. */
  integrity: SourceIntegrity;
  /**
   * Conditions that did not stop the backup but need attention. In lists, an encrypted backup has
   * none.
   */
  warnings: Warning[];
  /**
   * `true` if the backup does not contain the whole project; absent otherwise. Causes are a file or
   * directory that was unreadable or changed during the backup, and a link that leads out of the
   * project.
   *
   * The warnings of `createBackup` name these files. Files that `excludePatterns` excludes do not
   * count.
   */
  incomplete?: true;
  /**
   * `true` if the graph database has 0 bytes, or has no table although an earlier good backup has
   * some; absent otherwise. `latest` means this backup only if no backup is good.
   */
  emptied?: true;
  /** `true` if the backup can be opened only with a key; absent otherwise. */
  encrypted?: true;
  /**
   * The id of the project: 16 hexadecimal digits. Projects that share a store have different ids.
   * Absent in archives that name no project.
   */
  projectId?: string;
  /** The id of the base of an incremental backup; absent otherwise. */
  basedOn?: string;
  /**
   * The id of the incremental backup from which this full backup was consolidated; absent
   * otherwise.
   */
  consolidatedFrom?: string;
  /**
   * `true` if the backup was made before a repair, and therefore contains the problems that were
   * repaired; absent otherwise. `latest` means it only if there is no other good backup.
   */
  safetyBackup?: true;
  /**
   * The pin, which prevents removal: its reason, and its time in milliseconds since the epoch.
   * Absent if the backup is not pinned.
   */
  pinned?: { reason?: string; at: number };
}

/** The result of {@link BackupManager.createBackup}. */
export interface CreatedBackup extends Backup {
  /**
   * The number of bytes of the archive that were copied from an earlier archive of the store
   * because their content did not change. The archive does not depend on the earlier one. 0 if the
   * store has no earlier archive with the same compression.
   */
  reusedBytes: number;
  /** The backups that retention removed after this backup; absent if no limit is set. */
  retention?: PruneResult;
  /**
   * The reason why retention removed nothing although limits are set: an old backup could not be
   * read. Absent otherwise.
   */
  retentionError?: { code: KgErrorCode; message: string; remedy: string };
}

/** The second argument of {@link BackupManager.deleteBackup}. */
export interface DeleteOptions extends LongCallOptions {
  /** Whether to remove the backups that depend on it too. Default: `false`. */
  cascade?: boolean;
}

/**
 * The second argument of {@link BackupManager.consolidate}. An option that is not set takes its
 * value from the manager's configuration.
 */
export interface ConsolidateOptions
  extends LongCallOptions, Partial<Pick<BackupManagerConfig, 'compression' | 'compressionLevel'>> {}

/** The second argument of {@link BackupManager.copyTo}. */
export interface CopyOptions
  extends
    LongCallOptions,
    Partial<Pick<BackupManagerConfig, 'storageOptions' | 'retentionDays' | 'maxBackups' | 'keep'>> {
  /**
   * The backups to copy; none for an empty list. Default: all of the project that the target lacks
   * and its limits keep.
   */
  backupIds?: BackupReference[];
  /** Whether to report what would be copied without copying it. Default: `false`. */
  dryRun?: boolean;
}

/** The result of {@link BackupManager.copyTo}. */
export interface CopyResult {
  /** The absolute path or the URL of the target. */
  target: string;
  /** Whether nothing was copied because the call was a dry run. */
  dryRun: boolean;
  /** The copies in the order in which they were made; with `dryRun`, the backups to be copied. */
  copied: Backup[];
  /** The size of their archives in bytes. */
  bytesCopied: number;
  /** The number of chosen backups that the target had already. */
  present: number;
  /** The backups that could not be copied, each with the reason. */
  failed: { id: string; error: { code: KgErrorCode; message: string; remedy: string } }[];
  /** What the limits of the target removed there; absent without limits. */
  retention?: PruneResult;
  /** Conditions that need attention. */
  warnings: Warning[];
  /** The duration of the call in milliseconds. */
  durationMs: number;
}

/** The argument of {@link BackupManager.prune}. */
export interface PruneOptions extends LongCallOptions {
  /** Whether to report what would be removed without removing it. Default: `false`. */
  dryRun?: boolean;
}

/** The result of {@link BackupManager.prune}. */
export interface PruneResult {
  /** Whether nothing was removed because the call was a dry run. */
  dryRun: boolean;
  /** One decision for each backup, newest first. */
  decisions: PruneDecision[];
  /**
   * The size in bytes of the archives and sidecars that were removed, or would be removed with
   * `dryRun`.
   */
  bytesFreed: number;
  /** Archives for which no decision was possible because they are not complete. */
  warnings: Warning[];
}

/** The decision of retention about one backup. */
export interface PruneDecision {
  /** The id of the backup. */
  id: string;
  /** Whether the backup was kept, or would be kept with `dryRun`. */
  kept: boolean;
  /**
   * The reason of the decision. These keep a backup: `pinned`, `newest-good`, `just-made`, `keep-…`
   * (a rule of `keep`), `within-limits`, and `needed` (a kept backup depends on it). These remove
   * it: `too-old`, `too-many` and `no-rule`.
   *
   * The newest good backup can be a snapshot, incomplete, or of a graph without nodes. In that
   * case, `newest-good` also keeps the newest good backup that is none of these, and the newest one
   * of a graph with nodes.
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
  /**
   * The reason why a backup that should have been removed could not be removed; `kept` is then
   * `true`.
   */
  error?: { code: KgErrorCode; message: string; remedy: string };
}

/** The parts of a project that a backup contains. */
export interface BackupContents {
  /** Whether the backup contains the graph database. */
  database: boolean;
  /** Whether the backup contains the configuration. */
  config: boolean;
  /** Whether the backup contains vectors. */
  vectors: boolean;
  /** Whether the backup contains plugin data. */
  plugins: boolean;
}

/** The sizes and counts of a backup. */
export interface BackupStats {
  /** The number of saved files. */
  totalFiles: number;
  /** The size of the saved files in bytes, before compression. */
  totalSize: number;
  /** The size of the archive in bytes. */
  compressedSize: number;
  /** The number of rows of `nodes` in the saved database; 0 if there is no such table. */
  nodeCount: number;
  /** The number of rows of `edges` in the saved database; 0 if there is no such table. */
  edgeCount: number;
  /**
   * The number of tables of the saved graph database, without SQLite's own tables. Absent if it
   * could not be read.
   */
  tableCount?: number;
}

/** The state of the databases at the time of the backup. */
export interface SourceIntegrity {
  /**
   * The result of the check:
   *
   * - `ok`: everything is undamaged
   * - `partial`: everything that could be checked is undamaged, and `notChecked` names the rest;
   * such a backup is good
   * - `failed`: damage was found, or the graph database no longer has a table
   * - `skipped`: `checkSource` is `false`
   */
  status: 'ok' | 'partial' | 'failed' | 'skipped';
  /** The findings of SQLite, each after the path of its database; at most 100 for each database. */
  messages: string[];
  /**
   * With `partial`, what could not be checked, and the function, collation, tokenizer or module
   * that SQLite lacks here. Absent otherwise.
   */
  notChecked?: string[];
  /**
   * Whether full-text indexes were checked too, which can take longer than all other checks
   * together.
   *
   * An incremental backup whose base has undamaged databases checks every page, table and index. It
   * leaves full-text indexes, which FTS5 can rebuild, to the next full backup and to {@link
   * IntegrityChecker}.
   */
  fullText: boolean;
}

/** A condition that did not stop a call but needs attention. */
export interface Warning {
  /** The stable code of the warning; `docs/reference/errors.md` explains each. */
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
    | 'KG_WARN_PROJECT_ID'
    | 'KG_WARN_SAME_FILE'
    | 'KG_WARN_WAL_NOT_IN_USE'
    | 'KG_WARN_PASSED_OVER'
    | 'KG_WARN_INCOMPLETE'
    | 'KG_WARN_STORE_EMPTIED'
    | 'KG_WARN_EXCLUDE'
    | 'KG_WARN_KEY_EXPOSED'
    | 'KG_WARN_SETTINGS_CHANGED'
    | 'KG_WARN_NOT_ENCRYPTED'
    | 'KG_WARN_TIMESTAMPS';
  /** The text of the warning. */
  message: string;
  /**
   * The path of the file that the warning is about, relative to the project. Absent if the warning
   * is not about one file.
   */
  path?: string;
}

/** What to check. */
export interface CheckBackupOptions extends LongCallOptions {
  /** Whether the result lists the files of the backup. Default: `false`. */
  listFiles?: boolean;
}

/** The result of {@link BackupManager.checkBackup}. */
export interface CheckReport {
  /** Whether no problem was found. */
  valid: boolean;
  /** The problems that were found. */
  problems: Problem[];
  /** The path of the archive. */
  path: string;
  /** The manifest inside the archive; absent if it could not be read. */
  manifest?: Manifest;
  /**
   * The files, directories and links that a restore of the backup puts back; empty if they could
   * not be determined. Absent without `listFiles`.
   */
  files?: ManifestFile[];
  /**
   * `KG_WARN_PASSED_OVER` if `latest` was given and means an older backup than the newest one; and
   * warnings about the keys that opened the backup, or about the settings.
   */
  warnings: Warning[];
  /** The size of the archive in bytes. */
  size: number;
  /** The SHA-256 digest of the archive in its present state: 64 hexadecimal digits. */
  sha256: string;
  /** The duration of the call in milliseconds. */
  durationMs: number;
}

/** A problem of an archive. */
export interface Problem {
  /** The stable code of the problem; `docs/reference/errors.md` explains each. */
  code:
    | 'KG_PROBLEM_ARCHIVE'
    | 'KG_PROBLEM_BLOCK'
    | 'KG_PROBLEM_STRUCTURE'
    | 'KG_PROBLEM_ENTRY'
    | 'KG_PROBLEM_CHAIN'
    | 'KG_PROBLEM_SIDECAR';
  /** The text of the problem. */
  message: string;
  /**
   * The entries of the archive that are affected; empty if the problem concerns the archive as a
   * whole.
   */
  affects: string[];
  /** What to do about the problem. */
  remedy: string;
}

/**
 * The content of `manifest.json` in an archive. See the guide's section "Backup Manifest", and
 * `docs/reference/format.md`.
 */
export interface Manifest {
  /** The version of the manifest. */
  version: string;
  /** The format of the archive; absent in archives of the first format. */
  format?: number;
  /** The id of the backup. */
  id: string;
  /** The type of the backup. */
  type: BackupType;
  /** The time at which the backup began, as an RFC 3339 timestamp in UTC. */
  timestamp: string;
  /** The note given to `createBackup`. */
  description?: string;
  /** The parts of the project that the backup contains. */
  contents: BackupContents;
  /**
   * The sizes and counts of the backup. In a manifest, `compressedSize` is the size of the archive
   * before its list of files.
   */
  stats: BackupStats;
  /**
   * The digests of `database.sqlite` and `config.json`, as far as the archive has them: `sha256:`
   * and 64 hexadecimal digits. `checksums.sha256` in the archive has the digests of all entries.
   */
  checksums: Record<string, string>;
  /**
   * The number of files, directories and links that the backup describes, and the digest of their
   * list: 64 hexadecimal digits. Absent in archives of the first format.
   */
  fileList?: { records: number; sha256: string };
  /** The state of the databases at the time of the backup. */
  integrity: SourceIntegrity;
  /** The warnings of the backup. */
  warnings?: Warning[];
  /** The id of the base of an incremental backup; absent otherwise. */
  basedOn?: string;
  /**
   * The id of the incremental backup from which this full backup was consolidated; absent
   * otherwise.
   */
  consolidatedFrom?: string;
  /**
   * `true` if the backup was made before a repair, and therefore contains the problems that were
   * repaired; absent otherwise.
   */
  safetyBackup?: true;
  /** `true` if the backup does not contain the whole project; absent otherwise. */
  incomplete?: true;
  /**
   * `true` if the graph database has 0 bytes, or has no table although an earlier good backup of
   * the project has some; absent otherwise.
   */
  emptied?: true;
  /**
   * For an incremental backup, the digest of the archive of its base: `sha256:` and 64 hexadecimal
   * digits.
   */
  basedOnChecksum?: string;
  /** The compression and its level, such as `gzip -6`; absent for a plain archive. */
  compression?: string;
  /**
   * The id of the project: 16 hexadecimal digits. It distinguishes projects that share a store. In
   * backups of earlier releases, it is a digest of the project's path.
   */
  project?: string;
  /** A digest of the project's path: 16 hexadecimal digits. Absent in earlier releases. */
  projectPath?: string;
  /** The program that made the backup. */
  tool: { name: string; version: string };
}

/** A file, directory or link of a backup. */
export interface ManifestFile {
  /** The name of the entry in the archive. */
  entry: string;
  /**
   * The path relative to the project's root, with `/` as the separator. `%` and bytes that are not
   * UTF-8 are written as `%XX`.
   */
  path: string;
  /** The part of the project that the file belongs to. */
  component: Component;
  /** `directory` or `link`; absent for a file. */
  type?: 'directory' | 'link';
  /** The target of a link, written as in `path`; absent otherwise. */
  target?: string;
  /** `true` for a SQLite database; absent otherwise. */
  database?: boolean;
  /** The size of the file in bytes. */
  size: number;
  /** The permission bits. */
  mode: number;
  /** The time of the last modification, as an RFC 3339 timestamp in UTC. */
  mtime: string;
  /**
   * The SHA-256 digest of a file, 64 hexadecimal digits. Absent for directories and links, and for
   * a database of which an incremental backup has the changed pages.
   */
  sha256?: string;
  /**
   * The hashes of the blocks of a database, which identify its content; see
   * `docs/reference/format.md`.
   */
  blocks?: { size: number; root: string };
}

/**
 * A part of a project that can be restored on its own. `files` is everything below `.kg/` that
 * belongs to none of the other parts.
 */
export type Component = 'database' | 'config' | 'vectors' | 'plugins' | 'files';

/**
 * The argument of {@link BackupManager.restore}. Exactly one of `backupPath` and `backupId` is
 * required.
 */
export interface RestoreOptions extends LongCallOptions {
  /**
   * The path of an archive, or a backup of this or another store. Its sidecar is not needed. The
   * archive of an incremental backup needs the archives of its chain in the same directory.
   */
  backupPath?: BackupReference | KnownUrl;
  /** A backup in `backupDir`, or `'latest'`. */
  backupId?: BackupReference;
  /**
   * The root of the project to restore into. It is created if it does not exist. Default:
   * `projectRoot` of the manager.
   */
  targetDir?: string;
  /**
   * Whether to replace existing files; their previous content is kept. Default: `false`, which
   * rejects with `KG_TARGET_EXISTS`.
   */
  overwrite?: boolean;
  /** The parts to restore. Default: all parts that the backup contains. */
  only?: Component[];
  /**
   * Patterns of the files to restore, with the syntax of `excludePatterns`. Example:
   * `['plugins/glossary', 'vectors/*.f32']`. If one of several patterns matches nothing, the result
   * has the warning `KG_WARN_INCOMPLETE`. Default: all files.
   */
  paths?: string[];
  /**
   * Whether to replace a database that cannot be changed through SQLite even while another process
   * has it open or commits to another WAL. That process keeps the old file. Default: `false`.
   */
  force?: boolean;
  /**
   * Whether to keep the backup settings of the target, which are `backup` in its
   * `.kg/config.json`, and to restore the rest of the configuration. Rejects with
   * `KG_CONFIG_INVALID` if one of the two configurations cannot be read. Default: `false`.
   */
  keepSettings?: boolean;
  /**
   * Whether to check everything that {@link BackupManager.verifyBackup} checks, and to report what
   * would happen, without changing anything. Default: `false`.
   */
  dryRun?: boolean;
}

/** The argument of {@link BackupManager.undoRestore}. */
export interface UndoOptions extends LongCallOptions {
  /** The project's root. Default: `projectRoot` of the manager. */
  targetDir?: string;
  /**
   * Whether to undo the newest restore that is not yet undone, rather than to reverse an undo.
   * Repeated calls lead back to the state before the first restore. Default: `false`.
   */
  earlier?: boolean;
  /**
   * Whether to replace a database that is in use, as {@link RestoreOptions.force} does. Default:
   * `false`.
   */
  force?: boolean;
  /** Whether to report what would happen without changing anything. Default: `false`. */
  dryRun?: boolean;
}

/** The result of {@link BackupManager.undoRestore}. With `dryRun`, what an undo would do. */
export interface UndoResult {
  /**
   * The id of the backup whose restore was undone; `'repair'` if the undo reversed a repair that
   * had replaced a damaged database.
   */
  id: string;
  /** The time of that restore or repair, in milliseconds since the epoch. */
  restoredAt: number;
  /** The project's root. */
  targetDir: string;
  /** Whether nothing was changed because the call was a dry run. */
  dryRun: boolean;
  /** The number of files that were put back. */
  filesRestored: number;
  /** The number of files that were removed because the restore had added them. */
  filesRemoved: number;
  /** The directory that keeps the state before this undo; absent in a dry run. */
  safetyCopy?: string;
  /** The backup settings that the undo changed. */
  settingsChanged: SettingChange[];
  /** Conditions that did not stop the undo but need attention. */
  warnings: Warning[];
  /** The duration of the call in milliseconds. */
  durationMs: number;
}

/** A backup setting that a restore or undo changed or, with `dryRun`, would change. */
export interface SettingChange {
  /** The name of the setting, such as `backup.schedule`. */
  key: string;
  /** The value before, without parts that may be secret; absent if it was not set. */
  before?: unknown;
  /** The value after, without parts that may be secret; absent if it is not set. */
  after?: unknown;
  /** `true` if the value before was unusable, or its name misspelt. `before` is absent then. */
  beforeUnusable?: boolean;
  /** `true` if the value after is unusable, or its name misspelt. `after` is absent then. */
  afterUnusable?: boolean;
}

/** The result of {@link BackupManager.restore}. With `dryRun`, what a restore would do. */
export interface RestoreResult {
  /** The id of the backup. */
  id: string;
  /** The path of the archive. */
  backupPath: string;
  /** The root of the project that was restored into. */
  targetDir: string;
  /** Whether nothing was changed because the call was a dry run. */
  dryRun: boolean;
  /** The number of files that were restored. */
  filesRestored: number;
  /** The size of the restored files in bytes. */
  bytesRestored: number;
  /** The number of restored files that replaced an existing file. */
  filesReplaced: number;
  /**
   * The directory that keeps the replaced files, under their paths in the project; absent if there
   * is none.
   */
  safetyCopy?: string;
  /**
   * Whether {@link BackupManager.undoRestore} can take the restore back. `false` after a dry run, and
   * if the project was empty.
   */
  canUndo: boolean;
  /**
   * The backup settings that the restored configuration changed, such as the schedule or the
   * encryption. The warning `KG_WARN_SETTINGS_CHANGED` names them too.
   */
  settingsChanged: SettingChange[];
  /** Conditions that did not stop the restore but need attention. */
  warnings: Warning[];
  /** The duration of the call in milliseconds. */
  durationMs: number;
}

/**
 * Checks a database, the files of its project and its vectors, and repairs what can be repaired
 * without guessing. See the guide's section "Recovery Verification".
 *
 * A separate worker process works on a private copy of one commit. Other processes can continue to
 * write, and the host's connections and locks do not change. A check changes nothing.
 *
 * ```ts
 * const checker = new IntegrityChecker(db);
 * const { healthy, issues } = await checker.runChecks();
 * if (!healthy) console.log(await checker.repair(issues));
 * ```
 */
export declare class IntegrityChecker {
  /**
   * Creates a checker, as {@link createIntegrityChecker} does.
   *
   * @param db the path of a database or of a project's root; or a handle of better-sqlite3,
   * node:sqlite or bun:sqlite, or the host's `KnowledgeGraphDatabase`, from which only the path is
   * read. A database in `.kg/`, or one that the configuration of the nearest project above it
   * names, is checked with that project. Any other database is checked alone.
   * @throws {KgError} `KG_INVALID_OPTION` for a database in memory, which has no file, and for a
   * value that is not a database
   */
  constructor(db: string | object, options?: IntegrityCheckerOptions);

  /** The absolute path of the database or of the project's root that is checked. */
  readonly path: string;

  /**
   * Runs the checks. Each problem is an issue of the result. The promise rejects only if the checks
   * could not run.
   *
   * A check copies the database into the system's directory for temporary files (`TMPDIR`) and
   * deletes the copy afterwards.
   *
   * @throws {KgError} `KG_NO_PROJECT`, `KG_DATABASE_BUSY`, `KG_DATABASE_UNREADABLE`,
   * `KG_TARGET_LOCKED`, `KG_NO_SPACE`, `KG_PERMISSION_DENIED`, `KG_IO`, `KG_READER_…`,
   * `KG_INVALID_OPTION`; with `repairMode`, also the errors of {@link repair}
   */
  runChecks(options?: CheckOptions): Promise<IntegrityResult>;

  /**
   * Repairs issues, and then checks everything again. Only the codes of the given issues count: the
   * problems are searched for again. What cannot be repaired stays unchanged. If there is nothing
   * to repair, nothing changes and no backup is made.
   *
   * A backup is made first: a snapshot, or a full backup if vectors are to be changed. The repair
   * then rebuilds indexes and full-text indexes. It moves edges, rows of `node_tags` and vectors
   * whose target does not exist to the table `kg_repair_removed` of the same database. Each row is
   * kept there as JSON with its time and reason.
   *
   * Each database is repaired in one transaction through SQLite, so open connections continue with
   * the repaired content.
   *
   * A damaged database is salvaged into a new one, which replaces it while no process has it open.
   * The damaged one is kept in `.kg/restore-undo/`, and {@link BackupManager.undoRestore} puts it
   * back. The same call also moves rows whose target was lost, if they are an error. If a newer
   * good backup exists, restoring it recovers more.
   *
   * @throws {KgError} `KG_NO_PROJECT` if pages of a database are damaged that belongs to no
   * project, because the damaged one could not be kept; `KG_DATABASE_BUSY`; `KG_DATABASE_IN_USE` if
   * a damaged database is open in this or another process, or a process commits to a WAL other than
   * the one next to it; `KG_INVALID_OPTION` if the configured database is outside the project and
   * was not named; and the errors of {@link runChecks} and {@link BackupManager.createBackup}
   */
  repair(issues: Pick<Issue, 'code'>[], options?: LongCallOptions): Promise<RepairResult>;
}

/**
 * Creates a checker, as the constructor of {@link IntegrityChecker} does.
 *
 * @throws {KgError} the errors of that constructor
 */
export declare function createIntegrityChecker(
  db: string | object,
  options?: IntegrityCheckerOptions,
): IntegrityChecker;

/** The second argument of {@link IntegrityChecker}. */
export interface IntegrityCheckerOptions {
  /**
   * The project's root, if it cannot be found from the path of the database. A database outside the
   * project is repaired only if it is named, as in `new IntegrityChecker('/var/lib/graph.db', {
   * projectRoot })`.
   */
  projectRoot?: string;
  /**
   * The directory, or the URL of an object store, for the backup before a repair. Default:
   * `backup.dir` of `.kg/config.json`, else `.kg/backups` of the project.
   */
  backupDir?: string;
  /** The options of that object store, as in {@link BackupManagerConfig}. */
  storageOptions?: StorageOptions;
  /**
   * The keys that encrypt that backup. If `false`, it is not encrypted, even after an encrypted
   * one. Default: the settings of `.kg/config.json`.
   */
  encryption?: EncryptionOptions | false;
  /** The time in milliseconds to wait for a lock that another process holds. Default: 60000. */
  lockTimeout?: number;
  /** The path of the `kg` executable, as in {@link BackupManagerConfig}. */
  kgPath?: string;
}

/** The argument of {@link IntegrityChecker.runChecks}. */
export interface CheckOptions extends LongCallOptions {
  /**
   * Whether to check pages, indexes, full-text indexes, references, rows and the WAL. Default:
   * `true`.
   */
  checkDatabase?: boolean;
  /**
   * Whether to check the configuration, the documents of nodes, unreadable files and permissions.
   * Default: `true`.
   */
  checkFiles?: boolean;
  /**
   * Whether to check `.kg/vectors.db`, and `NAME.f32` with `index.json` in `.kg/vectors/`. Default:
   * `true`.
   */
  checkVectors?: boolean;
  /**
   * Whether to repair everything that can be repaired, as {@link IntegrityChecker.repair} does. It
   * requires all of the checks; otherwise the call rejects with `KG_INVALID_OPTION`. Default:
   * `false`.
   */
  repairMode?: boolean;
}

/**
 * The result of {@link IntegrityChecker.runChecks}. With `repairMode`, it describes the state after
 * the repair.
 */
export interface IntegrityResult {
  /** Whether no issue has the severity `error`. */
  healthy: boolean;
  /** The issues, errors first. */
  issues: Issue[];
  /** What was checked. */
  checked: Checked;
  /** The duration of the call in milliseconds. */
  durationMs: number;
  /** What the repair did; present with `repairMode`. */
  repair?: RepairSummary;
}

/** What was checked. */
export interface Checked {
  /** The project's root; absent for a database that belongs to no project. */
  project?: string;
  /** The path of the database. */
  database: string;
  /** The size of the database in bytes. */
  databaseSize: number;
  /** The number of nodes; 0 if the structure is damaged or was not checked. */
  nodes: number;
  /** The number of edges; 0 if the structure is damaged or was not checked. */
  edges: number;
  /** The number of nodes that name a document. */
  documents: number;
  /** The number of files below `.kg/`. */
  files: number;
  /** The number of vectors. */
  vectors: number;
}

/** One kind of problem in one place. `count` is the number of occurrences. */
export interface Issue {
  /** The stable code of the issue. */
  code: IssueCode;
  /**
   * The severity. `error`: the project is not healthy. `warning`: the issue needs attention.
   * `info`: the issue needs no action.
   */
  severity: 'error' | 'warning' | 'info';
  /** The part of the project that the issue concerns. */
  component: 'database' | 'files' | 'vectors' | 'backups';
  /** What is wrong, without a period at the end. */
  message: string;
  /** What to do, without a period at the end. */
  remedy: string;
  /** The name of the table, if the issue concerns one. */
  table?: string;
  /** The name of the index, if the issue concerns one. */
  index?: string;
  /** The rowid of the first row, if the issue concerns rows. */
  rowid?: number;
  /** The number of the first page, from 1, if the issue concerns pages. */
  page?: number;
  /**
   * The path of the file, if the issue concerns one; relative to the project if the file is inside
   * it.
   */
  path?: string;
  /** The number of occurrences. */
  count: number;
  /** The first ten occurrences. */
  examples: string[];
  /** Whether {@link IntegrityChecker.repair} can do something about the issue. */
  repairable: boolean;
  /** What a repair would do; absent if it can do nothing. */
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
  | 'KG_ISSUE_COPY_BEHIND'
  | 'KG_ISSUE_COPY_UNKNOWN'
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
  /** The number of issues that are gone. */
  fixed: number;
  /** The number of issues that the repair worked on and that still exist. */
  failed: number;
  /**
   * The number of issues that a repair can do nothing about, and of given codes for which no issue
   * exists.
   */
  skipped: number;
  /** The backup that was made before the repair; absent if there was nothing to repair. */
  safetyBackup?: { id: string; path: string };
  /**
   * For a database that belongs to no project, the path of a copy from before the repair. It is in
   * the same directory as the database: `NAME-before-repair-{YYYYMMDD-HHMMSS}.sqlite`. It is never
   * removed automatically.
   */
  safetyCopy?: string;
  /** The actions of the repair. */
  actions: RepairAction[];
}

/**
 * The result of {@link IntegrityChecker.repair}: what was done, and the issues after the repair.
 */
export interface RepairResult extends RepairSummary, Omit<IntegrityResult, 'repair'> {}

/** One action of a repair. */
export interface RepairAction {
  /** The code of the issue that the action repairs. */
  code: IssueCode;
  /** The part of the project that the action concerns. */
  component: Issue['component'];
  /** What was done, or was to be done. */
  action: string;
  /** Whether the action succeeded. */
  done: boolean;
  /** The number of rows that were moved to `kg_repair_removed`. */
  rowsRemoved: number;
  /** What was salvaged from a damaged database; absent for other actions. */
  salvage?: Salvage;
  /** The reason why the action failed; absent if it succeeded. */
  error?: { code: KgErrorCode; message: string; remedy: string };
}

/** What was salvaged from a damaged database. */
export interface Salvage {
  /** The absolute path at which the damaged database is kept, with its WAL or journal. */
  kept: string;
  /** The page size in bytes. */
  pageSizeBytes: number;
  /** The number of pages of the damaged database, including those of its WAL. */
  pageCount: number;
  /**
   * Whether the header was credible. If not, the user version, application id and journal mode are
   * SQLite's defaults.
   */
  headerReadable: boolean;
  /**
   * Whether the schema was complete. If not, the host's own tables were created as they are
   * documented.
   */
  schemaReadable: boolean;
  /**
   * What happened to the WAL. It is `ignored` if it is damaged or belongs to another database; a
   * warning gives the reason.
   */
  wal: 'none' | 'applied' | 'ignored';
  /**
   * What happened to the rollback journal of a killed writer. `applied` restores the database to
   * its state before that transaction.
   */
  journal: 'none' | 'applied' | 'ignored';
  /** The salvaged tables. */
  tables: SalvagedTable[];
  /** The number of recovered rows in all tables, without the rows in `lostAndFound`. */
  rowsRecovered: number;
  /** The pages that could not be read. `page` counts from 1; `first` contains the first 100. */
  unreadablePages: { count: number; first: { page: number; reason: string }[] };
  /**
   * The objects of the schema other than the salvaged tables. `failed` is the reason why an object
   * is missing or lacks its content.
   */
  objects: { kind: string; name: string; failed?: string }[];
  /**
   * The table for rows that could not be assigned to a table with certainty; `null` if there are
   * none.
   */
  lostAndFound: { table: string; rows: number } | null;
  /**
   * The number of pages with old content, from deleted rows or earlier versions, that were not
   * used.
   */
  leftoverPages: number;
  /** Sentences for a person. */
  warnings: string[];
}

/** A table of a {@link Salvage}. */
export interface SalvagedTable {
  /** The name of the table. */
  name: string;
  /** The number of recovered rows. */
  rowsRecovered: number;
  /**
   * The number of rows that this table is known or estimated to have lost, including those in
   * `lostAndFound`.
   */
  rowsLost: number;
  /**
   * How `rowsLost` was determined:
   *
   * - `nothing`: no row is lost
   * - `aside`: exactly the rows in `lostAndFound`
   * - `index`: exactly the rows that an index names
   * - `atLeast`: at least the rows that a damaged index names
   * - `estimate`: for each lost page, as many rows as the other pages hold
   */
  rowsLostBy: 'nothing' | 'aside' | 'index' | 'atLeast' | 'estimate';
  /** The number of rows of this table that are in `lostAndFound`. */
  rowsAside: number;
  /** The number of pages that belong to this table but could not be read. */
  pagesLost: number;
  /** The number of pages that had lost their parent and were identified as part of this table. */
  pagesReassigned: number;
}

/** The argument of {@link BackupManager.rehearse}. */
export interface RehearseOptions extends LongCallOptions {
  /** A backup, the path of an archive, or `'latest'`. Default: `'latest'`. */
  backup?: BackupReference | KnownUrl;
  /**
   * The directory in which the drill creates its temporary directory. Default: the system's
   * directory for temporary files.
   */
  directory?: string;
}

/** The result of {@link BackupManager.rehearse}. */
export interface Rehearsal {
  /**
   * Whether the restored project is healthy and has the numbers of nodes and edges that the
   * manifest states.
   */
  passed: boolean;
  /** The id of the backup. */
  id: string;
  /** The path of the archive. */
  backupPath: string;
  /** The age of the backup in milliseconds. A recovery would lose what was written in this time. */
  ageMs: number;
  /** The number of files that were restored. */
  filesRestored: number;
  /** The size of the restored files in bytes. */
  bytesRestored: number;
  /** The duration of the restore in milliseconds, which is the time that a recovery takes. */
  restoreMs: number;
  /** The duration of the checks in milliseconds. */
  checkMs: number;
  /** The number of nodes that the manifest states, and the number that was found. */
  nodes: { expected: number; found: number };
  /** The number of edges that the manifest states, and the number that was found. */
  edges: { expected: number; found: number };
  /** The issues of the restored project. */
  issues: Issue[];
  /** Conditions that did not stop the drill but need attention. */
  warnings: Warning[];
  /** The duration of the call in milliseconds. */
  durationMs: number;
}

/**
 * Creates a check for a health monitor: whether the newest good backup is recent enough. It serves
 * the monitor of the guide, whose checks resolve to a boolean, and that of the host, whose functions
 * resolve to a `status`. Both functions may be passed on alone.
 *
 * ```ts
 * const freshness = backupFreshnessCheck(manager, { maxAge: '24h' });
 * healthMonitor.addCheck(freshness);                          // the guide
 * healthMonitor.register(freshness.name, freshness.status);   // the host
 * ```
 *
 * `check` resolves to `false` if there is no good backup, and rejects if `backupDir` cannot be
 * read. `status` never rejects: it is `unhealthy` in both cases, and its `message` says why.
 *
 * @throws {KgError} `KG_INVALID_OPTION`
 */
export declare function backupFreshnessCheck(
  manager: BackupManager,
  options?: FreshnessOptions,
): FreshnessCheck;

/** The second argument of {@link backupFreshnessCheck}. */
export interface FreshnessOptions {
  /**
   * The largest age of the newest good backup: milliseconds, or a whole number followed by `s`,
   * `m`, `h` or `d`. Default: `'24h'`.
   */
  maxAge?: number | string;
  /** How often the monitor should run the check, in the same format. Default: `'1h'`. */
  interval?: string;
  /** The name of the check. Default: `'backup-freshness'`. */
  name?: string;
}

/** A check of a health monitor. */
export interface FreshnessCheck {
  /** The name of the check. */
  name: string;
  /** How often the monitor should run the check. */
  interval: string;
  /** Resolves to whether the newest good backup is recent enough. */
  check: () => Promise<boolean>;
  /** Resolves to the same in the words of the host's health monitor. Never rejects. */
  status: () => Promise<FreshnessStatus>;
}

/** What {@link FreshnessCheck.status} resolves to. It is a `ComponentHealth` of the host. */
export interface FreshnessStatus {
  /** The name of the check. */
  name: string;
  /** `'healthy'` only if the newest good backup is known and recent enough. */
  status: 'healthy' | 'unhealthy';
  /** The age of the newest good backup, or why it is not known. */
  message: string;
  /** The time of this check. */
  lastCheck: Date;
  /** Absent values are not known. */
  metrics: { ageMs?: number; maxAgeMs?: number };
}

/** The codes of {@link KgError}; `docs/reference/errors.md` gives the cause and remedy of each. */
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
  | 'KG_STORE_UNREACHABLE'
  | 'KG_STORE_DENIED'
  | 'KG_STORE_CHANGED'
  | 'KG_AMBIGUOUS'
  | 'KG_BACKUP_EXISTS'
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
  /** The manager is closed: see {@link BackupManager.close}. */
  | 'KG_CLOSED'
  /** The function of a guard failed: see {@link GuardError}. */
  | 'KG_GUARD_FAILED'
  /**
   * Thrown by the first call that needs the native parts: there are none for this platform. The
   * message lists the supported ones.
   */
  | 'KG_PLATFORM_UNSUPPORTED'
  /**
   * Thrown by the first call that needs the native parts: they are not installed, cannot be loaded,
   * or were lost by a bundler.
   */
  | 'KG_NATIVE_MISSING';

/** An error of this package. Its message states what failed and what to do. */
export declare class KgError extends Error {
  /** The name of the error class. */
  readonly name: 'KgError' | 'GuardError';
  /** The stable code of the error. */
  readonly code: KgErrorCode;
  /** What to do about the error, without a period at the end. */
  readonly remedy: string;
  /** The error that caused this one; absent if there is none. */
  readonly cause?: unknown;
  /** Returns what `JSON.stringify` writes. */
  toJSON(): KgErrorJson;
}

/** A {@link KgError} as JSON, without its stack. */
export interface KgErrorJson {
  /** The name of the error class. */
  name: KgError['name'];
  /** The stable code of the error. */
  code: KgErrorCode;
  /** What failed and what to do. */
  message: string;
  /** What to do about the error, without a period at the end. */
  remedy: string;
  /** The error that caused this one; absent if there is none. */
  cause?: CauseJson;
}

/** A cause as JSON: an error without its stack, or the text of another value. */
export type CauseJson =
  { name: string; message: string; code?: string; cause?: CauseJson } | string;

/**
 * The error of {@link BackupManager.guard} if its function failed. Its `code` is
 * `KG_GUARD_FAILED`.
 *
 * ```ts
 * try {
 *   await manager.guard(migrate, { onError: 'restore' });
 * } catch (error) {
 *   if (error instanceof GuardError && error.restored) console.log(error.cause);
 * }
 * ```
 */
export declare class GuardError extends KgError {
  readonly name: 'GuardError';
  readonly code: 'KG_GUARD_FAILED';
  /** What the function threw; an `AbortError` if it succeeded and the signal was aborted. */
  readonly cause: unknown;
  /** The backup that was made before the function. */
  readonly backup: CreatedBackup;
  /** The restore of that backup; absent if the project stays as the function left it. */
  readonly restored?: RestoreResult;
  /** Why the restore failed, or what `onError` threw; absent otherwise. */
  readonly restoreError?: unknown;
  /** Returns what `JSON.stringify` writes. */
  toJSON(): GuardErrorJson;
}

/** A {@link GuardError} as JSON, without its stack. */
export interface GuardErrorJson extends KgErrorJson {
  /** The id of the backup. */
  backupId: string;
  /** Whether the backup was restored. */
  restored: boolean;
  /** Why a restore failed, or what `onError` threw; absent otherwise. */
  restoreError?: CauseJson;
}

// Without this line, the types above that are not exported would be visible too.
export {};
