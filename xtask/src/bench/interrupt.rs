//! Ctrl-C: the run stops, and what was measured until then is reported.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The exit status of a program that Ctrl-C ended, as shells count it: 128 + SIGINT.
pub(crate) const STATUS: u8 = 130;

/// The error of what stopped halfway.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From now on the first Ctrl-C is noted, and the second one ends the program at once.
pub(crate) fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        // Relaxed: the flag publishes nothing but itself.
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(STATUS));
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether Ctrl-C was pressed.
pub(crate) fn is_set() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails after Ctrl-C.
pub(crate) fn check() -> Result<()> {
    if is_set() {
        return Err(Interrupted.into());
    }
    Ok(())
}
