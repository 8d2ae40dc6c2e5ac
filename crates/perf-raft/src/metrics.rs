//! Figures of a node, or of all groups of a host, as metrics, recorded at each tick.

use crate::shell::{RaftStats, StageStats};
use parking_lot::Mutex;
use perf_metrics::node::{Direction, NodeMetrics, Outcome, Table1};
use perf_metrics::{BoundGauge, MetricsError, Registry, label_set};
use std::sync::Arc;

label_set! {
    /// The stages a proposal goes through.
    pub enum Stage: "raft.stage" {
        /// From the queue into the log.
        Propose => "propose",
        /// The log's writes with their fsync.
        Log => "log",
        /// The state machine.
        Apply => "apply",
    }
}

/// Instruments of a node or of a host: the `raft.*` ones of the catalogue, and gauges of each stage.
///
/// `raft.proposals` leaves out what was refused because another node leads: its sender proposes it there.
///
/// | name | unit | what |
/// |---|---|---|
/// | `raft.stage.waiting` | `{item}` | items that wait for the stage |
/// | `raft.stage.batch` | `{item}` | items per run since the last tick |
/// | `raft.stage.duration` | `s` | time per run since the last tick |
/// | `raft.log.memory` | `By` | the log in memory |
/// | `raft.groups` | `{group}` | groups of the host |
/// | `raft.groups.led` | `{group}` | those that it leads |
/// | `raft.groups.asleep` | `{group}` | those that sleep |
///
/// A host's counts and gauges are those of all its groups together; batches and durations are those of the group that ran last. It leaves out
/// `raft.term`, `raft.leader` and the indexes, which are of one group, and a node the last three.
#[derive(Debug)]
pub struct RaftMetrics {
    catalogue: &'static NodeMetrics,
    waiting: Table1<Stage, BoundGauge<f64>>,
    batch: Table1<Stage, BoundGauge<f64>>,
    duration: Table1<Stage, BoundGauge<f64>>,
    log_memory: BoundGauge<f64>,
    groups: BoundGauge<f64>,
    led: BoundGauge<f64>,
    asleep: BoundGauge<f64>,
    /// What all groups of a host have together.
    sum: Mutex<Share>,
}

impl RaftMetrics {
    /// Makes the gauges in `registry`, and records into `catalogue` too.
    ///
    /// # Errors
    /// [`MetricsError`] if the registry has instruments of these names, or is full.
    pub fn new(registry: &Registry, catalogue: &'static NodeMetrics) -> Result<Self, MetricsError> {
        let stages = |name: &'static str, unit: &'static str, description: &'static str| {
            registry
                .f64_gauge(name)
                .with_unit(unit)
                .with_description(description)
                .build_table::<(Stage,)>()
        };
        let count = |name: &'static str, description: &'static str| {
            registry
                .f64_gauge(name)
                .with_unit("{group}")
                .with_description(description)
                .build_table::<()>()
        };
        Ok(Self {
            catalogue,
            groups: count("raft.groups", "Groups of the host")?,
            led: count("raft.groups.led", "Groups that the host leads")?,
            asleep: count("raft.groups.asleep", "Groups of the host that sleep")?,
            sum: Mutex::default(),
            waiting: stages(
                "raft.stage.waiting",
                "{item}",
                "Items that wait for a stage",
            )?,
            batch: stages(
                "raft.stage.batch",
                "{item}",
                "Items per run of a stage since the last tick",
            )?,
            duration: stages(
                "raft.stage.duration",
                "s",
                "Time per run of a stage since the last tick",
            )?,
            log_memory: registry
                .f64_gauge("raft.log.memory")
                .with_unit("By")
                .with_description("Entries of the log in memory")
                .build_table::<()>()?,
        })
    }
}

/// Turns growing counts of a group into what is new since the last tick.
pub(crate) struct Recorder {
    metrics: Arc<RaftMetrics>,
    last: RaftStats,
    /// What the group has added to the sum; none for a node of one group.
    share: Option<Share>,
}

/// What a group adds to the gauges of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    groups: u64,
    led: u64,
    asleep: u64,
    proposals: u64,
    unapplied: u64,
    log_memory: u64,
}

impl Share {
    fn of(stats: &RaftStats) -> Self {
        Self {
            groups: 1,
            led: u64::from(stats.status.is_leader()),
            asleep: u64::from(stats.core.sleeps > stats.core.wakes),
            proposals: stats.propose.waiting,
            unapplied: stats.apply.waiting,
            log_memory: stats.log_memory_bytes,
        }
    }
}

impl Recorder {
    /// Of a node of one group.
    pub(crate) fn new(metrics: Arc<RaftMetrics>) -> Self {
        Self {
            metrics,
            last: RaftStats::default(),
            share: None,
        }
    }

    /// Of a group of a host.
    pub(crate) fn of_group(metrics: &Arc<RaftMetrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            last: RaftStats::default(),
            share: Some(Share::default()),
        }
    }

    pub(crate) fn record(&mut self, now: &RaftStats) {
        let last = std::mem::replace(&mut self.last, *now);
        let metrics = &*self.metrics;
        let catalogue = metrics.catalogue;
        let (core, before) = (&now.core, &last.core);
        let new = |now: u64, before: u64| now.saturating_sub(before);
        catalogue.raft_proposals[Outcome::Success]
            .add(new(core.proposals_applied, before.proposals_applied));
        catalogue.raft_proposals[Outcome::Failed]
            .add(new(core.proposals_failed, before.proposals_failed));
        catalogue.raft_messages[Direction::Receive]
            .add(new(core.messages_received, before.messages_received));
        catalogue.raft_messages[Direction::Transmit]
            .add(new(core.messages_sent, before.messages_sent));
        catalogue
            .raft_elections
            .add(new(core.elections, before.elections));
        catalogue
            .raft_leader_changes
            .add(new(core.leader_changes, before.leader_changes));
        catalogue.raft_snapshots[Direction::Receive]
            .add(new(core.snapshots_received, before.snapshots_received));
        catalogue.raft_snapshots[Direction::Transmit]
            .add(new(core.snapshots_sent, before.snapshots_sent));
        metrics.stage(Stage::Propose, &now.propose, &last.propose);
        metrics.stage(Stage::Log, &now.log, &last.log);
        metrics.stage(Stage::Apply, &now.apply, &last.apply);
        // One for all groups of a host.
        metrics.waiting[Stage::Log].set(now.log.waiting as f64);
        if let Some(share) = &mut self.share {
            metrics.add(share, Share::of(now));
            return;
        }
        metrics.waiting[Stage::Propose].set(now.propose.waiting as f64);
        metrics.waiting[Stage::Apply].set(now.apply.waiting as f64);
        metrics.log_memory.set(now.log_memory_bytes as f64);
        catalogue.raft_term.set(now.status.term);
        catalogue.raft_commit_index.set(now.status.commit_index);
        catalogue.raft_applied_index.set(now.status.applied_index);
        catalogue
            .raft_is_leader
            .set(u64::from(now.status.is_leader()));
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(share) = &mut self.share {
            self.metrics.add(share, Share::default());
        }
    }
}

impl RaftMetrics {
    /// Puts a share in the place of what the group added before.
    fn add(&self, share: &mut Share, now: Share) {
        let last = std::mem::replace(share, now);
        if last == now {
            return;
        }
        // Gauges are set under the lock: the last one set is that of the last sum.
        let mut sum = self.sum.lock();
        let sum = &mut *sum;
        for (gauge, sum, now, last) in [
            (&self.groups, &mut sum.groups, now.groups, last.groups),
            (&self.led, &mut sum.led, now.led, last.led),
            (&self.asleep, &mut sum.asleep, now.asleep, last.asleep),
            (
                &self.waiting[Stage::Propose],
                &mut sum.proposals,
                now.proposals,
                last.proposals,
            ),
            (
                &self.waiting[Stage::Apply],
                &mut sum.unapplied,
                now.unapplied,
                last.unapplied,
            ),
            (
                &self.log_memory,
                &mut sum.log_memory,
                now.log_memory,
                last.log_memory,
            ),
        ] {
            *sum = *sum + now - last;
            gauge.set(*sum as f64);
        }
    }

    fn stage(&self, stage: Stage, now: &StageStats, last: &StageStats) {
        let runs = now.batches.saturating_sub(last.batches);
        if runs > 0 {
            let items = now.items.saturating_sub(last.items);
            let busy = now.busy.saturating_sub(last.busy);
            self.batch[stage].set(items as f64 / runs as f64);
            self.duration[stage].set(busy.as_secs_f64() / runs as f64);
        }
    }
}
