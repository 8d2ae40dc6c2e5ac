//! The world of one seed.

use super::Random;
use bytes::{Bytes, BytesMut};
use perf_transport::Payload;
use perf_transport::proto::{
    Admission, ArrivedMessage, Backoff, BatchBuffer, BodyState, BodyStep, CallKey, Channel,
    ChannelLimits, Client, ConnectionClass, Decoder, Define, DialState, Dialer, FEATURE_TRACE,
    FEATURE_WATCH, Fault, Header, Incoming, Kind, Liveness, LivenessLimits, Local, Messages,
    NotQueued, Notified, Progress, QueueLimits, SendQueue, SendWindow, Server, ServerLimits, Takes,
    TimeLimit, Transmit, Verdict, Waiter, accept, check_welcome,
};
use prost::Message;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

const CALLS_MAX: usize = 6;
const FRAMES_MAX: usize = 8;
const BYTES_MAX: usize = 24 * 1024;
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// What a server takes that takes less: some of the payloads are longer.
const FRAME_BYTES_LESS: u32 = 5000;
const WINDOW_BYTES: u32 = 4000;
const PIPE_BYTES: usize = 6000;
const OUTBOX_BYTES: usize = 8000;
const TIMEOUT_MS: u64 = 400;
const DIAL_MS: u64 = 100;
/// How long a caller may be interrupted.
const HESITATION_MS: u64 = 60;
const BACKOFF_MS: u64 = 300;
const TICK_MS_MAX: u64 = 25;
const LIMITS: LivenessLimits = LivenessLimits {
    interval_ms: 50,
    timeout_ms: 200,
    busy_timeout_ms: 500,
    tick_ms: TICK_MS_MAX,
};
/// Steps in which things break, and steps in which everything must come right again.
const STORM_STEPS: u32 = 1500;
const CALM_STEPS: u32 = 1500;

/// What a seed did: to see that the storms are storms.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) replies: u64,
    pub(crate) faults: u64,
    pub(crate) cancelled: u64,
    /// Handlers, because nobody waited for them.
    pub(crate) stopped: u64,
    pub(crate) connects: u64,
    /// Connections that ended because nobody used them.
    pub(crate) idle: u64,
    pub(crate) lost: u64,
    pub(crate) messages: u64,
    pub(crate) batched: u64,
    pub(crate) bodies: u64,
    /// Answers in chunks that were read to their end.
    pub(crate) watches: u64,
    /// Callers that waited for a slot and got one.
    pub(crate) patient: u64,
    /// Times in which the server only asked and read nothing.
    pub(crate) deaf: u64,
    pub(crate) paused: u64,
}

/// A waker that only remembers.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Something that is polled only when it was woken, as an executor would.
struct Task {
    flag: Arc<Flag>,
    waker: Waker,
}

impl Task {
    fn new() -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        Self { flag, waker }
    }

    fn is_woken(&self) -> bool {
        self.flag.0.swap(false, Ordering::Relaxed)
    }
}

/// One direction of a stream of bytes.
#[derive(Default)]
struct Pipe {
    pieces: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
}

impl Pipe {
    fn room(&self) -> usize {
        PIPE_BYTES - self.bytes.min(PIPE_BYTES)
    }

    fn write(&mut self, bytes: &[u8], at_ms: u64) {
        let at_ms = at_ms.max(self.pieces.back().map_or(0, |(last, _)| *last));
        self.bytes += bytes.len();
        self.pieces.push_back((at_ms, bytes.to_vec()));
    }

    fn read(&mut self, now_ms: u64, most: usize) -> Vec<u8> {
        let Some((at_ms, piece)) = self.pieces.front_mut() else {
            return Vec::new();
        };
        if *at_ms > now_ms {
            return Vec::new();
        }
        let rest = piece.split_off(piece.len().min(most));
        let read = std::mem::replace(piece, rest);
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        self.bytes -= read.len();
        read
    }
}

/// The write side of one end, with the turn of whoever owns its write side.
struct Writer {
    transmit: Transmit,
    /// The owner has looked into the queues and comes back to say that it is done.
    has_looked: bool,
}

/// What one end reads with.
struct Reader {
    decoder: Decoder,
    input: BytesMut,
    frames: u64,
    bytes: u64,
    liveness: Liveness,
}

impl Reader {
    fn new(now_ms: u64, frame_bytes_max: u32) -> Self {
        Self {
            decoder: Decoder::new(frame_bytes_max, true),
            input: BytesMut::new(),
            frames: 0,
            bytes: 0,
            liveness: Liveness::new(LIMITS, now_ms),
        }
    }

    /// What has arrived whole. As the shell does, it looks at the header of what has not.
    fn batch(&mut self) -> Result<Bytes, String> {
        let whole = self.decoder.whole_bytes(&self.input);
        let batch = self.input.split_to(whole).freeze();
        let needed = self.decoder.needed(&self.input);
        needed.map_err(|error| error.to_string())?;
        Ok(batch)
    }
}

/// The dialling end of the connection there is.
struct Dialled {
    number: u64,
    writer: Writer,
    reader: Reader,
    client: Client,
}

/// The accepting end, and the replies that handlers still owe.
struct Accepted {
    number: u64,
    channel: Channel,
    writer: Writer,
    reader: Reader,
    server: Server,
    /// When each answer is due, for which request; never for some, until nobody waits for them.
    owed: Vec<(u64, u64, Bytes)>,
    /// Requests of this connection that have arrived.
    begun: HashSet<u64>,
    bodies: Vec<Reading>,
    answering: Vec<Answering>,
}

/// An answer in chunks: its bytes are its number, over and over.
struct Answering {
    id: u64,
    number: u64,
    left: u64,
    window: Arc<SendWindow>,
    task: Task,
}

struct Reading {
    id: u64,
    expected: u64,
    body: Arc<BodyState>,
    task: Task,
    read: Vec<u8>,
}

struct Call {
    number: u64,
    key: CallKey,
    task: Task,
    opened_ms: u64,
}

/// A caller that waits until fewer calls are in flight.
struct Patient {
    waiter: Waiter,
    task: Task,
}

/// Somebody who waits for room, for a message or for a batch of several.
struct Waiting {
    waiter: Waiter,
    task: Task,
    queue: SendQueue,
    number: u64,
    batch: Option<BatchBuffer>,
}

/// A body that is being sent: its bytes are its number, over and over.
struct Sending {
    number: u64,
    key: CallKey,
    window: Arc<SendWindow>,
    task: Task,
    left: u64,
    call: Task,
}

/// An answer in chunks that is being read.
struct Watching {
    number: u64,
    key: CallKey,
    body: Arc<BodyState>,
    task: Task,
    left: u64,
}

/// Which messages have arrived, each once.
#[derive(Default)]
struct Arrived {
    all: HashSet<u64>,
    /// Those that must arrive right behind the one before.
    batched: HashSet<u64>,
    /// Those that a server with a smaller cap does not take.
    long: HashSet<u64>,
    last: u64,
}

impl Arrived {
    fn note(&mut self, number: u64, summary: &mut Summary) -> Result<(), String> {
        if !self.all.insert(number) {
            return Err(format!("message {number} arrived twice"));
        }
        if self.batched.contains(&number) {
            if self.last != number - 1 && !self.long.contains(&(number - 1)) {
                let last = self.last;
                return Err(format!("message {number} of a batch came behind {last}"));
            }
            summary.batched += 1;
        }
        self.last = number;
        summary.messages += 1;
        Ok(())
    }
}

struct World {
    random: Random,
    now_ms: u64,
    ticked_ms: u64,
    channel: Channel,
    dialer: Dialer,
    dialling_until: Option<u64>,
    dialled: Option<Dialled>,
    accepted: Option<Accepted>,
    to_server: Pipe,
    to_client: Pipe,
    connections: u64,
    /// Nothing moves in this direction.
    is_cut: [bool; 2],
    cut_since: Option<u64>,
    calls: Vec<Call>,
    /// Ids of calls that a server with a smaller cap does not take.
    long_calls: HashSet<u64>,
    /// Until then nobody begins anything.
    quiet_until_ms: u64,
    /// When the connection is gone that nobody used.
    ending_until: Option<u64>,
    /// When callers go on that were interrupted.
    hesitant: Vec<u64>,
    /// Until then the server reads nothing, asks whether the client lives, and says that it is busy.
    deaf_until_ms: u64,
    /// How much the client had written when that last grew, and when that was.
    stuck: (u64, u64),
    patient: Vec<Patient>,
    waiting: Vec<Waiting>,
    sending: Vec<Sending>,
    watching: Vec<Watching>,
    numbers: u64,
    arrived: Arrived,
    answered: HashSet<u64>,
    bodies: HashMap<u64, u64>,
    is_calm: bool,
    summary: Summary,
}

/// Runs one seed.
///
/// # Errors
/// What was broken that must hold.
pub(crate) fn run(seed: u64) -> Result<Summary, String> {
    let mut world = World::new(seed);
    for _ in 0..STORM_STEPS {
        world.step()?;
    }
    world.is_calm = true;
    world.is_cut = [false, false];
    world.cut_since = None;
    world.deaf_until_ms = 0;
    for _ in 0..CALM_STEPS {
        world.step()?;
    }
    world.end()?;
    Ok(world.summary)
}

fn local(node: u64, frame_bytes_max: u32) -> Local {
    Local {
        cluster: "sim".to_owned(),
        node,
        incarnation: node,
        frame_bytes_max,
        stream_window_bytes: WINDOW_BYTES,
        streams_max: 2,
        checksum: true,
    }
}

fn queue_limits(weight: u32) -> QueueLimits {
    QueueLimits {
        bytes_max: BYTES_MAX,
        frames_max: FRAMES_MAX,
        weight,
    }
}

fn channel() -> Channel {
    Channel::new(ChannelLimits {
        first: queue_limits(4),
        second: queue_limits(1),
        calls_max: CALLS_MAX,
        checksum: true,
    })
}

fn define() -> Bytes {
    let define = Define {
        service: "sim".to_owned(),
        method: "echo".to_owned(),
    };
    define.encode_to_vec().into()
}

fn wake(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

/// The number that a payload carries.
fn number_of(payload: &[u8]) -> Result<u64, String> {
    let head = payload.first_chunk().ok_or("a payload without number")?;
    Ok(u64::from_le_bytes(*head))
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let backoff = Backoff::new(20, BACKOFF_MS, random.next());
        Self {
            random,
            now_ms: 1,
            ticked_ms: 1,
            channel: channel(),
            dialer: Dialer::new(backoff),
            dialling_until: None,
            dialled: None,
            accepted: None,
            to_server: Pipe::default(),
            to_client: Pipe::default(),
            connections: 0,
            is_cut: [false; 2],
            cut_since: None,
            calls: Vec::new(),
            long_calls: HashSet::new(),
            quiet_until_ms: 0,
            ending_until: None,
            hesitant: Vec::new(),
            deaf_until_ms: 0,
            stuck: (0, 1),
            patient: Vec::new(),
            waiting: Vec::new(),
            sending: Vec::new(),
            watching: Vec::new(),
            numbers: 0,
            arrived: Arrived::default(),
            answered: HashSet::new(),
            bodies: HashMap::new(),
            is_calm: false,
            summary: Summary::default(),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.now_ms += self.random.below(4);
        let is_quiet = self.now_ms < self.quiet_until_ms;
        match self.random.below(1000) {
            0..290 if is_quiet => self.end_if_idle(),
            0..130 => self.new_call(),
            130..150 => self.new_patient(),
            150..220 => self.new_one_way(),
            220..270 => self.new_waiting(),
            270..280 => self.new_body(),
            280..290 => self.new_watch(),
            290..330 => self.cancel_something(),
            330..350 if !self.is_calm => self.break_something(),
            350 => self.quiet_until_ms = self.now_ms + 2 * TIMEOUT_MS,
            _ => {}
        }
        for _ in 0..3 {
            match self.random.below(6) {
                0 => self.move_bytes(true)?,
                1 => self.move_bytes(false)?,
                2 => self.write(true),
                3 => self.write(false),
                4 => self.run_tasks()?,
                _ => self.handlers()?,
            }
        }
        if self.now_ms < self.deaf_until_ms {
            self.ask();
        }
        self.late_calls()?;
        self.ended();
        self.dial()?;
        if self.random.chance(30) || self.now_ms >= self.ticked_ms + TICK_MS_MAX {
            self.tick()?;
        }
        self.nobody_is_forgotten()?;
        let (bytes, frames) = self.channel.queues.queued();
        // Two budgets, and what the connection itself has to say.
        if bytes > 2 * BYTES_MAX + 4096 || frames > 2 * FRAMES_MAX + 128 {
            return Err(format!("{frames} frames, {bytes} bytes are queued"));
        }
        Ok(())
    }

    /// What is queued on a connection has somebody who will write it.
    fn nobody_is_forgotten(&self) -> Result<(), String> {
        let dialled = self.dialled.as_ref().map(|_| &self.channel);
        let accepted = self.accepted.as_ref().map(|accepted| &accepted.channel);
        for channel in dialled.into_iter().chain(accepted) {
            let (_, frames) = channel.queues.queued();
            if frames > 0 && channel.ownership.is_idle() {
                return Err(format!("{frames} frames are queued and nobody writes"));
            }
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn payload(&mut self, number: u64) -> Vec<u8> {
        let longest = if self.random.chance(10) { 9000 } else { 90 };
        let length = 8 + self.random.below(longest) as usize;
        if length > FRAME_BYTES_LESS as usize {
            self.arrived.long.insert(number);
        }
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(length, number as u8);
        payload
    }

    fn queue(&mut self) -> SendQueue {
        if self.random.chance(50) {
            SendQueue::First
        } else {
            SendQueue::Second
        }
    }

    /// As the shell does before it queues anything.
    fn admit(&mut self) -> bool {
        match self.dialer.want(self.now_ms) {
            Admission::Queue => true,
            Admission::QueueAndDial => {
                self.channel.queues.open();
                self.dialling_until = Some(self.now_ms + 1 + self.random.below(DIAL_MS));
                true
            }
            _ => false,
        }
    }

    fn new_call(&mut self) {
        if !self.admit() {
            return;
        }
        if self.random.chance(20) {
            // A caller that was interrupted between finding a way and queueing.
            let due_ms = self.now_ms + self.random.below(HESITATION_MS);
            self.hesitant.push(due_ms);
            return;
        }
        // Refused is refused.
        let _ = self.begin_call();
    }

    /// Callers go on that were interrupted. The connection may have been lost since, and another one dialled.
    fn late_calls(&mut self) -> Result<(), String> {
        let late = self.hesitant.len();
        self.hesitant.retain(|due_ms| *due_ms > self.now_ms);
        for _ in self.hesitant.len()..late {
            let begun = match self.begin_call() {
                // As the shell does: the way is gone, so ask for another one.
                Err(NotQueued::Closed) if self.admit() => self.begin_call(),
                other => other,
            };
            let state = self.dialer.state();
            if begun.is_ok() && matches!(state, DialState::Idle | DialState::Backoff { .. }) {
                return Err("a message is queued where nobody dials".to_owned());
            }
        }
        Ok(())
    }

    fn begin_call(&mut self) -> Result<(), NotQueued> {
        let deadline_ms = self.now_ms + TIMEOUT_MS;
        let queue = self.queue();
        let in_line = self.channel.pending.waiters();
        let Some(key) = self.channel.pending.open(queue, deadline_ms) else {
            return Err(NotQueued::Full);
        };
        assert_eq!(in_line, 0, "a call took the slot of callers in line");
        self.begin_call_of(key, queue)
    }

    fn new_patient(&mut self) {
        if self.patient.len() < 20 {
            self.patient.push(Patient {
                waiter: Waiter::default(),
                task: Task::new(),
            });
        }
    }

    /// `true` if it waits on.
    fn run_patient(&mut self, patient: &mut Patient) -> bool {
        if !self.admit() {
            wake(self.channel.pending.forget(&mut patient.waiter));
            return false;
        }
        let deadline_ms = self.now_ms + TIMEOUT_MS;
        let queue = self.queue();
        let Patient { waiter, task } = patient;
        let pending = &self.channel.pending;
        let (key, next) = pending.open_or_wait(waiter, &task.waker, queue, deadline_ms);
        wake(next);
        let Some(key) = key else { return true };
        self.summary.patient += 1;
        // Refused is refused.
        let _ = self.begin_call_of(key, queue);
        false
    }

    fn begin_call_of(&mut self, key: CallKey, queue: SendQueue) -> Result<(), NotQueued> {
        let number = self.number();
        let payload = self.payload(number);
        if payload.len() > FRAME_BYTES_LESS as usize {
            self.long_calls.insert(key.id());
        }
        let limit = TimeLimit::from_millis(TIMEOUT_MS);
        let header = Header::new(Kind::Request, 3, key.id()).within(limit);
        let payload = Payload::Borrowed(&payload);
        let pushed = self
            .channel
            .queues
            .push(queue, header, &payload, Some(&define()));
        if pushed.is_err() {
            self.channel.pending.cancel(key);
            return pushed;
        }
        self.notify_client();
        self.calls.push(Call {
            number,
            key,
            task: Task::new(),
            opened_ms: self.now_ms,
        });
        Ok(())
    }

    fn new_one_way(&mut self) {
        if !self.admit() {
            return;
        }
        let number = self.number();
        let payload = self.payload(number);
        let header = Header::new(Kind::OneWay, 3, number);
        let queue = self.queue();
        let payload = Payload::Shared(payload.into());
        let queues = &self.channel.queues;
        let in_line = queues.waiters(queue);
        let pushed = queues.push(queue, header, &payload, Some(&define()));
        if pushed.is_ok() {
            assert_eq!(in_line, 0, "a message took the room of callers in line");
            self.notify_client();
        }
    }

    fn new_waiting(&mut self) {
        let queue = self.queue();
        let number = self.number();
        let batch = self.random.chance(40).then(|| self.batch(number));
        if self.waiting.len() < 20 {
            self.waiting.push(Waiting {
                waiter: Waiter::default(),
                task: Task::new(),
                queue,
                number,
                batch,
            });
        }
    }

    /// Some messages that are queued together, the first with this number.
    fn batch(&mut self, first: u64) -> BatchBuffer {
        let mut batch = BatchBuffer::new(3, queue_limits(1), true);
        self.push_to(&mut batch, first);
        for _ in 0..self.random.below(FRAMES_MAX as u64) {
            let number = self.number();
            if !self.push_to(&mut batch, number) {
                break;
            }
            self.arrived.batched.insert(number);
        }
        batch
    }

    fn push_to(&mut self, batch: &mut BatchBuffer, number: u64) -> bool {
        // Most share a frame, and some are too long for that.
        let payload = self.payload(number);
        batch.push(&Payload::Borrowed(&payload))
    }

    fn new_body(&mut self) {
        if !self.admit() {
            return;
        }
        let patience = if self.random.chance(20) { 1 } else { 100 };
        let deadline_ms = self.now_ms + patience * TIMEOUT_MS;
        let Some(key) = self.channel.pending.open(SendQueue::Second, deadline_ms) else {
            return;
        };
        let Some(window) = self.channel.open_window(key, WINDOW_BYTES.into(), 2) else {
            self.channel.pending.cancel(key);
            return;
        };
        let number = self.number();
        let header = Header::new(Kind::StreamOpen, 3, key.id());
        let head = number.to_le_bytes();
        let payload = Payload::Borrowed(&head);
        if self
            .channel
            .queues
            .push(SendQueue::Second, header, &payload, Some(&define()))
            .is_err()
        {
            self.channel.close_window(key);
            self.channel.pending.cancel(key);
            return;
        }
        self.notify_client();
        let left = 1 + self.random.below(20_000);
        self.bodies.insert(number, left);
        self.sending.push(Sending {
            number,
            key,
            window,
            task: Task::new(),
            left,
            call: Task::new(),
        });
    }

    fn new_watch(&mut self) {
        if !self.admit() {
            return;
        }
        let deadline_ms = self.now_ms + 100 * TIMEOUT_MS;
        let channel = &self.channel;
        let Some(key) = channel.pending.open(SendQueue::Second, deadline_ms) else {
            return;
        };
        let Some(body) = channel.open_answer(key, WINDOW_BYTES, 2) else {
            channel.pending.cancel(key);
            return;
        };
        self.numbers += 1;
        let (number, left) = (self.numbers, self.random.below(20_000));
        let header = Header::new(Kind::Watch, 3, key.id());
        let head = [number.to_le_bytes(), left.to_le_bytes()].concat();
        let (queue, payload) = (SendQueue::Second, Payload::Borrowed(&head));
        let pushed = channel
            .queues
            .push(queue, header, &payload, Some(&define()));
        if pushed.is_err() {
            channel.close_answer(key);
            channel.pending.cancel(key);
            return;
        }
        self.notify_client();
        self.watching.push(Watching {
            number,
            key,
            body,
            task: Task::new(),
            left,
        });
    }

    /// Reads what has arrived of an answer, then looks whether there is more to come.
    fn run_watching(&mut self, mut watching: Watching) -> Result<Option<Watching>, String> {
        if !watching.task.is_woken() {
            return Ok(Some(watching));
        }
        self.read_answer(&mut watching)?;
        let mut cx = Context::from_waker(&watching.task.waker);
        let outcome = match self.channel.pending.poll(watching.key, &mut cx) {
            Poll::Pending => return Ok(Some(watching)),
            Poll::Ready(outcome) => outcome,
        };
        // What came between the two looks.
        self.read_answer(&mut watching)?;
        if let Ok(reply) = outcome {
            let (number, left) = (number_of(&reply)?, watching.left);
            if number != watching.number || left > 0 {
                let wanted = watching.number;
                return Err(format!(
                    "watch {wanted} ended as {number}, without {left} bytes"
                ));
            }
            self.summary.watches += 1;
        }
        self.channel.close_answer(watching.key);
        Ok(None)
    }

    fn read_answer(&mut self, watching: &mut Watching) -> Result<(), String> {
        let mut cx = Context::from_waker(&watching.task.waker);
        while let Poll::Ready(BodyStep::Chunk(chunk, grant)) = watching.body.poll_next(&mut cx) {
            let number = watching.number as u8;
            if chunk.iter().any(|&byte| byte != number) {
                return Err(format!("watch {number} got the chunk of another one"));
            }
            let more = watching.left.checked_sub(chunk.len() as u64);
            watching.left = more.ok_or("an answer is longer than it was sent")?;
            if grant > 0 {
                let header = Header::new(Kind::StreamCredit, 0, watching.key.id());
                let grant = grant.to_le_bytes();
                let payload = Payload::Borrowed(&grant);
                let queues = &self.channel.queues;
                let _ = queues.push(SendQueue::System, header, &payload, None);
                self.notify_client();
            }
        }
        Ok(())
    }

    fn cancel_something(&mut self) {
        match self.random.below(5) {
            4 if !self.watching.is_empty() && self.random.chance(30) => {
                let watching = self.watching.swap_remove(0);
                self.channel.close_answer(watching.key);
                self.cancel(watching.key);
            }
            3 if !self.patient.is_empty() => {
                let place = self.random.below(self.patient.len() as u64) as usize;
                let mut patient = self.patient.remove(place);
                wake(self.channel.pending.forget(&mut patient.waiter));
                self.summary.cancelled += 1;
            }
            0 if !self.calls.is_empty() => {
                let place = self.random.below(self.calls.len() as u64) as usize;
                let call = self.calls.swap_remove(place);
                self.cancel(call.key);
                self.summary.cancelled += 1;
            }
            1 if !self.waiting.is_empty() => {
                let place = self.random.below(self.waiting.len() as u64) as usize;
                let mut waiting = self.waiting.remove(place);
                wake(
                    self.channel
                        .queues
                        .forget(&mut waiting.waiter, waiting.queue),
                );
                self.summary.cancelled += 1;
            }
            2 if !self.sending.is_empty() && self.random.chance(30) => {
                let sending = self.sending.swap_remove(0);
                self.end_body(&sending, Kind::StreamReset);
                self.cancel(sending.key);
            }
            _ => {}
        }
    }

    /// Nobody waits for a call any more.
    fn cancel(&mut self, key: CallKey) {
        if self.channel.cancel(key) {
            self.notify_client();
        }
    }

    fn end_body(&mut self, sending: &Sending, kind: Kind) {
        self.channel.close_window(sending.key);
        let header = Header::new(kind, 0, sending.key.id());
        let queues = &self.channel.queues;
        queues.push_past_limit(SendQueue::Second, header, &Payload::default());
        self.notify_client();
    }

    fn break_something(&mut self) {
        match self.random.below(8) {
            7 => self.pause(),
            6 => {
                self.deaf_until_ms = self.now_ms + 2 * LIMITS.busy_timeout_ms;
                self.summary.deaf += 1;
            }
            // One direction or both, for a while: half-open and black-holed connections.
            0 => self.is_cut[0] = true,
            1 => self.is_cut[1] = true,
            2 => self.is_cut = [true, true],
            3 => self.is_cut = [false, false],
            // The server crashes and comes back; nobody tells the client.
            4 => self.server_gone(),
            // Both ends learn of a reset.
            _ => {
                self.server_gone();
                self.client_gone();
            }
        }
        let is_cut = self.is_cut[0] || self.is_cut[1];
        match (is_cut, self.cut_since) {
            (true, None) => self.cut_since = Some(self.now_ms),
            (false, _) => self.cut_since = None,
            _ => {}
        }
    }

    /// The client's process is stopped for a while. In that time it looks at nothing, and so judges nothing.
    fn pause(&mut self) {
        let paused_ms = LIMITS.timeout_ms + self.random.below(LIMITS.busy_timeout_ms);
        self.now_ms += paused_ms;
        self.stuck.1 += paused_ms;
        if let Some(since) = &mut self.cut_since {
            *since += paused_ms;
        }
        self.summary.paused += 1;
    }

    /// What a server does that wants to harm its client.
    fn ask(&mut self) {
        let Some(accepted) = &self.accepted else {
            return;
        };
        let queues = &accepted.channel.queues;
        for number in 0..40 {
            let kind = if number == 0 { Kind::Busy } else { Kind::Ping };
            if queues.queued().1 < 200 {
                let header = Header::new(kind, 0, self.now_ms);
                let _ = queues.push(SendQueue::System, header, &Payload::default(), None);
            }
        }
        Self::notify_server(&accepted.channel);
    }

    /// A peer that takes nothing is given up, whatever it says.
    fn nobody_is_stuck(&mut self) -> Result<(), String> {
        let writer = self
            .dialled
            .as_ref()
            .map(|dialled| &dialled.writer.transmit);
        let written = writer.filter(|transmit| !transmit.is_empty());
        let written = written.map(|transmit| transmit.written());
        if written != Some(self.stuck.0) {
            self.stuck = (written.unwrap_or(u64::MAX), self.now_ms);
        }
        let stuck_ms = self.now_ms - self.stuck.1;
        if stuck_ms > LIMITS.busy_timeout_ms + 200 {
            return Err(format!("nothing was written for {stuck_ms} ms"));
        }
        Ok(())
    }

    /// Closes the connection if nobody uses it. It takes a while, and who comes meanwhile waits for the next one.
    fn end_if_idle(&mut self) {
        let Some(dialled) = &self.dialled else {
            return;
        };
        if self.dialer.state() != DialState::Up || !self.channel.queues.close_if_empty() {
            return;
        }
        let is_written = dialled.writer.transmit.is_empty();
        if self.channel.pending.in_flight() > 0 || self.channel.windows() > 0 || !is_written {
            self.channel.queues.open();
            return;
        }
        self.dialer.ending();
        self.channel.queues.renew();
        self.ending_until = Some(self.now_ms + self.random.below(HESITATION_MS));
        self.quiet_until_ms = 0;
        self.summary.idle += 1;
    }

    fn ended(&mut self) {
        if self
            .ending_until
            .take_if(|until| *until <= self.now_ms)
            .is_none()
        {
            return;
        }
        self.dialled = None;
        wake(self.channel.close());
        self.dialer.lost();
        if self.channel.queues.queued().1 > 0 {
            self.admit();
        }
    }

    fn client_gone(&mut self) {
        if self.dialer.state() == DialState::Ending {
            // The end that it is coming to anyway.
            self.ending_until = Some(self.now_ms);
            self.ended();
        } else if self.dialled.take().is_some() {
            wake(self.channel.close());
            wake(self.channel.lost(&Fault::Disconnected));
            self.dialer.lost();
            self.summary.lost += 1;
        }
    }

    fn server_gone(&mut self) {
        if let Some(mut accepted) = self.accepted.take() {
            accepted.server.lost();
            self.to_client = Pipe::default();
        }
    }

    fn dial(&mut self) -> Result<(), String> {
        let Some(until_ms) = self.dialling_until.filter(|until| *until <= self.now_ms) else {
            return Ok(());
        };
        self.dialling_until = None;
        if self.dialled.is_some() {
            return Err("a second connection was dialled".to_owned());
        }
        if self.is_cut[0] || self.is_cut[1] || (!self.is_calm && self.random.chance(20)) {
            wake(self.channel.close());
            wake(self.channel.lost(&Fault::Unreachable));
            self.dialer.failed(until_ms);
            return Ok(());
        }
        self.connections += 1;
        let number = self.connections;
        // Restarted with another configuration, now and then.
        let cap = if self.random.chance(30) {
            FRAME_BYTES_LESS
        } else {
            FRAME_BYTES_MAX
        };
        let (client, server) = (local(1, FRAME_BYTES_MAX), local(2, cap));
        let said = client
            .hello(2, number, ConnectionClass::Bulk)
            .encode_to_vec();
        let accepted = accept(&server, &Header::new(Kind::Hello, 0, 0), &said.into());
        let accepted = accepted.map_err(|error| error.to_string())?;
        let answer = accepted.welcome.encode_to_vec().into();
        let welcome = check_welcome(&client, 2, &Header::new(Kind::Welcome, 0, 0), &answer);
        let welcome = welcome.map_err(|error| error.to_string())?;
        self.channel.fit_to(Takes {
            frame_bytes_max: welcome.frame_bytes_max,
            traces: welcome.features & FEATURE_TRACE != 0,
            watches: welcome.features & FEATURE_WATCH != 0,
        });
        // A connection that the client has given up may still be there on the server.
        self.server_gone();
        self.to_server = Pipe::default();
        self.to_client = Pipe::default();
        let writer = || Writer {
            transmit: Transmit::new(OUTBOX_BYTES),
            has_looked: false,
        };
        self.accepted = Some(Accepted {
            number,
            channel: channel(),
            writer: writer(),
            reader: Reader::new(self.now_ms, cap),
            server: Server::new(ServerLimits {
                streams_max: 2,
                stream_window_bytes: WINDOW_BYTES,
            }),
            owed: Vec::new(),
            begun: HashSet::new(),
            bodies: Vec::new(),
            answering: Vec::new(),
        });
        self.dialled = Some(Dialled {
            number,
            writer: writer(),
            reader: Reader::new(self.now_ms, FRAME_BYTES_MAX),
            client: Client::new(),
        });
        if !self.dialer.connected() {
            return Err("the dialer was closed".to_owned());
        }
        self.summary.connects += 1;
        self.notify_client();
        Ok(())
    }

    /// Who becomes the owner gets its turn in `write`; until then others find the write side owned. Without a
    /// connection it finds nothing to do.
    fn notify_client(&mut self) {
        if self.channel.ownership.notify() == Notified::Claimed {
            self.channel.ownership.hand_to_task();
        }
    }

    fn notify_server(channel: &Channel) {
        if channel.ownership.notify() == Notified::Claimed {
            channel.ownership.hand_to_task();
        }
    }

    /// The owner's turn, in two steps with others between them: look and write, then say that it is done.
    fn write(&mut self, is_client: bool) {
        if is_client && self.ending_until.is_some() {
            // Its stream is let go of already.
            return;
        }
        let at_ms = self.now_ms + self.random.below(20);
        let (channel, writer, pipe) = if is_client {
            let Some(dialled) = &mut self.dialled else {
                return;
            };
            (&self.channel, &mut dialled.writer, &mut self.to_server)
        } else {
            let Some(accepted) = &mut self.accepted else {
                return;
            };
            (&accepted.channel, &mut accepted.writer, &mut self.to_client)
        };
        if !channel.ownership.is_tasks() {
            return;
        }
        if writer.has_looked {
            writer.has_looked = false;
            channel.ownership.finish();
            return;
        }
        channel.ownership.begin();
        loop {
            wake(writer.transmit.fill(&channel.queues).into_iter().flatten());
            if writer.transmit.is_empty() {
                writer.has_looked = true;
                return;
            }
            let mut slices = [std::io::IoSlice::new(&[]); 8];
            let count = writer.transmit.slices(&mut slices);
            let mut room = pipe.room().min(1 + self.random.below(5000) as usize);
            let mut written = 0;
            for slice in &slices[..count] {
                let now = slice.len().min(room);
                if now > 0 {
                    pipe.write(&slice[..now], at_ms);
                }
                room -= now;
                written += now;
            }
            if written == 0 {
                // Blocked; it stays the owner.
                return;
            }
            writer.transmit.advance(written);
        }
    }

    fn move_bytes(&mut self, is_to_server: bool) -> Result<(), String> {
        if self.is_cut[usize::from(is_to_server)] {
            return Ok(());
        }
        let most = 1 + self.random.below(3000) as usize;
        if is_to_server {
            self.server_reads(most)
        } else {
            self.client_reads(most)
        }
    }

    fn client_reads(&mut self, most: usize) -> Result<(), String> {
        let Some(dialled) = &mut self.dialled else {
            return Ok(());
        };
        let is_same = self
            .accepted
            .as_ref()
            .is_some_and(|other| other.number == dialled.number);
        let read = self.to_client.read(self.now_ms, most);
        if !is_same && self.random.chance(20) {
            // What a restarted server answers to an old connection, if the answer gets through.
            self.client_gone();
            return Ok(());
        }
        dialled.reader.bytes += read.len() as u64;
        dialled.reader.input.extend_from_slice(&read);
        let mut queued = false;
        let batch = dialled.reader.batch()?;
        let mut at = 0;
        while let Some(frame) = dialled
            .reader
            .decoder
            .view(&batch, &mut at)
            .map_err(|error| error.to_string())?
        {
            dialled.reader.frames += 1;
            let received = dialled.client.receive(frame.to_frame(), &self.channel);
            queued |= received.map_err(|error| error.to_string())?;
        }
        if queued {
            self.notify_client();
        }
        Ok(())
    }

    fn server_reads(&mut self, most: usize) -> Result<(), String> {
        let Some(accepted) = &mut self.accepted else {
            return Ok(());
        };
        let is_same = self
            .dialled
            .as_ref()
            .is_some_and(|other| other.number == accepted.number);
        if !is_same {
            return Ok(());
        }
        if self.now_ms < self.deaf_until_ms {
            return Ok(());
        }
        let read = self.to_server.read(self.now_ms, most);
        accepted.reader.bytes += read.len() as u64;
        accepted.reader.input.extend_from_slice(&read);
        let batch = accepted.reader.batch()?;
        let mut at = 0;
        while let Some(frame) = accepted
            .reader
            .decoder
            .view(&batch, &mut at)
            .map_err(|error| error.to_string())?
        {
            accepted.reader.frames += 1;
            match accepted
                .server
                .receive(frame.to_frame())
                .map_err(|error| error.to_string())?
            {
                Incoming::Message {
                    in_chunks: true,
                    arrived,
                    ..
                } => {
                    let ArrivedMessage { id, payload, .. } = arrived;
                    let (number, left) = (number_of(&payload)?, number_of(&payload[8..])?);
                    let key = CallKey::from_id(id);
                    let credit = WINDOW_BYTES.into();
                    let window = accepted.channel.open_window(key, credit, usize::MAX);
                    accepted.begun.insert(id);
                    accepted.answering.push(Answering {
                        id,
                        number,
                        left,
                        window: window.ok_or("no window")?,
                        task: Task::new(),
                    });
                }
                Incoming::Granted { id, bytes } => {
                    let key = CallKey::from_id(id);
                    accepted.channel.grant(key, bytes.into());
                }
                Incoming::Message {
                    wants_reply,
                    arrived,
                    ..
                } => {
                    let ArrivedMessage {
                        id, limit, payload, ..
                    } = arrived;
                    let number = number_of(&payload)?;
                    self.arrived.note(number, &mut self.summary)?;
                    if wants_reply {
                        if limit != TimeLimit::from_millis(TIMEOUT_MS) {
                            return Err(format!("request {number} came with {limit:?}"));
                        }
                        // At once, long after its caller has given up, or never.
                        let due_ms = match self.random.below(100) {
                            0..70 => self.now_ms,
                            70..95 => self.now_ms + self.random.below(900),
                            _ => u64::MAX,
                        };
                        accepted.begun.insert(id);
                        accepted.owed.push((due_ms, id, payload));
                    }
                }
                Incoming::Cancelled { id } => {
                    // A request that is too long for this server was taken out, and its cancellation may have been
                    // queued before.
                    if !accepted.begun.contains(&id) && !self.long_calls.contains(&id) {
                        return Err(format!("the end of request {id} came before it"));
                    }
                    let owed = accepted.owed.len();
                    accepted.owed.retain(|(_, other, _)| *other != id);
                    self.summary.stopped += (owed - accepted.owed.len()) as u64;
                    accepted.bodies.retain(|reading| reading.id != id);
                    accepted.channel.close_window(CallKey::from_id(id));
                    accepted.answering.retain(|answering| answering.id != id);
                }
                Incoming::Batch { payload, .. } => {
                    let (messages, _) =
                        Messages::new(&payload).map_err(|error| error.to_string())?;
                    for message in messages {
                        let number = number_of(message)?;
                        self.arrived.note(number, &mut self.summary)?;
                    }
                }
                Incoming::Opened { arrived, body, .. } => {
                    let ArrivedMessage { id, payload, .. } = arrived;
                    let expected = number_of(&payload)?;
                    accepted.begun.insert(id);
                    accepted.bodies.push(Reading {
                        id,
                        expected,
                        body,
                        task: Task::new(),
                        read: Vec::new(),
                    });
                }
                Incoming::TooManyBodies { id } => {
                    accepted.begun.insert(id);
                    let busy = Header::new(Kind::Failure, 0, id);
                    let queues = &accepted.channel.queues;
                    let _ = queues.push(SendQueue::System, busy, &Payload::Borrowed(&[3]), None);
                    Self::notify_server(&accepted.channel);
                }
                Incoming::Ping(id) => {
                    let pong = Header::new(Kind::Pong, 0, id);
                    let queues = &accepted.channel.queues;
                    let _ = queues.push(SendQueue::System, pong, &Payload::default(), None);
                    Self::notify_server(&accepted.channel);
                }
                Incoming::Defined(..)
                | Incoming::Goodbye
                | Incoming::Completed { .. }
                | Incoming::Handled => {}
            }
        }
        if accepted.server.buffered() > 2 * u64::from(WINDOW_BYTES) {
            return Err("more bytes of bodies are held than their windows".to_owned());
        }
        Ok(())
    }

    /// Handlers answer, and read bodies.
    fn handlers(&mut self) -> Result<(), String> {
        let now_ms = self.now_ms;
        let Some(accepted) = &mut self.accepted else {
            return Ok(());
        };
        let channel = &accepted.channel;
        accepted.owed.retain(|(at_ms, id, payload)| {
            if *at_ms > now_ms {
                return true;
            }
            let reply = Header::new(Kind::Reply, 0, *id);
            let payload = Payload::Shared(payload.clone());
            // A full queue: later.
            channel
                .queues
                .push(SendQueue::First, reply, &payload, None)
                .is_err()
        });
        Self::notify_server(channel);
        accepted
            .answering
            .retain_mut(|answering| Self::answer(answering, channel));
        let mut replies = Vec::new();
        for reading in &mut accepted.bodies {
            if !reading.task.is_woken() {
                continue;
            }
            let mut cx = Context::from_waker(&reading.task.waker);
            while let Poll::Ready(step) = reading.body.poll_next(&mut cx) {
                match step {
                    BodyStep::Chunk(chunk, grant) => {
                        reading.read.extend_from_slice(&chunk);
                        if grant > 0 {
                            let header = Header::new(Kind::StreamCredit, 0, reading.id);
                            let grant = grant.to_le_bytes();
                            let payload = Payload::Borrowed(&grant);
                            let _ = channel
                                .queues
                                .push(SendQueue::System, header, &payload, None);
                        }
                    }
                    BodyStep::Complete => {
                        let sound = reading
                            .read
                            .iter()
                            .all(|&byte| byte == reading.expected as u8);
                        let length = self.bodies.get(&reading.expected).copied();
                        if !sound || length != Some(reading.read.len() as u64) {
                            return Err(format!("body {} is not what was sent", reading.expected));
                        }
                        replies.push((reading.id, reading.expected));
                        self.summary.bodies += 1;
                        break;
                    }
                    BodyStep::Broken => {
                        replies.push((reading.id, 0));
                        break;
                    }
                }
            }
        }
        for (id, number) in replies {
            accepted.bodies.retain(|reading| reading.id != id);
            if number > 0 {
                let reply = Header::new(Kind::Reply, 0, id);
                let number = number.to_le_bytes();
                let payload = Payload::Borrowed(&number);
                let _ = channel
                    .queues
                    .push(SendQueue::System, reply, &payload, None);
            }
        }
        Self::notify_server(channel);
        Ok(())
    }

    /// Sends chunks of an answer as far as there is credit and room, then its end. `true` if there is more to do.
    fn answer(answering: &mut Answering, channel: &Channel) -> bool {
        let key = CallKey::from_id(answering.id);
        if !answering.task.is_woken() {
            return true;
        }
        let mut cx = Context::from_waker(&answering.task.waker);
        // What is taken must be sent.
        while channel.queues.queued().1 + 2 <= FRAMES_MAX {
            if answering.left == 0 {
                let reply = Header::new(Kind::Reply, 0, answering.id);
                let number = answering.number.to_le_bytes();
                let payload = Payload::Borrowed(&number);
                let pushed = channel
                    .queues
                    .push(SendQueue::Second, reply, &payload, None);
                if pushed.is_err() {
                    break;
                }
                channel.close_window(key);
                Self::notify_server(channel);
                return false;
            }
            let wanted = answering.left.min(900);
            let taken = match answering.window.poll_take(wanted, &mut cx) {
                Poll::Ready(Some(taken)) => taken,
                Poll::Ready(None) => return false,
                Poll::Pending => return true,
            };
            let header = Header::new(Kind::StreamChunk, 0, answering.id);
            let chunk = vec![answering.number as u8; taken as usize];
            let payload = Payload::Shared(chunk.into());
            // There is room, see above.
            let _ = channel
                .queues
                .push(SendQueue::Second, header, &payload, None);
            answering.left -= taken;
            Self::notify_server(channel);
        }
        answering.task.waker.wake_by_ref();
        true
    }

    fn run_tasks(&mut self) -> Result<(), String> {
        for watching in std::mem::take(&mut self.watching) {
            if let Some(watching) = self.run_watching(watching)? {
                self.watching.push(watching);
            }
        }
        for call in std::mem::take(&mut self.calls) {
            if let Some(call) = self.run_call(call)? {
                self.calls.push(call);
            }
        }
        for mut patient in std::mem::take(&mut self.patient) {
            if !patient.task.is_woken() || self.run_patient(&mut patient) {
                self.patient.push(patient);
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            if !waiting.task.is_woken() || self.run_waiting(&mut waiting) {
                self.waiting.push(waiting);
            }
        }
        for sending in std::mem::take(&mut self.sending) {
            if let Some(sending) = self.run_sending(sending)? {
                self.sending.push(sending);
            }
        }
        Ok(())
    }

    fn run_call(&mut self, call: Call) -> Result<Option<Call>, String> {
        if !call.task.is_woken() {
            return Ok(Some(call));
        }
        let mut cx = Context::from_waker(&call.task.waker);
        match self.channel.pending.poll(call.key, &mut cx) {
            Poll::Pending => Ok(Some(call)),
            Poll::Ready(Ok(reply)) => {
                let number = number_of(&reply)?;
                if number != call.number {
                    return Err(format!("call {} got the reply of {number}", call.number));
                }
                if !self.answered.insert(number) {
                    return Err(format!("call {number} completed twice"));
                }
                self.summary.replies += 1;
                Ok(None)
            }
            Poll::Ready(Err(_)) => {
                self.summary.faults += 1;
                Ok(None)
            }
        }
    }

    /// `true` if it waits on.
    fn run_waiting(&mut self, waiting: &mut Waiting) -> bool {
        if !self.admit() {
            wake(
                self.channel
                    .queues
                    .forget(&mut waiting.waiter, waiting.queue),
            );
            return false;
        }
        let (queues, define) = (&self.channel.queues, define());
        let Waiting {
            waiter,
            task,
            queue,
            ..
        } = waiting;
        let (result, next) = match &mut waiting.batch {
            Some(batch) => {
                queues.push_batch_or_wait(waiter, &task.waker, *queue, batch, (3, &define))
            }
            None => {
                let number = waiting.number.to_le_bytes();
                let header = Header::new(Kind::OneWay, 3, waiting.number);
                let payload = Payload::Borrowed(&number);
                queues.push_or_wait(waiter, &task.waker, *queue, header, &payload, Some(&define))
            }
        };
        wake(next);
        if result.is_ok() {
            self.notify_client();
        }
        matches!(result, Err(NotQueued::Full | NotQueued::Closed))
    }

    fn run_sending(&mut self, mut sending: Sending) -> Result<Option<Sending>, String> {
        if sending.call.is_woken() {
            let mut cx = Context::from_waker(&sending.call.waker);
            if let Poll::Ready(outcome) = self.channel.pending.poll(sending.key, &mut cx) {
                let waits = sending.left > 0 && !sending.window.is_closed();
                if outcome == Err(Fault::Timeout) && waits {
                    let number = sending.number;
                    return Err(format!(
                        "the sender of body {number} waits behind its deadline"
                    ));
                }
                if let Ok(reply) = outcome {
                    let number = number_of(&reply)?;
                    if number != sending.number || sending.left > 0 {
                        return Err(format!("body {} got the reply of {number}", sending.number));
                    }
                }
                self.end_body(&sending, Kind::StreamReset);
                return Ok(None);
            }
        }
        if sending.left == 0 || !sending.task.is_woken() {
            return Ok(Some(sending));
        }
        let mut cx = Context::from_waker(&sending.task.waker);
        // With one frame to spare for the end.
        if self.channel.queues.queued().1 + 2 > FRAMES_MAX {
            sending.task.waker.wake_by_ref();
            return Ok(Some(sending));
        }
        let wanted = sending.left.min(1500);
        if let Poll::Ready(Some(taken)) = sending.window.poll_take(wanted, &mut cx) {
            sending.task.waker.wake_by_ref();
            let chunk = vec![sending.number as u8; taken as usize];
            let header = Header::new(Kind::StreamChunk, 0, sending.key.id());
            let payload = Payload::Shared(chunk.into());
            let pushed = self
                .channel
                .queues
                .push(SendQueue::Second, header, &payload, None);
            if pushed.is_err() {
                // Its credit is lost with it: the body cannot be completed.
                self.end_body(&sending, Kind::StreamReset);
                self.cancel(sending.key);
                return Ok(None);
            }
            sending.left -= taken;
            if sending.left == 0 {
                self.end_body(&sending, Kind::StreamEnd);
            }
            self.notify_client();
        }
        Ok(Some(sending))
    }

    fn tick(&mut self) -> Result<(), String> {
        let since_ms = self.now_ms - std::mem::replace(&mut self.ticked_ms, self.now_ms);
        if self.channel.expire(self.now_ms) > 0 {
            self.notify_client();
        }
        if let DialState::Backoff { until_ms } = self.dialer.state() {
            if until_ms > self.now_ms + BACKOFF_MS {
                return Err("the next attempt is later than the bound".to_owned());
            }
            if self.channel.queues.queued().1 > 0 {
                self.admit();
            }
        }
        let now_ms = self.now_ms;
        let mut verdict = Verdict::Alive;
        if let Some(dialled) = &mut self.dialled {
            let reader = &mut dialled.reader;
            let progress = Progress {
                frames: reader.frames,
                bytes: reader.bytes,
                busy: dialled.client.busy(),
                written: dialled.writer.transmit.written(),
                unwritten: !dialled.writer.transmit.is_empty(),
                paused: false,
            };
            verdict = reader.liveness.check(now_ms, progress);
        }
        match verdict {
            // This end always reads.
            Verdict::Alive | Verdict::Busy => {}
            Verdict::Ping => {
                let ping = Header::new(Kind::Ping, 0, now_ms);
                let queues = &self.channel.queues;
                let _ = queues.push(SendQueue::System, ping, &Payload::default(), None);
                self.notify_client();
            }
            Verdict::Silent | Verdict::Stalled if since_ms >= LIMITS.timeout_ms => {
                return Err(format!("{verdict:?} at the first look after {since_ms} ms"));
            }
            Verdict::Silent | Verdict::Stalled => self.client_gone(),
        }
        self.nobody_is_stuck()?;
        // A black-holed peer is found within two timeouts; ticks come at least every `TICK_MS_MAX`.
        if let (Some(since), Some(_)) = (self.cut_since, &self.dialled) {
            // As long as the server asks, only one of its directions is cut, and the client hears it.
            let silent_ms = now_ms.saturating_sub(since.max(self.deaf_until_ms));
            if silent_ms > 2 * LIMITS.timeout_ms + 100 {
                return Err(format!(
                    "a cut connection is still trusted after {silent_ms} ms"
                ));
            }
        }
        Ok(())
    }

    /// Everything has had time to come right.
    fn end(&mut self) -> Result<(), String> {
        self.calm_down()?;
        let (bytes, frames) = self.channel.queues.queued();
        // The end of a body whose connection was lost waits for the next one, and is no reason to dial.
        if frames > 0 && self.dialer.state() != DialState::Idle {
            return Err(format!("{frames} frames, {bytes} bytes are stuck"));
        }
        let waiters =
            [SendQueue::First, SendQueue::Second].map(|queue| self.channel.queues.waiters(queue));
        if !self.waiting.is_empty() || waiters != [0, 0] {
            return Err(format!(
                "{} wait for room that is there",
                self.waiting.len()
            ));
        }
        let slot_waiters = self.channel.pending.waiters();
        if !self.patient.is_empty() || slot_waiters > 0 {
            let patient = self.patient.len();
            return Err(format!("{patient} wait for a slot that is free"));
        }
        if let Some(call) = self.calls.first() {
            let age_ms = self.now_ms - call.opened_ms;
            return Err(format!(
                "call {} is not woken after {age_ms} ms",
                call.number
            ));
        }
        let current = self.dialled.as_ref().map(|dialled| dialled.number);
        if let Some(accepted) = &self.accepted
            && Some(accepted.number) == current
            && !accepted.owed.is_empty()
        {
            let owed = accepted.owed.len();
            return Err(format!("{owed} handlers work for callers that are gone"));
        }
        if !self.watching.is_empty() {
            return Err("an answer is stuck".to_owned());
        }
        if !self.sending.is_empty() || self.channel.windows() > 0 {
            return Err("a body is stuck".to_owned());
        }
        let in_flight = self.channel.pending.in_flight();
        let free = (0..CALLS_MAX)
            .filter_map(|_| self.channel.pending.open(SendQueue::First, u64::MAX))
            .count();
        if in_flight != 0 || free != CALLS_MAX {
            return Err(format!(
                "{in_flight} slots are taken, {free} of {CALLS_MAX} free"
            ));
        }
        if self.summary.connects == 0 || self.summary.replies == 0 {
            return Err("nothing happened".to_owned());
        }
        Ok(())
    }

    /// No new work; what there is ends.
    fn calm_down(&mut self) -> Result<(), String> {
        // A reply after healing proves that the link is used again.
        let replies = self.summary.replies;
        for _ in 0..200 {
            if self.summary.replies > replies {
                break;
            }
            self.now_ms += 5;
            self.new_call();
            for _ in 0..20 {
                self.quiet_round()?;
            }
        }
        if self.summary.replies == replies {
            return Err("no call succeeds after healing".to_owned());
        }
        for _ in 0..4000 {
            self.now_ms += 1;
            self.quiet_round()?;
        }
        // What the last tick queued.
        for _ in 0..10 {
            self.write(true);
        }
        Ok(())
    }

    fn quiet_round(&mut self) -> Result<(), String> {
        self.now_ms += u64::from(self.random.chance(20));
        self.write(true);
        self.move_bytes(true)?;
        self.handlers()?;
        self.write(false);
        self.move_bytes(false)?;
        self.run_tasks()?;
        self.late_calls()?;
        self.ended();
        self.dial()?;
        self.tick()
    }
}
