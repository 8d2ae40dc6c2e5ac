//! A file system for raft-engine that never asks a disk twice.
//!
//! raft-engine panics when fsync fails. Here the failure is noted instead: the write in progress ends without
//! touching the disk again, and `EngineLog` reports it before anything is acknowledged.

use super::LogError;
use super::purged::Purged;
use parking_lot::Mutex;
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The first fsync that failed.
#[derive(Debug, Default)]
pub(super) struct Poison(Mutex<Option<LogError>>);

impl Poison {
    pub(super) fn check(&self) -> Result<(), LogError> {
        match &*self.0.lock() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub(super) fn set(&self, error: LogError) {
        self.0.lock().get_or_insert(error);
    }

    fn check_io(&self) -> io::Result<()> {
        self.check().map_err(io::Error::other)
    }
}

/// Passes everything on to `F` until an fsync fails.
pub(super) struct CheckedFileSystem<F> {
    inner: Arc<F>,
    poison: Arc<Poison>,
    purged: Purged,
}

impl<F> CheckedFileSystem<F> {
    pub(super) fn new(inner: Arc<F>, poison: Arc<Poison>, purged: Purged) -> Self {
        Self {
            inner,
            poison,
            purged,
        }
    }

    /// A file of the log goes, or gets another name.
    fn note_purged(&self, path: &Path) -> io::Result<()> {
        self.poison.check_io()?;
        self.purged.note(path).map_err(|error| {
            self.poison.set(error.clone());
            io::Error::other(error)
        })
    }
}

pub(super) struct CheckedHandle<H> {
    inner: Arc<H>,
    path: PathBuf,
    poison: Arc<Poison>,
}

pub(super) struct CheckedWriter<W> {
    inner: W,
    poison: Arc<Poison>,
}

impl<F: FileSystem> CheckedFileSystem<F> {
    fn handle(&self, inner: F::Handle, path: &Path) -> CheckedHandle<F::Handle> {
        CheckedHandle {
            inner: Arc::new(inner),
            path: path.to_owned(),
            poison: Arc::clone(&self.poison),
        }
    }
}

impl<F: FileSystem> FileSystem for CheckedFileSystem<F> {
    type Handle = CheckedHandle<F::Handle>;
    type Reader = F::Reader;
    type Writer = CheckedWriter<F::Writer>;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<Self::Handle> {
        self.poison.check_io()?;
        let inner = self.inner.create(path.as_ref())?;
        Ok(self.handle(inner, path.as_ref()))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<Self::Handle> {
        let inner = self.inner.open(path.as_ref(), permission)?;
        Ok(self.handle(inner, path.as_ref()))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        self.note_purged(path.as_ref())?;
        self.inner.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        self.note_purged(from.as_ref())?;
        self.inner.rename(from, to)
    }

    fn reuse<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        self.note_purged(from.as_ref())?;
        self.inner.reuse(from, to)
    }

    fn delete_metadata<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        self.inner.delete_metadata(path)
    }

    fn exists_metadata<P: AsRef<Path>>(&self, path: P) -> bool {
        self.inner.exists_metadata(path)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Reader> {
        self.inner.new_reader(Arc::clone(&handle.inner))
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Writer> {
        Ok(CheckedWriter {
            inner: self.inner.new_writer(Arc::clone(&handle.inner))?,
            poison: Arc::clone(&self.poison),
        })
    }
}

impl<H: Handle> Handle for CheckedHandle<H> {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.poison.check_io()?;
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.inner.file_size()
    }

    /// Never fails, as raft-engine would panic; whoever wrote asks [`Poison::check`] before it trusts the disk.
    fn sync(&self) -> io::Result<()> {
        if self.poison.check().is_ok()
            && let Err(error) = self.inner.sync()
        {
            self.poison.set(LogError::Sync {
                file: self.path.clone(),
                reason: error.to_string(),
            });
        }
        Ok(())
    }
}

impl<W: Write> Write for CheckedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.poison.check_io()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Read> Read for CheckedWriter<W> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.inner.read(bytes)
    }
}

impl<W: Seek> Seek for CheckedWriter<W> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

impl<W: WriteExt> WriteExt for CheckedWriter<W> {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        // At the end of a log that failed: nothing is left to be done to its file.
        if self.poison.check().is_err() {
            return Ok(());
        }
        self.inner.truncate(offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.poison.check_io()?;
        self.inner.allocate(offset, size)
    }
}
