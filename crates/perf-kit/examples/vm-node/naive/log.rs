//! A log as one writes it first: a file, a record per entry or state, an fsync per append.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

const ENTRY: u8 = 1;
const STATE: u8 = 2;
/// Kind, length and checksum.
const HEADER_BYTES: usize = 9;

/// The file.
#[derive(Debug)]
pub(super) struct FileLog {
    file: File,
}

/// What a file held.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) entries: Vec<Entry>,
    pub(super) state: HardState,
}

impl FileLog {
    /// Opens the file and reads it; cuts off a record that was not written whole.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Recovered)> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (recovered, whole) = recover(&bytes)?;
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
            file.sync_all()?;
        }
        Ok((Self { file }, recovered))
    }

    /// Writes what has to be on disk before anything is sent.
    pub(super) fn append(
        &mut self,
        entries: &[Entry],
        state: Option<&HardState>,
    ) -> io::Result<()> {
        if entries.is_empty() && state.is_none() {
            return Ok(());
        }
        for entry in entries {
            self.record(ENTRY, &entry.write_to_bytes().map_err(io::Error::other)?)?;
        }
        if let Some(state) = state {
            self.record(STATE, &state.write_to_bytes().map_err(io::Error::other)?)?;
        }
        self.file.sync_data()
    }

    fn record(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut record = vec![kind];
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
        record.extend_from_slice(body);
        self.file.write_all(&record)
    }
}

/// Reads the records, and says how many bytes are whole ones.
fn recover(bytes: &[u8]) -> io::Result<(Recovered, usize)> {
    let mut recovered = Recovered::default();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER_BYTES) {
        let word = |place: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&header[place..place + 4]);
            u32::from_le_bytes(word)
        };
        let end = at + HEADER_BYTES + word(1) as usize;
        let Some(body) = bytes.get(at + HEADER_BYTES..end) else {
            break;
        };
        if crc32fast::hash(body) != word(5) {
            if end == bytes.len() {
                break;
            }
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the record at byte {at} is damaged, and there are others behind it"),
            ));
        }
        match header[0] {
            ENTRY => {
                let mut entry = Entry::default();
                entry.merge_from_bytes(body).map_err(io::Error::other)?;
                // A later entry of the same index takes the place of the earlier one and of all behind it.
                let keep = recovered
                    .entries
                    .partition_point(|other| other.index < entry.index);
                recovered.entries.truncate(keep);
                recovered.entries.push(entry);
            }
            _ => {
                recovered.state = HardState::default();
                recovered
                    .state
                    .merge_from_bytes(body)
                    .map_err(io::Error::other)?;
            }
        }
        at = end;
    }
    Ok((recovered, at))
}
