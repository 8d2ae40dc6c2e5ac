//! A node's figures as metrics, recorded at each tick.

use crate::shell::{RaftStats, StageStats};
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

/// Instruments of a node: the `raft.*` ones of the catalogue, and gauges of each stage.
///
/// `raft.proposals` leaves out what was refused because another node leads: its sender proposes it there.
///
/// | name | unit | what |
/// |---|---|---|
/// | `raft.stage.waiting` | `{item}` | items that wait for the stage |
/// | `raft.stage.batch` | `{item}` | items per run since the last tick |
/// | `raft.stage.duration` | `s` | time per run since the last tick |
/// | `raft.log.memory` | `By` | the log in memory |
#[derive(Debug)]
pub struct RaftMetrics {
    catalogue: &'static NodeMetrics,
    waiting: Table1<Stage, BoundGauge<f64>>,
    batch: Table1<Stage, BoundGauge<f64>>,
    duration: Table1<Stage, BoundGauge<f64>>,
    log_memory: BoundGauge<f64>,
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
        Ok(Self {
            catalogue,
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

/// Turns growing counts into what is new since the last tick.
pub(crate) struct Recorder {
    metrics: Arc<RaftMetrics>,
    last: RaftStats,
}

impl Recorder {
    pub(crate) fn new(metrics: Arc<RaftMetrics>) -> Self {
        Self {
            metrics,
            last: RaftStats::default(),
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
        catalogue.raft_term.set(now.status.term);
        catalogue.raft_commit_index.set(now.status.commit_index);
        catalogue.raft_applied_index.set(now.status.applied_index);
        catalogue
            .raft_is_leader
            .set(u64::from(now.status.is_leader()));
        metrics.stage(Stage::Propose, &now.propose, &last.propose);
        metrics.stage(Stage::Log, &now.log, &last.log);
        metrics.stage(Stage::Apply, &now.apply, &last.apply);
        metrics.log_memory.set(now.log_memory_bytes as f64);
    }
}

impl RaftMetrics {
    fn stage(&self, stage: Stage, now: &StageStats, last: &StageStats) {
        self.waiting[stage].set(now.waiting as f64);
        let runs = now.batches.saturating_sub(last.batches);
        if runs > 0 {
            let items = now.items.saturating_sub(last.items);
            let busy = now.busy.saturating_sub(last.busy);
            self.batch[stage].set(items as f64 / runs as f64);
            self.duration[stage].set(busy.as_secs_f64() / runs as f64);
        }
    }
}
