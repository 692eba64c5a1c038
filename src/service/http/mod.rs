//! The HTTP interface of the service: `/healthz`, `/readyz`, `/metrics` (`docs/guide/monitor.md`).
//!
//! ```text
//! settings ─▶ Http (part of the loop: chooses the address, retries) ─▶ server (a thread)
//! loop ─▶ state ─▶ answer ─▶ server
//! ```
//!
//! Backups matter more than metrics. If an address is not available, the service logs this once,
//! keeps working, and retries. The address is recorded in `.kg/cache/` for `kg serve --status`.

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
/// The maximum size of the record. A larger file was not written by a service.
const MAX_BYTES: u64 = 64 * 1024;
const RETRY: Duration = Duration::from_secs(2);

/// The address at which a service listens or tries to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    pub address: SocketAddr,
    /// Why the service does not listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The recorded file. It names its service, so that a record of an earlier service is ignored.
#[derive(Serialize, Deserialize)]
struct Record {
    service: Holder,
    /// `None` if HTTP is turned off.
    listen: Option<Listening>,
}

impl Listening {
    /// Returns the record of the service `holder`. The outer `None` means that the service has
    /// written no record yet.
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
    /// The last state that was logged and recorded.
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

    /// Listens on the wanted address if it is available.
    pub fn follow(&mut self, wanted: Listen) {
        let is_new = self.wanted != Some(wanted);
        let is_down = !self.server.as_ref().is_some_and(Server::is_alive);
        if !is_new && (!is_down || self.tried_at.elapsed() < RETRY) {
            return;
        }
        // Stops the old server first, because the new one may use the same port.
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
        // 127.0.0.1 may be written as an IPv6 address.
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
                "warning: the address of the service could not be recorded: {error}"
            ));
        }
        self.log.line(&match listening {
            None => "does not answer over HTTP: `backup.listen` is off".to_string(),
            Some(Listening {
                address,
                error: None,
            }) => format!("answers on http://{address}"),
            Some(Listening {
                address,
                error: Some(error),
            }) => format!(
                "warning: could not listen on {address}: {error}; trying again. To use another \
                 port, run `kg config set backup.listen PORT`"
            ),
        });
    }

    fn record(&self, listening: &Option<Listening>) -> Result<()> {
        let path = path(self.project);
        let dir = path.parent().unwrap_or(&path);
        atomic_file::create_unversioned_dirs(dir)
            .map_err(|cause| Error::io("create", dir, cause))?;
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
