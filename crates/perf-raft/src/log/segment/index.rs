//! Where everything that counts is: for each group its latest state and the places of its entries, and for each segment how much of
//! it is live.

use super::job::{Change, ENTRY_HEADER_BYTES, SnapshotRecord, Span};
use crate::GroupId;
use crate::members::Identity;
use crate::primitive::mutant;
use raft::eraftpb::HardState;
use std::collections::BTreeMap;

/// What a run of live entries takes in a record beside the entries themselves, and the state of a group.
const OVERHEAD_BYTES: u64 = 96;

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) segment: u64,
    /// Where the record begins.
    pub(super) offset: u64,
}

/// Live entries of one job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) count: u64,
    bytes: u64,
    pub(super) at: At,
    /// Their term, `None` if there are several.
    pub(super) term: Option<u64>,
    /// Bytes of the longest payload of the job.
    pub(super) longest: u32,
}

impl Run {
    /// Bytes of all payloads, an estimate for a part of a job.
    pub(super) fn payload_bytes(&self) -> u64 {
        let headers = self.count.saturating_mul(ENTRY_HEADER_BYTES as u64);
        self.bytes.saturating_sub(headers)
    }
}

/// A value and the segment that holds its latest record.
#[derive(Clone, Debug, Default)]
struct Kept<T> {
    value: T,
    segment: u64,
}

/// What the log holds of one group.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    hard_state: Kept<Option<HardState>>,
    identity: Kept<Option<Identity>>,
    snapshot: Kept<Option<SnapshotRecord>>,
    compacted: Kept<(u64, u64)>,
    /// By first index.
    runs: BTreeMap<u64, Run>,
}

impl Group {
    pub(super) fn hard_state(&self) -> Option<&HardState> {
        self.hard_state.value.as_ref()
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity.value
    }

    pub(super) fn snapshot(&self) -> Option<&SnapshotRecord> {
        self.snapshot.value.as_ref()
    }

    pub(super) fn compacted(&self) -> (u64, u64) {
        self.compacted.value
    }

    pub(super) fn runs(&self) -> &BTreeMap<u64, Run> {
        &self.runs
    }

    /// Runs that hold entries from `first` on and below `end`, cut to them: as many as have `bytes_max` bytes of payload together, or one more.
    pub(super) fn runs_from(&self, first: u64, end: u64, bytes_max: u64) -> Vec<(u64, Run)> {
        let mut found = Vec::new();
        let (mut due, mut bytes) = (first, 0);
        let before = self.runs.range(..=first).next_back();
        let behind = self.runs.range(first..).skip_while(|(at, _)| **at == first);
        for (&at, run) in before.into_iter().chain(behind) {
            let mut run = *run;
            if due < at || due >= at + run.count || due >= end || bytes > bytes_max {
                break;
            }
            if due > at {
                run = run.split(due - at);
            }
            if end - due < run.count {
                run.split(end - due);
            }
            bytes += run.payload_bytes();
            found.push((due, run));
            due += run.count;
        }
        found
    }

    /// Where the entry of an index is.
    pub(super) fn at(&self, index: u64) -> Option<At> {
        let (first, run) = self.runs.range(..=index).next_back()?;
        (index < first + run.count).then_some(run.at)
    }

    /// The index of the next entry.
    pub(super) fn next_index(&self) -> u64 {
        let last = self.runs.last_key_value();
        last.map_or(self.compacted.value.0 + 1, |(first, run)| first + run.count)
    }

    /// The first index that should be there and is not.
    pub(super) fn gap(&self) -> Option<u64> {
        let mut due = self.compacted.value.0 + 1;
        for (&first, run) in &self.runs {
            if first != due {
                return Some(due);
            }
            due = first + run.count;
        }
        None
    }

    /// What of the group's state has its latest record in this segment: a job that says it again.
    pub(super) fn state_in(&self, group: GroupId, segment: u64) -> Option<Change> {
        let segments = [
            self.hard_state.segment,
            self.identity.segment,
            self.snapshot.segment,
            self.compacted.segment,
        ];
        segments.contains(&segment).then(|| Change {
            group,
            snapshot: self.snapshot.value.clone(),
            compacted: (self.compacted.segment != 0).then_some(self.compacted.value),
            moved: true,
            hard_state: self.hard_state.value.clone(),
            identity: self.identity.value,
            ..Change::default()
        })
    }
}

/// How much of a segment counts.
#[derive(Clone, Copy, Debug, Default)]
struct Live {
    /// Runs and values whose latest record is there.
    things: u64,
    bytes: u64,
}

/// All groups, and what counts of each segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    groups: BTreeMap<GroupId, Group>,
    live: BTreeMap<u64, Live>,
    live_bytes: u64,
}

impl Index {
    pub(super) fn groups(&self) -> &BTreeMap<GroupId, Group> {
        &self.groups
    }

    pub(super) fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    /// The lowest segment that anything counts of.
    pub(super) fn first_segment(&self) -> Option<u64> {
        self.live.keys().next().copied()
    }

    /// Bytes of the records that live entries and states take.
    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The runs whose records are in a segment, in the order of these.
    pub(super) fn runs_in(&self, segment: u64) -> Vec<(GroupId, u64, Run)> {
        let all = self.groups.iter().flat_map(|(group, index)| {
            let runs = index.runs.iter();
            runs.map(|(first, run)| (*group, *first, *run))
        });
        let mut runs: Vec<_> = all
            .filter(|(_, _, run)| run.at.segment == segment)
            .collect();
        runs.sort_unstable_by_key(|(_, first, run)| (run.at, *first));
        runs
    }

    /// Whether the entries of each job follow what there is then.
    pub(super) fn check(&self, changes: &[Change]) -> Result<(), String> {
        for (place, change) in changes.iter().enumerate() {
            let Some(span) = change.span.as_ref().filter(|_| !change.moved) else {
                continue;
            };
            let group = self.groups.get(&change.group);
            let (mut compacted, mut next) = group.map_or((0, 1), |group| {
                (group.compacted.value.0, group.next_index())
            });
            let earlier = changes[..place].iter();
            for before in earlier.filter(|before| before.group == change.group) {
                (compacted, next) = before.bounds_after(compacted, next);
                next = before.span.map_or(next, |span| span.end());
            }
            (compacted, next) = change.bounds_after(compacted, next);
            if span.first <= compacted || span.first > next {
                return Err(format!(
                    "group {}: entries from {} on, where {} to {next} are possible: append without gaps, and nothing that is compacted",
                    change.group.0,
                    span.first,
                    compacted + 1
                ));
            }
        }
        Ok(())
    }

    /// Does to the index what a record at this place does to the log. Returns the snapshot that does not count any more.
    ///
    /// While a log is read, entries of segments that were purged may be missing until the record that moved them comes.
    pub(super) fn apply(&mut self, change: &Change, at: At) -> Option<SnapshotRecord> {
        let Self {
            groups,
            live,
            live_bytes,
        } = self;
        let mut account = Account {
            live,
            live_bytes,
            segment: at.segment,
        };
        if change.removes_group && !mutant::is("segment_removal_forgotten") {
            // Its record need not count: it goes after all that it takes away, since segments go in their order.
            let removed = groups.remove(&change.group)?;
            return removed.remove(&mut account);
        }
        let group = groups.entry(change.group).or_default();
        let mut replaced = None;
        if let Some(snapshot) = &change.snapshot {
            if change.replaces_log {
                group.cut_from(0, &mut account);
                account.put(&mut group.compacted, snapshot.position());
            }
            let before = group.snapshot.value.clone();
            account.put(&mut group.snapshot, Some(snapshot.clone()));
            replaced = before.filter(|before| before.number != snapshot.number);
        }
        if let Some((index, term)) = change.compacted {
            if index > group.compacted.value.0 || change.moved {
                account.put(&mut group.compacted, (index, term));
            }
            group.cut_before(index.saturating_add(1), &mut account);
        }
        if let Some(span) = &change.span {
            group.insert(span, at, change.moved, &mut account);
        }
        if let Some(hard_state) = &change.hard_state {
            account.put(&mut group.hard_state, Some(hard_state.clone()));
        }
        if change.identity.is_some() {
            account.put(&mut group.identity, change.identity);
        }
        replaced
    }
}

/// Keeps count of what is live while a record is applied.
struct Account<'a> {
    live: &'a mut BTreeMap<u64, Live>,
    live_bytes: &'a mut u64,
    /// The record's segment.
    segment: u64,
}

impl Account<'_> {
    fn put<T>(&mut self, kept: &mut Kept<T>, value: T) {
        kept.value = value;
        if kept.segment != self.segment && !mutant::is("segment_state_not_moved") {
            if kept.segment != 0 {
                self.remove(kept.segment, OVERHEAD_BYTES);
            }
            kept.segment = self.segment;
            self.add(OVERHEAD_BYTES);
        }
    }

    fn add(&mut self, bytes: u64) {
        let live = self.live.entry(self.segment).or_default();
        live.things += 1;
        live.bytes += bytes;
        *self.live_bytes += bytes;
    }

    fn remove(&mut self, segment: u64, bytes: u64) {
        self.shrink(segment, bytes);
        if let Some(live) = self.live.get_mut(&segment) {
            live.things -= 1;
            if live.things == 0 {
                self.live.remove(&segment);
            }
        }
    }

    fn shrink(&mut self, segment: u64, bytes: u64) {
        *self.live_bytes -= bytes;
        if let Some(live) = self.live.get_mut(&segment) {
            live.bytes -= bytes;
        }
    }
}

impl Group {
    /// Takes all of it away. Returns its snapshot.
    fn remove(mut self, account: &mut Account<'_>) -> Option<SnapshotRecord> {
        self.cut_from(0, account);
        let segments = [
            self.hard_state.segment,
            self.identity.segment,
            self.snapshot.segment,
            self.compacted.segment,
        ];
        for segment in segments.into_iter().filter(|segment| *segment != 0) {
            account.remove(segment, OVERHEAD_BYTES);
        }
        self.snapshot.value
    }

    fn insert(&mut self, span: &Span, at: At, moved: bool, account: &mut Account<'_>) {
        if moved {
            let later = self.take_from(span.end(), account);
            self.cut_from(span.first, account);
            self.runs.extend(later);
        } else {
            self.cut_from(span.first, account);
        }
        account.add(OVERHEAD_BYTES + span.bytes);
        let run = Run {
            count: span.count,
            bytes: span.bytes,
            at,
            term: span.term,
            longest: span.longest,
        };
        self.runs.insert(span.first, run);
    }

    /// Takes away all entries from `index` on.
    fn cut_from(&mut self, index: u64, account: &mut Account<'_>) {
        // Most appends are at the end.
        let last = self.runs.last_key_value();
        if last.is_none_or(|(first, run)| first + run.count <= index) {
            return;
        }
        for run in self.take_from(index, account).into_values() {
            account.remove(run.at.segment, OVERHEAD_BYTES + run.bytes);
        }
    }

    /// Splits off all entries from `index` on.
    fn take_from(&mut self, index: u64, account: &mut Account<'_>) -> BTreeMap<u64, Run> {
        let mut taken = self.runs.split_off(&index);
        if let Some((&first, run)) = self.runs.iter_mut().next_back()
            && first + run.count > index
        {
            let tail = run.split(index - first);
            let own = account.segment;
            account.segment = tail.at.segment;
            account.add(OVERHEAD_BYTES);
            account.segment = own;
            taken.insert(index, tail);
        }
        taken
    }

    /// Takes away all entries before `index`.
    fn cut_before(&mut self, index: u64, account: &mut Account<'_>) {
        let kept = self.take_from(index, account);
        for run in std::mem::replace(&mut self.runs, kept).into_values() {
            account.remove(run.at.segment, OVERHEAD_BYTES + run.bytes);
        }
    }
}

impl Run {
    /// Keeps so many entries and returns the others, with their share of the bytes.
    fn split(&mut self, count: u64) -> Self {
        let share = u128::from(self.bytes) * u128::from(count) / u128::from(self.count.max(1));
        let share = share as u64;
        let tail = Self {
            count: self.count - count,
            bytes: self.bytes - share,
            ..*self
        };
        (self.count, self.bytes) = (count, share);
        tail
    }
}
