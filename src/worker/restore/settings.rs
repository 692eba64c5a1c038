//! The backup settings that a restore or undo changes, and those that a restore keeps.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    placement::{Placement, Placements},
    target::Target,
};
use crate::{
    config::{SettingChange, Settings, edit_text::with_member_of, parse, read_text},
    error::{Code, Error, Result, Warning, WarningCode},
    project::{CONFIG_FILE, STATE_DIR},
};

/// The member of the configuration that holds the settings.
const SETTINGS: &str = "backup";

/// What changes the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Restore,
    Undo,
}

/// A configuration that is replaced or removed, and what takes its place.
pub(super) struct Configurations {
    before: PathBuf,
    /// `None` if the configuration is removed.
    after: Option<PathBuf>,
}

impl Configurations {
    /// Returns the configurations of a restore. `staging` is where the backup was unpacked. `None`
    /// if the project has no configuration, or keeps it.
    pub fn of_backup(
        target: &Target,
        placements: &Placements,
        staging: &Path,
    ) -> Result<Option<Self>> {
        let config = location();
        let from = content_of(placements).and_then(|placement| placement.from());
        let Some(from) = from else {
            return Ok(None);
        };
        if !target.is_taken(&config)? {
            return Ok(None);
        }
        let number = from.rsplit('/').next().unwrap_or_default();
        Ok(Some(Configurations {
            before: target.existing(&config)?.path(),
            after: Some(staging.join(number)),
        }))
    }

    /// Returns the configurations of an undo. `None` if the project has no configuration, or keeps
    /// it.
    pub fn of_undo(target: &Target, placements: &Placements) -> Result<Option<Self>> {
        let config = location();
        let Some(placement) = find(placements, &config) else {
            return Ok(None);
        };
        if !target.is_taken(&config)? {
            return Ok(None);
        }
        let after = placement.from();
        let after = after.map(|from| target.existing(&from).map(|place| place.path()));
        Ok(Some(Configurations {
            before: target.existing(&config)?.path(),
            after: after.transpose()?,
        }))
    }

    /// Writes the present settings into the unpacked configuration. `KG_CONFIG_INVALID` if one of
    /// the two cannot be read.
    pub fn keep_settings(&self) -> Result<()> {
        let Some(after) = &self.after else {
            return Ok(());
        };
        let present = read(&self.before, "the configuration of the project")?;
        let restored = read(after, "the configuration in the backup")?;
        let merged = with_member_of(&restored, &present, SETTINGS)
            .map_err(|what| cannot_keep("the configuration", &what))?;
        fs::write(after, merged).map_err(|cause| Error::io("write", after, cause))
    }

    /// Returns the settings that change, and a warning that names them or says that the previous
    /// ones could not be read.
    pub fn changes(&self, change: Change, dry_run: bool) -> (Vec<SettingChange>, Option<Warning>) {
        let read = |path: &Path| Settings::read_at(path, &mut |_| {});
        let before = read(&self.before);
        let warn = |message| {
            Some(Warning::about(
                WarningCode::SettingsChanged,
                location(),
                message,
            ))
        };
        let after = self.after.as_deref().map(read).unwrap_or_default();
        if after.are_unusable() {
            let message = format!(
                "The configuration that {} {} cannot be used, so none of its backup settings {}: \
                 restore an older one, with another id of `kg diag list`",
                match change {
                    Change::Restore => "the backup contains as",
                    Change::Undo => "the undo puts back as",
                },
                location(),
                if dry_run { "would apply" } else { "apply" },
            );
            return (before.changes(&after), warn(message));
        }
        if before.are_unusable() {
            let message = format!(
                "The backup settings in the replaced {} could not be read, so some may have been \
                 lost: check the current settings with `kg config show`",
                location()
            );
            return (Vec::new(), warn(message));
        }
        let changes = before.changes(&after);
        if changes.is_empty() {
            return (changes, None);
        }
        let named: Vec<String> = changes.iter().map(SettingChange::to_string).collect();
        let message = format!(
            "{} backup settings: {}{}. {}",
            match (change, dry_run) {
                (Change::Restore, false) => "The restore changed",
                (Change::Restore, true) => "The restore would change",
                (Change::Undo, false) => "The undo changed",
                (Change::Undo, true) => "The undo would change",
            },
            named.join(", "),
            consequences(&before, &after, dry_run),
            match (change, dry_run) {
                (Change::Restore, true) => "To keep the present ones, use `keepSettings`",
                (Change::Undo, true) => "`kg config set` sets them again",
                (_, false) => "Set them again with `kg config set`",
            }
        );
        (changes, warn(message))
    }
}

/// Warns if the configuration of the backup brings its settings because the project has none that
/// could be kept. Fails if it replaces the configuration of the project by a link to another file.
pub(super) fn nothing_to_keep(target: &Target, placements: &Placements) -> Result<Option<Warning>> {
    let config = location();
    if find(placements, &config).is_none() {
        return Ok(None);
    }
    if target.is_taken(&config)? {
        return Err(cannot_keep("the configuration in the backup", "is a link"));
    }
    let message =
        format!("The project has no {config} with settings to keep, so those of the backup apply");
    let warning = Warning::about(WarningCode::SettingsChanged, config, message);
    Ok(Some(warning))
}

/// Says what no longer happens.
fn consequences(before: &Settings, after: &Settings, dry_run: bool) -> String {
    let would = if dry_run { "would be" } else { "are now" };
    let mut said = String::new();
    if before.without_schedule().is_empty() && !after.without_schedule().is_empty() {
        said += &format!(". Scheduled backups {would} off");
    }
    let was_encrypted = before.encrypt() || before.doubt_of_encryption(false).is_some();
    if was_encrypted && !after.encrypt() {
        said += &format!(". New backups {would} without encryption");
    }
    said
}

/// Returns the text of a configuration whose settings are taken or replaced.
fn read(path: &Path, whose: &str) -> Result<String> {
    let refuse = |what: &str| cannot_keep(whose, what);
    let text = read_text(path).map_err(|cause| Error::io("read", path, cause))?;
    let text = text.ok_or_else(|| refuse("does not exist"))?;
    let config = parse(&text).map_err(|what| refuse(&what))?;
    let is_usable = config.is_object() && config.get(SETTINGS).is_none_or(|own| own.is_object());
    if !is_usable {
        return Err(refuse("is not an object of settings"));
    }
    String::from_utf8(text).map_err(|_| refuse("is not UTF-8"))
}

fn cannot_keep(whose: &str, what: &str) -> Error {
    Error::new(
        Code::ConfigInvalid,
        format!("The backup settings cannot be kept: {whose} {what}"),
        "Nothing was changed; restore without `keepSettings`, or without the configuration",
    )
}

/// Returns the file that the configuration of a backup is, or that it is a link to.
fn content_of(placements: &Placements) -> Option<Placement<'_>> {
    let config = find(placements, &location())?;
    match config.link() {
        Some(link) => find(placements, &format!("{STATE_DIR}/{link}"))
            .filter(|placement| placement.link().is_none()),
        None => Some(config),
    }
}

fn find<'a>(placements: &'a Placements, location: &str) -> Option<Placement<'a>> {
    let mut files = placements.files();
    files.find(|placement| placement.to() == location)
}

fn location() -> String {
    format!("{STATE_DIR}/{CONFIG_FILE}")
}
