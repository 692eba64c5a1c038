//! A listener, for as long as the value lives, on a thread of its own. Nothing of async leaves this file.
//!
//! One request a connection. Each has a slot, and little time: who sends slowly, or reads slowly, loses it, and keeps nobody waiting who
//! is not behind him in the queue of the operating system. Whatever he does, the loop of the service knows nothing of it.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net,
    runtime::{Builder, Runtime},
    sync::{Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::answer::Answerer;

const MOST_CONNECTIONS: u32 = 32;
const MOST_HEADER_BYTES: usize = 16 * 1024;
/// Until the header of a request is there.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Until the answer is out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Those that are being answered when it ends may take so long.
const GRACE: Duration = Duration::from_millis(250);
/// After a connection could not be accepted: the process may have no descriptor left.
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
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (stop, stopped) = oneshot::channel();
        let work = move || serve(&runtime, listener, Arc::new(answerer), stopped);
        let thread = thread::Builder::new().name("http".into()).spawn(work)?;
        Ok(Server { address, stop: Some(stop), thread: Some(thread) })
    }

    /// With the port that was found where any was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// False once it has ended by itself, which it should not.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Server {
    /// Afterwards the port is free.
    fn drop(&mut self) {
        // Both fail only where the thread is gone already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(runtime: &Runtime, listener: TcpListener, answerer: Arc<Answerer>, stopped: oneshot::Receiver<()>) {
    runtime.block_on(async {
        let Ok(listener) = net::TcpListener::from_std(listener) else { return };
        let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS as usize));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&slots), answerer));
        let _ = stopped.await;
        accepting.abort();
        let _ = timeout(GRACE, slots.acquire_many(MOST_CONNECTIONS)).await;
    });
}

async fn accept(listener: net::TcpListener, slots: Arc<Semaphore>, answerer: Arc<Answerer>) {
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let answerer = Arc::clone(&answerer);
        tokio::spawn(async move {
            // What goes wrong on a connection is its client's matter.
            let _ = timeout(PATIENCE, converse(stream, &answerer)).await;
            drop(slot);
        });
    }
}

async fn converse(stream: net::TcpStream, answerer: &Answerer) -> hyper::Result<()> {
    let answer = service_fn(|request| async move { Ok::<_, Infallible>(answerer.answer(&request)) });
    let mut connection = http1::Builder::new();
    connection.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
    connection.max_buf_size(MOST_HEADER_BYTES).keep_alive(false);
    connection.serve_connection(TokioIo::new(stream), answer).await
}
