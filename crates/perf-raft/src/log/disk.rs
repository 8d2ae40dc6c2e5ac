//! The files under a [`SegmentLog`](super::SegmentLog): a small trait, so that tests can put a disk that fails in the place of the real one.

use super::LogError;
use crate::primitive::mutant;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The file exists and is only read.
    Read,
    /// The file exists and is read and written.
    Write,
    /// The file is made, or emptied if it exists.
    Create,
}

/// A file system, as far as a log needs one. Nothing is durable before [`DiskFile::sync`] (contents) or
/// [`sync_folder`](Self::sync_folder) (names).
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes a folder and its parents if they are missing, and makes their names durable.
    ///
    /// # Errors
    /// As the system's.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;

    /// Locks a file for this process until the guard is dropped. Makes the file if it is missing.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process, or another log of this one, holds the lock.
    fn lock(&self, file: &Path) -> io::Result<Box<dyn Send>>;

    /// The names of all files in a folder, in any order.
    ///
    /// # Errors
    /// As the system's.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Opens a file.
    ///
    /// # Errors
    /// As the system's.
    fn open(&self, file: &Path, access: Access) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, in the place of the file that had it. Durable after [`sync_folder`](Self::sync_folder).
    ///
    /// # Errors
    /// As the system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`sync_folder`](Self::sync_folder).
    ///
    /// # Errors
    /// As the system's.
    fn remove(&self, file: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// As the system's.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// A number that no other call returns, not 0: the id of a new log. Of the system's generator, by way of the keys of a hash map, and of the
    /// moment.
    fn unique_number(&self) -> u64 {
        let number = RandomState::new().hash_one((Instant::now(), std::process::id()));
        number.max(1)
    }
}

/// An open file of a [`Disk`].
pub trait DiskFile: fmt::Debug + Send {
    /// The length in bytes.
    ///
    /// # Errors
    /// As the system's.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads up to `buffer.len()` bytes; 0 at the end of the file.
    ///
    /// # Errors
    /// As the system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes up to `bytes.len()` bytes and returns how many.
    ///
    /// # Errors
    /// As the system's.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Reserves room for `len` bytes and makes the file that long.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] if there is no room.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Makes contents and length durable (`fdatasync`).
    ///
    /// # Errors
    /// As the system's. It is then unknown what is durable, and a second call that succeeds says nothing.
    fn sync(&self) -> io::Result<()>;
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let absolute = std::path::absolute(folder)?;
        let parents = absolute.ancestors().skip(1);
        let mut made_in: Vec<&Path> = parents.take_while(|parent| !parent.exists()).collect();
        // The deepest folder that existed is synced too: an earlier start may have been cut short after it made the next one.
        made_in.extend(absolute.ancestors().nth(made_in.len() + 1));
        fs::create_dir_all(&absolute)?;
        made_in
            .into_iter()
            .try_for_each(|folder| self.sync_folder(folder))
    }

    fn lock(&self, file: &Path) -> io::Result<Box<dyn Send>> {
        let mut options = OpenOptions::new();
        let opened = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(file)?;
        fs4::FileExt::try_lock(&opened).map_err(io::Error::from)?;
        Ok(Box::new(opened))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            // A name that is not UTF-8 is none of the log's.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, file: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read);
        options
            .create(access == Access::Create)
            .truncate(access == Access::Create);
        Ok(Box::new(RealFile(options.open(file)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    #[cfg(unix)]
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    /// Windows makes names durable with the file and opens no folders.
    #[cfg(not(unix))]
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.0, buffer, offset)
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.0, bytes, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(&self.0, bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match fs4::FileExt::allocate(&self.0, len) {
            // Not every file system reserves room.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            done => done?,
        }
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Writes all of `bytes`, however many writes that takes.
pub(super) fn write_all(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads `len` bytes from `offset` on, fewer if the file ends before.
pub(super) fn read_up_to(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = fill(file, offset, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Reads as many bytes as there is room for, fewer if the file ends before. Returns how many.
pub(super) fn fill(file: &dyn DiskFile, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a whole file.
#[cfg(feature = "cli")]
pub(super) fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Access::Read)?;
    let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    read_up_to(&*file, 0, len)
}

/// Makes a file of this content, whole or not at all: written beside it, synced, renamed, and the name made durable.
pub(super) fn write_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), LogError> {
    let part: PathBuf = path.with_extension("tmp");
    let failed = |action| {
        let part = &part;
        move |error| LogError::io(part, action, &error)
    };
    let file = disk
        .open(&part, Access::Create)
        .map_err(failed("making a file"))?;
    write_all(&*file, bytes, 0).map_err(failed("writing"))?;
    if !mutant::is("snapshot_data_not_synced") {
        file.sync().map_err(|error| LogError::sync(&part, &error))?;
    }
    disk.rename(&part, path).map_err(failed("renaming"))?;
    if mutant::is("snapshot_folder_not_synced") {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    disk.sync_folder(folder)
        .map_err(|error| LogError::sync(folder, &error))
}
