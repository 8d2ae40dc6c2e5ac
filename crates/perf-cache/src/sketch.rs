//! How often keys were asked for lately, also those that are not in the cache: a count-min sketch of 4-bit counters.
//!
//! "TinyLFU: A Highly Efficient Cache Admission Policy", Einziger, Friedman, Manes, ACM Transactions on Storage 2017. It is told of
//! insertions, and of an entry's reads when the policy passes the entry, so a read itself writes nothing here.

/// All counters are halved after so many additions per word.
const ADDITIONS_PER_WORD: u64 = 10;
const COUNTER_MAX: u64 = 15;
/// Without the lowest bit of each counter.
const HALF_MASK: u64 = 0x7777_7777_7777_7777;

/// A word of 16 counters per entry. Four counters belong to a hash, each in a word of its own.
#[derive(Debug)]
pub(crate) struct Sketch {
    words: Vec<u64>,
    additions: u64,
}

impl Sketch {
    pub(crate) const fn new() -> Self {
        Self {
            words: Vec::new(),
            additions: 0,
        }
    }

    /// Room for so many entries. What is known stays known: a larger table begins with copies of the smaller one.
    pub(crate) fn grow(&mut self, entries: usize) {
        let wanted = entries.next_power_of_two();
        if self.words.is_empty() {
            self.words = vec![0; wanted];
        }
        while self.words.len() < wanted {
            self.words.extend_from_within(..);
        }
    }

    /// The words and shifts of a hash's four counters.
    #[inline]
    fn places(&self, hash: u64) -> [(usize, u32); 4] {
        let mask = self.words.len() - 1;
        // Two halves that step through the table: "Less Hashing, Same Performance", Kirsch and Mitzenmacher, ESA 2006.
        let (start, step) = ((hash >> 32) as usize, (hash as usize) | 1);
        std::array::from_fn(|row| {
            let word = start.wrapping_add(step.wrapping_mul(row)) & mask;
            let column = (hash >> (8 + 2 * row)) as u32 & 3;
            (word, (row as u32 * 4 + column) * 4)
        })
    }

    /// Counts an access.
    pub(crate) fn add(&mut self, hash: u64) {
        if self.words.is_empty() {
            return;
        }
        for (word, shift) in self.places(hash) {
            let counter = self.words[word] >> shift & COUNTER_MAX;
            self.words[word] += u64::from(counter < COUNTER_MAX) << shift;
        }
        self.additions += 1;
        if self.additions >= ADDITIONS_PER_WORD * self.words.len() as u64 {
            self.additions /= 2;
            for word in &mut self.words {
                *word = *word >> 1 & HALF_MASK;
            }
        }
    }

    /// How often a hash was counted lately, or more often than that.
    pub(crate) fn estimate(&self, hash: u64) -> u64 {
        if self.words.is_empty() {
            return 0;
        }
        let counter = |(word, shift): (usize, u32)| self.words[word] >> shift & COUNTER_MAX;
        self.places(hash)
            .map(counter)
            .into_iter()
            .min()
            .unwrap_or(0)
    }
}
