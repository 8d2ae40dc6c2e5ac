//! Encodes messages into pooled buffers, sends them to two "peers", and shows what the pool did.
//!
//! `cargo run --release -p perf-pool --example encode_messages`

use bytes::{BufMut, Bytes};
use perf_pool::{BufferGuard, BytesGuard, PoolError, buffer_pool};
use std::sync::mpsc;
use std::thread;

const MESSAGES: u64 = 100_000;

/// A frame: length, index, body.
fn encode(index: u64, body: &[u8]) -> Result<Bytes, PoolError> {
    let mut frame = BytesGuard::try_new(12 + body.len())?;
    {
        let mut out = frame.buf_mut();
        out.put_u32(8 + body.len() as u32);
        out.put_u64(index);
        out.put_slice(body);
    }
    Ok(frame.freeze())
}

fn main() -> Result<(), PoolError> {
    let (senders, peers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (sender, receiver) = mpsc::sync_channel::<Bytes>(64);
            let peer =
                thread::spawn(move || receiver.iter().map(|frame| frame.len()).sum::<usize>());
            (sender, peer)
        })
        .unzip();

    for index in 0..MESSAGES {
        // The body is built in a lent `Vec`, the frame in a buffer that both peers share.
        let mut body = BufferGuard::new(600);
        body.extend((0..600).map(|n| (n + index) as u8));
        let frame = encode(index, &body)?;
        for sender in &senders {
            // A peer ends only when its sender is dropped, below.
            let _ = sender.send(frame.clone());
        }
    }
    drop(senders);
    for (number, peer) in peers.into_iter().enumerate() {
        println!("peer {number} received {} bytes", peer.join().unwrap_or(0));
    }

    let stats = buffer_pool().stats();
    println!("buffers lent     {:>10}", stats.lent_total());
    println!("hit ratio        {:>10.5}", stats.hit_ratio());
    for class in stats.classes.iter().filter(|class| class.created > 0) {
        println!(
            "class {:>8} B: {} made, {} lent from the thread's tier, {} from the shared tier, {} unpooled",
            class.class_bytes, class.created, class.thread_hits, class.shared_hits, class.unpooled
        );
    }
    println!(
        "memory           {:>10} bytes at most, of {} allowed",
        stats.charged_bytes_peak, stats.budget_bytes
    );
    Ok(())
}
