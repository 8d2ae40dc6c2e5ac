//! The network of an `openraft` cluster: its `RaftNetworkFactory` and `RaftNetwork` on one transport for all peers.
//!
//! ```text
//! cargo run -p perf-transport --example openraft
//! ```
//!
//! What to take from it:
//!
//! - One `Transport` serves all peers; the factory makes a view of one of them, which costs nothing.
//! - Every call has the deadline that `openraft` gives it, and the peer is told of it.
//! - Errors say whether the peer is gone (`Unreachable`, upon which `openraft` backs off) or something else went wrong (`NetworkError`).
//! - Votes and appended entries go on the control connection, snapshots on the other one: neither waits for them.
//! - Values are encoded with serde here; a compact format does as well. `openraft` cuts snapshots into pieces on its own, which must be shorter than
//!   `frame_bytes_max`: see `openraft::Config::snapshot_max_chunk_size`.
//!
//! The nodes of this example only vote: logs and state machines are the same whatever the network is.

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, Raft, Vote};
use perf_transport::{
    Envelope, Message, Priority, Rejection, RejectionCode, Router, Security, Transport,
    TransportError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::io::Cursor;
use std::time::Duration;

openraft::declare_raft_types!(
    /// What this example's cluster is made of.
    pub Types: D = String, R = String, NodeId = u64, Node = BasicNode, SnapshotData = Cursor<Vec<u8>>
);

const SERVICE: &str = "openraft";

/// Makes the network of each peer.
#[derive(Clone, Debug)]
struct Network(Transport);

/// The way to one peer.
#[derive(Clone, Debug)]
struct Peer {
    transport: Transport,
    id: u64,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        // Known already, or at another address now: both are fine.
        self.0.add_peer(target, node.addr.clone());
        Peer {
            transport: self.0.clone(),
            id: target,
        }
    }
}

impl Peer {
    /// Sends a request. What comes back is what the peer's `Raft` said, or why nothing did.
    async fn call<Q: Serialize, R: DeserializeOwned, E: Error + DeserializeOwned>(
        &self,
        (method, priority): (&str, Priority),
        request: &Q,
        time: Duration,
    ) -> Result<R, RPCError<u64, BasicNode, E>> {
        let payload = serde_json::to_vec(request).map_err(|error| network(&error))?;
        let envelope = Envelope::new(self.id, SERVICE, method, &payload[..])
            .with_priority(priority)
            .with_timeout(time);
        let reply = self.transport.call_wait(envelope).await;
        let reply = reply.map_err(|error| match error {
            TransportError::Unreachable { .. } | TransportError::PeerDraining { .. } => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            error => network(&error),
        })?;
        let answer: Result<R, E> =
            serde_json::from_slice(&reply).map_err(|error| network(&error))?;
        answer.map_err(|error| {
            RPCError::RemoteError(openraft::error::RemoteError::new(self.id, error))
        })
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.call(("append", Priority::High), &request, option.hard_ttl())
            .await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, BasicNode, RaftError<u64, InstallSnapshotError>>,
    > {
        self.call(("snapshot", Priority::Low), &request, option.hard_ttl())
            .await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.call(("vote", Priority::Critical), &request, option.hard_ttl())
            .await
    }
}

/// Something went wrong that is not the peer's absence.
fn network<E: Error>(error: &(impl Error + 'static)) -> RPCError<u64, BasicNode, E> {
    RPCError::Network(NetworkError::new(error))
}

fn decoded<Q: DeserializeOwned>(message: &Message) -> Result<Q, Rejection> {
    serde_json::from_slice(message.payload())
        .map_err(|error| Rejection::new(RejectionCode::Invalid, error.to_string()))
}

fn encoded<R: Serialize>(answer: &R) -> Result<bytes::Bytes, Rejection> {
    serde_json::to_vec(answer)
        .map(Into::into)
        .map_err(|error| Rejection::new(RejectionCode::Internal, error.to_string()))
}

/// The other end: hands requests to this node's `Raft`. Called by `main` of a whole node, behind `Raft::new`.
pub fn serve(router: Router, raft: &Raft<Types>) -> Router {
    let (append, snapshot, vote) = (raft.clone(), raft.clone(), raft.clone());
    router
        .spawned(SERVICE, "append", move |message| {
            let raft = append.clone();
            async move { encoded(&raft.append_entries(decoded(&message)?).await) }
        })
        .spawned(SERVICE, "snapshot", move |message| {
            let raft = snapshot.clone();
            async move { encoded(&raft.install_snapshot(decoded(&message)?).await) }
        })
        .spawned(SERVICE, "vote", move |message| {
            let raft = vote.clone();
            async move { encoded(&raft.vote(decoded(&message)?).await) }
        })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // In the place of `serve`: a node that grants every vote.
    let router = Router::new().spawned(SERVICE, "vote", |message| async move {
        let request: VoteRequest<u64> = decoded(&message)?;
        let answer: Result<_, RaftError<u64>> =
            Ok(VoteResponse::new(request.vote, request.last_log_id, true));
        encoded(&answer)
    });
    let server = Transport::builder(2, "cluster", Security::InsecurePlaintext)
        .router(router)
        .listen("127.0.0.1:0")
        .start()
        .await?;
    let client = Transport::builder(1, "cluster", Security::InsecurePlaintext)
        .start()
        .await?;
    let mut network = Network(client);
    let node = BasicNode::new(server.address().unwrap_or_default());
    let mut peer = network.new_client(2, &node).await;
    let time = || RPCOption::new(Duration::from_secs(1));
    let answer = peer
        .vote(VoteRequest::new(Vote::new(1, 1), None), time())
        .await?;
    println!("node 2 grants its vote: {}", answer.vote_granted);
    assert!(answer.vote_granted);
    // A node that is gone is told from one that says no.
    let gone = BasicNode::new("127.0.0.1:1");
    let mut peer = network.new_client(3, &gone).await;
    let answer = peer
        .vote(VoteRequest::new(Vote::new(1, 1), None), time())
        .await;
    assert!(
        matches!(answer, Err(RPCError::Unreachable(_))),
        "{answer:?}"
    );
    println!("node 3 cannot be reached");
    Ok(())
}
