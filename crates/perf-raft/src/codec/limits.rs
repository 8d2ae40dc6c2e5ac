//! How much memory a frame may make its reader take, decided before anything is decoded.
//!
//! An entry is two bytes on the wire when it is empty and some two hundred in memory, an id of a membership one byte and
//! eight: without these bounds a frame of 32 MiB would take gigabytes.

use super::CodecError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Entries of one message, sent or received: 16 384. Longer appends are sent as several.
pub const ENTRIES_MAX: usize = 16 * 1024;

/// Bytes of the metadata of one message's snapshot: 64 KiB, a membership of some 3000 nodes with the longest ids.
pub const SNAPSHOT_METADATA_BYTES_MAX: usize = 64 * 1024;

/// No less than a frame takes beside the payload of its one entry.
pub(crate) const ENTRY_ROOM_BYTES: usize = 512;

/// No less than a frame takes beside its part of a snapshot.
pub(crate) const SNAPSHOT_ROOM_BYTES: usize = SNAPSHOT_METADATA_BYTES_MAX + ENTRY_ROOM_BYTES;

const ENTRY: u32 = 7;
const SNAPSHOT: u32 = 9;
const SNAPSHOT_METADATA: u32 = 2;
const FRAME_RAFT: u32 = 6;
const FRAME_CHUNK: u32 = 7;
const CHUNK_MESSAGE: u32 = 1;
const CHUNK_MEMBERS: u32 = 7;
const FRAME_NOTICE: u32 = 11;
const FRAME_BEAT: u32 = 14;

/// What a message or frame holds, over all occurrences of its parts: protobuf adds up those that are repeated.
#[derive(Default)]
struct Counts {
    entries: usize,
    metadata_bytes: usize,
}

impl Counts {
    fn check(&self) -> Result<(), CodecError> {
        check_entries(self.entries)?;
        if self.metadata_bytes > SNAPSHOT_METADATA_BYTES_MAX {
            return Err(CodecError::MetadataTooLarge {
                bytes: self.metadata_bytes,
            });
        }
        Ok(())
    }

    fn message(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        parts(bytes, |tag, part| match tag {
            ENTRY => {
                self.entries += 1;
                Ok(())
            }
            SNAPSHOT => parts(part, |tag, part| {
                if tag == SNAPSHOT_METADATA {
                    self.metadata_bytes += part.len();
                }
                Ok(())
            }),
            _ => Ok(()),
        })
    }
}

pub(super) fn check_entries(entries: usize) -> Result<(), CodecError> {
    if entries > ENTRIES_MAX {
        return Err(CodecError::TooManyEntries { entries });
    }
    Ok(())
}

/// Refuses a message that would take much more memory than its bytes.
pub(super) fn check_message(bytes: &[u8]) -> Result<(), CodecError> {
    let mut counts = Counts::default();
    counts.message(bytes)?;
    counts.check()
}

/// Refuses a frame that would.
pub(super) fn check_frame(bytes: &[u8]) -> Result<(), CodecError> {
    let mut counts = Counts::default();
    parts(bytes, |tag, part| match tag {
        FRAME_RAFT => counts.message(part),
        FRAME_CHUNK => parts(part, |tag, part| match tag {
            CHUNK_MESSAGE => counts.message(part),
            CHUNK_MEMBERS => {
                counts.metadata_bytes += part.len();
                Ok(())
            }
            _ => Ok(()),
        }),
        // Lists of numbers: a byte each may become eight.
        FRAME_NOTICE | FRAME_BEAT => {
            counts.metadata_bytes += part.len();
            Ok(())
        }
        _ => Ok(()),
    })?;
    counts.check()
}

/// Visits the parts that have a length, without decoding what is in them.
fn parts<'a>(
    mut bytes: &'a [u8],
    mut visit: impl FnMut(u32, &'a [u8]) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes)?;
        if wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
            continue;
        }
        let len = decode_varint(&mut bytes)?;
        let part = usize::try_from(len)
            .ok()
            .and_then(|len| bytes.split_at_checked(len));
        let Some((part, rest)) = part else {
            return Err(CodecError::Malformed {
                reason: format!("field {tag} of {len} bytes where {} are left", bytes.len()),
            });
        };
        visit(tag, part)?;
        bytes = rest;
    }
    Ok(())
}
