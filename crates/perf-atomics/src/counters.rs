//! Counters that describe a state ("how many VMs are there"), shared by all threads.

use crate::cache_line::CacheLine;
use crate::primitive::plain::{AtomicU64, Ordering};
use std::fmt;

/// One number that several threads set and change, on its own cache line; never wraps.
///
/// For counting events on a hot path use [`OwnedCounter`](crate::OwnedCounter): there an add is not
/// an atomic read-modify-write. This type is for numbers that go up and down and are read as
/// often as they are changed.
///
/// Reads are `Acquire`, changes `AcqRel`. A read is one load, a change is one compare-exchange when
/// no other thread interferes.
#[derive(Default)]
pub struct StateCounter(CacheLine<AtomicU64>);

impl StateCounter {
    /// A counter at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(CacheLine(AtomicU64::new(0)))
    }

    /// The value now.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.0.load(Ordering::Acquire)
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.0.store(value, Ordering::Release);
    }

    /// Adds one and returns the value before. Stays at `u64::MAX`.
    #[inline]
    pub fn increment(&self) -> u64 {
        self.add(1)
    }

    /// Adds `amount` and returns the value before. Stays at `u64::MAX`.
    #[inline]
    pub fn add(&self, amount: u64) -> u64 {
        self.0
            .0
            .update(Ordering::AcqRel, Ordering::Acquire, |value| {
                value.saturating_add(amount)
            })
    }

    /// Takes one away and returns the value before.
    ///
    /// # Errors
    /// [`CounterUnderflow`] if the counter was at zero, where it stays.
    #[inline]
    pub fn decrement(&self) -> Result<u64, CounterUnderflow> {
        self.remove(1)
    }

    /// Takes `amount` away and returns the value before.
    ///
    /// # Errors
    /// [`CounterUnderflow`] if less than `amount` was there. The counter is then at zero: a state cannot
    /// be negative, and the caller knows better than this type what the difference means.
    #[inline]
    pub fn remove(&self, amount: u64) -> Result<u64, CounterUnderflow> {
        let before = self
            .0
            .0
            .update(Ordering::AcqRel, Ordering::Acquire, |value| {
                value.saturating_sub(amount)
            });
        if before < amount {
            return Err(CounterUnderflow {
                requested: amount,
                available: before,
            });
        }
        Ok(before)
    }
}

impl fmt::Debug for StateCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// More was taken from a [`StateCounter`] than it held; it is at zero now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CounterUnderflow {
    /// How much was to be taken away.
    pub requested: u64,
    /// How much there was.
    pub available: u64,
}

impl fmt::Display for CounterUnderflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot remove {} from a counter that holds {}: at most {} can be removed; the counter is at 0 now, \
             check that every removal follows its own addition",
            self.requested, self.available, self.available
        )
    }
}

impl std::error::Error for CounterUnderflow {}

/// Declares a set of [`StateCounter`]s, each on its own cache line.
///
/// The set has `const fn new()`, a public field for each counter, a method of the same name that reads it, and
/// `values()` for all names with their values.
///
/// ```
/// perf_atomics::counter_set! {
///     /// What a storage node holds.
///     pub struct StorageCounters {
///         /// Open volumes.
///         volumes,
///         /// Bytes promised to volumes.
///         bytes_reserved,
///     }
/// }
///
/// let counters = StorageCounters::new();
/// counters.volumes.increment();
/// counters.bytes_reserved.add(4096);
/// assert_eq!(counters.bytes_reserved.remove(4096), Ok(4096));
/// assert!(counters.bytes_reserved.remove(1).is_err());
/// assert_eq!(counters.values(), [("volumes", 1), ("bytes_reserved", 0)]);
/// ```
#[macro_export]
macro_rules! counter_set {
    (
        $(#[$set_meta:meta])*
        $vis:vis struct $Set:ident {
            $($(#[$counter_meta:meta])* $counter:ident),+ $(,)?
        }
    ) => {
        $(#[$set_meta])*
        #[derive(Debug, Default)]
        $vis struct $Set {
            $($(#[$counter_meta])* pub $counter: $crate::StateCounter,)+
        }

        #[allow(dead_code)]
        impl $Set {
            /// A set with all counters at zero.
            #[must_use]
            pub const fn new() -> Self {
                Self { $($counter: $crate::StateCounter::new(),)+ }
            }

            $(
                $(#[$counter_meta])*
                ///
                /// One `Acquire` load.
                #[inline]
                #[must_use]
                pub fn $counter(&self) -> u64 {
                    self.$counter.get()
                }
            )+

            /// Each counter's name and value, in the order of declaration. The values are read one after the
            /// other, not at one moment.
            #[must_use]
            pub fn values(&self) -> [(&'static str, u64); [$(stringify!($counter)),+].len()] {
                [$((stringify!($counter), self.$counter.get())),+]
            }
        }
    };
}

counter_set! {
    /// What a node of a VM cluster counts.
    ///
    /// ```
    /// use perf_atomics::AtomicCounters;
    ///
    /// static COUNTERS: AtomicCounters = AtomicCounters::new();
    ///
    /// COUNTERS.increment_vm_count();
    /// COUNTERS.add_used_vcpus(4);
    /// assert_eq!(COUNTERS.vm_count(), 1);
    /// assert_eq!(COUNTERS.remove_used_vcpus(4), Ok(4));
    /// assert!(COUNTERS.remove_used_vcpus(1).is_err());
    /// ```
    pub struct AtomicCounters {
        /// VMs known to this node.
        vm_count,
        /// VMs that run.
        running_vms,
        /// Nodes in the cluster.
        cluster_nodes,
        /// Virtual CPUs of the cluster.
        total_vcpus,
        /// Virtual CPUs given to VMs.
        used_vcpus,
        /// Nodes of the cluster that answer.
        healthy_nodes,
        /// Memory of the cluster, in MiB.
        total_memory_mb,
        /// Memory given to VMs, in MiB.
        used_memory_mb,
        /// Disk space of the cluster, in GiB.
        total_disk_gb,
        /// Disk space given to VMs, in GiB.
        used_disk_gb,
    }
}

/// Writes the changing methods of one counter under their long names.
macro_rules! named_changes {
    ($($counter:ident: $set:ident $increment:ident $decrement:ident $add:ident $remove:ident;)+) => {
        impl AtomicCounters {
            $(
                #[doc = concat!("Sets [`", stringify!($counter), "`](Self::", stringify!($counter), "()).")]
                #[inline]
                pub fn $set(&self, count: u64) {
                    self.$counter.set(count);
                }

                #[doc = concat!("Adds one to [`", stringify!($counter), "`](Self::", stringify!($counter), "()) and returns the value before.")]
                #[inline]
                pub fn $increment(&self) -> u64 {
                    self.$counter.increment()
                }

                #[doc = concat!("Takes one from [`", stringify!($counter), "`](Self::", stringify!($counter), "()) and returns the value before.")]
                ///
                /// # Errors
                /// [`CounterUnderflow`] if it was at zero, where it stays.
                #[inline]
                pub fn $decrement(&self) -> Result<u64, CounterUnderflow> {
                    self.$counter.decrement()
                }

                #[doc = concat!("Adds `count` to [`", stringify!($counter), "`](Self::", stringify!($counter), "()) and returns the value before.")]
                #[inline]
                pub fn $add(&self, count: u64) -> u64 {
                    self.$counter.add(count)
                }

                #[doc = concat!("Takes `count` from [`", stringify!($counter), "`](Self::", stringify!($counter), "()) and returns the value before.")]
                ///
                /// # Errors
                /// [`CounterUnderflow`] if it was less than `count`; it is at zero then.
                #[inline]
                pub fn $remove(&self, count: u64) -> Result<u64, CounterUnderflow> {
                    self.$counter.remove(count)
                }
            )+
        }
    };
}

named_changes! {
    vm_count: set_vm_count increment_vm_count decrement_vm_count add_vm_count remove_vm_count;
    running_vms: set_running_vms increment_running_vms decrement_running_vms add_running_vms remove_running_vms;
    cluster_nodes: set_cluster_nodes increment_cluster_nodes decrement_cluster_nodes add_cluster_nodes remove_cluster_nodes;
    total_vcpus: set_total_vcpus increment_total_vcpus decrement_total_vcpus add_total_vcpus remove_total_vcpus;
    used_vcpus: set_used_vcpus increment_used_vcpus decrement_used_vcpus add_used_vcpus remove_used_vcpus;
    healthy_nodes: set_healthy_nodes increment_healthy_nodes decrement_healthy_nodes add_healthy_nodes remove_healthy_nodes;
    total_memory_mb: set_total_memory_mb increment_total_memory_mb decrement_total_memory_mb add_total_memory_mb remove_total_memory_mb;
    used_memory_mb: set_used_memory_mb increment_used_memory_mb decrement_used_memory_mb add_used_memory_mb remove_used_memory_mb;
    total_disk_gb: set_total_disk_gb increment_total_disk_gb decrement_total_disk_gb add_total_disk_gb remove_total_disk_gb;
    used_disk_gb: set_used_disk_gb increment_used_disk_gb decrement_used_disk_gb add_used_disk_gb remove_used_disk_gb;
}
