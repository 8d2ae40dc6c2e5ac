//! Version 1 of the format: what the bytes of a segment are. `docs/design/perf-raft.md` has the picture.
//!
//! All numbers are little-endian. A segment begins with a header in a sector of its own; records follow, each at a multiple of
//! [`ALIGNMENT`]. A record's checksum covers the log's id, the segment's number and the record's offset too, so that bytes of a recycled
//! file, of another log or from another place never pass for a record here.

/// The newest version that this code reads, and the one it writes.
pub(super) const VERSION: u32 = 1;

/// Where the records of a segment begin. The header's sector is written once, before the segment gets its name.
pub(super) const RECORDS_START: u64 = 512;

/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = 32;

/// Records begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

/// Room that a segment keeps for its seal.
pub(super) const SEAL_BYTES: u64 = RECORD_HEADER_BYTES as u64;

const MAGIC: &[u8; 8] = b"PERFRLOG";
const HEADER_BYTES: usize = 64;
const CRC_AT: usize = HEADER_BYTES - 4;
const HEADER_CRC_AT: usize = RECORD_HEADER_BYTES - 4;
const PAGE_BYTES: usize = 4096;
static ZEROS: [u8; PAGE_BYTES + RECORD_HEADER_BYTES] = [0; PAGE_BYTES + RECORD_HEADER_BYTES];
const CUT_OFF: &str = "a record is cut off";

/// The beginning of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// A random number that all segments of a folder share.
    pub(super) log: u64,
    /// The segment's number; a folder never uses one twice.
    pub(super) number: u64,
    /// The lowest segment that was needed when this one was made.
    pub(super) first: u64,
    /// The file's length in bytes.
    pub(super) capacity: u64,
    /// The number of the first record.
    pub(super) batch: u64,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// They are damaged.
    Unsound,
    /// They are of a version that this code does not know.
    Version(u32),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let numbers = [self.log, self.number, self.first, self.capacity, self.batch];
        for (place, number) in bytes[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Magic, version and checksum keep their places in every version.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(HeaderFault::Unsound)?;
        let crc = u32_at(bytes, CRC_AT).ok_or(HeaderFault::Unsound)?;
        if bytes[..8] != *MAGIC || crc32c::crc32c(&bytes[..CRC_AT]) != crc {
            return Err(HeaderFault::Unsound);
        }
        let version = u32_at(bytes, 8).ok_or(HeaderFault::Unsound)?;
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        let number = |place: usize| u64_at(bytes, 16 + 8 * place).ok_or(HeaderFault::Unsound);
        Ok(Self {
            log: number(0)?,
            number: number(1)?,
            first: number(2)?,
            capacity: number(3)?,
            batch: number(4)?,
        })
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Jobs, of one call of `write`.
    Jobs = 1,
    /// The segment ends here; the next one goes on.
    Seal = 2,
}

/// Where records are: what their checksums cover beside their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) log: u64,
    pub(super) number: u64,
}

/// A record's header, sound by its own checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    crc: u32,
    pub(super) payload_bytes: usize,
    /// Up to which offset of its segment the log was durable when the record was written.
    pub(super) durable: u64,
    /// Counts the records of the log.
    pub(super) batch: u64,
    pub(super) kind: Kind,
}

/// A sound record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) header: RecordHeader,
    pub(super) payload: &'a [u8],
}

impl Record<'_> {
    /// Bytes that it takes in its segment.
    pub(super) fn len(&self) -> u64 {
        record_len(self.payload.len()) as u64
    }
}

/// Bytes that a record with such a payload takes.
pub(super) fn record_len(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(ALIGNMENT)
}

/// Room for the header of a record whose payload follows; see [`Place::finish`].
pub(super) fn begin_record(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(RECORD_HEADER_BYTES, 0);
}

impl Place {
    fn seed(self, offset: u64) -> u32 {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.log.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..].copy_from_slice(&offset.to_le_bytes());
        crc32c::crc32c(&bytes)
    }

    /// Completes a record that [`begin_record`] began: fills in the header and pads it. The payload has less than 4 GiB.
    pub(super) fn finish(
        self,
        buffer: &mut Vec<u8>,
        offset: u64,
        durable: u64,
        batch: u64,
        kind: Kind,
    ) {
        let payload_bytes = (buffer.len() - RECORD_HEADER_BYTES) as u32;
        buffer[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
        buffer[8..16].copy_from_slice(&durable.to_le_bytes());
        buffer[16..24].copy_from_slice(&batch.to_le_bytes());
        buffer[24..28].copy_from_slice(&(kind as u32).to_le_bytes());
        let seed = self.seed(offset);
        let header_crc = crc32c::crc32c_append(seed, &buffer[4..HEADER_CRC_AT]);
        buffer[HEADER_CRC_AT..RECORD_HEADER_BYTES].copy_from_slice(&header_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &buffer[4..]);
        buffer[..4].copy_from_slice(&crc.to_le_bytes());
        buffer.resize(buffer.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// The header of the record at the start of `bytes`, which are those of the segment from `offset` on.
    ///
    /// It has a checksum of its own, so that a search for records has one cost for any bytes, and so that a record whose payload is torn
    /// still tells what was durable before it.
    pub(super) fn header(self, bytes: &[u8], offset: u64) -> Result<RecordHeader, &'static str> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk().ok_or(CUT_OFF)?;
        let number = |at: usize| u64_at(bytes, at).ok_or(CUT_OFF);
        let short = |at: usize| u32_at(bytes, at).ok_or(CUT_OFF);
        let kind = match short(24)? {
            1 => Kind::Jobs,
            2 => Kind::Seal,
            _ => return Err("no record begins here"),
        };
        let header_crc = crc32c::crc32c_append(self.seed(offset), &bytes[4..HEADER_CRC_AT]);
        let durable = number(8)?;
        if short(HEADER_CRC_AT)? != header_crc || durable < RECORDS_START || durable > offset {
            return Err("the checksum of a record's header is wrong");
        }
        Ok(RecordHeader {
            crc: short(0)?,
            payload_bytes: short(4)? as usize,
            durable,
            batch: number(16)?,
            kind,
        })
    }

    /// The record at the start of `bytes`, which are those of the segment from `offset` on; else what is wrong.
    pub(super) fn read(self, bytes: &[u8], offset: u64) -> Result<Record<'_>, &'static str> {
        let header = self.header(bytes, offset)?;
        let record = bytes.get(..RECORD_HEADER_BYTES + header.payload_bytes);
        let record = record.ok_or(CUT_OFF)?;
        if crc32c::crc32c_append(self.seed(offset), &record[4..]) != header.crc {
            return Err("the checksum of a record is wrong");
        }
        Ok(Record {
            header,
            payload: &record[RECORD_HEADER_BYTES..],
        })
    }

    /// The place in the segment of the first record whose header is sound and satisfies `wanted`. `bytes` are those of the segment from `offset` on.
    pub(super) fn find(
        self,
        bytes: &[u8],
        offset: u64,
        wanted: impl Fn(&RecordHeader) -> bool,
    ) -> Option<u64> {
        let aligned = offset.next_multiple_of(ALIGNMENT as u64);
        let mut place = (aligned - offset) as usize;
        while place < bytes.len() {
            // Most of a segment that is being filled is zeros.
            let end = place + PAGE_BYTES + RECORD_HEADER_BYTES;
            if bytes.get(place..end) == Some(&ZEROS[..]) {
                place += PAGE_BYTES;
                continue;
            }
            let at = offset + place as u64;
            let header = self.header(&bytes[place..], at);
            if header.is_ok_and(|header| wanted(&header)) {
                return Some(at);
            }
            place += ALIGNMENT;
        }
        None
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let number = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*number))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let number = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*number))
}
