//! Nodes of the example as processes, and a client that sends exactly what it is told.

use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ports::free_addresses;

/// How long nodes may take to listen and to have a leader, on a machine that does much else.
const START_MAX: Duration = Duration::from_secs(60);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Three nodes, and the place for a fourth; they and their files are gone when it is dropped.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    peers: Vec<(u64, String, String)>,
    children: Vec<Option<Child>>,
    /// The limit of a node's open files, where it is not the test's own.
    files: Option<u64>,
    groups: u32,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The example, which cargo builds before it runs the tests of the package.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("this program has a path");
    let profile = test.parent().and_then(|deps| deps.parent());
    let path = profile
        .expect("tests are in target/<profile>/deps")
        .join("examples")
        .join(format!("vm-node{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.is_file(),
        "{} is not there: `cargo test -p perf-kit --all-features` builds it, a test alone does not",
        path.display()
    );
    path
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::start_limited(None, 1)
    }

    /// The same with so many Raft groups.
    pub(crate) fn start_with_groups(groups: u32) -> Self {
        Self::start_limited(None, groups)
    }

    /// The same with a limit of open files for each node.
    pub(crate) fn start_with_files(files: u64) -> Self {
        Self::start_limited(Some(files), 1)
    }

    fn start_limited(files: Option<u64>, groups: u32) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let addresses = free_addresses(8).expect("loopback has free ports");
        let peers = (1..)
            .zip(addresses.chunks(2))
            .map(|(id, pair)| (id, pair[0].to_string(), pair[1].to_string()))
            .collect();
        let made = Command::new(program())
            .arg("certificates")
            .arg(directory.path().join("certificates"))
            .args(["--nodes", "4"])
            .status();
        assert!(made.is_ok_and(|status| status.success()));
        let mut cluster = Self {
            directory,
            peers,
            children: vec![None, None, None, None],
            files,
            groups,
        };
        for id in 1..=3 {
            cluster.spawn(id);
        }
        for id in 1..=3 {
            cluster.wait_until_it_listens(id);
        }
        cluster
    }

    /// Starts a node, and returns when it listens; the fourth is one that joins.
    pub(crate) fn restart(&mut self, id: u64) {
        self.spawn(id);
        self.wait_until_it_listens(id);
    }

    /// Starts a node with another count of groups, and returns what it said when it has ended.
    pub(crate) fn fails_with_groups(&mut self, id: u64, groups: u32) -> String {
        let before = std::mem::replace(&mut self.groups, groups);
        self.spawn(id);
        self.groups = before;
        let mut child = self.children[id as usize - 1]
            .take()
            .expect("it was started");
        let status = child.wait().expect("it was started here");
        let said = self.words(id);
        assert!(!status.success(), "it said:\n{said}");
        said
    }

    /// Removes the folder of a node that was killed.
    pub(crate) fn wipe(&self, id: u64) {
        let folder = self.directory.path().join(format!("node-{id}"));
        std::fs::remove_dir_all(folder).expect("it is there");
    }

    fn spawn(&mut self, id: u64) {
        let folder = self.directory.path();
        let log = std::fs::File::create(self.log(id)).expect("the folder can be written to");
        let mut command = match self.files {
            Some(files) => {
                let mut shell = Command::new("sh");
                let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
                shell.args(["-c", &limited]).arg(program());
                shell
            }
            None => Command::new(program()),
        };
        command.args(["serve", "--id", &id.to_string()]);
        let known = if id == 4 { 4 } else { 3 };
        for (id, raft, http) in self.peers.iter().take(known) {
            command.args(["--peer", &format!("{id}={raft},{http}")]);
        }
        if id == 4 {
            command.arg("--join");
        }
        if self.groups != 1 {
            command.args(["--groups", &self.groups.to_string()]);
        }
        let child = command
            .arg("--data")
            .arg(folder.join(format!("node-{id}")))
            .arg("--certificates")
            .arg(folder.join("certificates"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program can be started");
        self.children[id as usize - 1] = Some(child);
    }

    fn wait_until_it_listens(&mut self, id: u64) {
        let start = Instant::now();
        while let Err(error) = TcpStream::connect(self.address(id)) {
            let child = self.children[id as usize - 1].as_mut();
            let ended = child.expect("it was started").try_wait();
            if !matches!(ended, Ok(None)) || start.elapsed() > START_MAX {
                let said = self.words(id);
                panic!("node {id} does not listen: {error}, {ended:?}; it said:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where a node's stderr goes.
    fn log(&self, id: u64) -> PathBuf {
        self.directory.path().join(format!("node-{id}.log"))
    }

    /// What a node said since it was last started.
    pub(crate) fn words(&self, id: u64) -> String {
        std::fs::read_to_string(self.log(id)).unwrap_or_default()
    }

    pub(crate) fn kill(&mut self, id: u64) {
        if let Some(mut child) = self.children[id as usize - 1].take() {
            child.kill().expect("it runs");
            child.wait().expect("it was started here");
        }
    }

    /// Sends a signal to a node and waits for its end.
    #[cfg(unix)]
    pub(crate) fn end_by(&mut self, signal: &str, id: u64) -> std::process::ExitStatus {
        let mut child = self.children[id as usize - 1].take().expect("it runs");
        let sent = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(child.id().to_string())
            .status();
        assert!(sent.is_ok_and(|status| status.success()));
        child.wait().expect("it was started here")
    }

    /// Where the peers of a node connect to.
    pub(crate) fn raft_address(&self, id: u64) -> &str {
        &self.peers[id as usize - 1].1
    }

    pub(crate) fn address(&self, id: u64) -> &str {
        &self.peers[id as usize - 1].2
    }

    /// The id of a leader that a majority of the first three agrees on and that knows their hosts.
    pub(crate) fn leader(&self) -> u64 {
        let start = Instant::now();
        while start.elapsed() < START_MAX {
            let statuses: Vec<Value> = (1..=3)
                .filter_map(|id| try_send(self.address(id), "GET", "/status", "").ok())
                .map(|answer| answer.json())
                .collect();
            let leader = statuses.iter().find(|status| {
                status["role"] == "leader"
                    && status["hosts"]
                        .as_array()
                        .is_some_and(|hosts| hosts.len() >= 3)
            });
            if let Some(leader) = leader {
                let agree = statuses
                    .iter()
                    .filter(|status| status["leader"] == leader["node"])
                    .count();
                if agree >= 2 {
                    return leader["node"].as_u64().expect("it is a number");
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no leader within {START_MAX:?}");
    }

    /// The members as a node lists them, once there are so many and all of them vote: a list is as old as a tick.
    pub(crate) fn voters(&self, id: u64, count: usize) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let list = self.send(id, "GET", "/members", "").json();
            let rows = list["members"].as_array().cloned().unwrap_or_default();
            if rows.len() == count && rows.iter().all(|row| row["role"] == "voter") {
                return rows;
            }
            assert!(start.elapsed() < START_MAX, "{list}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The leader that a node names, once it names one that says so itself.
    pub(crate) fn leader_by(&self, id: u64) -> u64 {
        let start = Instant::now();
        while start.elapsed() < START_MAX {
            let named = self.send(id, "GET", "/status", "").json()["leader"]
                .as_u64()
                .unwrap_or_default();
            if named != 0
                && let Ok(status) = try_send(self.address(named), "GET", "/status", "")
                && status.json()["role"] == "leader"
            {
                return named;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("node {id} names no leader within {START_MAX:?}");
    }

    /// Waits until a node has applied what another one has now.
    pub(crate) fn until_applied(&self, id: u64, other: u64) {
        let applied = |id| self.send(id, "GET", "/status", "").json()["applied_index"].as_u64();
        let (start, goal) = (Instant::now(), applied(other));
        while applied(id) < goal {
            let said = self.words(id);
            assert!(
                start.elapsed() < START_MAX,
                "{:?} of {goal:?}; it said:\n{said}",
                applied(id)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a request with one more header, and no body.
    pub(crate) fn send_with(&self, id: u64, method: &str, path: &str, header: &str) -> Answer {
        let address = self.address(id);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\n{header}\r\ncontent-length: 0\r\n\r\n"
        );
        self.send_bytes(id, head.as_bytes())
    }

    /// Sends exactly these bytes and reads one answer. The node may stop reading before their end.
    pub(crate) fn send_bytes(&self, id: u64, bytes: &[u8]) -> Answer {
        let send = || {
            let mut stream = TcpStream::connect(self.address(id))?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            let _ = stream.write_all(bytes);
            read_answer(BufReader::new(stream))
        };
        send().unwrap_or_else(|error| panic!("{error}; it said:\n{}", self.words(id)))
    }

    /// Sends a request to a node.
    pub(crate) fn send(&self, id: u64, method: &str, path: &str, body: &str) -> Answer {
        try_send(self.address(id), method, path, body).unwrap_or_else(|error| {
            panic!("{method} {path}: {error}; it said:\n{}", self.words(id))
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in 1..=4 {
            self.kill(id);
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn try_send(
    address: &str,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<Answer> {
    send_claiming(address, method, path, body, body.len())
}

/// The same with another `Content-Length`.
pub(crate) fn send_claiming(
    address: &str,
    method: &str,
    path: &str,
    body: &str,
    length: usize,
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    read_answer(BufReader::new(stream))
}

/// Reads one answer by its `Content-Length`: a server need not close the connection.
fn read_answer(mut from: impl BufRead) -> std::io::Result<Answer> {
    let mut head = String::new();
    while from.read_line(&mut head)? > 2 {}
    let head = head.to_lowercase();
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other("no status"))?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse().ok())
        .ok_or_else(|| std::io::Error::other("no length"))?;
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Answer {
        status,
        head,
        body: String::from_utf8(body).map_err(std::io::Error::other)?,
    })
}
