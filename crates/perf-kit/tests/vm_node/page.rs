//! The page of the example `vm-node` in a real browser: it loads, shows three nodes and one leader, and follows a failover.
//!
//! Skipped, with a line that says so, where no Chromium is installed (Debian: `apt install chromium`).

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, try_send};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// How long the browser may take to start and the page to follow.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the page shows, as the page itself says it.
const SHOWN: &str = "JSON.stringify([...document.querySelectorAll('.node')].map(node => [Number(node.dataset.node), node.dataset.role]))";

#[test]
fn the_page_shows_the_cluster_and_follows_a_failover() {
    let Some(program) = BROWSERS.iter().find(|name| is_there(name)) else {
        eprintln!("skipped: no Chromium is installed");
        return;
    };
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    let watcher = (1..=3).find(|&id| id != leader).expect("there are three");
    let url = format!("http://{}/", cluster.address(watcher));
    let mut browser = Browser::open(program, &url);

    let shown = browser.wait_for(SHOWN, |shown| roles(shown, "leader") == [leader]);
    assert_eq!(shown.as_array().map(Vec::len), Some(3), "{shown}");
    assert_eq!(roles(&shown, "follower").len(), 2, "{shown}");

    let vm = r#"{"name":"on-the-page","vcpus":1,"memory_mib":64,"disk_gib":1}"#;
    assert_eq!(cluster.send(leader, "POST", "/vms", vm).status, 201);
    let table = "JSON.stringify(document.getElementById('vms').textContent)";
    browser.wait_for(table, |text| {
        text.as_str()
            .is_some_and(|text| text.contains("on-the-page"))
    });

    cluster.kill(leader);
    let shown = browser.wait_for(SHOWN, |shown| {
        let leaders = roles(shown, "leader");
        leaders.len() == 1 && leaders != [leader] && roles(shown, "down") == [leader]
    });
    assert_eq!(shown.as_array().map(Vec::len), Some(3), "{shown}");
}

/// The ids of the nodes that are shown in a role.
fn roles(shown: &Value, role: &str) -> Vec<u64> {
    let nodes = shown.as_array().into_iter().flatten();
    nodes
        .filter(|node| node[1] == role)
        .filter_map(|node| node[0].as_u64())
        .collect()
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A headless browser with one page, spoken to by the DevTools protocol.
struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    next: u64,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn open(program: &str, url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a temporary directory can be made");
        let process = Command::new(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .args(["--remote-debugging-port=0", "--remote-allow-origins=*"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser can be started");
        let socket = wait(|| connect(profile.path(), url));
        Self {
            process,
            socket,
            next: 0,
            _profile: profile,
        }
    }

    /// Evaluates an expression that yields JSON until the result is as wanted.
    fn wait_for(&mut self, expression: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let found = self.evaluate(expression);
            if wanted(&found) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "still {found}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        self.next += 1;
        let request = json!({
            "id": self.next,
            "method": "Runtime.evaluate",
            "params": { "expression": expression }
        });
        self.socket
            .send(Message::text(request.to_string()))
            .expect("the browser listens");
        loop {
            let message = self.socket.read().expect("the browser answers");
            let Ok(text) = message.to_text() else {
                continue;
            };
            let answer: Value = serde_json::from_str(text).unwrap_or_default();
            if answer["id"] == self.next {
                let text = answer["result"]["result"]["value"]
                    .as_str()
                    .unwrap_or("null");
                return serde_json::from_str(text).unwrap_or_default();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Only what was started here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Finds the page's socket: the port is in a file of the profile.
fn connect(profile: &Path, url: &str) -> io::Result<WebSocket<TcpStream>> {
    let text = std::fs::read_to_string(profile.join("DevToolsActivePort"))?;
    let port = text.lines().next().unwrap_or_default();
    let address = format!("127.0.0.1:{port}");
    let pages = try_send(&address, "GET", "/json/list", "")?.json();
    let page = pages
        .as_array()
        .and_then(|pages| pages.iter().find(|page| page["url"] == url))
        .and_then(|page| page["webSocketDebuggerUrl"].as_str())
        .ok_or_else(|| io::Error::other("the page is not open yet"))?;
    let stream = TcpStream::connect(&address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (socket, _) = tungstenite::client(page, stream).map_err(io::Error::other)?;
    Ok(socket)
}

fn wait<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(found) => return found,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
