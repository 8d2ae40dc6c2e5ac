//! Experiment: a runtime of one thread for each core, which share nothing.
//!
//! Each core has a server and a client of its own, as a node has that listens once for each core and whose peers spread their connections over
//! these addresses. One core and two are measured in turns.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use perf_transport::Router;

use super::ours;
use super::processes::{bind, runtime};
use crate::experiment::{Bound, Depth, Figure, Unit};

const IN_FLIGHT: usize = 64;

/// Calls per second of this core, from when all cores have warmed up.
fn one_core(core: usize, start: &Barrier, time: Duration) -> f64 {
    bind(core);
    let runtime = runtime();
    let router = Router::new().inline("vm", "status", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    let (client, _server) = runtime.block_on(ours::pair(router, false));
    let mut run = ours::calls(runtime, &client, IN_FLIGHT);
    let mut iters = 1000;
    while run(iters) < time / 10 {
        iters *= 2;
    }
    start.wait();
    let took = run(iters * 10);
    (iters * 10) as f64 / took.as_secs_f64()
}

/// Calls per second of all cores together.
fn all_cores(cores: usize, time: Duration) -> Result<f64, String> {
    let start = Arc::new(Barrier::new(cores));
    let threads: Vec<_> = (0..cores)
        .map(|core| {
            let start = Arc::clone(&start);
            thread::spawn(move || one_core(core, &start, time))
        })
        .collect();
    let calls = threads.into_iter().map(thread::JoinHandle::join);
    calls
        .sum::<Result<f64, _>>()
        .map_err(|_| "a core's thread panicked".to_owned())
}

/// One core, two, and how many times as much the two do.
pub(super) fn per_core(depth: Depth) -> Result<Vec<Figure>, String> {
    let (turns, time) = match depth {
        Depth::Quick => (1, Duration::from_millis(100)),
        Depth::Full => (5, Duration::from_secs(1)),
    };
    let mut calls = [Vec::new(), Vec::new()];
    for _ in 0..turns {
        for (cores, calls) in (1..).zip(&mut calls) {
            calls.push(all_cores(cores, time)?);
        }
    }
    let [one, two] = calls.map(|mut calls| {
        calls.sort_by(f64::total_cmp);
        calls[calls.len() / 2]
    });
    let ratio = Figure::new("two cores / one core", two / one, Unit::Ratio);
    Ok(vec![
        Figure::new("one core", one, Unit::PerSecond),
        Figure::new("two cores", two, Unit::PerSecond),
        ratio.expected(Bound::AtLeast(1.8)),
    ])
}
