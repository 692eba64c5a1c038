//! What the settings of a project make of its backups: when they are due, and how each is made.

use std::path::Path;

use jiff::Timestamp;

use crate::{
    archive::{block::Compression, manifest::BackupType},
    commands::{
        backup::{BackupOptions, DEFAULT_MAX_CHAIN_LENGTH},
        credentials::KeySource,
        own_backups::own_backups,
    },
    config::{self, Settings},
    error::{Code, Error, Result},
    project::Project,
    schedule::{
        backup_type,
        cron::{Cadence, time_zone},
        plan::{DEFAULT_RETRIES, DEFAULT_RETRY_DELAY_MS, Plan},
    },
    store::{Doubt, EncryptionPolicy, Store, known_stores},
    worker::client::WorkerMode,
};

/// The plan of a project; `None` where no schedule is set. Whether it is enabled is another question.
pub fn plan(settings: &Settings, root: &Path) -> Result<Option<Plan>> {
    let Some(schedule) = settings.text("backup.schedule") else {
        return Ok(None);
    };
    let number = |name: &str| settings.whole(name);
    Ok(Some(Plan {
        cadence: Cadence::parse(schedule, settings.text("backup.timezone"))?,
        catch_up: settings.bool("backup.catchUp").unwrap_or(true),
        jitter_ms: number("backup.jitter").unwrap_or(0).into(),
        seed: root.display().to_string(),
        retries: number("backup.retries").unwrap_or(DEFAULT_RETRIES),
        retry_delay_ms: number("backup.retryDelay").map_or(DEFAULT_RETRY_DELAY_MS, i64::from),
    }))
}

pub fn is_enabled(settings: &Settings) -> bool {
    settings.bool("backup.enabled").unwrap_or(false)
}

/// What a run makes.
pub fn wanted_kind(settings: &Settings) -> BackupType {
    settings.kind().unwrap_or(BackupType::Full)
}

/// When the newest backup was made that a run on schedule would have made.
pub fn last_run(settings: &Settings, project: &Project) -> Result<Option<i64>> {
    let store = store(
        settings,
        project.root(),
        None,
        CallerEncryption::Nothing,
        &WorkerMode::InProcess,
    )?;
    Ok(backup_type::last_run(
        &own_backups(&store, project)?,
        wanted_kind(settings),
    ))
}

/// What the call says about encryption of a new backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerEncryption {
    Nothing,
    /// It is to be plain.
    Plain,
    /// It is to be encrypted; the settings, or the environment, say for whom.
    Encrypted,
    /// It is to be encrypted for readers that the call names.
    EncryptedTo,
}

/// Where the project keeps its backups, with the keys that it names. In another directory, where one is given, it is encrypted all the same.
pub fn store(
    settings: &Settings,
    root: &Path,
    dir: Option<&Path>,
    said: CallerEncryption,
    worker_mode: &WorkerMode,
) -> Result<Store> {
    let of_settings = || {
        settings
            .dir(root)
            .unwrap_or_else(|| Store::default_dir(root))
    };
    let store = Store::at(&dir.map_or_else(of_settings, Path::to_path_buf))?;
    let keys = KeySource::of_settings(settings, root).keys(root, worker_mode);
    let store = store
        .for_project(root)
        .with_keys(keys)
        .as_set(encrypts(settings, said))
        .with_mode(settings.archive_mode());
    let doubt = if dir.is_none() {
        settings
            .doubt_of_dir()
            .map(|why| doubt(why, settings, &store))
    } else {
        None
    };
    Ok(store.doubted(doubt))
}

/// Settings that somebody else can read may name another store. Those that say nothing are recovered from the one that is used without
/// any, unless another one is known, or may be.
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
                "; whether backups of this project were made elsewhere cannot be told: {}",
                error.message
            )
        }
    };
    let first = match &other {
        Ok(Some(other)) if !settings.are_hidden() => format!(
            "Mend it, or bring it back with `kg diag restore --file latest --config-only --backup-dir {}`",
            other.display()
        ),
        _ => why.remedy,
    };
    let name_it = "or name the directory of the backups: `--output` of `kg diag backup`, `--backup-dir` of other commands, `backupDir` \
                   in the API";
    Doubt {
        hides_another: settings.are_hidden() || !known.is_empty(),
        why: Error {
            message: format!("{}{known}", why.message),
            remedy: format!("{first}; {name_it}"),
            ..why
        },
    }
}

/// Whether a new backup is encrypted: the one place that decides it, from what the call and the settings say.
pub fn encrypts(settings: &Settings, said: CallerEncryption) -> EncryptionPolicy {
    match said {
        CallerEncryption::Plain => return EncryptionPolicy::Never,
        CallerEncryption::EncryptedTo => return EncryptionPolicy::Yes,
        CallerEncryption::Nothing | CallerEncryption::Encrypted => {}
    }
    let unclear = |what: String| {
        let remedy = "Mend it (`kg config show --all` tells what it may be), or say with `--recipient` or \
                      `--passphrase-file` who can read this backup; `--no-encrypt` makes a plain one";
        EncryptionPolicy::Undecided(Error::new(Code::KeyInvalid, what, remedy))
    };
    let is_asked_for = said == CallerEncryption::Encrypted;
    if let Some(doubt) = settings.doubt_of_encryption(is_asked_for) {
        return unclear(doubt);
    }
    match (settings.assert_usable(), settings.bool("backup.encrypt")) {
        (Err(error), _) if is_asked_for => unclear(format!(
            "{}, so it is unclear who can read it",
            error.message
        )),
        (Err(error), _) => {
            let say = "with `--no-encrypt`, `--recipient` or `--passphrase-file` it is known who can read this backup";
            EncryptionPolicy::Unread(Error {
                remedy: format!("{}; {say}", error.remedy),
                ..error
            })
        }
        (Ok(()), Some(true)) => EncryptionPolicy::Yes,
        (Ok(()), _) if is_asked_for => EncryptionPolicy::Yes,
        (Ok(()), Some(false)) => EncryptionPolicy::TurnedOff,
        (Ok(()), None) if settings.name_readers() => EncryptionPolicy::KeyAlone,
        (Ok(()), None) => EncryptionPolicy::Unasked,
    }
}

/// How a backup is made at `now` where nobody asks for something else.
pub fn options(
    settings: &Settings,
    root: &Path,
    store: &Store,
    now: Timestamp,
) -> Result<BackupOptions> {
    let level = settings
        .whole("backup.compressionLevel")
        .and_then(|level| u8::try_from(level).ok());
    let compression = settings
        .get("backup.compression")
        .and_then(config::compression)
        .unwrap_or(Compression::GZIP);
    let on = |name: &str| settings.bool(name).unwrap_or(true);
    let mut kind = wanted_kind(settings);
    if kind == BackupType::Incremental {
        let backups = own_backups(store, &Project::open(root)?)?;
        let zone = time_zone(settings.text("backup.timezone"))?;
        let full_every = settings.whole("backup.fullBackupInterval");
        kind = backup_type::choose(&backups, kind, full_every, &zone, now.as_millisecond());
    }
    Ok(BackupOptions {
        kind,
        include_vectors: on("backup.includeVectors"),
        include_plugin_data: on("backup.includePluginData"),
        exclude_patterns: settings.list("backup.excludePatterns").unwrap_or_default(),
        compression: level.map_or(compression, |level| compression.at(level)),
        max_chain_length: settings
            .whole("backup.maxChainLength")
            .unwrap_or(DEFAULT_MAX_CHAIN_LENGTH),
        check_source: on("backup.checkSource"),
        strict: settings.bool("backup.strict").unwrap_or(false),
        retention: settings.policy(),
        ..BackupOptions::default()
    })
}
