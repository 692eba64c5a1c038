//! Tests of stores in services that do not exist here.

use std::sync::Arc;

use super::*;
use crate::{
    objects::{Created, Object, Replaced, UnfinishedUpload, Version},
    place::{Bytes, Client, ObjectPlace, Upload},
    util::operation::CancelToken,
};

/// A service with these objects that respects some conditions.
struct Service {
    names: &'static [&'static str],
    conditions: Conditions,
}

impl Client for Service {
    fn list(&self) -> Result<Vec<Object>> {
        let object = |name: &&str| Object {
            name: (*name).into(),
            size_bytes: 1,
            modified: Timestamp::UNIX_EPOCH,
            version: Version::default(),
        };
        Ok(self.names.iter().map(object).collect())
    }

    fn conditions(&self) -> Result<Conditions> {
        Ok(self.conditions)
    }

    fn find(&self, _: &str) -> Result<Option<Object>> {
        unreachable!()
    }

    fn read(&self, _: &str, _: u64) -> Result<Option<(Vec<u8>, Object)>> {
        unreachable!()
    }

    fn open(&self, _: Object) -> Result<Box<dyn Bytes>> {
        unreachable!()
    }

    fn create(&self, _: &str, _: Vec<u8>) -> Result<Created> {
        unreachable!()
    }

    fn replace(&self, _: &str, _: Vec<u8>, _: &Version) -> Result<Replaced> {
        unreachable!()
    }

    fn remove(&self, _: &str) -> Result<()> {
        unreachable!()
    }

    fn upload(&self, _: &str, _: u64, _: CancelToken) -> Result<Box<dyn Upload>> {
        unreachable!()
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        unreachable!()
    }

    fn abort_upload(&self, _: &UnfinishedUpload) -> Result<()> {
        unreachable!()
    }

    fn server_time(&self) -> Result<Timestamp> {
        unreachable!()
    }
}

fn is_warned(names: &'static [&'static str], create: bool, replace: bool) -> bool {
    let conditions = Conditions { create, replace };
    let client = Arc::new(Service { names, conditions });
    let objects = ObjectPlace::new("s3://bucket/prefix".into(), client, false);
    let store = Store::of(&Place::Objects(objects));
    store.unconditional_warning().unwrap().is_some()
}

#[test]
fn a_new_store_whose_service_ignores_conditions_gives_a_warning() {
    assert!(is_warned(&[], false, true) && is_warned(&[], true, false));
    assert!(!is_warned(&[], true, true));
    // The first backup has given it.
    assert!(!is_warned(
        &["kg-backup-20240115-020000.tar.gz"],
        false,
        false
    ));
}
