//! Which nodes fit a VM, and which is best.

mod block;
mod coarse;
mod index;
mod labels;
mod requirements;

pub use index::{NODES_MAX, NodeCapacity, PlacementIndex};
pub use labels::{LABELS_MAX, Label};
pub use requirements::{AVOID_MAX, REQUIRE_MAX, Requirements, Strategy, Unfit};
