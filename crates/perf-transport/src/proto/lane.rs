//! What waits to be written to one connection, by class, within its budget.

use super::batch::BatchBlock;
use super::block::Block;
use super::frame::{Header, Kind};
use super::line::{Line, Turn, Waiter};
use crate::payload::Payload;
use crate::primitive::{Mutex, mutant};
use bytes::Bytes;
use std::collections::VecDeque;
use std::mem;
use std::task::{Poll, Waker};

/// The most services and methods that a connection gives numbers to.
pub const METHODS_MAX: usize = 2048;
const ANNOUNCED_WORDS: usize = METHODS_MAX / 64;
/// What a class of weight 1 may write in its turn before the other one has its own.
const QUANTUM_BYTES: i64 = 16 * 1024;
/// Frames of the connection's own that may wait before it stops to say that it lives.
const SIGNS_OF_LIFE_MAX: usize = 64;
/// Blocks kept for the next frames: what a busy lane alternates between.
const SPARES_MAX: usize = 4;

/// Bounds and weight of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Bytes that may wait, headers included.
    pub bytes_max: usize,
    /// Frames that may wait.
    pub frames_max: usize,
    /// Its share beside the other lane, while both have something to write.
    pub weight: u32,
}

/// Which lane of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Lane {
    /// The connection's own frames. Always first; bounded by those who queue there.
    System = 0,
    /// The more urgent of the connection's two classes.
    First = 1,
    /// The other one.
    Second = 2,
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotQueued {
    /// The budget is used up.
    Full,
    /// It is a new message, and the lanes are [closed](Lanes::close).
    Closed,
    /// The peer takes no payload of this length.
    TooLong {
        /// What it takes.
        bytes_max: u32,
    },
    /// The peer does not know trace contexts: queue the message without its own.
    Untraced,
    /// The peer does not know requests whose answers come in chunks.
    Unsupported,
}

/// What the peer of a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// The longest payload.
    pub frame_bytes_max: u32,
    /// Whether messages may have trace contexts.
    pub traces: bool,
    /// Whether answers may come in chunks.
    pub watches: bool,
}

impl Takes {
    /// Everything but longer payloads.
    #[must_use]
    pub const fn all(frame_bytes_max: u32) -> Self {
        Self {
            frame_bytes_max,
            traces: true,
            watches: true,
        }
    }
}

/// What is to be queued.
#[derive(Clone, Copy)]
struct Size {
    bytes: usize,
    frames: usize,
    /// The longest payload in it.
    longest: usize,
    /// New messages, not frames of what was begun.
    is_new: bool,
    kind: Kind,
}

#[derive(Debug)]
struct LaneState {
    blocks: VecDeque<Block>,
    bytes: usize,
    frames: usize,
    limits: LaneLimits,
    deficit: i64,
    /// A bit for each number whose `Define` is in this lane or was written.
    announced: [u64; ANNOUNCED_WORDS],
    line: Line,
}

#[derive(Debug)]
struct State {
    lanes: [LaneState; 3],
    spares: Vec<Block>,
    /// As far as is known.
    takes: Takes,
    /// Frames that had a name to announce, since the beginning.
    messages: u64,
    /// Frames that were dropped by `clear` since the beginning.
    dropped: u64,
    /// No new messages.
    is_closed: bool,
}

/// The three lanes of a connection under one lock, which is held for a copy of a small frame, or for moving blocks.
///
/// Frames are put together when they are queued, so that draining moves whole blocks. Memory: at most the two budgets, what is in the
/// system lane, and a few spare blocks.
#[derive(Debug)]
pub struct Lanes {
    state: Mutex<State>,
    checksum: bool,
}

impl LaneState {
    fn new(limits: LaneLimits) -> Self {
        Self {
            blocks: VecDeque::new(),
            bytes: 0,
            frames: 0,
            limits,
            deficit: 0,
            announced: [0; ANNOUNCED_WORDS],
            line: Line::default(),
        }
    }

    #[inline]
    fn has_room(&self, bytes: usize, frames: usize) -> bool {
        let LaneLimits {
            bytes_max,
            frames_max,
            ..
        } = self.limits;
        self.bytes + bytes <= bytes_max && self.frames + frames <= frames_max
    }
}

impl State {
    /// Whether the peer takes a frame of this kind with a payload of this length.
    #[inline]
    fn check(&self, bytes: usize, kind: Kind) -> Result<(), NotQueued> {
        let Takes {
            frame_bytes_max,
            traces,
            watches,
        } = self.takes;
        if bytes > frame_bytes_max as usize && !mutant::is("cap_unknown_to_lanes") {
            return Err(NotQueued::TooLong {
                bytes_max: frame_bytes_max,
            });
        }
        // Every peer of this version takes all kinds.
        if !traces && kind.untraced().is_some() {
            return Err(NotQueued::Untraced);
        }
        if !watches && kind.is_watch() {
            return Err(NotQueued::Unsupported);
        }
        Ok(())
    }

    #[inline]
    fn put(&mut self, lane: usize, header: Header, payload: &Payload<'_>, sum: Option<u32>) {
        let Self { lanes, spares, .. } = self;
        let lane = &mut lanes[lane];
        lane.bytes += Block::frame_bytes(payload.len(), sum.is_some());
        lane.frames += 1;
        if let Some(block) = lane.blocks.back_mut()
            && block.try_push(header, payload, sum)
        {
            return;
        }
        let spare = spares.pop_if(|block| !block.is_full_for(payload));
        let mut next = spare.unwrap_or_else(|| Block::beginning_with(payload));
        next.push_summed(header, payload, sum);
        lane.blocks.push_back(next);
    }

    /// Queues frames that were put together elsewhere, and leaves an empty block in their place.
    #[inline]
    fn append(&mut self, lane: Lane, block: &mut Block) {
        let waiting = &mut self.lanes[lane as usize];
        let (bytes, frames) = (block.bytes(), block.frames());
        if let Some(last) = waiting.blocks.back_mut()
            && last.absorb(block)
        {
            waiting.bytes += bytes;
            waiting.frames += frames;
            return;
        }
        let empty = self
            .spares
            .pop_if(|block| block.is_roomy())
            .unwrap_or_default();
        let full = mem::replace(block, empty);
        let lane = &mut self.lanes[lane as usize];
        lane.bytes += full.bytes();
        lane.frames += full.frames();
        lane.blocks.push_back(full);
    }
}

impl Lanes {
    /// Empty lanes.
    #[must_use]
    pub fn new(first: LaneLimits, second: LaneLimits, checksum: bool) -> Self {
        let system = LaneLimits {
            bytes_max: usize::MAX,
            frames_max: usize::MAX,
            weight: 1,
        };
        Self {
            state: Mutex::new(State {
                lanes: [system, first, second].map(LaneState::new),
                spares: Vec::new(),
                takes: Takes::all(u32::MAX),
                messages: 0,
                dropped: 0,
                is_closed: false,
            }),
            checksum,
        }
    }

    /// Made before the lock is taken.
    #[inline]
    fn sum(&self, header: Header, payload: &Payload<'_>) -> Option<u32> {
        self.checksum.then(|| Block::checksum(header, payload))
    }

    /// Whether frames carry checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.checksum
    }

    /// Queues a frame. `define` announces the header's method where this is its first frame in the lane; a frame that has one is a new message.
    ///
    /// # Errors
    /// [`NotQueued`]: the lane's budget has no room, the payload is longer than the peer takes, or the frame is a new message and the lanes are
    /// [closed](Self::close).
    #[inline]
    pub fn push(
        &self,
        lane: Lane,
        header: Header,
        payload: &Payload<'_>,
        define: Option<&Bytes>,
    ) -> Result<(), NotQueued> {
        let bytes = Block::frame_bytes(payload.len(), self.checksum);
        let sum = self.sum(header, payload);
        let mut state = self.state.lock();
        if state.is_closed && define.is_some() {
            return Err(NotQueued::Closed);
        }
        state.check(payload.len(), header.kind)?;
        if !state.lanes[lane as usize].has_room(bytes, 1) {
            return Err(NotQueued::Full);
        }
        self.put(&mut state, lane, header, (payload, sum), define);
        Ok(())
    }

    /// Queues a frame whether there is room or not: the last word on something that had room when it was queued, such as the end of a body that is
    /// broken off. There are at most as many of these as of the others.
    pub fn push_past_limit(&self, lane: Lane, header: Header, payload: &Payload<'_>) {
        let sum = self.sum(header, payload);
        let mut state = self.state.lock();
        self.put(&mut state, lane, header, (payload, sum), None);
    }

    #[inline]
    fn put(
        &self,
        state: &mut State,
        lane: Lane,
        header: Header,
        (payload, sum): (&Payload<'_>, Option<u32>),
        define: Option<&Bytes>,
    ) {
        if let Some(define) = define {
            state.messages += 1;
            self.announce(state, lane, header.method, define);
        }
        state.put(lane as usize, header, payload, sum);
    }

    /// Queues a method's name, unless it is in this lane or was written.
    #[inline]
    fn announce(&self, state: &mut State, lane: Lane, method: u16, define: &Bytes) {
        let (word, bit) = (usize::from(method) / 64, method % 64);
        let announced = &mut state.lanes[lane as usize].announced;
        if let Some(word) = announced
            .get_mut(word)
            .filter(|word| **word >> bit & 1 == 0)
        {
            *word |= 1 << bit;
            let first = Header::new(Kind::Define, method, 0);
            let define = Payload::Shared(define.clone());
            let sum = self.sum(first, &define);
            state.put(lane as usize, first, &define, sum);
        }
    }

    /// Queues a frame as [`push`](Self::push) does, or puts the caller in line for room. Whoever waits calls this again when woken, and
    /// [`forget`](Self::forget) when it no longer wants to.
    ///
    /// The second value is a waker to be called by whoever gets it: the next in line, where there is room left.
    ///
    /// # Errors
    /// [`NotQueued::Full`] if the caller is in line now; it is not with the others.
    pub fn push_or_wait(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        lane: Lane,
        header: Header,
        payload: &Payload<'_>,
        define: Option<&Bytes>,
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let bytes = Block::frame_bytes(payload.len(), self.checksum);
        let sum = self.sum(header, payload);
        let size = Size {
            bytes,
            frames: 1,
            longest: payload.len(),
            is_new: define.is_some(),
            kind: header.kind,
        };
        self.in_turn(waiter, waker, lane, size, |state| {
            self.put(state, lane, header, (payload, sum), define);
        })
    }

    /// Waits in turn for room for a message, and leaves the turn to the next one. Also ready when the lanes are [closed](Self::close).
    pub fn poll_room(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        lane: Lane,
        payload_bytes: usize,
    ) -> Poll<()> {
        let bytes = Block::frame_bytes(payload_bytes, self.checksum);
        let size = Size {
            bytes,
            frames: 1,
            longest: payload_bytes,
            is_new: true,
            kind: Kind::Request,
        };
        let (result, next) = self.in_turn(waiter, waker, lane, size, |_| ());
        if let Some(next) = next {
            next.wake();
        }
        match result {
            Err(NotQueued::Full) => Poll::Pending,
            Ok(()) | Err(_) => Poll::Ready(()),
        }
    }

    /// Queues the messages of a batch, all of them or none, as [`push_or_wait`](Self::push_or_wait) does with one. `define` announces their
    /// method. Leaves the batch empty.
    ///
    /// # Errors
    /// As there; the batch has its messages then.
    pub fn push_batch_or_wait(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        lane: Lane,
        batch: &mut BatchBlock,
        (method, define): (u16, &Bytes),
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let longest = batch.longest();
        let block = batch.complete();
        let size = Size {
            bytes: block.bytes(),
            frames: block.frames(),
            longest,
            is_new: true,
            kind: Kind::Batch,
        };
        self.in_turn(waiter, waker, lane, size, |state| {
            state.messages += size.frames as u64;
            if !mutant::is("batch_without_name") {
                self.announce(state, lane, method, define);
            }
            state.append(lane, block);
        })
    }

    /// Calls `put` if there is room and it is the waiter's turn; otherwise the waiter is in line.
    #[inline]
    fn in_turn(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        lane: Lane,
        size: Size,
        put: impl FnOnce(&mut State),
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let refused = if state.is_closed && size.is_new {
            Err(NotQueued::Closed)
        } else {
            state.check(size.longest, size.kind)
        };
        let mine = &mut state.lanes[lane as usize];
        if let Err(refused) = refused {
            return (Err(refused), mine.line.leave(waiter));
        }
        // Those who were there before go first.
        let turn = mine.line.turn(waiter);
        if turn != Turn::Waits && mine.has_room(size.bytes, size.frames) {
            let next = mine.line.served(waiter);
            put(state);
            return (Ok(()), next);
        }
        mine.line.wait(waiter, waker, turn);
        (Err(NotQueued::Full), None)
    }

    /// The waiter gives up. If it was its turn, the turn goes to the next in line, whose waker is returned.
    pub fn forget(&self, waiter: &mut Waiter, lane: Lane) -> Option<Waker> {
        // Most never waited, and need not lock.
        if !waiter.is_in_line() {
            return None;
        }
        self.state.lock().lanes[lane as usize].line.leave(waiter)
    }

    /// Queues a frame by which the connection asks or says that it lives, unless many frames of its own wait already. A peer that asks and
    /// reads nothing would fill this node's memory otherwise, and each of them says the same.
    pub fn push_sign_of_life(&self, header: Header) {
        let payload = Payload::default();
        let sum = self.sum(header, &payload);
        let mut state = self.state.lock();
        let many = state.lanes[Lane::System as usize].frames >= SIGNS_OF_LIFE_MAX;
        if !many || mutant::is("pong_without_bound") {
            self.put(&mut state, Lane::System, header, (&payload, sum), None);
        }
    }

    /// Queues credit for a body that this side reads. `false` if so many frames of the connection's own wait already.
    ///
    /// A peer cannot use credit that it has not got, so an honest one is owed two grants for each body at most. One that sends without reading
    /// would fill this node's memory with grants otherwise.
    #[must_use]
    pub fn push_credit(&self, header: Header, bytes: u32, frames_max: usize) -> bool {
        let bytes = bytes.to_le_bytes();
        let payload = Payload::Borrowed(&bytes);
        let sum = self.sum(header, &payload);
        let mut state = self.state.lock();
        let has_room = state.lanes[Lane::System as usize].frames < frames_max;
        if has_room {
            self.put(&mut state, Lane::System, header, (&payload, sum), None);
        }
        has_room
    }

    /// Bytes that wait, all lanes together, and whether somebody waits for room.
    #[must_use]
    pub fn pressure(&self) -> (usize, bool) {
        let state = self.state.lock();
        let lanes = state.lanes.iter();
        lanes.fold((0, false), |(bytes, waits), lane| {
            (bytes + lane.bytes, waits || !lane.line.is_empty())
        })
    }

    /// How many wait for room in a lane.
    #[must_use]
    pub fn waiters(&self, lane: Lane) -> usize {
        self.state.lock().lanes[lane as usize].line.waiters()
    }

    /// Queues frames that were put together elsewhere, and leaves an empty block for the next ones.
    #[inline]
    pub fn exchange_block(&self, lane: Lane, block: &mut Block) {
        self.state.lock().append(lane, block);
    }

    /// Moves blocks to `sink` until `bytes_max` bytes are there, by deficit round robin between the two classes, the system lane first.
    /// Returns who is to be woken because there is room now, and whether the lanes are empty.
    #[inline]
    pub fn drain(
        &self,
        bytes_max: usize,
        done: &mut Vec<Block>,
        mut sink: impl FnMut(Block),
    ) -> ([Option<Waker>; 2], bool) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        while state.spares.len() < SPARES_MAX {
            let Some(block) = done.pop() else { break };
            state.spares.push(block);
        }
        let mut bytes = 0;
        let [system, first, second] = &mut state.lanes;
        while let Some(block) = system.blocks.pop_front() {
            bytes += block.bytes();
            system.bytes -= block.bytes();
            system.frames -= block.frames();
            sink(block);
        }
        let mut wakers = [None, None];
        while bytes < bytes_max {
            if first.blocks.is_empty() && second.blocks.is_empty() {
                break;
            }
            for (lane, waker) in [&mut *first, &mut *second].into_iter().zip(&mut wakers) {
                if lane.blocks.is_empty() {
                    // An idle class saves up nothing.
                    lane.deficit = 0;
                    continue;
                }
                if lane.deficit <= 0 {
                    lane.deficit += QUANTUM_BYTES * i64::from(lane.limits.weight.max(1));
                }
                while lane.deficit > 0 && bytes < bytes_max {
                    let Some(block) = lane.blocks.pop_front() else {
                        break;
                    };
                    lane.deficit -= i64::try_from(block.bytes()).unwrap_or(i64::MAX);
                    bytes += block.bytes();
                    lane.bytes -= block.bytes();
                    lane.frames -= block.frames();
                    sink(block);
                    if waker.is_none() {
                        *waker = lane.line.wake_next();
                    }
                }
            }
        }
        (wakers, first.blocks.is_empty() && second.blocks.is_empty())
    }

    /// From now on new messages are refused; frames of what was begun are taken. Returns who waits for room, to be woken: some of them may
    /// have to go another way.
    ///
    /// Whoever finds a connection open and queues a message a moment later would otherwise queue it behind the connection's end.
    pub fn close(&self) -> Vec<Waker> {
        let mut state = self.state.lock();
        state.is_closed = !mutant::is("lanes_stay_open");
        let lanes = state.lanes.iter_mut();
        lanes.flat_map(|lane| lane.line.dismiss()).collect()
    }

    /// The same if they are open and nothing is queued; `false` otherwise, and then nothing has changed. For a connection that ends because
    /// nobody uses it: what is refused from now on belongs to the next one, see [`renew`](Self::renew).
    #[must_use]
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        let is_free = !state.is_closed && state.lanes.iter().all(|lane| lane.frames == 0);
        state.is_closed |= is_free;
        is_free
    }

    /// Takes new messages again, for the next connection, on which names have to be announced anew. To be called on empty lanes that are closed.
    pub fn renew(&self) {
        let mut state = self.state.lock();
        for lane in &mut state.lanes {
            if !mutant::is("names_outlive_connection") {
                lane.announced = [0; ANNOUNCED_WORDS];
            }
            lane.deficit = 0;
        }
        state.is_closed = false;
    }

    /// What the peer of the coming connection takes: other messages are refused from now on. Takes out the queued frames that are too long or of
    /// kinds that the peer does not know, and returns their headers; takes trace contexts off that the peer would not know. Chunks of bodies are cut instead. Only for lanes that nothing is written from: it costs a copy of
    /// what is queued where a frame is too long, and a look at each block otherwise.
    #[must_use]
    pub fn fit_to(&self, takes: Takes) -> Vec<Header> {
        let mut removed = Vec::new();
        let mut guard = self.state.lock();
        guard.takes = takes;
        for lane in &mut guard.lanes {
            for block in &mut lane.blocks {
                let (bytes, frames) = (block.bytes(), block.frames());
                block.fit_to(takes, self.checksum, &mut removed);
                lane.bytes = lane.bytes - bytes + block.bytes();
                lane.frames = lane.frames - frames + block.frames();
            }
            lane.blocks.retain(|block| !block.is_empty());
        }
        guard.dropped += removed.len() as u64;
        removed
    }

    /// New messages are taken again: for the next connection.
    pub fn open(&self) {
        self.state.lock().is_closed = false;
    }

    /// Forgets all frames and announcements: the connection is gone. Returns who waits for room, to be woken.
    pub fn clear(&self) -> Vec<Waker> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut wakers = Vec::new();
        for lane in &mut state.lanes {
            state.dropped += lane.frames as u64;
            lane.blocks.clear();
            lane.bytes = 0;
            lane.frames = 0;
            lane.deficit = 0;
            lane.announced = [0; ANNOUNCED_WORDS];
            wakers.extend(lane.line.dismiss());
        }
        wakers
    }

    /// Bytes and frames that wait, all lanes together.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        let state = self.state.lock();
        state.lanes.iter().fold((0, 0), |(bytes, frames), lane| {
            (bytes + lane.bytes, frames + lane.frames)
        })
    }

    /// Bytes and frames that wait in each lane.
    #[must_use]
    pub fn depths(&self) -> [(usize, usize); 3] {
        let state = self.state.lock();
        [0, 1, 2].map(|place| (state.lanes[place].bytes, state.lanes[place].frames))
    }

    /// Messages that were queued since the beginning: frames with a name.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.state.lock().messages
    }

    /// Frames that were dropped because their connection was lost, since the beginning.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;

    /// Who has found its payload short enough before, and queues it behind the look at what is queued, is refused all the same.
    #[test]
    fn what_the_peer_does_not_take_is_not_queued_once_that_is_known() {
        let limits = LaneLimits {
            bytes_max: 1 << 20,
            frames_max: 100,
            weight: 1,
        };
        let lanes = Lanes::new(limits, limits, false);
        let header = Header::new(Kind::OneWay, 0, 0);
        let push = |bytes: usize| {
            let payload = vec![7; bytes];
            lanes.push(Lane::First, header, &Payload::Borrowed(&payload), None)
        };
        let takes = Takes::all;
        assert_eq!(push(5000), Ok(()));
        assert_eq!(lanes.fit_to(takes(4096)).len(), 1);
        let bytes_max = 4096;
        assert_eq!(push(5000), Err(NotQueued::TooLong { bytes_max }));
        assert_eq!(push(4096), Ok(()));
        let mut waiter = Waiter::default();
        let long = vec![7; 5000];
        let long = Payload::Borrowed(&long);
        let (waited, next) =
            lanes.push_or_wait(&mut waiter, Waker::noop(), Lane::First, header, &long, None);
        assert_eq!(waited, Err(NotQueued::TooLong { bytes_max }));
        assert!(next.is_none() && lanes.waiters(Lane::First) == 0);
        let mut batch = BatchBlock::new(0, limits, false);
        assert!(batch.push(&Payload::Borrowed(b"short")) && batch.push(&long));
        let name = Bytes::new();
        let (queued, _) = lanes.push_batch_or_wait(
            &mut waiter,
            Waker::noop(),
            Lane::First,
            &mut batch,
            (0, &name),
        );
        assert_eq!(queued, Err(NotQueued::TooLong { bytes_max }));
        assert_eq!((batch.messages(), batch.longest()), (2, 5000));
        // Another connection may take more.
        assert!(lanes.fit_to(takes(1 << 20)).is_empty());
        assert_eq!(push(5000), Ok(()));
    }
}
