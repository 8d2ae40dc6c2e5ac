//! The sleeping groups of a host, and the beats that stand in for their heartbeats.

use super::drive::Attached;
use super::inbox::Groups;
use crate::GroupId;
use crate::codec::{Beat, Frame, FrameHeader};
use crate::core::{Core, Liveness};
use crate::inbound::MessageClass;
use crate::options::RaftOptions;
use crate::primitive::Ordering;
use crate::primitive::threads::{AtomicU64, Mutex};
use crate::transport::OutboundMessage;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What the groups of a host share to sleep.
pub(crate) struct Sleepers {
    liveness: Mutex<Liveness>,
    /// Grows with each change of what groups are to know of it.
    version: AtomicU64,
    after_ticks: u64,
    pub(crate) tick: Duration,
    /// Of the host, which outlives its transport.
    transport: Mutex<Weak<Attached>>,
    groups: Weak<Groups>,
}

impl fmt::Debug for Sleepers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleepers").finish_non_exhaustive()
    }
}

impl Sleepers {
    pub(crate) fn new(id: u64, run: u64, options: &RaftOptions, groups: &Weak<Groups>) -> Self {
        let liveness = Liveness::new(id, run, options.election_ticks, options.heartbeat_ticks);
        Self {
            liveness: Mutex::new(liveness),
            version: AtomicU64::new(1),
            after_ticks: options.sleep_after_ticks as u64,
            tick: options.tick,
            transport: Mutex::new(Weak::new()),
            groups: Weak::clone(groups),
        }
    }

    /// Beats go out by this transport from now on.
    pub(crate) fn attach(&self, transport: &Arc<Attached>) {
        *self.transport.lock() = Arc::downgrade(transport);
    }

    pub(crate) fn heard(&self, header: &FrameHeader, beat: &Beat) {
        self.change(|liveness| liveness.heard(header, beat));
    }

    /// How many groups sleep.
    pub(crate) fn len(&self) -> usize {
        self.liveness.lock().sleepers()
    }

    fn change<R>(&self, change: impl FnOnce(&mut Liveness) -> R) -> R {
        let mut liveness = self.liveness.lock();
        let before = liveness.view().clone();
        let changed = change(&mut liveness);
        if before != *liveness.view() {
            self.version.fetch_add(1, Ordering::Release);
        }
        changed
    }

    /// One tick of the host: beats go out, and groups are woken.
    pub(crate) fn tick(&self) {
        let (mut beats, mut wake) = (Vec::new(), Vec::new());
        self.change(|liveness| liveness.tick(&mut beats, &mut wake));
        if !beats.is_empty()
            && let Some(transport) = self.transport.lock().upgrade()
        {
            for beat in beats {
                send(&transport, &beat);
            }
        }
        if let Some(groups) = self.groups.upgrade() {
            for group in wake {
                groups.wake(group);
            }
        }
    }
}

/// A beat that is lost is made up for by the next.
fn send(transport: &Attached, beat: &Frame) {
    if let Ok(frame) = beat.encode_pooled() {
        let _ = transport.0.send(OutboundMessage {
            to: beat.header.to,
            class: MessageClass::Heartbeat,
            frame,
        });
    }
}

/// One group's part in it. Dropped when the group ends.
pub(crate) struct Sleeper {
    sleepers: Arc<Sleepers>,
    group: GroupId,
    seen_version: u64,
    was_asleep: bool,
}

impl Sleeper {
    pub(crate) fn new(sleepers: &Arc<Sleepers>, group: GroupId) -> Self {
        Self {
            sleepers: Arc::clone(sleepers),
            group,
            seen_version: 0,
            was_asleep: false,
        }
    }

    /// Tells the core what changed since the last turn.
    pub(crate) fn update<T>(&mut self, core: &mut Core<T>) {
        let version = self.sleepers.version.load(Ordering::Acquire);
        if version != self.seen_version {
            self.seen_version = version;
            let liveness = self.sleepers.liveness.lock();
            core.allow_sleep(self.sleepers.after_ticks, liveness.view().clone());
        }
    }

    /// Notes whether the group sleeps now.
    pub(crate) fn note<T>(&mut self, core: &mut Core<T>) -> Change {
        if let Some(members) = core.take_expected() {
            self.sleepers.liveness.lock().expect(members);
        }
        let is_asleep = core.is_asleep();
        if is_asleep == self.was_asleep {
            return Change::None;
        }
        if !is_asleep {
            self.was_asleep = false;
            self.sleepers.liveness.lock().woke(self.group);
            return Change::Woke;
        }
        // By `change`: a host that was missing may be known by this, which other groups are to see.
        let (group, reliance) = (self.group, core.reliance());
        if self
            .sleepers
            .change(|liveness| liveness.fell_asleep(group, reliance))
        {
            self.was_asleep = true;
            return Change::FellAsleep;
        }
        core.wake();
        Change::Refused
    }
}

/// What became of a group in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Woke,
    FellAsleep,
    /// It woke at once: what it relied on is no more.
    Refused,
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.sleepers
            .change(|liveness| liveness.stopped(self.group));
    }
}
