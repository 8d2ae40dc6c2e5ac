//! The tokio shell over turmoil: real tasks, a simulated network and clock, many seeds.
//!
//! `PERF_SIM_SEEDS` and `PERF_SIM_START` as in `simulation.rs`; here a seed takes tens of milliseconds, so there are
//! fewer by default.

#![cfg(not(perf_loom))]

use perf_transport::{
    BoxFuture, BoxRead, BoxWrite, ByteStream, Config, Connector, Envelope, Listener, Priority,
    Router, Security, StreamOptions, Transport, TransportError,
};
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PORT: u16 = 7000;
const SEEDS: u64 = 25;

/// turmoil's stream as one of ours.
struct SimStream(turmoil::net::TcpStream);

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl ByteStream for SimStream {
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = tokio::io::split(*self);
        (Box::new(read), Box::new(write))
    }
}

struct SimConnector;

impl Connector for SimConnector {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        _options: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move {
            let stream = turmoil::net::TcpStream::connect(address).await?;
            Ok(Box::new(SimStream(stream)) as Box<dyn ByteStream>)
        })
    }
}

struct SimListener(turmoil::net::TcpListener);

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            Ok((
                Box::new(SimStream(stream)) as Box<dyn ByteStream>,
                from.to_string(),
            ))
        })
    }

    fn address(&self) -> String {
        "server".to_owned()
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.heartbeat_interval = Duration::from_millis(100);
    config.heartbeat_timeout = Duration::from_millis(400);
    config.backoff = (Duration::from_millis(20), Duration::from_millis(200));
    config.call_timeout = Duration::from_millis(700);
    config.calls_max = 64;
    config
}

async fn serve(handled: Arc<AtomicU64>) -> turmoil::Result {
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    let count = Arc::clone(&handled);
    let router = Router::new()
        .inline("vm", "echo", move |message, reply| {
            count.fetch_add(1, Ordering::Relaxed);
            reply.put_slice(message.payload());
            Ok(())
        })
        .spawned("vm", "slow", |message| async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(message.into_payload())
        });
    let server = Transport::builder(2, "sim", Security::InsecurePlaintext)
        .router(router)
        .config(config())
        .listener(SimListener(listener));
    let _server = server.start().await?;
    std::future::pending::<()>().await;
    Ok(())
}

/// Calls through storms, each with bytes of its own; then all must be well again.
async fn call(seed: u64, done: Rc<Cell<u64>>) -> turmoil::Result {
    let client = Transport::builder(1, "sim", Security::InsecurePlaintext)
        .config(config())
        .connector(SimConnector)
        .peer(2, format!("server:{PORT}"));
    let client = client.start().await?;
    let mut tasks = Vec::new();
    for caller in 0..8_u64 {
        let (client, done) = (client.clone(), Rc::clone(&done));
        tasks.push(tokio::task::spawn_local(async move {
            for round in 0..60_u64 {
                let own = (seed << 32 | caller << 16 | round).to_le_bytes();
                let method = if (caller + round).is_multiple_of(3) {
                    "slow"
                } else {
                    "echo"
                };
                let priority = Priority::ALL[(caller % 4) as usize];
                let begun = tokio::time::Instant::now();
                let envelope = Envelope::new(2, "vm", method, &own).with_priority(priority);
                match client.call(envelope).await {
                    Ok(reply) => {
                        assert_eq!(&reply[..], own, "another call's reply");
                        done.set(done.get() + 1);
                    }
                    Err(TransportError::PeerRejected { .. }) => panic!("nothing is refused here"),
                    Err(_) => {}
                }
                // A call ends at its deadline at the latest.
                assert!(
                    begun.elapsed() < Duration::from_millis(1500),
                    "{:?}",
                    begun.elapsed()
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    for task in tasks {
        task.await?;
    }
    // The storm is over: within the backoff, a call succeeds again.
    let mut attempts = 0;
    while client
        .call(Envelope::new(2, "vm", "echo", b"calm"))
        .await
        .is_err()
    {
        attempts += 1;
        assert!(attempts < 100, "no recovery");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats = client.peer_stats(2).ok_or("known")?;
    assert_eq!(
        stats.bulk.calls_in_flight + stats.control.calls_in_flight,
        0
    );
    Ok(())
}

fn run(seed: u64) -> u64 {
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(120))
        .tick_duration(Duration::from_millis(2))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(20))
        .tcp_capacity(4096);
    let mut sim = builder.build();
    let handled = Arc::new(AtomicU64::new(0));
    let done = Rc::new(Cell::new(0));
    let count = Arc::clone(&handled);
    sim.host("server", move || serve(Arc::clone(&count)));
    let counted = Rc::clone(&done);
    sim.client("client", async move { call(seed, counted).await });
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut steps = 0_u64;
    let mut is_up = true;
    loop {
        let is_done = sim.step().expect("no host fails");
        if is_done {
            break;
        }
        steps += 1;
        // Something breaks every tenth of a second, for the first two seconds.
        if steps < 1000 && steps.is_multiple_of(50) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            match random % 6 {
                0 => sim.partition("client", "server"),
                1 => sim.partition_oneway("client", "server"),
                2 => sim.partition_oneway("server", "client"),
                3 if is_up => {
                    sim.crash("server");
                    is_up = false;
                }
                _ => {
                    sim.repair("client", "server");
                    if !is_up {
                        sim.bounce("server");
                        is_up = true;
                    }
                }
            }
        }
        if steps == 1000 {
            sim.repair("client", "server");
            if !is_up {
                sim.bounce("server");
                is_up = true;
            }
        }
    }
    done.get()
}

#[test]
fn the_shell_survives_the_network() {
    let number = |variable: &str, otherwise: u64| {
        let value = std::env::var(variable);
        value.map_or(otherwise, |value| value.parse().expect("a number"))
    };
    let start = number("PERF_SIM_START", 0);
    let seeds = number("PERF_SIM_SEEDS", SEEDS).min(SEEDS);
    let mut replies = 0;
    for seed in start..start + seeds {
        println!("shell seed {seed}");
        replies += run(seed);
    }
    assert!(replies > seeds * 50, "{replies} replies in {seeds} storms");
}
