//! Lock-free node state.
