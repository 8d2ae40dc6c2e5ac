//! Cases of `perf-raft`: three nodes in one process, two workers of tokio, clients that wait for each response.
//!
//! An operation is a round: every client proposes once, 128 bytes, into a map from numbers to bytes that each node keeps. Every
//! path gets the same clients, payloads and map; `no Raft` is what clients and three maps take alone. Between nodes ours and the naive loop encode and decode each
//! message; openraft gets what its own cluster benchmark uses, a network that hands over Rust values, and encodes nothing.

mod bare;
mod flood;
mod groups;
mod idle;
mod latency;
mod naive;
mod ours;
mod restart;
mod stream;
mod wal;

#[cfg(feature = "peers")]
mod openraft_09;
#[cfg(feature = "peers")]
mod openraft_10;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use perf_raft::codec;
use raft::eraftpb::{Entry, Message, MessageType};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, watch};

use crate::case::{Case, Goal, Path, Prepare, Run, path, timed};
use crate::experiment::Experiment;

/// Two workers: one for each core of the machine the goals are stated for.
const WORKERS: u32 = 2;
/// What a client proposes: a key and a value.
const PAYLOAD_BYTES: usize = 128;
/// Keys that clients write in turn.
const KEYS: u64 = 10_000;
const OPENRAFT: &str = "openraft";
const OPENRAFT_ALPHA: &str = "openraft 0.10";
const NO_RAFT: &str = "no Raft";
const WAL: &str = "bare WAL";
const WAL_WITH_CLIENTS: &str = "WAL with clients";

/// The cases of `perf-raft`.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        memory::<1>(
            "raft/memory_x1",
            "one client proposes, log in memory",
            &[ratio(OPENRAFT, 3.0), ratio(OPENRAFT_ALPHA, 5.0)],
        ),
        memory::<64>(
            "raft/memory_x64",
            "64 clients propose once each, log in memory",
            &[ratio(OPENRAFT_ALPHA, 2.0)],
        ),
        memory::<256>(
            "raft/memory_x256",
            "256 clients propose once each, log in memory",
            &[
                ratio(OPENRAFT_ALPHA, 2.0),
                ratio(NO_RAFT, 0.8),
                ratio("before", 10.0),
            ],
        ),
        memory::<1024>(
            "raft/memory_x1024",
            "1024 clients propose once each, log in memory",
            &[ratio(OPENRAFT_ALPHA, 2.0), ratio(NO_RAFT, 0.8)],
        ),
        memory::<4096>(
            "raft/memory_x4096",
            "4096 clients propose once each, log in memory",
            &[ratio(OPENRAFT_ALPHA, 2.0), ratio(NO_RAFT, 0.8)],
        ),
        durable::<256>(
            "raft/durable_x256",
            "256 clients propose once each, log on disk; before: an fsync per proposal",
            naive::durable::<256>,
            Vec::new(),
            &[ratio("before", 60.0)],
        ),
        durable::<1024>(
            "raft/durable_x1024",
            "1024 clients propose once each, log on disk; bare WAL: all in one batch to three files, two synced, without clients",
            naive::durable::<1024>,
            vec![
                path(WAL, wal::durable::<1024>),
                path(WAL_WITH_CLIENTS, wal::with_clients::<1024>),
            ],
            &[ratio(WAL_WITH_CLIENTS, 0.8)],
        ),
        encode(),
    ]
}

/// The experiments of `perf-raft`.
#[must_use]
pub fn experiments() -> Vec<Experiment> {
    let [groups_100, groups_1000] = groups::experiments();
    vec![
        flood::experiment(),
        latency::experiment(),
        groups_100,
        groups_1000,
        restart::experiment(),
        stream::experiment(),
        idle::idle(),
        idle::wake(),
    ]
}

const fn ratio(against: &'static str, at_least: f64) -> Goal {
    Goal::Ratio { against, at_least }
}

fn memory<const CLIENTS: u64>(id: &'static str, about: &'static str, goals: &[Goal]) -> Case {
    let peers = vec![
        #[cfg(feature = "peers")]
        path(OPENRAFT, openraft_09::memory::<CLIENTS>),
        #[cfg(feature = "peers")]
        path(OPENRAFT_ALPHA, openraft_10::memory::<CLIENTS>),
        path(NO_RAFT, bare::memory::<CLIENTS>),
    ];
    Case {
        id,
        about,
        threads: WORKERS,
        before: path("before", naive::memory::<CLIENTS>),
        after: path("after", ours::memory::<CLIENTS>),
        peers,
        goals: goals.to_vec(),
    }
}

fn durable<const CLIENTS: u64>(
    id: &'static str,
    about: &'static str,
    before: Prepare,
    peers: Vec<Path>,
    goals: &[Goal],
) -> Case {
    Case {
        id,
        about,
        threads: WORKERS,
        before: path("before", before),
        after: path("after", ours::durable::<CLIENTS>),
        peers,
        goals: goals.to_vec(),
    }
}

fn runtime() -> Runtime {
    let built = Builder::new_multi_thread()
        .worker_threads(WORKERS as usize)
        .enable_all()
        .build();
    built.expect("the system gives two threads")
}

/// The command of a client's turn: a key and a value.
fn command(client: u64, turn: u64) -> Bytes {
    let mut bytes = vec![0x5A; PAYLOAD_BYTES];
    let key = (client * 7919 + turn) % KEYS;
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes.into()
}

fn key_of(command: &[u8]) -> u64 {
    command
        .first_chunk::<8>()
        .map_or(0, |key| u64::from_le_bytes(*key))
}

/// Who proposes, and waits for the response.
trait Proposer: Clone + Send + 'static {
    fn propose(&self, command: Bytes) -> impl Future<Output = ()> + Send;
}

/// Makes a path of `count` clients; each proposes once per operation.
fn clients<P: Proposer>(runtime: Runtime, count: u64, proposer: &P) -> Run {
    let start = watch::Sender::new(0_u64);
    let left = Arc::new(AtomicU64::new(0));
    let done = Arc::new(Notify::new());
    for client in 0..count {
        let (mut start, left, done) = (start.subscribe(), Arc::clone(&left), Arc::clone(&done));
        let proposer = proposer.clone();
        runtime.spawn(async move {
            let mut turn = 0;
            while start.changed().await.is_ok() {
                let turns = *start.borrow_and_update();
                for _ in 0..turns {
                    turn += 1;
                    proposer.propose(command(client, turn)).await;
                }
                if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    done.notify_one();
                }
            }
        });
    }
    Box::new(move |iters| {
        left.store(count, Ordering::Release);
        let begin = Instant::now();
        start.send_replace(iters);
        runtime.block_on(done.notified());
        begin.elapsed()
    })
}

/// An append of 16 entries, as a leader sends it many thousand times a second.
fn append() -> Message {
    let mut message = Message {
        to: 2,
        from: 1,
        term: 7,
        log_term: 7,
        index: 1_000_000,
        commit: 999_990,
        ..Default::default()
    };
    message.set_msg_type(MessageType::MsgAppend);
    let entries: Vec<Entry> = (1..=16)
        .map(|place| Entry {
            term: 7,
            index: 1_000_000 + place,
            data: command(1, place),
            ..Default::default()
        })
        .collect();
    message.set_entries(entries.into());
    message
}

fn encode() -> Case {
    let before = || {
        let message = append();
        timed(move || {
            let bytes = protobuf::Message::write_to_bytes(std::hint::black_box(&message));
            std::hint::black_box(bytes.map(Bytes::from).unwrap_or_default());
        })
    };
    let after = || {
        let message = append();
        timed(move || {
            let bytes = codec::encode_pooled(std::hint::black_box(&message));
            std::hint::black_box(bytes.unwrap_or_default());
        })
    };
    Case {
        id: "raft/encode",
        about: "an append of 16 entries of 128 bytes, encoded",
        threads: 1,
        before: path("before", before),
        after: path("after", after),
        peers: Vec::new(),
        goals: vec![Goal::Allocations(0.0)],
    }
}
