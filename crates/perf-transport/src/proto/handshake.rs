//! Who is on the other side, and what both can do.

use super::frame::{FrameError, Header, Kind};
use bytes::Bytes;
use prost::Message;
use std::fmt;

/// The oldest version of the protocol that this crate speaks.
pub const VERSION_MIN: u32 = 1;
/// The newest one.
pub const VERSION_MAX: u32 = 1;
/// Frames have checksums. Both sides must agree: it follows from whether the connection is encrypted.
pub const FEATURE_CHECKSUM: u64 = 1;
/// The side that accepts knows a good-bye of the side that dials.
pub const FEATURE_GOODBYE: u64 = 2;
/// Messages may have trace contexts.
pub const FEATURE_TRACE: u64 = 4;
/// Requests may have answers that come in chunks.
pub const FEATURE_WATCH: u64 = 8;
/// The most bytes of a handshake message: names are short.
pub const HANDSHAKE_BYTES_MAX: u32 = 4096;
/// The least cap of a frame that a peer may ask for. Below it control frames would not fit.
const FRAME_BYTES_LEAST: u32 = 4096;

/// Which of a peer's two connections this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConnectionClass {
    /// Critical and High messages.
    Control,
    /// Normal and Low ones.
    Bulk,
}

impl ConnectionClass {
    const fn number(self) -> u32 {
        match self {
            Self::Control => 1,
            Self::Bulk => 2,
        }
    }

    const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Control),
            2 => Some(Self::Bulk),
            _ => None,
        }
    }
}

/// First message of the side that dials.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// Oldest version it speaks.
    #[prost(uint32, tag = "1")]
    pub version_min: u32,
    /// Newest version it speaks.
    #[prost(uint32, tag = "2")]
    pub version_max: u32,
    /// Feature bits it has.
    #[prost(fixed64, tag = "3")]
    pub features: u64,
    /// Its cluster.
    #[prost(string, tag = "4")]
    pub cluster: String,
    /// Its node id.
    #[prost(fixed64, tag = "5")]
    pub node: u64,
    /// The node it wants to reach.
    #[prost(fixed64, tag = "6")]
    pub target: u64,
    /// A number chosen when its process started.
    #[prost(fixed64, tag = "7")]
    pub incarnation: u64,
    /// Number of this connection in its process.
    #[prost(fixed64, tag = "8")]
    pub connection: u64,
    /// 1 for control, 2 for bulk.
    #[prost(uint32, tag = "9")]
    pub class: u32,
    /// The longest payload it takes.
    #[prost(uint32, tag = "10")]
    pub frame_bytes_max: u32,
    /// How many bytes of an answer in chunks may be on their way before its reader asks for more.
    #[prost(uint32, tag = "11")]
    pub stream_window_bytes: u32,
}

/// Answer of the side that accepts.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Welcome {
    /// The version to speak.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The feature bits in force.
    #[prost(fixed64, tag = "2")]
    pub features: u64,
    /// Its node id.
    #[prost(fixed64, tag = "3")]
    pub node: u64,
    /// A number chosen when its process started.
    #[prost(fixed64, tag = "4")]
    pub incarnation: u64,
    /// The longest payload it takes.
    #[prost(uint32, tag = "5")]
    pub frame_bytes_max: u32,
    /// How many bytes of a streamed body may be on their way before its reader asks for more.
    #[prost(uint32, tag = "6")]
    pub stream_window_bytes: u32,
    /// How many streamed bodies may be open at once.
    #[prost(uint32, tag = "7")]
    pub streams_max: u32,
}

/// The side that accepts says why it closes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refuse {
    /// For people.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// Gives a number to a service and method.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Define {
    /// The service.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The method.
    #[prost(string, tag = "2")]
    pub method: String,
}

/// What a node says of itself in every handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its cluster.
    pub cluster: String,
    /// Its id.
    pub node: u64,
    /// A number chosen when its process started.
    pub incarnation: u64,
    /// The longest payload it takes.
    pub frame_bytes_max: u32,
    /// Window of a streamed body.
    pub stream_window_bytes: u32,
    /// Streamed bodies open at once on a connection.
    pub streams_max: u32,
    /// Whether its connections have checksums.
    pub checksum: bool,
}

impl Local {
    /// The feature bits that this node has.
    #[must_use]
    pub const fn features(&self) -> u64 {
        FEATURE_GOODBYE
            | FEATURE_TRACE
            | FEATURE_WATCH
            | if self.checksum { FEATURE_CHECKSUM } else { 0 }
    }

    /// The first message to a node.
    #[must_use]
    pub fn hello(&self, target: u64, connection: u64, class: ConnectionClass) -> Hello {
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: self.features(),
            cluster: self.cluster.clone(),
            node: self.node,
            target,
            incarnation: self.incarnation,
            connection,
            class: class.number(),
            frame_bytes_max: self.frame_bytes_max,
            stream_window_bytes: self.stream_window_bytes,
        }
    }
}

/// What is wrong with a certificate. If the other side says so it is about this node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CertificateFault {
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// It names another node or cluster.
    WrongName,
    /// It is not signed by the cluster's authority.
    UnknownAuthority,
    /// It is in a revocation list.
    Revoked,
    /// There is none.
    Missing,
    /// Something else, or TLS itself failed: the text says what.
    Other,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// No version in common.
    Version {
        /// Oldest and newest of the peer.
        theirs: (u32, u32),
    },
    /// The peer belongs to another cluster.
    Cluster {
        /// The peer's.
        theirs: String,
        /// This node's.
        ours: String,
    },
    /// The peer is, or wants to reach, another node.
    Node {
        /// The id that was expected.
        expected: u64,
        /// The id that was said.
        found: u64,
    },
    /// One side has checksums and the other does not: one is encrypted, or one has another configuration.
    Checksum,
    /// The class of connection does not exist.
    Class {
        /// Its number.
        number: u32,
    },
    /// The longest payload that the peer takes is too short.
    FrameCap {
        /// The peer's.
        theirs: u32,
    },
    /// Not a handshake message.
    Malformed,
    /// A frame that does not belong here.
    Unexpected(Kind),
    /// Not a frame at all.
    Frame(FrameError),
    /// The peer closed, or said why it refuses.
    Refused {
        /// As the peer put it, cut to 256 characters.
        reason: String,
    },
    /// The peer says that it is this node.
    OwnNode {
        /// The id of both.
        node: u64,
    },
    /// The peer has not been made known with `add_peer`, and `known_peers_only` is set.
    UnknownNode {
        /// Its id.
        node: u64,
    },
    /// The peer has as many connections as a node may have.
    TooManyConnections {
        /// Its id.
        node: u64,
        /// What is allowed.
        connections_max: usize,
    },
    /// The accept hook refused the peer.
    Hook {
        /// Its id.
        node: u64,
        /// As the hook put it.
        reason: String,
    },
    /// It had to make room: as many handshakes as may be were under way, and this one made no progress.
    Displaced {
        /// What is allowed.
        handshakes_max: usize,
    },
    /// It took too long.
    Timeout {
        /// What is allowed.
        timeout_ms: u64,
    },
    /// The certificate does not belong to the node, or there is none.
    Certificate {
        /// What is wrong with it.
        fault: CertificateFault,
        /// What was expected or found.
        reason: String,
    },
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { theirs: (low, high) } => write!(
                f,
                "the peer speaks versions {low} to {high}, this node {VERSION_MIN} to {VERSION_MAX}: upgrade the older one"
            ),
            Self::Cluster { theirs, ours } => {
                write!(f, "the peer is of cluster {theirs:?}, this node of {ours:?}")
            }
            Self::Node { expected, found } => write!(
                f,
                "node {found} where node {expected} was expected: check the addresses of the peers"
            ),
            Self::Checksum => f.write_str(
                "one side has checksums and the other has not: both must have TLS, or the same checksum setting",
            ),
            Self::Class { number } => write!(f, "there is no connection class {number}"),
            Self::FrameCap { theirs } => write!(
                f,
                "the peer takes frames of {theirs} bytes, at least {FRAME_BYTES_LEAST} are needed"
            ),
            Self::Malformed => f.write_str("not a handshake message of this protocol"),
            Self::Unexpected(kind) => write!(f, "a frame {kind:?} came before the handshake"),
            Self::Frame(error) => error.fmt(f),
            Self::Refused { reason } => write!(f, "the peer refused: {reason}"),
            Self::OwnNode { node } => write!(f, "the peer says that it is node {node}, as this node is"),
            Self::UnknownNode { node } => {
                write!(f, "node {node} is not known: add it with `add_peer`")
            }
            Self::TooManyConnections { node, connections_max } => write!(
                f,
                "node {node} has {connections_max} connections to this node, no more are allowed: raise `inbound_per_node_max`"
            ),
            Self::Hook { node, reason } => write!(f, "node {node} is not let in: {reason}"),
            Self::Displaced { handshakes_max } => write!(
                f,
                "{handshakes_max} handshakes are under way, and this one had made no progress: raise `handshakes_max`"
            ),
            Self::Timeout { timeout_ms } => {
                write!(f, "the handshake took longer than {timeout_ms} ms")
            }
            Self::Certificate { reason, .. } => write!(f, "certificate: {reason}"),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<FrameError> for HandshakeError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

/// What the accepting side agreed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The dialling node.
    pub node: u64,
    /// Its process.
    pub incarnation: u64,
    /// Number of the connection there.
    pub connection: u64,
    /// What the connection is for.
    pub class: ConnectionClass,
    /// How many bytes of an answer in chunks the peer takes before it asks for more.
    pub stream_window_bytes: u32,
    /// What is answered.
    pub welcome: Welcome,
}

/// Reads the first frame of a dialling peer and decides.
///
/// # Errors
/// [`HandshakeError`]: say it with [`refusal`] and close.
pub fn accept(local: &Local, header: &Header, payload: &Bytes) -> Result<Accepted, HandshakeError> {
    if header.kind != Kind::Hello {
        return Err(HandshakeError::Unexpected(header.kind));
    }
    let hello = Hello::decode(payload.clone()).map_err(|_| HandshakeError::Malformed)?;
    let version = hello.version_max.min(VERSION_MAX);
    if version < VERSION_MIN || version < hello.version_min {
        return Err(HandshakeError::Version {
            theirs: (hello.version_min, hello.version_max),
        });
    }
    if hello.cluster != local.cluster {
        return Err(HandshakeError::Cluster {
            theirs: cut(&hello.cluster),
            ours: local.cluster.clone(),
        });
    }
    if hello.node == local.node {
        return Err(HandshakeError::OwnNode { node: hello.node });
    }
    if hello.target != local.node {
        return Err(HandshakeError::Node {
            expected: local.node,
            found: hello.target,
        });
    }
    check_common(local, hello.features, hello.frame_bytes_max)?;
    let class = ConnectionClass::from_number(hello.class).ok_or(HandshakeError::Class {
        number: hello.class,
    })?;
    Ok(Accepted {
        node: hello.node,
        incarnation: hello.incarnation,
        connection: hello.connection,
        class,
        stream_window_bytes: hello.stream_window_bytes,
        welcome: Welcome {
            version,
            features: hello.features & local.features(),
            node: local.node,
            incarnation: local.incarnation,
            frame_bytes_max: local.frame_bytes_max.min(hello.frame_bytes_max),
            stream_window_bytes: local.stream_window_bytes,
            streams_max: local.streams_max,
        },
    })
}

/// Reads the answer to a [`Hello`] for node `target`.
///
/// # Errors
/// [`HandshakeError`]: close.
pub fn check_welcome(
    local: &Local,
    target: u64,
    header: &Header,
    payload: &Bytes,
) -> Result<Welcome, HandshakeError> {
    match header.kind {
        Kind::Welcome => {}
        Kind::Refuse => {
            let refuse = Refuse::decode(payload.clone()).map_err(|_| HandshakeError::Malformed)?;
            return Err(HandshakeError::Refused {
                reason: cut(&refuse.reason),
            });
        }
        kind => return Err(HandshakeError::Unexpected(kind)),
    }
    let welcome = Welcome::decode(payload.clone()).map_err(|_| HandshakeError::Malformed)?;
    if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
        return Err(HandshakeError::Version {
            theirs: (welcome.version, welcome.version),
        });
    }
    if welcome.node != target {
        return Err(HandshakeError::Node {
            expected: target,
            found: welcome.node,
        });
    }
    check_common(local, welcome.features, welcome.frame_bytes_max)?;
    Ok(welcome)
}

fn check_common(local: &Local, features: u64, frame_bytes_max: u32) -> Result<(), HandshakeError> {
    if (features ^ local.features()) & FEATURE_CHECKSUM != 0 {
        return Err(HandshakeError::Checksum);
    }
    if frame_bytes_max < FRAME_BYTES_LEAST {
        return Err(HandshakeError::FrameCap {
            theirs: frame_bytes_max,
        });
    }
    Ok(())
}

/// What a peer that is not let in is told.
#[must_use]
pub fn refusal(error: &HandshakeError) -> Refuse {
    Refuse {
        reason: cut(&error.to_string()),
    }
}

/// At most 256 characters of what the other side said, without control characters.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(node: u64) -> Local {
        Local {
            cluster: "c".into(),
            node,
            incarnation: 5,
            frame_bytes_max: 1 << 20,
            stream_window_bytes: 1 << 20,
            streams_max: 4,
            checksum: true,
        }
    }

    fn answer(hello: &Hello) -> Result<Accepted, HandshakeError> {
        let payload = Bytes::from(hello.encode_to_vec());
        accept(&local(2), &Header::new(Kind::Hello, 0, 0), &payload)
    }

    #[test]
    fn two_nodes_of_a_cluster_agree() {
        let hello = local(1).hello(2, 9, ConnectionClass::Bulk);
        let accepted = answer(&hello).expect("they fit");
        assert_eq!((accepted.node, accepted.connection), (1, 9));
        let payload = Bytes::from(accepted.welcome.encode_to_vec());
        let header = Header::new(Kind::Welcome, 0, 0);
        assert_eq!(
            check_welcome(&local(1), 2, &header, &payload),
            Ok(accepted.welcome)
        );
        let other = check_welcome(&local(1), 3, &header, &payload);
        assert_eq!(
            other,
            Err(HandshakeError::Node {
                expected: 3,
                found: 2
            })
        );
    }

    #[test]
    fn each_mismatch_is_named() {
        let changes: [fn(&mut Hello); 7] = [
            |hello| (hello.version_min, hello.version_max) = (2, 3),
            |hello| hello.version_max = 0,
            |hello| hello.cluster = "d".into(),
            |hello| hello.target = 3,
            |hello| hello.features = 0,
            |hello| hello.class = 3,
            |hello| hello.frame_bytes_max = 100,
        ];
        let mut said = Vec::new();
        for change in changes {
            let mut hello = local(1).hello(2, 9, ConnectionClass::Control);
            change(&mut hello);
            let error = answer(&hello).expect_err("it does not fit");
            said.push(refusal(&error).reason);
        }
        said.sort();
        said.dedup();
        assert_eq!(said.len(), changes.len());
        let junk = Bytes::from_static(&[0xFF; 20]);
        let hello = Header::new(Kind::Hello, 0, 0);
        assert_eq!(
            accept(&local(2), &hello, &junk),
            Err(HandshakeError::Malformed)
        );
        let ping = Header::new(Kind::Ping, 0, 0);
        let error = accept(&local(2), &ping, &junk);
        assert_eq!(error, Err(HandshakeError::Unexpected(Kind::Ping)));
    }
}
