//! The thread that collects and delivers.

use super::encode::{Origin, request};
use super::exporter::{Control, Shared};
use super::left_behind;
use super::limit::Limit;
use super::split;
use super::{Accepted, ExportMetricsServiceRequest, SendError, Transport, retry};
use crate::reader::{Reader, Temporality};
use std::collections::VecDeque;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is set when an exporter is built.
pub(super) struct Settings {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    pub(super) queue_max: usize,
    pub(super) request_max: split::Max,
    pub(super) origin: Origin,
    pub(super) on_error: Box<dyn Fn(&str) + Send>,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    reader: Reader,
    settings: Settings,
    limit: Limit,
    queue: VecDeque<ExportMetricsServiceRequest>,
    /// In a row.
    failures: u32,
    /// The receiver has asked for the pause until `next_attempt`.
    is_told_to_wait: bool,
    next_attempt: Instant,
    jitter: RandomState,
    last_error: Option<String>,
    /// For which flush, and whether for the end, was collected already.
    collected: (Option<u64>, bool),
}

/// Says that the thread is over, also when a transport panics.
struct OnExit {
    shared: Arc<Shared>,
    is_cut_short: bool,
}

impl Drop for OnExit {
    fn drop(&mut self) {
        let mut control = self.shared.control.lock();
        control.is_over = true;
        control.is_cut_short = self.is_cut_short;
        if std::thread::panicking() {
            control.stats.last_error = Some("the exporter's thread has panicked".to_owned());
        }
        self.shared.changed.notify_all();
    }
}

impl Worker {
    pub(super) fn new(settings: Settings, reader: Reader, shared: Arc<Shared>) -> Self {
        Self {
            shared,
            reader,
            limit: Limit::new(settings.request_max),
            settings,
            queue: VecDeque::new(),
            failures: 0,
            is_told_to_wait: false,
            next_attempt: Instant::now(),
            jitter: RandomState::new(),
            last_error: None,
            collected: (None, false),
        }
    }

    pub(super) fn run(&mut self, transport: &mut dyn Transport) {
        let mut on_exit = OnExit {
            shared: Arc::clone(&self.shared),
            is_cut_short: true,
        };
        let mut next_collection = Instant::now() + self.settings.interval;
        loop {
            let (flushes, stop_at) = self.wait(next_collection);
            let now = Instant::now();
            let is_asked = flushes > self.collected.0 || stop_at.is_some() && !self.collected.1;
            if is_asked || now >= next_collection {
                if stop_at.is_some() && !self.collected.1 && !self.is_told_to_wait {
                    // One attempt is due, whatever failed before.
                    self.next_attempt = now;
                }
                if self.collect(stop_at.is_some()) {
                    self.collected = (flushes.max(self.collected.0), stop_at.is_some());
                }
                next_collection = now + self.settings.interval;
            }
            self.deliver(transport, flushes.is_some(), stop_at);
            let is_empty = self.queue.is_empty();
            // A full queue of deltas may have left no room for the collection that the flush waits for: it is made next.
            let is_flushed = |flushes: &u64| is_empty && self.collected.0 >= Some(*flushes);
            if let Some(flushes) = flushes.filter(is_flushed) {
                self.shared.control.lock().flushes.1 = flushes;
                self.shared.changed.notify_all();
            }
            if let Some(stop_at) = stop_at
                && (is_empty || Instant::now().max(self.next_attempt) >= stop_at)
            {
                on_exit.is_cut_short = false;
                return;
            }
        }
    }

    /// Waits for something to do: the number of flushes asked for, if more than are done, and when to stop, if so.
    fn wait(&self, next_collection: Instant) -> (Option<u64>, Option<Instant>) {
        let until = if self.queue.is_empty() {
            next_collection
        } else {
            next_collection.min(self.next_attempt)
        };
        let mut control = self.shared.control.lock();
        let asked = |control: &Control| {
            (control.flushes.0 > control.flushes.1).then_some(control.flushes.0)
        };
        // With something in the queue and a receiver that fails, a flush waits for the next attempt too; a stop does so after one attempt.
        let is_held = |control: &Control| {
            let is_new_stop = control.stop_at.is_some() && !self.collected.1;
            self.failures > 0 && (self.is_told_to_wait || !is_new_stop)
        };
        while Instant::now() < until {
            let until = match control.stop_at {
                Some(stop_at) => until.min(stop_at),
                None => until,
            };
            if (asked(&control).is_some() || control.stop_at.is_some())
                && (!is_held(&control) || Instant::now() >= until)
            {
                break;
            }
            if self
                .shared
                .changed
                .wait_until(&mut control, until)
                .timed_out()
            {
                break;
            }
        }
        (asked(&control), control.stop_at)
    }

    /// Collects into the queue; `false` if that has to wait for room.
    fn collect(&mut self, is_last: bool) -> bool {
        let is_full = self.queue.len() >= self.settings.queue_max;
        let temporality = self.reader.temporality();
        if is_full && temporality != Temporality::Cumulative && !is_last {
            return false;
        }
        let request = request(self.reader.collect(), temporality, &self.settings.origin);
        let (mut replaced, mut lost) = (0, 0);
        if let Some(request) = request {
            if temporality == Temporality::Cumulative && (is_full || self.failures > 0) {
                (replaced, lost) = self.replace_by(&request);
            }
            self.queue.extend(split::split(request, self.limit.max()));
        }
        {
            let stats = &mut self.shared.control.lock().stats;
            stats.queued = self.queue.len();
            stats.replaced += replaced;
            stats.lost_points += lost;
        }
        if lost > 0 {
            self.fail(&format!(
                "the last values of {lost} series that have left are lost: the queue is full of them; mend the receiver, or allow a longer queue"
            ));
        }
        true
    }

    /// Empties the queue but for what `newer` does not contain: the last values of series that have left. How many requests it replaces, and
    /// how many points found no room.
    fn replace_by(&mut self, newer: &ExportMetricsServiceRequest) -> (u64, u64) {
        let before = self.queue.len();
        if let Some(left) = left_behind::left_behind(self.queue.drain(..), newer) {
            self.queue.extend(split::split(left, self.limit.max()));
        }
        let mut lost = 0;
        while self.queue.len() > self.settings.queue_max {
            let oldest = self.queue.pop_front();
            lost += oldest.as_ref().map_or(0, split::points) as u64;
        }
        (before.saturating_sub(self.queue.len()) as u64, lost)
    }

    /// The thread cannot go on.
    pub(super) fn end(&mut self, error: &str) {
        let _on_exit = OnExit {
            shared: Arc::clone(&self.shared),
            is_cut_short: true,
        };
        self.fail(error);
    }

    fn deliver(&mut self, transport: &mut dyn Transport, is_flush: bool, stop_at: Option<Instant>) {
        while let Some(request) = self.queue.front() {
            let now = Instant::now();
            if now < self.next_attempt && !(is_flush && self.failures == 0) {
                return;
            }
            let timeout = stop_at.map_or(self.settings.timeout, |stop| {
                stop.saturating_duration_since(now)
                    .min(self.settings.timeout)
            });
            if timeout.is_zero() {
                return;
            }
            match transport.send(request, timeout) {
                Ok(accepted) => {
                    self.limit.taken(split::bytes(request));
                    self.queue.pop_front();
                    self.accepted(&accepted);
                }
                Err(SendError::TooLarge { reason }) if split::points(request) > 1 => {
                    self.limit
                        .refused(split::bytes(request), split::empty_bytes(request));
                    // What comes after is as large.
                    let waiting = std::mem::take(&mut self.queue).into_iter();
                    self.queue = waiting
                        .flat_map(|request| split::split(request, self.limit.max()))
                        .collect();
                    self.succeed();
                    self.fail(&SendError::TooLarge { reason }.to_string());
                    self.shared.control.lock().stats.queued = self.queue.len();
                }
                Err(SendError::Retry { reason, after }) => {
                    self.failures = self.failures.saturating_add(1);
                    self.is_told_to_wait = after.is_some();
                    self.next_attempt =
                        Instant::now() + retry::pause(self.failures, after, &self.jitter);
                    self.fail(&SendError::Retry { reason, after }.to_string());
                    self.shared.control.lock().stats.retries += 1;
                }
                Err(error @ (SendError::TooLarge { .. } | SendError::Refused { .. })) => {
                    self.queue.pop_front();
                    self.succeed();
                    self.fail(&error.to_string());
                    let stats = &mut self.shared.control.lock().stats;
                    stats.refused += 1;
                    stats.queued = self.queue.len();
                }
            }
        }
    }

    fn accepted(&mut self, accepted: &Accepted) {
        self.succeed();
        self.last_error = None;
        if accepted.rejected_points > 0 || !accepted.message.is_empty() {
            self.fail(&format!(
                "{} points rejected by the receiver: {}",
                accepted.rejected_points, accepted.message
            ));
        }
        let stats = &mut self.shared.control.lock().stats;
        stats.delivered += 1;
        stats.rejected_points += accepted.rejected_points;
        stats.queued = self.queue.len();
        stats.last_error.clone_from(&self.last_error);
    }

    /// The receiver has answered, be it that it refuses.
    fn succeed(&mut self) {
        self.failures = 0;
        self.is_told_to_wait = false;
    }

    /// Tells of a failure, once while it stays the same.
    fn fail(&mut self, error: &str) {
        if self.last_error.as_deref() != Some(error) {
            (self.settings.on_error)(error);
            self.last_error = Some(error.to_owned());
        }
        self.shared.control.lock().stats.last_error = Some(error.to_owned());
    }
}
