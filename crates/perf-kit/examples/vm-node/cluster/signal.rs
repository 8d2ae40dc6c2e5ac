//! Pauses processes, and asks them to end.

use std::io;

/// Stops a process where it is (SIGSTOP), or lets it go on (SIGCONT).
#[cfg(unix)]
pub(super) fn pause(pid: u32, pause: bool) -> io::Result<()> {
    use rustix::process::Signal;
    send(pid, if pause { Signal::STOP } else { Signal::CONT })
}

/// Asks a process to end (SIGTERM).
#[cfg(unix)]
pub(super) fn end(pid: u32) -> io::Result<()> {
    send(pid, rustix::process::Signal::TERM)
}

#[cfg(unix)]
fn send(pid: u32, signal: rustix::process::Signal) -> io::Result<()> {
    use rustix::process::{Pid, kill_process};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no process has such an id"))?;
    Ok(kill_process(pid, signal)?)
}

/// Asks a process to end: not on this system.
#[cfg(not(unix))]
pub(super) fn end(_pid: u32) -> io::Result<()> {
    Err(io::Error::other(
        "processes cannot be asked to end on this system",
    ))
}

/// Stops a process where it is, or lets it go on: not on this system.
#[cfg(not(unix))]
pub(super) fn pause(_pid: u32, _pause: bool) -> io::Result<()> {
    Err(io::Error::other(
        "processes cannot be paused on this system",
    ))
}
