//! The client for object stores, against a real server.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use kg_backup::internals::{
    Code,
    objects::{Bucket, Conditions, Created, Location, Replaced, StorageOptions, Version},
    util::operation::CancelToken,
};

use crate::support::object_server::{KEY, ObjectServer, SECRET};

const PART: usize = 8 << 20;

/// Returns bytes that differ in every part.
pub fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub fn upload(bucket: &Bucket, name: &str, bytes: &[u8]) {
    let mut upload = bucket.upload(name, 0, CancelToken::default()).unwrap();
    upload.write_all(bytes).unwrap();
    let object = upload.finish().unwrap();
    assert_eq!(
        (object.name.as_str(), object.size_bytes),
        (name, bytes.len() as u64)
    );
}

pub fn read_all(bucket: &Bucket, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = bucket.reader(name).unwrap().unwrap();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

fn assert_removed(results: Vec<(String, kg_backup::Result<()>)>) {
    for (name, removed) in results {
        assert!(removed.is_ok(), "{name}: {removed:?}");
    }
}

#[test]
fn objects_of_every_size_come_back() {
    let bucket = ObjectServer::get().bucket("sizes");
    for size in [0, 1, PART - 1, PART, PART + 1, 2 * PART + 5] {
        let name = format!("size-{size}");
        let bytes = pattern(size, size as u64);
        upload(&bucket, &name, &bytes);
        assert!(read_all(&bucket, &name) == bytes, "{size} bytes differ");
        let found = bucket.find(&name).unwrap().unwrap();
        let age = Timestamp::now().duration_since(found.modified);
        assert!(age < SignedDuration::from_mins(5));
    }
    let listed = bucket.list().unwrap();
    assert_eq!(listed.len(), 6);
    for object in listed {
        let found = bucket.find(&object.name).unwrap().unwrap();
        assert!(found.version.is_same(&object.version));
        assert_eq!(found.size_bytes, object.size_bytes);
    }
    assert_eq!(bucket.unfinished_uploads().unwrap(), []);
}

#[test]
fn any_part_of_an_object_can_be_read() {
    let bucket = ObjectServer::get().bucket("ranges");
    let bytes = pattern(2 * PART + 77, 3);
    upload(&bucket, "object", &bytes);
    let mut reader = bucket.reader("object").unwrap().unwrap();
    assert_eq!(reader.size_bytes(), bytes.len() as u64);
    let mut begun = vec![0; 1000];
    reader.read_exact(&mut begun).unwrap();
    for (offset, size) in [
        (0, 1),
        (PART - 3, 6),
        (PART, PART + 9),
        (bytes.len() - 1, 1),
        (5, 0),
    ] {
        let mut part = vec![0; size];
        reader.read_exact_at(&mut part, offset as u64).unwrap();
        assert!(
            part == bytes[offset..offset + size],
            "{size} bytes at {offset}"
        );
    }
    for (offset, size) in [(bytes.len() as u64, 1), (u64::MAX, 1), (0, bytes.len() + 1)] {
        let error = reader
            .read_exact_at(&mut vec![0; size], offset)
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    // Reading elsewhere did not move the position.
    reader.read_to_end(&mut begun).unwrap();
    assert!(begun == bytes);
}

#[test]
fn several_threads_can_read_one_object() {
    let bucket = ObjectServer::get().bucket("threads");
    let bytes = pattern(PART + 1_000, 3);
    upload(&bucket, "object", &bytes);
    let reader = bucket.reader("object").unwrap().unwrap();
    thread::scope(|scope| {
        for offset in [0, 500, PART - 100, PART + 900] {
            let (reader, bytes) = (&reader, &bytes);
            scope.spawn(move || {
                let mut part = [0; 100];
                reader.read_exact_at(&mut part, offset as u64).unwrap();
                assert_eq!(part, bytes[offset..offset + 100]);
            });
        }
    });
}

#[test]
fn what_does_not_exist_is_no_error() {
    let bucket = ObjectServer::get().bucket("nothing");
    assert_eq!(bucket.list().unwrap(), []);
    assert_eq!(bucket.find("object").unwrap(), None);
    assert_eq!(bucket.read("object", 10).unwrap(), None);
    assert!(bucket.reader("object").unwrap().is_none());
    for (name, removed) in bucket.remove(&["one".into(), "two".into()]) {
        assert!(removed.is_ok(), "{name}");
    }
}

#[test]
fn a_small_object_is_created_once_and_read() {
    let bucket = ObjectServer::get().bucket("create");
    let Created::New(version) = bucket.create("lock", b"mine".to_vec()).unwrap() else {
        panic!("the name is taken");
    };
    assert_eq!(
        bucket.create("lock", b"other".to_vec()).unwrap(),
        Created::Exists
    );
    let (bytes, object) = bucket.read("lock", 4).unwrap().unwrap();
    assert_eq!((bytes.as_slice(), object.size_bytes), (&b"mine"[..], 4));
    assert!(object.version.is_same(&version));
    let error = bucket.read("lock", 3).unwrap_err();
    assert!(error.message.contains("4 bytes"), "{}", error.message);
    assert!(matches!(
        bucket.create("empty", Vec::new()).unwrap(),
        Created::New(_)
    ));
    assert_eq!(bucket.read("empty", 0).unwrap().unwrap().0, b"");
}

#[test]
fn of_many_creators_one_succeeds() {
    let bucket = ObjectServer::get().bucket("race");
    let created = thread::scope(|scope| {
        let creators: Vec<_> = (0..8)
            .map(|one| {
                let bucket = bucket.clone();
                scope.spawn(move || bucket.create("lock", vec![one; 9]).unwrap())
            })
            .collect();
        let created = creators.into_iter().map(|creator| creator.join().unwrap());
        created
            .filter(|created| *created != Created::Exists)
            .count()
    });
    assert_eq!(created, 1);
}

#[test]
fn only_the_known_state_is_replaced() {
    let bucket = ObjectServer::get().bucket("replace");
    let Created::New(first) = bucket.create("lease", b"1".to_vec()).unwrap() else {
        panic!("the name is taken");
    };
    let Replaced::Done(second) = bucket.replace("lease", b"2".to_vec(), &first).unwrap() else {
        panic!("the object changed");
    };
    let stale = bucket.replace("lease", b"3".to_vec(), &first).unwrap();
    assert_eq!(stale, Replaced::Changed);
    let (bytes, object) = bucket.read("lease", 10).unwrap().unwrap();
    assert_eq!(bytes, b"2");
    assert!(object.version.is_same(&second));
    let gone = bucket.replace("other", b"4".to_vec(), &second).unwrap();
    assert_eq!(gone, Replaced::Changed);
    assert_eq!(bucket.find("other").unwrap(), None);
    assert!(
        bucket
            .replace("lease", Vec::new(), &Version::default())
            .is_err()
    );
}

#[test]
fn a_list_has_all_pages_and_only_this_level() {
    let server = ObjectServer::get();
    let bucket = server.bucket("list");
    let names: BTreeSet<_> = (0..1_050)
        .map(|number| format!("object-{number}"))
        .collect();
    let all: Vec<_> = names.iter().collect();
    thread::scope(|scope| {
        for names in all.chunks(132) {
            let bucket = &bucket;
            scope.spawn(move || {
                for name in names {
                    bucket.create(name, Vec::new()).unwrap();
                }
            });
        }
    });
    server
        .bucket("list/below")
        .create("foreign", Vec::new())
        .unwrap();
    server
        .bucket("list-other")
        .create("foreign", Vec::new())
        .unwrap();
    let listed = bucket.list().unwrap().into_iter().map(|object| object.name);
    assert_eq!(listed.collect::<BTreeSet<_>>(), names);
    let names: Vec<_> = names.into_iter().collect();
    assert_removed(bucket.remove(&names));
    assert_eq!(bucket.list().unwrap(), []);
}

#[test]
fn an_object_that_changes_while_it_is_read_is_an_error() {
    let bucket = ObjectServer::get().bucket("changes");
    let (old, new) = (pattern(2 * PART, 1), pattern(2 * PART, 2));
    upload(&bucket, "object", &old);
    let mut reader = bucket.reader("object").unwrap().unwrap();
    let mut bytes = vec![0; 10];
    reader.read_exact(&mut bytes).unwrap();
    assert!(bucket.remove(&["object".into()])[0].1.is_ok());
    upload(&bucket, "object", &new);
    let at = reader.read_exact_at(&mut [0; 5], 9).unwrap_err();
    let rest = reader.read_to_end(&mut bytes).unwrap_err();
    for error in [at, rest] {
        assert!(
            error.to_string().contains("was changed or deleted"),
            "{error}"
        );
    }
    assert!(bytes == old[..bytes.len()]);
}

#[test]
fn a_dropped_upload_leaves_nothing() {
    let bucket = ObjectServer::get().bucket("dropped");
    let mut upload = bucket.upload("object", 0, CancelToken::default()).unwrap();
    upload.write_all(&pattern(2 * PART + 1, 5)).unwrap();
    let unfinished = bucket.unfinished_uploads().unwrap();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(unfinished[0].name, "object");
    drop(upload);
    assert_eq!(bucket.unfinished_uploads().unwrap(), []);
    assert_eq!(bucket.list().unwrap(), []);
}

#[test]
fn an_upload_that_a_killed_process_left_can_be_ended() {
    let bucket = ObjectServer::get().bucket("killed");
    let mut upload = bucket.upload("object", 0, CancelToken::default()).unwrap();
    upload.write_all(&pattern(PART + 1, 5)).unwrap();
    std::mem::forget(upload);
    let unfinished = bucket.unfinished_uploads().unwrap();
    assert_eq!(unfinished.len(), 1);
    let age = Timestamp::now().duration_since(unfinished[0].started);
    assert!(age < SignedDuration::from_mins(5));
    for _ in 0..2 {
        bucket.abort_unfinished(&unfinished[0]).unwrap();
    }
    assert_eq!(bucket.unfinished_uploads().unwrap(), []);
}

#[test]
fn an_upload_replaces_nothing() {
    let bucket = ObjectServer::get().bucket("taken");
    for size in [1, PART + 1] {
        let name = format!("object-{size}");
        let mut upload = bucket.upload(&name, 0, CancelToken::default()).unwrap();
        upload.write_all(&pattern(size, 5)).unwrap();
        bucket
            .create(&name, b"of another process".to_vec())
            .unwrap();
        let error = upload.finish().unwrap_err();
        assert_eq!(error.code, Code::StoreChanged);
        assert!(
            error.message.contains("exists already"),
            "{}",
            error.message
        );
        assert_eq!(read_all(&bucket, &name), b"of another process");
        // The first part tells before the others are sent.
        let mut late = bucket.upload(&name, 0, CancelToken::default()).unwrap();
        let written = late.write_all(&pattern(size, 5));
        assert_eq!(written.is_err(), size > PART);
        assert_eq!(late.finish().unwrap_err().code, Code::StoreChanged);
    }
    assert_eq!(bucket.unfinished_uploads().unwrap(), []);
}

#[test]
fn a_cancelled_upload_leaves_nothing() {
    let bucket = ObjectServer::get().bucket("cancelled");
    let cancel = CancelToken::default();
    let mut upload = bucket.upload("object", 0, cancel.clone()).unwrap();
    upload.write_all(&pattern(PART + 1, 5)).unwrap();
    cancel.cancel();
    assert!(upload.write_all(b"more").is_err());
    assert_eq!(upload.finish().unwrap_err().code, Code::Aborted);
    assert_eq!(bucket.unfinished_uploads().unwrap(), []);
    assert_eq!(bucket.list().unwrap(), []);
}

#[test]
fn the_server_tells_its_time_and_what_it_respects() {
    let bucket = ObjectServer::get().bucket("time");
    let difference = bucket
        .server_time()
        .unwrap()
        .duration_since(Timestamp::now());
    assert!(difference.abs() < SignedDuration::from_secs(30));
    let all = Conditions {
        create: true,
        replace: true,
    };
    assert_eq!(bucket.probe().unwrap(), all);
    assert_eq!(bucket.list().unwrap(), []);
}

/// Fails in every way that needs an answer, and returns the errors.
fn errors(location: &Location, options: &StorageOptions) -> Vec<kg_backup::Error> {
    let bucket = Bucket::open(location, options).unwrap();
    let mut errors = vec![
        bucket.list().unwrap_err(),
        bucket.read("object", 10).unwrap_err(),
        bucket.create("object", b"bytes".to_vec()).unwrap_err(),
    ];
    errors.extend(
        bucket
            .upload("object", 0, CancelToken::default())
            .and_then(|mut upload| {
                upload.write_all(b"bytes").unwrap();
                upload.finish()
            })
            .err(),
    );
    errors
}

fn assert_clear(errors: &[kg_backup::Error], code: Code, reason: &str) {
    for error in errors {
        let text = format!("{error} {:?}", error.cause);
        assert_eq!(error.code, code, "{text}");
        assert!(text.contains("s3://"), "{text}");
        assert!(text.contains(" at 127.0.0.1:"), "{text}");
        assert!(text.contains("(region us-east-1)"), "{text}");
        assert!(text.contains(reason), "{text}");
        for secret in [
            SECRET,
            "hunter2",
            "test-key",
            "X-Amz",
            "Signature=",
            "http://",
        ] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn a_wrong_secret_is_reported_as_such() {
    let server = ObjectServer::get();
    let options = StorageOptions {
        secret_access_key: Some("hunter2".into()),
        ..server.options()
    };
    let errors = errors(&server.location("secret"), &options);
    assert_eq!(errors.len(), 4);
    assert_clear(&errors, Code::StoreDenied, "SignatureDoesNotMatch");
}

#[test]
fn a_missing_bucket_is_reported_as_such() {
    let server = ObjectServer::get();
    let location = Location::parse("s3://no-such-bucket/x").unwrap();
    let bucket = Bucket::open(&location, &server.options()).unwrap();
    // This server creates a bucket that an administrator writes to.
    let errors = [
        bucket.list().unwrap_err(),
        bucket.read("object", 10).unwrap_err(),
    ];
    assert_clear(&errors, Code::BackupDirInvalid, "the bucket does not exist");
}

#[test]
fn an_unreachable_server_is_reported_as_such() {
    let server = ObjectServer::get();
    // A port that no one listens on any more.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let options = crate::support::object_server::options_of(port);
    let errors = errors(&server.location("port"), &options);
    assert_clear(&errors, Code::StoreUnreachable, "Connection refused");
    let unknown = StorageOptions {
        endpoint: Some("http://objects.invalid".into()),
        ..options
    };
    let bucket = Bucket::open(&server.location("port"), &unknown).unwrap();
    let error = bucket.list().unwrap_err();
    assert_eq!(error.code, Code::StoreUnreachable);
}

/// Runs the test below in a process of its own, because the environment belongs to a process.
fn assert_chain_works(environment: &[(&str, &str)]) {
    let server = ObjectServer::get();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([
        "--ignored",
        "--exact",
        "objects::the_chain_finds_credentials",
    ]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        child.env_remove(name);
    }
    child.env("AWS_ENDPOINT_URL_S3", format!("http://{}", server.address));
    child.env("AWS_CONFIG_FILE", "/nonexistent");
    child.env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
    child.envs(environment.iter().copied());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{environment:?}: {text}");
}

#[test]
#[ignore = "needs the environment that other tests give it"]
fn the_chain_finds_credentials() {
    let location = Location::parse("s3://kg-tests/chain").unwrap();
    let options = StorageOptions {
        allow_http: Some(true),
        ..StorageOptions::default()
    };
    let bucket = Bucket::open(&location, &options).unwrap();
    assert_eq!(bucket.list().unwrap(), []);
}

#[test]
fn credentials_come_from_the_places_of_aws_tools() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let keys = format!("aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    let credentials = file("credentials", format!("[team]\n{keys}"));
    let answer = format!(
        "{{\"Version\": 1, \"AccessKeyId\": \"{KEY}\", \"SecretAccessKey\": \"{SECRET}\"}}"
    );
    let answer = file("answer", answer);
    let config = format!("[default]\ncredential_process = cat {answer}\n");
    let config = file("config", config);
    assert_chain_works(&[
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ]);
    let profile = ("AWS_PROFILE", "team");
    assert_chain_works(&[("AWS_SHARED_CREDENTIALS_FILE", &credentials), profile]);
    assert_chain_works(&[("AWS_CONFIG_FILE", &config)]);
}

#[test]
fn missing_credentials_are_reported_with_the_places() {
    let server = ObjectServer::get();
    let options = StorageOptions {
        access_key_id: None,
        secret_access_key: None,
        profile: Some("no-such-profile".into()),
        ..server.options()
    };
    let bucket = Bucket::open(&server.location("none"), &options).unwrap();
    let begun = Instant::now();
    let error = bucket.list().unwrap_err();
    assert_eq!(error.code, Code::StoreDenied);
    assert!(
        error.message.contains("no credentials; looked at"),
        "{}",
        error.message
    );
    assert!(
        error.message.contains("no-such-profile"),
        "{}",
        error.message
    );
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn the_bandwidth_is_limited_in_both_directions() {
    let server = ObjectServer::get();
    let options = StorageOptions {
        bandwidth_bytes_per_second: Some(400_000),
        ..server.options()
    };
    let bucket = Bucket::open(&server.location("bandwidth"), &options).unwrap();
    let bytes = pattern(300_000, 9);
    let timed = |work: &dyn Fn()| {
        let begun = Instant::now();
        work();
        assert!(
            begun.elapsed() > Duration::from_millis(500),
            "{:?}",
            begun.elapsed()
        );
    };
    timed(&|| upload(&bucket, "object", &bytes));
    timed(&|| assert!(read_all(&bucket, "object") == bytes));
}

#[test]
fn a_bad_certificate_file_is_refused_at_once() {
    let server = ObjectServer::get();
    let options = StorageOptions {
        ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()),
        ..server.options()
    };
    let error = Bucket::open(&server.location("x"), &options).err().unwrap();
    assert_eq!(error.code, Code::InvalidOption);
    assert!(
        error.message.contains("no certificate"),
        "{}",
        error.message
    );
}

/// Checks what every service has to do, in an empty store.
fn assert_conforms(bucket: &Bucket) {
    for size in [0, 1, PART, 2 * PART + 5] {
        let name = format!("size-{size}");
        let bytes = pattern(size, size as u64);
        upload(bucket, &name, &bytes);
        assert!(read_all(bucket, &name) == bytes, "{size} bytes differ");
    }
    let mut late = bucket.upload("late", 0, CancelToken::default()).unwrap();
    late.write_all(&pattern(PART + 1, 1)).unwrap();
    let Created::New(first) = bucket.create("late", b"1".to_vec()).unwrap() else {
        panic!("the name is taken");
    };
    assert_eq!(late.finish().unwrap_err().code, Code::StoreChanged);
    assert_eq!(
        bucket.create("late", b"2".to_vec()).unwrap(),
        Created::Exists
    );
    assert!(matches!(
        bucket.replace("late", b"3".to_vec(), &first).unwrap(),
        Replaced::Done(_)
    ));
    assert_eq!(
        bucket.replace("late", b"4".to_vec(), &first).unwrap(),
        Replaced::Changed
    );
    let (bytes, late) = bucket.read("late", 1).unwrap().unwrap();
    assert_eq!(bytes, b"3");
    let all = Conditions {
        create: true,
        replace: true,
    };
    assert_eq!(bucket.probe().unwrap(), all);
    let listed = bucket.list().unwrap();
    assert_eq!(listed.len(), 5);
    let of_list = listed.iter().find(|object| object.name == "late").unwrap();
    assert!(of_list.version.is_same(&late.version));
    assert!(bucket.server_time().is_ok());
    let names: Vec<_> = listed.into_iter().map(|object| object.name).collect();
    assert_removed(bucket.remove(&names));
    assert_removed(bucket.remove(&names));
    assert_eq!(bucket.list().unwrap(), []);
}

#[test]
fn s3_conforms() {
    assert_conforms(&ObjectServer::get().bucket("conforms"));
}

#[test]
fn other_services_can_be_opened() {
    let key = "a2V5IG9mIHRoZSB0ZXN0cw==";
    for (url, options) in [
        (
            "gs://bucket/kg",
            serde_json::json!({ "storageClass": "NEARLINE" }),
        ),
        (
            "az://container/kg",
            serde_json::json!({ "account": "kg", "accessKey": key }),
        ),
    ] {
        let location = Location::parse(url).unwrap();
        let options = StorageOptions::from_json(&options).unwrap();
        let bucket = Bucket::open(&location, &options).unwrap();
        assert_eq!(bucket.location().to_string(), url);
    }
}
