//! `kg version`: the versions that matter to a user and to a bug report.

use std::env::{self, consts};

use clap::Args;
use serde::Serialize;

use super::{
    args::Common,
    output::{ENVELOPE_VERSION, Output},
};
use crate::{
    archive::manifest::{FIRST_FORMAT, FORMAT},
    error::Result,
    service::hooks,
    worker::protocol::{PROTOCOL, RELEASE},
};

#[derive(Debug, Args)]
pub struct VersionArgs {
    #[command(flatten)]
    pub common: Common,
}

/// The result of `kg version`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    /// The release of the package, which is also the version of its API.
    kg: &'static str,
    /// The format of archives that this release writes.
    archive_format: u64,
    /// The oldest format that it reads.
    oldest_archive_format: u64,
    worker_protocol: u32,
    hook_event: u32,
    json_output: u32,
    sqlite: &'static str,
    platform: String,
    executable: Option<String>,
}

pub fn run(_: &VersionArgs, output: &Output) -> Result<u8> {
    let libc = match (consts::OS, cfg!(target_env = "musl")) {
        ("linux", true) => "-musl",
        ("linux", false) => "-gnu",
        _ => "",
    };
    // The names of Node.js, which those of the packages contain.
    let system = match consts::OS {
        "macos" => "darwin",
        "windows" => "win32",
        other => other,
    };
    let processor = match consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    let executable = env::current_exe().ok();
    let versions = Versions {
        kg: RELEASE,
        archive_format: FORMAT,
        oldest_archive_format: FIRST_FORMAT,
        worker_protocol: PROTOCOL,
        hook_event: hooks::EVENT_VERSION,
        json_output: ENVELOPE_VERSION,
        sqlite: rusqlite::version(),
        platform: format!("{system}-{processor}{libc}"),
        executable: executable.map(|path| path.display().to_string()),
    };
    output.result(&versions);
    output.line(format!("kg {}", versions.kg));
    for (name, version) in [
        (
            "archive format",
            format!("{FORMAT}, reads {FIRST_FORMAT} and newer"),
        ),
        ("worker protocol", versions.worker_protocol.to_string()),
        ("hook event", versions.hook_event.to_string()),
        ("--json", versions.json_output.to_string()),
        ("SQLite", versions.sqlite.to_string()),
        ("platform", versions.platform.clone()),
        (
            "executable",
            versions
                .executable
                .clone()
                .unwrap_or_else(|| "unknown".into()),
        ),
    ] {
        output.line(format!("  {name:<16} {version}"));
    }
    Ok(0)
}
