//! How urgent a message is.

use crate::proto::{ConnectionClass, SendQueue};

/// How urgent a message is. It decides the connection and the share of it.
///
/// | | connection | default weight | what the origin sends so |
/// |---|---|---|---|
/// | `Critical` | control | 4 | `raft` |
/// | `High` | control | 1 | `health` |
/// | `Normal` | bulk | 4 | `vm`, `status` |
/// | `Low` | bulk | 1 | everything else |
///
/// Of two classes on one connection each gets its weight while both have something to write, and all of it while the
/// other has nothing: neither starves. Messages of one class to one peer keep their order; messages of different
/// classes have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// What the cluster's life depends on: heartbeats, votes.
    Critical,
    /// What must not wait for bulk: health checks, small appends.
    High,
    /// Requests whose callers wait.
    Normal,
    /// What may take its time: snapshots, logs.
    Low,
}

impl Priority {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// The origin's table: `raft` is critical, `health` high, `vm` and `status` are normal, all else is low.
    ///
    /// ```
    /// use perf_transport::Priority;
    ///
    /// assert_eq!(Priority::from_service_method("raft", "append"), Priority::Critical);
    /// assert_eq!(Priority::from_service_method("logs", "upload"), Priority::Low);
    /// ```
    #[must_use]
    pub fn from_service_method(service: &str, _method: &str) -> Self {
        match service {
            "raft" => Self::Critical,
            "health" => Self::High,
            "vm" | "status" => Self::Normal,
            _ => Self::Low,
        }
    }

    #[inline]
    pub(crate) fn class(self) -> ConnectionClass {
        match self {
            Self::Critical | Self::High => ConnectionClass::Control,
            Self::Normal | Self::Low => ConnectionClass::Bulk,
        }
    }

    #[inline]
    pub(crate) fn queue(self) -> SendQueue {
        match self {
            Self::Critical | Self::Normal => SendQueue::First,
            Self::High | Self::Low => SendQueue::Second,
        }
    }
}
