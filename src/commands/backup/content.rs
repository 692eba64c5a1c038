//! What a backup holds: its manifest, and whether something is missing.

use jiff::Timestamp;

use crate::{
    archive::{
        manifest::{BackupType, FORMAT, MANIFEST_VERSION, Manifest, Stats, Tool},
        writer::Totals,
    },
    config::backup_config::BackupOptions,
    error::{Code, Error, Result, Warning, WarningCode, first_and_more},
    project::identity::{Identity, Kinship},
    store::{Store, good},
    worker::protocol::Saved,
};

/// Describes a full backup without a base; the caller adds what only it knows.
pub(super) fn describe(
    id: &str,
    at: Timestamp,
    kind: BackupType,
    options: &BackupOptions,
    totals: Totals,
    saved: Saved,
) -> Manifest {
    let listed = saved.listed;
    Manifest {
        version: MANIFEST_VERSION.to_string(),
        format: FORMAT,
        id: id.to_string(),
        kind,
        timestamp: at,
        description: options.description.clone(),
        contents: listed.contents,
        stats: Stats {
            total_files: listed.total_files,
            total_size: listed.total_bytes,
            compressed_size: totals.compressed_bytes,
            node_count: saved.node_count,
            edge_count: saved.edge_count,
            table_count: saved.table_count,
        },
        checksums: totals.checksums,
        file_list: Some(listed.summary),
        integrity: saved.integrity,
        incomplete: saved
            .warnings
            .iter()
            .any(|warning| warning.code.means_incomplete()),
        emptied: false,
        warnings: saved.warnings,
        based_on: None,
        based_on_checksum: None,
        compression: options.compression.name(),
        consolidated_from: None,
        safety_backup: options.is_safety_backup,
        encrypted: false,
        recipients: Vec::new(),
        project: None,
        project_path: None,
        tool: Tool::this(),
        archive: None,
    }
}

/// Warns of a graph database without tables. Returns `true` if the new backup is not a good one:
/// the database has 0 bytes, or an earlier good backup of the project has tables.
pub(super) fn note_empty(saved: &mut Saved, identity: &Identity, store: &Store) -> Result<bool> {
    if saved.table_count != Some(0) {
        return Ok(false);
    }
    let mut listed = store.read()?.backups;
    listed.retain(|backup| {
        let of = backup.origin.as_ref();
        (of.is_none() || identity.kinship(of) <= Kinship::Moved) && backup.contents.database
    });
    let had_tables = |place: &usize| listed[*place].stats.table_count != Some(0);
    let earlier = good(&listed)
        .into_iter()
        .find(had_tables)
        .map(|place| &listed[place].id);
    let message = match earlier {
        Some(earlier) => {
            format!(
                "The graph database has no table, but {earlier} has some: this is not a good backup"
            )
        }
        None if saved.has_no_page => {
            "The graph database has 0 bytes: this is not a good backup".to_string()
        }
        None => "The graph database has no table yet".to_string(),
    };
    saved
        .warnings
        .push(Warning::new(WarningCode::DatabaseEmpty, message));
    Ok(earlier.is_some() || saved.has_no_page)
}

/// Fails with `KG_INCOMPLETE` if the backup lacks a part of the project. Sockets and devices do not
/// count, because they hold nothing to save.
pub(super) fn assert_complete(warnings: &[Warning], was_emptied: bool) -> Result<()> {
    let is_less = |warning: &&Warning| match warning.code {
        WarningCode::SourceDamaged => true,
        WarningCode::DatabaseEmpty => was_emptied,
        code => code.means_incomplete(),
    };
    let lacking = warnings
        .iter()
        .filter(is_less)
        .map(|warning| &warning.message);
    let Some(lacking) = first_and_more(lacking) else {
        return Ok(());
    };
    Err(Error::new(
        Code::Incomplete,
        format!("The backup would not contain the whole project: {lacking}"),
        "No backup was made; fix that, leave it out with `excludePatterns`, or back up without \
         `strict`",
    ))
}
