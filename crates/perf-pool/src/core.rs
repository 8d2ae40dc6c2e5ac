//! What all threads of a pool share.

use crate::budget::Budget;
use crate::bytes_box::BytesBox;
use crate::class::{CLASS_BYTES_MAX, CLASSES, Tag, bytes_of};
use crate::config::Config;
use crate::depot::Depot;
use crate::magazine::{BufferBox, Magazine};
use crate::primitive::cold::{AtomicU64, LazyLock, Mutex, Relaxed, lock};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Chains parked per class at most. A magazine is up to half a thread's buffers, so the budget bounds
/// the bytes long before; this bounds the queue's own memory (2 KiB).
const DEPOT_ITEMS_MAX: u64 = 128;

/// Retained frozen buffers parked per class at most (4 KiB for the queue). Together with a thread's ring that is more than
/// a queue of 256 messages to another thread keeps in flight; below that, each further one is made anew.
const RETAINED_ITEMS_MAX: u64 = 256;

/// One class of one pool.
#[derive(Debug)]
pub(crate) struct Class {
    /// Without flags.
    pub(crate) tag: Tag,
    /// Buffers in a magazine at most: what a slot holds, and what threads exchange. 0: no thread tier.
    pub(crate) magazine_len: usize,
    /// Whether a thread may keep a second magazine, so that a load swinging about a magazine's boundary stays local.
    pub(crate) spare: bool,
    /// Retained frozen buffers that a thread keeps at most, besides the last one in its slot.
    pub(crate) ring_len: usize,
    pub(crate) depot: Depot<Magazine>,
    pub(crate) retained: Depot<Box<BytesBox>>,
    /// Buffers in the magazines of the depot.
    pub(crate) parked: AtomicU64,
    pub(crate) guard_hits: AtomicU64,
    pub(crate) bytes_hits: AtomicU64,
    pub(crate) shared_hits: AtomicU64,
    pub(crate) created: AtomicU64,
    pub(crate) unpooled: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) freed: AtomicU64,
}

/// The shared part of a pool. Threads that hold buffers of it keep it alive.
#[derive(Debug)]
pub(crate) struct Core {
    id: u64,
    pub(crate) config: Config,
    /// The largest request that a class serves.
    pub(crate) class_request_max: usize,
    pub(crate) budget: Budget,
    pub(crate) classes: [Class; CLASSES],
    pub(crate) oversized: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// The living pools besides the global one, for threads that return a buffer to a pool that they have
/// not met before. Only slow paths look here.
static POOLS: Mutex<BTreeMap<u64, Weak<Core>>> = Mutex::new(BTreeMap::new());

static GLOBAL: LazyLock<Arc<Core>> = LazyLock::new(|| Arc::new(Core::with_id(0, Config::new())));

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Class {
    fn new(tag: Tag, thread_buffers: usize, config: &Config) -> Self {
        let bytes = bytes_of(tag.class()) as u64;
        let magazine_len = (thread_buffers / 2).max(usize::from(thread_buffers > 0));
        let fits = config.budget_bytes / bytes;
        let depot_items = |item_len: u64, items_max: u64| {
            let items = (fits / item_len).clamp(1, items_max);
            usize::try_from(items).unwrap_or(1)
        };
        let retained_len = depot_items(1, RETAINED_ITEMS_MAX);
        let retained = if config.refuse_beyond_budget {
            // A handle that found no place would release the charge of memory that is still read. The budget bounds
            // the handles.
            Depot::growing(retained_len)
        } else {
            Depot::new(retained_len)
        };
        Self {
            tag,
            magazine_len,
            spare: thread_buffers >= 2,
            ring_len: thread_buffers.saturating_sub(1),
            depot: Depot::new(depot_items(magazine_len.max(1) as u64, DEPOT_ITEMS_MAX)),
            retained,
            parked: AtomicU64::new(0),
            guard_hits: AtomicU64::new(0),
            bytes_hits: AtomicU64::new(0),
            shared_hits: AtomicU64::new(0),
            created: AtomicU64::new(0),
            unpooled: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            freed: AtomicU64::new(0),
        }
    }

    /// Takes the oldest magazine of the shared tier.
    pub(crate) fn unpark(&self) -> Option<Magazine> {
        let magazine = self.depot.take()?;
        self.parked.fetch_sub(magazine.len as u64, Relaxed);
        Some(magazine)
    }

    pub(crate) fn bytes(&self) -> u64 {
        bytes_of(self.tag.class()) as u64
    }
}

pub(crate) fn add(cell: &AtomicU64, amount: u64) {
    cell.fetch_add(amount, Relaxed);
}

impl Core {
    /// The global pool's core. Its id is 0, and it is never closed.
    pub(crate) fn global() -> &'static Arc<Self> {
        &GLOBAL
    }

    /// A core of its own, which others find by its id.
    pub(crate) fn registered(config: Config) -> Arc<Self> {
        let core = Arc::new(Self::with_id(NEXT_ID.fetch_add(1, Relaxed), config));
        lock(&POOLS).insert(core.id, Arc::downgrade(&core));
        core
    }

    fn with_id(id: u64, config: Config) -> Self {
        let thread_buffers = config.thread_buffers();
        Self {
            id,
            class_request_max: config.request_bytes_max.min(CLASS_BYTES_MAX),
            budget: Budget::new(config.budget_bytes),
            classes: std::array::from_fn(|class| {
                Class::new(Tag::new(id, class), thread_buffers[class], &config)
            }),
            config,
            oversized: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The pool with this id, if it still lives.
    pub(crate) fn find(id: u64) -> Option<Arc<Self>> {
        if id == 0 {
            return Some(Arc::clone(Self::global()));
        }
        lock(&POOLS).get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Which of a thread's pool slots this pool uses.
    pub(crate) fn pool_slot(&self) -> usize {
        self.classes[0].tag.pool_slot()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.classes[0].depot.is_closed()
    }

    /// The pool was dropped: frees what is parked, and keeps no more.
    pub(crate) fn close(&self) {
        lock(&POOLS).remove(&self.id);
        for class in &self.classes {
            class.depot.close(|magazine| {
                class.parked.fetch_sub(magazine.len as u64, Relaxed);
                self.free_magazine(class, magazine);
            });
            class.retained.close(|boxed| self.free_bytes(class, boxed));
        }
    }

    /// The tag for a buffer of this class, with the pool's habits.
    pub(crate) fn tag_of(&self, class: &Class) -> Tag {
        class.tag.clearing(self.config.clear_on_return)
    }

    /// Charges one buffer of a class, after freeing parked ones of other classes if need be.
    pub(crate) fn charge(&self, class: &Class) -> bool {
        let charged = self.budget.reserve(class.bytes()) || self.reclaim_for(class.bytes());
        if charged {
            add(&class.created, 1);
        }
        charged
    }

    /// Charges a buffer that exists already. Frees nothing for it.
    pub(crate) fn charge_existing(&self, class: &Class) -> bool {
        let charged = !self.is_closed() && self.budget.reserve(class.bytes());
        if charged {
            add(&class.created, 1);
        }
        charged
    }

    /// Frees parked buffers, largest class first, until `bytes` could be charged.
    fn reclaim_for(&self, bytes: u64) -> bool {
        for class in self.classes.iter().rev() {
            for _ in 0..class.depot.len() {
                let Some(magazine) = class.unpark() else {
                    break;
                };
                self.free_magazine(class, magazine);
                if self.budget.reserve(bytes) {
                    return true;
                }
            }
            self.trim_retained(class);
            if self.budget.reserve(bytes) {
                return true;
            }
        }
        false
    }

    /// One parked buffer, without a thread tier.
    pub(crate) fn take_single(&self, class: &Class) -> Option<Box<BufferBox>> {
        let (boxed, rest) = class.unpark()?.split_first();
        add(&class.shared_hits, 1);
        if let Some(rest) = rest {
            self.park(class, rest);
        }
        Some(boxed)
    }

    /// Parks a magazine, or frees it if the shared tier is full or closed.
    pub(crate) fn park(&self, class: &Class, magazine: Magazine) {
        let len = magazine.len as u64;
        // Counted before the magazine can be taken, so that the sum never goes below zero.
        add(&class.parked, len);
        if let Err(magazine) = class.depot.put(magazine) {
            class.parked.fetch_sub(magazine.len as u64, Relaxed);
            self.free_magazine(class, magazine);
        }
    }

    /// Frees a magazine and says how many bytes that were.
    pub(crate) fn free_magazine(&self, class: &Class, magazine: Magazine) -> u64 {
        let mut count = 0;
        let mut rest = Some(magazine);
        // One by one: dropping a linked magazine would recurse.
        while let Some(magazine) = rest {
            let (boxed, next) = magazine.split_first();
            drop(boxed);
            count += 1;
            rest = next;
        }
        add(&class.freed, count);
        self.budget.release(count * class.bytes());
        count * class.bytes()
    }

    /// Lets go of a buffer whose memory the pool no longer owns, or no longer wants.
    pub(crate) fn discard(&self, class: &Class) {
        add(&class.discarded, 1);
        self.budget.release(class.bytes());
    }

    /// Parks a retained frozen buffer, or lets go of it.
    pub(crate) fn retain(&self, class: &Class, boxed: Box<BytesBox>) {
        if let Err(boxed) = class.retained.put(boxed) {
            self.free_bytes(class, boxed);
        }
    }

    /// Lets go of a retained buffer. While clones of the frozen bytes live, the memory is theirs.
    pub(crate) fn free_bytes(&self, class: &Class, boxed: Box<BytesBox>) {
        drop(boxed);
        add(&class.freed, 1);
        self.budget.release(class.bytes());
    }

    /// Frees the parked frozen buffers that have no reader any more.
    pub(crate) fn trim_retained(&self, class: &Class) -> u64 {
        let mut bytes = 0;
        for _ in 0..class.retained.len() {
            let Some(mut boxed) = class.retained.take() else {
                break;
            };
            if boxed.try_reclaim() {
                self.free_bytes(class, boxed);
                bytes += class.bytes();
            } else {
                self.retain(class, boxed);
            }
        }
        bytes
    }
}
