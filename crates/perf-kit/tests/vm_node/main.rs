//! The example `vm-node`, run as processes.

mod cluster;
mod interface;
mod page;
