//! A map of registers.

use bytes::Bytes;
use perf_raft::Command;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) state: BTreeMap<u64, u64>,
    pub(crate) index: u64,
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk::<8>()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

impl Machine {
    /// Puts `value` into the register of `key`; the response is what was there, 0 at first.
    pub(crate) fn command(key: u64, value: u64) -> Bytes {
        [key.to_le_bytes(), value.to_le_bytes()].concat().into()
    }

    /// Of no client that looks at the answer: only takes room.
    pub(crate) fn filler(bytes: usize) -> Bytes {
        vec![0xFF; bytes.max(1)].into()
    }

    pub(crate) fn apply(&mut self, command: &Command) -> u64 {
        if command.data[0] == 0xFF {
            return 0;
        }
        let key = number(&command.data, 0).expect("a command");
        let value = number(&command.data, 8).expect("a command");
        self.state.insert(key, value).unwrap_or(0)
    }

    pub(crate) fn get(&self, key: u64) -> u64 {
        self.state.get(&key).copied().unwrap_or(0)
    }

    /// Without a byte while no register was written.
    pub(crate) fn snapshot(&self) -> Bytes {
        if self.state.is_empty() {
            return Bytes::new();
        }
        let mut bytes = vec![1];
        for (key, value) in &self.state {
            bytes.extend(key.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        // Long enough for several parts.
        bytes.extend([0; 7]);
        bytes.into()
    }

    /// Whether it was a snapshot.
    pub(crate) fn restore(&mut self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            self.state.clear();
            return true;
        }
        if bytes.len() % 16 != 8 || bytes.first() != Some(&1) {
            return false;
        }
        self.state = bytes[1..bytes.len() - 7]
            .chunks_exact(16)
            .filter_map(|pair| Some((number(pair, 0)?, number(pair, 8)?)))
            .collect();
        true
    }
}
