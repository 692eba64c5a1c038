//! Fuzzes the journal of an interrupted restore. Nothing outside the project may be created,
//! changed or removed.
#![no_main]

mod project;

use std::{fs, time::Duration};

use kg_backup::internals::worker::restore::lock_and_recover;
use libfuzzer_sys::fuzz_target;
use project::Project;

fuzz_target!(|text: &str| {
    let project = Project::make();
    project.write_orders(&project.root.join(".kg/restore-journal.json"), text);
    let _ = lock_and_recover(&project.root, Duration::ZERO, &mut Vec::new());
    project.assert_outside_as_it_was();
    // Whatever the journal contained, its removal must unblock the project.
    let _ = fs::remove_file(project.root.join(".kg/restore-journal.json"));
    lock_and_recover(&project.root, Duration::ZERO, &mut Vec::new())
        .expect("nothing is in the way");
});
