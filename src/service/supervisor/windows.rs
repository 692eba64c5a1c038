//! A container of Windows has no process 1 with duties.

use crate::error::{Error, Result};

pub fn is_first() -> bool {
    false
}

pub fn supervise() -> Result<u8> {
    Err(Error::internal("Windows needs no supervisor"))
}
