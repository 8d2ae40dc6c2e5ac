//! How a connection ends whose peer can still hear it.

use super::conn::{Conn, bump};
use super::handshake::write_frame;
use crate::event::CloseReason;
use crate::proto::Kind;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long saying good-bye may take: a peer that does not read learns of the end anyway.
const PARTING: Duration = Duration::from_millis(200);

/// Ends the stream: after a good end the peer is told so, and under TLS that nothing was cut off.
pub(crate) async fn say(conn: &Conn, reason: &CloseReason, checksum: bool) {
    let Some((mut write, is_between_frames)) = conn.take_write() else {
        return;
    };
    let tells =
        reason.is_orderly() && is_between_frames && conn.hears_goodbye.load(Ordering::Relaxed);
    let said = async {
        if tells {
            // The peer may be gone already.
            if let Ok(bytes) = write_frame(&mut write, Kind::Goodbye, &(), checksum).await {
                bump(&conn.bytes_written, bytes as u64);
            }
        }
        write.shutdown().await
    };
    let _ = tokio::time::timeout(PARTING, said).await;
}
