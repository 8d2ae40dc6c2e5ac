//! A file system for raft-engine that fails on demand.

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// fsync says no.
    Sync,
    /// Nothing fits any more.
    Full,
    /// Half of a write gets through, then an error.
    TornWrite,
}

#[derive(Debug)]
pub(crate) struct Faults {
    fault: Mutex<Fault>,
    syncs: AtomicU64,
}

impl Faults {
    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().expect("no panic under it") = fault;
    }

    fn get(&self) -> Fault {
        *self.fault.lock().expect("no panic under it")
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }
}

pub(crate) struct FaultyFileSystem {
    faults: Arc<Faults>,
}

impl FaultyFileSystem {
    pub(crate) fn new() -> (Arc<Self>, Arc<Faults>) {
        let faults = Arc::new(Faults {
            fault: Mutex::new(Fault::None),
            syncs: AtomicU64::new(0),
        });
        let system = Arc::new(Self {
            faults: Arc::clone(&faults),
        });
        (system, faults)
    }
}

pub(crate) struct FaultyHandle {
    inner: Arc<<DefaultFileSystem as FileSystem>::Handle>,
    faults: Arc<Faults>,
}

pub(crate) struct FaultyWriter {
    inner: <DefaultFileSystem as FileSystem>::Writer,
    faults: Arc<Faults>,
}

impl FileSystem for FaultyFileSystem {
    type Handle = FaultyHandle;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = FaultyWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<FaultyHandle> {
        Ok(FaultyHandle {
            inner: Arc::new(DefaultFileSystem.create(path)?),
            faults: Arc::clone(&self.faults),
        })
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<FaultyHandle> {
        Ok(FaultyHandle {
            inner: Arc::new(DefaultFileSystem.open(path, permission)?),
            faults: Arc::clone(&self.faults),
        })
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<FaultyHandle>) -> io::Result<Self::Reader> {
        DefaultFileSystem.new_reader(Arc::clone(&handle.inner))
    }

    fn new_writer(&self, handle: Arc<FaultyHandle>) -> io::Result<FaultyWriter> {
        Ok(FaultyWriter {
            inner: DefaultFileSystem.new_writer(Arc::clone(&handle.inner))?,
            faults: Arc::clone(&self.faults),
        })
    }
}

impl Handle for FaultyHandle {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        if self.faults.get() == Fault::Sync {
            return Err(io::Error::other("simulated: the disk does not confirm"));
        }
        self.inner.sync()
    }
}

impl Write for FaultyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.faults.get() {
            Fault::Full => Err(io::Error::other("simulated: no space left")),
            Fault::TornWrite => {
                self.inner.write_all(&bytes[..bytes.len() / 2])?;
                Err(io::Error::other("simulated: the disk went away"))
            }
            Fault::None | Fault::Sync => self.inner.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Read for FaultyWriter {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.inner.read(bytes)
    }
}

impl Seek for FaultyWriter {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

impl WriteExt for FaultyWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.inner.allocate(offset, size)
    }
}
