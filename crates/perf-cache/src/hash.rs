//! A key's hash, and which of its bits say what.
//!
//! | bits, 63 is the highest | say |
//! |---|---|
//! | 63 and down, as many as half a front has places for | the right place in a front |
//! | as many below | the left one |
//! | 40 and up | the shard |
//! | 50 and up | the block of the sketch |
//! | 32 and up | the place in a door; which keys a shadow sees |
//! | 0 to 31 | the mark in that place |
//! | 12 to 31 | the counters in a block of the sketch |
//! | 0 and up, and 56 to 63 | the bucket of a shard's index, and the tag in it |

use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

/// 2^64 divided by the golden ratio, odd: Knuth, The Art of Computer Programming 3, section 6.4.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The hash of a key. Any window of its bits is as good as chance, for keys in a row too.
///
/// foldhash's fast hasher ends in one multiplication by a number that is the process's own, folded by an exclusive or. So keys in a row lie in a row in
/// each window of the product's bits, and where that number is near a fraction of a small denominator they share a few places. A second folded
/// multiplication, by a number that is near none, breaks the rows up, since the exclusive or between the two is not linear.
#[inline]
pub(crate) fn hash_of<S, Q>(hasher: &S, key: &Q) -> u64
where
    S: BuildHasher,
    Q: ?Sized + Hash,
{
    spread(hasher.hash_one(key))
}

/// The second multiplication.
#[inline]
pub(crate) const fn spread(hash: u64) -> u64 {
    let product = hash as u128 * GOLDEN as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Hashes what is a hash already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassHasher(u64);

impl Hasher for PassHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only integers are hashed by it; this keeps the contract for whatever else.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

pub(crate) type PassBuild = BuildHasherDefault<PassHasher>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::Front;
    use crate::fronts::Door;
    use crate::local::{FRONT_PLACES, WIDE_FRONT_PLACES};
    use crate::store::shard_index;
    use foldhash::SharedSeed;
    use foldhash::fast::FoldHasher;
    use std::collections::HashSet;

    /// One hasher: each has a number of its own too.
    const OF_HASHER: u64 = 0x243F_6A88_85A3_08D3;

    /// The default hasher as another process has it.
    struct OfProcess<'a>(&'a SharedSeed);

    impl<'a> BuildHasher for OfProcess<'a> {
        type Hasher = FoldHasher<'a>;

        fn build_hasher(&self) -> FoldHasher<'a> {
            FoldHasher::with_seed(OF_HASHER, self.0)
        }
    }

    type Place = fn(u64) -> usize;
    type Near = Front<u64, u64, FRONT_PLACES>;
    type Wide = Front<u64, u64, WIDE_FRONT_PLACES>;

    /// As many keys in a row as there are places: chance fills 63 %, give or take 1 % of 1024 places and 6 % of 32. Without the second multiplication
    /// one process in a hundred fills less than 13 % of 1024.
    #[test]
    fn keys_in_a_row_are_spread_over_all_places_in_every_process() {
        let wide = WIDE_FRONT_PLACES / 2;
        let near = FRONT_PLACES / 2;
        let places: [(&str, Place, usize, usize); 8] = [
            ("index", |hash| hash as usize % 1024, 1024, 55),
            ("sketch", |hash| (hash >> 12) as usize % 1024, 1024, 55),
            ("wide right", Wide::right, wide, 55),
            ("wide left", Wide::left, wide, 55),
            ("near right", Near::right, near, 28),
            ("near left", Near::left, near, 28),
            ("door", Door::<1024>::place, 1024, 50),
            ("shard", |hash| shard_index(hash, 32), 32, 28),
        ];
        for process in 0..1000 {
            let seed = SharedSeed::from_u64(process);
            for (name, place, count, percent) in places {
                let hashes = (0..count as u64).map(|key| hash_of(&OfProcess(&seed), &key));
                let used: HashSet<usize> = hashes.map(place).collect();
                let share = used.len() * 100 / count;
                assert!(
                    share >= percent,
                    "process {process}, {name}: {share} % of {count} places"
                );
            }
        }
    }
}
