//! The command line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use lexopt::prelude::*;

use crate::api::USER_DATA_BYTES_MAX;
use crate::cluster;
use crate::groups::GROUPS_MAX;
use crate::inventory::command::{Host, Size};

/// Certificates that are made at once: as many as a group has members at most.
const CERTIFICATES_MAX: u64 = 1000;
/// MiB of log without `--log-mib`, and what may be asked for.
const LOG_MIB: usize = 256;
const LOG_MIB_MIN: usize = 8;
const LOG_MIB_MAX: usize = 16 * 1024;
/// Groups of a cluster under chaos.
const CHAOS_GROUPS: u32 = 16;

const HELP: &str = "\
Usage: vm-node serve --id ID --peer ID=RAFT,HTTP ... --data DIR --certificates DIR [--join]
                     [--via ID=ADDRESS ...] [--groups N] [--log-mib N] [--naive]
       vm-node certificates DIR --nodes N
       vm-node cluster [--nodes N] [--for SECONDS] [--clients C] [--groups N] [--log-mib N] [--user-data BYTES]
                       [--chaos] [--seed N] [--naive] [--compare] [--keep]

serve         runs one node of a replicated VM inventory
  --peer      a node's id, address for peers and address for clients; once for each node, this one included
  --data      where its log is kept
  --join      it has no part in forming the cluster: it is added by `POST /members`, or it was a member before
  --via       ID=ADDRESS: where this node connects to that peer, instead of the announced address; for proxies
  --groups    Raft groups that the inventory is spread over by the VMs' names; 1 without it, 256 at most, the same on
              every node and at every start
  --log-mib   MiB of log of all groups together at which writes are refused until snapshots are made; 256 without it.
              A segment of the log has an eighth of it
  --naive     built the way one writes it first: the same interface, the same durability
  --vcpus, --memory-mib, --disk-gib   what each host has; 4096, 16777216 and 1048576 without them

certificates  makes an authority and certificates for nodes 1 to N

cluster       starts a cluster on this machine, puts it under load, checks what it answered, and reports
  --nodes     3 without it
  --for       seconds of load, 10 without it
  --clients   requests at once, 64 without it
  --groups    Raft groups of the nodes; 1 without it, 16 with --chaos
  --log-mib   as for `serve`
  --user-data each VM has user data of 0 to so many bytes, drawn by the seed; 0 without it, 16384 at most
  --chaos     meanwhile kills, ends, pauses, slows, wipes, replaces and cuts off nodes; then every node must be well
              again
  --seed      draws the faults of an earlier run again; a new seed without it
  --compare   the naive node and then the other one, and the ratios
  --keep      leaves the data, certificates and logs of the run
";

/// What to do.
pub(crate) enum Command {
    Help(&'static str),
    Serve(Box<Serve>),
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
    pub(crate) groups: u32,
    /// Bytes of all groups' logs at which writes are refused.
    pub(crate) log_bytes: usize,
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
    let (mut groups, mut log_mib) = (1, LOG_MIB);
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
            Long("groups") => groups = count_of_groups(&mut parser)?,
            Long("log-mib") => log_mib = mib_of_log(&mut parser)?,
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
        groups,
        log_bytes: log_mib << 20,
        naive,
    };
    options
        .own()
        .context("`serve` needs a --peer for the node itself, too")?;
    check_groups(groups, log_mib, naive)?;
    Ok(Command::Serve(Box::new(options)))
}

fn count_of_groups(parser: &mut lexopt::Parser) -> Result<u32> {
    let groups = parser.value()?.parse()?;
    if !(1..=GROUPS_MAX).contains(&groups) {
        bail!("--groups is {groups}; it must be from 1 to {GROUPS_MAX}");
    }
    Ok(groups)
}

fn mib_of_log(parser: &mut lexopt::Parser) -> Result<usize> {
    let mib = parser.value()?.parse()?;
    if !(LOG_MIB_MIN..=LOG_MIB_MAX).contains(&mib) {
        bail!("--log-mib is {mib}; it must be from {LOG_MIB_MIN} to {LOG_MIB_MAX}");
    }
    Ok(mib)
}

/// Options that depend on each other.
fn check_groups(groups: u32, log_mib: usize, naive: bool) -> Result<()> {
    if naive && groups > 1 {
        bail!(
            "--groups is {groups}, and the naive node has one group: leave out --naive or --groups"
        );
    }
    if log_mib < groups as usize {
        bail!("--log-mib is {log_mib}; with {groups} groups it must be at least {groups}");
    }
    Ok(())
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
        groups: 1,
        log_mib: LOG_MIB,
        user_data_bytes: 0,
        chaos: false,
        seed: rand::random(),
        naive: false,
        compare: false,
        keep: false,
    };
    let mut groups = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(HELP)),
            Long("nodes") => options.nodes = parser.value()?.parse()?,
            Long("groups") => groups = Some(count_of_groups(&mut parser)?),
            Long("log-mib") => options.log_mib = mib_of_log(&mut parser)?,
            Long("user-data") => options.user_data_bytes = parser.value()?.parse()?,
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
    let has_naive = options.naive || options.compare;
    let without = if options.chaos && !has_naive {
        CHAOS_GROUPS
    } else {
        1
    };
    options.groups = groups.unwrap_or(without);
    check_groups(options.groups, options.log_mib, has_naive)?;
    if options.user_data_bytes > USER_DATA_BYTES_MAX {
        bail!(
            "--user-data is {}; it must be at most {USER_DATA_BYTES_MAX}",
            options.user_data_bytes
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(lexopt::Parser::from_args(line.split_whitespace()))
    }

    const SERVE: &str = "serve --id 1 --peer 1=127.0.0.1:1,127.0.0.1:2 --data d --certificates c";

    #[test]
    fn a_node_has_one_group_and_a_cluster_under_chaos_sixteen() {
        let groups = |line: &str| match parsed(line) {
            Ok(Command::Serve(options)) => options.groups,
            Ok(Command::Cluster(options)) => options.groups,
            _ => panic!("`{line}` starts nothing"),
        };
        assert_eq!(groups(SERVE), 1);
        assert_eq!(groups(&format!("{SERVE} --groups 4")), 4);
        assert_eq!(groups("cluster"), 1);
        assert_eq!(groups("cluster --chaos"), 16);
        assert_eq!(groups("cluster --chaos --groups 1"), 1);
        // The naive node has one.
        assert_eq!(groups("cluster --chaos --naive"), 1);
        assert_eq!(groups("cluster --chaos --compare"), 1);
    }

    #[test]
    fn options_that_cannot_be_are_refused_with_what_may_be() {
        let wrong = [
            ("--groups 0", "from 1 to 256"),
            ("--groups 257", "from 1 to 256"),
            ("--groups 2 --naive", "--naive"),
            ("--log-mib 7", "from 8 to"),
            ("--log-mib 8 --groups 9", "at least 9"),
        ];
        for (options, part) in wrong {
            for command in [SERVE, "cluster"] {
                let line = format!("{command} {options}");
                let error = parsed(&line).err().map(|error| error.to_string());
                let is_right = error.as_ref().is_some_and(|error| error.contains(part));
                assert!(is_right, "`{line}`: {error:?}");
            }
        }
        assert!(parsed("cluster --user-data 16385").is_err());
        assert!(parsed("cluster --user-data 16384").is_ok());
    }
}
