//! Three nodes in one process.

mod common;

use bytes::Bytes;
use common::{Cluster, options};
use perf_raft::{MembershipChange, ProposeError, ReadError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_proposed_is_applied_everywhere_in_order() {
    let cluster = Cluster::start(&[1, 2, 3], options()).await;
    let leader = cluster.leader().await;
    for number in 0..100_u64 {
        let response = leader
            .propose(Bytes::from(format!("k{} {number}", number % 7)))
            .await
            .expect("a leader");
        assert_eq!(response, Bytes::from(format!("{}", number + 1)));
    }
    let batch: Vec<Bytes> = (0..500)
        .map(|number| Bytes::from(format!("b {number}")))
        .collect();
    let results = leader.propose_batch(batch).await.expect("a leader");
    assert_eq!(results.len(), 500);
    assert!(results.iter().all(Result::is_ok));
    for handle in cluster.handles() {
        handle.read_index().await.expect("a leader is known");
        assert_eq!(cluster.applied(handle.id()), 600);
    }
    cluster.assert_equal();
    cluster.stop().await;
}
