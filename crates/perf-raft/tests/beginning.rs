//! How a new group gets its first leader.
#![cfg(not(perf_loom))]

use bytes::Bytes;
use perf_raft::core::{ApplyJob, Core, CoreConfig, Outputs, bootstrap_state, encode_frames};
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
        let state = bootstrap_state(&[3, 2, 1], Bytes::new());
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
                        ApplyJob::Snapshot => {}
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
