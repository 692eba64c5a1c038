//! `cargo bench`: measures the parts in which a backup spends its time, each alone, on the text of
//! this repository.
//!
//! The results show the effect of a change to one part. `npm run bench` compares the whole with
//! other tools.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "it has no user"
)]

use std::{
    env, fs,
    hint::black_box,
    io::{self, Write},
    path::Path,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use kg_backup::internals::{
    archive::{
        block::{Compression, Content, Packer},
        block_writer::{Encoder, Sink},
        encryption::Keys,
        file_record::{EntryKind, FileRecord, Storage},
        manifest::{BackupType, Contents, FORMAT, MANIFEST_VERSION, Manifest, Stats, Tool},
        reader::{Discard, read_archive},
        writer::{ArchiveWriter, Totals},
    },
    place::Archive,
    project::Component,
    sqlite::{
        check::{Integrity, IntegrityStatus},
        page_hashes::PageHashes,
    },
    store::ArchiveFile,
    util::{
        content_hash::content_hash,
        operation::{OperationContext, Phase},
    },
};

const MEBIBYTE: usize = 1024 * 1024;
/// The size of the data that stands for a database.
const DATABASE_BYTES: usize = 16 * MEBIBYTE;
const PAGE_BYTES: usize = 4096;
/// The number of files in a project of many small files.
const SMALL_FILES: usize = 2000;
const SMALL_FILE_BYTES: usize = 2048;

/// A sink that accepts all data and keeps none.
struct Memory;

impl Sink for Memory {}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns sources and documents of this repository, repeated until there are `bytes` bytes. The
/// distance between repetitions is larger than the window of deflate.
fn text(bytes: usize) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = Vec::new();
    ["src", "docs", "tests", "__test__"]
        .iter()
        .for_each(|dir| add_files(&root.join(dir), &mut text));
    assert!(
        text.len() > Compression::ZSTD.block_bytes(),
        "the repository has more text than this"
    );
    text.iter().copied().cycle().take(bytes).collect()
}

fn add_files(dir: &Path, text: &mut Vec<u8>) {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            add_files(&path, text);
        } else {
            text.extend(fs::read(path).unwrap());
        }
    }
}

/// Measures one block, which is the work of one core.
fn blocks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one block");
    for (name, compression, kind) in [
        ("gzip 1", Compression::Gzip(1), Content::Other),
        ("gzip 6", Compression::Gzip(6), Content::Other),
        ("gzip 6, as pages", Compression::Gzip(6), Content::Pages),
        ("zstd 3", Compression::Zstd(3), Content::Other),
    ] {
        let content = text(compression.block_bytes());
        let hash = content_hash(&content);
        let mut packer = Packer::new(compression).unwrap().unwrap();
        group.throughput(Throughput::Bytes(content.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| packer.pack(black_box(&content), kind, &hash))
        });
    }
}

/// Measures blocks, compression threads, ordered output, its digest and the seal, on all cores.
fn encoder(criterion: &mut Criterion) {
    let database = text(DATABASE_BYTES);
    let mut group = criterion.benchmark_group("encoder, 16 MiB");
    group
        .throughput(Throughput::Bytes(database.len() as u64))
        .sample_size(20);
    for (name, compression) in [
        ("plain", Compression::None),
        ("gzip 1", Compression::Gzip(1)),
        ("gzip 6", Compression::Gzip(6)),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut encoder = Encoder::new(Box::new(Memory), compression, None).unwrap();
                encoder.write_all(black_box(&database)).unwrap();
                encoder.finish().unwrap()
            });
        });
    }
}

/// Measures what a backup does with each changed page, and what a verification does with all.
fn pages(criterion: &mut Criterion) {
    let database = text(DATABASE_BYTES);
    let hash_all = || {
        let mut hashes = PageHashes::new(PAGE_BYTES as u64);
        database
            .chunks(PAGE_BYTES)
            .for_each(|page| hashes.push(page));
        hashes
    };
    let base = hash_all();
    let mut group = criterion.benchmark_group("pages, 4,096 of 4 KiB");
    group.throughput(Throughput::Bytes(database.len() as u64));
    group.bench_function("hash", |bencher| bencher.iter(hash_all));
    group.bench_function("root", |bencher| bencher.iter(|| black_box(&base).root()));
}

fn record(entry: String, size: usize) -> FileRecord {
    FileRecord {
        path: format!(".kg/{entry}"),
        entry,
        stored: Storage::Full,
        sha256: None,
        pages: None,
        blocks: None,
        component: Component::Files,
        kind: EntryKind::File,
        target: None,
        database: false,
        size: size as u64,
        mode: 0o644,
        mtime: Timestamp::UNIX_EPOCH,
    }
}

fn manifest(totals: Totals) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION.into(),
        format: FORMAT,
        id: "backup-20260101-000000".into(),
        kind: BackupType::Full,
        timestamp: Timestamp::UNIX_EPOCH,
        description: None,
        contents: Contents::default(),
        stats: Stats {
            total_files: totals.file_list.records,
            compressed_size: totals.compressed_bytes,
            ..Stats::default()
        },
        checksums: totals.checksums,
        file_list: Some(totals.file_list),
        integrity: Integrity {
            status: IntegrityStatus::Skipped,
            messages: Vec::new(),
            not_checked: Vec::new(),
            full_text: false,
        },
        warnings: Vec::new(),
        based_on: None,
        based_on_checksum: None,
        compression: None,
        consolidated_from: None,
        safety_backup: false,
        incomplete: false,
        emptied: false,
        encrypted: false,
        recipients: Vec::new(),
        project: None,
        project_path: None,
        tool: Tool::this(),
        archive: None,
    }
}

/// The name of a file in the archive, and its content.
type Named<'a> = (String, &'a [u8]);

fn write_archive(sink: Box<dyn Sink>, files: &[Named<'_>], compression: Compression) {
    let mut writer = ArchiveWriter::new(sink, compression, None, &env::temp_dir()).unwrap();
    for (entry, content) in files {
        writer
            .add(record(entry.clone(), content.len()), (0, 0), *content)
            .unwrap();
    }
    writer.finish(manifest).unwrap();
}

/// Returns a project of one large file and a project of many small files.
fn projects(text: &[u8]) -> [(&'static str, Vec<Named<'_>>); 2] {
    let small = text.chunks(SMALL_FILE_BYTES).take(SMALL_FILES).enumerate();
    [
        (
            "one file of 16 MiB",
            vec![("database.sqlite".to_string(), text)],
        ),
        (
            "2,000 files of 2 KiB",
            small
                .map(|(n, content)| (format!("files/{n}.md"), content))
                .collect(),
        ),
    ]
}

/// Measures writing without compression, so that the costs of the tar, its digests and the manifest
/// are visible.
fn write(criterion: &mut Criterion) {
    let text = text(DATABASE_BYTES);
    let mut group = criterion.benchmark_group("write an archive, plain");
    group.sample_size(20);
    for (name, files) in projects(&text) {
        group.throughput(Throughput::Bytes(
            files.iter().map(|(_, content)| content.len() as u64).sum(),
        ));
        group.bench_function(name, |bencher| {
            bencher.iter(|| write_archive(Box::new(Memory), &files, Compression::None));
        });
    }
}

/// Measures what a verification does: it reads, decompresses and compares every byte of every file.
fn read(criterion: &mut Criterion) {
    let text = text(DATABASE_BYTES);
    let dir = tempfile::tempdir().unwrap();
    let mut group = criterion.benchmark_group("read an archive, gzip 6");
    group.sample_size(20);
    for (name, files) in projects(&text) {
        let path = dir.path().join("archive.tar.gz");
        write_archive(
            Box::new(ArchiveFile::new(fs::File::create(&path).unwrap())),
            &files,
            Compression::Gzip(6),
        );
        group.throughput(Throughput::Bytes(
            files.iter().map(|(_, content)| content.len() as u64).sum(),
        ));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let keys = Keys::default();
                let report = read_archive(
                    &Archive::at(&path),
                    &keys,
                    None,
                    &mut Discard,
                    &OperationContext::default(),
                    Phase::Verifying,
                )
                .unwrap();
                assert_eq!(report.problems, []);
            });
        });
    }
}

criterion_group!(benches, blocks, encoder, pages, write, read);
criterion_main!(benches);
