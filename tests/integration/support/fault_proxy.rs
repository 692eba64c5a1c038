//! A proxy in front of an object store that fails once in a chosen way, and notes all requests.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What happens to one request.
pub enum Fault {
    /// The server carries it out, but the connection ends before the answer.
    LoseAnswer,
    /// The body of the answer ends after so many bytes.
    CutBody(usize),
    /// The server never sees it. The answer is this, from its status line on.
    Answer(String),
    /// The server never sees it, and no answer comes.
    Hang,
}

impl Fault {
    /// An answer as S3 makes it.
    pub fn refusal(status: &str, headers: &str, body: &str) -> Fault {
        Fault::Answer(format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

type Rule = Box<dyn Fn(&Request) -> bool + Send>;

#[derive(Debug, Clone)]
pub struct Request {
    /// For example `PUT /bucket/key?query`.
    pub line: String,
    /// All headers, in lower case.
    pub head: String,
}

#[derive(Default)]
struct State {
    faults: Mutex<Vec<(Rule, Fault)>>,
    requests: Mutex<Vec<Request>>,
}

pub struct FaultProxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl FaultProxy {
    pub fn new(server: SocketAddr) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        // The thread and its connections end with the test process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(client, server, &state));
            }
        });
        FaultProxy { address, state }
    }

    /// Lets the next request fail whose line contains that text.
    pub fn fail(&self, line: &'static str, fault: Fault) {
        self.fail_if(move |request| request.line.contains(line), fault);
    }

    pub fn fail_if(&self, rule: impl Fn(&Request) -> bool + Send + 'static, fault: Fault) {
        self.state
            .faults
            .lock()
            .unwrap()
            .push((Box::new(rule), fault));
    }

    /// Returns the requests so far whose line contains that text.
    pub fn requests(&self, line: &str) -> Vec<Request> {
        let requests = self.state.requests.lock().unwrap();
        let matching = requests
            .iter()
            .filter(|request| request.line.contains(line));
        matching.cloned().collect()
    }

    /// Returns whether all faults happened.
    pub fn is_done(&self) -> bool {
        self.state.faults.lock().unwrap().is_empty()
    }
}

/// Serves one request. Each has its own connections, so that the end of an answer is plain.
fn serve(client: TcpStream, server: SocketAddr, state: &State) -> Option<()> {
    let mut from_client = BufReader::new(client.try_clone().ok()?);
    let head = read_head(&mut from_client)?;
    let body = read_body(&head, &mut from_client).ok()?;
    let (first, headers) = head.split_once("\r\n")?;
    // A client that knows this as its proxy sends whole URLs.
    let (method, target) = first.strip_suffix(" HTTP/1.1")?.split_once(' ')?;
    let target = match target.strip_prefix("http://") {
        Some(rest) => &rest[rest.find('/')?..],
        None => target,
    };
    let request = Request {
        line: format!("{method} {target}"),
        head: headers.to_ascii_lowercase(),
    };
    state.requests.lock().unwrap().push(request.clone());
    let fault = {
        let mut faults = state.faults.lock().unwrap();
        let at = faults.iter().position(|(rule, _)| rule(&request));
        at.map(|at| faults.remove(at).1)
    };
    let mut client = client;
    match &fault {
        Some(Fault::Answer(answer)) => {
            client.write_all(answer.as_bytes()).ok()?;
            return client.shutdown(Shutdown::Write).ok();
        }
        Some(Fault::Hang) => {
            let _ = from_client.read(&mut [0]);
            return None;
        }
        _ => {}
    }
    let mut upstream = TcpStream::connect(server).ok()?;
    write!(
        upstream,
        "{} HTTP/1.1\r\nconnection: close\r\n{headers}",
        request.line
    )
    .ok()?;
    upstream.write_all(&body).ok()?;
    let mut from_server = BufReader::new(upstream);
    let answer = read_head(&mut from_server)?;
    match fault {
        Some(Fault::LoseAnswer) => {
            io::copy(&mut from_server, &mut io::sink()).ok()?;
            client.shutdown(Shutdown::Both).ok()
        }
        Some(Fault::CutBody(size)) => {
            client.write_all(answer.as_bytes()).ok()?;
            io::copy(&mut from_server.take(size as u64), &mut client).ok()?;
            client.shutdown(Shutdown::Both).ok()
        }
        _ => {
            client.write_all(answer.as_bytes()).ok()?;
            io::copy(&mut from_server, &mut client).ok()?;
            client.shutdown(Shutdown::Write).ok()
        }
    }
}

/// Reads up to the empty line.
fn read_head(stream: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        (stream.read_line(&mut head).ok()? > 0).then_some(())?;
    }
    Some(head)
}

fn read_body(head: &str, stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length:")?
            .trim()
            .parse()
            .ok()
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok(body)
}
