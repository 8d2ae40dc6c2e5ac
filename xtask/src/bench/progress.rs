//! What a waiting person sees: one line that changes on a terminal, a line per case elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

/// Progress on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    is_terminal: bool,
    total: usize,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            is_terminal: stderr().is_terminal(),
            total,
        }
    }

    /// Announces the next case.
    pub(crate) fn case(&self, number: usize, id: &str, left: Duration) {
        self.show(&format!(
            "[{number}/{}] {id}, {}",
            self.total,
            time_left(left)
        ));
    }

    /// Announces the next case of a run whose length nobody knows.
    pub(crate) fn note(&self, number: usize, id: &str) {
        self.show(&format!("[{number}/{}] {id}", self.total));
    }

    /// Announces a part of the current case; only where it does not add a line.
    pub(crate) fn part(&self, number: usize, id: &str, part: &str, left: Duration) {
        if self.is_terminal {
            self.show(&format!(
                "[{number}/{}] {id}: {part}, {}",
                self.total,
                time_left(left)
            ));
        }
    }

    /// Takes the changing line away.
    pub(crate) fn clear(&self) {
        if self.is_terminal {
            self.write("\r\x1b[2K");
        }
    }

    fn show(&self, text: &str) {
        if self.is_terminal {
            self.write(&format!("\r\x1b[2K{text}"));
        } else {
            self.write(&format!("{text}\n"));
        }
    }

    fn write(&self, text: &str) {
        let mut err = stderr().lock();
        // Progress that nobody can see is no reason to stop measuring.
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn time_left(left: Duration) -> String {
    let seconds = left.as_secs();
    match seconds {
        0..60 => format!("about {seconds} s left"),
        _ => format!("about {} min {:02} s left", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_in_seconds_or_minutes() {
        assert_eq!(time_left(Duration::from_secs(59)), "about 59 s left");
        assert_eq!(time_left(Duration::from_secs(61)), "about 1 min 01 s left");
    }
}
