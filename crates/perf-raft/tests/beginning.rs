//! How a new group gets its first leader.
#![cfg(not(perf_loom))]

use bytes::Bytes;
use perf_raft::core::{
    ApplyJob, Core, CoreConfig, FORKED_BEFORE_FORMING, Outputs, bootstrap_state, encode_frames,
};
use perf_raft::{GroupId, OutboundMessage, RaftOptions, Role};
use std::collections::BTreeMap;

/// Cores whose every output is done at once.
struct Group {
    cores: BTreeMap<u64, Core<()>>,
    ticks: u64,
}

impl Group {
    /// These of the members 1 to 3.
    fn of(ids: &[u64]) -> Self {
        Self::at_term(1, ids)
    }

    /// The members `ids`, at a later term than the first.
    fn at_term(term: u64, ids: &[u64]) -> Self {
        let mut state = bootstrap_state(&[3, 2, 1], Bytes::new());
        state.hard_state.term = term;
        let start = |&id: &u64| {
            let config = CoreConfig {
                id,
                group: GroupId(1),
                options: RaftOptions::default(),
                seed: 7,
                incarnation: id,
                session: id,
                entry_memory: perf_raft::EntryMemory::of_process(),
            };
            let core = Core::new(config, state.clone()).expect("a sound start");
            (id, core)
        };
        let mut group = Self {
            cores: ids.iter().map(start).collect(),
            ticks: 0,
        };
        group.settle();
        group
    }

    /// Does what the cores ask for, until they ask for nothing.
    fn settle(&mut self) {
        loop {
            let mut sent: Vec<(u64, Bytes)> = Vec::new();
            let mut done = true;
            for core in self.cores.values_mut() {
                let mut out = Outputs::default();
                core.poll(&mut out);
                assert_eq!(core.check_invariants(), Ok(()));
                done &= out.is_empty();
                let send = |message: OutboundMessage| {
                    sent.push((message.to, message.frame));
                    Ok(())
                };
                encode_frames(&mut out.frames, true, send, |_, _| {});
                for job in out.log_jobs {
                    core.persisted(job.sequence);
                }
                for job in out.apply_jobs {
                    match job {
                        ApplyJob::Apply { index, .. } => core.applied(index),
                        ApplyJob::Restore(snapshot) => core.applied(snapshot.metadata.index),
                        ApplyJob::DurableIndex => unreachable!("the machine is not durable"),
                        ApplyJob::Snapshot => {
                            let index = core.status().applied_index;
                            core.snapshot_made(index, Ok(Bytes::new()));
                        }
                    }
                }
            }
            for (to, frame) in sent {
                if let Some(core) = self.cores.get_mut(&to) {
                    core.receive_encoded(frame);
                }
            }
            if done {
                return;
            }
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        for core in self.cores.values_mut() {
            core.tick(self.ticks * 50_000_000);
        }
        self.settle();
    }

    fn leaders(&self) -> Vec<u64> {
        let leads = |core: &Core<()>| core.status().role == Role::Leader;
        let leaders = self.cores.iter().filter(|(_, core)| leads(core));
        leaders.map(|(id, _)| *id).collect()
    }

    fn ticks_to_a_leader(&mut self) -> u64 {
        while self.leaders().is_empty() {
            assert!(self.ticks < 1000, "nobody is elected");
            self.tick();
        }
        self.ticks
    }
}

#[test]
fn the_first_member_leads_with_the_first_tick() {
    let mut group = Group::of(&[1, 2, 3]);
    group.tick();
    assert_eq!(group.leaders(), [1]);
    for core in group.cores.values() {
        assert_eq!((core.status().leader_id, core.status().term), (1, 2));
    }
}

#[test]
fn it_waits_for_members_that_start_later() {
    let heartbeat = RaftOptions::default().heartbeat_ticks as u64;
    let mut group = Group::of(&[1]);
    for _ in 0..4 {
        group.tick();
    }
    let term = group.cores[&1].status().term;
    assert_eq!(term, 1, "asking for votes disturbs nobody");
    let late = Group::of(&[2]);
    group.cores.extend(late.cores);
    let began = group.ticks;
    assert!(group.ticks_to_a_leader() <= began + heartbeat);
    assert_eq!(group.leaders(), [1]);
}

#[test]
fn others_elect_one_of_them_after_their_timeouts() {
    let election = RaftOptions::default().election_ticks as u64;
    let mut group = Group::of(&[2, 3]);
    assert!(group.ticks_to_a_leader() >= election);
    // A first member that comes when there is a leader follows it.
    let leaders = group.leaders();
    let late = Group::of(&[1]);
    group.cores.extend(late.cores);
    for _ in 0..4 * election {
        group.tick();
        assert_eq!(group.leaders(), leaders);
    }
    assert_eq!(group.cores[&1].status().leader_id, leaders[0]);
}

/// Node 3 has committed entries with node 1, one more for each hand-over, and both others lose their disks before the group is formed: these two elect one
/// of them at a later term.
/// Returns the new group with node 3 in it, and node 1 as it was before.
fn forked_founder(hand_overs: u64) -> (Group, Core<()>) {
    let mut old = Group::of(&[1, 3]);
    old.ticks_to_a_leader();
    for _ in 0..hand_overs {
        let leader = old.leaders()[0];
        let core = old.cores.get_mut(&leader).expect("it leads");
        core.transfer_leader(4 - leader, ());
        old.settle();
    }
    old.tick();
    let left_over = old.cores.remove(&3).expect("it is there");
    assert!(left_over.status().commit_index >= 2 + hand_overs && !left_over.is_formed());
    let mut group = Group::at_term(5, &[1, 2]);
    group.ticks_to_a_leader();
    group.cores.insert(3, left_over);
    (group, old.cores.remove(&1).expect("it is there"))
}

#[test]
fn a_founder_that_is_left_over_gets_a_snapshot() {
    let (mut group, _) = forked_founder(0);
    for _ in 0..100 {
        group.tick();
    }
    let leader = group.leaders()[0];
    let (index, term) = (
        group.cores[&leader].log_range().1,
        group.cores[&leader].status().term,
    );
    let core = &group.cores[&3];
    assert_eq!(core.defect(), None);
    assert_eq!(
        (core.log_range().1, core.log_term(index)),
        (index, Some(term))
    );
    assert!(core.is_formed());
}

#[test]
fn a_founder_that_no_leader_can_help_stops_and_says_that_its_files_may_go() {
    let (mut group, _) = forked_founder(3);
    // The leader's snapshot does not go as far as what node 3 has committed, and too few are left to commit more.
    let leader = group.leaders()[0];
    group.cores.retain(|id, _| [leader, 3].contains(id));
    assert!(group.cores[&leader].status().commit_index < group.cores[&3].status().commit_index);
    let patience = 10 * RaftOptions::default().election_ticks;
    let stops = (0..2 * patience).position(|_| {
        group.tick();
        group.cores[&3].defect() == Some(FORKED_BEFORE_FORMING)
    });
    assert!(
        stops.is_some_and(|ticks| ticks + 1 >= patience),
        "{stops:?}"
    );
}

#[test]
fn a_founder_is_not_forked_any_more_once_a_leader_agrees_with_it() {
    let (mut group, old_first) = forked_founder(3);
    let leader = group.leaders()[0];
    group.cores.retain(|id, _| [leader, 3].contains(id));
    let patience = 10 * RaftOptions::default().election_ticks;
    for _ in 0..patience / 2 {
        group.tick();
    }
    // The disk of node 1 was not lost after all, and those that contradicted node 3 go.
    group.cores.retain(|id, _| *id == 3);
    group.cores.insert(1, old_first);
    for _ in 0..2 * patience {
        group.tick();
        assert_eq!(group.cores[&3].defect(), None);
    }
    assert_eq!(group.leaders().len(), 1);
    let [first, third] = [&group.cores[&1], &group.cores[&3]];
    assert_eq!(first.log_range().1, third.log_range().1);
    assert!(!third.is_formed(), "else it would not stop anyway");
}
