//! The bytes of a segment, read piece by piece. What is read is checked while it lies in the processor's cache, which takes half the time of reading
//! all of a segment first.

use super::format::{ALIGNMENT, Place, RECORD_HEADER_BYTES, RecordHeader};
use crate::log::disk::{self, Access, Disk, DiskFile};
use std::io;
use std::path::Path;

/// Bytes that are read at a time: so many that calls cost little, so few that they stay in the second-level cache.
const PIECE_BYTES: usize = 256 * 1024;

/// The least that a search looks at: a header, and the place after it, so that each step goes forward.
const STEP_BYTES: usize = RECORD_HEADER_BYTES + ALIGNMENT;

/// A piece of a segment, which moves as it is read.
pub(super) struct Window<'a> {
    file: Box<dyn DiskFile>,
    len: u64,
    /// Bytes from here on are taken for zeros.
    cut: u64,
    /// Memory for the piece, used for one segment after the other.
    buffer: &'a mut Vec<u8>,
    /// Where the piece begins, and how many bytes it has.
    start: u64,
    held: usize,
}

impl<'a> Window<'a> {
    /// Opens a segment. From `cut` on it is taken for empty.
    pub(super) fn open(
        disk: &dyn Disk,
        path: &Path,
        cut: Option<u64>,
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<Self> {
        let file = disk.open(path, Access::Read)?;
        Ok(Self {
            len: file.len()?,
            file,
            cut: cut.unwrap_or(u64::MAX),
            buffer,
            start: 0,
            held: 0,
        })
    }

    /// The segment's length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// `len` bytes from `offset` on, fewer if the segment ends before.
    pub(super) fn get(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let all = self.from(offset, len)?;
        Ok(all.get(..len).unwrap_or(all))
    }

    /// The place of the first record from `offset` on whose header is sound and satisfies `wanted`.
    pub(super) fn find(
        &mut self,
        place: Place,
        mut offset: u64,
        wanted: impl Fn(&RecordHeader) -> bool + Copy,
    ) -> io::Result<Option<u64>> {
        loop {
            let end = self.len;
            let piece = self.from(offset, STEP_BYTES)?;
            if let Some(found) = place.find(piece, offset, wanted) {
                return Ok(Some(found));
            }
            let is_last = offset.saturating_add(piece.len() as u64) >= end;
            if is_last || piece.len() < STEP_BYTES {
                return Ok(None);
            }
            // Headers that begin before this are whole in the piece.
            let passed = piece.len() - RECORD_HEADER_BYTES;
            offset += (passed - passed % ALIGNMENT) as u64;
        }
    }

    /// All bytes of the piece from `offset` on: at least `len`, unless the segment ends before.
    fn from(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let begins_here = offset.checked_sub(self.start);
        let place = begins_here.and_then(|place| usize::try_from(place).ok());
        let place = place.filter(|place| *place <= self.held);
        match place {
            Some(place) if self.held - place >= len => return Ok(&self.buffer[place..self.held]),
            // What is there of it stays.
            Some(place) => {
                self.buffer.copy_within(place..self.held, 0);
                self.held -= place;
            }
            None => self.held = 0,
        }
        self.start = offset;
        let wanted = len.max(PIECE_BYTES).min(left);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        let next = offset + self.held as u64;
        let new = &mut self.buffer[self.held..wanted];
        let read = disk::fill(&*self.file, next, new)?;
        let kept = usize::try_from(self.cut.saturating_sub(next)).unwrap_or(usize::MAX);
        if let Some(cut_off) = new.get_mut(kept..) {
            cut_off.fill(0);
        }
        self.held += read;
        Ok(&self.buffer[..self.held])
    }
}
