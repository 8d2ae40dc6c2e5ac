//! The nodes as processes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::client::{Client, StatusReply};
use super::ports::free_addresses;
use crate::certificates;

/// Ticks per second in /proc: `getconf CLK_TCK`, 100 on every Linux.
const CLOCK_TICKS: f64 = 100.0;

/// All of them.
pub(super) struct Nodes {
    directory: PathBuf,
    naive: bool,
    peers: Vec<Peer>,
    processes: Mutex<Vec<Process>>,
}

#[derive(Clone, Debug)]
struct Peer {
    id: u64,
    raft: String,
    http: String,
}

struct Process {
    child: Option<Child>,
    /// CPU time of those that were killed.
    spent: Duration,
}

impl Nodes {
    /// Makes certificates and starts nodes 1 to `count`.
    pub(super) async fn start(directory: &Path, count: u64, naive: bool) -> Result<Self> {
        certificates::make(&directory.join("certificates"), 1..=count)?;
        let addresses = free_addresses(2 * count as usize)
            .context("no free ports on the loopback interface")?;
        let peers = (1..=count)
            .zip(addresses.chunks(2))
            .map(|(id, pair)| Peer {
                id,
                raft: pair[0].to_string(),
                http: pair[1].to_string(),
            })
            .collect();
        let nodes = Self {
            directory: directory.to_owned(),
            naive,
            peers,
            processes: Mutex::default(),
        };
        for id in 1..=count {
            let child = nodes.spawn(id)?;
            nodes.processes.lock().await.push(Process {
                child: Some(child),
                spent: Duration::ZERO,
            });
        }
        Ok(nodes)
    }

    fn spawn(&self, id: u64) -> Result<Child> {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.directory.join(format!("node-{id}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--id", &id.to_string()]);
        for peer in &self.peers {
            command.args([
                "--peer",
                &format!("{}={},{}", peer.id, peer.raft, peer.http),
            ]);
        }
        command
            .arg("--data")
            .arg(self.directory.join(format!("node-{id}")))
            .arg("--certificates")
            .arg(self.directory.join("certificates"));
        if self.naive {
            command.arg("--naive");
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start node {id}"))
    }

    /// The addresses for clients, in the order of the ids.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.peers.iter().map(|peer| peer.http.clone()).collect()
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.peers.iter().map(|peer| peer.id).collect()
    }

    fn place(&self, id: u64) -> Result<usize> {
        let place = self.peers.iter().position(|peer| peer.id == id);
        place.ok_or_else(|| anyhow!("there is no node {id}"))
    }

    /// Waits until a majority names the same leader and it says so itself.
    pub(super) async fn wait_for_leader(&self, longest: Duration) -> Result<u64> {
        let start = Instant::now();
        loop {
            let statuses = self.statuses().await;
            let leader = statuses
                .iter()
                .flatten()
                .find(|status| status.role == "leader" && !status.hosts.is_empty());
            if let Some(leader) = leader {
                let agree = statuses
                    .iter()
                    .flatten()
                    .filter(|status| status.leader == leader.node && status.term == leader.term)
                    .count();
                if agree > self.peers.len() / 2 {
                    return Ok(leader.node);
                }
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

    /// What each node says of itself; `None` of those that do not answer.
    pub(super) async fn statuses(&self) -> Vec<Option<StatusReply>> {
        let mut statuses = Vec::new();
        for peer in &self.peers {
            let mut client = Client::new(peer.http.clone());
            statuses.push(client.status().await.ok());
        }
        statuses
    }

    /// Kills a node without a warning.
    pub(super) async fn kill(&self, id: u64) -> Result<()> {
        let place = self.place(id)?;
        let mut processes = self.processes.lock().await;
        let process = &mut processes[place];
        if let Some(mut child) = process.child.take() {
            process.spent += cpu_of(&child);
            // SIGKILL, and waits for the end.
            child
                .kill()
                .await
                .with_context(|| format!("cannot kill node {id}"))?;
        }
        Ok(())
    }

    /// Starts a node again that was killed.
    pub(super) async fn restart(&self, id: u64) -> Result<()> {
        let place = self.place(id)?;
        let child = self.spawn(id)?;
        self.processes.lock().await[place].child = Some(child);
        Ok(())
    }

    /// Fails when a node that should run has ended by itself.
    pub(super) async fn check_alive(&self) -> Result<()> {
        let mut processes = self.processes.lock().await;
        for (peer, process) in self.peers.iter().zip(processes.iter_mut()) {
            if let Some(child) = &mut process.child
                && let Some(status) = child.try_wait()?
            {
                bail!(
                    "node {} ended by itself ({status}):\n{}",
                    peer.id,
                    self.last_words()
                );
            }
        }
        Ok(())
    }

    /// The CPU time of all nodes so far.
    pub(super) async fn cpu(&self) -> Duration {
        let processes = self.processes.lock().await;
        processes
            .iter()
            .map(|process| process.spent + process.child.as_ref().map_or(Duration::ZERO, cpu_of))
            .sum()
    }

    /// Ends all nodes.
    pub(super) async fn stop(&self) {
        for process in self.processes.lock().await.iter_mut() {
            if let Some(mut child) = process.child.take() {
                // One that has ended already is as good.
                let _ = child.kill().await;
            }
        }
    }

    fn last_words(&self) -> String {
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
