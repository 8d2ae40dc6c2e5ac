//! What can go wrong.

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
            } => write!(
                f,
                "no buffer for {requested_bytes} bytes fits into the budget of {budget_bytes} bytes, of which guards hold \
                 {lent_bytes} and frozen bytes {frozen_bytes}: drop guards, copy small slices of frozen bytes with \
                 `BufferPool::copy_bytes`, or raise `Config::budget_bytes`"
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
