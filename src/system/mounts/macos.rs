use std::{
    ffi::{OsString, c_char},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

pub fn of(path: &Path) -> Option<(PathBuf, String)> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let found = rustix::fs::statfs(existing).ok()?;
    Some((
        text(&found.f_mntonname).into(),
        text(&found.f_fstypename).to_string_lossy().into_owned(),
    ))
}

/// Returns the bytes before the first zero.
fn text(field: &[c_char]) -> OsString {
    let bytes = field.iter().map(|byte| *byte as u8);
    OsString::from_vec(bytes.take_while(|byte| *byte != 0).collect())
}
