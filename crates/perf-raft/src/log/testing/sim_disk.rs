//! A disk in memory that loses, tears and reorders what was not synced.

use super::Random;
use crate::log::disk::{Access, Disk, DiskFile};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a disk writes at once: each sector has its old contents or its new ones after a power failure.
pub const SECTOR_BYTES: usize = 512;

/// What goes wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The next sync of a file fails. Some of what was not synced is lost at the next power failure, although it can be read until then and counts
    /// as written: a second sync says that all is well.
    Sync,
    /// The next sync of a folder fails.
    SyncFolder,
    /// The next write writes half of its bytes, and the one after it, or the next reservation of room, finds no room.
    Full,
    /// The next write writes half of its bytes and says so.
    ShortWrite,
    /// The next read fails.
    Read,
}

/// A disk in memory. Clones are the same disk.
///
/// Contents are durable after [`DiskFile::sync`] and names after [`Disk::sync_folder`]. At a power failure ([`crash`](Self::crash)) each
/// sector and each name that is not durable is there or not, as the seed has it.
///
/// ```
/// use perf_raft::log::SegmentLog;
/// use perf_raft::log::testing::SimDisk;
/// use std::sync::Arc;
///
/// let disk = SimDisk::new(7);
/// let log = SegmentLog::open_on(Arc::new(disk.clone()), "log", &Default::default())?;
/// drop(log);
/// disk.crash();
/// SegmentLog::open_on(Arc::new(disk), "log", &Default::default())?;
/// # Ok::<(), perf_raft::LogError>(())
/// ```
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct State {
    random: Random,
    files: BTreeMap<u64, File>,
    files_made: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names since the folder was synced, in order.
    pending: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    /// Counts power failures and restarts: files that were open before cannot be used.
    run: u64,
    operations: u64,
    crash_at: Option<u64>,
    is_off: bool,
    fault: Option<Fault>,
    is_full: bool,
    is_read_only: bool,
}

#[derive(Clone, Debug, Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// How often it is open: without a name it stays until the last one closes it.
    opened: usize,
}

#[derive(Clone, Debug)]
enum NameChange {
    Make(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: Random::new(seed),
            files: BTreeMap::new(),
            files_made: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            locks: BTreeSet::new(),
            run: 0,
            operations: 0,
            crash_at: None,
            is_off: false,
            fault: None,
            is_full: false,
            is_read_only: false,
        })))
    }

    /// Another disk with the same contents, whose chances are those of another seed.
    #[must_use]
    pub fn copy(&self, seed: u64) -> Self {
        let mut state = self.0.lock().clone();
        state.random = Random::new(seed);
        Self(Arc::new(Mutex::new(state)))
    }

    /// The power fails after so many more operations that change something: the next ones fail until [`crash`](Self::crash).
    pub fn crash_after(&self, operations: u64) {
        let mut state = self.0.lock();
        state.crash_at = Some(state.operations + operations);
    }

    /// Operations so far that change something, of all runs.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Whether the power has failed.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.0.lock().is_off
    }

    /// The power fails and comes back. What was not synced is there in part.
    pub fn crash(&self) {
        let mut state = self.0.lock();
        state.lose_names();
        state.lose_sectors();
        state.restart();
    }

    /// The process ends and starts again: nothing is lost, nothing becomes durable.
    pub fn restart(&self) {
        self.0.lock().restart();
    }

    /// Forgets a fault that has not happened yet.
    pub fn mend(&self) {
        self.0.lock().fault = None;
    }

    /// Something goes wrong once.
    pub fn fail(&self, fault: Fault) {
        self.0.lock().fault = Some(fault);
    }

    /// From now on, or no longer, nothing can be changed.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.0.lock().is_read_only = is_read_only;
    }

    /// All files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// What a file holds.
    #[must_use]
    pub fn contents(&self, file: &Path) -> Option<Vec<u8>> {
        let state = self.0.lock();
        let file = state.files.get(state.names.get(file)?)?;
        Some(file.now.clone())
    }

    /// Gives a file other contents, durably; makes it if it is missing.
    pub fn set_contents(&self, file: &Path, bytes: Vec<u8>) {
        let mut state = self.0.lock();
        let id = match state.names.get(file) {
            Some(id) => *id,
            None => state.make(file),
        };
        state.durable_names.insert(file.to_owned(), id);
        let file = File {
            durable: bytes.clone(),
            now: bytes,
            ..File::default()
        };
        state.files.insert(id, file);
    }

    /// Removes a file, durably.
    pub fn delete(&self, file: &Path) {
        let mut state = self.0.lock();
        state.names.remove(file);
        state.durable_names.remove(file);
    }
}

impl State {
    /// Counts an operation that changes something. At the moment of the power failure it takes place or not.
    fn change(&mut self) -> io::Result<bool> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        if self.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.operations += 1;
        if self.crash_at.is_some_and(|at| self.operations > at) {
            self.is_off = true;
            return Ok(self.random.one_in(2));
        }
        Ok(true)
    }

    /// What a change answers.
    fn done(&self) -> io::Result<()> {
        match self.is_off {
            true => Err(io::Error::other("the power fails")),
            false => Ok(()),
        }
    }

    fn take(&mut self, fault: Fault) -> bool {
        let is_due = self.fault == Some(fault);
        if is_due {
            self.fault = None;
        }
        is_due
    }

    fn make(&mut self, file: &Path) -> u64 {
        self.files_made += 1;
        let id = self.files_made;
        self.files.insert(id, File::default());
        self.names.insert(file.to_owned(), id);
        self.pending.push(NameChange::Make(file.to_owned(), id));
        id
    }

    fn restart(&mut self) {
        self.files.values_mut().for_each(|file| file.opened = 0);
        self.run += 1;
        self.locks.clear();
        (self.is_off, self.crash_at, self.fault, self.is_full) = (false, None, None, false);
    }

    /// All of the names that are not durable are there, none, or some.
    fn lose_names(&mut self) {
        let odds = [0, 2, u64::MAX][self.random.below(3) as usize];
        for change in std::mem::take(&mut self.pending) {
            if odds == 0 || self.random.one_in(odds) {
                apply(&mut self.durable_names, &change);
            }
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|id, _| named.contains(id));
    }

    fn lose_sectors(&mut self) {
        let odds = [0, 2, u64::MAX][self.random.below(3) as usize];
        let Self { files, random, .. } = self;
        for file in files.values_mut() {
            let has_length = odds == 0 || random.one_in(odds);
            if has_length {
                file.durable.resize(file.now.len(), 0);
            }
            for sector in std::mem::take(&mut file.dirty) {
                if odds == 0 || random.one_in(odds) {
                    file.keep(sector);
                }
            }
            file.now.clone_from(&file.durable);
        }
    }
}

impl File {
    /// A sector becomes durable, as far as the durable length goes.
    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES)
            .min(self.now.len())
            .min(self.durable.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.now[start..end]);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty
                .extend(offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Make(path, id) => {
            names.insert(path.clone(), *id);
        }
        NameChange::Rename(from, to, id) => {
            if names.get(from) == Some(id) {
                names.remove(from);
            }
            names.insert(to.clone(), *id);
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

impl Disk for SimDisk {
    /// Folders are no more than parts of names.
    fn make_folder(&self, _: &Path) -> io::Result<()> {
        match self.0.lock().is_off {
            true => Err(io::Error::other("the power is off")),
            false => Ok(()),
        }
    }

    fn lock(&self, file: &Path) -> io::Result<Box<dyn Send>> {
        let mut state = self.0.lock();
        if state.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if !state.locks.insert(file.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock {
            disk: self.clone(),
            file: file.to_owned(),
            run: state.run,
        }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let within = state.names.keys().filter_map(|path| {
            let name = path.strip_prefix(folder).ok()?.components().next()?;
            name.as_os_str().to_str().map(str::to_owned)
        });
        Ok(within.collect::<BTreeSet<String>>().into_iter().collect())
    }

    fn open(&self, file: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        let found = state.names.get(file).copied();
        let id = match (access, found) {
            (Access::Create, _) => {
                if !state.change()? {
                    state.done()?;
                }
                if let Some(id) = found {
                    state.names.remove(file);
                    state.pending.push(NameChange::Remove(file.to_owned()));
                    let is_named = state.durable_names.values().any(|named| *named == id);
                    let is_open = state.files.get(&id).is_some_and(|file| file.opened > 0);
                    if !is_named && !is_open {
                        state.files.remove(&id);
                    }
                }
                let id = state.make(file);
                state.done()?;
                id
            }
            (Access::Write, _) if state.is_read_only => {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            (_, Some(id)) => id,
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        file_of(&mut state, id)?.opened += 1;
        Ok(Box::new(SimFile {
            disk: self.clone(),
            id,
            run: state.run,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let Some(&id) = state.names.get(from) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if state.change()? {
            let change = NameChange::Rename(from.to_owned(), to.to_owned(), id);
            apply(&mut state.names, &change);
            state.pending.push(change);
        }
        state.done()
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.names.contains_key(file) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.change()? {
            let change = NameChange::Remove(file.to_owned());
            apply(&mut state.names, &change);
            state.pending.push(change);
        }
        state.done()
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.take(Fault::SyncFolder) {
            return Err(io::Error::other("the folder cannot be synced"));
        }
        let is_done = state.change()?;
        state.done()?;
        if is_done {
            state.pending.clear();
            state.durable_names = state.names.clone();
            let named: BTreeSet<u64> = state.names.values().copied().collect();
            let stays = |id: &u64, file: &mut File| named.contains(id) || file.opened > 0;
            state.files.retain(stays);
        }
        Ok(())
    }

    fn unique_number(&self) -> u64 {
        self.0.lock().random.next_u64().max(1)
    }
}

struct Lock {
    disk: SimDisk,
    file: PathBuf,
    run: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if state.run == self.run {
            state.locks.remove(&self.file);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: u64,
    run: u64,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        // Files of an earlier run are closed.
        let _ = self.with(|state| {
            let file = file_of(state, self.id)?;
            file.opened = file.opened.saturating_sub(1);
            Ok(())
        });
    }
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.run != self.run {
            return Err(io::Error::other("the file was opened before a restart"));
        }
        act(&mut state)
    }
}

fn file_of(state: &mut State, id: u64) -> io::Result<&mut File> {
    let found = state.files.get_mut(&id);
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(file_of(state, self.id)?.now.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            if state.take(Fault::Read) {
                return Err(io::Error::other("the sector cannot be read"));
            }
            let bytes = &file_of(state, self.id)?.now;
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            let read = rest.len().min(buffer.len());
            buffer[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            if state.is_full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mut written = bytes.len();
            if state.take(Fault::ShortWrite) {
                written = written.div_ceil(2);
            }
            if state.take(Fault::Full) {
                written = written.div_ceil(2);
                state.is_full = true;
            }
            if state.change()? {
                file_of(state, self.id)?.write(&bytes[..written], offset as usize);
            }
            state.done()?;
            Ok(written)
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            if state.is_full || state.take(Fault::Full) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if state.change()? {
                let file = file_of(state, self.id)?;
                file.now.resize(len as usize, 0);
            }
            state.done()
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            if state.take(Fault::Sync) {
                let dirty = std::mem::take(&mut file_of(state, self.id)?.dirty);
                for sector in dirty {
                    if state.random.one_in(2) {
                        file_of(state, self.id)?.keep(sector);
                    }
                }
                return Err(io::Error::other("the disk did not confirm"));
            }
            let is_done = state.change()?;
            state.done()?;
            if is_done {
                file_of(state, self.id)?.sync();
            }
            Ok(())
        })
    }
}
