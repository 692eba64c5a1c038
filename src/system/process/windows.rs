use windows_sys::Win32::System::Console::FreeConsole;

/// Windows has neither limit.
pub fn lift_limits() {}

#[allow(unsafe_code, reason = "std has no such call")]
pub fn leave_terminal() {
    // SAFETY: the call has no parameters. It fails only for a process without a console.
    let _ = unsafe { FreeConsole() };
}
