//! Heartbeats beside a large body: do they notice?
//!
//! ```text
//! cargo run --release -p perf-transport --example bulk [MIB]
//! ```
//!
//! Node 1 streams a body of 1 GiB (or as many MiB as asked for) to node 2, and calls it with `Critical` priority all
//! the while.

use bytes::Bytes;
use perf_transport::{Envelope, Priority, Rejection, RejectionCode, Router, Security, Transport};
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PART_BYTES: usize = 1 << 20;
const BEAT_EVERY: Duration = Duration::from_millis(5);

fn main() -> Outcome<()> {
    let mib = std::env::args()
        .nth(1)
        .map_or(Ok(1024), |mib| mib.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(mib))
}

async fn run(mib: u64) -> Outcome<()> {
    let router = Router::new()
        .inline("raft", "heartbeat", |_, _| Ok(()))
        .streamed("snapshot", "install", |_, mut body| async move {
            let mut bytes = 0;
            while let Some(chunk) = body.next().await {
                let chunk = chunk
                    .map_err(|error| Rejection::new(RejectionCode::Invalid, error.to_string()))?;
                bytes += chunk.len();
            }
            Ok(Bytes::from(bytes.to_string()))
        });
    // One process and loopback: nobody else reaches it.
    let security = || Security::InsecurePlaintext;
    let server = Transport::builder(2, "bulk", security())
        .router(router)
        .listen("127.0.0.1:0")
        .start()
        .await?;
    let client = Transport::builder(1, "bulk", security())
        .peer(2, server.address().unwrap_or_default())
        .start()
        .await?;
    let idle = beats(&client, &Arc::new(AtomicBool::new(false)), 200).await?;
    let done = Arc::new(AtomicBool::new(false));
    let beating = {
        let (client, done) = (client.clone(), Arc::clone(&done));
        tokio::spawn(async move { beats(&client, &done, usize::MAX).await })
    };
    let sent = Arc::new(AtomicU64::new(0));
    let bar = tokio::spawn(show(Arc::clone(&sent), mib, Arc::clone(&done)));
    let begin = Instant::now();
    let mut body = client.stream(Envelope::new(2, "snapshot", "install", b"index 7"))?;
    let part = Bytes::from(vec![0x5A; PART_BYTES]);
    for _ in 0..mib {
        body.send(part.clone()).await?;
        sent.fetch_add(1, Ordering::Relaxed);
    }
    let received = body.finish().await?;
    let time = begin.elapsed();
    done.store(true, Ordering::Relaxed);
    bar.await?;
    let busy = beating.await??;
    println!(
        "{} bytes arrived in {:.2} s: {:.0} MiB/s",
        String::from_utf8_lossy(&received),
        time.as_secs_f64(),
        mib as f64 / time.as_secs_f64()
    );
    println!("heartbeats without bulk  {}", percentiles(idle));
    println!("heartbeats beside bulk   {}", percentiles(busy));
    client.drain(Duration::from_secs(1)).await;
    Ok(())
}

/// Calls at a steady pace, and how long each took.
async fn beats(client: &Transport, done: &AtomicBool, most: usize) -> Outcome<Vec<Duration>> {
    let mut times = Vec::new();
    let mut pace = tokio::time::interval(BEAT_EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while times.len() < most && !done.load(Ordering::Relaxed) {
        pace.tick().await;
        let begin = Instant::now();
        let beat =
            Envelope::new(2, "raft", "heartbeat", b"term 7").with_priority(Priority::Critical);
        client.call(beat).await?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

/// A bar on a terminal; a line now and then elsewhere.
async fn show(sent: Arc<AtomicU64>, mib: u64, done: Arc<AtomicBool>) {
    const WIDTH: u64 = 40;
    let terminal = std::io::stderr().is_terminal();
    let mut shown = u64::MAX;
    loop {
        let now = sent.load(Ordering::Relaxed);
        let is_done = done.load(Ordering::Relaxed);
        let full = now * WIDTH / mib.max(1);
        if full != shown && (terminal || is_done || full.is_multiple_of(10)) {
            shown = full;
            let bar = "#".repeat(full as usize) + &".".repeat((WIDTH - full) as usize);
            let start = if terminal { "\r" } else { "" };
            let end = if terminal && !is_done { "" } else { "\n" };
            eprint!("{start}[{bar}] {now:5} of {mib} MiB{end}");
            // A terminal that is gone needs no bar.
            let _ = std::io::stderr().flush();
        }
        if is_done {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        let time = times.get(place.min(times.len().saturating_sub(1)));
        time.copied().unwrap_or_default().as_secs_f64() * 1e6
    };
    format!(
        "p50 {:7.0} us   p99 {:7.0} us   max {:7.0} us   ({} of them)",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    )
}
