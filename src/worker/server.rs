//! Answers one request, either as a separate process ([`main`]) or on a thread of `kg`
//! ([`answer`]).

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    backup::save,
    check::{inspect, repair},
    protocol::{
        Frame, Greeting, Message, PROTOCOL, RELEASE, Request, ResponseSink, SecretText, read_frame,
        write_block, write_data, write_json,
    },
    restore::{apply, recover_interrupted, undo},
};
use crate::{
    config::Settings,
    error::{Code, Error, Result, plain},
    sqlite,
    system::portable,
    util::{
        content_hash::ContentHash,
        operation::{CancelToken, OperationContext, Progress},
        threads,
    },
};

/// The upper limit for the size of a key file.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// Carries out `request` and sends the result. A failure is sent as [`Message::Failed`].
pub fn answer(
    request: Request,
    answers: &mut dyn ResponseSink,
    cancel: &CancelToken,
) -> Result<()> {
    let done = sqlite::assert_capabilities()
        .and_then(|()| sqlite::vfs_guard::watch())
        .and_then(|()| match request {
            Request::Save(request) => save(&request, answers, cancel).map(Message::Saved),
            Request::Apply(request) => apply(&request).map(Message::Applied),
            Request::Undo(request) => undo(&request).map(Message::Undone),
            Request::Recover(request) => {
                recover_interrupted(&request).map(|warnings| Message::Recovered { warnings })
            }
            Request::Check(request) => inspect(&request, answers, cancel).map(Message::Checked),
            Request::Repair(request) => repair(&request).map(|done| Message::Repaired { done }),
            Request::Settings(request) => {
                let mut warnings = Vec::new();
                Ok(Message::Settings {
                    settings: Settings::read(&request.root, &mut warnings),
                    warnings,
                })
            }
            // Only `main` has what carries out calls.
            Request::Call(_) => Err(Error::internal("A call reached a worker on a thread")),
            Request::Key(request) => key_text(&request.path).map(|text| Message::Key {
                text: SecretText(text),
            }),
        });
    answers.message(done.unwrap_or_else(|error| Message::Failed { error }))
}

/// Reads the text of a file or pipe that holds a key. Returns `KG_KEY_INVALID` if that fails.
fn key_text(path: &Path) -> Result<String> {
    let failed = |cause: io::Error| {
        let remedy = "Check the path, and that this user can read the file";
        let what = format!(
            "The key in {} cannot be read: {}",
            path.display(),
            plain(&cause)
        );
        Error::new(Code::KeyInvalid, what, remedy).with_cause(cause)
    };
    // The path may be a pipe, such as `<(…)` of a shell.
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_KEY_BYTES + 1).read_to_end(&mut text))
        .map_err(failed)?;
    // Truncating a passphrase would produce a different passphrase.
    if text.len() as u64 > MAX_KEY_BYTES {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than 64 KiB",
        )));
    }
    // The message must not reveal the bytes that are not valid UTF-8, because they are secret.
    String::from_utf8(text).map_err(|_| {
        failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not UTF-8 text",
        ))
    })
}

/// Carries out a call of the JavaScript API and returns the answer, both as JSON.
pub type RunCall = fn(&str, &OperationContext) -> String;

/// Runs `kg __reader`. The exit status only says whether the conversation was completed.
pub fn main(run_call: RunCall) -> ExitCode {
    let Ok(mut out) = portable::own_stdout() else {
        return ExitCode::FAILURE;
    };
    let greeting = Greeting {
        protocol: PROTOCOL,
        release: RELEASE.to_string(),
    };
    if write_json(&mut out, &greeting).is_err() {
        return ExitCode::FAILURE;
    }
    let request = match read_frame(&mut io::stdin().lock()) {
        Ok(Frame::Json(json)) => serde_json::from_slice::<Request>(&json),
        // The client ended, or it found that this executable belongs to another release.
        _ => return ExitCode::FAILURE,
    };
    let request = match request {
        Ok(request) => request,
        Err(cause) => {
            eprintln!("kg {RELEASE}: invalid request: {cause}");
            return ExitCode::FAILURE;
        }
    };
    if let Request::Call(request) = request {
        return match carry_out(&request.call.0, out, run_call) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    // A restore or repair that has begun runs to its end, even if the client has gone.
    let changes = matches!(
        request,
        Request::Apply(_) | Request::Undo(_) | Request::Recover(_) | Request::Repair(_)
    );
    let mut client = Pipe { out };
    let ready = if changes { Ok(()) } else { end_with_client() };
    let answered = match ready {
        Ok(()) => answer(request, &mut client, &CancelToken::default()),
        Err(error) => client.message(Message::Failed { error }),
    };
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Carries out a call. When the client closes its side of standard input, the call is cancelled, so
/// that it ends its uploads and releases its locks.
fn carry_out(call: &str, out: File, run_call: RunCall) -> Result<()> {
    let cancel = CancelToken::default();
    let client = Arc::new(Mutex::new(Pipe { out }));
    let cancelled = cancel.clone();
    let waiting = threads::start("kg-client", move || {
        let _ = io::stdin().lock().read(&mut [0]);
        cancelled.cancel();
    });
    let reported = client.clone();
    let report = move |progress: Progress| {
        let mut client = reported.lock().unwrap_or_else(PoisonError::into_inner);
        // If the client has gone, the call is cancelled anyway.
        let _ = client.message(Message::Progress(progress));
    };
    let context = OperationContext::new(cancel, Some(Arc::new(report)));
    context.cancel.enter();
    let message = match waiting {
        Ok(_) => Message::Called {
            answer: run_call(call, &context),
        },
        Err(error) => Message::Failed { error },
    };
    let mut client = client.lock().unwrap_or_else(PoisonError::into_inner);
    client.message(message)
}

/// Ends this process when the client closes its side of standard input, which happens however the
/// client ends.
fn end_with_client() -> Result<()> {
    let waiting = threads::start("kg-client", move || {
        // The client sends nothing more on standard input, so this call returns at its end.
        let _ = io::stdin().lock().read(&mut [0]);
        std::process::exit(1);
    });
    waiting.map(drop)
}

struct Pipe {
    /// Standard output, without the buffer of Rust's standard library.
    out: File,
}

impl ResponseSink for Pipe {
    fn message(&mut self, message: Message) -> Result<()> {
        write_json(&mut self.out, &message).map_err(client_gone)
    }

    fn data(&mut self, data: Vec<u8>) -> Result<()> {
        write_data(&mut self.out, &data).map_err(client_gone)
    }

    fn block(&mut self, block: Vec<u8>, hash: ContentHash) -> Result<()> {
        write_block(&mut self.out, &block, &hash).map_err(client_gone)
    }
}

fn client_gone(cause: io::Error) -> Error {
    Error::new(
        Code::ReaderDied,
        "The process that started the worker has closed its pipe",
        "Run it again",
    )
    .with_cause(cause)
}
