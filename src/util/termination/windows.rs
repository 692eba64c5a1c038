use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use windows_sys::Win32::System::Console::SetConsoleCtrlHandler;

use crate::error::{Error, Result};

type Handler = Box<dyn FnMut() + Send>;

static HANDLER: Mutex<Option<Handler>> = Mutex::new(None);

#[allow(unsafe_code, reason = "std has no such call")]
pub fn watch(handler: impl FnMut() + Send + 'static) -> Result<()> {
    *HANDLER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(handler));
    // SAFETY: the function has the type that the call needs, and lives as long as the process.
    if unsafe { SetConsoleCtrlHandler(Some(on_event), 1) } == 0 {
        let cause = io::Error::last_os_error();
        return Err(Error::io(
            "watch",
            Path::new("the signals of this process"),
            cause,
        ));
    }
    Ok(())
}

/// Windows calls this on a thread of its own. Every event asks this process to end.
#[allow(unsafe_code, reason = "Windows calls it")]
unsafe extern "system" fn on_event(_event: u32) -> i32 {
    let mut handler = HANDLER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handler) = handler.as_mut() {
        handler();
    }
    1
}
