//! The service over HTTP: `/healthz`, `/readyz`, `/metrics` (`docs/guide/monitor.md`).
//!
//! ```text
//! settings ─▶ Http (the loop's side: where to listen, tried again and again) ─▶ server (a thread) ─▶ answer ◀─ board ◀─ the loop
//! ```
//!
//! Backups matter more than metrics: an address that is not to be had is said once, and tried again while the service works. Where it
//! listens stands in `.kg/cache/`, for `kg serve --status`.

mod answer;
mod server;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::{answer::Answerer, server::Server};
use super::{Holder, Log, state::ServiceState};
use crate::{
    config::listen::Listen,
    error::{self, Error, Result},
    project::Project,
    util::{atomic_file, regular_file},
};

const FILE: &str = "backup-service.json";
/// A longer file is none of a service.
const MAX_BYTES: u64 = 64 * 1024;
const RETRY: Duration = Duration::from_secs(2);

/// Where a service listens, or wants to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    pub address: SocketAddr,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The file: of one service, so that nothing of an earlier one is believed.
#[derive(Serialize, Deserialize)]
struct Record {
    service: Holder,
    /// `None` where that is turned off.
    listen: Option<Listening>,
}

impl Listening {
    /// Of the service that `holder` is; the outer `None` where it has not said so yet.
    pub fn find(project: &Project, holder: &Holder) -> Option<Option<Listening>> {
        let text = regular_file::read_if_there(&path(project), MAX_BYTES).ok()??;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (record.service == *holder).then_some(record.listen)
    }
}

pub struct Http<'a> {
    pub project: &'a Project,
    pub holder: &'a Holder,
    pub log: &'a Log,
    pub board: Arc<ServiceState>,
    wanted: Option<Listen>,
    server: Option<Server>,
    tried_at: Instant,
    /// What was said last.
    said: Option<Option<Listening>>,
}

impl<'a> Http<'a> {
    pub fn new(
        project: &'a Project,
        holder: &'a Holder,
        log: &'a Log,
        board: Arc<ServiceState>,
    ) -> Self {
        Http {
            project,
            holder,
            log,
            board,
            wanted: None,
            server: None,
            tried_at: Instant::now(),
            said: None,
        }
    }

    /// Listens where it is wanted, if that can be had.
    pub fn follow(&mut self, wanted: Listen) {
        let is_new = self.wanted != Some(wanted);
        let is_down = !self.server.as_ref().is_some_and(Server::is_alive);
        if !is_new && (!is_down || self.tried_at.elapsed() < RETRY) {
            return;
        }
        // Before the next begins: it may be of the same port.
        self.server = None;
        (self.wanted, self.tried_at) = (Some(wanted), Instant::now());
        let listening = match wanted {
            Listen::Off => None,
            Listen::At(address) => Some(self.start(address)),
        };
        if self.said.as_ref() != Some(&listening) {
            self.say(&listening);
            self.said = Some(listening);
        }
    }

    fn start(&mut self, address: SocketAddr) -> Listening {
        // 127.0.0.1 may be written as one of IPv6.
        let is_private = address.ip().to_canonical().is_loopback();
        let answerer = Answerer {
            board: Arc::clone(&self.board),
            is_private,
        };
        match Server::start(address, answerer) {
            Ok(server) => {
                let address = server.address();
                self.server = Some(server);
                Listening {
                    address,
                    error: None,
                }
            }
            Err(cause) => Listening {
                address,
                error: Some(error::plain(&cause)),
            },
        }
    }

    fn say(&self, listening: &Option<Listening>) {
        if let Err(error) = self.record(listening) {
            self.log.line(&format!(
                "warning: where the service listens could not be written down: {error}"
            ));
        }
        self.log.line(&match listening {
            None => "answers no HTTP: `backup.listen` is off".to_string(),
            Some(Listening { address, error: None }) => format!("answers on http://{address}"),
            Some(Listening { address, error: Some(error) }) => format!(
                "warning: could not listen on {address}: {error}; tries again. Another port: `kg config set backup.listen PORT`"
            ),
        });
    }

    fn record(&self, listening: &Option<Listening>) -> Result<()> {
        let path = path(self.project);
        let dir = path.parent().unwrap_or(&path);
        atomic_file::create_dirs(dir).map_err(|cause| Error::io("create", dir, cause))?;
        let record = Record {
            service: self.holder.clone(),
            listen: listening.clone(),
        };
        atomic_file::write(
            &path,
            &serde_json::to_vec_pretty(&record).unwrap_or_default(),
        )
    }
}

fn path(project: &Project) -> PathBuf {
    project.state_dir().join("cache").join(FILE)
}
