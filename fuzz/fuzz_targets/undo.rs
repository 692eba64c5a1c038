//! Fuzzes the record of a restore that is undone. Nothing outside the project may be created,
//! changed or removed.
#![no_main]

mod project;

use std::{fs, time::Duration};

use kg_backup::internals::worker::{
    protocol::UndoRequest,
    restore::{lock_and_recover, undo},
};
use libfuzzer_sys::fuzz_target;
use project::Project;

fuzz_target!(|text: &str| {
    let project = Project::make();
    project.write_orders(
        &project
            .root
            .join(".kg/restore-undo/20240115-020000/undo.json"),
        text,
    );
    let request = |dry_run| UndoRequest {
        target: project.root.clone(),
        earlier: false,
        force: true,
        dry_run,
        lock_timeout_ms: 0,
    };
    let _ = undo(&request(true));
    let _ = undo(&request(false));
    project.assert_outside_as_it_was();
    // A failure must leave nothing that the next run cannot recover.
    assert!(fs::metadata(project.root.join(".kg/knowledge.db")).is_ok());
    lock_and_recover(&project.root, Duration::ZERO, &mut Vec::new())
        .expect("nothing is left in the midst");
});
