//! Copies that the service of both stores makes itself.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use kg_backup::internals::{
    Code, Result,
    objects::{Bucket, CopySource, LockMode, Object, ObjectLock, StorageOptions},
    util::operation::CancelToken,
};

use crate::{
    objects::{pattern, read_all, upload},
    support::{
        fault_proxy::{Fault, FaultProxy, Request},
        object_server::{ObjectServer, options_of},
    },
};

const PART: usize = 8 << 20;

/// Two stores behind one proxy.
struct Stores {
    proxy: FaultProxy,
    source: Bucket,
    target: Bucket,
}

impl Stores {
    fn new(name: &str) -> Stores {
        Stores::with(name, |_| {})
    }

    fn with(name: &str, change: impl FnOnce(&mut StorageOptions)) -> Stores {
        let server = ObjectServer::get();
        let proxy = FaultProxy::new(server.address);
        let mut options = options_of(proxy.address);
        let location = |side| server.location(&format!("copy-{name}/a b+c/{side}"));
        let source = Bucket::open(&location("source"), &options).unwrap();
        change(&mut options);
        let target = Bucket::open(&location("target"), &options).unwrap();
        Stores {
            proxy,
            source,
            target,
        }
    }

    /// Uploads an object to the source.
    fn original(&self, name: &str, size: usize) -> (Vec<u8>, CopySource) {
        let bytes = pattern(size, 7);
        upload(&self.source, name, &bytes);
        let found = self.source.find(name).unwrap().unwrap();
        (bytes, self.source.copy_source(&found).unwrap())
    }

    fn copy(&self, name: &str, source: &CopySource) -> Result<Option<Object>> {
        self.target.copy_from(name, source, &mut |_| Ok(()))
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.target.list().unwrap(), []);
        assert_eq!(self.target.unfinished_uploads().unwrap(), []);
    }
}

fn is_copy(request: &Request) -> bool {
    request.head.contains("x-amz-copy-source:")
}

fn is_completion(request: &Request) -> bool {
    request.line.starts_with("POST") && request.line.contains("uploadId=")
}

fn refusal(status: &str, code: &str) -> Fault {
    Fault::refusal(status, "", &format!("<Error><Code>{code}</Code></Error>"))
}

#[test]
fn a_copy_of_every_size_sends_no_bytes() {
    let stores = Stores::new("sizes");
    for size in [0, 1, PART, PART + 1, 3 * PART, 4 * PART + 5] {
        let name = format!("size-{size}");
        let (bytes, source) = stores.original(&name, size);
        let (puts, gets) = (
            stores.proxy.requests("PUT").len(),
            stores.proxy.requests("GET").len(),
        );
        let mut copied_bytes = 0;
        let mut progress = |bytes| {
            copied_bytes += bytes;
            Ok(())
        };
        let copy = stores.target.copy_from(&name, &source, &mut progress);
        let copy = copy.unwrap().expect("the bytes went through this machine");
        assert_eq!(copied_bytes, size as u64);
        let original = stores.source.find(&name).unwrap().unwrap();
        assert_eq!(copy.size_bytes, size as u64);
        assert_eq!(copy.version.e_tag, original.version.e_tag);
        assert_eq!(stores.proxy.requests("GET").len(), gets);
        for put in &stores.proxy.requests("PUT")[puts..] {
            assert!(is_copy(put), "{put:?}");
            assert!(!put.head.contains("content-md5"), "{put:?}");
        }
        assert!(
            read_all(&stores.target, &name) == bytes,
            "{size} bytes differ"
        );
    }
    assert_eq!(stores.target.unfinished_uploads().unwrap(), []);
}

#[test]
fn a_copy_has_the_properties_of_its_store() {
    let stores = Stores::with("properties", |options| {
        options.storage_class = Some("STANDARD_IA".into());
        options.tags = Some([("of".into(), "a b".into())].into());
        options.server_side_encryption = Some("AES256".into());
        options.object_lock = Some(ObjectLock {
            mode: LockMode::Governance,
            days: 1,
        });
    });
    for size in [9, PART + 1] {
        let (_, source) = stores.original("object", size);
        // The server has no key and no bucket with locks, so that the requests must do.
        let _ = stores.copy(&format!("copy-{size}"), &source);
        stores.source.remove(&["object".into()]);
    }
    let creations: Vec<Request> = [
        stores
            .proxy
            .requests("PUT /kg-tests/copy-properties/a%20b%2Bc/target/copy-9"),
        stores.proxy.requests("?uploads="),
    ]
    .concat();
    let ours: Vec<&Request> = creations
        .iter()
        .filter(|request| request.line.contains("target"))
        .collect();
    assert!(ours.len() >= 2, "{creations:?}");
    for request in ours {
        for header in [
            "x-amz-storage-class: standard_ia",
            "x-amz-server-side-encryption: aes256",
            "x-amz-object-lock-mode: governance",
            "x-amz-object-lock-retain-until-date: 2",
            "x-amz-meta-kg-nonce: ",
            "x-amz-tagging: of=a",
        ] {
            assert!(request.head.contains(header), "{header}: {request:?}");
        }
    }
}

#[test]
fn a_refused_copy_goes_through_this_machine_and_is_not_tried_again() {
    for (status, code) in [
        ("501 Not Implemented", "NotImplemented"),
        ("403 Forbidden", "AccessDenied"),
        ("400 Bad Request", "InvalidRequest"),
    ] {
        for size in [9, PART + 1] {
            let stores = Stores::new(&format!("refused-{code}-{size}"));
            let (_, source) = stores.original("object", size);
            stores.proxy.fail_if(is_copy, refusal(status, code));
            assert_eq!(stores.copy("object", &source).unwrap(), None, "{code}");
            assert!(stores.proxy.is_done());
            stores.assert_nothing_left();
            let requests = stores.proxy.requests("").len();
            assert_eq!(stores.copy("object", &source).unwrap(), None);
            assert_eq!(stores.proxy.requests("").len(), requests);
        }
    }
}

#[test]
fn an_upload_that_cannot_begin_or_end_leaves_nothing() {
    let stores = Stores::new("upload-refused");
    let (_, source) = stores.original("object", PART + 1);
    stores
        .proxy
        .fail("?uploads=", refusal("403 Forbidden", "AccessDenied"));
    assert_eq!(stores.copy("object", &source).unwrap(), None);
    stores.assert_nothing_left();
    let stores = Stores::new("completion-refused");
    let (_, source) = stores.original("object", PART + 1);
    stores
        .proxy
        .fail_if(is_completion, refusal("400 Bad Request", "InvalidPart"));
    assert_eq!(stores.copy("object", &source).unwrap(), None);
    stores.assert_nothing_left();
}

#[test]
fn a_part_with_another_digest_is_no_copy() {
    let digest = "0123456789abcdef0123456789abcdef";
    for e_tag in [digest, "", "0x8D", &format!("{digest}-2")] {
        let stores = Stores::new(&format!("digest-{}", e_tag.len()));
        let (_, source) = stores.original("object", 2 * PART);
        let answer = format!("<CopyPartResult><ETag>&quot;{e_tag}&quot;</ETag></CopyPartResult>");
        stores
            .proxy
            .fail_if(is_copy, Fault::refusal("200 OK", "", &answer));
        assert_eq!(stores.copy("object", &source).unwrap(), None, "{e_tag}");
        assert!(stores.proxy.is_done());
        assert!(
            stores
                .proxy
                .requests("POST")
                .iter()
                .all(|post| { !is_completion(post) || !post.line.contains("target") })
        );
        stores.assert_nothing_left();
    }
}

#[test]
fn a_copy_that_the_service_says_to_have_another_digest_is_removed() {
    let stores = Stores::new("other-digest");
    let (_, source) = stores.original("object", 9);
    // The request that the service carries out, as if its answer were another one.
    stores.proxy.fail_if(is_copy, Fault::LoseAnswer);
    let answer =
        "<CopyObjectResult><ETag>0123456789abcdef0123456789abcdef</ETag></CopyObjectResult>";
    stores
        .proxy
        .fail_if(is_copy, Fault::refusal("200 OK", "", answer));
    assert_eq!(stores.copy("object", &source).unwrap(), None);
    assert!(stores.proxy.is_done());
    stores.assert_nothing_left();
}

#[test]
fn a_source_that_has_changed_is_not_copied() {
    for size in [9, PART + 1] {
        let stores = Stores::new(&format!("changed-{size}"));
        let (_, source) = stores.original("object", size);
        stores.source.remove(&["object".into()]);
        assert_eq!(stores.copy("object", &source).unwrap(), None);
        upload(&stores.source, "object", &pattern(size, 8));
        assert_eq!(stores.copy("object", &source).unwrap(), None);
        stores.assert_nothing_left();
        // That is no reason to give up the next one.
        let (_, next) = stores.original("next", size);
        assert!(stores.copy("next", &next).unwrap().is_some());
    }
}

#[test]
fn what_has_the_name_of_the_copy_stays() {
    for size in [9, PART + 1] {
        let stores = Stores::new(&format!("taken-{size}"));
        let (_, source) = stores.original("object", size);
        let other = pattern(5, 9);
        upload(&stores.target, "object", &other);
        let error = stores.copy("object", &source).unwrap_err();
        assert_eq!(error.code, Code::StoreChanged);
        // The service refuses too, if the object appears after the look at it.
        stores.proxy.fail("HEAD", refusal("404 Not Found", ""));
        let error = stores.copy("object", &source).unwrap_err();
        assert_eq!(error.code, Code::StoreChanged);
        assert!(read_all(&stores.target, "object") == other);
        assert_eq!(stores.target.unfinished_uploads().unwrap(), []);
    }
}

#[test]
fn a_copy_whose_answer_is_lost_is_recognised() {
    for size in [9, PART + 1] {
        let stores = Stores::new(&format!("lost-{size}"));
        let (bytes, source) = stores.original("object", size);
        stores.proxy.fail_if(is_copy, Fault::LoseAnswer);
        if size > PART {
            stores.proxy.fail_if(is_completion, Fault::LoseAnswer);
        }
        assert!(stores.copy("object", &source).unwrap().is_some());
        assert!(stores.proxy.is_done());
        assert!(read_all(&stores.target, "object") == bytes);
    }
}

#[test]
fn an_error_after_the_status_of_a_success_is_one() {
    for size in [9, PART + 1] {
        let stores = Stores::new(&format!("late-{size}"));
        let (bytes, source) = stores.original("object", size);
        stores
            .proxy
            .fail_if(is_copy, refusal("200 OK", "InternalError"));
        assert!(stores.copy("object", &source).unwrap().is_some());
        assert!(stores.proxy.is_done());
        assert!(read_all(&stores.target, "object") == bytes);
    }
}

#[test]
fn a_copy_ends_soon_after_a_cancellation_and_leaves_nothing() {
    let stores = Stores::new("cancelled");
    let (_, source) = stores.original("object", 4 * PART);
    stores.proxy.fail_if(
        |request| is_copy(request) && request.line.contains("partNumber=2"),
        Fault::Hang,
    );
    let cancel = CancelToken::default();
    let ended = thread::scope(|scope| {
        let copying = scope.spawn(|| {
            cancel.enter();
            stores.copy("object", &source)
        });
        let begun = Instant::now();
        while !stores.proxy.is_done() && begun.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(10));
        }
        cancel.cancel();
        let cancelled = Instant::now();
        assert_eq!(copying.join().unwrap().unwrap_err().code, Code::Aborted);
        cancelled.elapsed()
    });
    assert!(ended < Duration::from_secs(5), "{ended:?}");
    stores.assert_nothing_left();
}

#[test]
fn progress_can_end_a_copy() {
    let stores = Stores::new("progress");
    let (_, source) = stores.original("object", 4 * PART);
    let mut parts = 0;
    let mut progress = |_| {
        parts += 1;
        match parts {
            2 => Err(kg_backup::Error::aborted()),
            _ => Ok(()),
        }
    };
    let error = stores.target.copy_from("object", &source, &mut progress);
    assert_eq!(error.unwrap_err().code, Code::Aborted);
    stores.assert_nothing_left();
}

#[test]
fn what_cannot_be_proven_or_is_elsewhere_costs_no_request() {
    let stores = Stores::new("elsewhere");
    let (_, source) = stores.original("object", 9);
    let server = ObjectServer::get();
    let elsewhere = server.bucket("copy-elsewhere");
    assert_eq!(
        elsewhere
            .copy_from("object", &source, &mut |_| Ok(()))
            .unwrap(),
        None
    );
    assert_eq!(elsewhere.find("object").unwrap(), None);

    let encrypted = Stores::with("kms", |options| {
        options.server_side_encryption = Some("aws:kms".into());
    });
    let (_, source) = encrypted.original("object", 9);
    let requests = encrypted.proxy.requests("").len();
    assert_eq!(encrypted.copy("object", &source).unwrap(), None);
    assert_eq!(encrypted.proxy.requests("").len(), requests);
}

#[test]
fn a_store_whose_e_tags_are_no_digests_makes_no_copies() {
    let stores = Stores::new("other-e-tags");
    let (_, source) = stores.original("object", 9);
    stores.proxy.fail_if(
        |request| request.line.starts_with("PUT"),
        Fault::refusal(
            "200 OK",
            "etag: \"0123456789abcdef0123456789abcdef\"\r\n",
            "",
        ),
    );
    let mut upload = stores
        .target
        .upload("other", 0, CancelToken::default())
        .unwrap();
    upload.write_all(b"bytes").unwrap();
    let _ = upload.finish();
    assert_eq!(stores.copy("object", &source).unwrap(), None);
    stores.assert_nothing_left();
}
