use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use crate::system::{paths::OTHERS_WRITE, user};

pub fn foreign(file: &File) -> io::Result<Option<String>> {
    let found = file.metadata()?;
    let user = user::current();
    if found.uid() != user && found.uid() != 0 {
        return Ok(Some(format!(
            "it belongs to user {}, but this process runs as user {user}",
            found.uid()
        )));
    }
    let can_write = found.mode() & OTHERS_WRITE != 0;
    Ok(can_write.then(|| "other users can write to it".into()))
}

pub fn keep_others_out(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o644))
}
