use std::{
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

pub fn of(path: &Path) -> Option<(PathBuf, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // The last of the longest mount points applies, because a later mount covers an earlier one.
    table
        .lines()
        .filter_map(parse)
        .filter(|(point, _)| path.starts_with(point))
        .max_by_key(|(point, _)| point.as_os_str().len())
}

/// Parses a line such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`.
fn parse(line: &str) -> Option<(PathBuf, String)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let point = mount.split(' ').nth(4)?;
    let kind = file_system.split(' ').next()?;
    Some((
        PathBuf::from(std::ffi::OsString::from_vec(unescape(point))),
        kind.to_string(),
    ))
}

/// Decodes the three octal digits that the kernel writes for blanks and line ends.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let digits = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(digits.unwrap_or(b'\\'));
        rest = rest
            .get(at + if digits.is_some() { 4 } else { 1 }..)
            .unwrap_or_default();
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::{super::is_point, *};

    #[test]
    fn a_line_of_the_table_names_the_mount_point_and_the_file_system() {
        let line = r"36 35 98:0 / /a\040b/c\134d rw,noatime master:1 - fuse.sshfs host:/ rw";
        assert_eq!(
            parse(line),
            Some((PathBuf::from("/a b/c\\d"), "fuse.sshfs".into()))
        );
        assert_eq!(parse("36 35 98:0"), None);
        assert!(
            of(Path::new("/")).is_some()
                && is_point(Path::new("/proc"))
                && !is_point(Path::new("/proc/self/status"))
        );
    }
}
