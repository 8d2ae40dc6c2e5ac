//! How often keys were asked for lately, also those that are not in the cache: a count-min sketch of 4-bit counters.
//!
//! "TinyLFU: A Highly Efficient Cache Admission Policy", Einziger, Friedman, Manes, ACM Transactions on Storage 2017. It is told of
//! insertions, and of an entry's reads when the policy passes the entry, so a read itself writes nothing here. The four counters of a hash
//! lie in one line of the processor's cache, as Caffeine has them.

/// All counters are halved after so many additions per entry.
const ADDITIONS_PER_ENTRY: u64 = 10;
/// 128 counters: 16 per entry.
const ENTRIES_PER_BLOCK: usize = 8;
/// As many as the hash has bits for that do not say the shard.
const BLOCKS_MAX: usize = 1 << 14;
/// A sketch of fewer entries is made for so many times as many, up to this number: 4 KiB.
const SMALL_ENTRIES: usize = 512;
/// The same of a sketch with a long memory: 16 KiB.
const LONG_ENTRIES: usize = 2048;
const SMALL_FACTOR: usize = 4;
const ROWS: usize = 4;
const COUNTER_MAX: u64 = 15;
/// Without the lowest bit of each counter.
const HALF_MASK: u64 = 0x7777_7777_7777_7777;

/// Eight words of 16 counters. Row `n` of four is in words `2n` and `2n + 1`.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Block([u64; 8]);

#[derive(Debug)]
pub(crate) struct Sketch {
    /// A power of two, or none.
    blocks: Vec<Block>,
    additions: u64,
    is_long: bool,
    is_off: bool,
}

impl Sketch {
    pub(crate) const fn new() -> Self {
        Self {
            blocks: Vec::new(),
            additions: 0,
            is_long: false,
            is_off: false,
        }
    }

    /// One that counts nothing, for queues that do not ask it.
    pub(crate) fn turn_off(&mut self) {
        self.is_off = true;
    }

    /// Keeps counts for longer: more keys come again before their counts are halved.
    pub(crate) fn remember_long(&mut self) {
        self.is_long = true;
    }

    /// Room for so many entries. What is known stays known: a larger table begins with copies of the smaller one.
    #[inline]
    pub(crate) fn grow(&mut self, entries: usize) {
        // The memory of a few entries is too short to tell keys apart by how often they come.
        let small_max = if self.is_long {
            LONG_ENTRIES
        } else {
            SMALL_ENTRIES
        };
        let entries = entries.max((entries * SMALL_FACTOR).min(small_max));
        let wanted = entries.div_ceil(ENTRIES_PER_BLOCK).min(BLOCKS_MAX);
        if wanted > self.blocks.len() && !self.is_off {
            self.grow_to(wanted.next_power_of_two());
        }
    }

    #[cold]
    fn grow_to(&mut self, blocks: usize) {
        let more = blocks - self.blocks.len();
        self.blocks.reserve_exact(more);
        if self.blocks.is_empty() {
            self.blocks.push(Block([0; 8]));
        }
        while self.blocks.len() < blocks {
            self.blocks.extend_from_within(..);
        }
    }

    #[inline]
    fn block(&self, hash: u64) -> usize {
        (hash >> 50) as usize & (self.blocks.len() - 1)
    }

    /// The word of a row's counter, and its shift.
    #[inline]
    fn place(hash: u64, row: usize) -> (usize, u32) {
        let bits = (hash >> (12 + 5 * row)) as usize;
        (2 * row + (bits & 1), (bits as u32 >> 1 & 15) * 4)
    }

    /// Counts an access.
    pub(crate) fn add(&mut self, hash: u64) {
        if self.blocks.is_empty() {
            return;
        }
        let at = self.block(hash);
        let Some(Block(words)) = self.blocks.get_mut(at) else {
            return;
        };
        for row in 0..ROWS {
            let (word, shift) = Self::place(hash, row);
            let counter = words[word] >> shift & COUNTER_MAX;
            words[word] += u64::from(counter < COUNTER_MAX) << shift;
        }
        self.additions += 1;
        let entries = (self.blocks.len() * ENTRIES_PER_BLOCK) as u64;
        if self.additions >= ADDITIONS_PER_ENTRY * entries {
            self.additions /= 2;
            for word in self.blocks.iter_mut().flat_map(|block| &mut block.0) {
                *word = *word >> 1 & HALF_MASK;
            }
        }
    }

    /// How often a hash was counted lately, or more often than that.
    pub(crate) fn estimate(&self, hash: u64) -> u64 {
        if self.blocks.is_empty() {
            return 0;
        }
        let Block(words) = &self.blocks[self.block(hash)];
        let mut least = COUNTER_MAX;
        for row in 0..ROWS {
            let (word, shift) = Self::place(hash, row);
            least = least.min(words[word] >> shift & COUNTER_MAX);
        }
        least
    }
}
