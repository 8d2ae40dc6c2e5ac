//! Every knob, with a reason for its default.

use crate::error::TransportError;
use crate::priority::Priority;
use crate::proto::{CALLS_MAX, ChannelLimits, ConnectionClass, LivenessLimits, QueueLimits};
use std::time::Duration;

/// The largest cap of a frame: a frame is held in memory as a whole.
const FRAME_BYTES_MOST: u32 = 64 << 20;
/// The smallest: handshake and control frames must fit.
const FRAME_BYTES_LEAST: u32 = 4096;
/// The longest tick: deadlines and heartbeats are looked at once in each.
const TICK_MOST: Duration = Duration::from_secs(60);

/// Bounds and times of a transport.
///
/// ```
/// let mut config = perf_transport::Config::default();
/// config.queue_bytes = [1 << 20; 4];
/// config.frame_bytes_max = 256 * 1024;
/// assert!(config.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The longest payload that is sent or taken as one frame, 4 KiB to 64 MiB. 1 MiB: a batch of log entries fits, and
    /// a peer that sends the largest legal frames costs little memory. Longer bodies are streamed. The smaller one of
    /// both sides holds.
    pub frame_bytes_max: u32,
    /// Bytes that may wait for each peer, by [`Priority`], headers included. 1 MiB for Critical and High: what waits
    /// longer than it takes to write that is stale; 4 MiB for Normal and Low: two round trips of 10 ms at 1 Gbit/s and
    /// more.
    pub queue_bytes: [usize; 4],
    /// Messages that may wait for each peer, by [`Priority`]. 8192: half a megabyte of headers and small payloads.
    pub queue_frames: [usize; 4],
    /// Shares of a connection while both of its classes have something to write. 4 to 1: the less urgent class gets a
    /// fifth.
    pub weights: [u32; 4],
    /// Calls that may be in flight to a peer on each of its two connections, at most 65536. 4096; memory is made for
    /// as many as were ever in flight at once, 5 KiB for 64.
    pub calls_max: usize,
    /// Bytes taken from the queues for one round of writing. 256 KiB: what a socket buffer takes at once.
    pub outbox_bytes: usize,
    /// Memory for one read, 1 KiB to 64 MiB: at first, and where reads fill it. 16 KiB to 256 KiB: a call at a time
    /// needs little, bulk is read in large pieces.
    pub read_bytes: (usize, usize),
    /// Requests with spawned handlers that may run at once for one connection. When there are more, the connection is
    /// not read, and the peer is told that this node lives. As many bodies, watches and exchanges may be handled
    /// besides; further ones are answered `Busy`, and do not end the reading. 1024.
    pub handlers_max: usize,
    /// Bytes that requests with spawned handlers, and complete bodies that were not read, may hold for one connection
    /// before it is not read any further. Exceeded by one frame, or by one window, at most. 16 MiB.
    pub handler_bytes_max: usize,
    /// Requests of one method with a spawned handler that may run at once for one connection, where
    /// [`Router::with_limit`](crate::Router::with_limit) does not say. Further ones wait without holding up other
    /// methods, as many as `calls_max` and `handler_bytes_max` allow; beyond that requests are answered `Busy`. 768:
    /// three quarters of `handlers_max`, so that a method that hangs leaves room for the others.
    pub handlers_per_method_max: usize,
    /// Bytes of a streamed body that may be under way or unread. 1 MiB: a round trip of 8 ms at 1 Gbit/s.
    pub stream_window_bytes: u32,
    /// Streamed bodies that may be open on one connection. 8; with the window this is the reassembly budget of a
    /// connection, 8 MiB.
    pub streams_max: u32,
    /// How long a call may take where its envelope does not say. 5 s.
    pub call_timeout: Duration,
    /// How long a streamed call may take where its envelope does not say. 1 h.
    pub stream_timeout: Duration,
    /// How long connecting may take. 1 s: longer than a lost packet's repetition.
    pub dial_timeout: Duration,
    /// How long the handshake may take, TLS included. 1 s.
    pub handshake_timeout: Duration,
    /// After so long without anything received a ping is sent. 500 ms.
    pub heartbeat_interval: Duration,
    /// After so long without a frame received, or without progress in writing to a peer that does not say that it is
    /// busy, the connection is cut and reported. 2 s: three lost pings. Time in which this node itself did not run,
    /// because its process was stopped for example, does not count.
    pub heartbeat_timeout: Duration,
    /// How long a peer may say that it is busy while it takes nothing of what waits to be written to it, before the
    /// connection is cut and reported. 60 s: a node that is busy for longer is of no use to its callers, and a peer
    /// that only says so holds this node's memory.
    pub busy_timeout: Duration,
    /// Least and most time between attempts to dial a peer that cannot be reached. 50 ms to 2 s, with jitter.
    pub backoff: (Duration, Duration),
    /// A connection without messages for so long is closed; the next message dials anew. 5 min.
    pub idle_timeout: Duration,
    /// How exact timeouts are, and how often everything is looked at: 1 ms to 60 s. 10 ms.
    pub tick: Duration,
    /// Connections that are accepted at once, handshakes included, and those that have ended while their handlers run.
    /// 1024. Further ones are closed.
    pub inbound_max: usize,
    /// Connections at once that are in their handshake and have not said who they are, or have not proven it. 64. When
    /// there are more, the oldest one that has said nothing makes room, of the source that has most of them; where all
    /// have begun to speak, newcomers from known addresses take the places of others, four times as many other
    /// newcomers wait, half of `inbound_max` at most, and further ones are refused.
    pub handshakes_max: usize,
    /// Connections that are accepted at once from one node, and those that have ended while their handlers run. 16:
    /// two, and those that are lost and not yet known to be. Further ones are refused, and one node cannot have all of
    /// `inbound_max`.
    pub inbound_per_node_max: usize,
    /// Whether only nodes are let in that have been made known with `add_peer`. Off: clients need not be known.
    pub known_peers_only: bool,
    /// Whether a connection ends when the peer's certificate expires. Off: a connection lasts, and the next one is
    /// refused.
    pub expiry_ends_connections: bool,
    /// Whether frames have a CRC-32 where the connection is not encrypted (TLS always has its own proof). Must be the
    /// same on both sides. Off: it costs 20 ns for a small frame and half of the throughput of bulk on loopback. Turn
    /// it on where the network is not trusted to keep bytes as they are: TCP's own 16 bits let one error in some ten
    /// thousand through.
    pub checksum: bool,
    /// Whether the transport keeps its runtime from sleeping: a task that is always ready makes the runtime look for
    /// what has arrived, again and again. A reply then needs no wake-up of a thread, which is most of what a call at a
    /// time takes between two machines' cores. It costs all of one core, also while nothing happens, so it is for a
    /// runtime of one thread (`current_thread`) with a core of its own. Ends with the transport. Off.
    pub busy_poll: bool,
    /// `TCP_NODELAY`: the transport batches itself, Nagle's algorithm would only delay. On.
    pub nodelay: bool,
    /// The kernel's send buffer, if it should not choose. A small one keeps bulk short in front of the wire. Only for
    /// bulk connections.
    pub bulk_send_buffer_bytes: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            frame_bytes_max: 1 << 20,
            queue_bytes: [1 << 21, 1 << 21, 1 << 22, 1 << 22],
            queue_frames: [8192; 4],
            weights: [4, 1, 4, 1],
            calls_max: 4096,
            outbox_bytes: 256 << 10,
            read_bytes: (16 << 10, 256 << 10),
            handlers_max: 1024,
            handler_bytes_max: 16 << 20,
            handlers_per_method_max: 768,
            stream_window_bytes: 1 << 20,
            streams_max: 8,
            call_timeout: Duration::from_secs(5),
            stream_timeout: Duration::from_secs(3600),
            dial_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_millis(500),
            heartbeat_timeout: Duration::from_secs(2),
            busy_timeout: Duration::from_secs(60),
            backoff: (Duration::from_millis(50), Duration::from_secs(2)),
            idle_timeout: Duration::from_secs(300),
            tick: Duration::from_millis(10),
            inbound_max: 1024,
            handshakes_max: 64,
            inbound_per_node_max: 16,
            known_peers_only: false,
            expiry_ends_connections: false,
            checksum: false,
            busy_poll: false,
            nodelay: true,
            bulk_send_buffer_bytes: None,
        }
    }
}

impl Config {
    /// Says what cannot work, if anything. `start` asks too.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] with the first problem and what is allowed.
    pub fn check(&self) -> Result<(), TransportError> {
        let wrong = |reason: String| Err(TransportError::Configuration { reason });
        if !(FRAME_BYTES_LEAST..=FRAME_BYTES_MOST).contains(&self.frame_bytes_max) {
            return wrong(format!(
                "frame_bytes_max is {}, allowed are {FRAME_BYTES_LEAST} to {FRAME_BYTES_MOST}",
                self.frame_bytes_max
            ));
        }
        // The announcement of a new name goes before its first frame.
        let least = self.frame_bytes_max as usize + 2048;
        if let Some(bytes) = self.queue_bytes.iter().find(|&&bytes| bytes < least) {
            return wrong(format!(
                "a queue of {bytes} bytes does not take the longest frame: at least {least} are needed"
            ));
        }
        if self.queue_frames.contains(&0) || self.weights.contains(&0) {
            return wrong("queue_frames and weights must be at least 1".to_owned());
        }
        if self.calls_max == 0 || self.calls_max > CALLS_MAX {
            return wrong(format!(
                "calls_max is {}, allowed are 1 to {CALLS_MAX}",
                self.calls_max
            ));
        }
        let (first, most) = self.read_bytes;
        if first < 1024 || most < first || most > FRAME_BYTES_MOST as usize {
            return wrong(format!(
                "read_bytes are {first} and {most}, allowed are 1024 to {FRAME_BYTES_MOST}, and the second not less than the first"
            ));
        }
        if self.handlers_per_method_max == 0 || self.inbound_per_node_max == 0 {
            let wanted = "handlers_per_method_max and inbound_per_node_max must be at least 1";
            return wrong(wanted.to_owned());
        }
        if self.handlers_max == 0 || self.inbound_max == 0 || self.handshakes_max == 0 {
            return wrong(
                "handlers_max, inbound_max and handshakes_max must be at least 1".to_owned(),
            );
        }
        if self.stream_window_bytes == 0 || self.streams_max == 0 {
            return wrong("stream_window_bytes and streams_max must be at least 1".to_owned());
        }
        let least = Duration::from_millis(1);
        let times = [
            self.call_timeout,
            self.stream_timeout,
            self.dial_timeout,
            self.handshake_timeout,
            self.heartbeat_interval,
            self.backoff.0,
            self.idle_timeout,
            self.tick,
        ];
        if times.iter().any(|time| *time < least) {
            return wrong("every time must be at least 1 ms".to_owned());
        }
        if self.tick > TICK_MOST {
            return wrong(format!(
                "tick is {:?}, at most {TICK_MOST:?} are allowed",
                self.tick
            ));
        }
        if self.heartbeat_timeout < self.heartbeat_interval.saturating_mul(2) {
            return wrong("heartbeat_timeout must be at least twice heartbeat_interval".to_owned());
        }
        if self.busy_timeout < self.heartbeat_timeout {
            return wrong("busy_timeout must not be less than heartbeat_timeout".to_owned());
        }
        if self.backoff.1 < self.backoff.0 {
            return wrong("the second time of backoff must not be less than the first".to_owned());
        }
        Ok(())
    }

    pub(crate) fn queue(&self, priority: Priority) -> QueueLimits {
        let place = priority as usize;
        QueueLimits {
            bytes_max: self.queue_bytes[place],
            frames_max: self.queue_frames[place],
            weight: self.weights[place],
        }
    }

    pub(crate) fn channel(&self, class: ConnectionClass, checksum: bool) -> ChannelLimits {
        let (first, second) = match class {
            ConnectionClass::Control => (Priority::Critical, Priority::High),
            ConnectionClass::Bulk => (Priority::Normal, Priority::Low),
        };
        ChannelLimits {
            first: self.queue(first),
            second: self.queue(second),
            calls_max: self.calls_max,
            checksum,
        }
    }

    pub(crate) fn liveness(&self) -> LivenessLimits {
        LivenessLimits {
            interval_ms: millis(self.heartbeat_interval),
            timeout_ms: millis(self.heartbeat_timeout),
            busy_timeout_ms: millis(self.busy_timeout),
            tick_ms: millis(self.tick),
        }
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_works_and_each_mistake_is_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let mistakes: [fn(&mut Config); 13] = [
            |config| config.frame_bytes_max = 1,
            |config| config.queue_bytes[3] = 1 << 20,
            |config| config.weights[0] = 0,
            |config| config.calls_max = 0,
            |config| config.read_bytes = (4096, 1024),
            |config| config.read_bytes = (4096, usize::MAX),
            |config| config.handlers_max = 0,
            |config| config.streams_max = 0,
            |config| config.tick = Duration::ZERO,
            |config| config.tick = Duration::MAX,
            |config| config.heartbeat_interval = Duration::MAX,
            |config| config.heartbeat_timeout = Duration::from_millis(900),
            |config| config.backoff.1 = Duration::ZERO,
        ];
        for (place, mistake) in mistakes.iter().enumerate() {
            let mut config = Config::default();
            mistake(&mut config);
            assert!(config.check().is_err(), "mistake {place}");
        }
    }
}
