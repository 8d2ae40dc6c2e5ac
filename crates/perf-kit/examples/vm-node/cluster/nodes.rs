//! The nodes as processes.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::client::{Client, GroupReply, StatusReply};
use super::footprint::{Footprint, disk_of, first_segment_of, memory_of};
use super::network::Network;
use super::ports::free_addresses;
use super::{Options, signal};
use crate::certificates;

/// Ticks per second in /proc: `getconf CLK_TCK`, 100 on every Linux.
const CLOCK_TICKS: f64 = 100.0;

/// Ids beyond the first nodes', for nodes that replace others in a run under chaos.
const SPARES: u64 = 6;

/// How long a node that is asked to end may take.
const END_MAX: Duration = Duration::from_secs(10);

/// All of them.
pub(super) struct Nodes {
    directory: PathBuf,
    naive: bool,
    groups: u32,
    log_mib: usize,
    /// How many the cluster was formed by.
    first: u64,
    /// The addresses of the first nodes and of all that may replace them.
    peers: Vec<Peer>,
    /// The members and their processes, by id.
    members: Mutex<BTreeMap<u64, Process>>,
    /// Spares that were not used yet.
    spares: Mutex<VecDeque<u64>>,
    network: Option<Network>,
}

#[derive(Clone, Debug)]
struct Peer {
    id: u64,
    raft: SocketAddr,
    http: SocketAddr,
}

#[derive(Default)]
struct Process {
    child: Option<Child>,
    /// CPU time of those that were killed.
    spent: Duration,
}

/// How a node is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// By the command line that formed the cluster.
    Founder,
    /// By one that names the present members and forms nothing.
    Member,
}

impl Nodes {
    /// Makes certificates and starts nodes 1 to `count`. Under chaos there are spares, and a proxy between each two nodes.
    pub(super) async fn start(directory: &Path, options: &Options, naive: bool) -> Result<Self> {
        let count = options.nodes;
        let proxied = options.chaos && !naive;
        let all = count + if proxied { SPARES } else { 0 };
        certificates::make(&directory.join("certificates"), 1..=all)?;
        let addresses =
            free_addresses(2 * all as usize).context("no free ports on the loopback interface")?;
        let peers: Vec<Peer> = (1..=all)
            .zip(addresses.chunks(2))
            .map(|(id, pair)| Peer {
                id,
                raft: pair[0],
                http: pair[1],
            })
            .collect();
        let network = if proxied {
            let nodes: Vec<_> = peers.iter().map(|peer| (peer.id, peer.raft)).collect();
            let started = Network::start(&nodes).await;
            Some(started.context("no proxies between the nodes")?)
        } else {
            None
        };
        let nodes = Self {
            directory: directory.to_owned(),
            naive,
            groups: options.groups,
            log_mib: options.log_mib,
            first: count,
            peers,
            members: Mutex::default(),
            spares: Mutex::new((count + 1..=all).collect()),
            network,
        };
        let mut members = nodes.members.lock().await;
        for id in 1..=count {
            members.insert(id, Process::default());
        }
        for (&id, process) in members.iter_mut() {
            let founders: Vec<u64> = (1..=count).collect();
            process.child = Some(nodes.spawn(id, &founders, Start::Founder)?);
        }
        drop(members);
        Ok(nodes)
    }

    /// Starts a process that is told of the given members.
    fn spawn(&self, id: u64, members: &[u64], start: Start) -> Result<Child> {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.directory.join(format!("node-{id}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--id", &id.to_string()]);
        for &member in members {
            let peer = self.peer(member)?;
            command.args([
                "--peer",
                &format!("{}={},{}", peer.id, peer.raft, peer.http),
            ]);
        }
        if let Some(network) = &self.network {
            for peer in &self.peers {
                if let Some(address) = network.proxy(id, peer.id) {
                    command.args(["--via", &format!("{}={address}", peer.id)]);
                }
            }
        }
        if start == Start::Member {
            command.arg("--join");
        }
        command
            .arg("--data")
            .arg(self.data(id))
            .arg("--certificates")
            .arg(self.directory.join("certificates"));
        if self.naive {
            command.arg("--naive");
        }
        command
            .args(["--groups", &self.groups.to_string()])
            .args(["--log-mib", &self.log_mib.to_string()]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start node {id}"))
    }

    fn data(&self, id: u64) -> PathBuf {
        self.directory.join(format!("node-{id}"))
    }

    fn peer(&self, id: u64) -> Result<&Peer> {
        let peer = self.peers.iter().find(|peer| peer.id == id);
        peer.with_context(|| format!("there is no node {id}"))
    }

    /// Where clients find a node.
    pub(super) fn address(&self, id: u64) -> Result<String> {
        Ok(self.peer(id)?.http.to_string())
    }

    /// The members' addresses for clients, in the order of the ids.
    pub(super) async fn addresses(&self) -> Vec<String> {
        let members = self.members.lock().await;
        let members = self
            .peers
            .iter()
            .filter(|peer| members.contains_key(&peer.id));
        members.map(|peer| peer.http.to_string()).collect()
    }

    /// The ids of the members.
    pub(super) async fn ids(&self) -> Vec<u64> {
        self.members.lock().await.keys().copied().collect()
    }

    /// Whether the members are those that formed the cluster.
    pub(super) async fn are_founders(&self) -> bool {
        self.ids().await.into_iter().eq(1..=self.first)
    }

    /// Whether the node is one of those that formed the cluster.
    pub(super) fn is_founder(&self, id: u64) -> bool {
        id <= self.first
    }

    /// The proxies between the nodes, where there are any.
    pub(super) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Waits until a majority names the same leader of each group and it says so itself. Returns the node that leads
    /// most groups.
    pub(super) async fn wait_for_leader(&self, longest: Duration) -> Result<u64> {
        let start = Instant::now();
        loop {
            let statuses = self.statuses().await;
            let leaders: Option<Vec<u64>> = (0..self.groups as usize)
                .map(|group| agreed_leader(&statuses, group))
                .collect();
            if let Some(leaders) = leaders {
                let count = |id: &u64| leaders.iter().filter(|leader| *leader == id).count();
                let most = leaders.iter().max_by_key(|id| count(id));
                return most.copied().context("there is no group");
            }
            if start.elapsed() > longest {
                bail!(
                    "no leader within {} s; the nodes' logs end with:\n{}",
                    longest.as_secs(),
                    self.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What each member says of itself; `None` of those that do not answer.
    pub(super) async fn statuses(&self) -> Vec<Option<StatusReply>> {
        let asked: Vec<_> = self
            .addresses()
            .await
            .into_iter()
            .map(|address| tokio::spawn(async move { Client::new(address).status().await.ok() }))
            .collect();
        let mut statuses = Vec::new();
        for status in asked {
            statuses.push(status.await.ok().flatten());
        }
        statuses
    }

    /// Kills a node without a warning.
    pub(super) async fn kill(&self, id: u64) -> Result<()> {
        let mut members = self.members.lock().await;
        if let Some(process) = members.get_mut(&id) {
            end(id, process).await?;
        }
        Ok(())
    }

    /// Asks a node to end, and waits until it has.
    pub(super) async fn end(&self, id: u64) -> Result<()> {
        let mut members = self.members.lock().await;
        let process = members.get_mut(&id);
        let process = process.with_context(|| format!("there is no node {id}"))?;
        let Some(child) = &mut process.child else {
            return Ok(());
        };
        process.spent += cpu_of(child);
        let pid = child.id();
        let pid = pid.with_context(|| format!("node {id} does not run"))?;
        signal::end(pid).with_context(|| format!("cannot ask node {id} to end"))?;
        let ended = tokio::time::timeout(END_MAX, child.wait()).await;
        let status = ended.with_context(|| {
            format!(
                "node {id} was asked to end and runs after {} s",
                END_MAX.as_secs()
            )
        })??;
        process.child = None;
        if !status.success() {
            bail!(
                "node {id} was asked to end and failed ({status}):\n{}",
                self.last_words()
            );
        }
        Ok(())
    }

    /// Starts a node again that was killed.
    pub(super) async fn restart(&self, id: u64, start: Start) -> Result<()> {
        let mut members = self.members.lock().await;
        let ids: Vec<u64> = match start {
            Start::Founder => (1..=self.first).collect(),
            Start::Member => members.keys().copied().collect(),
        };
        let child = self.spawn(id, &ids, start)?;
        members.entry(id).or_default().child = Some(child);
        Ok(())
    }

    /// Removes the folder of a node that was killed.
    pub(super) fn wipe(&self, id: u64) -> Result<()> {
        let folder = self.data(id);
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))
    }

    /// Starts a node that never was a member, and counts it among them. `None` when all spares are used.
    pub(super) async fn start_spare(&self) -> Result<Option<u64>> {
        let Some(id) = self.spares.lock().await.pop_front() else {
            return Ok(None);
        };
        self.members.lock().await.insert(id, Process::default());
        self.restart(id, Start::Member).await?;
        Ok(Some(id))
    }

    /// Whether there is a node left that can replace one.
    pub(super) async fn has_spare(&self) -> bool {
        !self.spares.lock().await.is_empty()
    }

    /// Ends a node that is no member any more.
    pub(super) async fn retire(&self, id: u64) -> Result<()> {
        let mut members = self.members.lock().await;
        if let Some(mut process) = members.remove(&id) {
            end(id, &mut process).await?;
            // Its CPU time stays in the sum.
            if let Some(other) = members.values_mut().next() {
                other.spent += process.spent;
            }
        }
        Ok(())
    }

    /// The body of `POST /members` for a node.
    pub(super) fn as_new_member(&self, id: u64) -> Result<String> {
        let Peer { raft, http, .. } = self.peer(id)?;
        Ok(format!(
            "{{\"id\":{id},\"http\":\"{http}\",\"raft\":\"{raft}\",\"vcpus\":4096,\"memory_mib\":16777216,\"disk_gib\":1048576}}"
        ))
    }

    /// Stops a process where it is, or lets it go on.
    pub(super) async fn pause(&self, id: u64, pause: bool) -> Result<()> {
        let members = self.members.lock().await;
        let child = members.get(&id).and_then(|process| process.child.as_ref());
        let pid = child.and_then(Child::id);
        let pid = pid.with_context(|| format!("node {id} does not run"))?;
        signal::pause(pid, pause).with_context(|| format!("cannot pause node {id}"))
    }

    /// Fails when a node that should run has ended by itself.
    pub(super) async fn check_alive(&self) -> Result<()> {
        let mut members = self.members.lock().await;
        for (id, process) in members.iter_mut() {
            if let Some(child) = &mut process.child
                && let Some(status) = child.try_wait()?
            {
                bail!(
                    "node {id} ended by itself ({status}):\n{}",
                    self.last_words()
                );
            }
        }
        Ok(())
    }

    /// The CPU time of all nodes so far.
    pub(super) async fn cpu(&self) -> Duration {
        let members = self.members.lock().await;
        members
            .values()
            .map(|process| process.spent + process.child.as_ref().map_or(Duration::ZERO, cpu_of))
            .sum()
    }

    /// What each node takes now.
    pub(super) async fn footprints(&self) -> Vec<Footprint> {
        let members = self.members.lock().await;
        let of = |(&id, process): (&u64, &Process)| Footprint {
            memory: process
                .child
                .as_ref()
                .and_then(Child::id)
                .map_or(0, memory_of),
            disk: disk_of(&self.data(id)),
            node: id,
            first_segment: first_segment_of(&self.data(id)),
        };
        members.iter().map(of).collect()
    }

    /// Ends all nodes.
    pub(super) async fn stop(&self) {
        for (&id, process) in self.members.lock().await.iter_mut() {
            // One that has ended already is as good.
            let _ = end(id, process).await;
        }
    }

    /// The last lines that each node has logged.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for peer in &self.peers {
            let path = self.directory.join(format!("node-{}.log", peer.id));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(3).collect();
            for line in lines.iter().rev() {
                words += &format!("  node {}: {line}\n", peer.id);
            }
        }
        words
    }
}

/// The leader of a group, if it says so itself and a majority names it.
fn agreed_leader(statuses: &[Option<StatusReply>], group: usize) -> Option<u64> {
    let of = |status: &StatusReply| -> Option<GroupReply> { status.groups().get(group).cloned() };
    let known = || statuses.iter().flatten();
    let leader = known().find(|status| {
        let leads = of(status).is_some_and(|group| group.role == "leader");
        leads && !status.hosts.is_empty()
    })?;
    let term = of(leader)?.term;
    let agree = known().filter_map(of);
    let agree = agree.filter(|group| group.leader == leader.node && group.term == term);
    (agree.count() > statuses.len() / 2).then_some(leader.node)
}

/// SIGKILL, and waits for the end.
async fn end(id: u64, process: &mut Process) -> Result<()> {
    if let Some(mut child) = process.child.take() {
        process.spent += cpu_of(&child);
        child
            .kill()
            .await
            .with_context(|| format!("cannot kill node {id}"))?;
    }
    Ok(())
}

/// The CPU time of a process, from the fields utime and stime of proc_pid_stat(5).
fn cpu_of(child: &Child) -> Duration {
    let text = child
        .id()
        .and_then(|id| std::fs::read_to_string(format!("/proc/{id}/stat")).ok())
        .unwrap_or_default();
    // The name, in parentheses, may have spaces; fields are counted behind it.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_secs_f64(ticks as f64 / CLOCK_TICKS)
}
