//! The adapters of `compat` do what their names say, one test per module.

use bytes::Bytes;
use perf_kit::compat::{
    caching, metrics_otel_optimized as metrics, node_shared_optimized as shared,
    performance_simple as simple, raft_processing_optimized as processing,
    transport_routing_optimized as routing,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn performance_simple_counts_and_keeps_buffers() {
    let counters = simple::AtomicCounters::new();
    assert_eq!(counters.decrement_vm_count(), 0);
    assert_eq!(counters.vm_count(), 0, "it does not wrap");
    assert_eq!(counters.add_used_vcpus(4), 0);
    assert_eq!(counters.remove_used_vcpus(6), 4);
    counters.set_running_vms(2);
    counters.set_total_vcpus(9);
    let read = (
        counters.running_vms(),
        counters.total_vcpus(),
        counters.used_vcpus(),
    );
    assert_eq!(read, (2, 9, 0));

    let pool = simple::SimpleBufferPool::new();
    let mut buffer = pool.get_buffer(5000);
    assert!(buffer.is_empty() && buffer.capacity() >= 5000);
    buffer.extend_from_slice(b"old");
    let address = buffer.as_ptr();
    pool.return_buffer(buffer);
    let again = pool.get_buffer(5000);
    assert_eq!((again.as_ptr(), again.len()), (address, 0), "it was kept");
}

#[test]
fn metrics_otel_optimized_records_in_the_global_registry() {
    metrics::record_vm_placement_attempt_optimized("manual", false, 0.5);
    metrics::record_vm_operation_optimized("start", true);
    metrics::record_p2p_verification_optimized(true, false);
    metrics::record_p2p_cache_access_optimized(true, false);
    let usage = metrics::NodeResourceUsage {
        used_vcpus: 3,
        ..Default::default()
    };
    metrics::update_node_resource_metrics_optimized(7, &usage);
    metrics::update_cluster_resource_metrics_optimized(&metrics::ClusterResourceSummary {
        total_nodes: 3,
        healthy_nodes: 2,
        total_vcpus: 64,
        used_vcpus: 8,
        total_memory_mb: 4096,
        used_memory_mb: 1024,
        total_disk_gb: 8765,
        used_disk_gb: 4321,
        computed_at: std::time::Instant::now(),
    });
    let collected = format!(
        "{:?}",
        perf_kit::metrics::NodeMetrics::global_registry().collect()
    );
    for name in [
        "vm.placement.attempts",
        "vm.placement.duration",
        "vm.operations",
        "p2p.verifications",
        "p2p.cache.accesses",
        "node.vcpus",
        "cluster.memory",
        "cluster.disk",
        "8765",
        "4321",
    ] {
        assert!(collected.contains(name), "{name} in {collected}");
    }
    assert_eq!(metrics::static_attrs::STATUS_FAILED.key.as_str(), "status");
}

struct Config(u64);

impl shared::NodeConfig for Config {
    fn node_id(&self) -> u64 {
        self.0
    }
}

#[test]
fn node_shared_optimized_shares_status_members_and_database() {
    let node: shared::OptimizedNodeStateWrapper<Config, String, &str> =
        shared::OptimizedNodeStateWrapper::new(Config(4));
    assert_eq!(
        (node.node_id(), node.leader_id(), node.is_initialized()),
        (4, None, false)
    );
    node.set_initialized(true);
    node.set_leader(true);
    node.set_leader_id(Some(4));
    assert!(node.is_initialized() && node.is_leader());
    node.set_leader(false);
    assert_eq!((node.is_leader(), node.leader_id()), (false, Some(4)));
    node.add_cluster_member(5, "five");
    node.add_cluster_member(6, "six");
    node.remove_cluster_member(5);
    let state = node.optimized();
    assert_eq!(
        (state.cluster_size(), state.get_cluster_member(6)),
        (1, Some("six"))
    );
    assert_eq!(
        node.cluster_members().into_iter().collect::<Vec<_>>(),
        [(6, "six")]
    );
    assert_eq!(
        state.with_cluster_members(|members| members.get(&6).copied()),
        Some("six")
    );
    state.set_database(Some(Arc::new("open".to_owned())));
    assert_eq!(
        state.database().as_deref().map(String::as_str),
        Some("open")
    );
    state.set_database(None);
    assert!(state.database().is_none());
}

#[tokio::test]
async fn caching_computes_once_and_counts() {
    let cache = Arc::new(caching::TtlCache::new(Duration::from_secs(3600)));
    let computed = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (cache, computed) = (Arc::clone(&cache), Arc::clone(&computed));
            tokio::spawn(async move {
                let compute = || async {
                    tokio::task::yield_now().await;
                    computed.fetch_add(1, Ordering::Relaxed)
                };
                cache.get_or_compute("key", compute).await
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.expect("no panics"), 0);
    }
    assert_eq!(computed.load(Ordering::Relaxed), 1);
    cache.clear().await;
    assert_eq!(cache.get_or_compute("key", || async { 5 }).await, 5);

    let manager = caching::GlobalCacheManager::new();
    let place = |node| {
        let result = caching::PlacementResult {
            target_node: Some(node),
            confidence_score: 0.9,
            reason: "most room".to_owned(),
        };
        || async { result }
    };
    let key = caching::PlacementKey::default();
    let placements = &manager.placement_decisions;
    assert_eq!(
        placements
            .get_placement(key.clone(), place(1))
            .await
            .target_node,
        Some(1)
    );
    assert_eq!(
        placements
            .get_placement(key.clone(), place(2))
            .await
            .target_node,
        Some(1)
    );
    let changed = caching::PlacementKey {
        cluster_state_hash: 1,
        ..key.clone()
    };
    assert_eq!(
        placements
            .get_placement(changed, place(3))
            .await
            .target_node,
        Some(3)
    );
    manager.clear_all().await;
    assert_eq!(
        placements.get_placement(key, place(4)).await.target_node,
        Some(4)
    );
    manager.atomic_metrics.decrement_vm_count();
    manager.atomic_metrics.set_total_memory_mb(64);
    assert_eq!(
        (
            manager.atomic_metrics.vm_count(),
            manager.atomic_metrics.total_memory_mb()
        ),
        (0, 64)
    );
}

#[tokio::test]
async fn raft_processing_optimized_encodes_the_urgent_first() {
    use processing::{BatchPriority, Message, MessageType};
    let message = |kind| {
        let mut message = Message::default();
        message.set_msg_type(kind);
        (message.from, message.to) = (1, 2);
        message
    };
    let processor = processing::OptimizedRaftProcessor::new();
    for kind in [MessageType::MsgAppend, MessageType::MsgRequestVote] {
        processor.queue_message(message(kind)).await.expect("room");
    }
    let frames = processor
        .process_next_batch()
        .await
        .expect("encodes")
        .expect("two wait");
    let kinds: Vec<_> = frames
        .into_iter()
        .map(|frame| {
            perf_kit::raft::codec::decode(frame)
                .expect("a message")
                .get_msg_type()
        })
        .collect();
    assert_eq!(kinds, [MessageType::MsgRequestVote, MessageType::MsgAppend]);
    let mut buffer = processing::SerializationBuffer::new();
    let frame = buffer
        .serialize(&message(MessageType::MsgHeartbeat))
        .expect("encodes");
    let decoded = perf_kit::raft::codec::decode(frame).expect("a message");
    assert_eq!(decoded.get_msg_type(), MessageType::MsgHeartbeat);

    let messages = [
        message(MessageType::MsgAppend),
        message(MessageType::MsgHeartbeat),
    ];
    let batch = processing::MessageBatch::new(&messages);
    assert_eq!(batch.priority, BatchPriority::Heartbeat);
    let frames = processor
        .process_message_batch_ref(&batch)
        .await
        .expect("encodes");
    assert_eq!(
        frames.iter().map(Bytes::len).sum::<usize>(),
        batch.total_size
    );
    let stats = processor.get_stats().await;
    assert_eq!((stats.messages_processed, stats.batches_processed), (4, 2));
    processor.reset_stats().await;
    assert_eq!(
        processor.get_stats().await,
        processing::ProcessingStats::default()
    );

    // The queues are bounded, and the message comes back.
    let mut queued = 0;
    let refused = loop {
        match processor
            .queue_message(message(MessageType::MsgSnapshot))
            .await
        {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
        assert!(queued < 1_000_000, "no bound");
    };
    assert!(
        matches!(refused, processing::ProcessingError::QueueFull(_)),
        "{refused}"
    );
}

#[tokio::test]
async fn transport_routing_optimized_sends_and_awaits_replies() {
    use perf_kit::transport::{Router, Security, Transport};
    let router = Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    let start = |node, router| {
        Transport::builder(node, "compat", Security::InsecurePlaintext)
            .listen("127.0.0.1:0")
            .router(router)
            .start()
    };
    let server = start(2, router).await.expect("it listens");
    let client = start(1, Router::new()).await.expect("it listens");
    let address = server.address().expect("it listens").to_owned();
    let request_id = [3; 16];
    let envelope = routing::MessageEnvelope {
        target: 2,
        service: "vm",
        method: "echo",
        payload: b"hello",
        priority: routing::MessagePriority::from_service_method("vm", "echo"),
        request_id: &request_id,
    };
    let pool = routing::OptimizedConnectionPool::new(client.clone());
    let reply = pool
        .send_message_optimized(&envelope, address.clone())
        .await;
    assert_eq!(reply.expect("an echo"), &b"hello"[..]);
    let connection = pool
        .get_connection(2, address.clone())
        .await
        .expect("known");
    let elsewhere = routing::MessageEnvelope {
        target: 9,
        ..envelope
    };
    let reply = connection.send_message_ref(&elsewhere).await;
    assert_eq!(reply.expect("an echo"), &b"hello"[..]);
    let router = routing::OptimizedMessageRouter::new(client);
    router
        .route_message(&envelope, address)
        .await
        .expect("queued");
}
