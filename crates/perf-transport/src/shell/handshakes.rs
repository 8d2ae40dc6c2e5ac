//! Handshakes under way: who must make room when there are too many.

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Handshakes of peers that have not proven who they are.
///
/// When there are as many as may be, a newcomer displaces the oldest one that has said nothing yet, of the source that has most of
/// them; sources from which no peer of the cluster has ever come go first. One that has begun to speak is displaced only when it has taken an eighth of
/// its time. If none may be displaced the newcomer waits.
pub(crate) struct Handshakes {
    under_way: Mutex<Vec<UnderWay>>,
    handshakes_max: usize,
    grace: Duration,
    numbers: AtomicU64,
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
    /// At most `handshakes_max`, of `time` each.
    pub(crate) fn new(handshakes_max: usize, time: Duration) -> Arc<Self> {
        Arc::new(Self {
            under_way: Mutex::new(Vec::new()),
            handshakes_max,
            grace: time / 8,
            numbers: AtomicU64::new(0),
            left: Notify::new(),
        })
    }

    /// A place for a newcomer; `None` if it must wait: until one has left, or some time has passed. Costs a look at each handshake.
    pub(crate) fn enter(self: &Arc<Self>, source: &str, is_known: bool) -> Option<Place> {
        let now = Instant::now();
        let mut under_way = self.under_way.lock();
        if under_way.len() >= self.handshakes_max {
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
            // Those whose address is known have a claim before those whose address is not.
            is_slow && (is_known || !one.is_known)
        });
        // Numbers grow: the oldest has the smallest.
        let rank = |one: &UnderWay| {
            let of_source = of_sources.get(one.source.as_str());
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

    fn sources(handshakes: &Handshakes) -> Vec<String> {
        let under_way = handshakes.under_way.lock();
        let mut sources: Vec<_> = under_way.iter().map(|one| one.source.clone()).collect();
        sources.sort();
        sources
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_silent_one_of_the_busiest_source_makes_room() {
        let handshakes = Handshakes::new(4, Duration::from_secs(1));
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
        let handshakes = Handshakes::new(2, Duration::from_secs(1));
        let enter = |source, is_known| handshakes.enter(source, is_known);
        let (stranger, known) = (
            enter("a", false).expect("room"),
            enter("b", true).expect("room"),
        );
        stranger.spoken();
        // A stranger never displaces one whose address is known.
        assert!(enter("c", false).is_none());
        known.spoken();
        assert!(enter("d", true).is_none());
        tokio::time::advance(Duration::from_millis(600)).await;
        let _late = enter("d", true).expect("the stranger has taken its time");
        assert_eq!(sources(&handshakes), ["b", "d"]);
        assert!(enter("e", false).is_none());
    }
}
