//! Warns about backup settings that a restore changes.

use super::{placement::Placements, target::Target};
use crate::{
    config::Settings,
    error::{Error, Result, Warning, WarningCode},
    project::{CONFIG_FILE, STATE_DIR},
};

/// Returns a warning that names the backup settings that the restored configuration changes, or
/// that says that the previous settings could not be read.
pub(super) fn changed_settings(
    target: &Target,
    placements: &Placements,
) -> Result<Option<Warning>> {
    let config = format!("{STATE_DIR}/{CONFIG_FILE}");
    let Some(placement) = placements
        .files()
        .find(|placement| placement.to() == config)
    else {
        return Ok(None);
    };
    let read = |location: &str| {
        Ok::<_, Error>(Settings::read_at(
            &target.existing(location)?.path(),
            &mut |_| {},
        ))
    };
    let (true, Some(from)) = (target.is_taken(&config)?, placement.from()) else {
        return Ok(None);
    };
    let (before, after) = (read(&config)?, read(&from)?);
    let warn = |message| {
        Ok(Some(Warning::about(
            WarningCode::SettingsChanged,
            &config,
            message,
        )))
    };
    if before.are_unusable() {
        return warn(format!(
            "The backup settings in the replaced {config} could not be read, so some may have been \
             lost: check the current settings with `kg config show`"
        ));
    }
    let changes = before.changes(&after);
    if changes.is_empty() {
        return Ok(None);
    }
    let had_schedule = before.without_schedule().is_empty() && !after.without_schedule().is_empty();
    let ends = if had_schedule {
        ". Scheduled backups are now off"
    } else {
        ""
    };
    warn(format!(
        "The restore changed backup settings: {}{ends}. Set them again with `kg config set`",
        changes.join(", ")
    ))
}
