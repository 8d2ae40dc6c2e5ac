//! Writes protobuf's fields.
//!
//! Small fields are gathered first, so that the buffer is asked for room once for many of them: a `BufMut` checks, and may grow, at each byte.

use bytes::BufMut;

/// Wire types of protobuf: <https://protobuf.dev/programming-guides/encoding/#structure>.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// What is gathered at most: all that an entry has before its payload.
const GATHERED_MAX: usize = 64;
/// Seven of 64 bits in each byte.
const VARINT_BYTES_MAX: usize = 10;

/// Whatever is still gathered is written when it is dropped.
pub(super) struct Writer<'a, B: BufMut> {
    buf: &'a mut B,
    gathered: [u8; GATHERED_MAX],
    len: usize,
}

impl<'a, B: BufMut> Writer<'a, B> {
    #[inline]
    pub(super) fn new(buf: &'a mut B) -> Self {
        Self {
            buf,
            gathered: [0; GATHERED_MAX],
            len: 0,
        }
    }

    /// A field that is left out when it is zero.
    #[inline]
    pub(super) fn uint(&mut self, tag: u64, value: u64) {
        if value != 0 {
            self.uint_always(tag, value);
        }
    }

    #[inline]
    pub(super) fn uint_always(&mut self, tag: u64, value: u64) {
        self.varint((tag << 3) | VARINT);
        self.varint(value);
    }

    #[inline]
    pub(super) fn bool(&mut self, tag: u64, value: bool) {
        self.uint(tag, u64::from(value));
    }

    pub(super) fn fixed64(&mut self, tag: u64, value: u64) {
        if value != 0 {
            self.varint((tag << 3) | FIXED64);
            if self.len > GATHERED_MAX - size_of::<u64>() {
                self.flush();
            }
            let end = self.len + size_of::<u64>();
            self.gathered[self.len..end].copy_from_slice(&value.to_le_bytes());
            self.len = end;
        }
    }

    /// What is encoded already.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.flush();
        self.buf.put_slice(bytes);
    }

    pub(super) fn fixed32(&mut self, tag: u64, value: u32) {
        if value != 0 {
            self.varint((tag << 3) | FIXED32);
            self.flush();
            self.buf.put_u32_le(value);
        }
    }

    /// What stands before `len` bytes, be they a payload or a message.
    #[inline]
    pub(super) fn header(&mut self, tag: u64, len: usize) {
        self.varint((tag << 3) | LENGTH_DELIMITED);
        self.varint(len as u64);
    }

    /// A payload, copied once. Left out when it is empty.
    #[inline]
    pub(super) fn bytes(&mut self, tag: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.header(tag, bytes.len());
            self.flush();
            self.buf.put_slice(bytes);
        }
    }

    #[inline]
    fn varint(&mut self, mut value: u64) {
        if self.len > GATHERED_MAX - VARINT_BYTES_MAX {
            self.flush();
        }
        // There is room: the remainders only spare the checks.
        let mut at = self.len;
        while value >= 0x80 {
            self.gathered[at % GATHERED_MAX] = value as u8 | 0x80;
            value >>= 7;
            at += 1;
        }
        self.gathered[at % GATHERED_MAX] = value as u8;
        self.len = at + 1;
    }

    #[inline]
    fn flush(&mut self) {
        let len = std::mem::take(&mut self.len);
        self.buf.put_slice(&self.gathered[..len.min(GATHERED_MAX)]);
    }
}

impl<B: BufMut> Drop for Writer<'_, B> {
    #[inline]
    fn drop(&mut self) {
        if self.len > 0 {
            self.flush();
        }
    }
}
