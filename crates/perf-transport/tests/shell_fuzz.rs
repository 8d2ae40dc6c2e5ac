//! Bytes into a whole server through its shell: whatever a peer sends, before, in and after its handshake, nothing
//! panics, memory stays bounded, and a good peer is answered as before.
//!
//! Inputs are those of `fuzz/corpus/shell`, as they are, and then random changes of them: bytes, headers, whole frames.
//! An input is the only one of its number, so `PERF_FUZZ_FIRST=17 PERF_FUZZ_INPUTS=1` repeats number 17.
//! `PERF_FUZZ_SECONDS=300` goes on for five minutes.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::Kind;
use perf_transport::{Config, Envelope, Router, Transport};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::{address, plain, raw, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const FRAME_BYTES_MAX: u32 = 4096;
const PEERS: u64 = 4;
/// What four hostile peers may make this process hold besides their inputs. By the bounds below a peer costs 16
/// handlers with 4 KiB each, requests of 36 KiB, two windows, a queue and some read buffers: less than 256 KiB with all
/// that goes with it.
const HELD_BYTES_MAX: usize = 1 << 20;
const INPUT_BYTES_MAX: usize = 1 << 20;

/// Panics of any thread.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// How often each handler of [`METHODS`] ran.
static RUNS: [AtomicUsize; METHODS.len()] = [const { AtomicUsize::new(0) }; METHODS.len()];

fn runs(method: usize) {
    RUNS[method].fetch_add(1, Ordering::SeqCst);
}

/// Vigna's `SplitMix64`: <https://prng.di.unimi.it/splitmix64.c>.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const METHODS: [&str; 8] = [
    "inline", "one_way", "shown", "spawned", "stopped", "streamed", "watch", "exchange",
];

fn router() -> Router {
    let work = |message: perf_transport::Message| async move {
        runs(3);
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(message.into_payload())
    };
    Router::new()
        .inline("fuzz", "inline", |message, reply| {
            runs(0);
            reply.put_slice(message.payload());
            Ok(())
        })
        .one_way("fuzz", "one_way", |_| runs(1))
        .one_way_ref("fuzz", "shown", |_| runs(2))
        .spawned("fuzz", "spawned", work)
        .with_limit("fuzz", "spawned", 3)
        // Ends at last by itself: a message without an answer is not cancelled.
        .spawned("fuzz", "stopped", |_| async {
            runs(4);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Bytes::new())
        })
        .with_cancellation("fuzz", "stopped")
        .streamed("fuzz", "streamed", |_, mut body| async move {
            runs(5);
            let mut bytes = 0;
            while let Some(Ok(chunk)) = body.next().await {
                bytes += chunk.len();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(bytes.to_string().into())
        })
        .watch("fuzz", "watch", |message, mut answer| async move {
            runs(6);
            while answer.send(message.payload().to_vec()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        })
        .exchange("fuzz", "exchange", |_, mut body, mut answer| async move {
            runs(7);
            while let Some(Ok(item)) = body.next_item().await {
                if answer.send(item).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
        .fallback(|message| async move { Ok(message.into_payload()) })
}

/// Bounds that a few frames reach.
fn config() -> Config {
    let mut config = Config::default();
    config.frame_bytes_max = FRAME_BYTES_MAX;
    config.queue_bytes = [8192; 4];
    config.queue_frames = [64; 4];
    config.calls_max = 16;
    config.outbox_bytes = 4096;
    config.read_bytes = (1024, 8192);
    config.handlers_max = 8;
    config.handler_bytes_max = 32 << 10;
    config.stream_window_bytes = 4096;
    config.streams_max = 2;
    config
}

/// Cuts an input at its frames, as far as it has any.
fn frames(input: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = input;
    while let Some(length) = rest.first_chunk::<4>() {
        let length = (u32::from_le_bytes(*length) as usize).saturating_add(16);
        let (frame, behind) = rest.split_at(length.min(rest.len()));
        frames.push(frame.to_vec());
        rest = behind;
    }
    frames.push(rest.to_vec());
    frames
}

fn random_frame(random: &mut Random) -> Vec<u8> {
    let kinds = [
        4, 5, 6, 7, 8, 9, 10, 12, 13, 13, 13, 14, 15, 16, 17, 18, 19, 20, 21, 136, 137, 140, 148,
        149,
    ];
    let number = if random.one_in(40) {
        random.next() as u8
    } else {
        random.pick(&kinds)
    };
    let kind = Kind::from_u8(number).unwrap_or(Kind::Request);
    let method = random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2047, u16::MAX]);
    let method = match kind {
        _ if random.one_in(3) => method,
        Kind::StreamOpen | Kind::TracedStreamOpen => 5,
        Kind::Watch | Kind::TracedWatch => 6,
        Kind::Exchange | Kind::TracedExchange => 7,
        _ => random.below(5) as u16,
    };
    let id = random.pick(&[0, 1, 2, 3, 4, 5, 65_536, 1 << 32, u64::MAX]);
    let length = random.pick(&[0, 0, 1, 2, 4, 24, 25, 26, 100, 1000, 4000, 4096, 4097]);
    let mut payload: Vec<u8> = match kind {
        Kind::Define => {
            let method = random.pick(&METHODS);
            return raw::define(random.below(10) as u16, "fuzz", method);
        }
        Kind::StreamCredit => random.pick(&[0, 1, 4096, u32::MAX]).to_le_bytes().into(),
        Kind::Batch => [3, 0, b'a', b'b', b'c', 0, 0, 1, 0, b'd'].repeat(random.below(30) + 1),
        kind if kind.payload_bytes_max() == 0 => Vec::new(),
        // Items have lengths in front.
        _ if random.one_in(2) => {
            let item = u32::try_from(length).expect("short").to_le_bytes();
            [&item[..], &vec![7; length]].concat()
        }
        _ => (0..length).map(|_| random.next() as u8).collect(),
    };
    if random.one_in(8) {
        payload.truncate(random.below(6));
    }
    let mut frame = raw::frame(kind, (method, id), &payload);
    frame[4] = number;
    frame
}

/// Frames that the protocol allows, some kinds of them again and again, with new ids.
fn flood(random: &mut Random) -> Vec<u8> {
    let kinds: Vec<usize> = (0..=random.below(4)).map(|_| random.below(10)).collect();
    let bytes = random.pick(&[0, 1, 100, 4000]);
    let payload = vec![5; bytes];
    let mut flood = Vec::new();
    let mut id = 0;
    while flood.len() < INPUT_BYTES_MAX {
        id += 1;
        let mut add = |kind, method, id| {
            let payload: &[u8] = match kind {
                Kind::Ping | Kind::Cancel | Kind::StreamEnd | Kind::StreamReset => b"",
                _ => &payload,
            };
            flood.extend(raw::frame(kind, (method, id), payload));
        };
        match random.pick(&kinds) {
            0 => add(Kind::Request, random.pick(&[0, 3, 4]), id),
            1 => add(Kind::OneWay, random.pick(&[1, 2, 3]), id),
            2 => add(Kind::Watch, 6, id),
            3 => add(Kind::Exchange, 7, id),
            4 => add(Kind::StreamOpen, 5, id),
            5 | 6 => {
                add(Kind::StreamOpen, 5, id);
                add(Kind::StreamChunk, 0, id);
                add(Kind::StreamEnd, 0, id);
            }
            7 => {
                add(Kind::StreamOpen, 5, id);
                add(Kind::StreamReset, 0, id);
            }
            8 => add(Kind::Cancel, 0, random.below(id as usize) as u64),
            _ => add(Kind::Ping, 0, id),
        }
    }
    flood
}

fn change(random: &mut Random, frames: &mut Vec<Vec<u8>>) {
    // Behind the hello and the names, mostly: what is changed there ends the connection at once.
    let from = if random.one_in(8) {
        0
    } else {
        (METHODS.len() + 1).min(frames.len() - 1)
    };
    let place = from + random.below(frames.len() - from);
    match random.below(20) {
        0 => {
            let frame = &mut frames[place];
            let bit = random.below(frame.len() * 8);
            if let Some(byte) = frame.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        1 => {
            let frame = &mut frames[place];
            let at = random.below(frame.len().min(16));
            if let Some(byte) = frame.get_mut(at) {
                *byte = random.pick(&[0, 1, 2, 127, 128, 255]);
            }
        }
        2 => {
            let length = random.below(frames[place].len());
            frames[place].truncate(length);
        }
        3 => {
            frames.remove(place);
            frames.push(Vec::new());
        }
        4 => {
            let other = random.below(frames.len());
            frames.swap(place, other);
        }
        5 => {
            let copies = vec![frames[place].clone(); random.pick(&[1, 2, 17, 100])];
            frames.splice(place..place, copies);
        }
        6 => {
            let noise = (0..random.below(300)).map(|_| random.next() as u8);
            frames.insert(place, noise.collect());
        }
        _ => {
            for _ in 0..=random.below(20) {
                let at = place.max(1) + random.below(frames.len() - place.min(frames.len()) + 1);
                frames.insert(at.min(frames.len()), random_frame(random));
            }
        }
    }
}

/// The input of a number.
fn input(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut frames = frames(&corpus[random.below(corpus.len())]);
    for _ in 0..random.below(12) {
        change(random, &mut frames);
    }
    if random.one_in(4) {
        let others = self::frames(&corpus[random.below(corpus.len())]);
        frames.extend(others.into_iter().skip(1));
    }
    if random.one_in(12) {
        frames = self::frames(&corpus[0]);
        frames.truncate(METHODS.len() + 1);
        frames.push(flood(random));
    }
    let mut input = frames.concat();
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// Sends an input in pieces, reads some, all or nothing of what comes back, and goes in some way.
async fn attack(at: String, input: Arc<Vec<u8>>, mut random: Random) {
    let Ok(stream) = TcpStream::connect(at).await else {
        return;
    };
    let (mut read, mut write) = stream.into_split();
    let reads = random.below(3);
    let reader = async {
        let mut buffer = [0; 1024];
        if reads > 0 {
            while let Ok(1..) = read.read(&mut buffer).await {
                if reads == 1 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        std::future::pending::<()>().await;
    };
    let pieces = random.pick(&[1, 7, 100, 5000, INPUT_BYTES_MAX]);
    // Few bytes at a time only where there are few.
    let pieces = pieces.max(input.len() / 500);
    let linger = Duration::from_millis(random.below(8) as u64);
    let is_half_closed = random.one_in(2);
    let writer = async {
        let mut rest = &input[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(1 + random.below(pieces)));
            // A server that reads no more is left alone.
            let sent = tokio::time::timeout(Duration::from_millis(30), write.write_all(piece));
            if !matches!(sent.await, Ok(Ok(()))) {
                break;
            }
            rest = behind;
        }
        if is_half_closed {
            let _ = write.shutdown().await;
        }
        tokio::time::sleep(linger).await;
    };
    tokio::select! {
        () = reader => {}
        () = writer => {}
    }
}

fn number_of(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is {value}, a number is wanted")))
}

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/shell");
    // The fuzz folder is no part of the published package.
    let Ok(entries) = std::fs::read_dir(folder) else {
        return vec![raw::hello(10)];
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("read").path()).collect();
    paths.sort();
    let read = |path| std::fs::read(path).expect("the corpus can be read");
    let corpus: Vec<_> = paths.into_iter().map(read).collect();
    assert!(!corpus.is_empty(), "fuzz/corpus/shell has no inputs");
    corpus
}

async fn is_served(good: &Transport, what: &str) {
    for method in ["inline", "spawned"] {
        let envelope = Envelope::new(2, "fuzz", method, what.as_bytes());
        let answer = soon(good.call(envelope)).await;
        assert_eq!(answer.as_deref(), Ok(what.as_bytes()), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_sends_others_are_served_and_memory_is_bounded() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(panic);
    }));
    let server = plain(2).router(router()).config(config());
    let server = server.listen("127.0.0.1:0").start().await.expect("starts");
    let at = address(&server);
    let good = plain(1).config(config()).peer(2, at.clone());
    let good = good.start().await.expect("starts");
    is_served(&good, "before").await;
    let corpus = corpus();
    let region = Region::new(ALLOCATOR);
    let held = || {
        let change = region.change();
        change
            .bytes_allocated
            .saturating_sub(change.bytes_deallocated)
    };
    let first = number_of("PERF_FUZZ_FIRST").unwrap_or(0);
    let least = number_of("PERF_FUZZ_INPUTS").unwrap_or(600);
    let until_at =
        Instant::now() + Duration::from_secs(number_of("PERF_FUZZ_SECONDS").unwrap_or(0));
    let mut number = first;
    let mut most = 0;
    while number < first + least || Instant::now() < until_at {
        let group = number..(number + PEERS.min(least));
        let inputs: Vec<_> = group
            .clone()
            .map(|number| {
                let mut random = Random(number);
                let known = usize::try_from(number).ok();
                let known = known.and_then(|number| corpus.get(number).cloned());
                let input = known.unwrap_or_else(|| input(&mut random, &corpus));
                (Arc::new(input), random)
            })
            .collect();
        let kept: Vec<_> = inputs.iter().map(|(input, _)| Arc::clone(input)).collect();
        let before = held();
        let attacks: Vec<_> = inputs
            .into_iter()
            .map(|(input, random)| tokio::spawn(attack(at.clone(), input, random)))
            .collect();
        let mut is_going_on = true;
        while is_going_on {
            tokio::time::sleep(Duration::from_millis(1)).await;
            is_going_on = attacks.iter().any(|attack| !attack.is_finished());
            most = most.max(held().saturating_sub(before));
        }
        assert!(
            most <= HELD_BYTES_MAX,
            "{most} bytes are held in inputs {group:?}, at most {HELD_BYTES_MAX} may be"
        );
        drop(kept);
        let panics = PANICS.load(Ordering::SeqCst);
        assert_eq!(panics, 0, "something panics in inputs {group:?}");
        is_served(&good, &format!("inputs {group:?}")).await;
        number = group.end;
    }
    // Nothing of them stays: neither connections and handlers nor memory.
    let is_gone = || server.stats().handlers == 0 && server.stats().inbound == 1;
    for _ in 0..2000 {
        if is_gone() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(is_gone(), "left: {:?}", server.stats());
    is_served(&good, "after").await;
    let stranger = soon(raw::connect(99, &at)).await;
    drop(stranger);
    until(|| held() < HELD_BYTES_MAX).await;
    if number - first >= 600 {
        let ran = RUNS.each_ref().map(|runs| runs.load(Ordering::SeqCst));
        assert!(
            ran.iter().all(|&runs| runs >= 5),
            "{ran:?}: it is let in too seldom"
        );
    }
    println!("{} inputs, {most} bytes held at most", number - first);
}
