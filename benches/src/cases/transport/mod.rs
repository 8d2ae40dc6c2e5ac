//! Cases of `perf-transport`.
//!
//! Client and server of every path live in this process, on one tokio runtime with two workers, and talk over loopback. A node has
//! one connection to a peer, so each path has one (ours one per class). The callers are tasks that live as long as the path.
//!
//! `before` is what nodes do today: a tonic channel per peer, and a unary call for each message. Its service has no code generation and
//! a codec that passes bytes through, so that nothing but the transport is measured.

mod cores;
mod drive;
mod grpc;
mod isolation;
mod link;
mod ours;
#[cfg(feature = "peers")]
mod peers;
mod processes;
mod raw;
mod tls;

#[cfg(not(feature = "peers"))]
use no_peers as peers;

use crate::case::{Case, Goal, Path, Prepare, path};
use crate::experiment::{Experiment, Measure};

/// Without the feature `peers` there are none.
#[cfg(not(feature = "peers"))]
mod no_peers {
    use crate::case::{Path, Run};

    /// Who is left out is never asked for.
    const LEFT_OUT: &str = "built without the feature `peers`";

    pub(super) fn tarpc_serve(_listener: tokio::net::TcpListener) {
        unreachable!("{LEFT_OUT}");
    }

    pub(super) fn tarpc_over(_: tokio::runtime::Runtime, _address: &str, _callers: usize) -> Run {
        unreachable!("{LEFT_OUT}");
    }

    pub(super) fn bidi_over(_: tokio::runtime::Runtime, _address: &str, _callers: usize) -> Run {
        unreachable!("{LEFT_OUT}");
    }

    pub(super) fn round_trips<const CALLERS: usize>(_secure: bool) -> Vec<Path> {
        Vec::new()
    }

    pub(super) fn one_way<const BYTES: usize>(_secure: bool) -> Vec<Path> {
        Vec::new()
    }
}

pub(crate) use processes::served;

const RAW: &str = "raw tcp";
const QUEUE: &str = "queue over tcp";

const fn ratio(against: &'static str, at_least: f64) -> Goal {
    Goal::Ratio { against, at_least }
}

/// The experiments of `perf-transport`.
#[must_use]
pub fn experiments() -> Vec<Experiment> {
    vec![
        Experiment {
            id: "transport/isolation",
            about: "heartbeats beside saturating bulk over a link of 1 Gbit/s",
            measure: isolation::isolation,
        },
        Experiment {
            id: "transport/fairness",
            about: "two saturated classes: what the less urgent one gets of its weight",
            measure: isolation::fairness,
        },
        two_process("transport/two_process_x1", processes::two_process::<1>),
        two_process("transport/two_process_x16", processes::two_process::<16>),
        two_process("transport/two_process_x64", processes::two_process::<64>),
        two_process("transport/two_process_x512", processes::two_process::<512>),
        Experiment {
            id: "transport/per_core",
            about: "calls of 64 bytes on one core and on two, with a runtime, a server and a client for each core",
            measure: cores::per_core,
        },
        Experiment {
            id: "transport/busy_x1",
            about: "a call of 64 bytes at a time between two processes that poll busily, a core each",
            measure: processes::busy::<1>,
        },
        Experiment {
            id: "transport/busy_x64",
            about: "64 calls of 64 bytes in flight between two processes that poll busily, a core each",
            measure: processes::busy::<64>,
        },
    ]
}

fn two_process(id: &'static str, measure: Measure) -> Experiment {
    Experiment {
        id,
        about: "calls of 64 bytes in flight between two processes, a core each",
        measure,
    }
}

/// The cases of `perf-transport`.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = plain();
    cases.extend(allocations());
    cases.extend(secure());
    cases
}

fn case(
    id: &'static str,
    about: &'static str,
    (before, after): (Prepare, Prepare),
    peers: Vec<Path>,
    goals: &[Goal],
) -> Case {
    Case {
        id,
        about,
        threads: drive::WORKERS,
        before: path("before", before),
        after: path("after", after),
        peers,
        goals: goals.to_vec(),
    }
}

fn plain() -> Vec<Case> {
    let raw = |prepare| path(RAW, prepare);
    let with = |first: Path, others: Vec<Path>| -> Vec<Path> {
        std::iter::once(first).chain(others).collect()
    };
    vec![
        case(
            "transport/rr_64b_x64",
            "64 calls of 64 bytes in flight, answered inline",
            (grpc::unary::<64, false>, ours::inline::<64, 64, false>),
            with(
                path(QUEUE, raw::queue::<64>),
                peers::round_trips::<64>(false),
            ),
            &[
                ratio("before", 25.0),
                ratio("tarpc", 10.0),
                ratio("tonic bidi", 2.0),
                Goal::Allocations(0.01),
            ],
        ),
        case(
            "transport/rr_64b_x64_spawned",
            "64 calls of 64 bytes in flight, each answered by a task of its own",
            (grpc::unary::<64, false>, ours::spawned::<64, false>),
            Vec::new(),
            &[ratio("before", 10.0)],
        ),
        case(
            "transport/rr_64b_x1",
            "one call of 64 bytes at a time",
            (grpc::unary::<1, false>, ours::inline::<1, 64, false>),
            with(raw(raw::ping_pong), peers::round_trips::<1>(false)),
            &[ratio(RAW, 1.0 / 1.05), Goal::Allocations(0.01)],
        ),
        case(
            "transport/rr_1k_x64",
            "64 calls of 1 KiB in flight, answered inline",
            (grpc::unary_1k::<64>, ours::inline::<64, 1024, false>),
            Vec::new(),
            &[Goal::Allocations(0.01)],
        ),
        case(
            "transport/oneway_64k",
            "messages of 64 KiB without replies, as fast as they go",
            (grpc::streamed::<65_536, false>, ours::each::<65_536, false>),
            with(raw(raw::bulk), peers::one_way::<65_536>(false)),
            &[
                ratio(RAW, 0.9),
                ratio("before", 2.0),
                Goal::Allocations(0.1),
            ],
        ),
        case(
            "transport/oneway_64b",
            "messages of 64 bytes without replies, fed to a batch, as fast as they go",
            (grpc::streamed::<64, false>, ours::batched::<64, false>),
            peers::one_way::<64>(false),
            &[ratio("LengthDelimitedCodec", 2.0), Goal::Allocations(0.01)],
        ),
        case(
            "transport/oneway_64b_each",
            "messages of 64 bytes without replies, sent one by one",
            (grpc::streamed::<64, false>, ours::each::<64, false>),
            peers::one_way::<64>(false),
            &[Goal::Allocations(0.01)],
        ),
    ]
}

/// What a call allocates, both ends together.
fn allocations() -> Vec<Case> {
    vec![
        case(
            "transport/allocs",
            "a call of 1 KiB at a time: what it allocates",
            (grpc::unary_1k::<1>, ours::inline::<1, 1024, false>),
            Vec::new(),
            &[Goal::Allocations(0.01)],
        ),
        case(
            "transport/allocs_64k",
            "a call of 64 KiB at a time: what it allocates",
            (grpc::unary_64k, ours::inline::<1, 65_536, false>),
            Vec::new(),
            &[Goal::Allocations(0.1)],
        ),
    ]
}

fn secure() -> Vec<Case> {
    vec![
        case(
            "transport/rr_64b_x64_tls",
            "64 calls of 64 bytes in flight under mutual TLS, answered inline",
            (grpc::unary::<64, true>, ours::inline::<64, 64, true>),
            peers::round_trips::<64>(true),
            &[
                ratio("before", 25.0),
                ratio("tonic bidi", 2.0),
                Goal::Allocations(0.01),
            ],
        ),
        case(
            "transport/rr_64b_x64_spawned_tls",
            "64 calls of 64 bytes in flight under mutual TLS, each answered by a task of its own",
            (grpc::unary::<64, true>, ours::spawned::<64, true>),
            Vec::new(),
            &[ratio("before", 10.0)],
        ),
        case(
            "transport/rr_64b_x1_tls",
            "one call of 64 bytes at a time under mutual TLS",
            (grpc::unary::<1, true>, ours::inline::<1, 64, true>),
            peers::round_trips::<1>(true),
            &[],
        ),
        case(
            "transport/oneway_64k_tls",
            "messages of 64 KiB without replies under mutual TLS",
            (grpc::streamed::<65_536, true>, ours::each::<65_536, true>),
            peers::one_way::<65_536>(true),
            &[ratio("before", 2.0), Goal::Allocations(0.1)],
        ),
        case(
            "transport/oneway_64b_tls",
            "messages of 64 bytes without replies under mutual TLS",
            (grpc::streamed::<64, true>, ours::batched::<64, true>),
            peers::one_way::<64>(true),
            &[Goal::Allocations(0.01)],
        ),
    ]
}
