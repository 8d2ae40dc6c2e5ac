//! Random sequences against a reference model of the accounting.
#![cfg(not(perf_loom))]

use bytes::Bytes;
use perf_pool::{BufferGuard, BufferPool, CLASSES, Config};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Get(usize),
    Write(usize, usize),
    Swap(usize, usize),
    Detach(usize),
    Freeze(usize),
    Drop(usize),
    DropFrozen(usize),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..3000_usize, 0..200_000_usize, Just((1 << 20) + 1)];
    prop_oneof![
        4 => size.clone().prop_map(Step::Get),
        3 => (any::<usize>(), size.clone()).prop_map(|(at, len)| Step::Write(at, len)),
        1 => (any::<usize>(), size).prop_map(|(at, len)| Step::Swap(at, len)),
        1 => any::<usize>().prop_map(Step::Detach),
        2 => any::<usize>().prop_map(Step::Freeze),
        3 => any::<usize>().prop_map(Step::Drop),
        2 => any::<usize>().prop_map(Step::DropFrozen),
        1 => Just(Step::Trim),
    ]
}

/// What a lent buffer must contain, and its charge as long as its capacity is right.
struct Lent {
    guard: BufferGuard,
    content: Vec<u8>,
    /// Whether it counts against the budget.
    is_pooled: bool,
}

struct Frozen {
    bytes: Bytes,
    content: Vec<u8>,
    /// Whether the bytes hold a pooled guard.
    holds_guard: bool,
}

/// Requests that were served without the pool.
fn outside(pool: &BufferPool) -> u64 {
    let stats = pool.stats();
    let unpooled: u64 = stats.classes.iter().map(|class| class.unpooled).sum();
    unpooled + stats.oversized + stats.refused
}

const BUDGET: u64 = 1 << 20;

#[derive(Default)]
struct World {
    clears: bool,
    lent: Vec<Lent>,
    frozen: Vec<Frozen>,
}

impl World {
    fn run(&mut self, pool: &BufferPool, step: Step) {
        let at = |at: usize, len: usize| (len > 0).then(|| at % len);
        match step {
            Step::Get(hint) => {
                let before = outside(pool);
                let guard = pool.get(hint);
                assert!(guard.get().is_empty() && guard.get().capacity() >= hint);
                self.lent.push(Lent {
                    guard,
                    content: Vec::new(),
                    is_pooled: outside(pool) == before,
                });
            }
            Step::Write(index, len) => {
                if let Some(index) = at(index, self.lent.len()) {
                    let lent = &mut self.lent[index];
                    let bytes = vec![len as u8; len % 5000];
                    lent.guard.get_mut().extend_from_slice(&bytes);
                    lent.content.extend_from_slice(&bytes);
                }
            }
            Step::Swap(index, capacity) => {
                if let Some(index) = at(index, self.lent.len()) {
                    let lent = &mut self.lent[index];
                    *lent.guard.get_mut() = Vec::with_capacity(capacity);
                    lent.content.clear();
                }
            }
            Step::Detach(index) => {
                if let Some(index) = at(index, self.lent.len()) {
                    let lent = self.lent.swap_remove(index);
                    assert_eq!(lent.guard.detach(), lent.content);
                }
            }
            Step::Freeze(index) => {
                if let Some(index) = at(index, self.lent.len()) {
                    let lent = self.lent.swap_remove(index);
                    let is_small = lent.content.len() <= 1024;
                    let is_owned = !lent.content.is_empty() && (self.clears || !is_small);
                    self.frozen.push(Frozen {
                        bytes: lent.guard.freeze(),
                        content: lent.content,
                        holds_guard: lent.is_pooled && is_owned,
                    });
                }
            }
            Step::Drop(index) => {
                if let Some(index) = at(index, self.lent.len()) {
                    drop(self.lent.swap_remove(index));
                }
            }
            Step::DropFrozen(index) => {
                if let Some(index) = at(index, self.frozen.len()) {
                    drop(self.frozen.swap_remove(index));
                }
            }
            Step::Trim => {
                pool.trim();
            }
        }
    }

    fn check(&self, pool: &BufferPool) {
        for lent in &self.lent {
            assert_eq!(&lent.guard[..], &lent.content[..]);
        }
        for frozen in &self.frozen {
            assert_eq!(&frozen.bytes[..], &frozen.content[..]);
        }
        let stats = pool.stats();
        // What was made and has not left is what is charged.
        let charged: u64 = stats
            .classes
            .iter()
            .map(|class| (class.created - class.discarded - class.freed) * class.class_bytes)
            .sum();
        assert_eq!(stats.charged_bytes, charged);
        assert!(stats.charged_bytes_peak <= BUDGET);
        // Every pooled guard is counted as lent, and besides at most the buffer frozen last in each class.
        let guards = self.lent.iter().filter(|lent| lent.is_pooled).count()
            + self
                .frozen
                .iter()
                .filter(|frozen| frozen.holds_guard)
                .count();
        let lent: u64 = stats.classes.iter().map(|class| class.lent).sum();
        let most = guards as u64 + CLASSES as u64;
        assert!(
            (guards as u64..=most).contains(&lent),
            "{lent} for {guards} guards"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_accounting_equals_the_model(steps in prop::collection::vec(step(), 1..120), clear: bool) {
        let pool = BufferPool::new(
            Config::new().budget_bytes(BUDGET).thread_bytes_max(96 * 1024).clear_on_return(clear),
        );
        let mut world = World {
            clears: clear,
            ..World::default()
        };
        for step in steps {
            world.run(&pool, step);
            world.check(&pool);
        }
        drop(world);
        pool.trim();
        prop_assert_eq!(pool.stats().charged_bytes, 0);
    }
}
