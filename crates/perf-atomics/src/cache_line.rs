//! Keeping what different threads write on different cache lines.

/// The distance in bytes at which two writers stop slowing each other down.
///
/// 128 and not 64: current x86-64 cores fetch cache lines in pairs (Intel 64 and IA-32
/// Architectures Optimization Reference Manual, "Spatial Prefetcher") and many aarch64 cores have
/// 128-byte lines.
pub(crate) const LINE_BYTES: usize = 128;

/// A value that shares its cache line with nothing else.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct CacheLine<T>(pub(crate) T);

const _: () = assert!(align_of::<CacheLine<u8>>() == LINE_BYTES);
