//! Bounds of a simulated group.

use super::TICK_NS;
use super::random::Random;
use perf_raft::RaftOptions;
use perf_raft::inbound::InboundLimits;
use std::time::Duration;

/// Half of the seeds have bounds that are met now and then, the others draw each from its least, a small and a large value.
pub(super) fn options(random: &mut Random) -> RaftOptions {
    let mut options = RaftOptions::default();
    options.tick = Duration::from_nanos(TICK_NS);
    options.lease_reads = true;
    options.snapshot_entries = 25;
    options.log_entries_kept = 5;
    options.snapshot_chunk_bytes = 40;
    options.snapshot_window_chunks = 2;
    options.message_bytes_max = 2048;
    options.proposal_bytes_max = 1024;
    options.inflight_messages_max = 8;
    if random.one_in(2) {
        return options;
    }
    let mut draw = |least: u64, small: u64, large: u64| match random.below(4) {
        0 => least,
        1 | 2 => small,
        _ => large,
    };
    const LARGE: u64 = 1 << 40;
    options.snapshot_entries = draw(1, 25, LARGE);
    options.log_entries_kept = draw(0, 5, 100);
    options.snapshot_chunk_bytes = draw(1, 40, 1000) as usize;
    options.snapshot_window_chunks = draw(1, 2, 64 * 1024) as usize;
    options.message_bytes_max = draw(1, 2048, 1 << 20) as usize;
    options.inflight_messages_max = draw(1, 8, 16 * 1024) as usize;
    options.proposals_max = draw(1, 20, 1 << 24) as usize;
    options.uncommitted_bytes_max =
        draw(2048, 8192, LARGE).max(options.message_bytes_max as u64) as usize;
    options.unapplied_entries_max = draw(1, 10, LARGE);
    options.reads_max = draw(1, 4, 1 << 24) as usize;
    options.log_bytes_max = draw(8 * 1024, 16 * 1024, LARGE) as usize;
    options.snapshot_log_bytes =
        draw(1, 4 * 1024, LARGE).min(options.log_bytes_max as u64) as usize;
    options.inbound_messages_max = draw(1, 8, 4096) as usize;
    options.snapshot_window_chunks = options
        .snapshot_window_chunks
        .min(options.inbound_messages_max);
    options
}

pub(super) fn limits(options: &RaftOptions) -> InboundLimits {
    InboundLimits {
        messages_max: options.inbound_messages_max,
        ..InboundLimits::default()
    }
}
