//! The payload of a record: jobs, one after the other.
//!
//! A job is its group (8 bytes), its flags (4 bytes) and the parts that the flags name, in the order of the flags' bits.

use super::format::{u32_at, u64_at};
use crate::GroupId;
use crate::codec::{convert, wire};
use crate::log::{LogJob, StoredSnapshot};
use crate::members::{Identity, Members};
use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};

const SNAPSHOT: u32 = 1;
const REPLACES_LOG: u32 = 1 << 1;
const COMPACTED: u32 = 1 << 2;
const ENTRIES: u32 = 1 << 3;
const HARD_STATE: u32 = 1 << 4;
const IDENTITY: u32 = 1 << 5;
/// The entries were copied from an older segment: they take the place of themselves alone, and later ones stay.
const MOVED: u32 = 1 << 6;
/// Nothing that came before counts for the group.
const REMOVES_GROUP: u32 = 1 << 7;
const ALL: u32 = (1 << 8) - 1;

/// Bytes of an entry before its data.
pub(super) const ENTRY_HEADER_BYTES: usize = 20;

/// What the log knows of a snapshot, whose data is a file of its own.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotRecord {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<wire::SnapshotMetadata>,
    #[prost(uint64, tag = "2")]
    pub(super) bytes: u64,
    /// CRC-32C of the data.
    #[prost(fixed32, tag = "3")]
    pub(super) crc: u32,
    /// Of the save: a part of the file's name.
    #[prost(uint64, tag = "4")]
    pub(super) number: u64,
    #[prost(message, optional, tag = "5")]
    pub(super) members: Option<Members>,
}

impl SnapshotRecord {
    pub(super) fn new(snapshot: &StoredSnapshot, number: u64) -> Self {
        Self {
            metadata: Some(convert::wire_snapshot_metadata(&snapshot.metadata)),
            bytes: snapshot.data.len() as u64,
            crc: crc32c::crc32c(&snapshot.data),
            number,
            members: Some(snapshot.members.clone()),
        }
    }

    /// The same data as that of a snapshot.
    pub(super) fn with_metadata(self, snapshot: &StoredSnapshot) -> Self {
        Self {
            metadata: Some(convert::wire_snapshot_metadata(&snapshot.metadata)),
            members: Some(snapshot.members.clone()),
            ..self
        }
    }

    pub(super) fn without_data(&self) -> StoredSnapshot {
        StoredSnapshot {
            metadata: convert::snapshot_metadata(self.metadata.clone().unwrap_or_default()),
            members: self.members.clone().unwrap_or_default(),
            ..StoredSnapshot::default()
        }
    }

    /// Index and term of the last entry that the snapshot stands for.
    pub(super) fn position(&self) -> (u64, u64) {
        let metadata = self.metadata.as_ref();
        metadata.map_or((0, 0), |metadata| (metadata.index, metadata.term))
    }
}

/// Consecutive entries within a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) count: u64,
    /// Bytes of the entries in the record.
    pub(super) bytes: u64,
    /// Their term, `None` if there are several.
    pub(super) term: Option<u64>,
    /// Bytes of the longest payload, at most 4 GiB.
    pub(super) longest: u32,
}

impl Span {
    /// The index after the last one.
    pub(super) fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// A job without its entries' contents: what the index keeps of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Change {
    pub(super) group: GroupId,
    pub(super) snapshot: Option<SnapshotRecord>,
    pub(super) replaces_log: bool,
    pub(super) compacted: Option<(u64, u64)>,
    pub(super) span: Option<Span>,
    pub(super) moved: bool,
    pub(super) hard_state: Option<HardState>,
    pub(super) identity: Option<Identity>,
    pub(super) removes_group: bool,
}

impl Change {
    /// What a job changes. The snapshot's record names the file that holds its data.
    pub(super) fn of(job: &LogJob, snapshot: Option<SnapshotRecord>) -> Self {
        Self {
            group: job.group,
            snapshot,
            replaces_log: job.replaces_log && job.snapshot.is_some(),
            compacted: job.compacted,
            span: None,
            moved: false,
            hard_state: job.hard_state.clone(),
            identity: job.identity,
            removes_group: job.removes_group,
        }
    }

    /// Appends the job to a record and notes which entries it has.
    ///
    /// # Errors
    /// Entries that are not consecutive, or too large for the format.
    pub(super) fn encode(&mut self, entries: &[Entry], out: &mut Vec<u8>) -> Result<(), String> {
        out.extend(self.group.0.to_le_bytes());
        out.extend(self.flags(!entries.is_empty()).to_le_bytes());
        if let Some(snapshot) = &self.snapshot {
            out.extend((snapshot.encoded_len() as u32).to_le_bytes());
            out.extend(snapshot.encode_to_vec());
        }
        if let Some((index, term)) = self.compacted {
            out.extend(index.to_le_bytes());
            out.extend(term.to_le_bytes());
        }
        if let Some(first) = entries.first() {
            self.span = Some(encode_entries(first.index, entries, out)?);
        }
        if let Some(state) = &self.hard_state {
            for number in [state.term, state.vote, state.commit] {
                out.extend(number.to_le_bytes());
            }
        }
        if let Some(identity) = &self.identity {
            out.extend(identity.node.to_le_bytes());
            out.extend(identity.incarnation.to_le_bytes());
        }
        Ok(())
    }

    /// The last compacted index and the index of the next entry, once the job's snapshot and compaction have taken effect.
    pub(super) fn bounds_after(&self, mut compacted: u64, mut next: u64) -> (u64, u64) {
        if self.removes_group {
            (compacted, next) = (0, 1);
        }
        if let Some(snapshot) = self.snapshot.as_ref().filter(|_| self.replaces_log) {
            compacted = snapshot.position().0;
            next = compacted + 1;
        }
        if let Some((index, _)) = self.compacted {
            compacted = compacted.max(index);
            next = next.max(compacted + 1);
        }
        (compacted, next)
    }

    fn flags(&self, has_entries: bool) -> u32 {
        let flags = [
            (self.snapshot.is_some(), SNAPSHOT),
            (self.replaces_log, REPLACES_LOG),
            (self.compacted.is_some(), COMPACTED),
            (has_entries, ENTRIES),
            (self.hard_state.is_some(), HARD_STATE),
            (self.identity.is_some(), IDENTITY),
            (self.moved, MOVED),
            (self.removes_group, REMOVES_GROUP),
        ];
        let set = flags.into_iter().filter(|(is_set, _)| *is_set);
        set.fold(0, |flags, (_, flag)| flags | flag)
    }
}

fn encode_entries(first: u64, entries: &[Entry], out: &mut Vec<u8>) -> Result<Span, String> {
    out.extend(first.to_le_bytes());
    out.extend((entries.len() as u32).to_le_bytes());
    let length_at = out.len();
    out.extend([0; 4]);
    let mut longest = 0;
    for (due, entry) in (first..).zip(entries) {
        if entry.index != due {
            return Err(format!(
                "a job has the entry {} in the place of {due}: give entries in order, without gaps",
                entry.index
            ));
        }
        let (data, context) = (entry.data.len(), entry.context.len());
        if data.max(context) > u32::MAX as usize {
            return Err(format!("the entry {due} has more than 4 GiB: split it"));
        }
        longest = longest.max(data.saturating_add(context));
        let mut header = [0; ENTRY_HEADER_BYTES];
        header[..8].copy_from_slice(&entry.term.to_le_bytes());
        header[8..12].copy_from_slice(&(data as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(context as u32).to_le_bytes());
        header[16] = entry.entry_type as u8;
        header[17] = u8::from(entry.sync_log);
        out.extend(header);
        out.extend_from_slice(&entry.data);
        out.extend_from_slice(&entry.context);
    }
    let bytes = out.len() - length_at - 4;
    let length = u32::try_from(bytes).map_err(|_| "a job has more than 4 GiB: split it")?;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    Ok(Span {
        first,
        count: entries.len() as u64,
        bytes: bytes as u64,
        term: one_term(entries.iter().map(|entry| entry.term)),
        longest: u32::try_from(longest).unwrap_or(u32::MAX),
    })
}

/// The term, if all are the same.
fn one_term(mut terms: impl Iterator<Item = u64>) -> Option<u64> {
    let first = terms.next()?;
    terms.all(|term| term == first).then_some(first)
}

/// What the index keeps of entries in a record. `None` if the bytes are not the entries that are announced.
fn scan_entries(first: u64, count: u32, bytes: &[u8]) -> Option<Span> {
    let (mut at, mut longest) = (0_usize, 0_usize);
    let mut term = None;
    for place in 0..count {
        let header = bytes.get(at..)?.get(..ENTRY_HEADER_BYTES)?;
        let data = u32_at(header, 8)? as usize;
        let payload = data.checked_add(u32_at(header, 12)? as usize)?;
        let its = u64_at(header, 0)?;
        term = if place == 0 {
            Some(its)
        } else {
            term.filter(|term| *term == its)
        };
        longest = longest.max(payload);
        at = at.checked_add(ENTRY_HEADER_BYTES)?.checked_add(payload)?;
    }
    (at == bytes.len()).then(|| Span {
        first,
        count: u64::from(count),
        bytes: bytes.len() as u64,
        term,
        longest: u32::try_from(longest).unwrap_or(u32::MAX),
    })
}

/// A job within a record.
#[derive(Clone, Debug)]
pub(super) struct Stored<'a> {
    pub(super) change: Change,
    /// The bytes of the entries.
    pub(super) entries: &'a [u8],
}

/// Reads the jobs of a record's payload. `None` if it is no list of jobs, which a sound record always is.
pub(super) fn decode(payload: &[u8]) -> Option<Vec<Stored<'_>>> {
    let mut reader = Reader(payload);
    let mut jobs = Vec::new();
    while !reader.0.is_empty() {
        jobs.push(decode_job(&mut reader)?);
    }
    Some(jobs)
}

fn decode_job<'a>(reader: &mut Reader<'a>) -> Option<Stored<'a>> {
    let mut change = Change {
        group: GroupId(reader.u64()?),
        ..Change::default()
    };
    let mut entries: &[u8] = &[];
    let flags = reader.u32()?;
    if flags & !ALL != 0 {
        return None;
    }
    change.replaces_log = flags & REPLACES_LOG != 0;
    change.moved = flags & MOVED != 0;
    change.removes_group = flags & REMOVES_GROUP != 0;
    if flags & SNAPSHOT != 0 {
        let len = reader.u32()? as usize;
        change.snapshot = Some(SnapshotRecord::decode(reader.part(len)?).ok()?);
    }
    if flags & COMPACTED != 0 {
        change.compacted = Some((reader.u64()?, reader.u64()?));
    }
    if flags & ENTRIES != 0 {
        let (first, count, len) = (reader.u64()?, reader.u32()?, reader.u32()?);
        entries = reader.part(len as usize)?;
        // No overflow of what follows the last index.
        first.checked_add(u64::from(count))?;
        if count > 0 {
            change.span = Some(scan_entries(first, count, entries)?);
        }
    }
    if flags & HARD_STATE != 0 {
        change.hard_state = Some(HardState {
            term: reader.u64()?,
            vote: reader.u64()?,
            commit: reader.u64()?,
            ..Default::default()
        });
    }
    if flags & IDENTITY != 0 {
        change.identity = Some(Identity {
            node: reader.u64()?,
            incarnation: reader.u64()?,
        });
    }
    Some(Stored { change, entries })
}

/// Entries of a record, copied out of it into one allocation. `None` if the bytes are not the entries that are announced.
pub(super) fn read_entries(span: Span, bytes: &[u8]) -> Option<Vec<Entry>> {
    let memory = Bytes::copy_from_slice(bytes);
    let mut at = 0;
    let mut entries = Vec::with_capacity(
        usize::try_from(span.count)
            .ok()?
            .min(memory.len() / ENTRY_HEADER_BYTES),
    );
    for index in span.first..span.end() {
        let header = memory.get(at..at + ENTRY_HEADER_BYTES)?;
        let data = at + ENTRY_HEADER_BYTES;
        let context = data.checked_add(u32_at(header, 8)? as usize)?;
        let end = context.checked_add(u32_at(header, 12)? as usize)?;
        if end > memory.len() {
            return None;
        }
        entries.push(Entry {
            entry_type: convert::entry_type(i32::from(header[16])).ok()?,
            term: u64_at(header, 0)?,
            index,
            data: memory.slice(data..context),
            context: memory.slice(context..end),
            sync_log: header[17] != 0,
            ..Default::default()
        });
        at = end;
    }
    (at == memory.len()).then_some(entries)
}

#[cfg(test)]
impl Stored<'_> {
    fn entries(&self) -> Option<Vec<Entry>> {
        let span = self.change.span;
        span.map_or(Some(Vec::new()), |span| read_entries(span, self.entries))
    }
}

/// What is left of a payload.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn part(&mut self, len: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(part)
    }

    fn u64(&mut self) -> Option<u64> {
        u64_at(self.part(8)?, 0)
    }

    fn u32(&mut self) -> Option<u32> {
        u32_at(self.part(4)?, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the golden files do not have.
    #[test]
    fn a_moved_job_has_a_flag_of_its_own() {
        let mut change = Change {
            group: GroupId(0x0102),
            moved: true,
            ..Change::default()
        };
        let entry = Entry {
            index: 5,
            term: 6,
            data: b"x"[..].into(),
            ..Entry::default()
        };
        let mut bytes = Vec::new();
        change.encode(&[entry], &mut bytes).expect("it is in order");
        let mut expected = vec![2, 1, 0, 0, 0, 0, 0, 0, 0x48, 0, 0, 0];
        expected.extend([5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 21, 0, 0, 0]);
        expected.extend([
            6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'x',
        ]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_removal_has_a_flag_and_nothing_else() {
        let job = LogJob {
            group: GroupId(0x0102),
            removes_group: true,
            ..LogJob::default()
        };
        let mut bytes = Vec::new();
        let encoded = Change::of(&job, None).encode(&[], &mut bytes);
        encoded.expect("there is nothing that could be wrong");
        assert_eq!(bytes, [2, 1, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0]);
    }

    fn changes() -> impl Strategy<Value = (Change, Vec<Entry>)> {
        let pair = (any::<u64>(), any::<u64>());
        let state = prop::option::of((any::<u64>(), any::<u64>(), any::<u64>()));
        let payloads = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5);
        let options = (
            prop::option::of(pair),
            prop::option::of(1..99_u64),
            any::<bool>(),
        );
        (any::<u64>(), options, state, payloads, 0..u64::MAX / 2).prop_map(
            |(group, (compacted, number, moved), state, payloads, first)| {
                let entry = |(index, data): (u64, Vec<u8>)| Entry {
                    index,
                    term: group,
                    context: data.iter().rev().copied().take(3).collect(),
                    data: data.into(),
                    sync_log: moved,
                    ..Entry::default()
                };
                let change = Change {
                    group: GroupId(group),
                    snapshot: number.map(|number| SnapshotRecord {
                        number,
                        ..SnapshotRecord::default()
                    }),
                    replaces_log: number.is_some_and(|number| number > 50),
                    compacted,
                    moved,
                    hard_state: state.map(|(term, vote, commit)| HardState {
                        term,
                        vote,
                        commit,
                        ..HardState::default()
                    }),
                    identity: compacted.map(|(node, incarnation)| Identity { node, incarnation }),
                    removes_group: number.is_some_and(|number| number % 8 == 0),
                    ..Change::default()
                };
                let entries = (first..).zip(payloads).map(entry).collect();
                (change, entries)
            },
        )
    }

    proptest! {
        #[test]
        fn jobs_are_read_as_written(jobs in prop::collection::vec(changes(), 0..4), cut in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let (mut payload, mut expected) = (Vec::new(), Vec::new());
            for (mut change, entries) in jobs {
                change.encode(&entries, &mut payload).expect("in order");
                expected.push((change, entries));
            }
            let read = decode(&payload).expect("it was written");
            prop_assert_eq!(read.len(), expected.len());
            for (job, (change, entries)) in read.iter().zip(expected) {
                prop_assert_eq!(&job.change, &change);
                prop_assert_eq!(job.entries(), Some(entries));
            }
            // Checksums keep damage away; what gets here all the same does not panic.
            let place = cut.index(payload.len() + 1);
            if let Some(byte) = payload.get_mut(place) {
                *byte ^= 1 << bit;
            }
            for job in decode(&payload).unwrap_or_default() {
                let _ = job.entries();
            }
            let cut = cut.index(payload.len() + 1);
            for job in decode(&payload[..cut]).unwrap_or_default() {
                let _ = job.entries();
            }
        }
    }
}
