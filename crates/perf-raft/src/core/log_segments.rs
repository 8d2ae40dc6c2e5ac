//! The entries of a log, in the segments in which they came. Those of old segments may be on disk only.

use raft::eraftpb::Entry;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What an entry takes beside its payload, for the bound on bytes.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// Entries read at the start are cut into segments of so many, since the memory of a segment is free only when all of it is gone.
const LOADED_SEGMENT: usize = 256;

/// Neighbours that are on disk only become one segment up to this size in bytes.
const ABSENT_BYTES_MAX: usize = 1024 * 1024;

fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.data.len() + entry.context.len()
}

/// What so many entries take in memory, with so many bytes of payload.
pub(super) fn entries_bytes(count: u64, payload_bytes: u64) -> usize {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let payload = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
    count.saturating_mul(ENTRY_BYTES).saturating_add(payload)
}

fn all_bytes(entries: &[Entry]) -> usize {
    entries.iter().map(entry_bytes).sum()
}

/// Entries whose indexes follow each other. A segment is shared with the job that writes it, so an entry is not copied for either.
///
/// A segment is present or absent. An absent one keeps its range and its size only; its entries are on disk. Looking for an index takes as
/// long as the logarithm of the number of segments.
#[derive(Debug, Default)]
pub(super) struct LogSegments {
    segments: VecDeque<Segment>,
    len: u64,
    bytes: usize,
    present_bytes: usize,
    /// No segment before this place is present.
    present_from: usize,
    /// All entries from this index on are present.
    absent_until: u64,
}

#[derive(Debug)]
struct Segment {
    /// The index of the first entry that counts.
    first: u64,
    len: u64,
    /// Of the entries that count. An estimate for a part of an absent segment.
    bytes: usize,
    entries: Option<Present>,
}

#[derive(Debug)]
struct Present {
    entries: Arc<Vec<Entry>>,
    /// Those that count: others had their places taken, or are compacted.
    live: Range<usize>,
}

impl Segment {
    fn absent(first: u64, len: u64, bytes: usize) -> Self {
        Self {
            first,
            len,
            bytes,
            entries: None,
        }
    }

    fn present(first: u64, entries: Arc<Vec<Entry>>) -> Self {
        Self {
            first,
            len: entries.len() as u64,
            bytes: all_bytes(&entries),
            entries: Some(Present {
                live: 0..entries.len(),
                entries,
            }),
        }
    }

    fn live(&self) -> &[Entry] {
        let present = self.entries.as_ref();
        present.map_or(&[], |present| &present.entries[present.live.clone()])
    }

    fn is_present(&self) -> bool {
        self.entries.is_some()
    }

    /// The index behind the last entry.
    fn end(&self) -> u64 {
        self.first + self.len
    }

    /// The place among the live ones of an index, 0 for those below the first.
    fn place(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX)
    }

    /// Bytes of the first `count` entries.
    fn bytes_of_first(&self, count: u64) -> usize {
        if count >= self.len {
            return self.bytes;
        }
        match &self.entries {
            Some(_) => all_bytes(&self.live()[..usize::try_from(count).unwrap_or(0)]),
            None => {
                let share = self.bytes as u128 * u128::from(count) / u128::from(self.len);
                usize::try_from(share).unwrap_or(self.bytes)
            }
        }
    }

    /// Keeps the first `count` entries and returns how many bytes are gone.
    fn keep_first(&mut self, count: u64) -> usize {
        let gone = self.bytes - self.bytes_of_first(count);
        let kept = usize::try_from(count).unwrap_or(usize::MAX);
        if let Some(present) = &mut self.entries {
            present.live.end = present.live.start + kept.min(present.live.len());
        }
        self.len = self.len.min(count);
        self.bytes -= gone;
        gone
    }

    /// Takes the first `count` entries away and returns how many bytes are gone.
    fn drop_first(&mut self, count: u64) -> usize {
        let count = count.min(self.len);
        let gone = self.bytes_of_first(count);
        if let Some(present) = &mut self.entries {
            present.live.start += usize::try_from(count).unwrap_or(0);
        }
        self.first += count;
        self.len -= count;
        self.bytes -= gone;
        gone
    }
}

impl LogSegments {
    pub(super) fn of(entries: Vec<Entry>) -> Self {
        let mut segments = Self::default();
        let mut entries = entries.into_iter();
        loop {
            let segment: Vec<Entry> = entries.by_ref().take(LOADED_SEGMENT).collect();
            if segment.is_empty() {
                return segments;
            }
            segments.push(Arc::new(segment));
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Of all entries, with their payloads, in memory and on disk.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Of the entries in memory.
    pub(super) fn present_bytes(&self) -> usize {
        self.present_bytes
    }

    /// Adds a segment behind the others.
    pub(super) fn push(&mut self, entries: Arc<Vec<Entry>>) {
        let Some(first) = entries.first() else {
            return;
        };
        let first = first.index;
        debug_assert!(self.segments.back().is_none_or(|last| last.end() == first));
        let segment = Segment::present(first, entries);
        self.len += segment.len;
        self.bytes += segment.bytes;
        self.present_bytes += segment.bytes;
        self.segments.push_back(segment);
    }

    /// Adds entries behind the others that are on disk only.
    pub(super) fn push_absent(&mut self, first: u64, count: u64, bytes: usize) {
        debug_assert!(self.segments.back().is_none_or(|last| last.end() == first));
        self.len += count;
        self.bytes = self.bytes.saturating_add(bytes);
        self.absent_until = first + count;
        match self.segments.back_mut() {
            Some(last) if !last.is_present() && last.bytes + bytes <= ABSENT_BYTES_MAX => {
                last.len += count;
                last.bytes += bytes;
            }
            _ => self
                .segments
                .push_back(Segment::absent(first, count, bytes)),
        }
    }

    /// Takes away all entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while let Some(last) = self.segments.back_mut()
            && last.end() > index
        {
            let (before, is_present) = (last.len, last.is_present());
            let gone = last.keep_first(index.saturating_sub(last.first));
            self.len -= before - last.len;
            self.bytes -= gone;
            self.present_bytes -= if is_present { gone } else { 0 };
            if last.len == 0 {
                self.segments.pop_back();
            }
        }
        self.present_from = self.present_from.min(self.segments.len());
    }

    /// Takes away all entries below `index`.
    pub(super) fn advance(&mut self, index: u64) {
        while let Some(first) = self.segments.front_mut()
            && first.first < index
        {
            let (before, is_present) = (first.len, first.is_present());
            let gone = first.drop_first(index - first.first);
            self.len -= before - first.len;
            self.bytes -= gone;
            self.present_bytes -= if is_present { gone } else { 0 };
            if first.len == 0 {
                self.segments.pop_front();
                self.present_from = self.present_from.saturating_sub(1);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// An entry that is in memory.
    #[cfg(test)]
    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        let segment = self.segments.get(self.place_of(index))?;
        let place = index.checked_sub(segment.first)?;
        segment.live().get(usize::try_from(place).ok()?)
    }

    /// The entries from `index` on that are in memory, up to the first one that is not.
    pub(super) fn from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let segments = self.segments.range(self.place_of(index)..);
        segments
            .take_while(|segment| segment.is_present())
            .flat_map(move |segment| {
                segment
                    .live()
                    .get(segment.place(index)..)
                    .unwrap_or_default()
            })
    }

    /// The first stretch from `index` on that is on disk only: its first index and the one behind its last.
    pub(super) fn absent_from(&self, index: u64) -> Option<(u64, u64)> {
        if index >= self.absent_until {
            return None;
        }
        let mut segments = self.segments.range(self.place_of(index)..);
        let first = segments.find(|segment| !segment.is_present())?;
        let absent = segments.take_while(|segment| !segment.is_present());
        let end = absent.last().unwrap_or(first).end();
        Some((first.first.max(index), end))
    }

    /// Lets entries up to `limit` leave memory, whole segments from the oldest on, until `bytes` are free. Returns how many bytes are.
    pub(super) fn evict(&mut self, limit: u64, bytes: usize) -> usize {
        let mut freed = 0;
        while freed < bytes
            && let Some(segment) = self.segments.get_mut(self.present_from)
            && segment.end() <= limit.saturating_add(1)
        {
            if segment.entries.take().is_none() {
                self.present_from += 1;
                continue;
            }
            freed += segment.bytes;
            self.present_bytes -= segment.bytes;
            self.absent_until = self.absent_until.max(segment.end());
            let place = self.present_from;
            self.present_from += 1;
            self.join(place + 1);
            self.join(place);
        }
        freed
    }

    /// Makes one of the absent segment at `place` and the one before it.
    fn join(&mut self, place: usize) {
        let Some(before) = place
            .checked_sub(1)
            .and_then(|place| self.segments.get(place))
        else {
            return;
        };
        let Some(segment) = self.segments.get(place) else {
            return;
        };
        let bytes = before.bytes + segment.bytes;
        if before.is_present() || segment.is_present() || bytes > ABSENT_BYTES_MAX {
            return;
        }
        let joined = Segment::absent(before.first, before.len + segment.len, bytes);
        self.segments[place - 1] = joined;
        self.segments.remove(place);
        if self.present_from >= place {
            self.present_from -= 1;
        }
    }

    /// Puts entries that were read from disk in their places. They follow each other. Returns how many of them, from the first on, were absent.
    pub(super) fn fill(&mut self, mut entries: Vec<Entry>) -> usize {
        let count = entries.len();
        while let Some(first) = entries.first().map(|entry| entry.index) {
            let place = self.place_of(first);
            let Some(segment) = self.segments.get(place) else {
                break;
            };
            if segment.is_present() || first < segment.first {
                break;
            }
            let room = usize::try_from(segment.end() - first).unwrap_or(usize::MAX);
            let rest = entries.split_off(room.min(entries.len()));
            self.fill_within(
                place,
                Arc::new(std::mem::replace(&mut entries, rest)),
                first,
            );
        }
        count - entries.len()
    }

    /// For the mutant that takes what was read for newer than what is in memory.
    pub(super) fn fill_present(&mut self, entries: &[Entry]) {
        for entry in entries {
            let place = self.place_of(entry.index);
            if let Some(segment) = self.segments.get_mut(place) {
                let place = segment.place(entry.index);
                if let Some(present) = &mut segment.entries {
                    let place = present.live.start + place;
                    if let Some(now) = Arc::make_mut(&mut present.entries).get_mut(place) {
                        *now = entry.clone();
                    }
                }
            }
        }
    }

    /// Puts entries in the place of a part of an absent segment.
    fn fill_within(&mut self, place: usize, entries: Arc<Vec<Entry>>, first: u64) {
        let window = Segment::present(first, entries);
        let mut parts = Vec::with_capacity(3);
        if let Some(segment) = self.segments.get_mut(place) {
            self.bytes -= segment.bytes;
            let mut after = Segment::absent(segment.first, segment.len, segment.bytes);
            after.drop_first(window.end() - segment.first);
            segment.keep_first(first - segment.first);
            let before = Segment::absent(segment.first, segment.len, segment.bytes);
            parts.extend([before, window, after]);
            parts.retain(|part| part.len > 0);
        }
        self.segments.remove(place);
        for (offset, part) in parts.into_iter().enumerate() {
            self.bytes += part.bytes;
            if part.is_present() {
                self.present_bytes += part.bytes;
                self.present_from = self.present_from.min(place + offset);
            }
            self.segments.insert(place + offset, part);
        }
    }

    /// The place of the segment that holds an index, if one does.
    fn place_of(&self, index: u64) -> usize {
        // Most that is asked for is near the end.
        match self.segments.back() {
            Some(last) if last.first <= index && index < last.end() => self.segments.len() - 1,
            _ => self
                .segments
                .partition_point(|segment| segment.end() <= index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// Entries that take the places of the last ones, so many of them.
        Append {
            count: usize,
            replaced: usize,
        },
        Advance(u64),
        /// Up to this place of the list, so many bytes.
        Evict(u64, usize),
        /// So many from this place of the list on.
        Fill(u64, usize),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..8_usize, prop_oneof![Just(0), 0..12_usize])
                .prop_map(|(count, replaced)| Step::Append { count, replaced }),
            3 => (0..20_u64).prop_map(Step::Advance),
            6 => (0..60_u64, prop_oneof![1..2000_usize, Just(usize::MAX)])
                .prop_map(|(limit, bytes)| Step::Evict(limit, bytes)),
            6 => (0..60_u64, 1..20_usize).prop_map(|(place, count)| Step::Fill(place, count)),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn it_is_a_list(loaded in 0..600_u64, absent in any::<bool>(), steps in steps()) {
            let entry = |index: u64, term: u64| Entry {
                index,
                term,
                data: vec![0; (index % 7) as usize].into(),
                ..Default::default()
            };
            let mut list: Vec<Entry> = (1..=loaded).map(|index| entry(index, 0)).collect();
            let mut segments = LogSegments::default();
            if absent {
                for (first, part) in (1..).step_by(50).zip(list.chunks(50)) {
                    segments.push_absent(first, part.len() as u64, all_bytes(part));
                }
            } else {
                segments = LogSegments::of(list.clone());
            }
            let mut next = loaded + 1;
            for (term, step) in (1..).zip(steps) {
                let first = list.first().map_or(next, |first| first.index);
                match step {
                    Step::Append { count, replaced } => {
                        let replaced = replaced.min(list.len());
                        next -= replaced as u64;
                        list.truncate(list.len() - replaced);
                        let segment: Vec<Entry> =
                            (next..).map(|index| entry(index, term)).take(count).collect();
                        next += count as u64;
                        list.extend(segment.iter().cloned());
                        if let Some(first) = segment.first() {
                            segments.truncate(first.index);
                        } else {
                            segments.truncate(next);
                        }
                        segments.push(Arc::new(segment));
                    }
                    Step::Advance(count) => {
                        segments.advance(first + count);
                        list.retain(|entry| entry.index >= first + count);
                    }
                    Step::Evict(place, bytes) => {
                        let limit = first + place;
                        let before = segments.present_bytes();
                        let kept: Vec<u64> = list
                            .iter()
                            .map(|entry| entry.index)
                            .filter(|index| *index > limit && segments.get(*index).is_some())
                            .collect();
                        let freed = segments.evict(limit, bytes);
                        prop_assert_eq!(segments.present_bytes(), before - freed);
                        for index in kept {
                            prop_assert!(segments.get(index).is_some(), "{} is above the limit", index);
                        }
                    }
                    Step::Fill(place, count) => {
                        let from = usize::try_from(place).expect("it is small").min(list.len());
                        let window: Vec<Entry> = list[from..].iter().take(count).cloned().collect();
                        let missing = window
                            .iter()
                            .take_while(|entry| segments.get(entry.index).is_none())
                            .count();
                        prop_assert_eq!(segments.fill(window), missing);
                    }
                    Step::Clear => {
                        segments.clear();
                        list.clear();
                    }
                }
                prop_assert_eq!(segments.len(), list.len() as u64);
                let present: usize = list
                    .iter()
                    .filter(|entry| segments.get(entry.index).is_some())
                    .map(entry_bytes)
                    .sum();
                prop_assert_eq!(segments.present_bytes(), present);
                if segments.absent_from(0).is_none() {
                    prop_assert_eq!(segments.bytes(), present);
                }
                let sum: usize = segments.segments.iter().map(|segment| segment.bytes).sum();
                prop_assert_eq!(segments.bytes(), sum);
                let first = list.first().map_or(next, |first| first.index);
                prop_assert!(segments.get(first.wrapping_sub(1)).is_none());
                prop_assert!(segments.get(next).is_none());
                for (place, expected) in list.iter().enumerate() {
                    let found = segments.get(expected.index);
                    prop_assert!(found.is_none_or(|found| found == expected));
                    let absent = segments.absent_from(expected.index);
                    prop_assert_eq!(found.is_none(), absent.is_some_and(|(from, _)| from == expected.index));
                    if place % 5 == 0 {
                        let end = absent.map_or(next, |(from, _)| from);
                        let until = usize::try_from(end - first).expect("it is small");
                        prop_assert!(segments.from(expected.index).eq(&list[place..until]));
                        if let Some((from, end)) = absent {
                            prop_assert!(from < end);
                            prop_assert!((from..end).all(|index| segments.get(index).is_none()));
                        }
                    }
                }
            }
        }
    }
}
