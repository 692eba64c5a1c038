//! Fuzzes configurations. A refused setting must have no effect, and each value in effect must be
//! one that can be set.
#![no_main]

use std::path::Path;

use kg_backup::internals::{
    config::{Settings, backup_config::BackupConfig, schema},
    project::json,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(config) = json::parse(text) else {
        return;
    };
    let mut warnings = Vec::new();
    let settings = Settings::of(&config, &mut |warning| warnings.push(warning));
    assert!(
        !settings.are_unusable() || !warnings.is_empty(),
        "what cannot be used is said"
    );
    for key in schema::ALL {
        let Some(value) = settings.get(key.name) else {
            continue;
        };
        assert!(
            key.check(value).is_ok() && !settings.is_refused(key.name),
            "{} = {value}",
            key.name
        );
    }
    let _ = (
        BackupConfig::of(&settings).resolve(),
        settings.listen(),
        settings.zone(),
        settings.kind(),
        settings.retention_days(),
    );
    let _ = (
        settings.dir(Path::new("/project")),
        settings.refuses_backups().is_some(),
        settings.doubt_of_retention().is_some(),
    );
    let _ = settings.changes(&Settings::default());
});
