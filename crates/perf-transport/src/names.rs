//! Numbers for services and methods.

use crate::error::TransportError;
use crate::priority::Priority;
use crate::proto::{Define, METHODS_MAX, MethodName};
use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;
use std::hash::{BuildHasher, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Names that a process remembers for ever, at most: those that its own routers have handlers for.
const INTERNED_MAX: usize = 4096;

static INTERNED: RwLock<Vec<&'static MethodName>> = RwLock::new(Vec::new());

/// Remembers a name for ever, if there is room: a message that refers to it counts no references. Only for names that
/// the program itself chooses.
pub(crate) fn intern(name: &MethodName) {
    let mut interned = INTERNED.write();
    if interned.len() < INTERNED_MAX && !interned.contains(&name) {
        interned.push(Box::leak(Box::new(name.clone())));
    }
}

/// The name of a message.
#[derive(Clone, Debug)]
pub(crate) enum Named {
    /// One that this process has a handler for.
    Interned(&'static MethodName),
    Shared(Arc<MethodName>),
}

impl Named {
    pub(crate) fn new(name: Arc<MethodName>) -> Self {
        let interned = INTERNED.read();
        let known = interned.iter().find(|known| ***known == *name);
        known.map_or_else(
            || Self::Shared(Arc::clone(&name)),
            |known| Self::Interned(known),
        )
    }
}

impl Deref for Named {
    type Target = MethodName;

    #[inline]
    fn deref(&self) -> &MethodName {
        match self {
            Self::Interned(name) => name,
            Self::Shared(name) => name,
        }
    }
}

/// A service and method that was used.
#[derive(Debug)]
pub(crate) struct Name {
    name: MethodName,
    pub(crate) priority: Priority,
    /// The payload of its `Define` frame.
    pub(crate) define: Bytes,
    #[cfg(feature = "metrics")]
    recorder: OnceLock<Arc<crate::methods::MethodRecorder>>,
}

impl Name {
    #[inline]
    pub(crate) fn is(&self, service: &str, method: &str) -> bool {
        self.name.service() == service && self.name.method() == method
    }

    /// Where calls of it are recorded.
    #[cfg(feature = "metrics")]
    pub(crate) fn recorder(
        &self,
        metrics: &crate::methods::MethodMetrics,
    ) -> Arc<crate::methods::MethodRecorder> {
        let made = || metrics.client(self.service(), self.method());
        Arc::clone(self.recorder.get_or_init(made))
    }

    #[inline]
    pub(crate) fn service(&self) -> &str {
        self.name.service()
    }

    #[inline]
    pub(crate) fn method(&self) -> &str {
        self.name.method()
    }
}

/// Relayed messages bring names that peers have chosen: they may fill this part of a table.
const RELAYED_MAX: usize = METHODS_MAX / 2;

/// An insert-only table; a name's number is its place. Reading takes no lock: a hash, one or two loads, two
/// comparisons.
#[derive(Debug)]
pub(crate) struct NameTable {
    places: Box<[OnceLock<Arc<Name>>]>,
    taken: AtomicUsize,
    hasher: foldhash::fast::RandomState,
}

impl NameTable {
    pub(crate) fn new() -> Self {
        Self {
            places: (0..METHODS_MAX).map(|_| OnceLock::new()).collect(),
            taken: AtomicUsize::new(0),
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    /// Whether a name that a peer has chosen may be relayed: it is there, or the half of the table that others may fill
    /// is not full.
    pub(crate) fn check_relayed(&self, service: &str, method: &str) -> Result<(), TransportError> {
        if self.taken.load(Ordering::Relaxed) < RELAYED_MAX || self.has(service, method) {
            return Ok(());
        }
        Err(TransportError::InvalidName {
            reason: "1024 services and methods are in use, no more are relayed: the others are kept for names of this node",
        })
    }

    fn has(&self, service: &str, method: &str) -> bool {
        let start = self.start(service, method);
        let places = (0..METHODS_MAX).map(|step| start.wrapping_add(step) % METHODS_MAX);
        let mut names = places.map_while(|place| self.places[place].get());
        names.any(|name| name.is(service, method))
    }

    #[inline]
    fn start(&self, service: &str, method: &str) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(service.as_bytes());
        hasher.write(method.as_bytes());
        hasher.finish() as usize
    }

    /// The number of a name, which it gets with its first use.
    #[inline]
    pub(crate) fn number(
        &self,
        service: &str,
        method: &str,
        priority: impl FnOnce() -> Priority,
    ) -> Result<(u16, &Arc<Name>), TransportError> {
        let start = self.start(service, method);
        for step in 0..METHODS_MAX {
            let place = start.wrapping_add(step) % METHODS_MAX;
            let Some(name) = self.places[place].get() else {
                return self.insert(start, service, method, priority());
            };
            if name.is(service, method) {
                return Ok((place as u16, name));
            }
        }
        Err(full())
    }

    #[cold]
    fn insert(
        &self,
        start: usize,
        service: &str,
        method: &str,
        priority: Priority,
    ) -> Result<(u16, &Arc<Name>), TransportError> {
        let name = MethodName::new(service, method).ok_or(TransportError::InvalidName {
            reason: "a name has 1 to 128 bytes, the method's may be empty",
        })?;
        let define = Define {
            service: service.to_owned(),
            method: method.to_owned(),
        };
        let define = Bytes::from(define.encode_to_vec());
        for step in 0..METHODS_MAX {
            let place = start.wrapping_add(step) % METHODS_MAX;
            let found = self.places[place].get_or_init(|| {
                self.taken.fetch_add(1, Ordering::Relaxed);
                Arc::new(Name {
                    name: name.clone(),
                    priority,
                    define: define.clone(),
                    #[cfg(feature = "metrics")]
                    recorder: OnceLock::new(),
                })
            });
            // Another thread may have put another name there, or the same one.
            if found.name == name {
                return Ok((place as u16, found));
            }
        }
        Err(full())
    }
}

#[cold]
fn full() -> TransportError {
    TransportError::InvalidName {
        reason: "2048 services and methods are in use, no more are allowed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_the_table_its_bound() {
        let table = NameTable::new();
        let mut numbers = Vec::new();
        for place in 0..METHODS_MAX {
            let (number, _) = table
                .number("vm", &place.to_string(), || Priority::Low)
                .expect("room");
            numbers.push(number);
        }
        let (again, name) = table
            .number("vm", "7", || Priority::Critical)
            .expect("known");
        assert_eq!((again, name.priority), (numbers[7], Priority::Low));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), METHODS_MAX);
        assert!(table.number("one", "more", || Priority::Low).is_err());
    }

    #[test]
    fn names_of_peers_leave_room_for_those_of_the_node() {
        let table = NameTable::new();
        let relay = |method: &str| {
            table.check_relayed("any", method)?;
            table.number("any", method, || Priority::Low).map(drop)
        };
        let relayed = (0..METHODS_MAX).filter(|place| relay(&place.to_string()).is_ok());
        assert_eq!(relayed.count(), RELAYED_MAX);
        assert!(relay("7").is_ok() && relay("1024").is_err());
        assert!(table.number("vm", "start", || Priority::Low).is_ok());
        assert!(table.check_relayed("vm", "start").is_ok());
    }

    #[test]
    fn bad_names_are_refused() {
        let table = NameTable::new();
        assert!(table.number("", "x", || Priority::Low).is_err());
        assert!(
            table
                .number(&"s".repeat(129), "x", || Priority::Low)
                .is_err()
        );
        assert!(table.number("s", "", || Priority::Low).is_ok());
    }
}
