//! Serves `/metrics` while a load runs:
//!
//! `cargo run -p perf-metrics --features http --example scrape [ADDRESS [SECONDS]]`, then `curl http://ADDRESS/metrics`.

use perf_metrics::helpers::{record_vm_operation_fast, update_cluster_metrics_fast};
use perf_metrics::prometheus::http::ScrapeServer;
use perf_metrics::string_constants::{OPERATION_CREATE, OPERATION_STOP};
use perf_metrics::{NodeMetrics, Registry};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let seconds: u64 = arguments.next().map_or(Ok(60), |seconds| seconds.parse())?;

    let registry = Registry::new();
    let metrics = &NodeMetrics::new(&registry)?;
    let server = ScrapeServer::start(registry, TcpListener::bind(address)?)?;
    println!("curl http://{}/metrics", server.address());

    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            scope.spawn(move || {
                let mut operations = 0u64;
                while !done.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    record_vm_operation_fast(
                        if worker == 0 {
                            OPERATION_CREATE
                        } else {
                            OPERATION_STOP
                        },
                        !operations.is_multiple_of(100),
                        metrics,
                    );
                    metrics.message_size.record(operations % 4096);
                    metrics
                        .raft_commit_duration
                        .record(start.elapsed().as_secs_f64());
                    update_cluster_metrics_fast(
                        3,
                        24,
                        operations % 24,
                        49_152,
                        operations % 49_152,
                        metrics,
                    );
                    operations += 1;
                    std::thread::sleep(Duration::from_micros(100));
                }
                println!("worker {worker} recorded {operations} operations");
            });
        }
        std::thread::sleep(Duration::from_secs(seconds));
        done.store(true, Ordering::Relaxed);
    });
    Ok(())
}
