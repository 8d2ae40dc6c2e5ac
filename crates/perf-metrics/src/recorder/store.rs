//! All series of one kind that a recorder knows.

use super::handle::{Handle, PassThrough, hash_of};
use super::settings::Context;
use crate::attributes::KeyValue;
use metrics::Key;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All series of one kind.
pub(super) struct Store<H: Handle> {
    entries: RwLock<HashMap<Key, Entry<H>, BuildHasherDefault<PassThrough>>>,
    instruments: Mutex<HashMap<String, Named<H::Instrument>>>,
}

struct Named<I> {
    instrument: I,
    /// How many of `entries` are of this name, at most as many as it can have series: the others are the overflow series.
    entries: usize,
}

impl<H: Handle> Default for Store<H> {
    fn default() -> Self {
        Self {
            entries: RwLock::default(),
            instruments: Mutex::default(),
        }
    }
}

struct Entry<H> {
    /// One for each thread that uses it; never empty.
    handles: Vec<Arc<H>>,
    name: String,
    labels: Vec<KeyValue>,
    /// What was last seen of it, and since when.
    seen: Option<(u64, Instant)>,
}

impl<H: Handle> Store<H> {
    #[inline]
    pub(super) fn get(&self, context: &Context, key: &Key) -> Arc<H> {
        let hash = hash_of(key);
        if let Some(Some(handle)) = H::cache(|cache| cache.find(context.id, hash, key)) {
            return handle;
        }
        self.get_slow(context, key)
    }

    #[cold]
    #[inline(never)]
    fn get_slow(&self, context: &Context, key: &Key) -> Arc<H> {
        let handle = {
            let mut entries = self.entries.write();
            match entries.get_mut(key) {
                Some(entry) => {
                    // The handles of threads that have ended have no other reference.
                    let first = Arc::clone(&entry.handles[0]);
                    entry
                        .handles
                        .retain(|handle| Arc::strong_count(handle) + Arc::weak_count(handle) > 1);
                    let handle = Arc::new(first.again());
                    entry.handles.push(Arc::clone(&handle));
                    handle
                }
                None => {
                    let name = valid_name(key.name());
                    let labels = labels_of(key);
                    let (instrument, has_room) = self.instrument(context, &name, key.name());
                    let handle = Arc::new(H::of(&instrument, &labels));
                    if !has_room {
                        return handle;
                    }
                    let entry = Entry {
                        handles: vec![Arc::clone(&handle)],
                        name,
                        labels,
                        seen: None,
                    };
                    entries.insert(key.clone(), entry);
                    handle
                }
            }
        };
        H::cache(|cache| cache.put(context.id, key, &handle));
        handle
    }

    /// The instrument of this name, and whether it has room for another entry, which is then counted.
    fn instrument(&self, context: &Context, name: &str, given: &str) -> (H::Instrument, bool) {
        let mut instruments = self.instruments.lock();
        // One more, without labels.
        let entries_max = context.settings.series_max.saturating_add(1);
        if let Some(named) = instruments.get_mut(name) {
            let has_room = named.entries < entries_max;
            named.entries += usize::from(has_room);
            return (named.instrument.clone(), has_room);
        }
        let settings = &context.settings;
        let builder = H::builder(&settings.registry, name.to_owned(), settings.buckets(given))
            .with_cardinality_limit(settings.series_max)
            .beside_others();
        let builder = context.descriptions.describe(builder, given);
        let instrument = builder.build_or_detached();
        let named = Named {
            instrument: instrument.clone(),
            entries: 1,
        };
        instruments.insert(name.to_owned(), named);
        (instrument, true)
    }

    /// Removes the series that were not recorded to for so long and that the program holds no handle of.
    pub(super) fn sweep(&self, now: Instant, idle: Duration) {
        let mut entries = self.entries.write();
        let mut instruments = self.instruments.lock();
        entries.retain(|_, entry| {
            let (is_touched, fingerprint) = entry.handles[0].activity();
            let since = match entry.seen {
                Some((seen, since)) if seen == fingerprint && !is_touched => since,
                _ => now,
            };
            entry.seen = Some((fingerprint, since));
            // Threads remember handles weakly, so that every other reference is the program's.
            let is_held = entry
                .handles
                .iter()
                .any(|handle| Arc::strong_count(handle) > 1);
            if is_held || now.saturating_duration_since(since) < idle {
                return true;
            }
            // Dropped first, so that the series is bound by no handle.
            entry.handles.truncate(1);
            let Some(named) = instruments.get_mut(&entry.name) else {
                return false;
            };
            let stays = !entry.labels.is_empty() && !H::remove(&named.instrument, &entry.labels);
            named.entries -= usize::from(!stays);
            stays
        });
        instruments.retain(|_, named| named.entries > 0);
    }
}

fn labels_of(key: &Key) -> Vec<KeyValue> {
    key.labels()
        .map(|label| KeyValue::new(label.key().to_owned(), label.value().to_owned()))
        .collect()
}

/// A name that OpenTelemetry allows.
fn valid_name(name: &str) -> String {
    let valid = |c: char| {
        let is_valid = c.is_ascii_alphanumeric() || "_.-/".contains(c);
        if is_valid { c } else { '_' }
    };
    let mut name: String = name.chars().map(valid).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        name.insert(0, 'm');
    }
    name
}
