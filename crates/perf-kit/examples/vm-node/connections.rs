//! The connections of clients: how many, for how long, and what is done at the bound.
//!
//! A connection is *busy* from a request's head to its answer, and *idle* otherwise, also while a head comes in piece by
//! piece or an answer goes out to a client that does not read. At the bound the connection that has been idle longest is closed
//! for a new one, so clients that say nothing do not keep out those that work. Descriptors beyond the bound are kept for
//! the log, its snapshots and the peers.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::worded::Worded;

/// Connections at once, however many descriptors there are: each takes some 20 KiB.
const CONNECTIONS_MAX: u64 = 4096;
/// Descriptors that are kept for the log, snapshots, peers and the runtime.
const RESERVE: u64 = 256;
/// The least number of connections with which a node starts.
const CONNECTIONS_MIN: u64 = 16;
/// How long a connection may be idle.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Bytes that are read before they are understood: a whole head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the same trouble is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// How long requests that are under way may take when the node stops.
const STOP_MAX: Duration = Duration::from_secs(2);

/// How many connections the process may have open, by the limit of its open files. Raises the soft limit to the hard one.
///
/// # Errors
///
/// The limit does not leave enough for the reserve.
pub(crate) fn bound() -> Result<u64> {
    bound_of(files_max())
}

fn bound_of(files: u64) -> Result<u64> {
    let needed = RESERVE + CONNECTIONS_MIN;
    if files < needed {
        bail!(
            "this process may open {files} files, and a node needs {needed}: raise the limit, for instance by `ulimit -n 4096`"
        );
    }
    Ok((files - RESERVE).min(CONNECTIONS_MAX))
}

#[cfg(unix)]
fn files_max() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        // Then it stays as it was.
        Err(_) => limit.current,
    };
    current.unwrap_or(u64::MAX)
}

#[cfg(not(unix))]
fn files_max() -> u64 {
    u64::MAX
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle {
        since: Instant,
    },
    Busy,
    /// It was idle and is to make room.
    Leaving,
}

impl State {
    fn idle_since(self) -> Option<Instant> {
        match self {
            Self::Idle { since } => Some(since),
            Self::Busy | Self::Leaving => None,
        }
    }

    fn idle() -> Self {
        Self::Idle {
            since: Instant::now(),
        }
    }
}

/// A connection, as the others see it.
#[derive(Debug)]
struct Connection {
    state: Mutex<State>,
    /// Another one needs its place: it ends at once, unless a request has come in.
    make_room: Notify,
    /// The node stops: it ends once the request that is under way is answered.
    finish: Notify,
}

/// All open connections.
#[derive(Debug)]
struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    room: Arc<Semaphore>,
}

impl Connections {
    /// Asks the connection that has been idle longest to close. `false` if all are busy.
    fn close_idle(&self) -> bool {
        let open = self.open.lock();
        let idle = open
            .values()
            .filter_map(|connection| Some((connection.state.lock().idle_since()?, connection)))
            .min_by_key(|(since, _)| *since)
            .map(|(_, connection)| connection);
        if let Some(connection) = idle {
            let mut state = connection.state.lock();
            if state.idle_since().is_some() {
                // Not chosen again before it is gone.
                *state = State::Leaving;
            }
            connection.make_room.notify_one();
        }
        idle.is_some()
    }

    /// A place for one more connection: free at once, after an idle one has closed, or after a busy one has.
    async fn place(&self, log: &mut Log) -> OwnedSemaphorePermit {
        loop {
            if let Ok(place) = Arc::clone(&self.room).try_acquire_owned() {
                return place;
            }
            let what = if self.close_idle() {
                "the one that is idle longest makes room"
            } else {
                "none is idle, so new ones wait"
            };
            log.say(&format!("as many clients are connected as may be; {what}"));
            let freed = Arc::clone(&self.room).acquire_owned();
            if let Ok(Ok(place)) = tokio::time::timeout(ACCEPT_PAUSE, freed).await {
                return place;
            }
        }
    }
}

/// Says the same once in a while.
#[derive(Default)]
struct Log {
    last: Option<(String, Instant)>,
}

impl Log {
    fn say(&mut self, text: &str) {
        let is_known = self
            .last
            .as_ref()
            .is_some_and(|(last, at)| last == text && at.elapsed() < LOG_EVERY);
        if !is_known {
            eprintln!("{text}");
            self.last = Some((text.to_owned(), Instant::now()));
        }
    }
}

/// Answers clients until `stop` resolves; then waits for requests that are under way.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    bound: u64,
    stop: impl Future<Output = ()>,
) {
    let connections = Arc::new(Connections {
        open: Mutex::default(),
        room: Arc::new(Semaphore::new(
            usize::try_from(bound).unwrap_or(usize::MAX >> 4),
        )),
    });
    let mut tasks = JoinSet::new();
    let (mut log, mut next) = (Log::default(), 0);
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((stream, connections.place(&mut log).await))
        };
        tokio::select! {
            () = &mut stop => break,
            accepted = accepted => match accepted {
                Ok((stream, place)) => {
                    let work = one(next, stream, router.clone(), Arc::clone(&connections), place);
                    tasks.spawn(work);
                    next += 1;
                }
                Err(error) => {
                    log.say(&format!("a client's connection cannot be accepted: {}", in_words(&error)));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    for connection in connections.open.lock().values() {
        connection.finish.notify_one();
    }
    let ended = async { while tasks.join_next().await.is_some() {} };
    // What takes longer gets no answer, and its client asks another node.
    let _ = tokio::time::timeout(STOP_MAX, ended).await;
}

fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        // ENFILE and EMFILE
        Some(23 | 24) => format!("{error}; raise the limit of open files"),
        _ => error.to_string(),
    }
}

/// One connection.
async fn one(
    number: u64,
    stream: TcpStream,
    router: Router,
    connections: Arc<Connections>,
    place: OwnedSemaphorePermit,
) {
    // Without it an answer waits for the client's acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let connection = Arc::new(Connection {
        state: Mutex::new(State::idle()),
        make_room: Notify::new(),
        finish: Notify::new(),
    });
    connections
        .open
        .lock()
        .insert(number, Arc::clone(&connection));
    let inner = TowerToHyperService::new(router);
    let seen = Arc::clone(&connection);
    let service = service_fn(move |request| {
        *seen.state.lock() = State::Busy;
        let (answer, seen) = (inner.call(request), Arc::clone(&seen));
        async move {
            let answer = answer.await;
            *seen.state.lock() = State::idle();
            answer
        }
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let work = builder.serve_connection(Worded::new(TokioIo::new(stream)), service);
    tokio::pin!(work);
    tokio::select! {
        // An error is the client's: it went away, or does not speak HTTP.
        _ = work.as_mut() => {}
        () = until_idle_for_long(&connection) => {}
        () = connection.make_room.notified() => {
            // A request that has come in meanwhile gets its answer.
            if *connection.state.lock() != State::Leaving {
                work.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(STOP_MAX, work).await;
            }
        }
        () = connection.finish.notified() => {
            // A request that is under way gets its answer, and no more follow.
            work.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(STOP_MAX, work).await;
        }
    }
    connections.open.lock().remove(&number);
    drop(place);
}

/// Resolves when the connection has been idle for too long.
async fn until_idle_for_long(connection: &Connection) {
    loop {
        let since = connection.state.lock().idle_since();
        let look_at = since.unwrap_or_else(Instant::now) + IDLE_MAX;
        tokio::time::sleep_until(look_at.into()).await;
        let since = connection.state.lock().idle_since();
        if since.is_some_and(|since| since.elapsed() >= IDLE_MAX) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;

    #[test]
    fn descriptors_are_kept_in_reserve() {
        assert_eq!(bound_of(1024).ok(), Some(1024 - RESERVE));
        assert_eq!(bound_of(u64::MAX).ok(), Some(CONNECTIONS_MAX));
        assert!(bound_of(RESERVE + CONNECTIONS_MIN).is_ok());
        let refused = bound_of(RESERVE + CONNECTIONS_MIN - 1).expect_err("it is too few");
        assert!(refused.to_string().contains("ulimit -n"), "{refused}");
    }

    struct Server {
        address: std::net::SocketAddr,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn server(router: Router, bound: u64) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("it is free");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopping) = oneshot::channel();
        let task = tokio::spawn(serve(listener, router, bound, async move {
            let _ = stopping.await;
        }));
        Server {
            address,
            stop,
            task,
        }
    }

    async fn ask(stream: &mut TcpStream) -> String {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.expect("it is open");
        let mut buffer = vec![0; 1024];
        let length = stream.read(&mut buffer).await.expect("it is open");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[tokio::test]
    async fn the_connection_that_is_idle_longest_makes_room() {
        let router = Router::new().route("/", get(|| async { "here" }));
        let server = server(router, 2).await;
        let open = || async {
            TcpStream::connect(server.address)
                .await
                .expect("it listens")
        };
        let mut silent = open().await;
        silent.write_all(b"GET / HT").await.expect("it is open");
        let mut works = open().await;
        assert!(ask(&mut works).await.ends_with("here"));
        let mut third = open().await;
        assert!(ask(&mut third).await.ends_with("here"));
        let mut byte = [0];
        let ended = silent.read(&mut byte).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert!(ask(&mut works).await.ends_with("here"));
    }

    #[tokio::test]
    async fn a_request_that_is_under_way_is_answered_when_the_node_stops() {
        let (arrived, arriving) = oneshot::channel();
        let (go, going) = oneshot::channel::<()>();
        let once = Arc::new(Mutex::new(Some((arrived, going))));
        let handler = move || async move {
            let (arrived, going) = once.lock().take().expect("it is asked once");
            let _ = arrived.send(());
            let _ = going.await;
            "late"
        };
        let server = server(Router::new().route("/", get(handler)), 2).await;
        let mut stream = TcpStream::connect(server.address)
            .await
            .expect("it listens");
        let answer = tokio::spawn(async move { ask(&mut stream).await });
        arriving.await.expect("the request arrives");
        server.stop.send(()).expect("it runs");
        go.send(()).expect("the handler waits");
        assert!(answer.await.expect("no panic").ends_with("late"));
        server.task.await.expect("no panic");
    }
}
