//! Faults, one after the other: nodes are killed, paused, wiped, replaced and cut off, and mend again.
//!
//! The kinds, the nodes and the times are drawn from the seed of the run. What the cluster makes of them depends on the
//! machine, so a run with the same seed has the same faults and not the same answers.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hyper::Method;
use hyper::body::Bytes;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use super::client::{Client, GroupReply, StatusReply};
use super::load::Load;
use super::nodes::{Nodes, Start};

/// Quiet time before each fault.
const QUIET: Duration = Duration::from_millis(1500);
/// How long a node stays down. The election timeout is 500 ms.
const DOWN_MS: std::ops::Range<u64> = 500..2000;
/// How long a node is paused or cut off: longer than an election timeout, so another leader is elected.
const AWAY_MS: std::ops::Range<u64> = 1200..3000;
/// What a slow node gets on each connection, and how much longer it is slow than others are away.
const SLOW_BYTES_PER_SECOND: std::ops::Range<u32> = 16 * 1024..256 * 1024;
const SLOW_FACTOR: u32 = 2;
/// How long a cluster may take to have a leader again, and a node to be a voter that has caught up.
const MENDED_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether that is so.
const LOOK: Duration = Duration::from_millis(50);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// SIGKILL, and started again.
    Kill,
    /// SIGTERM, and started again.
    End,
    /// SIGSTOP, and SIGCONT after more than an election timeout.
    Pause,
    /// All nodes at once: SIGKILL, and started again.
    KillAll,
    /// What is sent to it arrives slowly.
    Slow,
    /// SIGKILL, its folder removed, and started again under the same id.
    Wipe,
    /// SIGKILL; another node is added, and this one removed.
    Replace,
    /// Nothing that it sends arrives.
    Mute,
    /// Nothing that is sent to it arrives.
    Deaf,
    /// One direction to one other node is cut.
    OneWay,
    /// Cut off from all others both ways.
    Isolate,
}

/// All kinds; the naive node does not survive the loss of its folder and has no proxies.
const ALL: [Kind; 11] = [
    Kind::Kill,
    Kind::End,
    Kind::Pause,
    Kind::KillAll,
    Kind::Slow,
    Kind::Wipe,
    Kind::Replace,
    Kind::Mute,
    Kind::Deaf,
    Kind::OneWay,
    Kind::Isolate,
];
const NAIVE: [Kind; 3] = [Kind::Kill, Kind::End, Kind::Pause];

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "killed",
            Self::End => "ended",
            Self::Pause => "paused",
            Self::KillAll => "all killed",
            Self::Slow => "slow",
            Self::Wipe => "wiped",
            Self::Replace => "replaced",
            Self::Mute => "mute",
            Self::Deaf => "deaf",
            Self::OneWay => "cut one way",
            Self::Isolate => "isolated",
        })
    }
}

/// One fault.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) node: u64,
    pub(super) was_leader: bool,
    /// From the start of the load.
    pub(super) at: Duration,
    /// From its beginning until the node was a voter again that has caught up.
    pub(super) mended: Duration,
    /// From its beginning to the first acknowledged write that began after it.
    pub(super) outage: Option<Duration>,
}

/// Draws faults from the seed: each kind once, in any order, then each once again.
struct Deck {
    random: SmallRng,
    kinds: &'static [Kind],
    left: Vec<Kind>,
}

impl Deck {
    fn new(seed: u64, is_naive: bool) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            kinds: if is_naive { &NAIVE } else { &ALL },
            left: Vec::new(),
        }
    }

    fn draw(&mut self) -> Kind {
        if self.left.is_empty() {
            self.left = self.kinds.to_vec();
            self.left.shuffle(&mut self.random);
        }
        self.left.pop().expect("there are kinds")
    }
}

/// Makes faults until `end`, two of three to the leader.
pub(super) async fn run(
    nodes: &Nodes,
    load: &Load,
    seed: u64,
    is_naive: bool,
    end: Instant,
) -> Result<Vec<Fault>> {
    let began = Instant::now();
    let mut deck = Deck::new(seed, is_naive);
    let mut faults = Vec::new();
    loop {
        tokio::time::sleep(QUIET).await;
        if Instant::now() + Duration::from_millis(AWAY_MS.end) + QUIET > end {
            // What is left of the time belongs to requests that wait.
            tokio::time::sleep_until(end.into()).await;
            return Ok(faults);
        }
        nodes.check_alive().await?;
        let leader = nodes.wait_for_leader(MENDED_MAX).await?;
        let mut kind = deck.draw();
        if kind == Kind::Replace && !nodes.has_spare().await {
            kind = Kind::Kill;
        }
        let followers: Vec<u64> = nodes
            .ids()
            .await
            .into_iter()
            .filter(|&id| id != leader)
            .collect();
        let other = *followers
            .choose(&mut deck.random)
            .context("there is one node only")?;
        let node = if deck.random.random_ratio(2, 3) && kind != Kind::Slow {
            leader
        } else {
            other
        };
        let start = Instant::now();
        let at = start - began;
        let is_leader = node == leader;
        let role = if is_leader { "leader" } else { "follower" };
        eprintln!("{:>6.1} s  {kind}: {role} {node}", at.as_secs_f64());
        let done = make(nodes, load, &mut deck.random, kind, node, &followers).await;
        done.with_context(|| {
            format!(
                "{role} {node} {kind}; the nodes' logs end with:\n{}",
                nodes.last_words()
            )
        })?;
        let mended = start.elapsed();
        while load.watched().is_none() && start.elapsed() < MENDED_MAX {
            tokio::time::sleep(LOOK).await;
        }
        faults.push(Fault {
            kind,
            node,
            was_leader: is_leader,
            at,
            mended,
            outage: load.watched(),
        });
    }
}

/// Makes one fault, ends it, and waits until all members are voters that have caught up.
async fn make(
    nodes: &Nodes,
    load: &Load,
    random: &mut SmallRng,
    kind: Kind,
    node: u64,
    followers: &[u64],
) -> Result<()> {
    let down = Duration::from_millis(random.random_range(DOWN_MS));
    let away = Duration::from_millis(random.random_range(AWAY_MS));
    let with_reset = random.random_bool(0.5);
    // A node that kept its folder may be started as ever. One that lost it is told of the present members where they are others.
    let may_form = kind != Kind::Wipe || nodes.are_founders().await;
    let as_founder = random.random_bool(0.5) && may_form && nodes.is_founder(node);
    let start = if as_founder {
        Start::Founder
    } else {
        Start::Member
    };
    let others: Vec<u64> = nodes
        .ids()
        .await
        .into_iter()
        .filter(|&id| id != node)
        .collect();
    match kind {
        Kind::Kill => {
            nodes.kill(node).await?;
            load.watch();
            tokio::time::sleep(down).await;
            nodes.restart(node, start).await?;
        }
        Kind::End => {
            load.watch();
            nodes.end(node).await?;
            tokio::time::sleep(down).await;
            nodes.restart(node, start).await?;
        }
        Kind::Pause => {
            nodes.pause(node, true).await?;
            load.watch();
            tokio::time::sleep(away).await;
            nodes.pause(node, false).await?;
        }
        Kind::KillAll => {
            let all = nodes.ids().await;
            for &id in &all {
                nodes.kill(id).await?;
            }
            load.watch();
            tokio::time::sleep(down).await;
            for id in all {
                nodes.restart(id, Start::Member).await?;
            }
        }
        Kind::Slow => {
            let network = nodes.network().context("there are no proxies")?;
            load.watch();
            for &peer in &others {
                network.slow(peer, node, random.random_range(SLOW_BYTES_PER_SECOND));
            }
            tokio::time::sleep(SLOW_FACTOR * away).await;
            network.heal();
        }
        Kind::Wipe => {
            nodes.kill(node).await?;
            load.watch();
            nodes.wipe(node)?;
            tokio::time::sleep(down).await;
            nodes.restart(node, start).await?;
        }
        Kind::Replace => {
            nodes.kill(node).await?;
            load.watch();
            replace(nodes, node).await?;
            load.set_addresses(nodes.addresses().await);
        }
        Kind::Mute | Kind::Deaf | Kind::OneWay | Kind::Isolate => {
            let network = nodes.network().context("there are no proxies")?;
            let peers = match kind {
                // One that it has to do with: the leader, or one of those that follow it.
                Kind::OneWay => {
                    let leader = others.iter().find(|id| !followers.contains(id));
                    let peer = leader.or_else(|| others.choose(random));
                    vec![*peer.context("there is one node only")?]
                }
                _ => others.clone(),
            };
            let sends = match kind {
                Kind::OneWay => random.random_bool(0.5),
                _ => kind != Kind::Deaf,
            };
            let hears =
                kind == Kind::Deaf || kind == Kind::Isolate || (kind == Kind::OneWay && !sends);
            for peer in peers {
                if sends {
                    network.cut(node, peer, with_reset);
                }
                if hears {
                    network.cut(peer, node, with_reset);
                }
            }
            load.watch();
            tokio::time::sleep(away).await;
            network.heal();
        }
    }
    // What was acknowledged by now is on every node that is whole.
    let kept = load.kept();
    wait_until_whole(nodes, MENDED_MAX).await?;
    load.verify(nodes, &kept).await
}

/// Adds a node that never was a member and removes one that is gone, as an operator would.
async fn replace(nodes: &Nodes, gone: u64) -> Result<()> {
    let new = nodes.start_spare().await?.context("no spare is left")?;
    let member = nodes.as_new_member(new)?;
    ask_until_done(nodes, gone, Method::POST, "/members", member).await?;
    let path = format!("/members/{gone}");
    ask_until_done(nodes, gone, Method::DELETE, &path, String::new()).await?;
    nodes.retire(gone).await
}

/// Asks the leader for a change of the members until it is done. A change that is done already counts.
async fn ask_until_done(
    nodes: &Nodes,
    gone: u64,
    method: Method,
    path: &str,
    body: String,
) -> Result<()> {
    let start = Instant::now();
    let mut last = String::new();
    while start.elapsed() < MENDED_MAX {
        let statuses = nodes.statuses().await;
        let leader = statuses
            .iter()
            .flatten()
            .find(|status| status.role == "leader" && status.node != gone);
        if let Some(leader) = leader {
            let mut client = Client::new(nodes.address(leader.node)?);
            let body = Bytes::from(body.clone());
            match client.request(method.clone(), path, body).await {
                Ok(answer) if answer.status.is_success() => return Ok(()),
                // It was done by an attempt whose answer was lost.
                Ok(answer) if method == Method::DELETE && answer.status == 404 => return Ok(()),
                Ok(answer) => last = String::from_utf8_lossy(&answer.body).into_owned(),
                Err(error) => last = error.to_string(),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!(
        "`{method} {path}` was not done within {} s: {last}",
        MENDED_MAX.as_secs()
    )
}

/// Waits until the leader has exactly the members that run, each a voter, and each has applied what was committed.
pub(super) async fn wait_until_whole(nodes: &Nodes, longest: Duration) -> Result<()> {
    let start = Instant::now();
    let mut goal = Vec::new();
    loop {
        nodes.check_alive().await?;
        let statuses = nodes.statuses().await;
        let missing = match is_whole(nodes, &statuses, &mut goal).await {
            Ok(()) => return Ok(()),
            Err(missing) => missing,
        };
        if start.elapsed() > longest {
            bail!(
                "not whole again within {} s: {missing:#}; the nodes' logs end with:\n{}",
                longest.as_secs(),
                nodes.last_words()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `goal` has by group the first commit index that was seen with all members there: what each of them is to apply.
async fn is_whole(
    nodes: &Nodes,
    statuses: &[Option<StatusReply>],
    goal: &mut Vec<u64>,
) -> Result<()> {
    let ids = nodes.ids().await;
    let leader = statuses.iter().flatten().find(|it| it.role == "leader");
    let leader = leader.context("no node leads")?;
    if !leader.naive {
        let members = Client::new(nodes.address(leader.node)?).members().await?;
        let voters = members
            .members
            .iter()
            .filter(|member| member.role == "voter");
        let voters: Vec<u64> = voters.map(|member| member.id).collect();
        if voters != ids || members.is_changing || members.members.len() != ids.len() {
            bail!(
                "nodes {ids:?} run, and node {} says: {members:?}",
                leader.node
            );
        }
    }
    let mut groups = Vec::new();
    for (&id, status) in ids.iter().zip(statuses) {
        let status = status.as_ref();
        let status = status.with_context(|| format!("node {id} does not answer"))?;
        groups.push((id, status.groups()));
    }
    for group in 0..leader.groups().len() {
        let of = |(id, groups): &(u64, Vec<GroupReply>)| Some((*id, groups.get(group)?.clone()));
        let replicas: Vec<(u64, GroupReply)> = groups.iter().filter_map(of).collect();
        let leaders = replicas.iter().filter(|(_, it)| it.role == "leader");
        let leader = leaders.max_by_key(|(_, it)| it.term);
        let (leader, its) = leader.with_context(|| format!("no node leads group {group}"))?;
        if goal.len() == group {
            goal.push(its.commit_index);
        }
        for (id, replica) in &replicas {
            if replica.leader != *leader {
                let follows = replica.leader;
                bail!("node {id} follows {follows} in group {group}, and {leader} leads");
            }
            if replica.applied_index < goal[group] {
                bail!(
                    "node {id} has applied {} of {} in group {group}",
                    replica.applied_index,
                    goal[group]
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_faults_again_and_each_kind_in_turn() {
        let draw = |seed| -> Vec<Kind> {
            let mut deck = Deck::new(seed, false);
            (0..2 * ALL.len()).map(|_| deck.draw()).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for kind in ALL {
            let drawn = draw(7);
            let (first, second) = drawn.split_at(ALL.len());
            assert!(first.contains(&kind) && second.contains(&kind), "{kind}");
        }
    }
}
