//! Turns of several groups in a row, and what is done once for all of them at the end.

use super::drive::Attached;
use super::log_thread::LogThread;
use super::mailbox::Mailbox;
use crate::codec::bundle;
use crate::inbound::MessageClass;
use crate::transport::{OutboundMessage, SendError};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Longer frames go alone: to copy them costs more than a place in a queue. Heartbeats, answers, votes and notes are shorter.
const SMALL_BYTES_MAX: usize = 256;
/// A bundle goes once its frames have so many bytes.
const BUNDLE_BYTES: usize = 16 * 1024;

/// What the groups of one pass share. Whoever drives a group alone has none.
#[derive(Default)]
pub(crate) struct Pass {
    /// Has jobs and has not been woken: woken with the first, it would write that one alone, and the others after it.
    log: Option<Arc<LogThread>>,
    /// The groups of a task have one transport.
    transport: Option<Arc<Attached>>,
    /// Small frames, by receiver and class.
    bundles: BTreeMap<(u64, MessageClass), Bundle>,
}

/// Frames that go together, and who is told if they are not taken.
#[derive(Default)]
struct Bundle {
    frames: Vec<(Bytes, Arc<Mailbox>)>,
    bytes: usize,
}

impl Pass {
    /// Lets the log be woken at the end.
    pub(crate) fn note_log(&mut self, log: &Arc<LogThread>) {
        match &self.log {
            Some(noted) if Arc::ptr_eq(noted, log) => {}
            _ => self.wake_log(Some(Arc::clone(log))),
        }
    }

    fn wake_log(&mut self, next: Option<Arc<LogThread>>) {
        if let Some(log) = std::mem::replace(&mut self.log, next) {
            log.wake();
        }
    }

    /// Sends a message, or lets it go with others to the same peer. The messages of a class to a peer keep their order.
    pub(crate) fn send(
        &mut self,
        message: OutboundMessage,
        transport: &Arc<Attached>,
        owner: &Arc<Mailbox>,
    ) -> Result<(), SendError> {
        let OutboundMessage { to, class, frame } = message;
        let is_small = frame.len() <= SMALL_BYTES_MAX && class != MessageClass::Snapshot;
        if !is_small {
            if let Some(bundle) = self.bundles.get_mut(&(to, class)) {
                bundle.send(to, class, transport);
            }
            return transport.0.send(OutboundMessage { to, class, frame });
        }
        self.transport.get_or_insert_with(|| Arc::clone(transport));
        let bundle = self.bundles.entry((to, class)).or_default();
        bundle.bytes += frame.len();
        bundle.frames.push((frame, Arc::clone(owner)));
        if bundle.bytes >= BUNDLE_BYTES {
            bundle.send(to, class, transport);
        }
        Ok(())
    }

    /// To be called before its task waits for anything.
    pub(crate) fn end(&mut self) {
        self.wake_log(None);
        if let Some(transport) = self.transport.take() {
            // A peer that had nothing in this pass may be gone. A transport that panics loses what it was given, and stops no other group.
            self.bundles.retain(|&(to, class), bundle| {
                let send = || bundle.send(to, class, &transport);
                catch_unwind(AssertUnwindSafe(send)).unwrap_or(false)
            });
        }
    }
}

impl Bundle {
    /// Sends what there is; whether there was anything.
    fn send(&mut self, to: u64, class: MessageClass, transport: &Attached) -> bool {
        let send = |frame| transport.0.send(OutboundMessage { to, class, frame });
        let frames = self.frames.iter().map(|(frame, _)| frame);
        let together = match self.frames.as_slice() {
            [] => return false,
            [(frame, _)] => send(frame.clone()),
            [(_, owner), ..] => match bundle(owner.id, to, frames) {
                Ok(frame) => send(frame),
                Err(_) => Err(SendError::Unreachable),
            },
        };
        self.bytes = 0;
        for (frame, owner) in self.frames.drain(..) {
            let sent = match together {
                // The peer takes shorter ones.
                Err(SendError::TooLarge { .. }) => send(frame),
                together => together,
            };
            if let Err(error) = sent {
                owner.note_not_sent(to, error);
            }
        }
        true
    }
}
