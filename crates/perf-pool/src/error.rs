//! What can go wrong.

use crate::class::ALIGN_MAX;
use std::error::Error;
use std::fmt;

/// Why a buffer could not be handed out or filled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolError {
    /// The request is above the pool's cap.
    RequestTooLarge {
        /// What was asked for.
        requested_bytes: usize,
        /// What the pool serves at most.
        request_bytes_max: usize,
    },
    /// The request is within the cap, but the allocator has no memory for it.
    OutOfMemory {
        /// What was asked for.
        requested_bytes: usize,
    },
    /// The budget is used up, and the pool refuses what it cannot pool
    /// ([`Config::refuse_beyond_budget`](crate::Config::refuse_beyond_budget)).
    BudgetUsedUp {
        /// What was asked for.
        requested_bytes: usize,
        /// The bound on pooled memory.
        budget_bytes: u64,
        /// What guards hold, leaked ones included.
        lent_bytes: u64,
        /// What frozen buffers hold that are still read, or that no request has looked at since.
        frozen_bytes: u64,
        /// What other threads keep idle for themselves.
        idle_bytes: u64,
    },
    /// All buffers of a pool that makes no more are lent.
    BuffersUsedUp {
        /// The bound on its buffers.
        buffers_max: u64,
    },
    /// Buffers cannot be aligned like this.
    BadAlignment {
        /// The size that was asked for.
        bytes: usize,
        /// The alignment that was asked for.
        align: usize,
    },
    /// An arena has no room for a value: the request's bound is reached, or the allocator has no memory.
    ArenaFull {
        /// The size of the value.
        requested_bytes: usize,
        /// What the arena holds already.
        held_bytes: usize,
        /// What one request may hold.
        request_bytes_max: usize,
    },
    /// A write does not fit into the rest of a buffer that cannot grow.
    BufferFull {
        /// What was to be written.
        requested_bytes: usize,
        /// What still fits.
        remaining_bytes: usize,
    },
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestTooLarge {
                requested_bytes,
                request_bytes_max,
            } => write!(
                f,
                "a buffer of {requested_bytes} bytes was requested, but this pool serves at most \
                 {request_bytes_max}: send the data in parts or raise `Config::request_bytes_max`"
            ),
            Self::OutOfMemory { requested_bytes } => write!(
                f,
                "the allocator has no {requested_bytes} bytes for an unpooled buffer: free memory or \
                 lower `Config::request_bytes_max`"
            ),
            Self::BudgetUsedUp {
                requested_bytes,
                budget_bytes,
                lent_bytes,
                frozen_bytes,
                idle_bytes,
            } => write!(
                f,
                "no buffer for {requested_bytes} bytes fits into the budget of {budget_bytes} bytes, of which guards hold \
                 {lent_bytes}, frozen bytes {frozen_bytes}, and other threads {idle_bytes} idle: drop guards, copy small \
                 slices of frozen bytes with `BufferPool::copy_bytes`, lower `Config::thread_bytes_max`, or raise \
                 `Config::budget_bytes`"
            ),
            Self::BuffersUsedUp { buffers_max } => write!(
                f,
                "all {buffers_max} buffers of the pool are in use: drop guards or give the pool more buffers"
            ),
            Self::BadAlignment { bytes, align } => write!(
                f,
                "buffers of {bytes} bytes cannot be aligned to {align}: the alignment must be a power of two up to \
                 {ALIGN_MAX}, and the size a multiple of it above 0"
            ),
            Self::ArenaFull {
                requested_bytes,
                held_bytes,
                request_bytes_max,
            } => write!(
                f,
                "{requested_bytes} bytes do not fit into an arena that holds {held_bytes}, of {request_bytes_max} that one \
                 request may: split the request, raise `ArenaConfig::request_bytes_max`, or free memory"
            ),
            Self::BufferFull {
                requested_bytes,
                remaining_bytes,
            } => write!(
                f,
                "{requested_bytes} bytes do not fit into the {remaining_bytes} that remain: ask for \
                 the whole size when getting the buffer"
            ),
        }
    }
}

impl Error for PoolError {}
