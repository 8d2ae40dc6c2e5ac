//! The example `vm-node`, run as processes.

mod cluster;
mod groups;
mod interface;
mod page;
#[path = "../../examples/vm-node/cluster/ports.rs"]
mod ports;
