//! Sets or removes one key of `.kg/config.json` or `.kg/hooks.json`, and keeps the other bytes of
//! the file.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value};

use crate::{
    config::{
        edit_text::edited,
        parse, read_text,
        schema::{ConfigFile, Key},
    },
    error::{Code, Error, Result},
    project::{Project, database_path::is_inside},
    service::hooks,
    system::{portable::MetadataExt, user},
    util::{atomic_file, file_lock, operation::OperationContext, unsupported},
    worker::restore::lock_against_restores,
};

const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// The file that is locked during a change, so that two processes that set different keys do not
/// lose a change.
const LOCK_FILE: &str = "config.lock";

/// Sets or removes `key`. Returns whether the file changed. Waits for a restore that is in
/// progress.
pub fn set(
    project: &Project,
    key: &Key,
    value: Option<Value>,
    context: &OperationContext,
) -> Result<bool> {
    set_at(project, key.home(), key.name, value, context)
}

/// Sets or removes a name as [`set`] does, even if the name is not a key.
pub fn set_at(
    project: &Project,
    home: ConfigFile,
    name: &str,
    value: Option<Value>,
    context: &OperationContext,
) -> Result<bool> {
    let _no_restore = lock_against_restores(&project.state_dir(), LOCK_TIMEOUT, &context.cancel)?;
    let _lock = lock(project, context)?;
    let path = path(project, home);
    let before = read(project, home)?;
    let text = before.as_deref().unwrap_or("{}\n");
    parse(text.as_bytes()).map_err(|what| invalid(home, &path, &format!("it {what}")))?;
    let after = edited(text, name, value).map_err(|what| invalid(home, &path, &what))?;
    if after == text {
        return Ok(false);
    }
    match home {
        ConfigFile::Config if before.is_some() => replace(project, &path, after.as_bytes())?,
        ConfigFile::Config => create(&path, after.as_bytes())?,
        // Only the owner may read and write this file, because its commands run as that user.
        ConfigFile::Hooks => atomic_file::write(&path, after.as_bytes())?,
    }
    Ok(true)
}

fn lock(project: &Project, context: &OperationContext) -> Result<File> {
    let path = project.state_dir().join(LOCK_FILE);
    let failed = |cause| Error::io("lock", &path, cause);
    let file = atomic_file::open_lock(&path)?;
    if file_lock::wait(&file, LOCK_TIMEOUT, context, failed)? {
        return Ok(file);
    }
    let message = format!(
        "The settings in {} are being changed by another process",
        project.state_dir().display()
    );
    Err(Error::new(
        Code::TargetLocked,
        message,
        "Wait until it ends",
    ))
}

/// Returns the whole file, or an empty object if there is none.
pub fn load(project: &Project, home: ConfigFile) -> Result<Value> {
    let path = path(project, home);
    let Some(text) = read(project, home)? else {
        return Ok(Value::Object(Map::new()));
    };
    match parse(text.as_bytes()) {
        Ok(config) if config.is_object() => Ok(config),
        Ok(_) => Err(invalid(home, &path, "it is not an object")),
        Err(what) => Err(invalid(home, &path, &format!("it {what}"))),
    }
}

fn path(project: &Project, home: ConfigFile) -> PathBuf {
    project.state_dir().join(home.file_name())
}

fn read(project: &Project, home: ConfigFile) -> Result<Option<String>> {
    if home == ConfigFile::Hooks {
        return hooks::file::read(project);
    }
    let path = path(project, home);
    let text = read_text(&path).map_err(|cause| Error::io("read", &path, cause))?;
    if text.is_none() && path.symlink_metadata().is_ok() {
        let message = format!("{} is a link that leads nowhere", path.display());
        return Err(Error::new(
            Code::ConfigInvalid,
            message,
            "Mount its target, or remove the link",
        ));
    }
    text.map(|text| String::from_utf8(text).map_err(|_| invalid(home, &path, "it is not UTF-8")))
        .transpose()
}

/// Replaces a configuration. A link stays a link, and its target is replaced.
///
/// Fails with `KG_UNSAFE_FILE` if the target is outside the project. Other programs may use that
/// file. Besides, a user who can write to `.kg` could otherwise have any file overwritten.
fn replace(project: &Project, link: &Path, content: &[u8]) -> Result<()> {
    let path = dunce::canonicalize(link).map_err(|cause| Error::io("find", link, cause))?;
    let root = dunce::canonicalize(project.root())
        .map_err(|cause| Error::io("find", project.root(), cause))?;
    if !is_inside(&root, &path) {
        let message = format!(
            "{} is a link to {}, which is outside of the project",
            link.display(),
            path.display()
        );
        return Err(Error::new(
            Code::UnsafeFile,
            message,
            "Nothing was changed; edit that file directly",
        ));
    }
    let failed = |cause| Error::io("write", &path, cause);
    let mut file = atomic_file::TempFile::new(path.parent().unwrap_or(&path))?;
    file.write_all(content).map_err(failed)?;
    let old = fs::metadata(&path).map_err(failed)?;
    file.set_mode(old.mode() & 0o7777)?;
    let new = file.file().metadata().map_err(failed)?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        let given = user::give_open(file.file(), (old.uid(), old.gid()));
        unsupported::attributes(given, &path).map_err(failed)?;
    }
    file.persist(&path)
}

fn create(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |cause| Error::io("write", path, cause);
    let mut file = atomic_file::TempFile::new(path.parent().unwrap_or(path))?;
    file.write_all(content).map_err(failed)?;
    file.set_mode(0o644)?;
    file.persist(path)
}

fn invalid(home: ConfigFile, path: &Path, what: &str) -> Error {
    let (code, remedy) = match home {
        ConfigFile::Config => (
            Code::ConfigInvalid,
            "restore it with `kg diag restore --file latest --config-only`",
        ),
        ConfigFile::Hooks => (Code::HooksInvalid, "remove it and set the hooks again"),
    };
    let message = format!("{} is not a configuration: {what}", path.display());
    Error::new(
        code,
        message,
        format!("Nothing was changed; fix it, or {remedy}"),
    )
}
