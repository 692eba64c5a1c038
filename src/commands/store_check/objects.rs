//! The check of an object store.

use std::io::Write;

use jiff::{SignedDuration, Timestamp, Unit};

use super::{
    CHECK_PREFIX,
    report::{Finding, Need, Outcome, Report, StoreCheck, Trial, Tried},
};
use crate::{
    error::{Code, Error, Result},
    objects::{
        Bucket, Contact, Created, Location, Object, Replaced, Service, StorageOptions,
        UnfinishedUpload, Upload, Version, Versioning,
    },
    util::{
        hex::hex,
        operation::{CancelToken, OperationContext},
    },
};

/// The small object, and those of the uploads.
const OBJECT: &str = "object";
const UPLOAD: &str = "upload";
const ABORTED: &str = "aborted";

const FIRST: &[u8] = b"a check of kg, which deletes this";
const SECOND: &[u8] = b"a check of kg, which deletes this again";
const MOST_BYTES: u64 = 1 << 10;
/// The smallest part of S3 that is not the last one.
const PART_BYTES: usize = 5 << 20;

/// AWS refuses requests from 15 minutes on.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

const fn trial(
    name: &'static str,
    needed_for: Need,
    title: &'static str,
    permission: &'static str,
) -> Trial {
    Trial {
        name,
        title,
        needed_for,
        permission,
    }
}

const TRIALS: &[Trial] = &[
    trial(
        "reach",
        Need::Backups,
        "reach the service and authenticate",
        "",
    ),
    trial("list", Need::Backups, "list objects", "s3:ListBucket"),
    trial("clock", Need::Backups, "learn the time of the service", ""),
    trial(
        "create",
        Need::Backups,
        "create an object that is absent",
        "s3:PutObject",
    ),
    trial("read", Need::Backups, "read an object", "s3:GetObject"),
    trial(
        "create-again",
        Need::Backups,
        "refuse to create an object that exists",
        "s3:PutObject",
    ),
    trial(
        "replace",
        Need::Backups,
        "replace an object that is unchanged",
        "s3:PutObject",
    ),
    trial(
        "replace-changed",
        Need::Backups,
        "refuse to replace an object that was changed",
        "s3:PutObject",
    ),
    trial(
        "head",
        Need::Backups,
        "look at an object and at its metadata",
        "s3:GetObject",
    ),
    trial(
        "range",
        Need::Backups,
        "read a part of an object",
        "s3:GetObject",
    ),
    trial(
        "upload",
        Need::Backups,
        "upload an object in two parts",
        "s3:PutObject",
    ),
    trial(
        "delete",
        Need::Retention,
        "delete an object",
        "s3:DeleteObject",
    ),
    trial(
        "upload-again",
        Need::Advice,
        "refuse to complete an upload if the object exists",
        "s3:PutObject",
    ),
    trial(
        "list-uploads",
        Need::Advice,
        "list unfinished uploads",
        "s3:ListBucketMultipartUploads",
    ),
    trial(
        "abort",
        Need::Advice,
        "abort an upload",
        "s3:AbortMultipartUpload",
    ),
    trial(
        "versioning",
        Need::Advice,
        "no old versions that use space",
        "s3:GetBucketVersioning",
    ),
    trial(
        "object-lock",
        Need::Advice,
        "no lock on new objects",
        "s3:GetBucketObjectLockConfiguration",
    ),
];

pub fn check(location: &Location, context: &OperationContext) -> Result<StoreCheck> {
    let options = StorageOptions::default();
    let bucket = Bucket::open(location, &options)?;
    let area = location.below(&format!("{CHECK_PREFIX}{}", random()?));
    let mut check = Check {
        area: Bucket::open(&area, &options)?,
        bucket,
        cancel: context.cancel.clone(),
        report: Report::new(TRIALS),
        written: Vec::new(),
        keeps_versions: false,
    };
    let contact = check.bucket.contact();
    if !check.reach(contact) {
        check.report.stop("reach");
    } else {
        check.look_at_settings();
        if check.small_object() {
            check.uploads();
            check.delete();
        } else {
            check.report.stop("create");
        }
    }
    // Also after Ctrl-C.
    let remaining = CancelToken::despite_cancellation(|| check.clean_up());
    context.cancel.check().map_err(|error| Error {
        remedy: match remaining.as_slice() {
            [] => error.remedy.clone(),
            remaining => format!("Delete {}", remaining.join(", ")),
        },
        ..error
    })?;
    let tried = check.tried()?;
    let store = check.bucket.location().to_string();
    Ok(check.report.finish(store, tried, remaining))
}

struct Check {
    bucket: Bucket,
    /// The same bucket, below a random name.
    area: Bucket,
    cancel: CancelToken,
    report: Report,
    /// The names that may exist in the area.
    written: Vec<&'static str>,
    keeps_versions: bool,
}

impl Check {
    /// Returns whether it makes sense to ask for more.
    fn reach(&mut self, contact: Result<Contact>) -> bool {
        let contact = match contact {
            Ok(contact) => contact,
            Err(error) => return self.report.note("reach", Finding::fails(error)),
        };
        match contact.listed {
            Ok(1) => {
                self.report.note("reach", Finding::works());
                self.report.note("list", Finding::works_with("1 object"));
            }
            Ok(count) => {
                self.report.note("reach", Finding::works());
                let count = format!("{count} objects");
                self.report.note("list", Finding::works_with(count));
            }
            Err(error) => {
                // Some services answer so to whom they do not know.
                self.report
                    .note("reach", Finding::cannot_tell(error.clone()));
                self.report.note("list", Finding::fails(error));
            }
        }
        self.report.note("clock", self.clock(contact.times));
        true
    }

    fn clock(&self, times: Option<(Timestamp, Timestamp)>) -> Finding {
        let Some((ours, theirs)) = times else {
            return Finding::fails(Error::new(
                Code::Unsupported,
                format!(
                    "The answers of {} have no date, and the lock of the store needs it",
                    self.bucket.location()
                ),
                "Use another service",
            ));
        };
        let difference = theirs.duration_since(ours).abs();
        let [ours, theirs] = [ours, theirs].map(|time| time.round(Unit::Second).unwrap_or(time));
        let message = format!("it is {ours} here, and {theirs} there");
        match difference > CLOCK_TOLERANCE {
            false => Finding::works_with(message),
            true => Finding::warning(
                format!("The clocks differ by more than 5 minutes: {message}"),
                "Set the clock of this machine, for example with NTP: AWS refuses a difference of \
                 15 minutes",
            ),
        }
    }

    fn look_at_settings(&mut self) {
        let versioning = self.bucket.versioning();
        self.keeps_versions = matches!(versioning, Ok(Versioning::Enabled | Versioning::Suspended));
        let finding = match versioning {
            Ok(Versioning::Off) => Finding::works_with("versioning is off"),
            Ok(Versioning::Suspended) => {
                Finding::works_with("versioning is suspended, and versions from before that stay")
            }
            Ok(Versioning::Enabled) => keeps_versions(),
            Err(error) => Finding::cannot_tell(error),
        };
        self.report.note("versioning", finding);
        let finding = match self.bucket.default_lock() {
            Ok(None) => Finding::works_with("the bucket has no default lock"),
            Ok(Some(lock)) => Finding::warning(
                format!(
                    "The bucket locks each new object for {} ({}): what retention removes before \
                     uses space until then",
                    lock.period, lock.mode
                ),
                "Keep backups for longer than the lock",
            ),
            Err(error) => Finding::cannot_tell(error),
        };
        self.report.note("object-lock", finding);
    }

    /// Returns whether an object can be created.
    fn small_object(&mut self) -> bool {
        let created = self.area.create(OBJECT, FIRST.to_vec());
        let is_refused =
            |error: &Error| matches!(error.code, Code::StoreDenied | Code::Unsupported);
        if !matches!(&created, Err(error) if is_refused(error)) {
            self.written.push(OBJECT);
        }
        let first = match created {
            Ok(Created::New(version)) => version,
            Ok(Created::Exists) => {
                let error = self.ignores("says that a new object exists");
                return self.report.note("create", Finding::fails(error));
            }
            Err(error) => {
                let remedy = "kg needs PUT with `If-None-Match`: use another service";
                let error = error.with_remedy_for(Code::Unsupported, remedy);
                return self.report.note("create", Finding::fails(error));
            }
        };
        self.report.note("create", Finding::works());
        self.learn_versioning(&first);
        if self.report.outcome("reach") == Some(Outcome::CannotTell) {
            self.report.note("reach", Finding::works());
        }
        let read = self.area.read(OBJECT, MOST_BYTES);
        self.note_read("read", read.map(|read| read.map(|(bytes, _)| bytes)), FIRST);
        self.conditions(&first);
        self.parts_of_object();
        true
    }

    /// A service of S3 gives an object a version only in a bucket that keeps versions. That tells
    /// what the setting would, to a user who may not read it.
    fn learn_versioning(&mut self, created: &Version) {
        let is_s3 = self.bucket.location().service() == Service::S3;
        let is_version = created.version.as_deref().is_some_and(|one| one != "null");
        if is_s3 && is_version && !self.keeps_versions {
            self.keeps_versions = true;
            self.report.note("versioning", keeps_versions());
        }
    }

    /// Tries whether two writers notice each other.
    fn conditions(&mut self, first: &Version) {
        let finding = match self.area.create(OBJECT, SECOND.to_vec()) {
            Ok(_) if self.area.is_unconditional() => self.unconditional("refuses conditions"),
            Ok(Created::Exists) => Finding::works(),
            Ok(Created::New(_)) => {
                self.unconditional("ignores `If-None-Match` and replaced the object")
            }
            Err(error) => Finding::fails(error),
        };
        self.report.note("create-again", finding);
        let known = match self.area.find(OBJECT) {
            Ok(Some(object)) => object.version,
            _ => first.clone(),
        };
        let replaced = self.area.replace(OBJECT, SECOND.to_vec(), &known);
        let finding = match replaced {
            Ok(Replaced::Done(_)) => Finding::works(),
            Ok(Replaced::Changed) => {
                Finding::fails(self.ignores("says that an object was changed, and it was not"))
            }
            Err(error) => Finding::fails(error),
        };
        if !self.report.note("replace", finding) {
            return self.report.skip("replace-changed", "replace");
        }
        // No state of the object has this version any more, whatever the service ignored before.
        let stale = known.outdated();
        let finding = match self.area.replace(OBJECT, SECOND.to_vec(), &stale) {
            Ok(_) if self.area.is_unconditional() => self.unconditional("refuses conditions"),
            Ok(Replaced::Changed) => Finding::works(),
            Ok(Replaced::Done(_)) => {
                self.unconditional("ignores `If-Match` and replaced an object that was changed")
            }
            Err(error) => Finding::fails(error),
        };
        self.report.note("replace-changed", finding);
    }

    fn parts_of_object(&mut self) {
        let size = |object: &Object| object.size_bytes == SECOND.len() as u64;
        let is_replaced = self.report.outcome("replace") == Some(Outcome::Works);
        let found = self.area.find_with_metadata(OBJECT);
        let finding = match &found {
            Ok(Some((object, true))) if size(object) || !is_replaced => Finding::works(),
            Ok(Some((_, false))) => Finding::fails(
                self.ignores("drops the metadata of objects, by which kg recognises its own"),
            ),
            Ok(Some(_)) => Finding::fails(self.ignores("tells a wrong size of an object")),
            Ok(None) => Finding::fails(self.ignores("does not find an object that it keeps")),
            Err(error) => Finding::fails(error.clone()),
        };
        self.report.note("head", finding);
        let Ok(Some((object, _))) = found else {
            return self.report.skip("range", "head");
        };
        // Both contents begin alike.
        let (from, to) = (2, FIRST.len());
        let mut part = vec![0; to - from];
        let read = self.area.reader_of(object).and_then(|reader| {
            let read = reader.read_exact_at(&mut part, from as u64);
            read.map_err(|cause| Error::io("read a part of", std::path::Path::new(OBJECT), cause))
        });
        let expected = FIRST.get(from..to).unwrap_or_default();
        self.note_read("range", read.map(|()| Some(part)), expected);
    }

    fn note_read(&mut self, name: &str, read: Result<Option<Vec<u8>>>, expected: &[u8]) {
        let finding = match read {
            Ok(Some(bytes)) if bytes == expected => Finding::works(),
            Ok(Some(_)) => Finding::fails(self.ignores("returns other bytes than it was given")),
            Ok(None) => Finding::fails(self.ignores("does not find an object that it just took")),
            Err(error) => Finding::fails(error),
        };
        self.report.note(name, finding);
    }

    fn uploads(&mut self) {
        let first = self.area.upload(UPLOAD, 0, self.cancel.clone());
        self.written.push(UPLOAD);
        let first = first.map(|first| {
            let mut first = first.in_parts_of(PART_BYTES);
            // An error comes again at the end.
            let _ = first.write_all(&vec![b'-'; PART_BYTES + FIRST.len()]);
            first
        });
        // Begun before the object exists, because the beginning looks for it.
        let rival = self.begin(UPLOAD);
        match &rival {
            Ok(_) => self.list_uploads(),
            Err(_) => self.report.skip("list-uploads", "upload"),
        }
        let finding = match first.and_then(Upload::finish) {
            Ok(_) => Finding::works(),
            Err(error) => Finding::fails(error),
        };
        let finding = self.looking_for_absent(finding);
        match self.report.note("upload", finding) {
            true => self.finish_second(rival),
            false => self.report.skip("upload-again", "upload"),
        }
        self.abort();
    }

    /// Begins an upload and sends one part.
    fn begin(&self, name: &'static str) -> Result<Upload> {
        let mut upload = self.area.upload(name, 0, self.cancel.clone())?;
        upload
            .write_all(FIRST)
            .map_err(|cause| Error::io("upload", std::path::Path::new(name), cause))?;
        upload.send()?;
        Ok(upload)
    }

    fn finish_second(&mut self, rival: Result<Upload>) {
        let warning = |what: &str| {
            Finding::warning(
                format!("The service {what}, so that only the lock keeps two backups apart"),
                "Let only one process write there if you can",
            )
        };
        let unsupported = || warning("does not support a condition on the completion of an upload");
        let finished = rival.and_then(Upload::finish);
        let finding = match finished {
            _ if self.area.is_unconditional() => unsupported(),
            Err(error) if error.code == Code::StoreChanged => Finding::works(),
            Err(error) => Finding::cannot_tell(error),
            Ok(_) if self.area.completes_without_condition() => unsupported(),
            Ok(_) => warning("ignores the condition on the completion of an upload"),
        };
        self.report.note("upload-again", finding);
    }

    fn list_uploads(&mut self) {
        let finding = match self.area.unfinished_uploads() {
            Ok(found) if found.iter().any(|one| one.name == UPLOAD) => Finding::works(),
            Ok(_) => Finding::warning(
                "The list of unfinished uploads lacks one that is under way, so that kg does not \
                 find what a killed backup leaves",
                "Add a lifecycle rule that aborts incomplete uploads",
            ),
            Err(error) if error.code == Code::StoreDenied => Finding::warns_of(Error {
                message: format!(
                    "{}; so kg does not find what a killed backup leaves, and it costs money unless \
                     a lifecycle rule aborts incomplete uploads",
                    error.message
                ),
                ..error
            }),
            Err(error) => Finding::cannot_tell(error),
        };
        self.report.note("list-uploads", finding);
    }

    fn abort(&mut self) {
        let Ok(upload) = self.begin(ABORTED) else {
            return self.report.skip("abort", "upload");
        };
        let stays = "Add a lifecycle rule that aborts incomplete uploads";
        let finding = match upload.abort() {
            Err(error) => Finding::warns_of(error),
            Ok(()) => match self.area.unfinished_uploads() {
                Ok(found) if found.iter().any(|one| one.name == ABORTED) => Finding::warning(
                    "The service says that it aborted an upload, and still lists it",
                    stays,
                ),
                Ok(_) => Finding::works(),
                Err(error) => Finding::cannot_tell(Error {
                    message: format!(
                        "The service reports success, but its list cannot prove it: {}",
                        error.message
                    ),
                    ..error
                }),
            },
        };
        self.report.note("abort", finding);
    }

    fn delete(&mut self) {
        let removed = self.remove(OBJECT);
        let finding = match removed.map(|()| self.area.find(OBJECT)) {
            Ok(Ok(None)) => Finding::works(),
            Ok(Ok(Some(_))) => {
                Finding::fails(self.ignores("reports a deletion, and keeps the object"))
            }
            Ok(Err(error)) => Finding::cannot_tell(error),
            Err(error) => Finding::fails(error),
        };
        let finding = self.looking_for_absent(finding);
        if !self.report.note("delete", finding)
            && let Ok(Some(upload)) = self.area.find(UPLOAD)
        {
            // It stays, so it should be small.
            let _ = self.area.replace(UPLOAD, Vec::new(), &upload.version);
        }
    }

    /// S3 tells only a user who may list the bucket that an object is absent.
    fn looking_for_absent(&self, finding: Finding) -> Finding {
        match self.report.outcome("list") {
            Some(Outcome::Fails) => finding.needing("s3:ListBucket"),
            _ => finding,
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        let results = self.area.remove(&[name.to_string()]);
        results.into_iter().try_for_each(|(_, result)| result)
    }

    /// Removes what the check made. Returns what remains.
    fn clean_up(&self) -> Vec<String> {
        let url = |name: &str| format!("{}/{name}", self.area.location());
        let is_gone = |name: &&str| match self.area.find(name) {
            Ok(None) => true,
            Ok(Some(_)) => {
                let removed = self.remove(name);
                removed.is_ok() && !matches!(self.area.find(name), Ok(Some(_)))
            }
            Err(_) => self.remove(name).is_ok(),
        };
        let kept = self.written.iter().filter(|name| !is_gone(name));
        let mut remaining: Vec<String> = kept.map(|name| url(name)).collect();
        if self.written.contains(&UPLOAD) {
            remaining.extend(self.unfinished());
        }
        if self.keeps_versions && !self.written.is_empty() {
            remaining.extend(self.old_versions());
        }
        remaining
    }

    fn unfinished(&self) -> Vec<String> {
        let area = self.area.location();
        let aborted = self.area.unfinished_uploads().map(|found| {
            for upload in &found {
                // The list afterwards tells.
                let _ = self.area.abort_unfinished(upload);
            }
            !found.is_empty()
        });
        let left = match aborted {
            Ok(true) => self.area.unfinished_uploads(),
            Ok(false) => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        match left {
            Ok(left) => {
                let text =
                    |one: UnfinishedUpload| format!("{area}/{} (unfinished upload)", one.name);
                left.into_iter().map(text).collect()
            }
            // The service has no such list, or it reported success for each of them.
            Err(error) if error.code == Code::Unsupported => Vec::new(),
            Err(_) if self.report.outcome("abort") == Some(Outcome::CannotTell) => Vec::new(),
            Err(_) => vec![format!("{area}/ (perhaps unfinished uploads)")],
        }
    }

    fn old_versions(&self) -> Vec<String> {
        let unknown = |_| vec![format!("{}/ (old versions)", self.area.location())];
        let listed = self.area.versions().map(|versions| {
            for version in &versions {
                // The list afterwards tells.
                let _ = self.area.remove_version(version);
            }
        });
        let left = listed.and_then(|()| self.area.versions());
        left.map_or_else(unknown, |left| {
            let text = left.into_iter().map(|one| {
                let location = self.area.location();
                format!("{location}/{} (version {})", one.name, one.id)
            });
            text.collect()
        })
    }

    fn tried(&self) -> Result<Tried> {
        let location = self.bucket.location();
        Ok(Tried {
            service: match location.service() {
                Service::S3 => "S3",
                Service::GoogleCloud => "Google Cloud Storage",
                Service::Azure => "Azure Blob Storage",
            },
            host: self.bucket.last_host(),
            bucket: Some(location.bucket().to_string()),
            region: self.bucket.region(),
            credentials: self.bucket.credential_source()?.or_else(|| {
                let is_s3 = location.service() == Service::S3;
                is_s3.then(|| "none found".to_string())
            }),
            ..Tried::default()
        })
    }

    /// kg then looks before each write and reads back, which leaves a gap.
    fn unconditional(&self, what: &str) -> Finding {
        Finding::warning(
            format!(
                "The service of {} {what}, so two processes that write at the same time may not \
                 notice each other",
                self.bucket.location()
            ),
            "Let only one process write there",
        )
    }

    fn ignores(&self, what: &str) -> Error {
        Error::new(
            Code::Unsupported,
            format!("The service of {} {what}", self.bucket.location()),
            "Use another service, or let only one process write there",
        )
    }
}

fn keeps_versions() -> Finding {
    Finding::warning(
        "The bucket keeps old versions: a deletion only hides an object, and retention frees \
         nothing",
        "Add a lifecycle rule that expires noncurrent versions (NoncurrentVersionExpiration)",
    )
}

fn random() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|cause| {
        let remedy = "Check the system's source of random numbers";
        Error::new(Code::Io, "Could not get random numbers", remedy).with_cause(cause)
    })?;
    Ok(hex(&bytes))
}
