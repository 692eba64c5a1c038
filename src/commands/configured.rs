//! What the configuration of a project decides: when backups are due, where they are kept, whether
//! they are encrypted, and how each is made.

use std::path::Path;

use jiff::Timestamp;

use crate::{
    archive::manifest::BackupType,
    commands::{credentials::KeySource, own_backups::own_backups},
    config::{
        Settings,
        backup_config::{BackupConfig, BackupOptions},
    },
    error::{Code, Error, Result},
    objects::StorageOptions,
    project::Project,
    schedule::{
        backup_type,
        cron::time_zone,
        plan::{Plan, PlanOptions},
    },
    store::{Doubt, EncryptionPolicy, NAME_THE_READERS, Store, known_stores},
    worker::client::WorkerMode,
};

/// Returns the plan of a project, or `None` if no schedule is set. It may not be enabled; see
/// [`is_enabled`].
pub fn plan(settings: &Settings, root: &Path) -> Result<Option<Plan>> {
    let Some(schedule) = settings.schedule() else {
        return Ok(None);
    };
    let options = PlanOptions {
        schedule: schedule.to_string(),
        timezone: settings.timezone().map(str::to_string),
        catch_up: settings.bool("backup.catchUp"),
        jitter_ms: settings.whole("backup.jitter").map(i64::from),
        retries: settings.whole("backup.retries"),
        retry_delay_ms: settings.whole("backup.retryDelay").map(i64::from),
        seed: root.display().to_string(),
    };
    options.resolve().map(Some)
}

/// Returns whether scheduled backups are enabled.
pub fn is_enabled(settings: &Settings) -> bool {
    settings.bool("backup.enabled").unwrap_or(false)
}

/// Returns the type of backup that a scheduled run makes.
pub fn wanted_kind(settings: &Settings) -> BackupType {
    BackupConfig::of(settings).resolve().kind
}

/// Returns the time of the newest backup that counts as a scheduled run, in milliseconds since the
/// epoch.
pub fn last_run(settings: &Settings, project: &Project) -> Result<Option<i64>> {
    let store = store(
        settings,
        project.root(),
        NamedStore::default(),
        CallerEncryption::Nothing,
        &WorkerMode::InProcess,
    )?;
    Ok(backup_type::last_run(
        &own_backups(&store, project)?,
        wanted_kind(settings),
    ))
}

/// The encryption of a new backup that the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerEncryption {
    Nothing,
    /// The backup is not encrypted.
    Plain,
    /// The backup is encrypted with the keys of the settings or of the environment.
    Encrypted,
    /// The backup is encrypted with keys that the call names.
    EncryptedTo,
}

/// The store that a caller names.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamedStore<'a> {
    /// The directory or URL that replaces the one of the settings.
    pub dir: Option<&'a Path>,
    /// The options of an object store.
    pub options: Option<&'a StorageOptions>,
}

/// Returns the store of the project, with the keys that the settings name. Their encryption applies
/// to a store that the caller names too.
pub fn store(
    settings: &Settings,
    root: &Path,
    named: NamedStore<'_>,
    said: CallerEncryption,
    worker_mode: &WorkerMode,
) -> Result<Store> {
    let of_settings = || {
        settings
            .dir(root)
            .unwrap_or_else(|| Store::default_dir(root))
    };
    let dir = named.dir.map_or_else(of_settings, Path::to_path_buf);
    let store = match named.options {
        Some(options) => Store::open(&dir, options)?,
        None => Store::at(&dir)?,
    };
    let keys = KeySource::of_settings(settings, root).keys(root, worker_mode);
    let store = store
        .for_project(root)
        .with_keys(keys)
        .as_set(encrypts(settings, said))
        .with_mode(settings.archive_mode());
    let doubt = if named.dir.is_none() {
        settings
            .doubt_of_dir()
            .map(|why| doubt(why, settings, &store))
    } else {
        None
    };
    Ok(store.doubted(doubt))
}

/// Returns the doubt that `dir` is the store, because the settings that name it are unusable.
///
/// Settings that this user cannot read may name another store. Otherwise the default store may be
/// used to recover the settings, unless the project made backups elsewhere, or may have.
fn doubt(why: Error, settings: &Settings, store: &Store) -> Doubt {
    let other = store
        .home()
        .map_or(Ok(None), |home| known_stores::other(home, store));
    let known = match &other {
        Ok(Some(other)) => format!(
            "; backups of this project were last made in {}",
            other.display()
        ),
        Ok(None) => String::new(),
        Err(error) => {
            format!(
                "; whether backups of this project were made elsewhere cannot be determined: {}",
                error.message
            )
        }
    };
    let first = match &other {
        Ok(Some(other)) if !settings.are_hidden() => format!(
            "Fix it, or restore it with `kg diag restore --file latest --config-only --backup-dir \
             {}`",
            other.display()
        ),
        _ => why.remedy,
    };
    let name_it = "or name the directory of the backups with `backupDir`";
    Doubt {
        hides_another: settings.are_hidden() || !known.is_empty(),
        why: Error {
            message: format!("{}{known}", why.message),
            remedy: format!("{first}; {name_it}"),
            ..why
        },
    }
}

/// Decides whether a new backup is encrypted, from the call and the settings. No other function
/// decides this.
pub fn encrypts(settings: &Settings, said: CallerEncryption) -> EncryptionPolicy {
    match said {
        CallerEncryption::Plain => return EncryptionPolicy::Never,
        CallerEncryption::EncryptedTo => return EncryptionPolicy::Yes,
        CallerEncryption::Nothing | CallerEncryption::Encrypted => {}
    }
    let unclear = |what: String| {
        let remedy = format!(
            "Fix it (`kg config show --all` lists the valid values), or {NAME_THE_READERS}"
        );
        EncryptionPolicy::Undecided(Error::new(Code::KeyInvalid, what, remedy))
    };
    let is_asked_for = said == CallerEncryption::Encrypted;
    if let Some(doubt) = settings.doubt_of_encryption(is_asked_for) {
        return unclear(doubt);
    }
    match (settings.assert_usable(), settings.bool("backup.encrypt")) {
        (Err(error), _) if is_asked_for => unclear(format!(
            "{}, so it is unclear who can read the backup",
            error.message
        )),
        (Err(error), _) => EncryptionPolicy::Unread(Error {
            remedy: format!("{}; or {NAME_THE_READERS}", error.remedy),
            ..error
        }),
        (Ok(()), Some(true)) => EncryptionPolicy::Yes,
        (Ok(()), _) if is_asked_for => EncryptionPolicy::Yes,
        (Ok(()), Some(false)) => EncryptionPolicy::TurnedOff,
        (Ok(()), None) if settings.name_readers() => EncryptionPolicy::KeyAlone,
        (Ok(()), None) => EncryptionPolicy::Unasked,
    }
}

/// Returns the options of a backup at `now`: those of `caller`, completed by the settings.
///
/// If the settings choose the type, an incremental backup becomes a full one after
/// `backup.fullBackupInterval` days.
pub fn options(
    caller: BackupConfig,
    settings: &Settings,
    root: &Path,
    store: &Store,
    now: Timestamp,
) -> Result<BackupOptions> {
    let has_type = caller.backup_type.is_some();
    let config = caller.over(BackupConfig::of(settings));
    let full_every = config.full_backup_interval_days;
    let mut options = config.resolve();
    if !has_type && options.kind == BackupType::Incremental {
        let backups = own_backups(store, &Project::open(root)?)?;
        let zone = time_zone(settings.timezone())?;
        let now = now.as_millisecond();
        options.kind = backup_type::choose(&backups, options.kind, full_every, &zone, now);
    }
    Ok(options)
}
