//! Starts a worker and receives its answers.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{
    protocol::{
        Applied, ApplyRequest, CallRequest, CheckRequest, Frame, Greeting, KeyRequest, Message,
        PROTOCOL, RELEASE, RecoverRequest, RepairRequest, Request, ResponseSink, SaveRequest,
        SecretText, SettingsRequest, UndoRequest, Undone, WORKER_ARGUMENT, read_frame, write_json,
    },
    restore::{lock_target, needs_recovery},
    server::{self},
};
use crate::{
    config::Settings,
    error::{Code, Error, Result, Warning},
    integrity::{Report, repair::Done},
    objects::SECRET_VARIABLES,
    project::STATE_DIR,
    util::{
        child::{self, Family},
        content_hash::ContentHash,
        operation::{CancelToken, OperationContext, POLL_INTERVAL, Phase},
        threads,
    },
};

/// A worker greets within milliseconds, but a machine that is swapping may need longer.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// The time that a worker has between the end of its output and its exit.
const EXIT_GRACE: Duration = Duration::from_millis(500);
/// The time that a cancelled call has to end its uploads and to release its locks.
const CANCEL_GRACE: Duration = Duration::from_secs(15);
/// The number of bytes of the worker's standard error that an error message quotes.
const MAX_STDERR_BYTES: u64 = 4096;
/// The number of answers that may wait in the channel between the threads.
const CHANNEL_ANSWERS: usize = 16;

/// Where the worker runs.
#[derive(Debug, Clone)]
pub enum WorkerMode {
    /// Runs the worker on a thread of this process, for `kg` itself. The process must not have
    /// databases of the project open.
    InProcess,
    /// Runs the worker as a subprocess: the given `kg` executable. A host must use this mode.
    Subprocess(PathBuf),
}

/// An answer of the worker.
pub enum Response {
    Message(Message),
    Data(Vec<u8>),
    /// A block of a database, and its hash.
    Block(Vec<u8>, ContentHash),
}

/// A worker that is carrying out one request. Dropping it ends the worker.
pub struct Worker {
    link: Link,
    cancel: CancelToken,
}

enum Link {
    Thread(Thread),
    Process(Process),
}

impl Worker {
    pub fn save(
        worker_mode: &WorkerMode,
        request: SaveRequest,
        cancel: &CancelToken,
    ) -> Result<Self> {
        Worker::start(worker_mode, Request::Save(request), cancel)
    }

    /// Applies a restore and waits for its end. The caller cannot cancel it.
    pub fn apply(worker_mode: &WorkerMode, request: ApplyRequest) -> Result<Applied> {
        match Worker::change(worker_mode, Request::Apply(request))? {
            Message::Applied(applied) => Ok(applied),
            _ => Err(protocol_violation()),
        }
    }

    /// Undoes a restore. Like [`Worker::apply`], it cannot be cancelled.
    pub fn undo(worker_mode: &WorkerMode, request: UndoRequest) -> Result<Undone> {
        match Worker::change(worker_mode, Request::Undo(request))? {
            Message::Undone(undone) => Ok(undone),
            _ => Err(protocol_violation()),
        }
    }

    /// Recovers killed restores of the project at `root`: completes them or rolls them back. Also
    /// removes files that restores replaced more than `undo_retention_days` days ago.
    pub fn recover_interrupted(
        worker_mode: &WorkerMode,
        root: &Path,
        lock_timeout: Duration,
        undo_retention_days: u32,
        context: &OperationContext,
    ) -> Result<Vec<Warning>> {
        let state = root.join(STATE_DIR);
        if !needs_recovery(&state, undo_retention_days)? {
            return Ok(Vec::new());
        }
        // The worker waits for the lock too, but the caller cannot cancel that wait.
        drop(lock_target(&state, lock_timeout, context)?);
        let lock_timeout_ms = lock_timeout.as_millis() as u64;
        let request = RecoverRequest {
            target: root.to_path_buf(),
            undo_retention_days,
            lock_timeout_ms,
        };
        match Worker::change(worker_mode, Request::Recover(request))? {
            Message::Recovered { warnings } => Ok(warnings),
            _ => Err(protocol_violation()),
        }
    }

    /// Returns the backup settings of the project at `root`, and a warning for each unusable
    /// setting.
    pub fn settings(worker_mode: &WorkerMode, root: &Path) -> Result<(Settings, Vec<Warning>)> {
        let request = Request::Settings(SettingsRequest {
            root: root.to_path_buf(),
        });
        match Worker::start(worker_mode, request, &CancelToken::current())?.next()? {
            Response::Message(Message::Settings { settings, warnings }) => Ok((settings, warnings)),
            _ => Err(protocol_violation()),
        }
    }

    /// Reads the text of a file that holds a key. If the file is a pipe, the call waits until
    /// `cancel` ends it.
    pub fn key(worker_mode: &WorkerMode, path: &Path, cancel: &CancelToken) -> Result<String> {
        let request = Request::Key(KeyRequest {
            path: path.to_path_buf(),
        });
        match Worker::start(worker_mode, request, cancel)?.next()? {
            Response::Message(Message::Key { text }) => Ok(text.0),
            _ => Err(protocol_violation()),
        }
    }

    /// Runs checks and reports their progress.
    pub fn check(
        worker_mode: &WorkerMode,
        request: CheckRequest,
        context: &OperationContext,
    ) -> Result<Report> {
        let mut worker = Worker::start(worker_mode, Request::Check(request), &context.cancel)?;
        loop {
            match worker.next()? {
                Response::Message(Message::Checking {
                    bytes_done,
                    bytes_total,
                }) => {
                    context.report(Phase::Checking, bytes_done, bytes_total)?;
                }
                Response::Message(Message::Checked(report)) => return Ok(report),
                _ => return Err(protocol_violation()),
            }
        }
    }

    /// Has another process carry out a call of the JavaScript API, and returns the answer. If the
    /// caller cancels it, the process has a while to release what it holds.
    pub fn call(
        worker_mode: &WorkerMode,
        call: &str,
        context: &OperationContext,
    ) -> Result<String> {
        let request = Request::Call(CallRequest {
            call: SecretText(call.to_string()),
        });
        let mut worker = Worker::start(worker_mode, request, &context.cancel)?;
        loop {
            match worker.next() {
                Ok(Response::Message(Message::Progress(progress))) => context.pass_on(progress),
                Ok(Response::Message(Message::Called { answer })) => return Ok(answer),
                Ok(_) => return Err(protocol_violation()),
                Err(error) if error.code == Code::Aborted => {
                    return worker.answer_after_cancellation().ok_or(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells a worker that carries out a call that it is cancelled, and waits for its answer. `None`
    /// if there is none in time; the worker is then ended.
    fn answer_after_cancellation(&mut self) -> Option<String> {
        let Link::Process(process) = &mut self.link else {
            return None;
        };
        process.requests = None;
        let deadline = Instant::now() + CANCEL_GRACE;
        loop {
            let frame = process.receive(&CancelToken::default(), Some(deadline));
            let Ok(Frame::Json(json)) = frame else {
                return None;
            };
            match serde_json::from_slice(&json) {
                Ok(Message::Called { answer }) => return Some(answer),
                Ok(Message::Progress(_)) => {}
                _ => return None,
            }
        }
    }

    /// Runs repairs and waits for their end. Like [`Worker::apply`], it cannot be cancelled.
    pub fn repair(worker_mode: &WorkerMode, request: RepairRequest) -> Result<Vec<Done>> {
        match Worker::start(
            worker_mode,
            Request::Repair(request),
            &CancelToken::default(),
        )?
        .next()
        {
            Ok(Response::Message(Message::Repaired { done })) => Ok(done),
            Ok(_) => Err(protocol_violation()),
            Err(error) if error.code == Code::ReaderDied => Err(Error {
                remedy:
                    "Each database is repaired as a whole or not at all: check again to see which"
                        .into(),
                ..error
            }),
            Err(error) => Err(error),
        }
    }

    fn change(worker_mode: &WorkerMode, request: Request) -> Result<Message> {
        match Worker::start(worker_mode, request, &CancelToken::default())?.next() {
            Ok(Response::Message(message)) => Ok(message),
            Ok(_) => Err(protocol_violation()),
            Err(error) if error.code == Code::ReaderDied => Err(Error {
                remedy:
                    "Run it again: the next restore or backup of this project first rolls back \
                         or completes the interrupted restore"
                        .into(),
                ..error
            }),
            Err(error) => Err(error),
        }
    }

    fn start(worker_mode: &WorkerMode, request: Request, cancel: &CancelToken) -> Result<Self> {
        let link = match worker_mode {
            WorkerMode::InProcess => Link::Thread(Thread::start(request, cancel.clone())?),
            WorkerMode::Subprocess(executable) => {
                Link::Process(Process::start(executable, &request, cancel)?)
            }
        };
        Ok(Worker {
            link,
            cancel: cancel.clone(),
        })
    }

    /// Waits for the next answer. A failure that the worker reports becomes the error of this call.
    #[allow(
        clippy::should_implement_trait,
        reason = "it fails, and it has no end of its own"
    )]
    pub fn next(&mut self) -> Result<Response> {
        let answer = match &mut self.link {
            Link::Thread(thread) => thread.next(&self.cancel)?,
            Link::Process(process) => process.next(&self.cancel)?,
        };
        match answer {
            Response::Message(Message::Failed { error }) => Err(error),
            answer => Ok(answer),
        }
    }
}

/// Creates the error for an answer that the protocol does not allow at this point.
pub fn protocol_violation() -> Error {
    mixed_releases(
        Code::ReaderProtocol,
        "The worker process sent an unexpected response".into(),
    )
}

/// Describes a worker that may belong to another release.
fn mixed_releases(code: Code, message: String) -> Error {
    Error::new(
        code,
        message,
        "Install @weavelogic/knowledge-graph-agent again, so that all its parts have the same \
         release",
    )
}

/// The server on a thread of this process.
struct Thread {
    /// Set to `None` on drop, which makes the server end.
    answers: Option<Receiver<Response>>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    fn start(request: Request, cancel: CancelToken) -> Result<Self> {
        let (sender, receiver) = bounded(CHANNEL_ANSWERS);
        // If an answer cannot be sent, the client does not wait for the result either.
        let work = move || drop(server::answer(request, &mut Channel(sender), &cancel));
        let handle = threads::start("kg-reader", work)?;
        Ok(Thread {
            answers: Some(receiver),
            handle: Some(handle),
        })
    }

    fn next(&mut self, cancel: &CancelToken) -> Result<Response> {
        loop {
            cancel.check()?;
            match self
                .answers
                .as_ref()
                .map(|answers| answers.recv_timeout(POLL_INTERVAL))
            {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(RecvTimeoutError::Timeout)) => {}
                Some(Err(RecvTimeoutError::Disconnected)) | None => {
                    return Err(Error::internal("The worker thread ended early"));
                }
            }
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.answers = None;
        if let Some(handle) = self.handle.take() {
            // The broken channel has already reported a panic.
            let _ = handle.join();
        }
    }
}

struct Channel(Sender<Response>);

impl Channel {
    fn send(&mut self, answer: Response) -> Result<()> {
        self.0.send(answer).map_err(|_| Error::aborted())
    }
}

impl ResponseSink for Channel {
    fn message(&mut self, message: Message) -> Result<()> {
        self.send(Response::Message(message))
    }

    fn data(&mut self, data: Vec<u8>) -> Result<()> {
        self.send(Response::Data(data))
    }

    fn block(&mut self, block: Vec<u8>, hash: ContentHash) -> Result<()> {
        self.send(Response::Block(block, hash))
    }
}

/// The process `kg __reader` and its pipes.
struct Process {
    family: Family,
    executable: PathBuf,
    answers: ChildStdout,
    /// Stays open until the worker is told to end: when it closes, the worker knows that this process
    /// has gone.
    requests: Option<ChildStdin>,
    stderr: Option<JoinHandle<String>>,
    /// The standard error of the worker, once the worker has ended.
    said: String,
}

impl Process {
    fn start(executable: &Path, request: &Request, cancel: &CancelToken) -> Result<Self> {
        let mut command = Command::new(executable);
        // Only a call may need the credentials of an object store.
        if !matches!(request, Request::Call(_)) {
            for name in SECRET_VARIABLES {
                command.env_remove(name);
            }
        }
        command
            .arg(WORKER_ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // The host handles Ctrl-C in its terminal.
        let mut family = Family::spawn(&mut command).map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock => threads::refused(cause),
            _ => cannot_start(executable, "could not be started", &format!(": {cause}")),
        })?;
        let (Some(requests), Some(answers), Some(stderr)) = (
            family.child.stdin.take(),
            family.child.stdout.take(),
            family.child.stderr.take(),
        ) else {
            return Err(cannot_start(executable, "has no pipes", ""));
        };
        child::widen(&answers);
        let stderr = match threads::start("kg-stderr", move || first_lines(stderr)) {
            Ok(stderr) => stderr,
            Err(error) => {
                family.kill();
                let _ = family.child.wait();
                return Err(error);
            }
        };
        let mut process = Process {
            family,
            executable: executable.to_path_buf(),
            answers,
            requests: Some(requests),
            stderr: Some(stderr),
            said: String::new(),
        };
        process.expect_greeting(cancel)?;
        // An error here means that the worker has ended. The next read reports why.
        if let Some(requests) = &mut process.requests {
            let _ = write_json(requests, request);
        }
        Ok(process)
    }

    fn expect_greeting(&mut self, cancel: &CancelToken) -> Result<()> {
        let greeting = match self.receive(cancel, Some(Instant::now() + GREETING_TIMEOUT)) {
            Ok(Frame::Json(json)) => serde_json::from_slice::<Greeting>(&json).ok(),
            Ok(_) => None,
            Err(error) if error.code == Code::ReaderDied => {
                let said = self.end();
                return Err(cannot_start(&self.executable, "ended at once", &said));
            }
            Err(error) if error.code == Code::ReaderProtocol => None,
            Err(error) => return Err(error),
        };
        let found = match greeting {
            Some(Greeting {
                protocol: PROTOCOL,
                release,
            }) if release == RELEASE => return Ok(()),
            Some(greeting) => format!(
                "is release {}, but the addon is release {RELEASE}",
                greeting.release
            ),
            None => "does not answer like a worker".to_string(),
        };
        let said = self.end();
        let message = format!("The worker {} {found}{said}", self.executable.display());
        Err(mixed_releases(Code::ReaderVersion, message))
    }

    fn next(&mut self, cancel: &CancelToken) -> Result<Response> {
        match self.receive(cancel, None)? {
            Frame::Data(data) => Ok(Response::Data(data)),
            Frame::Block(block, hash) => Ok(Response::Block(block, hash)),
            Frame::Json(json) => serde_json::from_slice(&json)
                .map(Response::Message)
                .map_err(|cause| protocol_violation().with_cause(cause)),
        }
    }

    fn receive(&mut self, cancel: &CancelToken, deadline: Option<Instant>) -> Result<Frame> {
        self.wait_readable(cancel, deadline)?;
        read_frame(&mut self.answers).map_err(|cause| match cause.kind() {
            io::ErrorKind::InvalidData => protocol_violation().with_cause(cause),
            _ => {
                self.wait_for_exit();
                let said = self.end();
                let status = self
                    .family
                    .child
                    .wait()
                    .map(|status| format!(" ({status})"))
                    .unwrap_or_default();
                Error::new(
                    Code::ReaderDied,
                    format!("The worker process ended before it was done{status}{said}"),
                    "Nothing was changed; run it again, and check the memory limits of this \
                     machine if it happens again",
                )
                .with_cause(cause)
            }
        })
    }

    fn wait_readable(&self, cancel: &CancelToken, deadline: Option<Instant>) -> Result<()> {
        loop {
            cancel.check()?;
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Err(cannot_start(&self.executable, "did not answer", ""));
            }
            match child::is_readable(&self.answers, POLL_INTERVAL) {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                Err(cause) => return Err(protocol_violation().with_cause(cause)),
            }
        }
    }

    /// Waits briefly for the worker to exit by itself after it closed its output, to obtain its
    /// exit status.
    fn wait_for_exit(&mut self) {
        let deadline = Instant::now() + EXIT_GRACE;
        while Instant::now() < deadline && matches!(self.family.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the worker and returns its standard error as part of a message.
    fn end(&mut self) -> String {
        // `kgPath` may be a script that started the worker. The wait fails only if the process has
        // already ended.
        self.family.kill();
        let _ = self.family.child.wait();
        if let Some(said) = self.stderr.take() {
            self.said = said.join().unwrap_or_default();
        }
        if self.said.is_empty() {
            String::new()
        } else {
            format!("; it said: {}", self.said)
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads standard error to its end, so that the worker never blocks on it, and keeps the first
/// bytes.
fn first_lines(mut stderr: impl Read) -> String {
    let mut said = Vec::new();
    let _ = stderr
        .by_ref()
        .take(MAX_STDERR_BYTES)
        .read_to_end(&mut said);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&said).trim().to_string()
}

fn cannot_start(executable: &Path, what: &str, said: &str) -> Error {
    Error::new(
        Code::ReaderStart,
        format!("The worker {} {what}{said}", executable.display()),
        "Check that the file exists and may be executed, or install @weavelogic/knowledge-graph-agent again",
    )
}
