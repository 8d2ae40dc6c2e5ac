//! How entries get into raft-engine: by this crate's encoder.
//!
//! raft-engine takes whatever writes itself as protobuf. raft's own type does that through a stream, byte by byte: 680 instructions for an
//! entry of 128 bytes. A [`Written`] writes the same bytes at once. They are read as raft's own type again.

use crate::codec;
use protobuf::reflect::MessageDescriptor;
use protobuf::{Clear, CodedInputStream, CodedOutputStream, Message, ProtobufError, UnknownFields};
use raft::eraftpb::Entry;
use raft_engine::MessageExt;
use std::any::Any;
use std::io;
use std::sync::{Arc, LazyLock};

/// To raft-engine, what an entry is.
pub(super) struct WrittenEntries;

impl MessageExt for WrittenEntries {
    type Entry = Written;

    fn index(entry: &Written) -> u64 {
        entry.entry().index
    }
}

/// An entry of a run, to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    run: Arc<Vec<Entry>>,
    place: usize,
    /// raft's entries have none.
    unknown_fields: UnknownFields,
}

impl Written {
    /// All of a run.
    pub(super) fn all(run: &Arc<Vec<Entry>>) -> impl Iterator<Item = Self> {
        (0..run.len()).map(|place| Self {
            run: Arc::clone(run),
            place,
            unknown_fields: UnknownFields::default(),
        })
    }

    fn entry(&self) -> &Entry {
        self.run
            .get(self.place)
            .unwrap_or_else(|| Entry::default_instance())
    }
}

impl PartialEq for Written {
    fn eq(&self, other: &Self) -> bool {
        self.entry() == other.entry()
    }
}

impl Clear for Written {
    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Message for Written {
    fn write_to_vec(&self, bytes: &mut Vec<u8>) -> protobuf::ProtobufResult<()> {
        codec::encode_entry(self.entry(), bytes);
        Ok(())
    }

    fn write_to_with_cached_sizes(
        &self,
        stream: &mut CodedOutputStream<'_>,
    ) -> protobuf::ProtobufResult<()> {
        self.entry().write_to_with_cached_sizes(stream)
    }

    fn compute_size(&self) -> u32 {
        self.entry().compute_size()
    }

    fn get_cached_size(&self) -> u32 {
        self.entry().get_cached_size()
    }

    fn merge_from(&mut self, _: &mut CodedInputStream<'_>) -> protobuf::ProtobufResult<()> {
        let reason = "entries are read as raft's own type";
        Err(ProtobufError::IoError(io::Error::other(reason)))
    }

    fn is_initialized(&self) -> bool {
        true
    }

    fn descriptor(&self) -> &'static MessageDescriptor {
        self.entry().descriptor()
    }

    fn get_unknown_fields(&self) -> &UnknownFields {
        &self.unknown_fields
    }

    fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
        &mut self.unknown_fields
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn new() -> Self {
        Self::default()
    }

    fn default_instance() -> &'static Self {
        static DEFAULT: LazyLock<Written> = LazyLock::new(Written::default);
        &DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_writes_what_raft_writes(fields in prop::collection::vec((0..3_usize, any::<[u64; 2]>(), prop::collection::vec(any::<u8>(), 0..300), any::<bool>()), 1..5)) {
            use raft::eraftpb::EntryType as T;
            let run: Vec<Entry> = fields.into_iter().map(|(kind, [index, term], data, sync_log)| Entry {
                entry_type: [T::EntryNormal, T::EntryConfChange, T::EntryConfChangeV2][kind],
                index,
                term: term >> (index % 64),
                context: data.iter().copied().take(index as usize % 5).collect(),
                data: data.into(),
                sync_log,
                ..Default::default()
            }).collect();
            let run = Arc::new(run);
            for (written, entry) in Written::all(&run).zip(run.iter()) {
                let (mut ours, mut theirs) = (vec![1], vec![1]);
                written.write_to_vec(&mut ours)?;
                entry.write_to_vec(&mut theirs)?;
                prop_assert_eq!(ours, theirs);
                prop_assert_eq!(WrittenEntries::index(&written), entry.index);
                prop_assert_eq!(written.compute_size(), entry.compute_size());
            }
        }
    }
}
