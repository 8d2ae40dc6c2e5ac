//! The modules from which this project grew, by their names: code written for them changes its `use` lines.
//!
//! Thin adapters, without logic of their own. New code uses the crates directly: each module says what stands behind it. What differs in meaning is in
//! the table of each module.
//!
//! Types that belonged to the node around those modules (its configuration, its database, its errors, its endpoint) are parameters here, or this
//! project's counterparts.

pub mod caching;
pub mod metrics_otel_optimized;
pub mod node_shared_optimized;
pub mod performance_simple;
pub mod raft_processing_optimized;
pub mod transport_routing_optimized;
