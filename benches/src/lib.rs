//! Before, after and peers for every case of the workspace.
//!
//! [`cases::all`] is the one list: criterion, the paired runner, the allocation counter and the
//! instruction counter all run the same paths.

pub mod case;
pub mod cases;
