//! The write-ahead log (WAL) of a database (<https://sqlite.org/fileformat2.html#walformat>): a
//! header, then frames. A frame is a header of its own and a page.
//!
//! The last frame of a transaction names the size of the database after the commit. Frames count
//! up to the last commit before the first frame with other salts or a wrong checksum. When SQLite
//! restarts a WAL, it changes the salts and writes from the start again, so older frames may
//! follow.

use std::{fs::File, io};

use super::btree::u32_at;
use crate::system::portable::FileExt;

/// The first bytes of a WAL. The last bit of its fourth byte varies, so these are only three bytes.
pub const WAL_MAGIC: &[u8] = &[0x37, 0x7f, 0x06];
pub const WAL_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// The fourth byte of a WAL without its last bit, which gives the byte order of the checksums.
const MAGIC_END: u8 = 0x82;
/// The number of bytes of the header that its checksum covers.
const CHECKED_BYTES: usize = 24;
/// The number of bytes of a frame's header that the checksum of the frame covers.
const CHECKED_FRAME_BYTES: usize = 8;

/// Returns the offset of a frame in a WAL. Frames count from 0.
pub const fn frame_offset(frame: u32, page_size_bytes: u32) -> u64 {
    WAL_HEADER_BYTES as u64 + frame as u64 * (FRAME_HEADER_BYTES as u64 + page_size_bytes as u64)
}

/// The order of the bytes in the words that a checksum adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    Big,
    Little,
}

/// A checksum (<https://sqlite.org/fileformat2.html#walcksm>).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksum(u32, u32);

impl Checksum {
    fn read_at(bytes: &[u8], at: usize) -> Checksum {
        let word = |at| u32_at(bytes, at).unwrap_or(0);
        Checksum(word(at), word(at + 4))
    }

    /// Returns the checksum of the bytes so far and these.
    fn extend(mut self, bytes: &[u8], order: ByteOrder) -> Checksum {
        let (words, _) = bytes.as_chunks::<4>();
        let (pairs, _) = words.as_chunks::<2>();
        for pair in pairs {
            let [first, second] = pair.map(|word| match order {
                ByteOrder::Big => u32::from_be_bytes(word),
                ByteOrder::Little => u32::from_le_bytes(word),
            });
            self.0 = self.0.wrapping_add(first).wrapping_add(self.1);
            self.1 = self.1.wrapping_add(second).wrapping_add(self.0);
        }
        self
    }
}

/// What the magic and the checksum of a header show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// The file does not start with [`WAL_MAGIC`].
    NotWal,
    ChecksumWrong,
    Valid,
}

/// The header of a WAL. The other fields are read whatever `validity` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    pub validity: Validity,
    /// Whether the fourth byte of the magic is also right. [`Validity`] does not depend on it.
    pub is_magic_whole: bool,
    pub byte_order: ByteOrder,
    pub page_size_bytes: u32,
    /// Two random numbers that change each time the WAL is restarted.
    pub salts: [u8; 8],
    checksum: Checksum,
}

impl WalHeader {
    /// Reads the header from the start of a WAL.
    pub fn read<R: ReadRange>(wal: &R) -> Result<WalHeader, R::Error> {
        let mut bytes = Vec::new();
        wal.read_range(&mut bytes, WAL_HEADER_BYTES, 0)?;
        let mut header = [0; WAL_HEADER_BYTES];
        header.copy_from_slice(&bytes);
        Ok(WalHeader::parse(&header))
    }

    pub fn parse(bytes: &[u8; WAL_HEADER_BYTES]) -> WalHeader {
        let byte_order = match bytes[3] & 1 {
            1 => ByteOrder::Big,
            _ => ByteOrder::Little,
        };
        let checksum = Checksum::read_at(bytes, CHECKED_BYTES);
        let is_sum_right =
            Checksum::default().extend(&bytes[..CHECKED_BYTES], byte_order) == checksum;
        let validity = match is_sum_right {
            _ if !bytes.starts_with(WAL_MAGIC) => Validity::NotWal,
            true => Validity::Valid,
            false => Validity::ChecksumWrong,
        };
        WalHeader {
            validity,
            is_magic_whole: bytes.starts_with(WAL_MAGIC) && bytes[3] & !1 == MAGIC_END,
            byte_order,
            page_size_bytes: u32_at(bytes, 8).unwrap_or(0),
            salts: salts_at(bytes, 16),
            checksum,
        }
    }

    pub fn is_valid(&self) -> bool {
        self.validity == Validity::Valid
    }

    /// Returns whether a database can have pages of this size.
    pub fn is_page_size_possible(&self) -> bool {
        self.page_size_bytes.is_power_of_two() && (512..=65_536).contains(&self.page_size_bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub page_number: u32,
    /// The size of the database in pages after the commit that ends with this frame, or 0 if the
    /// transaction continues.
    pub committed_size: u32,
    salts: [u8; 8],
    checksum: Checksum,
}

impl FrameHeader {
    /// Reads the header from the start of a frame. Missing bytes count as zeros.
    fn parse(frame: &[u8]) -> FrameHeader {
        FrameHeader {
            page_number: u32_at(frame, 0).unwrap_or(0),
            committed_size: u32_at(frame, 4).unwrap_or(0),
            salts: salts_at(frame, 8),
            checksum: Checksum::read_at(frame, 16),
        }
    }
}

fn salts_at(bytes: &[u8], at: usize) -> [u8; 8] {
    bytes
        .get(at..)
        .and_then(|bytes| bytes.first_chunk().copied())
        .unwrap_or_default()
}

/// A file from which ranges are read, by its descriptor or by SQLite's own handle.
pub trait ReadRange {
    type Error;

    /// Fills `into` with `bytes` bytes from offset `at`.
    fn read_range(&self, into: &mut Vec<u8>, bytes: usize, at: u64) -> Result<(), Self::Error>;
}

impl ReadRange for File {
    type Error = io::Error;

    fn read_range(&self, into: &mut Vec<u8>, bytes: usize, at: u64) -> io::Result<()> {
        into.resize(bytes, 0);
        self.read_exact_at(into, at)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub header: FrameHeader,
    /// The offset of the page in the WAL.
    pub page_at: u64,
}

/// Reads frames in order. Ends before the first frame that does not count.
pub struct Frames<'a, R> {
    wal: &'a R,
    wal_header: &'a WalHeader,
    wal_bytes: u64,
    at: u64,
    /// The checksum of all frames so far, if checksums are checked.
    checksum: Option<Checksum>,
    frame: Vec<u8>,
}

impl<'a, R: ReadRange> Frames<'a, R> {
    /// Reads whole frames of a WAL of `wal_bytes`. Ends at a frame that is incomplete, has other
    /// salts, a wrong checksum or the page number 0.
    pub fn checked(wal: &'a R, header: &'a WalHeader, wal_bytes: u64) -> Self {
        Frames {
            checksum: Some(header.checksum),
            ..Frames::unchecked(wal, header, wal_bytes)
        }
    }

    /// Reads only the headers of frames, and ends only at one that is incomplete or has other
    /// salts. So there may be more frames than count.
    pub fn unchecked(wal: &'a R, header: &'a WalHeader, wal_bytes: u64) -> Self {
        Frames {
            wal,
            wal_header: header,
            wal_bytes,
            at: WAL_HEADER_BYTES as u64,
            checksum: None,
            frame: Vec::new(),
        }
    }

    fn read_next(&mut self) -> Result<Option<Frame>, R::Error> {
        let page_bytes = self.wal_header.page_size_bytes;
        let bytes = match self.checksum {
            Some(_) => FRAME_HEADER_BYTES + page_bytes as usize,
            None => FRAME_HEADER_BYTES,
        };
        if self.at + bytes as u64 > self.wal_bytes {
            return Ok(None);
        }
        self.wal.read_range(&mut self.frame, bytes, self.at)?;
        let header = FrameHeader::parse(&self.frame);
        if header.salts != self.wal_header.salts {
            return Ok(None);
        }
        if let Some(checksum) = &mut self.checksum {
            let order = self.wal_header.byte_order;
            *checksum = checksum
                .extend(&self.frame[..CHECKED_FRAME_BYTES], order)
                .extend(&self.frame[FRAME_HEADER_BYTES..], order);
            if *checksum != header.checksum || header.page_number == 0 {
                return Ok(None);
            }
        }
        let page_at = self.at + FRAME_HEADER_BYTES as u64;
        self.at = page_at + u64::from(page_bytes);
        Ok(Some(Frame { header, page_at }))
    }
}

impl<R: ReadRange> Iterator for Frames<'_, R> {
    type Item = Result<Frame, R::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_next().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rusqlite::Connection;

    use super::*;
    use crate::sqlite::files::companion;

    const PAGE_BYTES: usize = 1024;
    const FRAME_BYTES: usize = FRAME_HEADER_BYTES + PAGE_BYTES;

    /// Creates a database whose WAL contains two commits and, after them, pages of a transaction
    /// that did not commit. Returns the connection that has it open.
    fn create(database: &Path) -> Connection {
        let connection = Connection::open(database).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = wal;
                PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 1;
                CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(5000));
                BEGIN; INSERT INTO t VALUES (zeroblob(200000))"
            ))
            .unwrap();
        connection
    }

    fn wal_of(database: &Path) -> File {
        File::open(companion(database, "-wal")).unwrap()
    }

    fn checked(wal: &File) -> Vec<Frame> {
        let header = WalHeader::read(wal).unwrap();
        Frames::checked(wal, &header, wal.metadata().unwrap().len())
            .map(Result::unwrap)
            .collect()
    }

    fn unchecked(wal: &File) -> Vec<Frame> {
        let header = WalHeader::read(wal).unwrap();
        Frames::unchecked(wal, &header, wal.metadata().unwrap().len())
            .map(Result::unwrap)
            .collect()
    }

    /// Returns the WAL of a new database.
    fn wal_bytes() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a.db");
        let _connection = create(&database);
        fs::read(companion(&database, "-wal")).unwrap()
    }

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn header_of(bytes: &[u8]) -> WalHeader {
        WalHeader::parse(bytes.first_chunk().unwrap())
    }

    /// Writes the checksums of a WAL anew, in this byte order.
    fn sum_up(wal: &mut [u8], order: ByteOrder) {
        wal[3] = MAGIC_END | u8::from(order == ByteOrder::Big);
        let (header, frames) = wal.split_at_mut(WAL_HEADER_BYTES);
        let mut sum = Checksum::default().extend(&header[..CHECKED_BYTES], order);
        let bytes_of = |sum: Checksum| [sum.0.to_be_bytes(), sum.1.to_be_bytes()].concat();
        header[CHECKED_BYTES..].copy_from_slice(&bytes_of(sum));
        for frame in frames.chunks_exact_mut(FRAME_BYTES) {
            sum = sum
                .extend(&frame[..CHECKED_FRAME_BYTES], order)
                .extend(&frame[FRAME_HEADER_BYTES..], order);
            frame[16..FRAME_HEADER_BYTES].copy_from_slice(&bytes_of(sum));
        }
    }

    #[test]
    fn commits_and_the_transaction_after_them_are_read_from_a_wal_of_sqlite() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a.db");
        let connection = create(&database);
        let wal = wal_of(&database);
        let header = WalHeader::read(&wal).unwrap();
        assert!(header.is_valid() && header.is_magic_whole && header.is_page_size_possible());
        assert_eq!(header.page_size_bytes as usize, PAGE_BYTES);

        let frames = checked(&wal);
        assert_eq!(frames, unchecked(&wal));
        for (number, frame) in (0..).zip(&frames) {
            let at = frame_offset(number, header.page_size_bytes);
            assert_eq!(frame.page_at, at + FRAME_HEADER_BYTES as u64);
        }
        let sizes = |frames: &[Frame]| -> Vec<u32> {
            let sizes = frames.iter().map(|frame| frame.header.committed_size);
            sizes.filter(|size| *size > 0).collect()
        };
        assert_eq!(sizes(&frames), [2, 6]);
        let uncommitted = frames
            .iter()
            .rev()
            .take_while(|frame| frame.header.committed_size == 0);
        assert!(uncommitted.count() > 50);

        connection.execute_batch("COMMIT").unwrap();
        let page_count = connection.query_row("PRAGMA page_count", [], |row| row.get(0));
        assert_eq!(sizes(&checked(&wal)), [2, 6, page_count.unwrap()]);
    }

    #[test]
    fn frames_from_before_a_restart_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a.db");
        let connection = create(&database);
        connection.execute_batch("COMMIT").unwrap();
        let wal = wal_of(&database);
        let (before, salts) = (checked(&wal), WalHeader::read(&wal).unwrap().salts);
        connection
            .execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES (1)")
            .unwrap();
        assert_ne!(WalHeader::read(&wal).unwrap().salts, salts);
        assert!(wal.metadata().unwrap().len() > before.len() as u64 * FRAME_BYTES as u64);
        assert!((1..5).contains(&checked(&wal).len()));
        assert_eq!(checked(&wal), unchecked(&wal));
    }

    #[test]
    fn the_first_frame_that_does_not_count_ends_the_reading() {
        const THIRD: usize = WAL_HEADER_BYTES + 2 * FRAME_BYTES;
        let whole = wal_bytes();
        let counts = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            let wal = file_of(&bytes);
            (checked(&wal).len(), unchecked(&wal).len())
        };
        let all = (whole.len() - WAL_HEADER_BYTES) / FRAME_BYTES;
        assert_eq!(counts(&|_| ()), (all, all));
        // A salt, the checksum, the page, and the page number of a frame with a right checksum.
        assert_eq!(counts(&|wal| wal[THIRD + 8] ^= 1), (2, 2));
        assert_eq!(counts(&|wal| wal[THIRD + 16] ^= 1), (2, all));
        assert_eq!(counts(&|wal| wal[THIRD + FRAME_BYTES - 1] ^= 1), (2, all));
        let zero_number = |wal: &mut Vec<u8>| {
            wal[THIRD..THIRD + 4].fill(0);
            sum_up(wal, header_of(&whole).byte_order);
        };
        assert_eq!(counts(&zero_number), (2, all));
        // The page of the last frame is incomplete, then its header too.
        let cut = |bytes| move |wal: &mut Vec<u8>| wal.truncate(THIRD + bytes);
        assert_eq!(counts(&cut(FRAME_BYTES - 1)), (2, 3));
        assert_eq!(counts(&cut(FRAME_HEADER_BYTES - 1)), (2, 2));
    }

    #[test]
    fn checksums_of_both_byte_orders_are_those_of_sqlite() {
        let written = wal_bytes();
        let mut same = written.clone();
        sum_up(&mut same, header_of(&written).byte_order);
        assert!(same == written);

        for order in [ByteOrder::Big, ByteOrder::Little] {
            let mut wal = written.clone();
            sum_up(&mut wal, order);
            assert_eq!(header_of(&wal).byte_order, order);
            assert!(header_of(&wal).is_valid());
            let all = (wal.len() - WAL_HEADER_BYTES) / FRAME_BYTES;
            assert_eq!(checked(&file_of(&wal)).len(), all);

            // SQLite reads the committed row from this WAL.
            let dir = tempfile::tempdir().unwrap();
            let database = dir.path().join("a.db");
            create(&database)
                .execute_batch("ROLLBACK; DROP TABLE t; PRAGMA wal_checkpoint(TRUNCATE)")
                .unwrap();
            fs::write(companion(&database, "-wal"), &wal).unwrap();
            let rows = Connection::open(&database).unwrap().query_row(
                "SELECT count(*) FROM t",
                [],
                |row| row.get(0),
            );
            assert_eq!(rows, Ok(1), "{order:?}");
        }
    }

    #[test]
    fn a_header_is_of_no_wal_has_a_wrong_checksum_or_is_valid() {
        let whole = wal_bytes();
        let changed = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            header_of(&bytes)
        };
        assert_eq!(header_of(&whole).validity, Validity::Valid);
        for at in 0..3 {
            assert_eq!(changed(at).validity, Validity::NotWal);
            assert!(!changed(at).is_magic_whole);
        }
        for at in 3..WAL_HEADER_BYTES {
            assert_eq!(changed(at).validity, Validity::ChecksumWrong, "{at}");
            assert_eq!(changed(at).is_magic_whole, at > 3);
        }
    }
}
