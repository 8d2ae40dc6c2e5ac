//! Before, after and peers for every case of the workspace.
//!
//! [`cases::all`] is the one list: criterion, the paired runner, the allocation counter and the
//! instruction counter all run the same paths. [`worker`] is what `cargo xtask bench` talks to.

pub mod case;
pub mod cases;
pub mod experiment;
pub mod headline;
pub mod mix;
pub mod protocol;
pub mod team;
pub mod worker;
