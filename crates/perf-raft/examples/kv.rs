//! A replicated map: three nodes with durable logs in a temporary folder, a leader that is killed under load, and nothing lost.
//!
//! `cargo run --release -p perf-raft --example kv`

use bytes::Bytes;
use perf_raft::{
    ChannelNetwork, Command, ProposeError, RaftHandle, RaftNode, RaftOptions, SegmentLog,
    StateMachine, StateMachineError,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const CLIENTS: u64 = 256;
const VALUE_BYTES: usize = 100;
const LOAD: Duration = Duration::from_secs(2);

type Map = BTreeMap<Bytes, Bytes>;

/// A map from keys of 8 bytes to values. Reads go past Raft, straight to the map, once `read_index` says so.
#[derive(Clone, Default)]
struct Kv(Arc<RwLock<Map>>);

impl Kv {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }
}

impl StateMachine for Kv {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for command in batch {
            let key = command.data.slice(..8.min(command.data.len()));
            let value = command.data.slice(key.len()..);
            responses.push(map.insert(key, value).unwrap_or_default());
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::new();
        for (key, value) in map.iter() {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            bytes.extend_from_slice(value);
        }
        Ok(bytes.into())
    }

    fn restore(&mut self, mut snapshot: Bytes) -> Result<(), StateMachineError> {
        let mut map = Map::new();
        while !snapshot.is_empty() {
            if snapshot.len() < 12 {
                return Err("the snapshot is cut off".into());
            }
            let key = snapshot.split_to(8);
            let len = u32::from_le_bytes(snapshot.split_to(4).as_ref().try_into()?) as usize;
            if snapshot.len() < len {
                return Err("the snapshot is cut off".into());
            }
            map.insert(key, snapshot.split_to(len));
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = map;
        Ok(())
    }
}

/// A node on a runtime of its own, so that it can be killed: nothing of it is told.
struct Node {
    runtime: Runtime,
    handle: RaftHandle,
    kv: Kv,
}

fn start(id: u64, folder: &Path, network: &ChannelNetwork) -> Result<Node, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()?;
    let kv = Kv::default();
    let mut options = RaftOptions::default();
    options.tick = Duration::from_millis(20);
    let log = SegmentLog::open(folder.join(id.to_string()))?;
    let node = RaftNode::builder(id)
        .log_store(log)
        .transport(network.transport(id))
        .state_machine(kv.clone())
        .options(options)
        .bootstrap([1, 2, 3]);
    let handle = runtime.block_on(node.start())?;
    Ok(Node {
        runtime,
        handle,
        kv,
    })
}

/// The node that leads in the latest term.
fn leader(nodes: &BTreeMap<u64, Node>) -> Option<u64> {
    let leaders = nodes
        .iter()
        .filter(|(_, node)| node.handle.status().is_leader());
    leaders
        .max_by_key(|(_, node)| node.handle.status().term)
        .map(|(id, _)| *id)
}

fn wait_for_leader(nodes: &BTreeMap<u64, Node>) -> u64 {
    loop {
        if let Some(id) = leader(nodes) {
            return id;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What clients share: whom to ask, what was acknowledged, and when last.
struct Load {
    handles: Mutex<BTreeMap<u64, RaftHandle>>,
    acknowledged: Mutex<BTreeMap<u64, u64>>,
    writes: AtomicU64,
    last_write_ns: AtomicU64,
    start: Instant,
    stop: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn client(number: u64, load: Arc<Load>) {
    let mut turn = 0_u64;
    let mut target = 1_u64;
    while !load.stop.load(Ordering::Relaxed) {
        let Some(handle) = locked(&load.handles).get(&target).cloned() else {
            target = target % 3 + 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let mut command = number.to_be_bytes().to_vec();
        command.extend_from_slice(&(turn + 1).to_le_bytes());
        command.resize(8 + VALUE_BYTES, b'.');
        match handle.propose(command.into()).await {
            Ok(_) => {
                turn += 1;
                locked(&load.acknowledged).insert(number, turn);
                load.writes.fetch_add(1, Ordering::Relaxed);
                let now = u64::try_from(load.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                load.last_write_ns.fetch_max(now, Ordering::Relaxed);
            }
            Err(ProposeError::NotLeader { hint }) => {
                target = hint.id().unwrap_or(target % 3 + 1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Writing the same value again does no harm here.
            Err(_) => target = target % 3 + 1,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let network = ChannelNetwork::new();
    let mut nodes = BTreeMap::new();
    for id in 1..=3 {
        nodes.insert(id, start(id, folder.path(), &network)?);
    }
    let first = wait_for_leader(&nodes);
    println!(
        "three nodes, logs in {}, node {first} leads",
        folder.path().display()
    );

    let load = Arc::new(Load {
        handles: Mutex::new(
            nodes
                .iter()
                .map(|(id, node)| (*id, node.handle.clone()))
                .collect(),
        ),
        acknowledged: Mutex::default(),
        writes: AtomicU64::new(0),
        last_write_ns: AtomicU64::new(0),
        start: Instant::now(),
        stop: AtomicBool::new(false),
    });
    let clients = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()?;
    for number in 0..CLIENTS {
        clients.spawn(client(number, Arc::clone(&load)));
    }
    std::thread::sleep(LOAD);
    let writes = load.writes.load(Ordering::Relaxed);
    let stats = nodes[&first].handle.stats();
    println!(
        "{CLIENTS} clients: {:.0} durable writes/s of {VALUE_BYTES} bytes; batches of {:.0} proposals, {:.0} entries applied at a time; \
         {:?} per write of the log with its fsync",
        writes as f64 / load.start.elapsed().as_secs_f64(),
        stats.propose.mean_items(),
        stats.apply.mean_items(),
        stats.log.mean_busy(),
    );

    // The leader dies in the middle of it.
    let killed = nodes.remove(&first).ok_or("it was there")?;
    locked(&load.handles).remove(&first);
    let at = Instant::now();
    let killed_ns = u64::try_from(load.start.elapsed().as_nanos())?;
    killed.runtime.shutdown_background();
    let second = loop {
        let id = wait_for_leader(&nodes);
        if id != first && load.last_write_ns.load(Ordering::Relaxed) > killed_ns + 1_000_000 {
            break id;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    println!(
        "node {first} killed; node {second} leads, and writes go on after {:?}",
        at.elapsed()
    );
    std::thread::sleep(LOAD / 2);
    load.stop.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(300));
    clients.shutdown_timeout(Duration::from_secs(2));

    // The killed node comes back, and every node shows every acknowledged write.
    nodes.insert(first, start(first, folder.path(), &network)?);
    let acknowledged = locked(&load.acknowledged).clone();
    for (id, node) in &nodes {
        let read = loop {
            match node.runtime.block_on(node.handle.read_index()) {
                Ok(index) => break index,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        for (number, turn) in &acknowledged {
            let value = node
                .kv
                .get(&number.to_be_bytes())
                .ok_or("an acknowledged write is missing")?;
            let found = u64::from_le_bytes(value[..8].try_into()?);
            if found < *turn {
                return Err(format!(
                    "node {id}: client {number} was told {turn}, the map has {found}"
                )
                .into());
            }
        }
        println!(
            "node {id}: all {} clients' last writes are there, at index {read}",
            acknowledged.len()
        );
    }
    println!(
        "{} writes acknowledged, none missing",
        load.writes.load(Ordering::Relaxed)
    );
    for node in nodes.into_values() {
        node.runtime.block_on(node.handle.shutdown());
    }
    Ok(())
}
