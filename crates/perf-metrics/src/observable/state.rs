//! What was observed.

use crate::attributes::{KeyValue, hash_set, overflow_set, same_set};
use crate::descriptor::InstrumentKind;
use crate::number::Number;
use crate::snapshot::{InstrumentSnapshot, Merge, Point, SeriesSnapshot};
use crate::table::next_id;
use foldhash::fast::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

pub(super) struct State<T> {
    /// By id. Series that are not observed any more stay, so that deltas go on where they were, until others need the room.
    series: BTreeMap<u64, Series<T>>,
    /// The hash of the attributes to the ids.
    ids: HashMap<u64, Vec<u64>>,
    overflow: Option<Series<T>>,
    /// When callbacks last ran.
    last: SystemTime,
    round: u64,
    hash: RandomState,
}

struct Series<T> {
    id: u64,
    hash: u64,
    attributes: Arc<[KeyValue]>,
    start: SystemTime,
    /// Its value before the round in which it was last observed.
    before: Option<T>,
    value: T,
    /// The round in which it was last observed.
    round: u64,
}

impl<T: Number> State<T> {
    pub(super) fn new(start: SystemTime) -> Self {
        Self {
            series: BTreeMap::new(),
            ids: HashMap::new(),
            overflow: None,
            last: start,
            round: 0,
            hash: RandomState::default(),
        }
    }

    /// Takes what callbacks have observed by `now`.
    pub(super) fn observe(
        &mut self,
        observed: Vec<(Vec<KeyValue>, T)>,
        kind: InstrumentKind,
        series_max: usize,
        now: SystemTime,
    ) {
        self.round += 1;
        for (attributes, value) in observed {
            let hash = hash_set(&self.hash, &attributes);
            self.add((hash, attributes), value, kind, (series_max, now));
        }
        self.last = now;
    }

    /// Tells what was observed last, and keeps the rest beside it, as of what has left.
    pub(super) fn read(&self, out: &mut InstrumentSnapshot) {
        let InstrumentSnapshot { series, left, .. } = out;
        let (mut told, mut left) = (Merge::new(series), Merge::new(left));
        // In the order of their ids: the overflow is among the others.
        let mut overflow = self.overflow.iter().peekable();
        let mut visit = |series: &Series<T>| {
            let is_told = series.round == self.round;
            let to = if is_told { &mut told } else { &mut left };
            let snapshot = to.next(series.id, || SeriesSnapshot {
                id: series.id,
                attributes: Arc::clone(&series.attributes),
                start: Some(series.start),
                end: None,
                point: Point::Nothing,
                exemplars: Vec::new(),
                is_recorded: false,
                is_declared: false,
            });
            snapshot.is_recorded = is_told;
            snapshot.point = Point::Number(series.value.to_value());
        };
        for series in self.series.values() {
            if let Some(overflow) = overflow.next_if(|overflow| overflow.id < series.id) {
                visit(overflow);
            }
            visit(series);
        }
        overflow.for_each(visit);
        told.finish();
        left.finish();
    }

    fn find(&self, hash: u64, attributes: &[KeyValue]) -> Option<u64> {
        let ids = self.ids.get(&hash)?;
        ids.iter().copied().find(|id| {
            self.series
                .get(id)
                .is_some_and(|series| same_set(&series.attributes, attributes))
        })
    }

    fn remove(&mut self, id: u64) {
        let Some(series) = self.series.remove(&id) else {
            return;
        };
        if let Some(ids) = self.ids.get_mut(&series.hash) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.ids.remove(&series.hash);
            }
        }
    }

    fn insert(&mut self, series: Series<T>) {
        self.ids.entry(series.hash).or_default().push(series.id);
        self.series.insert(series.id, series);
    }

    fn add(
        &mut self,
        (hash, attributes): (u64, Vec<KeyValue>),
        value: T,
        kind: InstrumentKind,
        (series_max, now): (usize, SystemTime),
    ) {
        if same_set(&attributes, &overflow_set()) {
            return self.add_to_overflow(value, kind);
        }
        let round = self.round;
        let mut start = self.last;
        if let Some(id) = self.find(hash, &attributes) {
            if let Some(series) = self.series.get_mut(&id) {
                if series.round < round {
                    series.before = Some(series.value);
                }
                // Of what is observed twice at once the last counts, as in the SDK: it may be less than the first.
                let has_grown = series.before.is_none_or(|before| value >= before);
                if kind != InstrumentKind::Counter || has_grown {
                    (series.value, series.round) = (value, round);
                    return;
                }
            }
            // A counter that has become less was begun again: so is the series.
            self.remove(id);
            start = now;
        } else if self.series.len() >= series_max {
            let unobserved = self.series.values().filter(|series| series.round < round);
            match unobserved.min_by_key(|series| series.round).map(|s| s.id) {
                Some(id) => self.remove(id),
                None => return self.add_to_overflow(value, kind),
            }
        }
        self.insert(Series {
            id: next_id(),
            hash,
            attributes: attributes.into(),
            start,
            before: None,
            value,
            round,
        });
    }

    fn add_to_overflow(&mut self, value: T, kind: InstrumentKind) {
        let (round, start) = (self.round, self.last);
        let overflow = self.overflow.get_or_insert_with(|| Series {
            id: next_id(),
            hash: 0,
            attributes: Arc::new(overflow_set()),
            start,
            before: None,
            value,
            round: 0,
        });
        overflow.value = if overflow.round == round && kind != InstrumentKind::Gauge {
            overflow.value.plus(value)
        } else {
            value
        };
        overflow.round = round;
    }
}
