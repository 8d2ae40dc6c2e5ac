//! Handlers that nobody waits for any more.
#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::{Config, Envelope, Message, Rejection, Router, Transport, TransportError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{PATIENCE, address, pair, plain, soon, until};
use tokio::sync::Semaphore;

/// What became of the handlers, and what lets them go on.
struct Work {
    begun: AtomicUsize,
    /// One that was dropped has ended and not finished.
    ended: AtomicUsize,
    finished: AtomicUsize,
    may_finish: Semaphore,
}

struct Ends(Arc<Work>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Work {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            may_finish: Semaphore::new(0),
        })
    }

    async fn work(self: Arc<Self>, message: Message) -> Result<Bytes, Rejection> {
        let _ends = Ends(Arc::clone(&self));
        self.begun.fetch_add(1, Ordering::SeqCst);
        let permit = self.may_finish.acquire().await;
        permit.expect("it is never closed").forget();
        self.finished.fetch_add(1, Ordering::SeqCst);
        Ok(message.into_payload())
    }

    fn counts(&self) -> (usize, usize, usize) {
        let get = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (get(&self.begun), get(&self.ended), get(&self.finished))
    }

    async fn until_counts(&self, begun: usize, ended: usize, finished: usize) {
        until(|| self.counts() == (begun, ended, finished)).await;
    }

    /// `wait` can be cancelled, `finish` cannot; `upload` can, and reads its body first.
    fn router(self: &Arc<Self>) -> Router {
        let (wait, finish, upload) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        Router::new()
            .spawned("work", "wait", move |message| {
                Arc::clone(&wait).work(message)
            })
            .with_cancellation("work", "wait")
            .spawned("work", "finish", move |message| {
                Arc::clone(&finish).work(message)
            })
            .streamed("upload", "any", move |message, mut body| {
                let work = Arc::clone(&upload);
                async move {
                    let _all = body.collect(1 << 20).await;
                    work.work(message).await
                }
            })
            .with_cancellation("upload", "*")
            .inline("work", "echo", |message, reply| {
                reply.put_slice(message.payload());
                Ok(())
            })
    }
}

fn work(method: &'static str) -> Envelope<'static> {
    Envelope::new(2, "work", method, b"x").with_timeout(PATIENCE)
}

/// Whatever was sent before has been received.
async fn until_echoed(client: &Transport) {
    let echoed = soon(client.call(work("echo"))).await;
    assert_eq!(echoed.as_deref(), Ok(&b"x"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_stops_its_handler() {
    let work_done = Work::new();
    let (client, server) = pair(work_done.router(), Config::default()).await;
    let kept = client.call(work("wait"));
    let dropped: Vec<_> = (0..20).map(|_| client.call(work("wait"))).collect();
    work_done.until_counts(21, 0, 0).await;
    drop(dropped);
    work_done.until_counts(21, 20, 0).await;
    // The other one goes on, and its caller gets the answer.
    work_done.may_finish.add_permits(1);
    assert_eq!(soon(kept).await.as_deref(), Ok(&b"x"[..]));
    work_done.until_counts(21, 21, 1).await;
    until(|| server.stats().handlers == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_without_cancellation_runs_to_its_end() {
    let work_done = Work::new();
    let (client, _server) = pair(work_done.router(), Config::default()).await;
    let call = client.call(work("finish"));
    work_done.until_counts(1, 0, 0).await;
    drop(call);
    until_echoed(&client).await;
    client.shutdown();
    work_done.may_finish.add_permits(1);
    work_done.until_counts(1, 1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_stops_the_handler() {
    let work_done = Work::new();
    let (client, _server) = pair(work_done.router(), Config::default()).await;
    until_echoed(&client).await;
    // On a machine that does much else a handler may be stopped before its first step.
    let mut timeout = Duration::from_millis(50);
    while work_done.counts().0 == 0 {
        let late = soon(client.call(work("wait").with_timeout(timeout))).await;
        let is_late = matches!(late, Err(TransportError::Timeout { .. }));
        assert!(is_late, "{late:?}");
        timeout *= 2;
    }
    until(|| {
        let (begun, ended, finished) = work_done.counts();
        begun == ended && finished == 0
    })
    .await;
}

/// Nothing is read while as many handlers run as may, so the caller's word does not get through; its time limit came
/// with the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_node_stops_handlers_without_being_told() {
    let work_done = Work::new();
    let mut config = Config::default();
    config.handlers_max = 2;
    let (client, _server) = pair(work_done.router(), config).await;
    until_echoed(&client).await;
    let brief = || work("wait").with_timeout(Duration::from_secs(1));
    let calls = [client.call(brief()), client.call(brief())];
    until(|| work_done.counts().0 == 2).await;
    until_echoed(&client).await;
    drop(calls);
    work_done.until_counts(2, 2, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_stops_requests_and_no_messages() {
    let work_done = Work::new();
    let (client, server) = pair(work_done.router(), Config::default()).await;
    let call = client.call(work("wait"));
    client.send(work("wait")).expect("there is room");
    work_done.until_counts(2, 0, 0).await;
    client.shutdown();
    assert!(soon(call).await.is_err());
    work_done.until_counts(2, 1, 0).await;
    until(|| server.stats().inbound == 0).await;
    // A message has nobody who waits for it, and so nobody who gives up.
    work_done.may_finish.add_permits(1);
    work_done.until_counts(2, 2, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_handler_is_stopped_behind_its_body() {
    let work_done = Work::new();
    let (client, server) = pair(work_done.router(), Config::default()).await;
    let envelope = Envelope::new(2, "upload", "any", b"head");
    let mut sender = client.stream(envelope).expect("there is room");
    let sent = soon(sender.send(Bytes::from_static(&[7; 5000]))).await;
    assert_eq!(sent, Ok(()));
    let finish = tokio::spawn(sender.finish());
    work_done.until_counts(1, 0, 0).await;
    finish.abort();
    work_done.until_counts(1, 1, 0).await;
    until(|| server.stats().handlers == 0).await;
}

/// A node that has as many handlers as it may does not read, not even pings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_too_much_to_do_is_not_taken_for_dead() {
    let work_done = Work::new();
    let mut config = Config::default();
    config.handlers_max = 1;
    config.bulk_send_buffer_bytes = Some(64 * 1024);
    config.heartbeat_interval = Duration::from_millis(50);
    config.heartbeat_timeout = Duration::from_millis(1500);
    let heartbeats_missed = 3 * config.heartbeat_timeout;
    let (client, _server) = pair(work_done.router(), config).await;
    let first = client.call(work("finish"));
    work_done.until_counts(1, 0, 0).await;
    let second = client.call(work("finish"));
    // More than sockets take, so that writing makes no progress either.
    let large = Bytes::from(vec![7; 64 * 1024]);
    for _ in 0..40 {
        let message = Envelope::new(2, "work", "finish", large.clone());
        client.send(message).expect("there is room");
    }
    tokio::time::sleep(heartbeats_missed).await;
    let link = client.peer_stats(2).expect("known").bulk;
    assert!(link.queued_bytes > 0, "{link:?}");
    work_done.may_finish.add_permits(42);
    assert_eq!(soon(first).await.as_deref(), Ok(&b"x"[..]));
    assert_eq!(soon(second).await.as_deref(), Ok(&b"x"[..]));
    work_done.until_counts(42, 42, 42).await;
    let link = client.peer_stats(2).expect("known").bulk;
    assert_eq!(link.connects, 1, "{link:?}");
}

/// Requests behind a batch that may not be started yet wait with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_given_up_is_not_begun() {
    let work_done = Work::new();
    let mut config = Config::default();
    config.handlers_max = 1;
    let (client, server) = pair(work_done.router(), config).await;
    let first = client.call(work("finish"));
    work_done.until_counts(1, 0, 0).await;
    let sent = || client.peer_stats(2).expect("known").bulk.bytes_sent;
    let before = sent();
    // From here on nothing is read until the first has ended; then all of this at once.
    let method = client.method(2, "work", "finish").expect("a known peer");
    let mut batch = method.batch();
    for _ in 0..3 {
        batch.push(&b"y"[..]).expect("it is empty");
    }
    soon(batch.flush()).await.expect("there is room");
    let given_up = client.call(work("finish"));
    let kept = client.call(work("finish"));
    drop(given_up);
    // Three messages of a byte in one frame, two requests of a byte, a cancellation.
    until(|| sent() == before + 16 + 3 * 3 + 2 * 17 + 16).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    work_done.may_finish.add_permits(5);
    assert_eq!(soon(first).await.as_deref(), Ok(&b"x"[..]));
    assert_eq!(soon(kept).await.as_deref(), Ok(&b"x"[..]));
    work_done.until_counts(5, 5, 5).await;
    until(|| server.stats().handlers == 0).await;
}

/// How long the caller waits, in milliseconds.
fn tell_limit(message: &Message) -> Bytes {
    let limit = message.time_limit().map(|limit| limit.as_millis());
    format!("{limit:?}").into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_limits_and_cancellations_go_along_with_what_is_relayed() {
    let work_done = Work::new();
    let (told_of, mut limits) = tokio::sync::mpsc::unbounded_channel();
    let router = work_done
        .router()
        .spawned("limit", "told", |message| async move {
            Ok(tell_limit(&message))
        })
        .one_way("limit", "sent", move |message| {
            // The test has ended if nobody listens.
            let _ = told_of.send(message.time_limit());
        });
    let last = plain(3).router(router).listen("127.0.0.1:0");
    let last = last.start().await.expect("loopback can be listened on");
    let next = plain(2).peer(3, address(&last)).start().await;
    let next = Arc::new(next.expect("starts"));
    let relay = Arc::clone(&next);
    let router = Router::new()
        .fallback(move |message| {
            let relay = Arc::clone(&relay);
            async move { relayed(&relay, &message).await }
        })
        .with_cancellation("work", "*");
    let middle = plain(2).router(router).listen("127.0.0.1:0");
    let middle = middle.start().await.expect("loopback can be listened on");
    let client = plain(1).peer(2, address(&middle)).peer(3, address(&last));
    let client = client.start().await.expect("starts");

    let asked = Envelope::new(2, "limit", "told", b"").with_timeout(Duration::from_secs(20));
    let told = soon(client.call(asked)).await;
    assert_eq!(told.as_deref(), Ok(&b"Some(20480)"[..]));
    // A message has nobody who waits, whatever its envelope says.
    let message = Envelope::new(3, "limit", "sent", b"").with_timeout(PATIENCE);
    client.send(message).expect("there is room");
    assert_eq!(soon(limits.recv()).await, Some(None));

    let call = client.call(work("wait"));
    work_done.until_counts(1, 0, 0).await;
    drop(call);
    work_done.until_counts(1, 1, 0).await;
}

async fn relayed(relay: &Transport, message: &Message) -> Result<Bytes, Rejection> {
    use perf_transport::RejectionCode;
    let answer = relay.forward_call(3, message).await;
    answer.map_err(|error| Rejection::new(RejectionCode::Internal, error.to_string()))
}
