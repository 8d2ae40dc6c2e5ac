//! The bytes of a message, wherever they lie.

use bytes::Bytes;

/// The bytes of a message: borrowed, shared, or both.
///
/// | | what sending it costs |
/// |---|---|
/// | `Borrowed` | one copy into the connection's buffer (into a pooled buffer from 4 KiB on) |
/// | `Shared` | one copy up to 1 KiB; above that a reference count, and a slice of the vectored write |
/// | `Parts` | the same for each piece: a header that was just encoded, then entries that stay where they are |
///
/// ```
/// use bytes::Bytes;
/// use perf_transport::Payload;
///
/// let entries = [Bytes::from(vec![1; 4096]), Bytes::from(vec![2; 4096])];
/// let payload = Payload::Parts { head: b"term 7", parts: &entries };
/// assert_eq!(payload.len(), 6 + 2 * 4096);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Payload<'a> {
    /// Bytes that are copied while sending.
    Borrowed(&'a [u8]),
    /// Bytes that are shared until they are written.
    Shared(Bytes),
    /// `head`, then every one of `parts`: one message for the receiver.
    Parts {
        /// Copied.
        head: &'a [u8],
        /// Shared where they are larger than 1 KiB.
        parts: &'a [Bytes],
    },
}

impl Payload<'_> {
    /// Bytes in all.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Borrowed(bytes) => bytes.len(),
            Self::Shared(bytes) => bytes.len(),
            Self::Parts { head, parts } => head.len() + parts.iter().map(Bytes::len).sum::<usize>(),
        }
    }

    /// Whether there is no byte.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Payload<'_> {
    fn default() -> Self {
        Self::Borrowed(&[])
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Payload<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl From<Bytes> for Payload<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Shared(bytes)
    }
}

impl From<Vec<u8>> for Payload<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Shared(bytes.into())
    }
}
