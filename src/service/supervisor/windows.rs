//! A container of Windows has no process 1 with duties.

use std::process::ExitCode;

use crate::error::{Error, Result};

pub fn is_first() -> bool {
    false
}

pub fn supervise() -> Result<ExitCode> {
    Err(Error::internal("Windows needs no supervisor"))
}
