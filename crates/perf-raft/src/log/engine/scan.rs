//! Looks through raft-engine's files before it does.
//!
//! raft-engine cuts its last file at the first record that does not check out, whatever follows. A torn write is
//! always the last thing in the log, as nothing is written before the previous write is durable: a sound record behind
//! damage means that something that was durable has rotted, and cutting there would lose what was acknowledged.
//!
//! The format, of raft-engine 0.4 (`file_pipe_log/format.rs`, `log_batch.rs`): a file has a header of a magic text, a version and, from
//! version 2, an alignment. A record is `len << 8 | compression` and the offset of its footer, both u64 big-endian; entries with
//! a CRC-32; a footer whose CRC-32 is xored with the file's number from version 2 on.

use super::purged::{self, Mark};
use super::{LogError, io_error};
use std::fs;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const RECORD_HEADER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
/// Refuses a folder with damage that raft-engine would cut off or skip, and removes files that a purge left behind. Returns the
/// mark from which on files count.
pub(super) fn check_folder(folder: &Path) -> Result<Mark, LogError> {
    let marked = purged::read(folder)?;
    let mut mark = marked.unwrap_or([0; 2]);
    for (queue, first) in mark.iter_mut().enumerate() {
        let files = numbered_files(folder, queue)?;
        if marked.is_none() {
            // Of an older version, without a mark: as raft-engine does, nothing before the last gap counts. If something that is
            // needed was there, the log is found to be incomplete when it is read.
            let gap = files
                .windows(2)
                .rposition(|pair| pair[0].0 + 1 != pair[1].0);
            *first = files
                .get(gap.map_or(0, |place| place + 1))
                .map_or(1, |file| file.0);
        }
        let (purged, live): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.0 < *first);
        for (due, (number, path)) in (*first..).zip(&live) {
            if due != *number {
                return Err(LogError::Corrupted {
                    file: path.clone(),
                    offset: 0,
                    reason: format!("the files from number {due} to {} are missing", number - 1),
                });
            }
        }
        if live.is_empty() && *first > 1 {
            return Err(LogError::Corrupted {
                file: folder.to_owned(),
                offset: 0,
                reason: format!("the files from number {first} on are missing"),
            });
        }
        let last = live.last().map(|file| file.0);
        for (number, path) in live {
            check_file(&path, number, Some(number) == last)?;
        }
        for (_, path) in purged {
            fs::remove_file(&path).map_err(|error| io_error(&path, "removing", &error))?;
        }
    }
    if marked != Some(mark) {
        purged::write(folder, mark)?;
    }
    Ok(mark)
}

fn numbered_files(folder: &Path, queue: usize) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let failed = |error| io_error(folder, "listing", &error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some((of, number)) = purged::parse(&path)
            && of == queue
        {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn check_file(path: &Path, number: u64, is_last: bool) -> Result<(), LogError> {
    let bytes = fs::read(path).map_err(|error| io_error(path, "reading", &error))?;
    let damaged = |offset: usize, reason: &str| {
        Err(LogError::Corrupted {
            file: path.to_owned(),
            offset: offset as u64,
            reason: reason.to_owned(),
        })
    };
    let header = file_header(&bytes);
    let Some((mut offset, signature)) =
        header.map(|(len, version)| (len, if version >= 2 { number as u32 } else { 0 }))
    else {
        // A file whose header was torn has nothing behind it.
        if is_last && !has_record_after(&bytes, 0, number as u32) {
            return Ok(());
        }
        return damaged(0, "no file header");
    };
    while offset < bytes.len() {
        match record_len(&bytes[offset..], signature) {
            Ok(len) => offset += len,
            Err(reason) => {
                if has_record_after(&bytes, offset, signature) {
                    return damaged(offset, &format!("{reason}; sound records follow"));
                }
                if !is_last {
                    return damaged(offset, &format!("{reason}; sound files follow"));
                }
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Length and version of a file's header.
fn file_header(bytes: &[u8]) -> Option<(usize, u64)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let version = u64::from_be_bytes(*rest.first_chunk::<8>()?);
    let len = MAGIC.len() + 8 + if version >= 2 { 8 } else { 0 };
    ((1..=2).contains(&version) && bytes.len() >= len).then_some((len, version))
}

/// The length of the sound record at the start of `bytes`.
fn record_len(bytes: &[u8], signature: u32) -> Result<usize, &'static str> {
    let number = |at: usize| {
        bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<8>())
            .map(|number| u64::from_be_bytes(*number))
    };
    let (Some(head), Some(footer)) = (number(0), number(8)) else {
        return Err("a record's header is cut off");
    };
    let len = usize::try_from(head >> 8).unwrap_or(usize::MAX);
    let footer = usize::try_from(footer).unwrap_or(usize::MAX);
    if head & 0xFF > 1 || footer < RECORD_HEADER_BYTES || footer >= len {
        return Err("a record's header is not sound");
    }
    if len > bytes.len() {
        return Err("a record is cut off");
    }
    if !has_crc(&bytes[footer..len], signature) {
        return Err("the checksum of a record's footer is wrong");
    }
    let entries = &bytes[RECORD_HEADER_BYTES..footer];
    if !entries.is_empty() && !has_crc(entries, 0) {
        return Err("the checksum of a record's entries is wrong");
    }
    Ok(len)
}

fn has_crc(bytes: &[u8], signature: u32) -> bool {
    match bytes.split_last_chunk::<CRC_BYTES>() {
        Some((content, crc)) if !content.is_empty() => {
            crc32fast::hash(content) == u32::from_le_bytes(*crc) ^ signature
        }
        _ => false,
    }
}

/// Whether a sound record starts anywhere behind `offset`. Most places are ruled out by their first bytes.
fn has_record_after(bytes: &[u8], offset: usize, signature: u32) -> bool {
    let places = offset + 1..bytes.len().saturating_sub(RECORD_HEADER_BYTES);
    places.into_iter().any(|place| {
        // Lengths below 16 TiB start with two zeros.
        bytes[place] == 0 && bytes[place + 1] == 0 && record_len(&bytes[place..], signature).is_ok()
    })
}
