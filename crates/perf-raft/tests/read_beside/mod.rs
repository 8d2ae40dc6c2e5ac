//! A log on a disk that lets a reader in before each write, and a writer before each read: every order of the two, in one thread.

use perf_raft::eraftpb::Entry;
use perf_raft::log::disk::{Access, Disk, DiskFile};
use perf_raft::log::testing::SimDisk;
use perf_raft::log::{LogJob, SegmentLog, SegmentLogOptions, run_jobs};
use perf_raft::{GroupId, LogReader, LogStore};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

const GROUP: GroupId = GroupId(1);

type Act = Box<dyn FnMut() + Send>;

/// What happens before the next write or read.
#[derive(Clone, Default)]
struct Between {
    write: Arc<Mutex<Option<Act>>>,
    read: Arc<Mutex<Option<Act>>>,
}

impl Between {
    /// Nothing happens before what is done in `act`.
    fn happen(place: &Mutex<Option<Act>>) {
        let act = place.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut act) = act {
            act();
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(act);
        }
    }

    fn set(place: &Mutex<Option<Act>>, act: Option<Act>) {
        *place.lock().unwrap_or_else(PoisonError::into_inner) = act;
    }
}

#[derive(Clone)]
struct InterleavedDisk {
    disk: SimDisk,
    between: Between,
}

impl fmt::Debug for InterleavedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InterleavedDisk")
    }
}

struct InterleavedFile {
    file: Box<dyn DiskFile>,
    between: Between,
}

impl fmt::Debug for InterleavedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InterleavedFile")
    }
}

impl Disk for InterleavedDisk {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.make_folder(folder)
    }

    fn lock(&self, file: &Path) -> io::Result<Box<dyn Send>> {
        self.disk.lock(file)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.disk.list(folder)
    }

    fn open(&self, file: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(InterleavedFile {
            file: self.disk.open(file, access)?,
            between: self.between.clone(),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Between::happen(&self.between.write);
        self.disk.rename(from, to)
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        Between::happen(&self.between.write);
        self.disk.remove(file)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.sync_folder(folder)
    }
}

impl DiskFile for InterleavedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Between::happen(&self.between.read);
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Between::happen(&self.between.write);
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn sync(&self) -> io::Result<()> {
        Between::happen(&self.between.write);
        self.file.sync()
    }
}

/// Writes 4 entries at a time, with the term of each round, some in the places of others, and keeps 20.
struct Writer {
    log: SegmentLog,
    round: u64,
    next: u64,
}

impl Writer {
    fn write(&mut self) {
        self.round += 1;
        if self.round.is_multiple_of(3) {
            self.next -= 2;
        }
        let entry = |index| Entry {
            index,
            term: self.round,
            data: format!("{index} of {}", self.round).into_bytes().into(),
            ..Entry::default()
        };
        let entries: Vec<Entry> = (self.next..self.next + 4).map(entry).collect();
        self.next += 4;
        let mut jobs = [LogJob {
            group: GROUP,
            compacted: self.next.checked_sub(30).map(|index| (index, 1)),
            entries: entries.into(),
            ..LogJob::default()
        }];
        run_jobs(&mut self.log, &mut jobs).expect("nothing fails");
    }
}

/// Reads some entries and says what is wrong with them.
fn read(reader: &mut dyn LogReader, first: u64) -> Result<u64, String> {
    let entries = reader.read(GROUP, first, u64::MAX, 200);
    let entries = entries.map_err(|error| format!("reading from {first}: {error}"))?;
    let mut term = 0;
    for (due, entry) in (first..).zip(&entries) {
        let expected = format!("{due} of {}", entry.term);
        if entry.index != due || entry.term < term || entry.data != expected.as_bytes() {
            return Err(format!("reading from {first} gives {entries:?}"));
        }
        term = entry.term;
    }
    Ok(entries.len() as u64)
}

/// One history with a segment size that is drawn from the seed. Returns how many entries were read.
pub(crate) fn run(seed: u64) -> Result<u64, String> {
    let between = Between::default();
    let disk = InterleavedDisk {
        disk: SimDisk::new(seed),
        between: between.clone(),
    };
    let mut options = SegmentLogOptions::default();
    options.segment_bytes = 1024 + seed % 5 * 300;
    let log = SegmentLog::open_on(Arc::new(disk), "log", &options);
    let mut log = log.map_err(|error| error.to_string())?;
    let mut reader = || log.reader().expect("it has one").expect("it has one");
    let (mut before_writes, mut beside_reads) = (reader(), reader());
    let writer = Arc::new(Mutex::new(Writer {
        log,
        round: 0,
        next: 1,
    }));
    let found = Arc::new(Mutex::new((0, None)));
    let first = Arc::new(Mutex::new(1_u64));
    // A reader before each step of the writer.
    let (noted, from) = (Arc::clone(&found), Arc::clone(&first));
    let mut turn = seed;
    let reads = move || {
        turn += 7;
        let from = *from.lock().expect("no panic under it") + turn % 36;
        let mut noted = noted.lock().expect("no panic under it");
        match read(before_writes.as_mut(), from) {
            Ok(count) => noted.0 += count,
            Err(wrong) => noted.1 = noted.1.take().or(Some(wrong)),
        }
    };
    Between::set(&between.write, Some(Box::new(reads)));
    for _ in 0..150 {
        let mut writer = writer.lock().expect("no panic under it");
        writer.write();
        *first.lock().expect("no panic under it") = writer.next.saturating_sub(33).max(1);
    }
    Between::set(&between.write, None);
    // The writer goes on before each step of a reader.
    let writes = {
        let writer = Arc::clone(&writer);
        move || {
            // Its own reads find it locked.
            if let Ok(mut writer) = writer.try_lock() {
                writer.write();
            }
        }
    };
    Between::set(&between.read, Some(Box::new(writes)));
    let mut sum = 0;
    for turn in 0..150 {
        let next = writer.lock().expect("no panic under it").next;
        sum += read(
            beside_reads.as_mut(),
            next.saturating_sub(29 - turn % 20).max(1),
        )?;
    }
    Between::set(&between.read, None);
    let mut found = found.lock().expect("no panic under it");
    match found.1.take() {
        Some(wrong) => Err(wrong),
        None => Ok(sum + found.0),
    }
}
