//! The child and its descendants form a job object. The child is in it before its first
//! instruction, so that no descendant escapes.

use std::{
    io,
    os::windows::{
        io::{AsRawHandle, FromRawHandle, OwnedHandle},
        process::CommandExt,
    },
    process::{Child, ChildStdout, Command, ExitStatus},
    ptr::{null, null_mut},
    thread,
    time::{Duration, Instant},
};

use windows_sys::Win32::{
    Foundation::{ERROR_BROKEN_PIPE, INVALID_HANDLE_VALUE},
    System::{
        Diagnostics::ToolHelp::{
            CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
        },
        JobObjects::{AssignProcessToJobObject, CreateJobObjectW, TerminateJobObject},
        Pipes::PeekNamedPipe,
        Threading::{
            CREATE_NEW_PROCESS_GROUP, CREATE_SUSPENDED, OpenThread, ResumeThread,
            THREAD_SUSPEND_RESUME,
        },
    },
};

pub struct Group(OwnedHandle);

const POLL: Duration = Duration::from_millis(1);

#[allow(unsafe_code, reason = "std has no job objects")]
pub fn spawn(command: &mut Command) -> io::Result<(Child, Group)> {
    // SAFETY: both parameters may be null.
    let job = unsafe { CreateJobObjectW(null(), null()) };
    if job.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was just created and belongs to nothing else.
    let group = Group(unsafe { OwnedHandle::from_raw_handle(job) });
    let mut child = command
        .creation_flags(CREATE_SUSPENDED | CREATE_NEW_PROCESS_GROUP)
        .spawn()?;
    // SAFETY: both handles are open.
    let is_assigned = unsafe { AssignProcessToJobObject(job, child.as_raw_handle()) } != 0;
    let started = if is_assigned {
        resume(child.id())
    } else {
        Err(io::Error::last_os_error())
    };
    if let Err(cause) = started {
        let _ = child.kill();
        let _ = child.wait();
        return Err(cause);
    }
    Ok((child, group))
}

/// Resumes the threads of a suspended process. It has only its first one.
#[allow(unsafe_code, reason = "std does not give the thread of a process")]
fn resume(process: u32) -> io::Result<()> {
    // SAFETY: the parameters are plain numbers.
    let all = unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0) };
    if all == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was just created and belongs to nothing else.
    let all = unsafe { OwnedHandle::from_raw_handle(all) };
    let mut entry = THREADENTRY32 {
        dwSize: size_of::<THREADENTRY32>() as u32,
        ..THREADENTRY32::default()
    };
    let mut resumed = false;
    // SAFETY: the handle is open, and the entry states its size.
    let mut found = unsafe { Thread32First(all.as_raw_handle(), &mut entry) };
    while found != 0 {
        if entry.th32OwnerProcessID == process {
            // SAFETY: the parameters are plain numbers.
            let thread = unsafe { OpenThread(THREAD_SUSPEND_RESUME, 0, entry.th32ThreadID) };
            if thread.is_null() {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the handle was just created and belongs to nothing else.
            let thread = unsafe { OwnedHandle::from_raw_handle(thread) };
            // SAFETY: the handle is open.
            if unsafe { ResumeThread(thread.as_raw_handle()) } == u32::MAX {
                return Err(io::Error::last_os_error());
            }
            resumed = true;
        }
        // SAFETY: as above.
        found = unsafe { Thread32Next(all.as_raw_handle(), &mut entry) };
    }
    if resumed {
        Ok(())
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

#[allow(unsafe_code, reason = "std has no job objects")]
pub fn kill(_child: &Child, group: &Group) {
    // SAFETY: the handle is open. The call fails only if all processes have already ended.
    let _ = unsafe { TerminateJobObject(group.0.as_raw_handle(), 1) };
}

/// Windows cannot wait for an anonymous pipe, so this looks again and again.
#[allow(unsafe_code, reason = "std cannot look into a pipe")]
pub fn is_readable(pipe: &ChildStdout, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let mut bytes = 0;
        // SAFETY: the handle is open, and the call only writes the number of bytes.
        let looked = unsafe {
            PeekNamedPipe(
                pipe.as_raw_handle(),
                null_mut(),
                0,
                null_mut(),
                &mut bytes,
                null_mut(),
            )
        };
        if looked == 0 {
            let cause = io::Error::last_os_error();
            let is_end = cause.raw_os_error() == Some(ERROR_BROKEN_PIPE as i32);
            return if is_end { Ok(true) } else { Err(cause) };
        }
        if bytes > 0 {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(POLL);
    }
}

pub fn widen(_pipe: &ChildStdout) {}

pub fn signal(_status: ExitStatus) -> Option<i32> {
    None
}
