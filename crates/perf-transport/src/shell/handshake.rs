//! The first frames of a stream, read and written with awaits: nothing here is hot.

use crate::connect::{BoxRead, BoxWrite};
use crate::payload::Payload;
use crate::proto::{
    Accepted, Decoder, Frame, HANDSHAKE_BYTES_MAX, HandshakeError, Header, Kind, Local, Outbox,
    ReadBuffer, SLICES_MAX, WriteBuffer, accept, refusal,
};
use prost::Message;
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a peer that is not let in may take to read why.
const REFUSAL_MS: u64 = 200;

fn io_error(error: &io::Error) -> HandshakeError {
    // What is wrong with this node's certificate is said when the first frame is awaited.
    #[cfg(feature = "tls")]
    if crate::tls::is_of_tls(error) {
        return crate::tls::io_error(error);
    }
    HandshakeError::Refused {
        reason: error.to_string(),
    }
}

/// Reads one frame. Bounded by the cap of handshake messages, whatever the peer says.
pub(crate) async fn read_frame(
    read: &mut BoxRead,
    buffer: &mut ReadBuffer,
    checksum: bool,
) -> Result<Frame, HandshakeError> {
    let decoder = Decoder::new(HANDSHAKE_BYTES_MAX, checksum);
    loop {
        if let Some(frame) = decoder.next(buffer.buffer())? {
            return Ok(frame);
        }
        let needed = decoder.needed(buffer.buffer())?;
        buffer.prepare(needed);
        let read = read.read_buf(buffer.buffer()).await;
        match read.map_err(|error| io_error(&error))? {
            0 => {
                return Err(HandshakeError::Refused {
                    reason: "it closed the connection".to_owned(),
                });
            }
            _ => continue,
        }
    }
}

/// Writes one frame.
pub(crate) async fn write_frame(
    write: &mut BoxWrite,
    kind: Kind,
    message: &impl Message,
    checksum: bool,
) -> Result<usize, HandshakeError> {
    let mut buffer = WriteBuffer::new();
    let payload = message.encode_to_vec();
    buffer.push(
        Header::new(kind, 0, 0),
        &Payload::Borrowed(&payload),
        checksum,
    );
    let mut outbox = Outbox::default();
    outbox.push(buffer);
    let mut bytes = 0;
    while !outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = outbox.slices(&mut slices);
        let written = write.write_vectored(&slices[..count]).await;
        match written.map_err(|error| io_error(&error))? {
            0 => return Err(io_error(&io::ErrorKind::WriteZero.into())),
            written => {
                bytes += written;
                outbox.advance(written, |_| ());
            }
        }
    }
    write.flush().await.map_err(|error| io_error(&error))?;
    Ok(bytes)
}

/// The accepting side's part: reads who it is, and whether the protocol can let it in. `spoken` is called when the
/// first bytes have come.
pub(crate) async fn hear(
    local: &Local,
    read: &mut BoxRead,
    buffer: &mut ReadBuffer,
    spoken: impl FnOnce(),
) -> Result<Accepted, HandshakeError> {
    buffer.prepare(1);
    let first = read.read_buf(buffer.buffer()).await;
    if first.map_err(|error| io_error(&error))? > 0 {
        spoken();
    }
    let Frame { header, payload } = read_frame(read, buffer, local.checksum).await?;
    accept(local, &header, &payload)
}

/// Lets the peer in.
pub(crate) async fn answer(
    local: &Local,
    write: &mut BoxWrite,
    accepted: &Accepted,
) -> Result<(), HandshakeError> {
    write_frame(write, Kind::Welcome, &accepted.welcome, local.checksum).await?;
    Ok(())
}

/// Tells the peer why it is not let in.
pub(crate) async fn refuse(local: &Local, write: &mut BoxWrite, error: &HandshakeError) {
    let refuse = refusal(error);
    let said = write_frame(write, Kind::Refuse, &refuse, local.checksum);
    // The peer learns why if it reads; this side does not wait long for that.
    let _ = tokio::time::timeout(Duration::from_millis(REFUSAL_MS), said).await;
}
