//! The entries of a log, in the segments in which they came.

use raft::eraftpb::Entry;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What an entry takes beside its payload, for the bound on bytes.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// Entries read at the start are cut into segments of so many, since the memory of a segment is free only when all of it is gone.
const LOADED_SEGMENT: usize = 256;

fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.data.len() + entry.context.len()
}

/// Entries whose indexes follow each other. A segment is shared with the job that writes it, so an entry is not copied for either.
///
/// Looking for an index takes as long as the logarithm of the number of segments.
#[derive(Debug, Default)]
pub(super) struct LogSegments {
    segments: VecDeque<Segment>,
    len: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Segment {
    /// The index of the first entry that counts.
    first: u64,
    entries: Arc<Vec<Entry>>,
    /// Those that count: others had their places taken, or are compacted.
    live: Range<usize>,
}

impl Segment {
    fn live(&self) -> &[Entry] {
        &self.entries[self.live.clone()]
    }

    /// The index behind the last entry.
    fn end(&self) -> u64 {
        self.first + self.live.len() as u64
    }

    /// The place among the live ones of an index, 0 for those below the first.
    fn place(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX)
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

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Of all entries, with their payloads.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a segment behind the others.
    pub(super) fn push(&mut self, entries: Arc<Vec<Entry>>) {
        let Some(first) = entries.first() else {
            return;
        };
        let first = first.index;
        debug_assert!(self.segments.back().is_none_or(|last| last.end() == first));
        self.len += entries.len();
        self.bytes += entries.iter().map(entry_bytes).sum::<usize>();
        let live = 0..entries.len();
        self.segments.push_back(Segment {
            first,
            entries,
            live,
        });
    }

    /// Takes away all entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while let Some(last) = self.segments.back_mut()
            && last.end() > index
        {
            let kept = last.place(index);
            let gone = &last.live()[kept..];
            self.len -= gone.len();
            self.bytes -= gone.iter().map(entry_bytes).sum::<usize>();
            last.live.end = last.live.start + kept;
            if kept == 0 {
                self.segments.pop_back();
            }
        }
    }

    /// Takes away all entries below `index`.
    pub(super) fn advance(&mut self, index: u64) {
        while let Some(first) = self.segments.front_mut()
            && first.first < index
        {
            let count = first.place(index.min(first.end()));
            let gone = &first.live()[..count];
            self.len -= gone.len();
            self.bytes -= gone.iter().map(entry_bytes).sum::<usize>();
            first.live.start += count;
            first.first += count as u64;
            if first.live.is_empty() {
                self.segments.pop_front();
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        let segment = self.segments.get(self.run_of(index))?;
        let place = index.checked_sub(segment.first)?;
        segment.live().get(usize::try_from(place).ok()?)
    }

    /// The entries from an index that there is on.
    pub(super) fn from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let segments = self.segments.range(self.run_of(index)..);
        segments.flat_map(move |segment| {
            segment
                .live()
                .get(segment.place(index)..)
                .unwrap_or_default()
        })
    }

    /// The place of the segment that holds an index, if one does.
    fn run_of(&self, index: u64) -> usize {
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
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..8_usize, prop_oneof![Just(0), 0..12_usize])
                .prop_map(|(count, replaced)| Step::Append { count, replaced }),
            3 => (0..20_u64).prop_map(Step::Advance),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn it_is_a_list(loaded in 0..600_u64, steps in steps()) {
            let entry = |index: u64, term: u64| Entry {
                index,
                term,
                data: vec![0; (index % 7) as usize].into(),
                ..Default::default()
            };
            let mut list: Vec<Entry> = (1..=loaded).map(|index| entry(index, 0)).collect();
            let mut segments = LogSegments::of(list.clone());
            let mut next = loaded + 1;
            for (term, step) in (1..).zip(steps) {
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
                        let first = list.first().map_or(next, |first| first.index);
                        segments.advance(first + count);
                        list.retain(|entry| entry.index >= first + count);
                    }
                    Step::Clear => {
                        segments.clear();
                        list.clear();
                    }
                }
                prop_assert_eq!(segments.len(), list.len());
                prop_assert_eq!(segments.bytes(), list.iter().map(entry_bytes).sum::<usize>());
                let first = list.first().map_or(next, |first| first.index);
                prop_assert!(segments.get(first.wrapping_sub(1)).is_none());
                prop_assert!(segments.get(next).is_none());
                for (place, expected) in list.iter().enumerate() {
                    prop_assert_eq!(segments.get(expected.index), Some(expected));
                    if place % 5 == 0 {
                        prop_assert!(segments.from(expected.index).eq(&list[place..]));
                    }
                }
            }
        }
    }
}
