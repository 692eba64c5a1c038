//! Tests of stores in a service whose clock, conditions and answers they control.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use jiff::SignedDuration;

use super::{lease::Lease, *};
use crate::{
    objects::{CopySource, Created, Object, Replaced, UnfinishedUpload, Version},
    place::{Bytes, Client, ObjectPlace, Upload},
    util::operation::CancelToken,
};

/// A service in memory.
#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

struct State {
    objects: BTreeMap<String, (Vec<u8>, Version)>,
    writes: u64,
    now: Timestamp,
    conditions: Conditions,
    /// The next answer to a replacement is lost: it is done, and looks as if it was not.
    loses_answer: bool,
    /// A deletion is reported as done, and does nothing.
    keeps_all: bool,
}

impl Service {
    fn new() -> Self {
        Service(Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            writes: 0,
            now: "2026-01-15T02:00:00Z".parse().unwrap(),
            conditions: Conditions {
                create: true,
                replace: true,
            },
            loses_answer: false,
            keeps_all: false,
        })))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    /// A process that uses this service. Each asks it for the time once.
    fn place(&self) -> ObjectPlace {
        ObjectPlace::new("s3://bucket/prefix".into(), Arc::new(self.clone()), false)
    }

    fn store(&self) -> Store {
        Store::of(&Place::Objects(self.place()))
    }

    fn pass(&self, seconds: i64) {
        self.with(|state| state.now += SignedDuration::from_secs(seconds));
    }
}

impl State {
    fn write(&mut self, name: &str, bytes: Vec<u8>) -> Version {
        self.writes += 1;
        let version = Version {
            e_tag: Some(self.writes.to_string()),
            version: None,
        };
        self.objects.insert(name.into(), (bytes, version.clone()));
        version
    }

    fn object(&self, name: &str) -> Option<Object> {
        let (bytes, version) = self.objects.get(name)?;
        Some(Object {
            name: name.into(),
            size_bytes: bytes.len() as u64,
            modified: self.now,
            version: version.clone(),
        })
    }
}

impl Client for Service {
    fn is_unconditional(&self) -> bool {
        false
    }

    fn drop_conditions(&self) {}

    fn keeps_versions(&self) -> bool {
        false
    }

    fn list(&self) -> Result<Vec<Object>> {
        Ok(self.with(|state| {
            let names = state.objects.keys();
            names.filter_map(|name| state.object(name)).collect()
        }))
    }

    fn conditions(&self) -> Result<Conditions> {
        Ok(self.with(|state| state.conditions))
    }

    fn find(&self, name: &str) -> Result<Option<Object>> {
        Ok(self.with(|state| state.object(name)))
    }

    fn read(&self, name: &str, _: u64) -> Result<Option<(Vec<u8>, Object)>> {
        Ok(self.with(|state| {
            let object = state.object(name)?;
            Some((state.objects.get(name)?.0.clone(), object))
        }))
    }

    fn open(&self, _: Object) -> Result<Box<dyn Bytes>> {
        unreachable!("no test reads an archive")
    }

    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        Ok(self.with(|state| match state.objects.contains_key(name) {
            true => Created::Exists,
            false => Created::New(state.write(name, bytes)),
        }))
    }

    fn replace(&self, name: &str, bytes: Vec<u8>, known: &Version) -> Result<Replaced> {
        Ok(self.with(|state| {
            if state.objects.get(name).map(|(_, version)| version) != Some(known) {
                return Replaced::Changed;
            }
            let version = state.write(name, bytes);
            match std::mem::take(&mut state.loses_answer) {
                true => Replaced::Changed,
                false => Replaced::Done(version),
            }
        }))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.with(|state| {
            if !state.keeps_all {
                state.objects.remove(name);
            }
        });
        Ok(())
    }

    fn upload(&self, _: &str, _: u64, _: CancelToken) -> Result<Box<dyn Upload>> {
        unreachable!("no test writes an archive")
    }

    fn copy_source(&self, _: &Object) -> Option<CopySource> {
        None
    }

    fn copy_from(
        &self,
        _: &str,
        _: &CopySource,
        _: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Option<Object>> {
        Ok(None)
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        Ok(Vec::new())
    }

    fn abort_upload(&self, _: &UnfinishedUpload) -> Result<()> {
        Ok(())
    }

    fn server_time(&self) -> Result<Timestamp> {
        Ok(self.with(|state| state.now))
    }
}

fn acquire(service: &Service) -> Result<Lease> {
    Lease::acquire(
        &service.place(),
        Duration::ZERO,
        &OperationContext::default(),
    )
}

#[test]
fn a_lock_is_held_by_one_process_until_it_is_released() {
    let service = Service::new();
    // The end may come before the thread that renews the lease has begun to wait.
    for _ in 0..100 {
        let lease = acquire(&service).unwrap();
        assert_eq!(acquire(&service).unwrap_err().code, Code::StoreLocked);
        lease.renew().unwrap();
        drop(lease);
    }
    // What was released tells of no kill, unlike a lock that nobody ever held.
    assert!(!acquire(&service).unwrap().follows_a_kill());
    assert!(acquire(&Service::new()).unwrap().follows_a_kill());
}

#[test]
fn a_lock_that_was_not_renewed_is_taken_over_by_the_clock_of_the_service() {
    let service = Service::new();
    let first = acquire(&service).unwrap();
    service.pass(44);
    assert_eq!(acquire(&service).unwrap_err().code, Code::StoreLocked);
    service.pass(2);
    let second = acquire(&service).unwrap();
    assert!(second.follows_a_kill());
    second.renew().unwrap();
    // The first holder was stopped meanwhile. It commits nothing, and releases nothing.
    for _ in 0..2 {
        let error = first.renew().unwrap_err();
        assert_eq!(error.code, Code::StoreLocked);
    }
    drop(first);
    second.renew().unwrap();
}

#[test]
fn a_renewal_whose_answer_is_lost_loses_no_lock() {
    let service = Service::new();
    let lease = acquire(&service).unwrap();
    service.with(|state| state.loses_answer = true);
    lease.renew().unwrap();
    lease.renew().unwrap();
}

#[test]
fn a_lock_that_somebody_removed_or_overwrote_is_lost_and_can_be_taken() {
    let service = Service::new();
    let lease = acquire(&service).unwrap();
    service.remove(names::LOCK_FILE).unwrap();
    assert_eq!(lease.renew().unwrap_err().code, Code::StoreLocked);
    drop(lease);
    service.with(|state| state.write(names::LOCK_FILE, b"not a lock".to_vec()));
    acquire(&service).unwrap().renew().unwrap();
}

#[test]
fn an_archive_that_another_process_may_need_stays() {
    let service = Service::new();
    let store = service.store();
    let name = "kg-backup-20240115-020000.tar.gz";
    let archive = store.place.archive(name);
    let context = OperationContext::default();
    let withdraw = |lock: &StoreLock, code: Code| {
        service.with(|state| state.write(name, b"x".to_vec()));
        let error = store.withdraw(&archive, lock, Error::new(code, "not published", "none"));
        let is_there = service.with(|state| state.objects.contains_key(name));
        (error.code, is_there)
    };
    let lock = store.lock(Duration::ZERO, &context).unwrap();
    assert_eq!(withdraw(&lock, Code::Internal), (Code::Internal, false));
    let taken = withdraw(&lock, Code::StoreChanged);
    assert_eq!(taken, (Code::StoreChanged, true));
    service.pass(60);
    let other = acquire(&service).unwrap();
    let lost = withdraw(&lock, Code::Internal);
    assert_eq!(lost, (Code::StoreLocked, true));
    other.renew().unwrap();
}

#[test]
fn a_removal_leaves_nothing_and_one_that_began_is_finished() {
    let service = Service::new();
    let name = "kg-backup-20240115-020000.tar.gz";
    for suffix in ["", names::MANIFEST_SUFFIX] {
        service.with(|state| state.write(&format!("{name}{suffix}"), b"x".to_vec()));
    }
    service.with(|state| state.write(&format!(".kg-deleted-{name}"), Vec::new()));
    service.with(|state| state.write(".kg-deleted-of-others", Vec::new()));
    let objects = service.place();
    assert_eq!(tombstone::living(&objects).unwrap().len(), 2);
    assert_eq!(tombstone::finish_removals(&objects).unwrap(), []);
    let left = service.with(|state| state.objects.keys().cloned().collect::<Vec<_>>());
    assert_eq!(left, [".kg-deleted-of-others"]);
}

#[test]
fn a_removal_that_a_service_only_claims_is_an_error_and_hides_nothing() {
    let service = Service::new();
    let name = "kg-backup-20240115-020000.tar.gz";
    for suffix in ["", names::MANIFEST_SUFFIX] {
        service.with(|state| state.write(&format!("{name}{suffix}"), b"x".to_vec()));
    }
    service.with(|state| state.keeps_all = true);
    let objects = service.place();
    let archive = Place::Objects(objects.clone()).archive(name);
    let error = tombstone::remove(&objects, &archive).unwrap_err();
    assert_eq!(error.code, Code::StoreDenied);
    for objects in [objects, service.place()] {
        let living = tombstone::living(&objects).unwrap();
        assert!(living.iter().any(|living| living == name), "{living:?}");
    }
}

#[test]
fn a_new_store_whose_service_ignores_conditions_gives_a_warning() {
    let is_warned = |create, replace, name: Option<&str>| {
        let service = Service::new();
        service.with(|state| state.conditions = Conditions { create, replace });
        if let Some(name) = name {
            service.with(|state| state.write(name, b"x".to_vec()));
        }
        let warning = service.store().unconditional_warning();
        warning.unwrap().is_some()
    };
    assert!(is_warned(false, true, None) && is_warned(true, false, None));
    assert!(!is_warned(true, true, None));
    // The first backup has given it.
    let archive = "kg-backup-20240115-020000.tar.gz";
    assert!(!is_warned(false, false, Some(archive)));
}
