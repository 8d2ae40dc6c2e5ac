//! In which order entries are thrown out: a window of what is new, and a main queue of what has proved itself.
//!
//! W-TinyLFU ("TinyLFU", section 4) with clock queues in the place of lists that are sorted at each read. A read writes to its entry only
//! that it was read. When an entry that was read reaches the head of its queue, the sketch counts it and it goes to the tail. An entry
//! that was not read leaves the window; it enters the main queue if there is room, or if the sketch counts it more often than the entry at
//! the head of the main queue, which is then thrown out in its place.
//!
//! The share of the window is the whole policy: 1 % is TinyLFU, all is an approximation of LRU. It may change at any time; the
//! queues follow it insertion by insertion.

use crate::sketch::Sketch;
use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// An entry moves to a tail, or to the other queue, so often in one search for a victim. The next one then goes although it was read.
const MOVES_MAX: u32 = 64;
/// The entry was read since the policy passed it.
const WAS_READ: u16 = 1;

/// Which queue a slot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum In {
    Nothing,
    Window,
    Main,
}

/// A line of the processor's cache.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Line;

/// Half of one.
#[derive(Debug)]
#[repr(align(32))]
pub(crate) struct HalfLine;

/// What a slot can hold.
pub(crate) trait Payload {
    /// What slots are aligned to, so that a read touches one line.
    type Line: fmt::Debug;
}

/// A place for an entry. In this order: what each read asks for comes first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot<P: Payload> {
    pub(crate) hash: u64,
    /// The tick of the last read, and [`WAS_READ`] in the lowest bit. Relaxed: a hint, for itself.
    read: AtomicU16,
    queue: In,
    pub(crate) weight: u32,
    pub(crate) payload: Option<P>,
    previous: u32,
    /// The next of its queue, or of the free slots.
    pub(crate) next: u32,
    _line: [P::Line; 0],
}

impl<P: Payload> Slot<P> {
    pub(crate) fn new(hash: u64, weight: u32, payload: P, tick: u8) -> Self {
        Self {
            hash,
            read: AtomicU16::new(u16::from(tick) << 1),
            queue: In::Nothing,
            weight,
            payload: Some(payload),
            previous: NONE,
            next: NONE,
            _line: [],
        }
    }

    /// Notes a read; returns whether it is the first one of the tick.
    #[inline]
    pub(crate) fn mark(&self, tick: u8) -> bool {
        let read = self.read.load(Ordering::Relaxed);
        if read >> 1 == u16::from(tick) {
            return false;
        }
        let read = u16::from(tick) << 1 | WAS_READ;
        self.read.store(read, Ordering::Relaxed);
        true
    }
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    head: u32,
    tail: u32,
    weight: u64,
    own: In,
}

impl Queue {
    const fn new(own: In) -> Self {
        Self {
            head: NONE,
            tail: NONE,
            weight: 0,
            own,
        }
    }

    fn push<P: Payload>(&mut self, slots: &mut [Slot<P>], at: u32) {
        let slot = &mut slots[at as usize];
        slot.queue = self.own;
        slot.previous = self.tail;
        slot.next = NONE;
        self.weight += u64::from(slot.weight);
        if self.tail == NONE {
            self.head = at;
        } else {
            slots[self.tail as usize].next = at;
        }
        self.tail = at;
    }

    fn remove<P: Payload>(&mut self, slots: &mut [Slot<P>], at: u32) {
        let slot = &mut slots[at as usize];
        let (previous, next) = (slot.previous, slot.next);
        slot.queue = In::Nothing;
        self.weight -= u64::from(slot.weight);
        if previous == NONE {
            self.head = next;
        } else {
            slots[previous as usize].next = next;
        }
        if next == NONE {
            self.tail = previous;
        } else {
            slots[next as usize].previous = previous;
        }
    }
}

/// What the queues may hold, by weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) capacity: u64,
    /// The window's part of it; at most all.
    pub(crate) window: u64,
}

#[derive(Debug)]
pub(crate) struct Queues {
    window: Queue,
    main: Queue,
    sketch: Sketch,
}

impl Queues {
    pub(crate) const fn new() -> Self {
        Self {
            window: Queue::new(In::Window),
            main: Queue::new(In::Main),
            sketch: Sketch::new(),
        }
    }

    /// For limits whose window is all there is.
    pub(crate) fn without_frequencies(&mut self) {
        self.sketch.turn_off();
    }

    /// See [`Sketch::remember_long`].
    pub(crate) fn remember_long(&mut self) {
        self.sketch.remember_long();
    }

    pub(crate) fn weight(&self) -> u64 {
        self.window.weight + self.main.weight
    }

    /// Makes room for the frequencies of so many entries.
    pub(crate) fn grow(&mut self, entries: usize) {
        self.sketch.grow(entries);
    }

    /// Puts a slot at the tail of the window.
    pub(crate) fn insert<P: Payload>(&mut self, slots: &mut [Slot<P>], at: u32) {
        self.sketch.add(slots[at as usize].hash);
        self.window.push(slots, at);
    }

    /// An entry of another weight takes the place of the one in a slot.
    pub(crate) fn replace<P: Payload>(&mut self, slots: &mut [Slot<P>], at: u32, weight: u32) {
        let slot = &mut slots[at as usize];
        let old = std::mem::replace(&mut slot.weight, weight);
        let queue = if slot.queue == In::Window {
            &mut self.window
        } else {
            &mut self.main
        };
        queue.weight = queue.weight - u64::from(old) + u64::from(weight);
    }

    pub(crate) fn remove<P: Payload>(&mut self, slots: &mut [Slot<P>], at: u32) {
        match slots[at as usize].queue {
            In::Window => self.window.remove(slots, at),
            In::Main => self.main.remove(slots, at),
            In::Nothing => {}
        }
    }

    /// Tells the sketch if a slot was read since the last pass; returns whether it was.
    fn fold<P: Payload>(&mut self, slots: &mut [Slot<P>], at: u32) -> bool {
        let slot = &mut slots[at as usize];
        let read = slot.read.get_mut();
        let was_read = *read & WAS_READ != 0;
        *read &= !WAS_READ;
        if was_read {
            self.sketch.add(slot.hash);
        }
        was_read
    }

    /// The slot that goes next, other than `kept`; `None` if there is no other. Moves [`MOVES_MAX`] entries at most.
    pub(crate) fn victim<P: Payload>(
        &mut self,
        slots: &mut [Slot<P>],
        limits: Limits,
        kept: u32,
    ) -> Option<u32> {
        let main_max = limits.capacity.saturating_sub(limits.window);
        let mut moves = 0;
        loop {
            let window = self.window.head;
            let is_window_over = self.window.weight > limits.window;
            if window == NONE || !is_window_over && self.main.head != NONE {
                return self.main_victim(slots, main_max, kept, &mut moves);
            }
            if window == kept {
                if self.window.tail == kept {
                    return self.main_victim(slots, main_max, kept, &mut moves);
                }
                self.window.remove(slots, window);
                self.window.push(slots, window);
                continue;
            }
            let may_move = moves < MOVES_MAX;
            moves += 1;
            if self.fold(slots, window) && may_move {
                self.window.remove(slots, window);
                self.window.push(slots, window);
                continue;
            }
            let weight = u64::from(slots[window as usize].weight);
            if may_move && self.main.weight + weight <= main_max {
                self.window.remove(slots, window);
                self.main.push(slots, window);
                continue;
            }
            let Some(main) = self.main_victim(slots, main_max, kept, &mut moves) else {
                return Some(window);
            };
            let estimate = |at: u32| self.sketch.estimate(slots[at as usize].hash);
            if estimate(window) <= estimate(main) {
                return Some(window);
            }
            self.window.remove(slots, window);
            self.main.push(slots, window);
            return Some(main);
        }
    }

    fn main_victim<P: Payload>(
        &mut self,
        slots: &mut [Slot<P>],
        main_max: u64,
        kept: u32,
        moves: &mut u32,
    ) -> Option<u32> {
        while self.main.head != NONE {
            let head = self.main.head;
            let is_kept = head == kept;
            if is_kept && self.main.tail == kept {
                return None;
            }
            *moves += 1;
            let goes = !self.fold(slots, head) || *moves >= MOVES_MAX;
            if goes && !is_kept {
                return Some(head);
            }
            let is_over = self.main.weight > main_max;
            self.main.remove(slots, head);
            if is_over && !is_kept {
                self.window.push(slots, head);
            } else {
                self.main.push(slots, head);
            }
        }
        None
    }
}
