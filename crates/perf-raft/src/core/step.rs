//! Proposals that wait together: one step of Raft with few entries.
//!
//! An entry costs Raft, the codec, the log and the state machine's thread much the same whatever it holds, so short commands share one. The context of
//! such an entry is [`PACKED`]; its data holds the commands, each behind its length in two bytes, little-endian. A command that is alone or long is the
//! data of its entry, without a copy.

use crate::primitive::mutant;
use crate::state_machine::Command;
use bytes::Bytes;
use raft::eraftpb::Entry;

/// The context of an entry that holds several commands: the version of their format.
const PACKED: &[u8] = &[1];
/// Longer commands have entries of their own: to copy them would cost more than it saves.
const SHARING_BYTES_MAX: usize = 4096;
/// Commands of one entry: what a reader must have memory for.
const COMMANDS_MAX: usize = 16 * 1024;
const LENGTH_BYTES: usize = size_of::<u16>();

/// Gathers the proposals of one step.
#[derive(Debug)]
pub(super) struct Step<T> {
    step_bytes_max: usize,
    entry_bytes_max: usize,
    /// Bytes of the commands that are still to come.
    expected_bytes: usize,
    bytes: usize,
    entries: Vec<Entry>,
    filling: Filling,
    /// With the place of their entries in the step.
    tokens: Vec<(usize, T)>,
}

/// The entry that is being filled.
#[derive(Debug, Default)]
struct Filling {
    commands: usize,
    first: Bytes,
    packed: Vec<u8>,
}

impl<T> Step<T> {
    /// For `commands` of `expected_bytes` together. A step has up to `step_bytes_max` bytes of commands, an entry with several up to
    /// `entry_bytes_max`; one command of any size always fits.
    pub(super) fn new(
        step_bytes_max: usize,
        entry_bytes_max: usize,
        commands: usize,
        expected_bytes: usize,
    ) -> Self {
        Self {
            step_bytes_max,
            entry_bytes_max: entry_bytes_max.min(step_bytes_max),
            expected_bytes,
            bytes: 0,
            entries: Vec::new(),
            filling: Filling::default(),
            tokens: Vec::with_capacity(commands),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a command of so many bytes still fits.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        self.tokens.is_empty() || self.bytes.saturating_add(bytes) <= self.step_bytes_max
    }

    pub(super) fn push(&mut self, data: Bytes, token: T) {
        let packed_bytes = self
            .filling
            .packed_bytes()
            .saturating_add(LENGTH_BYTES + data.len());
        let shares = data.len() <= SHARING_BYTES_MAX
            && packed_bytes <= self.entry_bytes_max
            && self.filling.commands < COMMANDS_MAX;
        if !shares {
            self.finish_entry();
        }
        let data_bytes = data.len();
        self.tokens.push((self.entries.len(), token));
        let expected_bytes = self.filling.packed_bytes()
            + self.expected_bytes
            + LENGTH_BYTES * (self.tokens.capacity() + 1 - self.tokens.len());
        self.filling
            .push(data, expected_bytes.min(self.entry_bytes_max));
        if data_bytes > SHARING_BYTES_MAX {
            self.finish_entry();
        }
        self.bytes += data_bytes;
        self.expected_bytes = self.expected_bytes.saturating_sub(data_bytes);
    }

    /// The entries, and for each command the place of its entry among them. The step is empty afterwards.
    pub(super) fn take(&mut self) -> (Vec<Entry>, impl ExactSizeIterator<Item = (usize, T)>) {
        self.finish_entry();
        self.bytes = 0;
        (std::mem::take(&mut self.entries), self.tokens.drain(..))
    }

    fn finish_entry(&mut self) {
        if self.filling.commands > 0 {
            self.entries
                .push(std::mem::take(&mut self.filling).into_entry());
        }
    }
}

impl Filling {
    /// What its commands take in an entry that they share.
    fn packed_bytes(&self) -> usize {
        match self.commands {
            0 => 0,
            1 => LENGTH_BYTES + self.first.len(),
            _ => self.packed.len(),
        }
    }

    fn push(&mut self, data: Bytes, expected_bytes: usize) {
        match self.commands {
            0 => self.first = data,
            1 => {
                let first = std::mem::take(&mut self.first);
                // Its exact size if all that is expected shares this entry: then nothing is moved, and `Bytes` takes the memory as it is.
                self.packed.reserve_exact(expected_bytes);
                self.pack(&first);
                self.pack(&data);
            }
            _ => self.pack(&data),
        }
        self.commands += 1;
    }

    fn pack(&mut self, data: &[u8]) {
        let length = data.len() as u16;
        self.packed.extend_from_slice(&length.to_le_bytes());
        self.packed.extend_from_slice(data);
    }

    fn into_entry(self) -> Entry {
        let (data, context) = match self.commands {
            1 => (self.first, Bytes::new()),
            _ => (self.packed.into(), Bytes::from_static(PACKED)),
        };
        Entry {
            data,
            context,
            ..Default::default()
        }
    }
}

/// What is wrong with an entry whose commands cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// The commands of an entry as places in its data, without looking at more than their lengths.
fn lengths(data: &[u8]) -> impl Iterator<Item = Result<(usize, usize), Unreadable>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = data.get(at..).filter(|rest| !rest.is_empty())?;
        let command = rest
            .first_chunk()
            .map(|length| usize::from(u16::from_le_bytes(*length)));
        let end = command.map(|length| (at + LENGTH_BYTES, at + LENGTH_BYTES + length));
        let sound = end.filter(|(start, end)| start < end && *end <= data.len());
        // After an error the end.
        at = sound.map_or(data.len(), |(_, end)| end);
        Some(sound.ok_or(Unreadable))
    })
}

/// Whether [`unpack`] can read the entry.
pub(super) fn is_readable(entry: &Entry) -> bool {
    match entry.context.as_ref() {
        [] => true,
        PACKED => {
            let mut commands = 0;
            lengths(&entry.data).all(|command| {
                commands += 1;
                command.is_ok() && commands <= COMMANDS_MAX
            })
        }
        _ => false,
    }
}

/// Appends the commands of an entry, which has data, to `commands`.
pub(super) fn unpack(entry: Entry, commands: &mut Vec<Command>) -> Result<(), Unreadable> {
    let (index, term) = (entry.index, entry.term);
    let command = |place, data| Command {
        index,
        place,
        term,
        data,
    };
    match entry.context.as_ref() {
        [] => commands.push(command(0, entry.data)),
        PACKED => {
            let first = commands.len();
            for (place, bounds) in (0..).zip(lengths(&entry.data)) {
                let (start, end) = bounds?;
                commands.push(command(place, entry.data.slice(start..end)));
            }
            if mutant::is("pack_out_of_order") {
                commands[first..].reverse();
            }
        }
        _ => return Err(Unreadable),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn commands_of(entries: Vec<Entry>) -> Vec<(u64, u32, Bytes)> {
        let mut commands = Vec::new();
        for (index, mut entry) in (1..).zip(entries) {
            entry.index = index;
            assert!(is_readable(&entry));
            unpack(entry, &mut commands).expect("it was packed here");
        }
        let parts = |command: Command| (command.index, command.place, command.data);
        commands.into_iter().map(parts).collect()
    }

    proptest! {
        #[test]
        fn commands_come_back_in_their_order(
            lens in prop::collection::vec(1_usize..6000, 1..40),
            step_bytes_max in 0_usize..60_000,
            entry_bytes_max in 0_usize..20_000,
        ) {
            let data: Vec<Bytes> = (0..).zip(&lens).map(|(at, len): (u8, _)| vec![at; *len].into()).collect();
            let mut step = Step::new(step_bytes_max, entry_bytes_max, data.len(), lens.iter().sum());
            let mut found = Vec::new();
            for (number, command) in data.iter().enumerate() {
                if !step.takes(command.len()) {
                    found.push(step.take_all());
                }
                step.push(command.clone(), number);
            }
            found.push(step.take_all());
            let mut number = 0;
            for (entries, tokens) in found {
                let total: usize = tokens.iter().map(|(_, number)| data[*number].len()).sum();
                prop_assert!(tokens.len() == 1 || total <= step_bytes_max);
                for entry in entries.iter().filter(|entry| !entry.context.is_empty()) {
                    prop_assert!(entry.data.len() <= entry_bytes_max);
                }
                let commands = commands_of(entries);
                prop_assert_eq!(commands.len(), tokens.len());
                prop_assert!(commands.is_sorted_by_key(|(index, place, _)| (*index, *place)));
                for ((index, _, command), (place, token)) in commands.into_iter().zip(tokens) {
                    prop_assert_eq!((index, token), (place as u64 + 1, number));
                    prop_assert_eq!(&command, &data[number]);
                    number += 1;
                }
            }
            prop_assert_eq!(number, data.len());
        }

        #[test]
        fn what_is_readable_can_be_unpacked(data in prop::collection::vec(0_u8..4, 1..40)) {
            let entry = Entry {
                data: data.into(),
                context: Bytes::from_static(PACKED),
                ..Default::default()
            };
            prop_assert_eq!(is_readable(&entry), unpack(entry, &mut Vec::new()).is_ok());
        }
    }

    impl<T> Step<T> {
        fn take_all(&mut self) -> (Vec<Entry>, Vec<(usize, T)>) {
            let (entries, tokens) = self.take();
            let tokens = tokens.collect();
            (entries, tokens)
        }
    }

    #[test]
    fn an_entry_takes_one_allocation_of_its_size() {
        let mut step = Step::new(100_000, 100_000, 9, 9 * 128);
        for _ in 0..9 {
            step.push(Bytes::from(vec![7; 128]), ());
        }
        let packed = &step.filling.packed;
        assert_eq!((packed.len(), packed.capacity()), (9 * 130, 9 * 130));
    }

    #[test]
    fn what_a_newer_version_packed_is_not_taken_for_a_command() {
        let entry = Entry {
            data: Bytes::from_static(b"??"),
            context: Bytes::from_static(&[2]),
            ..Default::default()
        };
        assert!(!is_readable(&entry));
        assert_eq!(unpack(entry, &mut Vec::new()), Err(Unreadable));
    }

    /// The format is in logs: it must not change under the same version.
    #[test]
    fn the_bytes_of_a_packed_entry_are_these() {
        let mut step = Step::new(1000, 1000, 2, 3);
        step.push(Bytes::from_static(b"a"), ());
        step.push(Bytes::from_static(b"bc"), ());
        let (entries, _) = step.take();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].data, &b"\x01\0a\x02\0bc"[..]);
        assert_eq!(entries[0].context, &b"\x01"[..]);
    }
}
