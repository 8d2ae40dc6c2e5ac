//! Pauses processes.

use std::io;

/// Stops a process where it is (SIGSTOP), or lets it go on (SIGCONT).
#[cfg(unix)]
pub(super) fn pause(pid: u32, pause: bool) -> io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no process has such an id"))?;
    let signal = if pause { Signal::STOP } else { Signal::CONT };
    Ok(kill_process(pid, signal)?)
}

/// Stops a process where it is, or lets it go on: not on this system.
#[cfg(not(unix))]
pub(super) fn pause(_pid: u32, _pause: bool) -> io::Result<()> {
    Err(io::Error::other(
        "processes cannot be paused on this system",
    ))
}
