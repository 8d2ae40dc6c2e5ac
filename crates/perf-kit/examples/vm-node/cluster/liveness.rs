//! After the faults: every node has caught up, takes writes and answers both kinds of read.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};

use super::chaos;
use super::client::{Answer, Client, ErrorReply};
use super::nodes::Nodes;

/// How long all of it may take.
const ALL_MAX: Duration = Duration::from_secs(30);
/// Wait before a request is repeated.
const RETRY: Duration = Duration::from_millis(50);

/// Returns how long it took.
pub(super) async fn check(nodes: &Nodes) -> Result<Duration> {
    let start = Instant::now();
    let live = async {
        chaos::wait_until_whole(nodes, ALL_MAX).await?;
        for id in nodes.ids().await {
            works(nodes, id)
                .await
                .with_context(|| format!("node {id} does not work again"))?;
        }
        Ok::<(), anyhow::Error>(())
    };
    let timely = tokio::time::timeout(ALL_MAX, live).await;
    timely.with_context(|| {
        format!(
            "the cluster did not work again within {} s; the nodes' logs end with:\n{}",
            ALL_MAX.as_secs(),
            nodes.last_words()
        )
    })??;
    Ok(start.elapsed())
}

/// A write that is sent to the node, and both kinds of read of it there.
async fn works(nodes: &Nodes, id: u64) -> Result<()> {
    let name = format!("alive-{id}");
    let vm = format!(
        "{{\"name\":\"{name}\",\"vcpus\":1,\"memory_mib\":512,\"disk_gib\":4,\"request_id\":\"{name}\"}}"
    );
    let path = format!("/vms/{name}");
    until(nodes, id, Method::POST, "/vms", &vm, StatusCode::CREATED).await?;
    // Any node answers a linearizable read; the other kind catches up.
    let here = Client::new(nodes.address(id)?)
        .request(Method::GET, &path, Bytes::new())
        .await?;
    if here.status != StatusCode::OK {
        bail!(
            "the read of an acknowledged write was answered with {}",
            words(&here)
        );
    }
    let stale = format!("{path}?stale=true");
    until(nodes, id, Method::GET, &stale, "", StatusCode::OK).await?;
    let gone = format!("{{\"request_id\":\"{name}-gone\"}}");
    until(nodes, id, Method::DELETE, &path, &gone, StatusCode::OK).await
}

/// Sends a request to the node, and follows its redirects, until the answer is as wanted.
async fn until(
    nodes: &Nodes,
    id: u64,
    method: Method,
    path: &str,
    body: &str,
    wanted: StatusCode,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let mut client = Client::new(nodes.address(id)?);
        let body = Bytes::copy_from_slice(body.as_bytes());
        let mut answer = client.request(method.clone(), path, body.clone()).await;
        if let Ok(redirect) = &answer
            && redirect.status == StatusCode::TEMPORARY_REDIRECT
            && let Ok(ErrorReply {
                leader: Some(leader),
            }) = serde_json::from_slice(&redirect.body)
        {
            client.move_to(&leader);
            answer = client.request(method.clone(), path, body).await;
        }
        if matches!(&answer, Ok(answer) if answer.status == wanted) {
            return Ok(());
        }
        if start.elapsed() > ALL_MAX {
            let words = answer.map_or_else(|error| error.to_string(), |answer| words(&answer));
            bail!("`{method} {path}` was answered with {words}");
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn words(answer: &Answer) -> String {
    format!(
        "{}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    )
}
