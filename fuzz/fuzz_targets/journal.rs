//! Any journal of an interrupted restore in a project: nothing outside of the project is made, changed or removed.
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
    // Whatever it was, it can be put out of the way.
    let _ = fs::remove_file(project.root.join(".kg/restore-journal.json"));
    lock_and_recover(&project.root, Duration::ZERO, &mut Vec::new())
        .expect("nothing is in the way");
});
