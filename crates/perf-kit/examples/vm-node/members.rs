//! The members of all Raft groups. The first group has the say: an operator changes its members, and the leader of
//! each other group makes those of its own group the same, step by step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perf_kit::raft::{MemberRole, MembershipChange, RaftHandle, RaftReport, Trouble};

use crate::answer::{Member, Members, Refusal, member_role};
use crate::inventory::command::{Action, Command, Host, Outcome};
use crate::machine::Shared;
use crate::node::{FastNode, propose};
use crate::view::View;

/// How long a change of the membership may take: a new member gets the log first.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// How often a leader compares its group's members with the first group's.
const LOOK: Duration = Duration::from_millis(100);
/// How often a node that was asked for a change looks whether all groups have it.
const FOLLOWED_LOOK: Duration = Duration::from_millis(20);

impl FastNode {
    /// The members of all groups with their hosts, and what is the matter, as this node knows them.
    pub(crate) fn members(&self) -> Members {
        let reports: Vec<RaftReport> = self
            .groups
            .iter()
            .map(|group| group.raft.report())
            .collect();
        let hosts = self.view().hosts();
        let mut members: BTreeMap<u64, Member> = BTreeMap::new();
        for member in reports.iter().flat_map(|report| &report.members) {
            let role = role_in_all(member.id, &reports);
            let peers = || {
                let peers = reports.iter().flat_map(|report| &report.peers);
                peers.filter(|peer| peer.id == member.id)
            };
            let host = hosts.iter().find(|state| state.host.id == member.id);
            members.entry(member.id).or_insert_with(|| Member {
                id: member.id,
                role,
                lag: peers()
                    .map(|peer| peer.lag)
                    .reduce(|one, other| one + other),
                is_live: peers()
                    .map(|peer| peer.is_live)
                    .reduce(|one, other| one && other),
                http: host.map(|state| state.host.http.clone()),
                raft: host.map(|state| state.host.raft.clone()),
            });
        }
        let ids = |report: &RaftReport| -> Vec<u64> {
            report.members.iter().map(|member| member.id).collect()
        };
        let troubles = reports.iter().zip(0..).flat_map(|(report, group)| {
            let prefix = self.prefix(group);
            let troubles = report.troubles.iter();
            troubles.map(move |trouble| format!("{prefix}{trouble}"))
        });
        Members {
            leader: reports[0].leader_id,
            is_changing: reports
                .iter()
                .any(|report| report.is_joint || ids(report) != ids(&reports[0])),
            members: members.into_values().collect(),
            troubles: troubles.collect(),
        }
    }

    pub(crate) async fn add_member(&self, host: Host) -> Result<(), Refusal> {
        let id = host.id;
        let known = self
            .view()
            .hosts()
            .into_iter()
            .find(|state| state.host.id == id);
        if known.as_ref().is_some_and(|state| state.host.removed) {
            return Err(Refusal::Refused(format!(
                "host {id} was removed and still has VMs: choose another id, or delete them first"
            )));
        }
        let host = Host {
            size: host.size.part(self.groups.len() as u32),
            ..host
        };
        // First the address, on every node; then the vote.
        match self.write_to(0, String::new(), Action::Join(host)).await? {
            Outcome::Host(_) => {}
            _ => {
                return Err(Refusal::Refused(format!(
                    "there is a member {id} with other addresses or another size: choose another id, or remove it first"
                )));
            }
        }
        let result = self.change(MembershipChange::AddVoter(id)).await;
        if known.is_none() && matches!(result, Err(Refusal::Refused(_))) {
            // A refused change leaves no host behind. If this fails, `DELETE /members/{id}` removes it.
            let _ = self.write_to(0, String::new(), Action::Leave(id)).await;
        }
        result?;
        self.until_all(|report| has(report, id, |role| role == MemberRole::Voter))
            .await
    }

    pub(crate) async fn remove_member(&self, id: u64) -> Result<(), Refusal> {
        let raft = &self.group(0).raft;
        let report = raft.report();
        if id == raft.id() && raft.status().is_leader() {
            // The group goes on without a pause if the leader leaves only once another one leads.
            let Some(next) = another_voter(raft) else {
                return Err(Refusal::Refused(
                    "the last voter cannot be removed: add another member first".to_owned(),
                ));
            };
            if let Err(error) = raft.transfer_leader(next).await {
                return Err(self.refusal(error));
            }
            return Err(Refusal::NotLeader(self.view().host_http(next)));
        }
        let in_first = has(&report, id, |_| true) || self.view().host_of(0, id).is_some();
        if in_first {
            // The report is as old as a tick: whether it is a member is for the group to say.
            self.change(MembershipChange::Remove(id)).await?;
            self.write_to(0, String::new(), Action::Leave(id)).await?;
        } else if !self
            .groups
            .iter()
            .any(|group| has(&group.raft.report(), id, |_| true))
        {
            return Err(Refusal::UnknownMember(id));
        }
        self.until_all(|report| !has(report, id, |_| true)).await
    }

    /// A change of the first group.
    async fn change(&self, change: MembershipChange) -> Result<(), Refusal> {
        let change = self.group(0).raft.change_membership(vec![change]);
        match tokio::time::timeout(CHANGE_MAX, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.refusal(error)),
            Err(_) => Err(Refusal::OutcomeUnknown(
                "the change is under way".to_owned(),
            )),
        }
    }

    /// Waits until all groups have a change, as far as this node knows.
    async fn until_all(&self, has_it: impl Fn(&RaftReport) -> bool) -> Result<(), Refusal> {
        let start = Instant::now();
        loop {
            let reports = self.groups.iter().map(|group| group.raft.report());
            let lacking = (0..).zip(reports).filter(|(_, report)| !has_it(report));
            let lacking: Vec<u32> = lacking.map(|(group, _)| group).collect();
            if lacking.is_empty() {
                return Ok(());
            }
            if start.elapsed() > CHANGE_MAX {
                return Err(Refusal::OutcomeUnknown(format!(
                    "the first group has the change, and groups {lacking:?} follow"
                )));
            }
            tokio::time::sleep(FOLLOWED_LOOK).await;
        }
    }
}

fn has(report: &RaftReport, id: u64, is_right: impl Fn(MemberRole) -> bool) -> bool {
    let mut members = report.members.iter();
    members.any(|member| member.id == id && is_right(member.role))
}

/// The role in the first group where it is another one than a voter's.
fn role_in_all(id: u64, reports: &[RaftReport]) -> &'static str {
    let role = |report: &RaftReport| {
        let member = report.members.iter().find(|member| member.id == id);
        member.map_or("learner", |member| member_role(member.role))
    };
    let mut roles = reports.iter().map(role);
    roles.find(|role| *role != "voter").unwrap_or("voter")
}

/// What a node knows of the members of one group.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    roles: BTreeMap<u64, MemberRole>,
    /// Hosts of the group's inventory that were not removed.
    hosts: Vec<u64>,
    is_joint: bool,
}

impl Known {
    fn of(group: u32, report: &RaftReport, view: &View) -> Self {
        let members = report.members.iter();
        Self {
            roles: members.map(|member| (member.id, member.role)).collect(),
            hosts: view.host_ids(group),
            is_joint: report.is_joint,
        }
    }
}

/// What a leader does next for its group to have the first group's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Join(u64),
    Add(u64),
    /// The leader itself is to go, so this one shall lead.
    HandOver(u64),
    Remove(u64),
    Leave(u64),
}

fn next_step(leader: u64, first: &Known, own: &Known) -> Option<Step> {
    if first.is_joint || own.is_joint || first.roles.is_empty() || own.roles.is_empty() {
        return None;
    }
    // A learner of the first group is a member: one that lost its disk, for instance.
    let voters = first.roles.iter();
    let voters =
        voters.filter(|(id, role)| **role == MemberRole::Voter && first.hosts.contains(id));
    for (&id, _) in voters {
        if !own.hosts.contains(&id) {
            return Some(Step::Join(id));
        }
        if !own.roles.contains_key(&id) {
            return Some(Step::Add(id));
        }
    }
    if let Some(&id) = own.roles.keys().find(|id| !first.roles.contains_key(id)) {
        if id != leader {
            return Some(Step::Remove(id));
        }
        let mut others = own.roles.iter();
        let next =
            others.find(|(id, role)| **role == MemberRole::Voter && first.roles.contains_key(id));
        return next.map(|(&id, _)| Step::HandOver(id));
    }
    let mut gone = own.hosts.iter();
    let gone = gone.find(|id| !first.hosts.contains(id) && !first.roles.contains_key(id));
    gone.map(|&id| Step::Leave(id))
}

/// Runs as long as the node, for one of the other groups.
pub(crate) async fn follow_members(group: u32, groups: Vec<RaftHandle>, shared: Arc<Shared>) {
    let (first, raft) = (&groups[0], &groups[group as usize]);
    let mut tick = tokio::time::interval(LOOK);
    let view = &shared.view;
    let step = || {
        let ours = Known::of(group, &raft.report(), view);
        next_step(raft.id(), &Known::of(0, &first.report(), view), &ours)
    };
    loop {
        tick.tick().await;
        if !raft.status().is_leader() {
            continue;
        }
        // A node that the first group removed has applied that or is told so, and cannot ask. What else this node
        // knows of the first group may be old: only what holds now is followed.
        let next = if is_removed(raft.id(), &first.report()) {
            another_voter(raft).map(Step::HandOver)
        } else if step().is_some() && first.read_index().await.is_ok() {
            step()
        } else {
            None
        };
        if let Some(next) = next {
            // A step that fails is tried again, by this leader or by the next one.
            take(next, raft, groups.len() as u32, view).await;
        }
    }
}

fn is_removed(id: u64, report: &RaftReport) -> bool {
    let is_gone = !report.members.is_empty() && !has(report, id, |_| true);
    is_gone || report.troubles.contains(&Trouble::Removed)
}

fn another_voter(raft: &RaftHandle) -> Option<u64> {
    let members = raft.membership().into_iter();
    let mut others =
        members.filter(|member| member.id != raft.id() && member.role == MemberRole::Voter);
    others.next().map(|member| member.id)
}

async fn take(step: Step, raft: &RaftHandle, raft_groups: u32, view: &View) {
    let command = |action| Command {
        request_id: String::new(),
        action: Some(action),
        raft_groups,
    };
    match step {
        Step::Join(id) => {
            if let Some(state) = view.host_of(0, id) {
                let _ = propose(raft, &command(Action::Join(state.host))).await;
            }
        }
        Step::Leave(id) => {
            let _ = propose(raft, &command(Action::Leave(id))).await;
        }
        Step::Add(id) => {
            let changes = vec![MembershipChange::AddVoter(id)];
            let _ = raft.change_membership(changes).await;
        }
        Step::Remove(id) => {
            let changes = vec![MembershipChange::Remove(id)];
            let _ = raft.change_membership(changes).await;
        }
        Step::HandOver(id) => {
            let _ = raft.transfer_leader(id).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(voters: &[u64], hosts: &[u64]) -> Known {
        Known {
            roles: voters.iter().map(|&id| (id, MemberRole::Voter)).collect(),
            hosts: hosts.to_vec(),
            is_joint: false,
        }
    }

    /// Takes steps as a leader does until there is none, and hands over as it is told.
    fn follow(first: &Known, mut own: Known, mut leader: u64) -> (Known, u64, Vec<Step>) {
        let mut steps = Vec::new();
        while let Some(step) = next_step(leader, first, &own) {
            steps.push(step);
            assert!(steps.len() < 20, "{steps:?}");
            match step {
                Step::Join(id) => own.hosts.push(id),
                Step::Leave(id) => own.hosts.retain(|host| *host != id),
                Step::Add(id) => drop(own.roles.insert(id, MemberRole::Voter)),
                Step::Remove(id) => drop(own.roles.remove(&id)),
                Step::HandOver(id) => leader = id,
            }
        }
        own.hosts.sort_unstable();
        (own, leader, steps)
    }

    #[test]
    fn a_group_gets_the_members_of_the_first_one_whoever_leads_it() {
        let first = known(&[2, 3, 4], &[2, 3, 4]);
        for leader in 1..=3 {
            let (own, leader, steps) = follow(&first, known(&[1, 2, 3], &[1, 2, 3]), leader);
            assert_eq!(own, first, "{steps:?}");
            assert_ne!(leader, 1, "{steps:?}");
            // The new one is there before the old one goes.
            let place = |step| steps.iter().position(|it| *it == step);
            assert!(place(Step::Add(4)) < place(Step::Remove(1)), "{steps:?}");
        }
    }

    #[test]
    fn nothing_is_done_while_a_change_is_under_way_or_a_member_is_a_learner() {
        let own = known(&[1, 2, 3], &[1, 2, 3]);
        let first = known(&[1, 2, 3], &[1, 2, 3]);
        assert_eq!(next_step(1, &first, &own), None);
        // A member that lost its disk is a learner for a while.
        let mut replacing = first.clone();
        replacing.roles.insert(3, MemberRole::Learner);
        assert_eq!(next_step(1, &replacing, &own), None);
        // A member of the first group that is not in its inventory yet, or no more.
        assert_eq!(next_step(1, &known(&[1, 2, 3, 4], &[1, 2, 3]), &own), None);
        assert_eq!(next_step(1, &known(&[], &[]), &own), None);
        let mut joint = known(&[1, 2, 4], &[1, 2, 4]);
        joint.is_joint = true;
        assert_eq!(next_step(1, &joint, &own), None);
    }
}
