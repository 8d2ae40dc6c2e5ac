//! Experiments: heartbeats beside bulk, and the share of the less urgent class.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perf_transport::{Config, Envelope, Payload, Priority, Router, Security, Transport};

use super::drive;
use super::link::Link;
use crate::experiment::{Bound, Depth, Figure, Unit};

const BEAT_EVERY: Duration = Duration::from_millis(5);
const BULK_BYTES: usize = 64 * 1024;

/// p99 of calls at a steady pace, in nanoseconds.
async fn beats(client: &Transport, priority: Priority, time: Duration) -> Result<f64, String> {
    let mut times = Vec::new();
    let begin = Instant::now();
    let mut pace = tokio::time::interval(BEAT_EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while begin.elapsed() < time {
        pace.tick().await;
        let begun = Instant::now();
        let beat = Envelope::new(2, "raft", "beat", b"term 7").with_priority(priority);
        // Behind callers that wait for room, one that does not wait would be refused.
        client
            .call_wait(beat)
            .await
            .map_err(|error| error.to_string())?;
        times.push(begun.elapsed());
    }
    Ok(percentile(times))
}

fn percentile(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let place = times.len() * 99 / 100;
    times.get(place).map_or(0.0, |time| time.as_nanos() as f64)
}

/// What arrives beside the heartbeats.
struct Nodes {
    client: Transport,
    _server: Transport,
    _link: Link,
    first: Arc<AtomicU64>,
    second: Arc<AtomicU64>,
}

async fn nodes(config: Config) -> Result<Nodes, String> {
    let text = |error: perf_transport::TransportError| error.to_string();
    let (first, second) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let count = |bytes: &Arc<AtomicU64>| {
        let bytes = Arc::clone(bytes);
        move |message: perf_transport::Message| {
            bytes.fetch_add(message.payload().len() as u64, Ordering::Relaxed);
        }
    };
    let router = Router::new()
        .inline("raft", "beat", |_, _| Ok(()))
        .one_way("bulk", "first", count(&first))
        .one_way("bulk", "second", count(&second));
    let server = Transport::builder(2, "bench", Security::InsecurePlaintext)
        .router(router)
        .config(config.clone())
        .listen("127.0.0.1:0")
        .start()
        .await
        .map_err(text)?;
    let address = server.address().unwrap_or_default().to_owned();
    let link = Link::to(address).await.map_err(|error| error.to_string())?;
    let client = Transport::builder(1, "bench", Security::InsecurePlaintext)
        .config(config)
        .peer(2, link.address.as_str())
        .start()
        .await
        .map_err(text)?;
    Ok(Nodes {
        client,
        _server: server,
        _link: link,
        first,
        second,
    })
}

/// Keeps a queue full until told to stop.
fn saturate(
    client: &Transport,
    priority: Priority,
    method: &'static str,
    bytes: usize,
) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let (client, until) = (client.clone(), Arc::clone(&stop));
    tokio::spawn(async move {
        let payload = Bytes::from(vec![0x5A; bytes]);
        while !until.load(Ordering::Relaxed) {
            let payload = Payload::Shared(payload.clone());
            let chunk = Envelope::new(2, "bulk", method, payload).with_priority(priority);
            if client.send_wait(chunk).await.is_err() {
                break;
            }
        }
    });
    stop
}

fn seconds(depth: Depth, full: u64) -> Duration {
    match depth {
        Depth::Quick => Duration::from_millis(600),
        Depth::Full => Duration::from_secs(full),
    }
}

/// Heartbeat p99 idle, behind bulk in one FIFO, beside bulk on its own connection, and what bulk loses.
pub(super) fn isolation(depth: Depth) -> Result<Vec<Figure>, String> {
    drive::runtime().block_on(async {
        let time = seconds(depth, 5);
        let mut config = Config::default();
        // Bulk does not pile up in the kernel, where nothing can overtake it.
        config.bulk_send_buffer_bytes = Some(128 * 1024);
        let nodes = nodes(config).await?;
        let client = &nodes.client;
        let idle = beats(client, Priority::Critical, time).await?;
        let stop = saturate(client, Priority::Low, "first", BULK_BYTES);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let alone = rate(&nodes.first, time).await;
        let before = nodes.first.load(Ordering::Relaxed);
        let begin = Instant::now();
        let ours = beats(client, Priority::Critical, time).await?;
        let beside = nodes.first.load(Ordering::Relaxed) - before;
        let beside = beside as f64 / begin.elapsed().as_secs_f64();
        // The same class is the same FIFO.
        let fifo = beats(client, Priority::Low, time).await?;
        stop.store(true, Ordering::Relaxed);
        let ns = |name: &str, value| Figure::new(name, value, Unit::Nanoseconds);
        let mut figures = vec![
            ns("heartbeat p99, idle", idle),
            ns("heartbeat p99, bulk in the same FIFO", fifo),
            ns("heartbeat p99, bulk on its own connection", ours),
            Figure::new("one FIFO / ours", fifo / ours, Unit::Ratio).expected(Bound::AtLeast(15.0)),
            Figure::new("bulk alone", alone, Unit::BytesPerSecond),
            Figure::new("bulk kept beside heartbeats", beside / alone, Unit::Share)
                .expected(Bound::AtLeast(0.95)),
        ];
        drop(nodes);
        let tonic = tonic(time).await?;
        figures.push(ns("heartbeat p99, one tonic channel", tonic));
        figures.push(
            Figure::new("one tonic channel / ours", tonic / ours, Unit::Ratio)
                .expected(Bound::AtLeast(7.0)),
        );
        Ok(figures)
    })
}

async fn rate(bytes: &AtomicU64, time: Duration) -> f64 {
    let before = bytes.load(Ordering::Relaxed);
    let begin = Instant::now();
    tokio::time::sleep(time).await;
    (bytes.load(Ordering::Relaxed) - before) as f64 / begin.elapsed().as_secs_f64()
}

/// A unary call at a steady pace on the channel that also streams bulk.
async fn tonic(time: Duration) -> Result<f64, String> {
    let arrivals = Arc::new(drive::Arrivals::default());
    let mut link = Err("the server has no address".to_owned());
    let channel = super::grpc::channel_over(false, arrivals, async |address| {
        link = Link::to(address).await.map_err(|error| error.to_string());
        let link = link.as_ref();
        link.map_or_else(|_| String::new(), |link| link.address.clone())
    })
    .await;
    let _link = link?;
    let _bulk = super::grpc::saturate(channel.clone(), BULK_BYTES);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut times = Vec::new();
    let begin = Instant::now();
    let mut pace = tokio::time::interval(BEAT_EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while begin.elapsed() < time {
        pace.tick().await;
        let begun = Instant::now();
        super::grpc::beat(&channel).await?;
        times.push(begun.elapsed());
    }
    Ok(percentile(times))
}

/// Two classes of one connection, both saturated: what the less urgent one gets, and what it should.
pub(super) fn fairness(depth: Depth) -> Result<Vec<Figure>, String> {
    drive::runtime().block_on(async {
        let time = seconds(depth, 5);
        let mut figures = Vec::new();
        for (first, second, name) in [
            (Priority::Normal, Priority::Low, "Low beside Normal"),
            (Priority::Critical, Priority::High, "High beside Critical"),
            (Priority::Critical, Priority::Low, "Low beside Critical"),
        ] {
            let config = Config::default();
            let weights = [first, second].map(|class| f64::from(config.weights[class as usize]));
            let weight = weights[1] / (weights[0] + weights[1]);
            let nodes = nodes(config).await?;
            let stops = [
                saturate(&nodes.client, first, "first", BULK_BYTES),
                saturate(&nodes.client, second, "second", BULK_BYTES),
            ];
            tokio::time::sleep(Duration::from_millis(300)).await;
            let read = |nodes: &Nodes| {
                [&nodes.first, &nodes.second].map(|bytes| bytes.load(Ordering::Relaxed) as f64)
            };
            let before = read(&nodes);
            tokio::time::sleep(time).await;
            let after = read(&nodes);
            for stop in stops {
                stop.store(true, Ordering::Relaxed);
            }
            let [first, second] = [after[0] - before[0], after[1] - before[1]];
            let share = second / (first + second);
            figures.push(
                Figure::new(
                    format!("{name}: its share / its weight"),
                    share / weight,
                    Unit::Ratio,
                )
                .expected(Bound::AtLeast(0.9)),
            );
        }
        Ok(figures)
    })
}
