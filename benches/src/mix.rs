//! What a node does all day, in one iteration: a status query (am I the leader, the status, a peer
//! look-up), a metric record, and a small status message serialised into a buffer.
//!
//! The origin's claims are measured on this mix, done its naive way ([`naive`]) and ours.

use std::io::{self, Write};

use crate::case::{Case, Path, Prepare, path};

pub mod naive;
pub mod ours;

/// The id of the whole mix on one thread.
pub const NODE: &str = "mix/node";
/// The id of the mix without its serialisation; supports a headline.
pub const NODE_UNSERIALISED: &str = "mix/node_unserialised";
/// The id of the mix's serialisation alone, the one part without strings; supports a headline.
pub const MESSAGES: &str = "mix/messages";
/// The id of the mix's status query by two threads while a third one updates what they read.
pub const STATUS_QUERY: &str = "mix/status_query";

/// Nodes in the cluster, and so entries in the table of peers.
pub const CLUSTER_NODES: u64 = 5;

/// Readers in [`STATUS_QUERY`].
pub const READERS: u32 = 2;

/// Pause between two updates by the writer of [`STATUS_QUERY`]: a loop that commits some thousand
/// batches per second. A writer without pause would measure starvation, not contention.
pub const WRITER_PAUSE_US: u64 = 50;

/// The peer that iteration `turn` asks about.
fn peer_of(turn: u64) -> u64 {
    turn % CLUSTER_NODES + 1
}

/// One way to do the mix's work.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Prepares [`NODE`].
    pub node: Prepare,
    /// Prepares [`NODE_UNSERIALISED`].
    pub node_unserialised: Prepare,
    /// Prepares [`MESSAGES`].
    pub messages: Prepare,
    /// Prepares [`STATUS_QUERY`].
    pub status_query: Prepare,
}

/// The mix's cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let (before, after) = (&naive::WAY, &ours::WAY);
    vec![
        case(
            NODE,
            "one turn of a node: status query, metric record, status message into a buffer",
            1,
            (before.node, after.node),
        ),
        case(
            STATUS_QUERY,
            "a status query on each of two threads while a third one updates the status",
            READERS,
            (before.status_query, after.status_query),
        ),
    ]
}

/// The cases that only the headlines need.
#[must_use]
pub fn supporting() -> Vec<Case> {
    let (before, after) = (&naive::WAY, &ours::WAY);
    vec![
        case(
            NODE_UNSERIALISED,
            "the turn of a node without its status message",
            1,
            (before.node_unserialised, after.node_unserialised),
        ),
        case(
            MESSAGES,
            "the status message of a node's turn alone",
            1,
            (before.messages, after.messages),
        ),
    ]
}

fn case(id: &'static str, about: &'static str, threads: u32, ways: (Prepare, Prepare)) -> Case {
    let (before, after): (Path, Path) = (path("before", ways.0), path("after", ways.1));
    Case {
        id,
        about,
        threads,
        before,
        after,
        peers: Vec::new(),
        goals: Vec::new(),
    }
}

/// What a status query finds out, and a status message says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusMessage {
    /// This node.
    pub node_id: u64,
    /// Its term.
    pub term: u64,
    /// The leader it knows, 0 for none.
    pub leader_id: u64,
    /// The last committed entry.
    pub commit_index: u64,
    /// The last applied entry.
    pub applied_index: u64,
    /// Whether it leads.
    pub is_leader: bool,
}

/// The size of an encoded [`StatusMessage`].
pub const STATUS_MESSAGE_BYTES: usize = 5 * 8 + 1;

impl StatusMessage {
    /// Writes the message: five little-endian words and a byte.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn encode(&self, out: &mut impl Write) -> io::Result<()> {
        let words = [
            self.node_id,
            self.term,
            self.leader_id,
            self.commit_index,
            self.applied_index,
        ];
        for word in words {
            out.write_all(&word.to_le_bytes())?;
        }
        out.write_all(&[u8::from(self.is_leader)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_size_its_constant_says() -> io::Result<()> {
        let mut out = Vec::new();
        let message = StatusMessage {
            term: 7,
            is_leader: true,
            ..StatusMessage::default()
        };
        message.encode(&mut out)?;
        assert_eq!(out.len(), STATUS_MESSAGE_BYTES);
        assert_eq!((out[8], out[40]), (7, 1));
        Ok(())
    }

    #[test]
    fn both_ways_run_every_case() {
        for case in cases().iter().chain(&supporting()) {
            assert_eq!(case.check(), Ok(()));
            for path in [case.before, case.after] {
                let time = (path.prepare)()(100);
                assert!(
                    time.as_nanos() > 0,
                    "{} {} took no time",
                    case.id,
                    path.name
                );
            }
        }
    }
}
