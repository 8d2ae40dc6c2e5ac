//! A replicated map in a database: a machine that is durable by itself, whose snapshots are streams.
//!
//! `cargo run --release -p perf-raft --example redb_kv`

mod machine;

use bytes::Bytes;
use machine::RedbKv;
use perf_raft::{
    ChannelNetwork, Machine, MembershipChange, RaftHandle, RaftNode, RaftOptions, SegmentLog,
};
use std::error::Error;
use std::path::Path;
use std::time::Duration;

const PAIRS: u64 = 20_000;
const VALUE_BYTES: usize = 200;

async fn start(
    network: &ChannelNetwork,
    folder: &Path,
    id: u64,
    voters: &[u64],
) -> Result<(RaftHandle, RedbKv), Box<dyn Error>> {
    let folder = folder.join(id.to_string());
    let log = SegmentLog::open(folder.join("log"))?;
    let machine = RedbKv::open(&folder.join("pairs.redb"))?;
    let mut options = RaftOptions::default();
    options.snapshot_entries = 20;
    options.log_entries_kept = 10;
    let node = RaftNode::builder(id)
        .log_store(log)
        .transport(network.transport(id))
        .state_machine(Machine::streamed(machine.clone()))
        .options(options)
        .bootstrap(voters.iter().copied())
        .start()
        .await?;
    Ok((node, machine))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let network = ChannelNetwork::new();
    let (leader, machine) = start(&network, folder.path(), 1, &[1]).await?;
    leader.wait_for_leader(Duration::from_secs(10)).await;
    for first in (0..PAIRS).step_by(500) {
        let commands = first..first + 500;
        let command = |key: u64| [&key.to_be_bytes()[..], &[7; VALUE_BYTES]].concat().into();
        leader
            .propose_batch(commands.map(command).collect())
            .await?;
    }
    println!("{PAIRS} pairs are in the database of node 1");

    // The state goes to the second node as a stream.
    let (second, copy) = start(&network, folder.path(), 2, &[]).await?;
    leader
        .change_membership(vec![MembershipChange::AddVoter(2)])
        .await?;
    second.read_index().await?;
    let key = (PAIRS - 1).to_be_bytes();
    assert_eq!(copy.get(&key)?, machine.get(&key)?);
    println!(
        "node 2 has them too, by {} snapshot",
        leader.stats().core.snapshots_sent.max(1)
    );

    // A machine that is durable has what it had: no snapshot is restored, no command applied again.
    for node in [&second, &leader] {
        node.shutdown().await;
    }
    drop((leader, second, machine, copy));
    let (first, machine) = start(&network, folder.path(), 1, &[]).await?;
    let (second, _) = start(&network, folder.path(), 2, &[]).await?;
    first.wait_for_leader(Duration::from_secs(10)).await;
    first.read_index().await?;
    let value = machine.get(&key)?.ok_or("the pair is gone")?;
    println!("after a restart the last pair has {} bytes", value.len());
    let command = [&key[..], b"new"].concat();
    let leader = if first.status().is_leader() {
        &first
    } else {
        &second
    };
    assert_eq!(leader.propose(Bytes::from(command)).await?, value);
    for node in [first, second] {
        node.shutdown().await;
    }
    Ok(())
}
