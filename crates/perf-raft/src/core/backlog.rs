//! What the state machine was given and has not applied.

use std::collections::VecDeque;

/// Commands with the state machine, by the jobs that hold them.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// The last index of each job, and its commands.
    jobs: VecDeque<(u64, u64)>,
    commands: u64,
}

impl Backlog {
    pub(super) fn commands(&self) -> u64 {
        self.commands
    }

    pub(super) fn given(&mut self, last_index: u64, commands: u64) {
        self.jobs.push_back((last_index, commands));
        self.commands += commands;
    }

    /// The state machine is at `index`.
    pub(super) fn applied(&mut self, index: u64) {
        while let Some(&(last_index, commands)) = self.jobs.front()
            && last_index <= index
        {
            self.jobs.pop_front();
            self.commands -= commands;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_end_in_their_order() {
        let mut backlog = Backlog::default();
        for (index, commands) in [(3, 10), (7, 0), (9, 5)] {
            backlog.given(index, commands);
        }
        let after = |backlog: &mut Backlog, index| {
            backlog.applied(index);
            backlog.commands()
        };
        assert_eq!(backlog.commands(), 15);
        assert_eq!(after(&mut backlog, 2), 15);
        assert_eq!(after(&mut backlog, 8), 5);
        assert_eq!(after(&mut backlog, 9), 0);
    }
}
