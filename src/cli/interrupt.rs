//! An operation that Ctrl-C cancels and a progress bar shows.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Output;
use crate::{
    service::run_marker,
    util::{
        operation::{CancelToken, OperationContext, Phase, Progress},
        termination,
    },
};

/// Cancels the operation on the first Ctrl-C. The second one ends the process immediately, except
/// in a critical section, which moves files into place. The next run removes what an ended process
/// leaves.
fn end_on_interrupt(cancel: CancelToken) {
    let interrupted = move || {
        if cancel.is_cancelled() && !cancel.is_in_critical_section() {
            run_marker::end_at_work();
            std::process::exit(130);
        }
        cancel.cancel();
    };
    // An earlier handler does the same. Without one, a signal ends the process at once.
    let _ = termination::on_request(interrupted);
}

/// Returns a token that a signal cancels, for commands that run until then.
pub fn cancel_on_interrupt() -> CancelToken {
    let cancel = CancelToken::default();
    end_on_interrupt(cancel.clone());
    cancel
}

/// An operation with a progress bar on a terminal. Dropping it removes the bar.
pub struct Watched {
    pub context: OperationContext,
    bar: Option<ProgressBar>,
}

impl Watched {
    pub fn new(output: &Output) -> Self {
        let cancel = CancelToken::default();
        end_on_interrupt(cancel.clone());
        // Also ends a request that a service does not answer.
        cancel.enter();
        if !output.shows_progress() {
            return Watched {
                context: OperationContext::new(cancel, None),
                bar: None,
            };
        }
        let bar = ProgressBar::no_length().with_style(style());
        let shown = bar.clone();
        let listener = Arc::new(move |progress: Progress| {
            shown.set_message(name(progress.phase));
            if progress.bytes_total > 0 {
                shown.set_length(progress.bytes_total);
            }
            shown.set_position(progress.bytes_done);
        });
        Watched {
            context: OperationContext::new(cancel, Some(listener)),
            bar: Some(bar),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        CancelToken::default().enter();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    // The bar takes what the text leaves of the terminal.
    let template = "{msg:9} [{wide_bar}] {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "Waiting",
        Phase::Saving => "Saving",
        Phase::Verifying => "Verifying",
        Phase::Unpacking => "Unpacking",
        Phase::Applying => "Applying",
        Phase::Copying => "Copying",
        Phase::Checking => "Checking",
        Phase::Repairing => "Repairing",
    }
}
