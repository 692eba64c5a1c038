use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};

use nix::{errno::Errno, sys::stat::Mode, unistd::mkfifo};

use super::*;

#[test]
fn no_link_on_the_way_is_followed_and_the_last_name_is_the_link_itself() {
    let outside = tempfile::tempdir().unwrap();
    let inside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "outside").unwrap();
    fs::create_dir(inside.path().join("real")).unwrap();
    symlink(outside.path(), inside.path().join("real/link")).unwrap();
    symlink("real", inside.path().join("short")).unwrap();
    let dir = DirHandle::open(inside.path()).unwrap();
    let refused = |path: &str| {
        dir.place(Path::new(path)).map(|_| ()).unwrap_err().code == Code::TargetInvalid
    };
    assert!(refused("real/link/file") && refused("short/x") && refused(""));
    assert!(dir.place(Path::new("missing/x")).unwrap().is_none());
    let link = dir.place(Path::new("real/link")).unwrap().unwrap();
    assert_eq!(link.occupant().unwrap(), Some(EntryType::Link));
    assert!(link.open(Access::Read).is_err());
    link.remove_file().unwrap();
    assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"outside");
}

#[test]
fn a_directory_that_is_swapped_for_a_link_after_it_was_opened_is_still_the_one_that_was_opened() {
    let outside = tempfile::tempdir().unwrap();
    let inside = tempfile::tempdir().unwrap();
    fs::create_dir(inside.path().join("real")).unwrap();
    let place = DirHandle::open(inside.path())
        .unwrap()
        .place(Path::new("real/file"))
        .unwrap()
        .unwrap();
    fs::rename(inside.path().join("real"), inside.path().join("moved")).unwrap();
    symlink(outside.path(), inside.path().join("real")).unwrap();
    place.create().unwrap();
    assert!(inside.path().join("moved/file").exists() && !outside.path().join("file").exists());
}

#[test]
fn a_directory_that_may_only_be_searched_is_enough_to_reach_a_name_in_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o300)).unwrap();
    let place = DirHandle::around(&dir.path().join("file")).unwrap();
    assert!(place.open(Access::Read).is_ok() && resolve(&place.path()).is_ok());
    // Root can read it regardless of the mode.
    assert_eq!(DirHandle::open(dir.path()).is_ok(), user::is_root());
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn links_lead_on_and_back_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("real/inner")).unwrap();
    fs::write(at("real/file"), "x").unwrap();
    symlink(at("real"), at("absolute")).unwrap();
    symlink("absolute/inner/..", at("back")).unwrap();
    symlink("back/file", at("to-file")).unwrap();
    symlink("round", at("round")).unwrap();
    let real = dunce::canonicalize(dir.path()).unwrap().join("real");
    assert_eq!(DirHandle::open(&at("back")).unwrap().path(), real);
    assert_eq!(resolve(&at("to-file")).unwrap(), real.join("file"));
    assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
    assert_eq!(
        DirHandle::open(&at("round")).unwrap_err().raw_os_error(),
        Some(Errno::ELOOP as i32)
    );
    for gone in ["gone", "real/file/x", "real/gone/x"] {
        assert!(resolve(&at(gone)).is_err(), "{gone}");
    }
}

#[test]
fn only_a_regular_file_with_one_name_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str| {
        DirHandle::around(&at(name))
            .unwrap()
            .open_to_write(Access::Write)
    };
    write("new").unwrap();
    write("new").unwrap();
    symlink("new", at("link")).unwrap();
    symlink("missing", at("dangling")).unwrap();
    fs::hard_link(at("new"), at("second")).unwrap();
    mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
    for (name, why) in [
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("second", "hard links"),
        ("new", "hard links"),
    ] {
        let error = write(name).unwrap_err();
        assert_eq!(
            (error.code, error.message.contains(why)),
            (Code::UnsafeFile, true),
            "{name}: {error}"
        );
    }
    // A pipe without a reading process cannot be opened for writing alone. With one, it is
    // still not a regular file.
    assert!(write("pipe").is_err());
    let error = DirHandle::around(&at("pipe"))
        .unwrap()
        .open_to_write(Access::ReadWrite)
        .unwrap_err();
    assert_eq!(error.code, Code::UnsafeFile);
    assert!(!at("missing").exists());
}
