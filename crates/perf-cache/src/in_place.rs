//! Keys and values that lie in the table itself: small ones of types whose `clone` is known to run no code of the user.
//!
//! They are copied under the shard's lock. A hit then costs no reference count and no line of an allocation of its own, and an insertion
//! no allocation. All other types lie in an [`Entry`] behind an `Arc`, which is what leaves the lock.

use crate::entry::{Content, Entry, Stored};
use crate::queues::Payload;
use std::any::{Any, TypeId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Key and value together: with them a slot is one line of the processor's cache.
const BYTES_MAX: usize = 24;
const ALIGN_MAX: usize = 8;

macro_rules! types {
    ($($type:ty),* $(,)?) => {
        fn is_known<T: 'static>() -> bool {
            let id = TypeId::of::<T>();
            [$(TypeId::of::<$type>()),*].contains(&id)
        }

        /// A copy of a value of a type that is known; `None` of others.
        #[inline]
        fn copy<T: 'static>(value: &T) -> Option<T> {
            $(
                if let Some(value) = (value as &dyn Any).downcast_ref::<$type>() {
                    return cast(value.clone());
                }
            )*
            None
        }
    };
}

types!(
    u64,
    u32,
    u16,
    u8,
    usize,
    i64,
    i32,
    i16,
    i8,
    isize,
    bool,
    char,
    f64,
    f32,
    Arc<str>,
    &'static str,
    Arc<[u8]>,
    Option<u64>,
    Option<u32>,
    (u64, u64),
    (u32, u32),
    [u8; 16],
    Duration,
    Instant,
    IpAddr,
    Ipv4Addr,
    Ipv6Addr,
    (),
);

/// The same value, whose type has two names.
#[inline]
fn cast<A: 'static, B: 'static>(value: A) -> Option<B> {
    let mut value = Some(value);
    (&mut value as &mut dyn Any)
        .downcast_mut::<Option<B>>()?
        .take()
}

/// Whether entries of these types lie in the table.
pub(crate) fn fits<K: 'static, V: 'static>() -> bool {
    is_known::<K>()
        && is_known::<V>()
        && size_of::<K>() + size_of::<V>() <= BYTES_MAX
        && align_of::<K>().max(align_of::<V>()) <= ALIGN_MAX
}

/// What a slot holds of such an entry.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct InPlace<K, V> {
    /// From here on it is not served. Never zero, so that an empty slot needs no word of its own.
    fresh_until: NonZeroU64,
    key: K,
    value: V,
    /// Tells it from other entries of the same key: the count of its shard's insertions when it came. It is unique among 2^32 of them.
    number: u32,
}

impl<K, V> InPlace<K, V> {
    /// The value. Failures do not lie in tables.
    #[inline]
    pub(crate) fn held(&self) -> &V {
        &self.value
    }
}

impl<K, V> Payload for InPlace<K, V> {
    type Line = crate::queues::Line;
}

impl<K: 'static, V: 'static> Stored<K, V> for InPlace<K, V> {
    #[inline]
    fn new(entry: Entry<K, V>) -> Option<Self> {
        let Content::Value(value) = entry.content else {
            return None;
        };
        Some(Self {
            fresh_until: NonZeroU64::new(entry.fresh_until).unwrap_or(NonZeroU64::MIN),
            key: entry.key,
            value,
            number: 0,
        })
    }

    #[inline]
    fn set_number(&mut self, number: u32) {
        self.number = number;
    }

    #[inline]
    fn copied(&self) -> Option<Self> {
        Some(Self {
            key: copy(&self.key)?,
            value: copy(&self.value)?,
            ..*self
        })
    }

    fn is(&self, other: &Self) -> bool {
        self.number == other.number
    }

    fn is_of(&self, entry: &Arc<Entry<K, V>>) -> bool {
        // It is asked of entries that have ended: of two that end at once both have.
        self.fresh_until.get() == entry.fresh_until.max(1)
    }

    #[inline]
    fn key(&self) -> &K {
        &self.key
    }

    #[inline]
    fn value(&self) -> Option<&V> {
        Some(&self.value)
    }

    #[inline]
    fn fresh_until(&self) -> u64 {
        self.fresh_until.get()
    }

    #[inline]
    fn ends(&self) -> u64 {
        self.fresh_until.get()
    }

    #[inline]
    fn idle_end(&self, _: Option<u64>) -> u64 {
        u64::MAX
    }

    fn into_entry(self, hash: u64, spare: Option<Arc<Entry<K, V>>>) -> Arc<Entry<K, V>> {
        let entry = Entry {
            fresh_until: self.fresh_until.get(),
            key: self.key,
            content: Content::Value(self.value),
            hash,
            weight: 1,
            ends: self.fresh_until.get(),
            read_at: 0.into(),
            retry_at: 0.into(),
        };
        if let Some(mut spare) = spare
            && let Some(place) = Arc::get_mut(&mut spare)
        {
            *place = entry;
            return spare;
        }
        Arc::new(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_copied_and_nothing_else() {
        fn check<T: PartialEq + std::fmt::Debug + Clone + 'static>(value: &T, known: bool) {
            assert_eq!(is_known::<T>(), known);
            assert_eq!(copy(value), known.then(|| value.clone()));
        }
        check(&7_u64, true);
        check(&Arc::<str>::from("seven"), true);
        check(&Some(7_u64), true);
        check(&"seven".to_owned(), false);
        check(&Arc::new(7_u64), false);
        assert!(fits::<u64, Arc<str>>() && fits::<(u64, u64), u64>());
        assert!(!fits::<(u64, u64), (u64, u64)>(), "more than a line");
        assert!(!fits::<u64, String>());
    }

    #[test]
    fn a_slot_is_one_line() {
        assert_eq!(size_of::<crate::queues::Slot<InPlace<u64, u64>>>(), 64);
        assert_eq!(size_of::<crate::queues::Slot<InPlace<u64, Arc<str>>>>(), 64);
        assert_eq!(align_of::<crate::queues::Slot<InPlace<u64, u64>>>(), 64);
    }
}
