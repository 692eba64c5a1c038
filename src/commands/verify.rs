//! The command `verify`: reads a whole archive and reports everything in it that is not as it was
//! written.

use std::{
    io,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    archive::{
        file_record::FileRecord,
        manifest::{FIRST_FORMAT, Manifest},
        reader::{Discard, read_archive, read_full_archive},
        report::{Problem, ProblemCode, Report},
    },
    error::{Code, Result, Warning},
    place::Archive,
    store::{Store, chain, described_beside, manifest_beside},
    util::operation::{OperationContext, Phase},
};

/// The result of the check of a backup.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// Whether every byte of the archive is as it was written and the sidecar agrees with it.
    pub valid: bool,
    pub problems: Vec<Problem>,
    /// The archive; serialized as its path.
    pub path: Archive,
    /// The manifest inside the archive; absent if it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Manifest>,
    /// Everything that a restore of the backup puts back, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<FileRecord>>,
    /// The number of bytes of the archive that were read.
    pub size: u64,
    /// Warnings about the choice of the backup and about the keys that opened it.
    pub warnings: Vec<Warning>,
    /// The digest of the archive as it is now, hexadecimal.
    pub sha256: String,
    pub duration_ms: u64,
}

/// Checks the backup that `reference` names: a path, an id, or `latest`.
///
/// A damaged backup, or one whose chain is broken, is reported in the result and is not an error.
/// With `list_files`, the result lists everything in it.
pub fn check_backup(
    store: &Store,
    reference: &str,
    list_files: bool,
    context: &OperationContext,
) -> Result<CheckReport> {
    let began = Instant::now();
    let archive = store.locate(reference)?;
    let mut warnings = store.doubts(reference, &archive, None);
    let (report, of_chain) = match chain::members(&archive, store.keys(), context) {
        Ok(links) if links.len() > 1 => {
            let (mut reports, state) = chain::read_state(&links, store.keys(), context)?;
            let of_chain = chain::problems(&links, &reports, state.is_some());
            let files = state.map(|state| state.files).unwrap_or_default();
            let report = reports.pop().map(|report| Report { files, ..report });
            (report, of_chain)
        }
        Err(error) if error.code == Code::ChainBroken => {
            let problem = Problem::of_archive(ProblemCode::Chain, error.message);
            (
                None,
                vec![Problem {
                    remedy: error.remedy,
                    ..problem
                }],
            )
        }
        links => links.map(|_| (None, Vec::new()))?,
    };
    let mut report = match report {
        Some(report) => report,
        None => check_archive(&archive, store, list_files, context)?,
    };
    report.problems.extend(of_chain);
    warnings.extend(store.key_warnings(&archive));
    warnings.extend(store.plain_warning(&archive));
    Ok(CheckReport {
        valid: report.problems.is_empty() && report.manifest.is_some(),
        problems: report.problems,
        path: archive,
        manifest: report.manifest,
        files: list_files.then(|| report.files.into_records()),
        size: report.size_bytes,
        warnings,
        sha256: report.sha256,
        duration_ms: duration_ms(began.elapsed()),
    })
}

/// Checks an archive that is a chain of its own. Without `list_files`, the check of an intact full
/// backup takes memory that hardly grows with the number of files.
fn check_archive(
    archive: &Archive,
    store: &Store,
    list_files: bool,
    context: &OperationContext,
) -> Result<Report> {
    let (beside, described) = (manifest_beside(archive)?, described_beside(archive)?);
    let (keys, beside) = (store.keys(), beside.as_deref());
    // The sidecar of the first format has a list of its own.
    let is_first_format = described.is_some_and(|manifest| manifest.format == FIRST_FORMAT);
    let mut found = Vec::new();
    if !list_files && !is_first_format {
        let (unpack, list) = (&mut Discard, &mut io::sink());
        let (report, tallied) = read_full_archive(
            archive,
            keys,
            beside,
            unpack,
            list,
            context,
            Phase::Verifying,
        )?;
        if tallied.is_some() {
            return Ok(report);
        }
        found = report.problems;
        found.retain(|problem| matches!(problem.code, ProblemCode::Archive | ProblemCode::Block));
    }
    let mut report = read_archive(
        archive,
        keys,
        beside,
        &mut Discard,
        context,
        Phase::Verifying,
    )?;
    // A disk that returns other bytes the second time does not make the first ones right.
    if report.problems.is_empty() {
        report.problems = found;
    }
    Ok(report)
}

/// Returns whole milliseconds, for results.
pub fn duration_ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
