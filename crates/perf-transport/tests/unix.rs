//! Peers on one machine, over a socket in the file system.

#![cfg(all(unix, not(perf_loom)))]

mod support;

use perf_transport::{Envelope, Router};
use std::os::unix::net::UnixListener;
use support::{PATIENCE, plain, soon};

fn echo() -> Router {
    Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_talk_over_a_unix_socket_and_leave_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node.sock");
    let address = format!("unix:{}", path.display());
    // What a process left that crashed.
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let server = plain(2).router(echo()).listen(address.clone());
    let server = server.start().await.expect("nobody listens there");
    assert_eq!(server.address(), Some(&*address));
    let client = plain(1).peer(2, address.clone()).start().await;
    let client = client.expect("starts");
    for length in [1, 100_000] {
        let payload = vec![7; length];
        let call = client.call(Envelope::new(2, "vm", "echo", payload.clone()));
        assert!(soon(call).await.expect("a reply") == payload);
    }
    assert_eq!(server.connections()[0].address, address);
    // Where somebody listens, nobody else does.
    assert!(plain(3).listen(address.clone()).start().await.is_err());
    let call = client.call(Envelope::new(2, "vm", "echo", b"x"));
    soon(call).await.expect("it was not taken away");
    client.shutdown();
    assert!(soon(server.drain(PATIENCE)).await);
    assert!(!path.exists());
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_there_too() {
    use perf_transport::{Security, Transport};
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("unix:{}", folder.path().join("node.sock").display());
    let authority = support::certificates::Authority::new();
    let secure = |node| Security::MutualTls(authority.identity(node, "test"));
    let server = Transport::builder(2, "test", secure(2)).router(echo());
    let server = server.listen(address.clone()).start().await;
    let _server = server.expect("starts");
    let client = Transport::builder(1, "test", secure(1)).peer(2, address.clone());
    let client = client.start().await.expect("starts");
    let call = client.call(Envelope::new(2, "vm", "echo", b"x"));
    assert_eq!(soon(call).await.as_deref(), Ok(&b"x"[..]));
    let stranger = support::certificates::Authority::new();
    let security = Security::MutualTls(stranger.identity(3, "test"));
    let stranger = Transport::builder(3, "test", security).peer(2, address);
    let stranger = stranger.start().await.expect("starts");
    let call = stranger.call(Envelope::new(2, "vm", "echo", b"x"));
    soon(call).await.expect_err("of another authority");
}

/// An address that names a file which is no socket is a mistake, and costs no file.
#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("accounts");
    std::fs::write(&path, b"precious").expect("a file");
    let address = format!("unix:{}", path.display());
    let started = plain(2).listen(address).start().await;
    let error = started.expect_err("it is no socket").to_string();
    assert!(error.contains("in use"), "{error}");
    assert_eq!(std::fs::read(&path).expect("it is there"), b"precious");
}
