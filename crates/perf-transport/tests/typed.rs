//! Services that are written once.

#![cfg(not(perf_loom))]

mod support;

use perf_transport::{
    Config, Message, Priority, Rejection, RejectionCode, Router, TransportError, TypedBody,
    TypedSender,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{pair, soon, until};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Number {
    #[prost(uint64, tag = "1")]
    pub(crate) value: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Text {
    #[prost(string, tag = "1")]
    pub(crate) value: String,
}

perf_transport::service! {
    /// Sums.
    mod sums = "sums" {
        /// A number as text.
        call text(Number) -> Text { priority: High }
        call never(Number) -> Number { timeout: Duration::from_millis(50) }
        /// Adds without an answer.
        send add(Number) {}
        /// Counts up to a number.
        watch count(Number) -> Number { priority: Low, timeout: Duration::from_secs(30) }
        /// Sums so far, from a start.
        exchange sum(Number, Number) -> Number {}
    }
}

// The same names, with a reply of another type: an older or newer version.
perf_transport::service! {
    mod other = "sums" {
        call text(Number) -> Number {}
        call missing(Number) -> Number {}
        watch count(Text) -> Text {}
    }
}

#[derive(Default)]
struct Node {
    added: Arc<AtomicU64>,
}

impl sums::Service for Node {
    async fn text(&self, number: Number, message: Message) -> Result<Text, Rejection> {
        assert_eq!(message.from(), 1);
        if number.value == 0 {
            return Err(Rejection::new(RejectionCode::Invalid, "no zero"));
        }
        let value = number.value.to_string();
        Ok(Text { value })
    }

    async fn never(&self, _: Number, _: Message) -> Result<Number, Rejection> {
        std::future::pending().await
    }

    fn add(&self, number: Number, _: Message) {
        self.added.fetch_add(number.value, Ordering::SeqCst);
    }

    async fn count(
        &self,
        number: Number,
        _: Message,
        mut answer: TypedSender<Number>,
    ) -> Result<(), Rejection> {
        for value in 0..number.value {
            answer.send(&Number { value }).await.expect("it is read");
        }
        Ok(())
    }

    async fn sum(
        &self,
        start: Number,
        _: Message,
        mut items: TypedBody<Number>,
        mut answer: TypedSender<Number>,
    ) -> Result<(), Rejection> {
        let mut value = start.value;
        while let Some(item) = items.next().await {
            let item = item.map_err(|_| Rejection::new(RejectionCode::Invalid, "no number"))?;
            value += item.value;
            answer.send(&Number { value }).await.expect("it is read");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_and_server_of_a_service_fit() {
    let node = Node::default();
    let added = Arc::clone(&node.added);
    let router = sums::serve(Router::new(), node);
    assert_eq!(router.priority(sums::NAME, "text"), Priority::High);
    assert_eq!(router.priority(sums::NAME, "count"), Priority::Low);
    let (client, _server) = pair(router, Config::default()).await;
    let node = sums::Client::new(&client, 2);
    let number = |value| Number { value };
    let text = soon(node.text(&number(7))).await.expect("a reply");
    assert_eq!(text.value, "7");
    // Only this one is High: it went on the control connection.
    let stats = client.peer_stats(2).expect("known");
    assert_eq!(
        (stats.control.messages_sent, stats.bulk.messages_sent),
        (1, 0)
    );
    let refused = soon(node.text(&number(0))).await.expect_err("no zero");
    let code = RejectionCode::Invalid;
    assert!(matches!(refused, TransportError::PeerRejected { code: found, .. } if found == code));
    assert_eq!(
        soon(node.never(&number(1))).await,
        Err(TransportError::Timeout { peer: 2 })
    );
    for value in 1..=100 {
        node.add(&number(value)).expect("room");
    }
    until(|| added.load(Ordering::SeqCst) == 5050).await;
    let mut counted = node.count(&number(1000)).expect("room");
    for value in 0..1000 {
        assert_eq!(soon(counted.next()).await, Some(Ok(number(value))));
    }
    assert_eq!(soon(counted.next()).await, None);
    let (mut items, mut sums) = node.sum(&number(10)).expect("room");
    for value in 1..=3 {
        soon(items.send(&number(value))).await.expect("it is read");
        let sum = 10 + value * (value + 1) / 2;
        assert_eq!(soon(sums.next()).await, Some(Ok(number(sum))));
    }
    soon(items.finish()).await.expect("it is read");
    assert_eq!(soon(sums.next()).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_that_do_not_fit_say_so() {
    let router = sums::serve(Router::new(), Node::default());
    let (client, _server) = pair(router, Config::default()).await;
    let node = other::Client::new(&client, 2);
    let malformed = TransportError::Malformed { peer: 2 };
    assert!(!malformed.is_unsent());
    let reply = soon(node.text(&Number { value: 7 })).await;
    assert_eq!(reply, Err(malformed));
    let rejected = |error: &TransportError| match error {
        TransportError::PeerRejected { code, .. } => Some(*code),
        _ => None,
    };
    let missing = soon(node.missing(&Number { value: 7 })).await;
    let missing = missing.expect_err("there is none");
    assert_eq!(rejected(&missing), Some(RejectionCode::NotFound));
    let text = Text {
        value: "seven".to_owned(),
    };
    let mut counted = node.count(&text).expect("room");
    let refused = soon(counted.next()).await.expect("an error");
    let refused = refused.expect_err("no number");
    assert_eq!(rejected(&refused), Some(RejectionCode::Invalid));
    assert_eq!(soon(counted.next()).await, None);
}
