//! A state machine that tells any two histories apart.

use bytes::Bytes;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    commands: u64,
    hash: u64,
}

impl Machine {
    pub(super) fn apply(&mut self, command: &[u8]) {
        self.commands += 1;
        for byte in command {
            // FNV-1a: <http://www.isthe.com/chongo/tech/comp/fnv/>.
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    /// Without a byte while there was no command.
    pub(super) fn snapshot(self) -> Bytes {
        if self.commands == 0 {
            return Bytes::new();
        }
        [self.commands.to_le_bytes(), self.hash.to_le_bytes()]
            .concat()
            .into()
    }

    pub(super) fn restored(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::default();
        }
        let number =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Self {
            commands: number(0),
            hash: number(8),
        }
    }
}
