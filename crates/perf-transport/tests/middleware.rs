//! Layers of `tower` around handlers and calls.

#![cfg(all(feature = "tower", not(perf_loom)))]

mod support;

use bytes::Bytes;
use perf_transport::{
    Config, Envelope, HandlerService, Rejection, RejectionCode, RemoteMethod, Request, Router,
    TransportError,
};
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use support::{address, pair, plain, soon, until};
use tower::retry::Policy;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

/// Lets nodes use the methods that they may.
#[derive(Clone)]
struct Authorise {
    may: fn(u64, &str, &str) -> bool,
}

#[derive(Clone)]
struct Authorised<S> {
    inner: S,
    may: fn(u64, &str, &str) -> bool,
}

impl<S> Layer<S> for Authorise {
    type Service = Authorised<S>;

    fn layer(&self, inner: S) -> Authorised<S> {
        let may = self.may;
        Authorised { inner, may }
    }
}

type Answered = Pin<Box<dyn Future<Output = Result<Bytes, Rejection>> + Send>>;

impl<S> Service<Request> for Authorised<S>
where
    S: Service<Request, Response = Bytes, Error = Rejection>,
    S::Future: Send + 'static,
{
    type Response = Bytes;
    type Error = Rejection;
    type Future = Answered;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Answered {
        let message = &request.message;
        if !(self.may)(message.from(), message.service(), message.method()) {
            let no = Rejection::new(RejectionCode::Forbidden, "this node may not");
            return Box::pin(ready(Err(no)));
        }
        Box::pin(self.inner.call(request))
    }
}

/// Notes how long each handler took.
#[derive(Clone, Default)]
struct Timing(Arc<Mutex<Vec<(String, Duration)>>>);

#[derive(Clone)]
struct Timed<S>(S, Timing);

impl<S> Layer<S> for Timing {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed(inner, self.clone())
    }
}

impl<S> Service<Request> for Timed<S>
where
    S: Service<Request, Response = Bytes, Error = Rejection>,
    S::Future: Send + 'static,
{
    type Response = Bytes;
    type Error = Rejection;
    type Future = Answered;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Answered {
        let (began, times) = (Instant::now(), self.1.clone());
        let method = request.message.method().to_owned();
        let handled = self.0.call(request);
        Box::pin(async move {
            let outcome = handled.await;
            let mut times = times.0.lock().expect("no panics");
            times.push((method, began.elapsed()));
            outcome
        })
    }
}

fn router(seen: &Arc<AtomicUsize>) -> Router {
    let (one_way, by_ref) = (Arc::clone(seen), Arc::clone(seen));
    Router::new()
        .inline("vm", "inline", |message, reply| {
            reply.put_slice(b"in");
            reply.set(message.payload().clone());
            Ok(())
        })
        .spawned("vm", "spawned", |message| async move {
            Ok(message.into_payload())
        })
        .streamed("vm", "streamed", |_, mut body| async move {
            Ok(body.collect(100).await.unwrap_or_default())
        })
        .watch("vm", "watch", |message, mut answer| async move {
            let sent = answer.send(message.into_payload()).await;
            sent.map_err(|_| Rejection::new(RejectionCode::Internal, "gone"))
        })
        .exchange("vm", "exchange", |_, mut body, mut answer| async move {
            while let Some(Ok(item)) = body.next_item().await {
                answer.send(item).await.expect("it is read");
            }
            Ok(())
        })
        .one_way("vm", "one_way", move |message| {
            assert_eq!(
                one_way.fetch_add(1, Ordering::SeqCst),
                usize::from(message.payload()[0])
            );
        })
        .one_way_ref("vm", "one_way_ref", move |message| {
            assert_eq!(
                by_ref.fetch_add(1, Ordering::SeqCst),
                usize::from(message.payload()[0])
            );
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_see_all_that_handlers_get_and_decide() {
    let seen = Arc::new(AtomicUsize::new(0));
    let timing = Timing::default();
    let layers = ServiceBuilder::new()
        .layer(timing.clone())
        .layer(Authorise {
            may: |node, service, _| node == 1 && service == "vm",
        })
        .into_inner();
    let router = router(&seen)
        .inline("secret", "key", |_, _| Ok(()))
        .layer(layers);
    let (client, server) = pair(router, Config::default()).await;
    let other = plain(3).peer(2, address(&server)).start().await;
    let other = other.expect("starts");
    let forbidden = |error: &TransportError| {
        let code = RejectionCode::Forbidden;
        matches!(error, TransportError::PeerRejected { code: found, .. } if *found == code)
    };
    for (method, reply) in [("inline", b"inx".to_vec()), ("spawned", b"x".to_vec())] {
        let envelope = Envelope::new(2, "vm", method, b"x");
        assert_eq!(
            soon(client.call(envelope.clone())).await.as_deref(),
            Ok(&reply[..])
        );
        let refused = soon(other.call(envelope))
            .await
            .expect_err("node 3 may not");
        assert!(forbidden(&refused), "{refused}");
    }
    let refused = soon(client.call(Envelope::new(2, "secret", "key", b"x"))).await;
    assert!(forbidden(&refused.expect_err("nobody may")));
    let mut body = client
        .stream(Envelope::new(2, "vm", "streamed", b""))
        .expect("room");
    soon(body.send(Bytes::from_static(b"body")))
        .await
        .expect("it is read");
    assert_eq!(soon(body.finish()).await.as_deref(), Ok(&b"body"[..]));
    let mut answer = client
        .watch(Envelope::new(2, "vm", "watch", b"item"))
        .expect("room");
    let item = soon(answer.next()).await.expect("an item");
    assert_eq!(item.as_deref(), Ok(&b"item"[..]));
    let (mut sender, mut answer) = client
        .exchange(Envelope::new(2, "vm", "exchange", b""))
        .expect("room");
    soon(sender.send(&b"both"[..])).await.expect("it is read");
    let item = soon(answer.next()).await.expect("an item");
    assert_eq!(item.as_deref(), Ok(&b"both"[..]));
    // One-way messages stay in their order.
    for (method, numbers) in [("one_way", 0..100), ("one_way_ref", 100..200)] {
        for number in numbers.clone() {
            client
                .send(Envelope::new(2, "vm", method, &[number][..]))
                .expect("room");
        }
        until(|| seen.load(Ordering::SeqCst) == usize::from(numbers.end)).await;
    }
    let times = timing.0.lock().expect("no panics");
    for method in ["inline", "spawned", "streamed", "watch", "one_way", "key"] {
        assert!(times.iter().any(|(name, _)| name == method), "{method}");
    }
}

/// What must wait before its handler may run goes on in a task of its own, and is answered there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_may_wait_and_may_limit() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    // Two by two: with fewer at once nothing would go on.
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let router = Router::new()
        .spawned("vm", "slow", move |_| {
            let (now, peak, both) = (Arc::clone(&now), Arc::clone(&peak), Arc::clone(&both));
            async move {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                both.wait().await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Bytes::new())
            }
        })
        .inline("vm", "inline", |message, reply| {
            reply.put_slice(message.payload());
            Ok(())
        })
        .layer(tower::layer::layer_fn(|inner: HandlerService| {
            tower::service_fn(move |request: Request| {
                let mut inner = inner.clone();
                async move {
                    tokio::task::yield_now().await;
                    inner.call(request).await
                }
            })
        }))
        // One limit for all methods and connections.
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(2));
    let (client, _server) = pair(router, Config::default()).await;
    let calls: Vec<_> = (0..100)
        .map(|_| client.call(Envelope::new(2, "vm", "slow", b"")))
        .collect();
    for call in calls {
        soon(call).await.expect("a reply");
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    for number in 0..20_u8 {
        let call = client.call(Envelope::new(2, "vm", "inline", &[number][..]));
        assert_eq!(soon(call).await.as_deref(), Ok(&[number][..]));
    }
}

/// Tries what is idempotent again while the peer is busy.
#[derive(Clone)]
struct WhileBusy(usize);

impl Policy<Bytes, Bytes, TransportError> for WhileBusy {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Bytes,
        outcome: &mut Result<Bytes, TransportError>,
    ) -> Option<Ready<()>> {
        let code = RejectionCode::Busy;
        let is_busy = matches!(outcome, Err(TransportError::PeerRejected { code: found, .. }) if *found == code);
        self.0 = self.0.checked_sub(1)?;
        is_busy.then(|| ready(()))
    }

    fn clone_request(&mut self, payload: &Bytes) -> Option<Bytes> {
        Some(payload.clone())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_tried_again_by_a_layer() {
    let asked = AtomicUsize::new(0);
    let router = Router::new().inline("vm", "third", move |message, reply| {
        if asked.fetch_add(1, Ordering::SeqCst) % 3 < 2 {
            return Err(Rejection::new(RejectionCode::Busy, "not yet"));
        }
        reply.put_slice(message.payload());
        Ok(())
    });
    let (client, _server) = pair(router, Config::default()).await;
    let method: RemoteMethod = client.method(2, "vm", "third").expect("known");
    let retrying = |tries| {
        ServiceBuilder::new()
            .retry(WhileBusy(tries))
            .concurrency_limit(1)
            .service(method.clone())
    };
    let reply = soon(retrying(5).oneshot(Bytes::from_static(b"x"))).await;
    assert_eq!(reply.as_deref(), Ok(&b"x"[..]));
    let reply = soon(retrying(1).oneshot(Bytes::from_static(b"x"))).await;
    assert!(matches!(reply, Err(TransportError::PeerRejected { .. })));
}

/// Inline handlers that a layer makes wait are tasks as others are: no more run than may, of one method and of all, and
/// the others are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_a_layer_makes_wait_stay_within_the_bounds() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (counts, peak, wait) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&gate));
    let layer = tower::layer::layer_fn(move |inner: HandlerService| {
        let (now, most, gate) = (Arc::clone(&counts), Arc::clone(&peak), Arc::clone(&wait));
        tower::service_fn(move |request: Request| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            let (gate, mut inner) = (Arc::clone(&gate), inner.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.acquire().await.expect("it is never closed").forget();
                now.fetch_sub(1, Ordering::SeqCst);
                inner.call(request).await
            }
        })
    });
    let router = Router::new()
        .inline("vm", "slow", |message, reply| {
            reply.put_slice(message.payload());
            Ok(())
        })
        .layer(layer)
        .inline("vm", "fast", |_, _| Ok(()));
    let mut config = Config::default();
    config.handlers_max = 16;
    config.handlers_per_method_max = 4;
    let (client, _server) = pair(router, config).await;
    let calls: Vec<_> = (0..200_u8)
        .map(|number| client.call(Envelope::new(2, "vm", "slow", &[number][..])))
        .collect();
    until(|| now.load(Ordering::SeqCst) == 4).await;
    for _ in 0..20 {
        soon(client.call(Envelope::new(2, "vm", "fast", b"")))
            .await
            .expect("a reply");
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
    gate.add_permits(200);
    for (number, call) in (0..200_u8).zip(calls) {
        assert_eq!(soon(call).await.as_deref(), Ok(&[number][..]));
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
}
