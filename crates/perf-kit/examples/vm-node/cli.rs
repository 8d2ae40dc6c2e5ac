//! The command line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use lexopt::prelude::*;

use crate::cluster;
use crate::inventory::command::{Host, Size};

/// Certificates that are made at once: as many as a group has members at most.
const CERTIFICATES_MAX: u64 = 1000;

const HELP: &str = "\
Usage: vm-node serve --id ID --peer ID=RAFT,HTTP ... --data DIR --certificates DIR [--join] [--via ID=ADDRESS ...] [--naive]
       vm-node certificates DIR --nodes N
       vm-node cluster [--nodes N] [--for SECONDS] [--clients C] [--chaos] [--seed N] [--naive] [--compare] [--keep]

serve         runs one node of a replicated VM inventory
  --peer      a node's id, address for peers and address for clients; once for each node, this one included
  --data      where its log is kept
  --join      it has no part in forming the cluster: it is added by `POST /members`, or it was a member before
  --via       ID=ADDRESS: where this node connects to that peer, instead of the announced address; for proxies
  --naive     built the way one writes it first: the same interface, the same durability
  --vcpus, --memory-mib, --disk-gib   what each host has; 4096, 16777216 and 1048576 without them

certificates  makes an authority and certificates for nodes 1 to N

cluster       starts a cluster on this machine, puts it under load, checks what it answered, and reports
  --nodes     3 without it
  --for       seconds of load, 10 without it
  --clients   requests at once, 64 without it
  --chaos     meanwhile kills, ends, pauses, wipes, replaces and cuts off nodes; then every node must be well again
  --seed      draws the faults of an earlier run again; a new seed without it
  --compare   the naive node and then the other one, and the ratios
  --keep      leaves the data, certificates and logs of the run
";

/// What to do.
pub(crate) enum Command {
    Help(&'static str),
    Serve(Serve),
    Certificates { directory: PathBuf, nodes: u64 },
    Cluster(cluster::Options),
}

/// One node.
pub(crate) struct Serve {
    pub(crate) id: u64,
    pub(crate) peers: Vec<Host>,
    pub(crate) data: PathBuf,
    pub(crate) certificates: PathBuf,
    pub(crate) join: bool,
    /// Peers that are reached at another address than the announced one.
    pub(crate) via: HashMap<u64, String>,
    pub(crate) naive: bool,
}

impl Serve {
    /// The host that this node is.
    pub(crate) fn own(&self) -> Result<&Host> {
        let own = self.peers.iter().find(|host| host.id == self.id);
        own.with_context(|| format!("node {} is not among the peers", self.id))
    }

    /// All other hosts.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Host> {
        self.peers.iter().filter(|host| host.id != self.id)
    }
}

/// Parses the arguments after the program's name.
pub(crate) fn parse(parser: lexopt::Parser) -> Result<Command> {
    let mut parser = parser;
    let name = match parser.next()? {
        None | Some(Short('h') | Long("help")) => return Ok(Command::Help(HELP)),
        Some(Value(name)) => name.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    match name.as_str() {
        "serve" => serve(parser),
        "certificates" => certificates(parser),
        "cluster" => cluster_options(parser),
        other => bail!("unknown command `{other}`\n\n{HELP}"),
    }
}

fn serve(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut id, mut data, mut certificates) = (None, None, None);
    let (mut peers, mut join, mut naive) = (Vec::new(), false, false);
    let mut via = HashMap::new();
    let mut size = Size {
        vcpus: 4096,
        memory_mib: 16 << 20,
        disk_gib: 1 << 20,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(HELP)),
            Long("id") => id = Some(parser.value()?.parse()?),
            Long("peer") => peers.push(peer(&parser.value()?.string()?)?),
            Long("data") => data = Some(PathBuf::from(parser.value()?)),
            Long("certificates") => certificates = Some(PathBuf::from(parser.value()?)),
            Long("join") => join = true,
            Long("via") => {
                let (id, address) = detour(&parser.value()?.string()?)?;
                via.insert(id, address);
            }
            Long("naive") => naive = true,
            Long("vcpus") => size.vcpus = parser.value()?.parse()?,
            Long("memory-mib") => size.memory_mib = parser.value()?.parse()?,
            Long("disk-gib") => size.disk_gib = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    let missing = |what: &str| anyhow!("`serve` needs {what}\n\n{HELP}");
    let id = id.ok_or_else(|| missing("--id"))?;
    for host in &mut peers {
        host.size = size;
    }
    let options = Serve {
        id,
        peers,
        data: data.ok_or_else(|| missing("--data"))?,
        certificates: certificates.ok_or_else(|| missing("--certificates"))?,
        join,
        via,
        naive,
    };
    options
        .own()
        .context("`serve` needs a --peer for the node itself, too")?;
    Ok(Command::Serve(options))
}

/// `1=127.0.0.1:7001,127.0.0.1:8001`
fn peer(text: &str) -> Result<Host> {
    let parse = || -> Option<Host> {
        let (id, addresses) = text.split_once('=')?;
        let (raft, http) = addresses.split_once(',')?;
        raft.parse::<SocketAddr>().ok()?;
        http.parse::<SocketAddr>().ok()?;
        Some(Host {
            id: id.parse().ok().filter(|&id| id > 0)?,
            raft: raft.to_owned(),
            http: http.to_owned(),
            size: Size::default(),
            removed: false,
        })
    };
    parse().with_context(|| {
        format!("`{text}` is no peer: a peer is like 1=127.0.0.1:7001,127.0.0.1:8001, with ids from 1 on")
    })
}

/// `2=127.0.0.1:7102`
fn detour(text: &str) -> Result<(u64, String)> {
    let parse = || -> Option<(u64, String)> {
        let (id, address) = text.split_once('=')?;
        address.parse::<SocketAddr>().ok()?;
        Some((id.parse().ok().filter(|&id| id > 0)?, address.to_owned()))
    };
    parse().with_context(|| format!("`{text}` is no detour: --via takes one like 2=127.0.0.1:7102"))
}

fn certificates(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut directory, mut nodes) = (None, 3);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(HELP)),
            Long("nodes") => nodes = parser.value()?.parse()?,
            Value(value) if directory.is_none() => directory = Some(PathBuf::from(value)),
            other => return Err(other.unexpected().into()),
        }
    }
    let directory = directory.ok_or_else(|| anyhow!("`certificates` needs a directory"))?;
    if !(1..=CERTIFICATES_MAX).contains(&nodes) {
        bail!("--nodes is {nodes}; it must be from 1 to {CERTIFICATES_MAX}");
    }
    Ok(Command::Certificates { directory, nodes })
}

fn cluster_options(mut parser: lexopt::Parser) -> Result<Command> {
    let mut options = cluster::Options {
        nodes: 3,
        seconds: Duration::from_secs(10),
        clients: 64,
        chaos: false,
        seed: rand::random(),
        naive: false,
        compare: false,
        keep: false,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(HELP)),
            Long("nodes") => options.nodes = parser.value()?.parse()?,
            Long("for") => options.seconds = Duration::from_secs(parser.value()?.parse()?),
            Long("clients") => options.clients = parser.value()?.parse()?,
            Long("chaos") => options.chaos = true,
            Long("seed") => options.seed = parser.value()?.parse()?,
            Long("naive") => options.naive = true,
            Long("compare") => options.compare = true,
            Long("keep") => options.keep = true,
            other => return Err(other.unexpected().into()),
        }
    }
    if !(1..=9).contains(&options.nodes) {
        bail!("--nodes must be from 1 to 9");
    }
    if options.clients == 0 || options.clients > 4096 {
        bail!("--clients must be from 1 to 4096");
    }
    let hour = Duration::from_secs(3600);
    if options.seconds.is_zero() || options.seconds > hour {
        bail!("--for must be from 1 to 3600 seconds");
    }
    if options.chaos && options.nodes < 3 {
        bail!("--chaos needs at least 3 nodes: with fewer, every kill is an outage");
    }
    Ok(Command::Cluster(options))
}
