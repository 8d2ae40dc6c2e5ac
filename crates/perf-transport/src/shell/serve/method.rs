//! What is known of a method that a peer uses.

use super::held::HeldQueue;
use crate::error::RejectionCode;
use crate::message::{Message, MessageRef, Origin};
use crate::names::Named;
use crate::primitive::mutant;
use crate::priority::Priority;
use crate::proto::{FrameRef, TimeLimit};
use crate::router::{Handler, OneWayRef};
use crate::trace::{TraceContext, Traced};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is known of a number that the peer has defined.
pub(super) struct Method {
    pub(super) name: Named,
    pub(super) handler: Option<Handler>,
    pub(super) priority: Priority,
    /// Its handler is stopped when the caller has given up.
    pub(super) is_cancellable: bool,
    /// Handlers of this method that run, whatever number it was called by, and how many may.
    pub(super) running: Arc<AtomicUsize>,
    pub(super) running_max: usize,
    /// Frames of this method that wait until others have ended.
    pub(super) held: HeldQueue,
    #[cfg(feature = "metrics")]
    pub(super) recorder: Option<Arc<crate::methods::MethodRecorder>>,
}

impl Method {
    /// A handler of it begins with a message of so many bytes.
    #[inline]
    pub(super) fn measure(&self, bytes: usize) -> Measure {
        #[cfg(feature = "metrics")]
        return Measure(self.recorder.as_ref().map(|recorder| {
            let recorder = Arc::clone(recorder);
            crate::methods::Measured::handler(recorder, bytes)
        }));
        #[cfg(not(feature = "metrics"))]
        {
            let _ = bytes;
            Measure
        }
    }

    #[inline]
    pub(super) fn may_start(&self) -> bool {
        self.running.load(Ordering::SeqCst) < self.running_max || mutant::is("method_without_limit")
    }

    #[inline]
    pub(super) fn message(
        &self,
        origin: Origin,
        (request_id, limit): (u64, TimeLimit),
        trace: Option<TraceContext>,
        payload: Bytes,
    ) -> Message {
        Message {
            origin,
            name: self.name.clone(),
            request_id,
            limit,
            trace: trace.map(|context| Arc::new(Traced::new(context))),
            payload,
        }
    }

    /// Shows a message to a handler where it lies.
    #[inline]
    pub(super) fn show(
        &self,
        handler: &OneWayRef,
        (frame, trace): (FrameRef<'_>, Option<&TraceContext>),
        from: &Origin,
        sequence: u64,
    ) {
        let message = MessageRef {
            frame,
            from,
            sequence,
            name: &self.name,
            trace,
        };
        // The handler's own state may be left half changed by a panic; that is its affair, as in a thread of its own.
        let _ = catch_unwind(AssertUnwindSafe(|| handler(message)));
    }
}

/// A handler that runs, for its method's metrics. Nothing without them.
#[cfg(feature = "metrics")]
pub(super) struct Measure(Option<crate::methods::Measured>);
#[cfg(not(feature = "metrics"))]
pub(super) struct Measure;

impl Measure {
    /// It has answered with so many bytes, or with an error.
    #[inline]
    pub(super) fn ended(self, outcome: Result<usize, RejectionCode>) {
        #[cfg(feature = "metrics")]
        if let Some(mut measured) = self.0 {
            measured.handled(outcome);
        }
        #[cfg(not(feature = "metrics"))]
        let _ = outcome;
    }
}
