//! The single steps of a transaction. Each may be done again after a kill.

use std::{fs, io, path::Path, time::Duration};

use nix::fcntl::OFlag;

use super::{
    journal::{self, Intent, MadeDir, Swapped},
    target::Target,
};
use crate::{
    beneath::{Occupant, Place},
    durable::PARTIAL_PREFIX,
    error::{Error, Result, Warning, WarningCode},
    sqlite::replace::{self, Swap},
};

/// Renames; where the two lie on different file systems, copies under a temporary name first.
pub fn move_file(from: &Place, to: &Place, copy_name: &str) -> Result<()> {
    let failed = |cause| Error::io("move", &from.path(), cause);
    match from.rename(to) {
        Err(cause) if cause.kind() == io::ErrorKind::CrossesDevices => {
            let copy = to.beside(copy_name)?;
            copy.remove_file()?;
            if from.occupant()? == Some(Occupant::Link) {
                copy.make_link(&fs::read_link(from.path()).map_err(failed)?)?;
            } else {
                let mut source = from.open(OFlag::O_RDONLY, 0).map_err(failed)?;
                let mut file = copy.create()?;
                io::copy(&mut source, &mut file).map_err(failed)?;
                let found = source.metadata().map_err(failed)?;
                file.set_permissions(found.permissions()).map_err(failed)?;
                let modified = found.modified().map_err(failed)?;
                file.set_times(fs::FileTimes::new().set_modified(modified)).map_err(failed)?;
                file.sync_all().map_err(failed)?;
            }
            copy.rename(to).map_err(failed)?;
            to.dir().sync()?;
            from.remove_file()
        }
        moved => moved.map_err(failed),
    }
}

/// Replaces the content of live databases; `done` is called after each commit.
pub fn swap(
    target: &Target,
    swaps: &[&Swapped],
    lock_timeout: Duration,
    decide: impl FnOnce() -> Result<()>,
    mut done: impl FnMut(usize),
) -> Result<()> {
    let mut places = Vec::new();
    for swapped in swaps {
        let (live, growing) = (target.existing(&swapped.live)?, target.existing(&swapped.growing())?);
        growing.remove_file()?;
        let file = growing.create()?;
        dress_as(&growing, &live)?;
        let (new, pending) = (target.existing(&swapped.new)?, target.existing(&swapped.pending)?);
        places.push((live.path(), new.path(), file, growing, pending, target.existing(&swapped.kept)?));
    }
    let databases: Vec<Swap<'_>> =
        places.iter().map(|(live, new, file, ..)| Swap { live, new, keep: Some(file) }).collect();
    let decide = || {
        // Whole from here on, and only what is whole has this name.
        places.iter().try_for_each(|(.., growing, pending, _)| keep(growing, pending))?;
        decide()
    };
    replace::replace(&databases, lock_timeout, decide, |number| {
        done(number);
        let (.., pending, kept) = &places[number];
        keep(pending, kept)
    })
}

/// What a database held gets its name: the new content is committed.
pub fn keep(pending: &Place, kept: &Place) -> Result<()> {
    pending.rename(kept).map_err(|cause| Error::io("keep", &kept.path(), cause))?;
    kept.dir().sync()
}

/// What is kept of a database may be put back as a file.
fn dress_as(kept: &Place, live: &Place) -> Result<()> {
    let Some(found) = live.stat()? else { return Ok(()) };
    // An undo may have to write to it.
    kept.set_mode(found.st_mode | 0o200)?;
    if nix::unistd::geteuid().is_root() { kept.set_owner(found.st_uid, found.st_gid) } else { Ok(()) }
}

/// What comes after the changes; may be done twice.
pub fn finish(root: &Path, target: &Target, intent: &Intent) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    // Innermost first: nothing changes in a directory any more when it gets its time.
    for dir in intent.made.iter().rev() {
        if let Err(error) = dress_dir(target, dir) {
            warnings.push(Warning::about(WarningCode::Attributes, &dir.at, error.message));
        }
    }
    if let Some((dir, record)) = &intent.undo {
        let path = root.join(dir);
        fs::create_dir_all(&path).map_err(|cause| Error::io("create", &path, cause))?;
        record.write(root, &path)?;
        target.sync([dir.as_str()])?;
    }
    if let Some(retired) = intent.retired.as_ref().filter(|retired| super::undo::is_dir(retired)) {
        let dir = root.join(retired);
        match fs::remove_dir_all(&dir) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &dir, cause)),
            _ => target.sync([retired.as_str()])?,
        }
    }
    for dir in intent.emptied.iter().rev() {
        if let Some(place) = target.place(dir)? {
            // One that holds something by now stays.
            place.remove_dir();
        }
    }
    journal::end(root)?;
    Ok(warnings)
}

fn dress_dir(target: &Target, dir: &MadeDir) -> Result<()> {
    let Some(place) = target.place(&dir.at)? else { return Ok(()) };
    if place.occupant()? != Some(Occupant::Directory) {
        return Ok(());
    }
    dir.mtime.map_or(Ok(()), |(seconds, nanoseconds)| place.set_modified(seconds, nanoseconds))?;
    // The mode last: it may keep this user out.
    dir.mode.map_or(Ok(()), |mode| place.set_mode(mode))
}

impl Intent {
    /// Of a file that is copied from another file system, until it is whole.
    pub fn copy_name(&self, number: usize) -> String {
        format!("{PARTIAL_PREFIX}{}-{number}", self.token)
    }

    pub fn is_staged(&self, location: &str) -> bool {
        self.staging.as_ref().is_some_and(|staging| location.starts_with(staging))
    }
}
