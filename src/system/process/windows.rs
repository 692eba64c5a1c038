use std::{
    io,
    os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle},
    process::{self, Command},
};

use windows_sys::Win32::{
    Foundation::INVALID_HANDLE_VALUE,
    System::{
        Console::FreeConsole,
        Diagnostics::ToolHelp::{
            CreateToolhelp32Snapshot, PROCESSENTRY32W, Process32FirstW, Process32NextW,
            TH32CS_SNAPPROCESS,
        },
    },
};

/// Windows has neither limit.
pub fn lift_limits() {}

#[allow(unsafe_code, reason = "std has no such call")]
pub fn leave_terminal() {
    // SAFETY: the call has no parameters. It fails only for a process without a console.
    let _ = unsafe { FreeConsole() };
}

#[allow(unsafe_code, reason = "std has no such call")]
pub fn parent_id() -> u32 {
    // SAFETY: the parameters are plain numbers.
    let all = unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0) };
    if all == INVALID_HANDLE_VALUE {
        return 0;
    }
    // SAFETY: the handle was just created and belongs to nothing else.
    let all = unsafe { OwnedHandle::from_raw_handle(all) };
    let mut entry = PROCESSENTRY32W {
        dwSize: size_of::<PROCESSENTRY32W>() as u32,
        ..PROCESSENTRY32W::default()
    };
    // SAFETY: the handle is open, and the entry states its size.
    let mut found = unsafe { Process32FirstW(all.as_raw_handle(), &mut entry) };
    while found != 0 {
        if entry.th32ProcessID == process::id() {
            return entry.th32ParentProcessID;
        }
        // SAFETY: as above.
        found = unsafe { Process32NextW(all.as_raw_handle(), &mut entry) };
    }
    0
}

/// A process of Windows cannot become another program, so this one waits for it and ends with its
/// status.
pub fn give_place_to(command: &mut Command) -> io::Error {
    match command.status() {
        Ok(status) => process::exit(status.code().unwrap_or(1)),
        Err(cause) => cause,
    }
}
