//! Experiments: heartbeats beside bulk, and the share of the less urgent class.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use perf_transport::{Config, Envelope, Payload, Priority, Router, Security, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::drive;
use crate::experiment::{Bound, Depth, Figure, Unit};

/// 1 Gbit/s, as between the nodes of a small cluster.
const LINK_BYTES_PER_SECOND: f64 = 125e6;
/// What the link carries in one go: then it is another connection's turn.
const TURN_BYTES: usize = 16 * 1024;
/// The timer's grain: less than this is not slept.
const GRAIN: Duration = Duration::from_millis(1);
const BEAT_EVERY: Duration = Duration::from_millis(5);
const BULK_BYTES: usize = 64 * 1024;

/// A wire that all connections of a pair of nodes share.
struct Wire {
    free_at: Mutex<Instant>,
}

impl Wire {
    async fn carry(&self, bytes: usize) {
        let time = Duration::from_secs_f64(bytes as f64 / LINK_BYTES_PER_SECOND);
        let until = {
            let mut free_at = self.free_at.lock();
            *free_at = (*free_at).max(Instant::now() - GRAIN) + time;
            *free_at
        };
        if until > Instant::now() + GRAIN {
            tokio::time::sleep_until(until.into()).await;
        }
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    wire: Arc<Wire>,
) -> io::Result<()> {
    let mut buffer = vec![0; TURN_BYTES];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            read => {
                wire.carry(read).await;
                to.write_all(&buffer[..read]).await?;
            }
        }
    }
}

/// Puts a link in front of a server and returns its address. Buffers are those of a switch port, not of a machine with memory to spare.
async fn link(server: String) -> io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(128 * 1024)?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener: TcpListener = socket.listen(64)?;
    let address = listener.local_addr()?.to_string();
    let now = Instant::now();
    let new = || {
        Arc::new(Wire {
            free_at: Mutex::new(now),
        })
    };
    let (there, back) = (new(), new());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(upstream) = TcpStream::connect(&server).await else {
                continue;
            };
            // What cannot be set is not needed for the figures to mean something.
            let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = upstream.into_split();
            tokio::spawn(forward(from_client, to_server, Arc::clone(&there)));
            tokio::spawn(forward(from_server, to_client, Arc::clone(&back)));
        }
    });
    Ok(address)
}

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
        client.call(beat).await.map_err(|error| error.to_string())?;
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
    first: Arc<AtomicU64>,
    second: Arc<AtomicU64>,
}

async fn nodes(config: Config, over_link: bool) -> Result<Nodes, String> {
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
    let mut address = server.address().unwrap_or_default().to_owned();
    if over_link {
        address = link(address).await.map_err(|error| error.to_string())?;
    }
    let client = Transport::builder(1, "bench", Security::InsecurePlaintext)
        .config(config)
        .peer(2, address)
        .start()
        .await
        .map_err(text)?;
    Ok(Nodes {
        client,
        _server: server,
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
        let nodes = nodes(config, true).await?;
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
    let channel = super::grpc::channel_over(false, arrivals, |address| async move {
        link(address).await.unwrap_or_default()
    })
    .await;
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
            let nodes = nodes(config, true).await?;
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
