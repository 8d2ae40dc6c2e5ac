//! The side of a connection that dialled: it sends requests and gets replies.

use super::channel::Channel;
use super::decoder::Frame;
use super::frame::{FrameError, Header, Kind};
use super::pending::{CallKey, Fault};
use crate::trace::TRACE_BYTES;
use bytes::Buf;

/// What a dialling side does with received frames.
#[derive(Clone, Debug, Default)]
pub struct Client {
    draining: bool,
    busy: u64,
}

impl Client {
    /// A new connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the peer has said that it takes no new requests.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// How often the peer has said that it lives but has too much to do to read.
    #[must_use]
    pub fn busy(&self) -> u64 {
        self.busy
    }

    /// Handles a frame: completes calls, grants credit. `true` if something was queued in answer.
    ///
    /// # Errors
    /// [`FrameError`] if the frame does not belong here; close the connection. A reply to a call that has ended is no
    /// error.
    #[inline]
    pub fn receive(&mut self, frame: Frame, channel: &Channel) -> Result<bool, FrameError> {
        let Frame {
            header,
            mut payload,
        } = frame;
        let key = CallKey::from_id(header.id);
        match header.kind {
            Kind::Reply => {
                if channel.windows() > 0 {
                    channel.end_bodies(key);
                }
                channel.pending.complete(key, Ok(payload));
            }
            Kind::TracedReply => {
                if payload.len() < TRACE_BYTES {
                    return Err(FrameError::Malformed { kind: header.kind });
                }
                channel.end_bodies(key);
                channel.pending.complete(key, Err(Fault::Traced(payload)));
            }
            Kind::Failure => {
                if payload.is_empty() {
                    return Err(FrameError::Malformed { kind: header.kind });
                }
                let code = payload.get_u8();
                let text = payload;
                channel.end_bodies(key);
                channel
                    .pending
                    .complete(key, Err(Fault::Rejected { code, text }));
            }
            Kind::StreamCredit => {
                let bytes = payload
                    .try_get_u32_le()
                    .map_err(|_| FrameError::Malformed { kind: header.kind })?;
                channel.grant(key, bytes.into());
            }
            Kind::StreamChunk => channel.answer_chunk(key, payload)?,
            Kind::StreamReset => channel.stop_window(key),
            Kind::Goodbye => self.draining = true,
            Kind::Busy => self.busy += 1,
            Kind::Pong => {}
            Kind::Ping => {
                let pong = Header::new(Kind::Pong, 0, header.id);
                channel.queues.push_sign_of_life(pong);
                return Ok(true);
            }
            kind => return Err(FrameError::Unexpected { kind }),
        }
        Ok(false)
    }
}
