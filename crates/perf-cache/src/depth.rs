//! Whether this thread is inside a computation of any cache.
//!
//! A computing thread never waits for another computation: two that need each other's keys would wait for ever. It computes for
//! itself instead.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Ends with the computation, or with one poll of it.
pub(crate) struct Inside(());

pub(crate) fn enter() -> Inside {
    // A thread-local without a destructor can always be reached.
    let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
    Inside(())
}

pub(crate) fn is_inside() -> bool {
    DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false)
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
    }
}
