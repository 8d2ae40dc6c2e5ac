//! Reads entries back from the log, on a thread of the runtime for work that blocks, beside the log's own thread.

use super::mailbox::Mailbox;
use crate::core::Fetch;
use crate::error::panic_message;
use crate::log::{LogError, LogReader};
use raft::eraftpb::Entry;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;

/// The reader, while no fetch is under way.
pub(crate) struct Fetcher {
    reader: Option<Box<dyn LogReader>>,
    runtime: Handle,
}

/// The outcome of a fetch, with the reader for the next one.
pub(crate) struct Fetched {
    pub(crate) fetch: Fetch,
    pub(crate) entries: Result<Vec<Entry>, LogError>,
    reader: Box<dyn LogReader>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched")
            .field("fetch", &self.fetch)
            .finish_non_exhaustive()
    }
}

impl Fetcher {
    pub(crate) fn new(reader: Option<Box<dyn LogReader>>, runtime: Handle) -> Self {
        Self { reader, runtime }
    }

    /// Begins a fetch. Its outcome comes as a report. Without effect while one is under way, which the core never asks for.
    pub(crate) fn begin(&mut self, fetch: Fetch, mailbox: &Arc<Mailbox>) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        let mailbox = Arc::clone(mailbox);
        self.runtime.spawn_blocking(move || {
            let Fetch {
                group,
                first,
                end,
                bytes_max,
                ..
            } = fetch;
            let read = catch_unwind(AssertUnwindSafe(|| {
                reader.read(group, first, end, bytes_max)
            }));
            let entries = read.unwrap_or_else(|panic| {
                Err(LogError::Io {
                    file: PathBuf::new(),
                    action: "reading entries of the log",
                    reason: panic_message(&*panic),
                })
            });
            let fetched = Fetched {
                fetch,
                entries,
                reader,
            };
            mailbox.report(|reports| reports.fetched = Some(fetched));
        });
    }

    /// Takes the reader back.
    pub(crate) fn end(&mut self, fetched: Fetched) -> (Fetch, Result<Vec<Entry>, LogError>) {
        self.reader = Some(fetched.reader);
        (fetched.fetch, fetched.entries)
    }
}
