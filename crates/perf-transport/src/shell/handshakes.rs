//! Handshakes under way: who must make room when there are too many.

use crate::primitive::mutant;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// A newcomer that waits for a place looks again after so long.
const PLACE_PAUSE: Duration = Duration::from_millis(20);

/// Bounds of [`Handshakes`].
#[derive(Clone, Copy)]
pub(crate) struct HandshakeBounds {
    pub(crate) handshakes_max: usize,
    /// Newcomers of unknown sources that may wait.
    pub(crate) strangers_waiting_max: usize,
    /// All newcomers that may wait.
    pub(crate) waiting_max: usize,
}

impl HandshakeBounds {
    /// Newcomers that wait are connections, too: they leave half of `inbound_max` to others.
    pub(crate) fn new(handshakes_max: usize, inbound_max: usize) -> Self {
        let waiting_max = (inbound_max / 2).max(1);
        Self {
            handshakes_max,
            strangers_waiting_max: handshakes_max.saturating_mul(4).min(waiting_max),
            waiting_max,
        }
    }
}

/// Handshakes of peers that have not proven who they are.
///
/// When there are as many as may be, a newcomer displaces the oldest one that has said nothing yet, of the source that
/// has most of them; sources from which no peer of the cluster has ever come go first. One that has begun to speak is
/// displaced when it has taken an eighth of its time, or at once if its source is unknown and that of the newcomer is
/// not. If none may be displaced the newcomer waits. A bounded number of newcomers of unknown sources waits, so that
/// those of known ones never stand in line behind a flood.
pub(crate) struct Handshakes {
    under_way: Mutex<Vec<UnderWay>>,
    bounds: HandshakeBounds,
    grace: Duration,
    numbers: AtomicU64,
    /// Newcomers that wait for a place.
    waiting: AtomicUsize,
    /// One has ended.
    pub(crate) left: Notify,
}

struct UnderWay {
    number: u64,
    source: String,
    is_known: bool,
    since: Instant,
    has_spoken: bool,
    displaced: Arc<Notify>,
}

/// A newcomer that waits for a place, until this is dropped.
pub(crate) struct Waiting(Arc<Handshakes>);

impl Waiting {
    /// The place, in the time that a handshake may take; `None` if it was not to be had.
    pub(crate) async fn place(self, source: &str, is_known: bool, time: Duration) -> Option<Place> {
        let handshakes = &self.0;
        let place = async {
            loop {
                if let Some(place) = handshakes.enter(source, is_known) {
                    return place;
                }
                // One that speaks may have taken its time, too.
                let _ = timeout(PLACE_PAUSE, handshakes.left.notified()).await;
            }
        };
        timeout(time, place).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A handshake's place. It is given back when this is dropped.
pub(crate) struct Place {
    handshakes: Arc<Handshakes>,
    number: u64,
    displaced: Arc<Notify>,
}

impl Place {
    /// The first bytes have come.
    pub(crate) fn spoken(&self) {
        let mut under_way = self.handshakes.under_way.lock();
        let mine = under_way.iter_mut().find(|one| one.number == self.number);
        if let Some(mine) = mine {
            mine.has_spoken = true;
        }
    }

    /// The peer has proven who it is: the place is free, and nothing displaces the peer any more.
    pub(crate) fn proven(&self) {
        let mut under_way = self.handshakes.under_way.lock();
        let before = under_way.len();
        under_way.retain(|one| one.number != self.number);
        let has_left = under_way.len() < before;
        drop(under_way);
        if has_left {
            self.handshakes.left.notify_one();
        }
    }

    /// Ends when another one has taken the place.
    pub(crate) async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.proven();
    }
}

impl Handshakes {
    /// Within these bounds, of `time` each.
    pub(crate) fn new(bounds: HandshakeBounds, time: Duration) -> Arc<Self> {
        Arc::new(Self {
            under_way: Mutex::new(Vec::new()),
            bounds,
            grace: time / 8,
            numbers: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            left: Notify::new(),
        })
    }

    /// Lets a newcomer wait for a place; `None` if too many wait already.
    pub(crate) fn wait(self: &Arc<Self>, is_known: bool) -> Option<Waiting> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(Arc::clone(self));
        let waiting_max = if is_known || mutant::is("strangers_wait_as_known_ones") {
            self.bounds.waiting_max
        } else {
            self.bounds.strangers_waiting_max
        };
        (before < waiting_max).then_some(waiting)
    }

    /// A place for a newcomer; `None` if it must wait: until one has left, or some time has passed. Costs a step for
    /// each handshake.
    pub(crate) fn enter(self: &Arc<Self>, source: &str, is_known: bool) -> Option<Place> {
        let now = Instant::now();
        let mut under_way = self.under_way.lock();
        if under_way.len() >= self.bounds.handshakes_max {
            let place = self.least_worthy(&under_way, is_known, now)?;
            under_way.swap_remove(place).displaced.notify_one();
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let displaced = Arc::new(Notify::new());
        under_way.push(UnderWay {
            number,
            source: source.to_owned(),
            is_known,
            since: now,
            has_spoken: false,
            displaced: Arc::clone(&displaced),
        });
        Some(Place {
            handshakes: Arc::clone(self),
            number,
            displaced,
        })
    }

    /// Which one makes room.
    fn least_worthy(&self, all: &[UnderWay], is_known: bool, now: Instant) -> Option<usize> {
        let mut of_sources: HashMap<&str, usize> = HashMap::new();
        for one in all {
            *of_sources.entry(&one.source).or_default() += 1;
        }
        let may_be = all.iter().enumerate().filter(|(_, one)| {
            let is_slow = !one.has_spoken || now - one.since >= self.grace;
            // Known sources have a claim before unknown ones.
            if is_known == one.is_known || mutant::is("known_sources_have_no_claim") {
                is_slow
            } else {
                is_known
            }
        });
        // Numbers grow: the oldest has the smallest.
        let rank = |one: &UnderWay| {
            let of_source = of_sources.get(one.source.as_str());
            let of_source = of_source.filter(|_| !mutant::is("sources_uncounted"));
            (
                !one.is_known,
                !one.has_spoken,
                of_source,
                Reverse(one.number),
            )
        };
        may_be
            .max_by_key(|(_, one)| rank(one))
            .map(|(place, _)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many handshakes, as many strangers that wait, and 20 in all that do.
    fn bounds(handshakes_max: usize) -> HandshakeBounds {
        HandshakeBounds {
            handshakes_max,
            strangers_waiting_max: handshakes_max,
            waiting_max: 20,
        }
    }

    fn sources(handshakes: &Handshakes) -> Vec<String> {
        let under_way = handshakes.under_way.lock();
        let mut sources: Vec<_> = under_way.iter().map(|one| one.source.clone()).collect();
        sources.sort();
        sources
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_silent_one_of_the_busiest_source_makes_room() {
        let handshakes = Handshakes::new(bounds(4), Duration::from_secs(1));
        let enter = |source, is_known| handshakes.enter(source, is_known);
        let few = enter("few", false).expect("room");
        let many = [0; 3].map(|_| enter("many", false).expect("room"));
        let known = enter("known", true).expect("one is displaced");
        let displaced = tokio::time::timeout(Duration::from_secs(1), many[0].displaced());
        assert!(displaced.await.is_ok());
        assert_eq!(sources(&handshakes), ["few", "known", "many", "many"]);
        drop((few, many, known));
        assert_eq!(sources(&handshakes), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_speak_stay_until_they_have_taken_too_long() {
        let handshakes = Handshakes::new(bounds(2), Duration::from_secs(1));
        let enter = |source, is_known| handshakes.enter(source, is_known);
        let (stranger, known) = (
            enter("a", false).expect("room"),
            enter("b", true).expect("room"),
        );
        stranger.spoken();
        // A stranger never displaces one whose address is known.
        assert!(enter("c", false).is_none());
        known.spoken();
        let other = enter("d", true).expect("a known source displaces a stranger at once");
        assert_eq!(sources(&handshakes), ["b", "d"]);
        other.spoken();
        assert!(enter("e", true).is_none());
        tokio::time::advance(Duration::from_millis(600)).await;
        assert!(enter("e", false).is_none());
        let _late = enter("e", true).expect("the first one has taken its time");
        assert_eq!(sources(&handshakes), ["d", "e"]);
    }

    #[tokio::test(start_paused = true)]
    async fn few_strangers_wait_and_all_known_ones() {
        let handshakes = Handshakes::new(bounds(2), Duration::from_secs(1));
        let places = [0; 2].map(|_| handshakes.enter("a", false).expect("room"));
        places.iter().for_each(Place::spoken);
        let known: Vec<_> = (0..20).map(|_| handshakes.wait(true)).collect();
        assert!(known.iter().all(Option::is_some));
        assert!(handshakes.wait(true).is_none() && handshakes.wait(false).is_none());
        drop(known);
        let waiting = [0; 2].map(|_| handshakes.wait(false).expect("two may wait"));
        assert!(handshakes.wait(false).is_none());
        let [first, second] = waiting;
        let time = Duration::from_millis(10);
        assert!(first.place("b", false, time).await.is_none());
        let time = Duration::from_secs(1);
        let (place, ()) = tokio::join!(second.place("b", false, time), async { drop(places) });
        assert!(place.is_some() && handshakes.wait(false).is_some());
    }
}
