//! What a run found.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

use super::chaos::Fault;
use super::client::{GroupReply, StatusReply};
use super::footprint::Curve;
use super::load::Checks;

/// Three election timeouts of 500 ms: when writes should go on after the leader's death.
const FAILOVER_MAX: Duration = Duration::from_millis(1500);

/// One run.
pub(super) struct Report {
    pub(super) kind: &'static str,
    pub(super) nodes: u64,
    pub(super) groups: u32,
    pub(super) clients: usize,
    pub(super) elapsed: Duration,
    pub(super) done: u64,
    /// Of all nodes together.
    pub(super) cpu: Duration,
    /// In microseconds.
    pub(super) latencies: Histogram<u64>,
    pub(super) curve: Curve,
    /// Of user data.
    pub(super) written_bytes: u64,
    pub(super) seed: u64,
    pub(super) faults: Vec<Fault>,
    /// How long the nodes took to be whole and work after the faults, where there were any.
    pub(super) live_after: Option<Duration>,
    pub(super) checks: Checks,
    pub(super) statuses: Vec<Option<StatusReply>>,
}

impl Report {
    fn per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.done as f64
    }

    fn ms(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Fails when anything acknowledged is missing or wrong, or memory or disk grow over a long run.
    pub(super) fn verdict(&self) -> Result<()> {
        let wrong = &self.checks.wrong;
        if !wrong.is_empty() {
            let shown: Vec<&str> = wrong.iter().take(10).map(String::as_str).collect();
            bail!(
                "{} answers are wrong:\n  {}",
                wrong.len(),
                shown.join("\n  ")
            );
        }
        if self.checks.undecided > 0 {
            bail!(
                "{} histories were not judged by both checkers: run it again with fewer --clients",
                self.checks.undecided
            );
        }
        if let Some(fault) = self.curve.fault() {
            bail!("{fault} (--seed {})", self.seed);
        }
        if let Some(fault) = self.faults.iter().find(|fault| fault.outage.is_none()) {
            bail!(
                "writes did not go on after node {} was {} (--seed {})",
                fault.node,
                fault.kind,
                self.seed
            );
        }
        Ok(())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} nodes, {} groups, {} clients, {:.1} s",
            self.kind,
            self.nodes,
            self.groups,
            self.clients,
            self.elapsed.as_secs_f64()
        )?;
        writeln!(
            f,
            "  requests       {:>10} acknowledged, {:.0}/s",
            self.done,
            self.per_second()
        )?;
        writeln!(
            f,
            "  latency        {:>10.2} ms p50, {:.2} ms p99, {:.2} ms p99.9",
            self.ms(0.5),
            self.ms(0.99),
            self.ms(0.999)
        )?;
        writeln!(f, "  CPU of nodes   {:>10.1} us per request", self.cpu_us())?;
        if self.written_bytes > 0 {
            writeln!(
                f,
                "  user data      {:>10.1} MiB acknowledged",
                self.written_bytes as f64 / 1048576.0
            )?;
        }
        write!(f, "{}", self.curve)?;
        for fault in &self.faults {
            write!(
                f,
                "  {:14} {} {} at {:.1} s: whole after {} ms, ",
                fault.kind.to_string(),
                if fault.was_leader {
                    "leader"
                } else {
                    "follower"
                },
                fault.node,
                fault.at.as_secs_f64(),
                fault.mended.as_millis(),
            )?;
            match fault.outage {
                Some(outage) => writeln!(
                    f,
                    "writes went on after {} ms{}",
                    outage.as_millis(),
                    if outage > FAILOVER_MAX { " (late)" } else { "" }
                )?,
                None => writeln!(f, "writes did not go on")?,
            }
        }
        if let Some(live_after) = self.live_after {
            writeln!(
                f,
                "  after these    every node has caught up, takes writes and answers both kinds of read; {} ms; --seed {}",
                live_after.as_millis(),
                self.seed
            )?;
        }
        writeln!(
            f,
            "  node  role       term  leader    commit   applied      vms  requests"
        )?;
        for status in self.statuses.iter().flatten() {
            let groups = status.groups();
            let leads = groups.iter().filter(|group| group.role == "leader").count();
            let role = match (leads, groups.len()) {
                (_, 1) => status.role.clone(),
                (leads, all) => format!("{leads} of {all}"),
            };
            let sum = |part: fn(&GroupReply) -> u64| -> u64 { groups.iter().map(part).sum() };
            writeln!(
                f,
                "  {:>4}  {role:9} {:>5}  {:>6}  {:>8}  {:>8}  {:>7}  {:>8}",
                status.node,
                groups.iter().map(|group| group.term).max().unwrap_or(0),
                status.leader,
                sum(|group| group.commit_index),
                sum(|group| group.applied_index),
                status.vms,
                status.requests
            )?;
        }
        let checks = &self.checks;
        writeln!(
            f,
            "  checked        {} VMs on every node; {} operations on {} shared names for an order, by two checkers; {} outcomes unknown",
            checks.expected, checks.operations, checks.histories, checks.unknown
        )?;
        if checks.undecided > 0 {
            writeln!(
                f,
                "  UNDECIDED      {} histories: a checker reached its bound",
                checks.undecided
            )?;
        }
        match checks.wrong.len() {
            0 => writeln!(
                f,
                "  nothing acknowledged is missing, and every history is linearizable"
            ),
            count => writeln!(f, "  WRONG          {count} answers"),
        }
    }
}

/// How much better the second is.
pub(super) fn ratios(naive: &Report, fast: &Report) -> String {
    let more = fast.per_second() / naive.per_second();
    let less = naive.cpu_us() / fast.cpu_us();
    let sooner = |quantile| naive.ms(quantile) / fast.ms(quantile);
    format!(
        "naive / perf-kit\n  throughput       {more:.1}x\n  CPU per request  1/{less:.1}\n  \
         latency          p50 1/{:.1}, p99 1/{:.1}, p99.9 1/{:.1}\n",
        sooner(0.5),
        sooner(0.99),
        sooner(0.999)
    )
}
