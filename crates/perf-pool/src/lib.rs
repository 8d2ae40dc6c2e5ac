//! Byte buffers and objects, reused without locks.
