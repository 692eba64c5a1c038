//! Reads `.kg/hooks.json` and decides whether to trust it.
//!
//! The file names commands that are run, so only the user who runs them, or root, may have written
//! it. A restore cannot write it, because a restore refuses that name. On a file system that
//! ignores case, [`read`] also refuses a file whose name differs in case.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    project::{HOOKS_FILE, Project},
    system::{portable::MetadataExt, user, writers},
    util::regular_file,
};

/// The maximum size of the file. A larger file is not a list of hooks.
const MAX_BYTES: u64 = 1024 * 1024;

pub fn path(project: &Project) -> PathBuf {
    project.state_dir().join(HOOKS_FILE)
}

/// Returns the content; `None` if the file does not exist. Returns `KG_HOOKS_INVALID` if another
/// user could have written it.
pub fn read(project: &Project) -> Result<Option<String>> {
    let path = path(project);
    let file = match regular_file::open(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) => {
            return Err(refuse(
                &path,
                "it is a link or not a regular file",
                "Replace it with the file itself",
            )
            .with_cause(cause));
        }
        opened => opened.map_err(|cause| Error::io("read", &path, cause))?,
    };
    let foreign = writers::foreign(&file).map_err(|cause| Error::io("read", &path, cause))?;
    if let Some(why) = foreign {
        let remedy = format!(
            "Set the hooks as the user who makes the backups; or review the file, then run \
             `chmod 600 {}`",
            path.display()
        );
        return Err(refuse(&path, &why, remedy));
    }
    if !is_listed(&project.state_dir())
        .map_err(|cause| Error::io("read", &project.state_dir(), cause))?
    {
        return Err(refuse(
            &path,
            "its name differs in letter case",
            "Remove it, and set the hooks again",
        ));
    }
    let text = match regular_file::read(&file, MAX_BYTES) {
        Err(cause) if cause.kind() == io::ErrorKind::InvalidData => {
            return Err(refuse(&path, &cause.to_string(), "Set the hooks again"));
        }
        text => text.map_err(|cause| Error::io("read", &path, cause))?,
    };
    String::from_utf8(text)
        .map(Some)
        .map_err(|_| refuse(&path, "it is not UTF-8 text", "Set the hooks again"))
}

/// Returns a warning if backups of this user do not run the hooks, because root set them for the
/// owner of the project.
pub fn not_for_this_user(project: &Project) -> Option<Warning> {
    let (owner, user) = (
        fs::symlink_metadata(path(project)).ok()?.uid(),
        user::current(),
    );
    let message = format!(
        "The hooks belong to the owner of the project: they run for backups that user {owner} makes, not for those of user {user}"
    );
    (owner != user && owner != 0).then(|| Warning::new(WarningCode::Hook, message))
}

/// Returns whether the directory lists exactly this name.
fn is_listed(state_dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(state_dir)? {
        if entry?.file_name() == HOOKS_FILE {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refuse(path: &Path, what: &str, remedy: impl Into<String>) -> Error {
    Error::new(
        Code::HooksInvalid,
        format!("{} is not used: {what}", path.display()),
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_that_somebody_else_could_have_written_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join(".kg");
        fs::create_dir(&state).unwrap();
        let project = Project::open(dir.path()).unwrap();
        assert_eq!(read(&project).unwrap(), None);
        fs::write(state.join("other.json"), "{}").unwrap();
        symlink("other.json", state.join(HOOKS_FILE)).unwrap();
        let refused = |project: &Project| read(project).unwrap_err();
        assert_eq!(refused(&project).code, Code::HooksInvalid);
        fs::remove_file(state.join(HOOKS_FILE)).unwrap();
        fs::write(state.join(HOOKS_FILE), "{}").unwrap();
        for (mode, is_good) in [
            (0o600, true),
            (0o644, true),
            (0o620, false),
            (0o602, false),
            (0o666, false),
        ] {
            fs::set_permissions(state.join(HOOKS_FILE), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&project).is_ok(), is_good, "{mode:o}");
        }
        assert!(
            refused(&project)
                .message
                .contains("other users can write to it")
        );
    }
}
