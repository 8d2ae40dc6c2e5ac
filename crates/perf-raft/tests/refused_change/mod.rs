//! A change of the membership that finds no room in the log.

use bytes::Bytes;
use perf_raft::core::{
    ApplyJob, Core, CoreConfig, MembershipChange, Outputs, Reply, bootstrap_state,
};
use perf_raft::{GroupId, RaftOptions};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Write,
    Change,
}

/// A group of one whose disk may hang.
struct Alone {
    core: Core<Asked>,
    hangs: bool,
    written: u64,
    replies: Vec<(Asked, Reply)>,
    ticks: u64,
}

impl Alone {
    fn start(options: RaftOptions) -> Self {
        let config = CoreConfig {
            id: 1,
            group: GroupId(1),
            options,
            seed: 7,
            incarnation: 1,
            session: 1,
            entry_memory: perf_raft::EntryMemory::of_process(),
        };
        let state = bootstrap_state(&[1], Bytes::new());
        Self {
            core: Core::new(config, state).expect("a sound start"),
            hangs: false,
            written: 0,
            replies: Vec::new(),
            ticks: 0,
        }
    }

    fn settle(&mut self) {
        loop {
            if !self.hangs && self.written > 0 {
                self.core.persisted(std::mem::take(&mut self.written));
            }
            let mut out = Outputs::default();
            self.core.poll(&mut out);
            assert_eq!(self.core.check_invariants(), Ok(()));
            if out.is_empty() {
                return;
            }
            for job in out.log_jobs {
                self.written = job.sequence;
            }
            for job in out.apply_jobs {
                match job {
                    ApplyJob::Apply { index, .. } => self.core.applied(index),
                    ApplyJob::Restore(snapshot) => self.core.applied(snapshot.metadata.index),
                    ApplyJob::DurableIndex => unreachable!("the machine is not durable"),
                    ApplyJob::Snapshot => {
                        let index = self.core.status().applied_index;
                        self.core.snapshot_made(index, Ok(Bytes::new()));
                    }
                }
            }
            self.replies.extend(out.replies);
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.core.tick(self.ticks * 50_000_000);
        self.settle();
    }

    fn is_changed(&self) -> bool {
        let mut replies = self.replies.iter();
        replies.any(|(_, reply)| matches!(reply, Reply::Membership(_)))
    }
}

/// The log is full of writes that wait for the disk. Nobody writes afterwards.
pub(crate) fn is_made_later() -> Result<(), String> {
    let mut options = RaftOptions::default();
    options.message_bytes_max = 1024;
    options.proposal_bytes_max = 1024;
    options.uncommitted_bytes_max = 4096;
    let mut node = Alone::start(options);
    node.settle();
    for _ in 0..30 {
        node.tick();
    }
    node.hangs = true;
    // Up to the last byte.
    for bytes in [1000, 1] {
        node.replies.clear();
        while node.replies.is_empty() {
            node.core
                .propose(&mut vec![(vec![7; bytes].into(), Asked::Write)]);
            node.settle();
        }
    }
    node.replies.clear();
    let change = [MembershipChange::AddLearner(2)];
    node.core.change_membership(&change, false, Asked::Change);
    node.settle();
    if !node.replies.is_empty() {
        return Err(format!("{:?} though the disk hangs", node.replies));
    }
    node.hangs = false;
    for _ in 0..20 {
        node.tick();
    }
    match node.is_changed() {
        true => Ok(()),
        false => Err(format!("{:?} after {} ticks", node.replies, node.ticks)),
    }
}
