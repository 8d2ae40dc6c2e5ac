//! A client of the HTTP interface that stays with the leader.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// How long an attempt may take.
pub(super) const ATTEMPT_MAX: Duration = Duration::from_secs(6);
/// The same for what a node says of itself.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Longest answer that is read: a page of VMs is some hundred kilobytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// VMs that are asked for at once.
const PAGE: usize = 1000;

/// One connection to one node.
pub(crate) struct Client {
    address: String,
    attempt_max: Duration,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// The part of `GET /status` that is looked at.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StatusReply {
    pub(super) node: u64,
    pub(super) role: String,
    pub(super) term: u64,
    pub(super) leader: u64,
    pub(super) commit_index: u64,
    pub(super) applied_index: u64,
    pub(super) vms: u64,
    pub(super) requests: u64,
    pub(super) naive: bool,
    pub(super) hosts: Vec<serde_json::Value>,
    /// Empty from the naive node, which has one group.
    #[serde(default)]
    groups: Vec<GroupReply>,
}

/// A Raft group in it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct GroupReply {
    pub(super) role: String,
    pub(super) term: u64,
    pub(super) leader: u64,
    pub(super) commit_index: u64,
    pub(super) applied_index: u64,
}

impl StatusReply {
    /// Each group, at least one.
    pub(super) fn groups(&self) -> Vec<GroupReply> {
        if !self.groups.is_empty() {
            return self.groups.clone();
        }
        vec![GroupReply {
            role: self.role.clone(),
            term: self.term,
            leader: self.leader,
            commit_index: self.commit_index,
            applied_index: self.applied_index,
        }]
    }
}

/// The part of `GET /members` that is looked at.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MembersReply {
    pub(super) is_changing: bool,
    pub(crate) members: Vec<MemberReply>,
}

/// A member in it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MemberReply {
    pub(crate) id: u64,
    pub(super) role: String,
    pub(crate) raft: Option<String>,
}

/// The part of a VM that is looked at.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct VmReply {
    pub(super) name: String,
    pub(super) running: bool,
    pub(super) host: u64,
    pub(super) version: u64,
    /// Of a VM alone.
    #[serde(default)]
    pub(super) user_data: String,
    /// In a list.
    #[serde(default)]
    pub(super) user_data_bytes: usize,
    #[serde(default)]
    pub(super) user_data_crc32: u32,
}

/// `GET /vms`
#[derive(Debug, Deserialize)]
pub(super) struct ListReply {
    pub(super) vms: Vec<VmReply>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<String>,
}

/// The part of an error that is looked at.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorReply {
    pub(super) leader: Option<String>,
}

impl Client {
    pub(crate) fn new(address: String) -> Self {
        Self {
            address,
            attempt_max: ATTEMPT_MAX,
            sender: None,
        }
    }

    /// The same with less patience.
    pub(super) fn with_attempts_of(self, attempt_max: Duration) -> Self {
        Self {
            attempt_max,
            ..self
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Goes to another node from now on.
    pub(super) fn move_to(&mut self, address: &str) {
        if self.address != address {
            self.address = address.to_owned();
            self.sender = None;
        }
    }

    /// Sends one request and waits for its answer. An error says that there may have been none.
    pub(super) async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer> {
        let attempt =
            tokio::time::timeout(self.attempt_max, self.attempt(method, path, body)).await;
        let result = attempt.context("no answer in time").flatten();
        if result.is_err() {
            // Whatever comes on this connection now belongs to nobody.
            self.sender = None;
        }
        result
    }

    async fn attempt(&mut self, method: Method, path: &str, body: Bytes) -> Result<Answer> {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(async move {
                // Its end is seen by whoever waits for an answer.
                let _ = connection.await;
            });
            self.sender = Some(sender);
        }
        let sender = self.sender.as_mut().context("there is no connection")?;
        sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?
            .to_bytes();
        Ok(Answer { status, body })
    }

    pub(super) async fn status(&mut self) -> Result<StatusReply> {
        self.look("/status").await
    }

    pub(crate) async fn members(&mut self) -> Result<MembersReply> {
        self.look("/members").await
    }

    /// What a node says of itself, which takes no time.
    async fn look<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        let answer = self.request(Method::GET, path, Bytes::new());
        let answer = tokio::time::timeout(LOOK_MAX, answer).await??;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// All VMs, page by page.
    pub(super) async fn list(&mut self) -> Result<Vec<VmReply>> {
        let mut all = Vec::new();
        let mut path = format!("/vms?limit={PAGE}");
        loop {
            let answer = self.request(Method::GET, &path, Bytes::new()).await?;
            if answer.status != StatusCode::OK {
                bail!(
                    "{}: {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                );
            }
            let page: ListReply = serde_json::from_slice(&answer.body)?;
            all.extend(page.vms);
            let Some(next) = page.next else {
                return Ok(all);
            };
            path = format!("/vms?limit={PAGE}&after={next}");
        }
    }
}
