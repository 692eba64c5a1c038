//! The client for object stores, while requests fail.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use kg_backup::internals::{
    Code,
    objects::{Bucket, Created, LockMode, ObjectLock, Replaced, StorageOptions},
    util::operation::CancelToken,
};

use crate::{
    objects::{pattern, read_all, upload},
    support::{
        fault_proxy::{Fault, FaultProxy},
        object_server::{ObjectServer, options_of},
    },
};

const PART: usize = 8 << 20;

/// Returns a store behind a proxy.
fn store(name: &str) -> (FaultProxy, Bucket) {
    store_with(name, |_, options| options)
}

fn store_with(
    name: &str,
    change: impl FnOnce(SocketAddr, StorageOptions) -> StorageOptions,
) -> (FaultProxy, Bucket) {
    let server = ObjectServer::get();
    let proxy = FaultProxy::new(server.address);
    let options = change(proxy.address, options_of(proxy.address));
    let bucket = Bucket::open(&server.location(name), &options).unwrap();
    (proxy, bucket)
}

fn refusal(status: &str, code: &str, more: &str) -> Fault {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>key test-key</Message>{more}</Error>"
    );
    Fault::refusal(status, "", &body)
}

#[test]
fn a_creation_whose_answer_is_lost_is_recognised() {
    let (proxy, bucket) = store("lost-create");
    proxy.fail("PUT", Fault::LoseAnswer);
    let created = bucket.create("lock", b"mine".to_vec()).unwrap();
    assert!(matches!(created, Created::New(_)), "{created:?}");
    assert_eq!(proxy.requests("PUT").len(), 2);
    assert_eq!(
        bucket.create("lock", b"other".to_vec()).unwrap(),
        Created::Exists
    );
}

#[test]
fn a_conflict_without_an_object_is_no_object() {
    let (proxy, bucket) = store("conflict");
    proxy.fail("PUT", refusal("409 Conflict", "BucketBusy", ""));
    let created = bucket.create("lock", b"mine".to_vec()).unwrap();
    assert!(matches!(created, Created::New(_)), "{created:?}");
    for _ in 0..3 {
        proxy.fail("PUT", refusal("409 Conflict", "BucketBusy", ""));
    }
    let error = bucket.create("other", b"mine".to_vec()).unwrap_err();
    assert_eq!(error.code, Code::StoreChanged, "{error}");
}

#[test]
fn a_replacement_whose_answer_is_lost_is_recognised() {
    let (proxy, bucket) = store("lost-replace");
    let Created::New(version) = bucket.create("lease", b"1".to_vec()).unwrap() else {
        panic!("the name is taken");
    };
    proxy.fail("PUT", Fault::LoseAnswer);
    let Replaced::Done(version) = bucket.replace("lease", b"2".to_vec(), &version).unwrap() else {
        panic!("the object changed");
    };
    let (bytes, object) = bucket.read("lease", 9).unwrap().unwrap();
    assert_eq!(bytes, b"2");
    assert!(object.version.is_same(&version));
}

#[test]
fn a_completion_whose_answer_is_lost_is_recognised() {
    let (proxy, bucket) = store("lost-completion");
    let bytes = pattern(PART + 9, 1);
    proxy.fail_if(
        |request| request.line.starts_with("POST") && request.line.contains("uploadId="),
        Fault::LoseAnswer,
    );
    upload(&bucket, "object", &bytes);
    assert!(proxy.is_done());
    assert!(read_all(&bucket, "object") == bytes);
}

#[test]
fn a_completion_that_another_process_forestalled_is_not_ours() {
    let (proxy, bucket) = store("forestalled");
    let mut upload = bucket.upload("object", 0, CancelToken::default()).unwrap();
    upload.write_all(&pattern(PART + 9, 1)).unwrap();
    bucket
        .create("object", b"of another process".to_vec())
        .unwrap();
    // The service forgot the upload, as after a completion.
    proxy.fail_if(
        |request| request.line.starts_with("POST") && request.line.contains("uploadId="),
        refusal("404 Not Found", "NoSuchUpload", ""),
    );
    assert_eq!(upload.finish().unwrap_err().code, Code::StoreChanged);
    assert!(proxy.is_done());
}

#[test]
fn a_completion_that_fails_after_its_status_is_repeated() {
    let (proxy, bucket) = store("late-error");
    let bytes = pattern(PART + 9, 1);
    proxy.fail_if(
        |request| request.line.starts_with("POST") && request.line.contains("uploadId="),
        refusal("200 OK", "InternalError", ""),
    );
    upload(&bucket, "object", &bytes);
    assert!(proxy.is_done());
    assert!(read_all(&bucket, "object") == bytes);
}

#[test]
fn a_service_without_conditional_completion_is_used_all_the_same() {
    let (proxy, bucket) = store("unconditional");
    let bytes = pattern(PART + 9, 1);
    proxy.fail_if(
        |request| request.line.starts_with("POST") && request.head.contains("if-none-match"),
        refusal("501 Not Implemented", "NotImplemented", ""),
    );
    upload(&bucket, "object", &bytes);
    assert!(proxy.is_done());
    let completions = proxy.requests("POST").len();
    upload(&bucket, "other", &bytes);
    assert_eq!(completions, 3, "begin, refused, completed");
    assert_eq!(proxy.requests("POST").len(), 5, "it is remembered");
}

#[test]
fn a_part_whose_answer_is_lost_is_sent_again() {
    let (proxy, bucket) = store("lost-part");
    let bytes = pattern(2 * PART + 9, 1);
    proxy.fail("partNumber=2", Fault::LoseAnswer);
    upload(&bucket, "object", &bytes);
    assert_eq!(proxy.requests("partNumber=2").len(), 2);
    assert!(read_all(&bucket, "object") == bytes);
}

#[test]
fn the_wait_that_a_busy_service_asks_for_is_kept() {
    let (proxy, bucket) = store("busy");
    let body = "<Error><Code>SlowDown</Code></Error>";
    let busy = Fault::refusal("503 Slow Down", "retry-after: 1\r\n", body);
    proxy.fail("GET", busy);
    let begun = Instant::now();
    assert_eq!(bucket.list().unwrap(), []);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(proxy.requests("GET").len(), 2);
}

#[test]
fn a_cancelled_operation_waits_no_longer() {
    let (proxy, bucket) = store("cancel");
    for _ in 0..2 {
        proxy.fail(
            "GET",
            Fault::refusal("503 Slow Down", "retry-after: 60\r\n", ""),
        );
    }
    let cancel = CancelToken::default();
    let begun = Instant::now();
    let error = thread::scope(|scope| {
        let listing = scope.spawn(|| {
            cancel.enter();
            bucket.list().unwrap_err()
        });
        while proxy.requests("GET").is_empty() {
            thread::yield_now();
        }
        cancel.cancel();
        listing.join().unwrap()
    });
    assert_eq!(error.code, Code::Aborted);
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_body_that_ends_early_is_read_again() {
    let (proxy, bucket) = store("cut");
    let bytes = pattern(PART + PART / 2, 4);
    upload(&bucket, "object", &bytes);
    for size in [0, 1, 1_000_000] {
        proxy.fail("GET", Fault::CutBody(size));
        assert!(read_all(&bucket, "object") == bytes);
        assert!(proxy.is_done());
    }
    proxy.fail("GET", Fault::CutBody(1_000));
    let mut part = vec![0; 5_000];
    let reader = bucket.reader("object").unwrap().unwrap();
    reader.read_exact_at(&mut part, 77).unwrap();
    assert!(part == bytes[77..5_077]);
}

#[test]
fn a_service_that_stalls_is_given_up() {
    let (proxy, bucket) = store_with("stall", |_, options| StorageOptions {
        timeout_ms: Some(200),
        ..options
    });
    proxy.fail("GET", Fault::Hang);
    assert_eq!(bucket.list().unwrap(), []);
    assert_eq!(proxy.requests("GET").len(), 2);
}

#[test]
fn what_a_service_does_not_support_is_asked_once_with_and_once_without_a_condition() {
    let (proxy, bucket) = store("unsupported");
    for _ in 0..2 {
        proxy.fail("PUT", refusal("501 Not Implemented", "NotImplemented", ""));
    }
    let error = bucket.create("object", Vec::new()).unwrap_err();
    assert_eq!(error.code, Code::Unsupported);
    assert_eq!(proxy.requests("PUT").len(), 2);
    assert!(
        !bucket.is_unconditional(),
        "the condition was not the reason"
    );
}

#[test]
fn a_service_without_conditions_is_looked_at_before_and_after_each_write() {
    let (proxy, bucket) = store("no-conditions");
    proxy.fail_if(
        |request| request.head.contains("if-none-match"),
        refusal("501 Not Implemented", "NotImplemented", ""),
    );
    let Created::New(first) = bucket.create("object", b"1".to_vec()).unwrap() else {
        panic!("it did not exist");
    };
    assert!(bucket.is_unconditional());
    assert_eq!(
        bucket.create("object", b"2".to_vec()).unwrap(),
        Created::Exists
    );
    let Replaced::Done(second) = bucket.replace("object", b"3".to_vec(), &first).unwrap() else {
        panic!("it was the known one");
    };
    assert_eq!(
        bucket.replace("object", b"4".to_vec(), &first).unwrap(),
        Replaced::Changed
    );
    assert_eq!(read_all(&bucket, "object"), b"3");
    assert_eq!(
        bucket.find("object").unwrap().unwrap().version.e_tag,
        second.e_tag
    );
    upload(&bucket, "large", &pattern(PART + 9, 1));
    assert_eq!(
        proxy
            .requests("PUT")
            .iter()
            .filter(|put| put.head.contains("if-match"))
            .count(),
        0
    );
}

#[test]
fn a_wrong_region_is_corrected_and_remembered() {
    let (proxy, bucket) = store("region");
    let region = "<Region>eu-west-1</Region>";
    proxy.fail(
        "GET",
        refusal("400 Bad Request", "AuthorizationHeaderMalformed", region),
    );
    for _ in 0..2 {
        assert_eq!(bucket.list().unwrap(), []);
    }
    let requests = proxy.requests("GET");
    assert_eq!(requests.len(), 3);
    assert!(requests[0].head.contains("/us-east-1/s3/"));
    assert!(
        requests[1..]
            .iter()
            .all(|request| request.head.contains("/eu-west-1/s3/"))
    );
    // A bucket that is not there either.
    for _ in 0..2 {
        let region = "<Region>eu-north-1</Region>";
        proxy.fail(
            "GET",
            refusal("301 Moved Permanently", "PermanentRedirect", region),
        );
    }
    let error = bucket.list().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`region` in `storageOptions` to `eu-north-1`"),
        "{error}"
    );
}

#[test]
fn an_address_without_a_bucket_is_not_called_a_change() {
    let (proxy, bucket) = store("address");
    proxy.fail("GET", refusal("404 Not Found", "NoSuchKey", ""));
    let error = bucket.list().unwrap_err();
    assert_eq!(error.code, Code::InvalidOption, "{error}");
    assert!(error.remedy.contains("without the bucket"), "{error}");
    // An object that is missing is another matter.
    proxy.fail("GET", refusal("404 Not Found", "NoSuchKey", ""));
    assert_eq!(bucket.read("object", 9).unwrap(), None);
}

#[test]
fn a_refusal_of_access_tells_what_was_tried() {
    let (proxy, bucket) = store("tried");
    let tried = format!("at {} (region us-east-1): ", proxy.address);
    for (status, code, remedy) in [
        ("403 Forbidden", "AccessDenied", "list, read, write and"),
        (
            "403 Forbidden",
            "InvalidAccessKeyId",
            "Check the credentials",
        ),
        (
            "403 Forbidden",
            "SignatureDoesNotMatch",
            "Check the credentials",
        ),
        ("400 Bad Request", "ExpiredToken", "Log in again"),
        ("404 Not Found", "NoSuchBucket", "Create the bucket"),
        ("301 Moved", "PermanentRedirect", "AWS_REGION"),
    ] {
        proxy.fail("GET", refusal(status, code, ""));
        let error = bucket.list().unwrap_err();
        assert!(proxy.is_done(), "{code}");
        assert!(error.message.contains(&tried), "{code}: {error}");
        assert!(error.remedy.contains(remedy), "{code}: {error}");
    }
}

#[test]
fn errors_of_the_service_are_translated() {
    let (proxy, bucket) = store("codes");
    let time =
        "<RequestTime>20260101T000000Z</RequestTime><ServerTime>2026-01-01T07:00:00Z</ServerTime>";
    let frozen = "<StorageClass>GLACIER</StorageClass>";
    for (status, code, more, expected, text) in [
        (
            "403 Forbidden",
            "AccessDenied",
            "",
            Code::StoreDenied,
            "access denied",
        ),
        (
            "403 Forbidden",
            "InvalidAccessKeyId",
            "",
            Code::StoreDenied,
            "does not know the access key",
        ),
        (
            "400 Bad Request",
            "ExpiredToken",
            "",
            Code::StoreDenied,
            "has expired",
        ),
        (
            "403 Forbidden",
            "RequestTimeTooSkewed",
            time,
            Code::StoreDenied,
            "2026-01-01T07:00:00Z there",
        ),
        (
            "403 Forbidden",
            "InvalidObjectState",
            frozen,
            Code::Unsupported,
            "thawed",
        ),
        (
            "507 Insufficient",
            "XMinioStorageFull",
            "",
            Code::NoSpace,
            "is full",
        ),
        (
            "400 Bad Request",
            "InvalidRequest",
            "",
            Code::Unsupported,
            "refused the request",
        ),
    ] {
        // A wrong time is tried twice.
        for _ in 0..=u8::from(code == "RequestTimeTooSkewed") {
            proxy.fail("GET", refusal(status, code, more));
        }
        let error = bucket.read("object", 9).unwrap_err();
        assert!(proxy.is_done(), "{code}");
        assert_eq!(error.code, expected, "{error}");
        assert!(error.message.contains(text), "{error}");
        assert!(!error.to_string().contains("test-key"), "{error}");
    }
}

#[test]
fn an_unusual_name_of_another_program_is_reported() {
    let (proxy, bucket) = store("unusual");
    let list = "<ListBucketResult><Contents><Key>unusual//x</Key><Size>1</Size>\
                <LastModified>2026-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>";
    proxy.fail("GET", Fault::refusal("200 OK", "", list));
    let error = bucket.list().unwrap_err();
    assert_eq!(error.code, Code::BackupDirInvalid, "{error}");
    assert!(error.message.contains("unusual//x"), "{error}");
}

#[test]
fn a_deletion_that_fails_is_reported_for_its_object() {
    let (proxy, bucket) = store("delete");
    let names: Vec<_> = (0..20).map(|number| format!("object-{number}")).collect();
    for name in &names {
        bucket.create(name, Vec::new()).unwrap();
    }
    proxy.fail("/object-7", refusal("403 Forbidden", "AccessDenied", ""));
    let removed = bucket.remove(&names);
    assert!(removed.iter().map(|(name, _)| name).eq(&names));
    let failed: Vec<_> = removed
        .iter()
        .filter(|(_, removed)| removed.is_err())
        .collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].0, "object-7");
    assert_eq!(bucket.list().unwrap().len(), 1);
}

#[test]
fn the_options_of_uploads_become_headers_of_their_first_request() {
    let (proxy, bucket) = store_with("headers", |_, options| StorageOptions {
        server_side_encryption: Some("aws:kms".into()),
        kms_key_id: Some("the-key".into()),
        storage_class: Some("STANDARD_IA".into()),
        tags: Some([("team".into(), "a b".into())].into()),
        object_lock: Some(ObjectLock {
            mode: LockMode::Governance,
            days: 30,
        }),
        ..options
    });
    let answer = || refusal("400 Bad Request", "InvalidRequest", "");
    proxy.fail("uploads", answer());
    let mut large = bucket.upload("large", 0, CancelToken::default()).unwrap();
    assert!(large.write_all(&pattern(PART + 1, 1)).is_err());
    proxy.fail("PUT", answer());
    let mut small = bucket.upload("small", 0, CancelToken::default()).unwrap();
    small.write_all(b"bytes").unwrap();
    assert!(small.finish().is_err());
    proxy.fail("PUT", answer());
    assert!(bucket.create("lock", Vec::new()).is_err());
    let sent = [proxy.requests("uploads"), proxy.requests("PUT")].concat();
    assert_eq!(sent.len(), 3);
    for (at, request) in sent.iter().enumerate() {
        for header in [
            "x-amz-server-side-encryption: aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id: the-key",
            "x-amz-tagging: team=a+b",
            "x-amz-meta-kg-nonce: ",
        ] {
            assert!(
                request.head.contains(header),
                "{header} in {}",
                request.head
            );
        }
        // A lease must be replaced, and read at once.
        for header in [
            "x-amz-storage-class: standard_ia",
            "x-amz-object-lock-mode: governance",
            "x-amz-object-lock-retain-until-date: 20",
        ] {
            assert_eq!(
                request.head.contains(header),
                at < 2,
                "{header} in {}",
                request.head
            );
        }
        let is_put = request.line.starts_with("PUT");
        assert_eq!(request.head.contains("content-md5"), is_put);
        assert!(!request.head.contains("aws-chunked") && !request.head.contains("trailer"));
    }
}

#[test]
fn a_proxy_is_used() {
    let (proxy, bucket) = store_with("proxy", |address, options| StorageOptions {
        endpoint: Some("http://objects.invalid".into()),
        proxy: Some(format!("http://{address}")),
        ..options
    });
    bucket.create("object", b"bytes".to_vec()).unwrap();
    let mut bytes = Vec::new();
    let mut reader = bucket.reader("object").unwrap().unwrap();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"bytes");
    assert_eq!(proxy.requests("PUT").len(), 1);
}
