//! The entries of a log, in the runs in which they came.

use raft::eraftpb::Entry;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What an entry takes beside its payload, for the bound on bytes.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// Entries read at the start are cut into runs of so many, since the memory of a run is free only when all of it is gone.
const LOADED_RUN: usize = 256;

fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.data.len() + entry.context.len()
}

/// Entries whose indexes follow each other. A run is shared with the job that writes it, so an entry is not copied for either.
///
/// Looking for an index takes as long as the logarithm of the number of runs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: VecDeque<Run>,
    len: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Run {
    /// The index of the first entry that counts.
    first: u64,
    entries: Arc<Vec<Entry>>,
    /// Those that count: others had their places taken, or are compacted.
    live: Range<usize>,
}

impl Run {
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

impl Runs {
    pub(super) fn of(entries: Vec<Entry>) -> Self {
        let mut runs = Self::default();
        let mut entries = entries.into_iter();
        loop {
            let run: Vec<Entry> = entries.by_ref().take(LOADED_RUN).collect();
            if run.is_empty() {
                return runs;
            }
            runs.push(Arc::new(run));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Of all entries, with their payloads.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a run behind the others.
    pub(super) fn push(&mut self, entries: Arc<Vec<Entry>>) {
        let Some(first) = entries.first() else {
            return;
        };
        let first = first.index;
        debug_assert!(self.runs.back().is_none_or(|last| last.end() == first));
        self.len += entries.len();
        self.bytes += entries.iter().map(entry_bytes).sum::<usize>();
        let live = 0..entries.len();
        self.runs.push_back(Run {
            first,
            entries,
            live,
        });
    }

    /// Takes away all entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while let Some(last) = self.runs.back_mut()
            && last.end() > index
        {
            let kept = last.place(index);
            let gone = &last.live()[kept..];
            self.len -= gone.len();
            self.bytes -= gone.iter().map(entry_bytes).sum::<usize>();
            last.live.end = last.live.start + kept;
            if kept == 0 {
                self.runs.pop_back();
            }
        }
    }

    /// Takes away all entries below `index`.
    pub(super) fn advance(&mut self, index: u64) {
        while let Some(first) = self.runs.front_mut()
            && first.first < index
        {
            let count = first.place(index.min(first.end()));
            let gone = &first.live()[..count];
            self.len -= gone.len();
            self.bytes -= gone.iter().map(entry_bytes).sum::<usize>();
            first.live.start += count;
            first.first += count as u64;
            if first.live.is_empty() {
                self.runs.pop_front();
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        let run = self.runs.get(self.run_of(index))?;
        let place = index.checked_sub(run.first)?;
        run.live().get(usize::try_from(place).ok()?)
    }

    /// The entries from an index that there is on.
    pub(super) fn from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let runs = self.runs.range(self.run_of(index)..);
        runs.flat_map(move |run| run.live().get(run.place(index)..).unwrap_or_default())
    }

    /// The place of the run that holds an index, if one does.
    fn run_of(&self, index: u64) -> usize {
        // Most that is asked for is near the end.
        match self.runs.back() {
            Some(last) if last.first <= index && index < last.end() => self.runs.len() - 1,
            _ => self.runs.partition_point(|run| run.end() <= index),
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
            let mut runs = Runs::of(list.clone());
            let mut next = loaded + 1;
            for (term, step) in (1..).zip(steps) {
                match step {
                    Step::Append { count, replaced } => {
                        let replaced = replaced.min(list.len());
                        next -= replaced as u64;
                        list.truncate(list.len() - replaced);
                        let run: Vec<Entry> =
                            (next..).map(|index| entry(index, term)).take(count).collect();
                        next += count as u64;
                        list.extend(run.iter().cloned());
                        if let Some(first) = run.first() {
                            runs.truncate(first.index);
                        } else {
                            runs.truncate(next);
                        }
                        runs.push(Arc::new(run));
                    }
                    Step::Advance(count) => {
                        let first = list.first().map_or(next, |first| first.index);
                        runs.advance(first + count);
                        list.retain(|entry| entry.index >= first + count);
                    }
                    Step::Clear => {
                        runs.clear();
                        list.clear();
                    }
                }
                prop_assert_eq!(runs.len(), list.len());
                prop_assert_eq!(runs.bytes(), list.iter().map(entry_bytes).sum::<usize>());
                let first = list.first().map_or(next, |first| first.index);
                prop_assert!(runs.get(first.wrapping_sub(1)).is_none());
                prop_assert!(runs.get(next).is_none());
                for (place, expected) in list.iter().enumerate() {
                    prop_assert_eq!(runs.get(expected.index), Some(expected));
                    if place % 5 == 0 {
                        prop_assert!(runs.from(expected.index).eq(&list[place..]));
                    }
                }
            }
        }
    }
}
