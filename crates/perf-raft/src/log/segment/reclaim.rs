//! Keeps the log's size in proportion to what counts, however slow one group is.
//!
//! Segments go from the front only. A group that keeps an old segment, by an entry or by its state, gets what counts of that segment written
//! again at the end.

use super::format;
use super::job::Change;
use super::{SLACK_SEGMENTS, SegmentLog};
use crate::GroupId;
use crate::log::LogError;
use crate::primitive::mutant;
use raft::eraftpb::Entry;
use std::collections::BTreeMap;

/// Segments that nothing counts of from which on a new one is begun, so that they go.
const DEAD_SEGMENTS_MAX: usize = 2;

/// Bytes that are moved by one record.
const MOVED_BYTES_MAX: u64 = 1024 * 1024;

impl SegmentLog {
    /// Called when all is durable.
    ///
    /// Above three times half of what counts a write moves one segment, so that the work is spread; above twice of it, a write moves as many
    /// as it takes.
    pub(super) fn reclaim(&mut self) -> Result<(), LogError> {
        let Some(tail) = self.tail.as_ref().map(|tail| tail.header.number) else {
            return Ok(());
        };
        let mut is_first = true;
        // Each segment is moved once at most; what was moved then is behind the tail of now.
        while let Some(first) = self.first_segment()
            && first < tail
            && self.needed_bytes(first) > self.bytes_max(is_first)
            && !mutant::is("segment_nothing_moved")
        {
            self.move_segment(first)?;
            self.sync()?;
            is_first = false;
            if self.first_segment() == Some(first) {
                // A defect of this code; better too large a log than a loop without an end.
                break;
            }
        }
        let first = self.first_segment().unwrap_or(tail);
        if self.segments.range(..first).count() >= DEAD_SEGMENTS_MAX {
            self.rotate(0)?;
        }
        Ok(())
    }

    /// The lowest segment that anything counts of.
    pub(super) fn first_segment(&self) -> Option<u64> {
        self.shared.index.lock().first_segment()
    }

    /// What the segments that count may take: before one is moved, or before another one is.
    fn bytes_max(&self, is_first: bool) -> u64 {
        let live = self.shared.index.lock().live_bytes();
        let slack = SLACK_SEGMENTS * self.options.segment_bytes;
        match is_first {
            true => live + live / 2 + slack - self.options.segment_bytes,
            false => 2 * live + slack,
        }
    }

    fn needed_bytes(&self, first: u64) -> u64 {
        let all: u64 = self.segments.values().sum();
        let dead: u64 = self.segments.range(..first).map(|(_, bytes)| bytes).sum();
        all - dead
    }

    /// Writes again what counts of a segment.
    fn move_segment(&mut self, segment: u64) -> Result<(), LogError> {
        let mut parts: BTreeMap<GroupId, Vec<(u64, Vec<Entry>)>> = BTreeMap::new();
        let runs = self.shared.index.lock().runs_in(segment);
        for (group, first, run) in runs {
            let entries = self.entries(group, first, run)?;
            parts.entry(group).or_default().push((first, entries));
        }
        let index = self.shared.index.lock();
        let states: Vec<Change> = index
            .groups()
            .iter()
            .filter_map(|(group, index)| index.state_in(*group, segment))
            .collect();
        drop(index);
        let mut moving = Moving::new(MOVED_BYTES_MAX.min(self.options.segment_bytes / 4));
        for state in states {
            moving.add(self, state, &[])?;
        }
        for (group, mut parts) in parts {
            parts.sort_unstable_by_key(|(first, _)| *first);
            for entries in joined(parts) {
                moving.add_entries(self, group, &entries)?;
            }
        }
        moving.flush(self)
    }
}

/// Parts that follow each other become one.
fn joined(parts: Vec<(u64, Vec<Entry>)>) -> Vec<Vec<Entry>> {
    let mut joined: Vec<Vec<Entry>> = Vec::new();
    for (first, part) in parts {
        match joined.last_mut() {
            Some(before) if before.last().is_some_and(|last| last.index + 1 == first) => {
                before.extend(part);
            }
            _ => joined.push(part),
        }
    }
    joined
}

/// Jobs that gather for one record.
struct Moving {
    payload: Vec<u8>,
    changes: Vec<Change>,
    bytes_max: u64,
}

impl Moving {
    fn new(bytes_max: u64) -> Self {
        let mut payload = Vec::new();
        format::begin_record(&mut payload);
        Self {
            payload,
            changes: Vec::new(),
            bytes_max,
        }
    }

    /// Portions of about `bytes_max`.
    fn add_entries(
        &mut self,
        log: &mut SegmentLog,
        group: GroupId,
        mut entries: &[Entry],
    ) -> Result<(), LogError> {
        while !entries.is_empty() {
            let mut bytes = 0;
            let count = entries
                .iter()
                .take_while(|entry| {
                    let fits = bytes < self.bytes_max;
                    bytes += (entry.data.len() + entry.context.len()) as u64 + 20;
                    fits
                })
                .count();
            let (part, rest) = entries.split_at(count);
            let change = Change {
                group,
                moved: !mutant::is("segment_moved_as_appended"),
                ..Change::default()
            };
            self.add(log, change, part)?;
            entries = rest;
        }
        Ok(())
    }

    fn add(
        &mut self,
        log: &mut SegmentLog,
        mut change: Change,
        entries: &[Entry],
    ) -> Result<(), LogError> {
        change
            .encode(entries, &mut self.payload)
            .map_err(|reason| LogError::Unsupported { reason })?;
        self.changes.push(change);
        if self.payload.len() as u64 >= self.bytes_max {
            self.flush(log)?;
        }
        Ok(())
    }

    fn flush(&mut self, log: &mut SegmentLog) -> Result<(), LogError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        std::mem::swap(&mut log.buffer, &mut self.payload);
        log.append(&self.changes)?;
        self.changes.clear();
        format::begin_record(&mut self.payload);
        Ok(())
    }
}
