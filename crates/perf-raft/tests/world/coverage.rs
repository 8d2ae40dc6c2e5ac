//! What a run met, to see that the simulation meets what it is for.

macro_rules! counts {
    ($($name:ident)*) => {
        /// Counts over a run.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Coverage {
            $(pub(crate) $name: u64,)*
            /// Of all that happened, to compare two runs of a seed.
            pub(crate) trace: u64,
        }

        impl std::ops::AddAssign for Coverage {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
                self.trace ^= other.trace;
            }
        }
    };
}

counts! {
    writes_acked
    reads
    lease_reads
    unknown
    refused
    crashes
    fsync_errors
    jobs_lost
    partitions
    snapshots_installed
    empty_installed
    memberships
    transfers
    leaders
    duplicates
    batches
    batched
    sends_refused
    snapshots_failed
    late_reports
    appends_refused
    busy
    disks_replaced
    taken_in
    strangers
    left_over
    slow_snapshots
    late_words
    too_long
    bursts
    emptied
    mixed
    mixed_named
    wrong_logs
    late_frames
    late_heartbeats
    fetched
    failed_reads
    sleeps
    wakes
    lost_hosts
    lost_beats
    ticks_asleep
    pieces_read
    pieces_written
    streams_failed
    durable_starts
    durable_indexes
}
