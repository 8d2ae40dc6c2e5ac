//! Sockets without any protocol: what the system itself costs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::drive::{self, Arrivals, Sender};
use crate::case::Run;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MESSAGE_BYTES: usize = 64;
/// As the goal has it.
const WRITE_BYTES: usize = 256 * 1024;

/// Two blocking threads, 64 bytes to and fro.
pub(super) fn ping_pong() -> Run {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be listened on");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        stream.set_nodelay(true).expect("TCP has it");
        let mut buffer = [0; MESSAGE_BYTES];
        while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
    });
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_nodelay(true).expect("TCP has it");
    Box::new(move |iters| {
        let mut buffer = [0x5A; MESSAGE_BYTES];
        let begin = Instant::now();
        for _ in 0..iters {
            stream.write_all(&buffer).expect("the server lives");
            stream.read_exact(&mut buffer).expect("the server lives");
        }
        begin.elapsed()
    })
}

struct RawSender {
    stream: tokio::net::TcpStream,
    buffer: Vec<u8>,
}

impl Sender for RawSender {
    async fn send(&mut self, count: u64) {
        // The last write is shorter.
        let mut left = count as usize * 65_536;
        while left > 0 {
            let now = left.min(WRITE_BYTES);
            self.stream
                .write_all(&self.buffer[..now])
                .await
                .expect("the server lives");
            left -= now;
        }
    }
}

/// 64 KiB is an operation, four of them a write; the other side reads into 256 KiB and looks at nothing.
pub(super) fn bulk() -> Run {
    let runtime = drive::runtime();
    let arrivals = Arc::new(Arrivals::default());
    let counted = Arc::clone(&arrivals);
    let stream = runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback can be listened on");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client connects");
            let mut buffer = vec![0; WRITE_BYTES];
            let mut bytes = 0;
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                bytes += read;
                counted.add((bytes / 65_536) as u64);
                bytes %= 65_536;
            }
        });
        let stream = tokio::net::TcpStream::connect(address).await;
        stream.expect("somebody listens")
    });
    stream.set_nodelay(true).expect("TCP has it");
    let sender = RawSender {
        stream,
        buffer: vec![0x5A; WRITE_BYTES],
    };
    drive::messages(runtime, sender, arrivals)
}
