//! A cluster on this machine under load, and what it answered, checked.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

mod chaos;
pub(crate) mod client;
mod footprint;
mod history;
mod liveness;
mod load;
mod network;
mod nodes;
mod ports;
mod report;
mod second;
mod signal;

use footprint::Curve;
use load::Load;
use nodes::Nodes;
use report::Report;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) nodes: u64,
    pub(crate) seconds: Duration,
    pub(crate) clients: usize,
    pub(crate) groups: u32,
    pub(crate) log_mib: usize,
    /// The longest user data of a VM.
    pub(crate) user_data_bytes: usize,
    pub(crate) chaos: bool,
    /// Of the faults and of what clients ask for.
    pub(crate) seed: u64,
    pub(crate) naive: bool,
    pub(crate) compare: bool,
    pub(crate) keep: bool,
}

/// How long a cluster may take to have a leader.
const LEADER_MAX: Duration = Duration::from_secs(20);
/// How long requests that were under way at the end may take.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// Runs what the options ask for, prints the report, and fails when anything acknowledged is missing or wrong.
pub(crate) async fn run(options: Options) -> Result<()> {
    if !options.compare {
        let report = run_one(&options, options.naive).await?;
        print!("{report}");
        return report.verdict();
    }
    let naive = run_one(&options, true).await?;
    print!("{naive}");
    let fast = run_one(&options, false).await?;
    print!("\n{fast}");
    print!("\n{}", report::ratios(&naive, &fast));
    naive.verdict()?;
    fast.verdict()
}

/// Runs a cluster of one kind. Nodes and files are gone when it returns, however it returns.
async fn run_one(options: &Options, naive: bool) -> Result<Report> {
    let directory = tempfile::Builder::new()
        .prefix("vm-node-")
        .tempdir()
        .context("cannot make a directory for the run")?;
    let work = run_in(options, naive, directory.path().to_owned());
    let result = tokio::select! {
        result = work => result,
        signal = tokio::signal::ctrl_c() => {
            signal.context("cannot listen for Ctrl-C")?;
            Err(anyhow::anyhow!("interrupted; the nodes are ended"))
        }
    };
    if options.keep {
        let kept = directory.keep();
        eprintln!("kept: {}", kept.display());
    }
    result
}

async fn run_in(options: &Options, naive: bool, directory: PathBuf) -> Result<Report> {
    let kind = if naive { "naive" } else { "perf-kit" };
    note(&format!(
        "{} {kind} nodes in {}",
        options.nodes,
        directory.display()
    ));
    let nodes = Arc::new(Nodes::start(&directory, options, naive).await?);
    let first = nodes.wait_for_leader(LEADER_MAX).await?;
    note(&match options.groups {
        1 => format!("node {first} leads"),
        groups => format!("node {first} leads most of {groups} groups"),
    });
    if options.chaos {
        note(&format!("the faults are those of --seed {}", options.seed));
    }
    let addresses = nodes.addresses().await;
    let load = Arc::new(Load::new(addresses, options));
    let cpu_before = nodes.cpu().await;
    let start = Instant::now();
    let clients = load.start(start + options.seconds);
    let faults = async {
        if options.chaos {
            chaos::run(&nodes, &load, options.seed, naive, start + options.seconds).await
        } else {
            tokio::time::sleep(options.seconds).await;
            Ok(Vec::new())
        }
    };
    let mut curve = Curve::new(options, naive);
    let shown = async {
        tokio::join!(
            progress(&load, start, options.seconds),
            curve.watch(&nodes, &load, start, options.seconds)
        );
        std::future::pending().await
    };
    // A cluster that does not mend ends the run at once.
    let faults = tokio::select! {
        faults = faults => faults,
        faults = shown => faults,
    };
    let faults = faults.with_context(|| seed_hint(options))?;
    let elapsed = start.elapsed();
    let cpu = nodes.cpu().await.saturating_sub(cpu_before);
    let done = load.acknowledged();
    tokio::time::timeout(SETTLE_MAX, load.finish(clients))
        .await
        .context("requests that were under way did not end")??;
    nodes.wait_for_leader(LEADER_MAX).await?;
    let live_after = if options.chaos {
        note("checking that every node works");
        let live = liveness::check(&nodes).await;
        Some(live.with_context(|| seed_hint(options))?)
    } else {
        None
    };
    note("checking what was answered");
    let checks = load.check(&nodes).await?;
    let statuses = nodes.statuses().await;
    let report = Report {
        kind,
        nodes: options.nodes,
        groups: options.groups,
        clients: options.clients,
        elapsed,
        done,
        cpu,
        latencies: load.latencies(),
        curve,
        written_bytes: load.written_bytes(),
        seed: options.seed,
        faults,
        live_after,
        checks,
        statuses,
    };
    nodes.stop().await;
    if report.done == 0 {
        bail!("nothing was acknowledged in {:.0} s", elapsed.as_secs_f64());
    }
    Ok(report)
}

/// How to have the same faults again.
fn seed_hint(options: &Options) -> String {
    format!("the run with --seed {} failed", options.seed)
}

/// A bar that fills, where somebody looks; a line every five seconds elsewhere.
async fn progress(load: &Load, start: Instant, length: Duration) {
    const WIDTH: usize = 30;
    let is_terminal = std::io::stderr().is_terminal();
    let mut tick =
        tokio::time::interval(Duration::from_millis(if is_terminal { 200 } else { 5000 }));
    let mut last = (Instant::now(), 0);
    while start.elapsed() < length {
        tokio::select! {
            _ = tick.tick() => {}
            () = tokio::time::sleep_until((start + length).into()) => break,
        }
        let share = (start.elapsed().as_secs_f64() / length.as_secs_f64()).min(1.0);
        let done = load.acknowledged();
        let rate = (done - last.1) as f64 / last.0.elapsed().as_secs_f64().max(1e-9);
        last = (Instant::now(), done);
        let filled = (share * WIDTH as f64) as usize;
        let bar = format!("{}{}", "#".repeat(filled), ".".repeat(WIDTH - filled));
        let text = format!(
            "[{bar}] {:.0} of {:.0} s, {rate:.0} requests/s",
            start.elapsed().as_secs_f64(),
            length.as_secs_f64()
        );
        let mut err = std::io::stderr().lock();
        // Progress that nobody can see is no reason to stop.
        let _ = match is_terminal {
            true => write!(err, "\r\x1b[2K{text}").and_then(|()| err.flush()),
            false => writeln!(err, "{text}"),
        };
    }
    if is_terminal {
        eprint!("\r\x1b[2K");
    }
}

fn note(text: &str) {
    eprintln!("{text}");
}
