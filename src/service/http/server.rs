//! A listener, for as long as the value lives, on a thread of its own. Nothing of async leaves this file.
//!
//! One request a connection, and little time for each. Where there are too many, the oldest one makes room: an answer takes no longer than
//! a moment, so it is of somebody who sends slowly or reads slowly, and keeps nobody waiting. Whatever he does, the loop of the
//! service knows nothing of it.

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

    /// With the port that was found where any was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// False once it has ended by itself, which it should not.
    pub fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
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
            // Whichever ends first.
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
            // What goes wrong on a connection is its client's matter.
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
