//! Three real processes with real files, killed by SIGKILL under load: nothing acknowledged is missing.
//!
//! `PERF_RAFT_KILL_SECONDS` says for how long: 4 by default, 60 for the full run.
#![cfg(feature = "durable")]

use bytes::Bytes;
use perf_raft::{
    Command, DeliverError, Inbox, OutboundMessage, ProposeError, RaftHandle, RaftNode, RaftOptions,
    SegmentLog, SendError, StateMachine, StateMachineError, Transport,
};
use std::collections::{BTreeMap, HashMap};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

const NODE: &str = "PERF_RAFT_TEST_NODE";
const FOLDER: &str = "PERF_RAFT_TEST_FOLDER";
const PORTS: &str = "PERF_RAFT_TEST_PORTS";
const CLIENTS: u64 = 8;

/// Key and value of a line.
#[derive(Clone, Default)]
struct Map(Arc<Mutex<BTreeMap<u64, u64>>>);

impl StateMachine for Map {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        let mut map = self.0.lock().expect("no panic under it");
        for command in batch {
            let text = std::str::from_utf8(&command.data).expect("a command");
            let (key, value) = text.split_once(' ').expect("a command");
            map.insert(key.parse().expect("a key"), value.parse().expect("a value"));
            responses.push(Bytes::from_static(b"ok"));
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        let map = self.0.lock().expect("no panic under it");
        Ok(map
            .iter()
            .map(|(key, value)| format!("{key} {value}\n"))
            .collect::<String>()
            .into())
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
        let mut map = BTreeMap::new();
        for line in std::str::from_utf8(&snapshot)?.lines() {
            let (key, value) = line.split_once(' ').ok_or("no pair")?;
            map.insert(key.parse()?, value.parse()?);
        }
        *self.0.lock().expect("no panic under it") = map;
        Ok(())
    }
}

/// Frames with their length in front, over a connection for each direction.
struct Tcp {
    listen: u16,
    peers: HashMap<u64, mpsc::Sender<Bytes>>,
}

impl Tcp {
    fn new(id: u64, ports: &[u16]) -> Self {
        let mut peers = HashMap::new();
        for peer in (1..=3).filter(|peer| *peer != id) {
            let (queue, frames) = mpsc::channel(4096);
            let address = SocketAddr::from(([127, 0, 0, 1], ports[peer as usize - 1]));
            tokio::spawn(write_to(address, frames));
            peers.insert(peer, queue);
        }
        Self {
            listen: ports[id as usize - 1],
            peers,
        }
    }
}

async fn write_to(address: SocketAddr, mut frames: mpsc::Receiver<Bytes>) {
    let mut stream = None;
    while let Some(frame) = frames.recv().await {
        if stream.is_none() {
            stream = tokio::net::TcpStream::connect(address).await.ok();
        }
        let Some(connected) = &mut stream else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut bytes = (frame.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&frame);
        if connected.write_all(&bytes).await.is_err() {
            stream = None;
        }
    }
}

async fn read_from(mut stream: tokio::net::TcpStream, inbox: Inbox) {
    loop {
        let Ok(len) = stream.read_u32_le().await else {
            return;
        };
        let mut frame = vec![0; len as usize];
        if stream.read_exact(&mut frame).await.is_err() {
            return;
        }
        if let Err(DeliverError::Malformed(error)) = inbox.deliver(frame.into()) {
            panic!("a peer sent {error}");
        }
    }
}

impl Transport for Tcp {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let port = self.listen;
        tokio::spawn(async move {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
                .await
                .expect("the port is free");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(read_from(stream, inbox.clone()));
            }
        });
        Ok(())
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        let peer = self.peers.get(&message.to).ok_or(SendError::Unreachable)?;
        peer.try_send(message.frame).map_err(|_| SendError::Full)
    }
}

fn ports_of(text: &str) -> Vec<u16> {
    text.split(',')
        .map(|port| port.parse().expect("a port"))
        .collect()
}

/// Not a test by itself: what the processes run.
#[test]
fn node_process() {
    let Ok(id) = env::var(NODE) else {
        return;
    };
    let id: u64 = id.parse().expect("an id");
    let ports = ports_of(&env::var(PORTS).expect("ports"));
    let folder = env::var(FOLDER).expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads");
    runtime.block_on(async {
        let map = Map::default();
        let mut options = RaftOptions::default();
        options.tick = Duration::from_millis(20);
        options.snapshot_entries = 500;
        options.log_entries_kept = 50;
        let log = SegmentLog::open(Path::new(&folder).join(id.to_string())).expect("a sound log");
        let handle = RaftNode::builder(id)
            .log_store(log)
            .transport(Tcp::new(id, &ports))
            .state_machine(map.clone())
            .options(options)
            .bootstrap([1, 2, 3])
            .start()
            .await
            .expect("it starts");
        let address = ("127.0.0.1", ports[id as usize + 2]);
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .expect("the port is free");
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, handle.clone(), map.clone()));
        }
    });
}

/// `W key value` and `R key`, a line each.
async fn serve(stream: tokio::net::TcpStream, handle: RaftHandle, map: Map) {
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = if let Some(command) = line.strip_prefix("W ") {
            match handle.propose(Bytes::from(command.to_owned())).await {
                Ok(_) => "ok".to_owned(),
                Err(ProposeError::NotLeader { .. }) => "elsewhere".to_owned(),
                Err(error) => format!("failed {error}"),
            }
        } else {
            let key: u64 = line[2..].parse().expect("a key");
            match handle.read_index().await {
                Ok(_) => map
                    .0
                    .lock()
                    .expect("no panic under it")
                    .get(&key)
                    .copied()
                    .unwrap_or(0)
                    .to_string(),
                Err(error) => format!("failed {error}"),
            }
        };
        if write
            .write_all(format!("{answer}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Ports that nobody listens on, below those that outgoing connections are given (from 32768 on Linux, from 49152
/// by RFC 6335 elsewhere): one of those may be some connection's own while a node is down.
fn free_ports(count: usize) -> Vec<u16> {
    // Test runs beside each other begin at different places.
    let begin = std::process::id() % 12_000;
    let ports: Vec<u16> = (0..12_000)
        .map(|place| 20_000 + ((begin * 97 + place) % 12_000) as u16)
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .take(count)
        .collect();
    assert_eq!(ports.len(), count, "loopback has free ports");
    ports
}

/// The processes, killed when the test ends however it ends.
struct Nodes {
    children: Vec<Option<Child>>,
    ports: Vec<u16>,
    folder: tempfile::TempDir,
}

impl Nodes {
    fn start(&mut self, place: usize) {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let child = Process::new(env::current_exe().expect("this test"))
            .args(["--exact", "node_process", "--nocapture"])
            .env(NODE, (place + 1).to_string())
            .env(FOLDER, self.folder.path())
            .env(PORTS, ports.join(","))
            .stdout(Stdio::null())
            .spawn()
            .expect("the test can be started");
        self.children[place] = Some(child);
    }

    fn kill(&mut self, place: usize) {
        if let Some(mut child) = self.children[place].take() {
            // SIGKILL on unix.
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
        }
    }

    /// Whether a process ended by itself, which none may.
    fn assert_alive(&mut self) {
        for child in self.children.iter_mut().flatten() {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("a node ended by itself: {status}");
            }
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for place in 0..self.children.len() {
            self.kill(place);
        }
    }
}

fn ask(connection: &mut Option<BufReader<TcpStream>>, port: u16, line: &str) -> Option<String> {
    if connection.is_none() {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        *connection = Some(BufReader::new(stream));
    }
    let stream = connection.as_mut()?;
    let mut answer = String::new();
    let sent = stream.get_mut().write_all(format!("{line}\n").as_bytes());
    if sent.is_err()
        || stream
            .read_line(&mut answer)
            .ok()
            .is_none_or(|bytes| bytes == 0)
    {
        *connection = None;
        return None;
    }
    Some(answer.trim().to_owned())
}

#[test]
fn nothing_acknowledged_is_missing_after_many_kills() {
    let seconds = env::var("PERF_RAFT_KILL_SECONDS")
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(4);
    let mut nodes = Nodes {
        children: vec![None, None, None],
        ports: free_ports(6),
        folder: tempfile::tempdir().expect("a temporary folder"),
    };
    for place in 0..3 {
        nodes.start(place);
    }
    let client_ports = nodes.ports[3..].to_vec();
    let stop = Arc::new(AtomicBool::new(false));
    let total = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|key| {
            let (stop, ports, total) =
                (Arc::clone(&stop), client_ports.clone(), Arc::clone(&total));
            thread::spawn(move || {
                let mut connections = [None, None, None];
                let (mut place, mut acknowledged, mut tried) = (0, 0_u64, 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    tried += 1;
                    let line = format!("W {key} {tried}");
                    match ask(&mut connections[place], ports[place], &line).as_deref() {
                        Some("ok") => {
                            acknowledged = tried;
                            total.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => {
                            place = (place + 1) % 3;
                            thread::sleep(Duration::from_millis(5));
                        }
                    }
                }
                (key, acknowledged, tried)
            })
        })
        .collect();
    let begin = Instant::now();
    let mut kills = 0_usize;
    thread::sleep(Duration::from_millis(1500));
    while begin.elapsed() < Duration::from_secs(seconds) {
        let place = (kills * 7 + kills / 3) % 3;
        nodes.kill(place);
        thread::sleep(Duration::from_millis(100));
        // At times all of them are gone at once.
        if kills % 4 == 3 {
            nodes.kill((place + 1) % 3);
            nodes.kill((place + 2) % 3);
            nodes.start((place + 1) % 3);
            nodes.start((place + 2) % 3);
        }
        nodes.start(place);
        kills += 1;
        thread::sleep(Duration::from_millis(600));
        nodes.assert_alive();
    }
    stop.store(true, Ordering::Relaxed);
    let told: Vec<(u64, u64, u64)> = clients
        .into_iter()
        .map(|client| client.join().expect("no panic"))
        .collect();
    assert!(
        kills > 0 && total.load(Ordering::Relaxed) > 0,
        "nothing happened"
    );
    for (key, acknowledged, tried) in told {
        for (place, port) in client_ports.iter().enumerate() {
            let mut connection = None;
            let deadline = Instant::now() + Duration::from_secs(30);
            let found: u64 = loop {
                let answer = ask(&mut connection, *port, &format!("R {key}"));
                if let Some(value) = answer.and_then(|answer| answer.parse().ok()) {
                    break value;
                }
                assert!(
                    Instant::now() < deadline,
                    "node {} does not answer",
                    place + 1
                );
                thread::sleep(Duration::from_millis(20));
            };
            assert!(
                (acknowledged..=tried).contains(&found),
                "node {}: client {key} was told {acknowledged} and tried {tried}, the map has {found}",
                place + 1
            );
        }
    }
    println!(
        "{} writes acknowledged over {kills} kills, none missing",
        total.load(Ordering::Relaxed)
    );
}
