use std::{path::Path, sync::mpsc::channel};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    error::{Error, Result},
    util::threads,
};

pub fn watch(mut handler: impl FnMut() + Send + 'static) -> Result<()> {
    let (tell, told) = channel();
    // If no thread is available, the signals keep their meaning.
    threads::start("kg-signals", move || {
        match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
            Err(cause) => drop(tell.send(cause)),
            Ok(mut signals) => {
                drop(tell);
                signals.forever().for_each(|_| handler());
            }
        }
    })?;
    match told.recv() {
        Ok(cause) => Err(Error::io(
            "watch",
            Path::new("the signals of this process"),
            cause,
        )),
        Err(_) => Ok(()),
    }
}
