//! An HTTP listener on a separate thread. It listens until the value is dropped. No async code
//! leaves this file.
//!
//! Each connection serves one request within a short time limit. If there are too many connections,
//! the oldest one is closed. An answer takes only a moment, so the oldest connection belongs to a
//! slow or stalled client. No client can delay the loop of the service.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::{SocketAddr, TcpListener},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    thread::JoinHandle,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net,
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::answer::Answerer;
use crate::util::threads;

const MOST_CONNECTIONS: usize = 32;
const MOST_HEADER_BYTES: usize = 16 * 1024;
/// The time limit for the header of a request.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// The time limit for a whole connection, including the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time that open connections get to finish when the server stops.
const GRACE: Duration = Duration::from_millis(250);
/// The pause after a connection could not be accepted, because the process may have no descriptor
/// left.
const PAUSE: Duration = Duration::from_millis(200);

pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(address: SocketAddr, answerer: Answerer) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let work = move || serve(&runtime, listener, Arc::new(answerer), stopped);
        let thread = threads::start("http", work).map_err(io::Error::other)?;
        Ok(Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns the bound address. It contains the actual port if port 0 was requested.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns false if the thread has ended by itself, which indicates a defect.
    pub fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Server {
    /// Stops the thread and frees the port.
    fn drop(&mut self) {
        // Both calls fail only if the thread has already ended.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    runtime: &Runtime,
    listener: TcpListener,
    answerer: Arc<Answerer>,
    mut stopped: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        let Ok(listener) = net::TcpListener::from_std(listener) else {
            return;
        };
        let mut connections = JoinSet::new();
        {
            let mut accepting = pin!(accept(&listener, &mut connections, &answerer));
            // Ends as soon as either future ends.
            poll_fn(|context| match Pin::new(&mut stopped).poll(context) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => accepting.as_mut().poll(context),
            })
            .await;
        }
        let answered = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(GRACE, answered).await;
    });
}

async fn accept(
    listener: &net::TcpListener,
    connections: &mut JoinSet<()>,
    answerer: &Arc<Answerer>,
) {
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= MOST_CONNECTIONS {
            oldest_first.pop_front().iter().for_each(AbortHandle::abort);
        }
        let answerer = Arc::clone(answerer);
        oldest_first.push_back(connections.spawn(async move {
            // Errors on a connection concern only its client.
            let _ = timeout(PATIENCE, converse(stream, &answerer)).await;
        }));
    }
}

async fn converse(stream: net::TcpStream, answerer: &Answerer) -> hyper::Result<()> {
    let answer =
        service_fn(|request| async move { Ok::<_, Infallible>(answerer.answer(&request)) });
    let mut connection = http1::Builder::new();
    connection
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE);
    connection.max_buf_size(MOST_HEADER_BYTES).keep_alive(false);
    connection
        .serve_connection(TokioIo::new(stream), answer)
        .await
}
