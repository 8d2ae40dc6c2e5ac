//! A catalogue of what a node of a distributed system records.
//!
//! Names follow OpenTelemetry's conventions: dots between namespaces, units in UCUM notation, no unit and no `_total` in the
//! name: <https://opentelemetry.io/docs/specs/semconv/general/metrics/>. Exporters that need these add them.

use crate::cells::{BoundCounter, BoundUpDownCounter};
use crate::gauge::BoundGauge;
use crate::histogram::BoundHistogram;
use crate::instruments::{Counter, Gauge, Histogram};
use crate::label_set;
use crate::labels::{Labels, Row};
use crate::registry::Registry;
use crate::{InstrumentBuilder, MetricsError};
use std::sync::OnceLock;

label_set! {
    /// What is done to a VM.
    pub enum Operation: "operation" {
        /// It is made.
        Create => "create",
        /// It is started.
        Start => "start",
        /// It is stopped.
        Stop => "stop",
        /// It is deleted.
        Delete => "delete",
    }
}

label_set! {
    /// How something ended.
    pub enum Outcome: "status" {
        /// As it should.
        Success => "success",
        /// With an error.
        Failed => "failed",
    }
}

impl Outcome {
    /// From the origin's flag.
    #[inline]
    #[must_use]
    pub fn of(success: bool) -> Self {
        if success { Self::Success } else { Self::Failed }
    }
}

label_set! {
    /// The services of a node.
    pub enum Service: "service" {
        /// Health checks.
        Health => "health",
        /// Membership.
        Cluster => "cluster",
        /// Virtual machines.
        Vm => "vm",
        /// Consensus.
        Raft => "raft",
    }
}

label_set! {
    /// What carries a message.
    pub enum Transport: "network.transport.name" {
        /// Iroh.
        Iroh => "iroh",
        /// gRPC.
        Grpc => "grpc",
        /// Frames over TCP, with TLS or without, as `perf-transport` sends them.
        Tcp => "tcp",
    }
}

label_set! {
    /// Seen from this node.
    pub enum Direction: "network.io.direction" {
        /// Towards this node.
        Receive => "receive",
        /// Away from this node.
        Transmit => "transmit",
    }
}

label_set! {
    /// Seen from the disk.
    pub enum DiskDirection: "disk.io.direction" {
        /// From the disk.
        Read => "read",
        /// To the disk.
        Write => "write",
    }
}

label_set! {
    /// Whether a resource of the cluster is in use.
    pub enum ResourceState: "state" {
        /// All there is.
        Total => "total",
        /// The part in use.
        Used => "used",
    }
}

label_set! {
    /// States of a pooled connection: <https://opentelemetry.io/docs/specs/semconv/database/database-metrics/>.
    pub enum ConnectionState: "state" {
        /// Waits in the pool.
        Idle => "idle",
        /// Is in use.
        Used => "used",
    }
}

/// A table with one dimension.
pub type Table1<A, C> = <(A,) as Labels>::Table<C>;
/// A table with two dimensions.
pub type Table2<A, B, C> = Row<A, Row<B, C>>;

/// Seconds: from 10 µs to a minute, exact at the same bounds in every exporter.
const SECONDS: [f64; 18] = [
    0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 60.0,
];

macro_rules! catalogue {
    ($(
        $(#[$doc:meta])+
        $field:ident : $Type:ty = $method:ident($name:literal, $unit:literal, $description:literal) $make:expr;
    )+) => {
        /// The instruments of a node. Each field's documentation starts with the instrument's name.
        #[derive(Debug)]
        #[non_exhaustive]
        pub struct NodeMetrics {
            $($(#[$doc])+ #[doc = concat!("\n\n`", $name, "`, unit `", $unit, "`")] pub $field: $Type,)+
        }

        impl NodeMetrics {
            /// Makes all instruments in a registry.
            ///
            /// # Errors
            /// [`MetricsError`] if the registry has an instrument of one of the names, or is full.
            pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
                Ok(Self {
                    $($field: $make(registry.$method($name).with_unit($unit).with_description($description))?,)+
                })
            }
        }
    };
}

fn plain<I: crate::Instrument>(builder: InstrumentBuilder<I>) -> Result<I, MetricsError> {
    builder.build()
}

/// One series without attributes, and no table for others: what records to it needs no attributes.
fn bound<I: crate::Instrument>(builder: InstrumentBuilder<I>) -> Result<I::Bound, MetricsError> {
    builder.build_table::<()>()
}

fn table1<A: crate::LabelSet, I: crate::Instrument>(
    builder: InstrumentBuilder<I>,
) -> Result<Table1<A, I::Bound>, MetricsError> {
    builder.build_table::<(A,)>()
}

fn table2<A: crate::LabelSet, B: crate::LabelSet, I: crate::Instrument>(
    builder: InstrumentBuilder<I>,
) -> Result<Table2<A, B, I::Bound>, MetricsError> {
    builder.build_table::<(A, B)>()
}

fn seconds(
    builder: InstrumentBuilder<Histogram<f64>>,
) -> Result<BoundHistogram<f64>, MetricsError> {
    builder.with_boundaries(SECONDS).build_table::<()>()
}

fn seconds_by<A: crate::LabelSet>(
    builder: InstrumentBuilder<Histogram<f64>>,
) -> Result<Table1<A, BoundHistogram<f64>>, MetricsError> {
    builder.with_boundaries(SECONDS).build_table::<(A,)>()
}

catalogue! {
    // Raft.
    /// Proposals by how they ended.
    raft_proposals: Table1<Outcome, BoundCounter<u64>> = u64_counter("raft.proposals", "{proposal}", "Proposals by how they ended") table1;
    /// From a proposal to its commit.
    raft_commit_duration: BoundHistogram<f64> = f64_histogram("raft.commit.duration", "s", "Time from a proposal to its commit") seconds;
    /// From a commit to its application.
    raft_apply_duration: BoundHistogram<f64> = f64_histogram("raft.apply.duration", "s", "Time from a commit to its application") seconds;
    /// Messages by direction.
    raft_messages: Table1<Direction, BoundCounter<u64>> = u64_counter("raft.messages", "{message}", "Messages of the consensus by direction") table1;
    /// Elections this node started.
    raft_elections: BoundCounter<u64> = u64_counter("raft.elections", "{election}", "Elections that this node started") bound;
    /// Changes of the leader that this node saw.
    raft_leader_changes: BoundCounter<u64> = u64_counter("raft.leader.changes", "{change}", "Changes of the leader that this node saw") bound;
    /// Snapshots by direction.
    raft_snapshots: Table1<Direction, BoundCounter<u64>> = u64_counter("raft.snapshots", "{snapshot}", "Snapshots sent and received") table1;
    /// The current term.
    raft_term: BoundGauge<u64> = u64_gauge("raft.term", "{term}", "Current term") bound;
    /// The commit index.
    raft_commit_index: BoundGauge<u64> = u64_gauge("raft.commit.index", "{entry}", "Index of the last committed entry") bound;
    /// The applied index.
    raft_applied_index: BoundGauge<u64> = u64_gauge("raft.applied.index", "{entry}", "Index of the last applied entry") bound;
    /// 1 on the leader, otherwise 0.
    raft_is_leader: BoundGauge<u64> = u64_gauge("raft.leader", "1", "1 on the leader, otherwise 0") bound;

    // Network.
    /// Bytes by transport and direction.
    network_io: Table2<Transport, Direction, BoundCounter<u64>> = u64_counter("network.io", "By", "Bytes sent and received by transport") table2;
    /// Messages by transport and direction.
    network_messages: Table2<Transport, Direction, BoundCounter<u64>> = u64_counter("network.messages", "{message}", "Messages sent and received by transport") table2;
    /// Requests by service and how they ended.
    rpc_requests: Table2<Service, Outcome, BoundCounter<u64>> = u64_counter("rpc.requests", "{request}", "Requests by service and how they ended") table2;
    /// From a request to its response, by service.
    rpc_duration: Table1<Service, BoundHistogram<f64>> = f64_histogram("rpc.duration", "s", "Time from a request to its response") seconds_by;
    /// Requests that wait for their response.
    rpc_in_flight: BoundUpDownCounter<i64> = i64_up_down_counter("rpc.in_flight", "{request}", "Requests that wait for their response") bound;
    /// Sizes of messages.
    message_size: BoundHistogram<u64> = u64_histogram("network.message.size", "By", "Sizes of messages") bound;

    // Virtual machines.
    /// Operations on VMs by how they ended.
    vm_operations: Table2<Operation, Outcome, BoundCounter<u64>> = u64_counter("vm.operations", "{operation}", "Operations on VMs by how they ended") table2;
    /// Operations on VMs that are none of [`Operation`], with their names as attributes.
    vm_operations_other: Counter<u64> = u64_counter("vm.operations.other", "{operation}", "Operations on VMs that are not in the catalogue") plain;
    /// How long operations on VMs take.
    vm_operation_duration: Table1<Operation, BoundHistogram<f64>> = f64_histogram("vm.operation.duration", "s", "How long operations on VMs take") seconds_by;
    /// VMs on this node.
    vm_count: BoundGauge<u64> = u64_gauge("vm.count", "{vm}", "VMs on this node") bound;
    /// Running VMs on this node.
    vm_running: BoundGauge<u64> = u64_gauge("vm.running", "{vm}", "Running VMs on this node") bound;

    // The cluster as this node sees it: values that are set.
    /// Nodes in the cluster.
    cluster_nodes: BoundGauge<u64> = u64_gauge("cluster.nodes", "{node}", "Nodes in the cluster") bound;
    /// Virtual CPUs of the cluster.
    cluster_vcpus: Table1<ResourceState, BoundGauge<u64>> = u64_gauge("cluster.vcpus", "{cpu}", "Virtual CPUs of the cluster") table1;
    /// Memory of the cluster.
    cluster_memory: Table1<ResourceState, BoundGauge<u64>> = u64_gauge("cluster.memory", "MiBy", "Memory of the cluster") table1;

    // Resources of nodes, by the attribute `node.id`.
    /// Virtual CPUs of a node.
    node_vcpus: Gauge<u64> = u64_gauge("node.vcpus", "{cpu}", "Virtual CPUs of a node") plain;
    /// Memory of a node.
    node_memory: Gauge<u64> = u64_gauge("node.memory", "MiBy", "Memory of a node") plain;
    /// Disk space of a node.
    node_disk: Gauge<u64> = u64_gauge("node.disk", "GiBy", "Disk space of a node") plain;

    // Storage.
    /// Bytes by direction.
    storage_io: Table1<DiskDirection, BoundCounter<u64>> = u64_counter("storage.io", "By", "Bytes read and written") table1;
    /// Operations by direction.
    storage_operations: Table1<DiskDirection, BoundCounter<u64>> = u64_counter("storage.operations", "{operation}", "Reads and writes") table1;
    /// How long it takes until data is durable.
    storage_sync_duration: BoundHistogram<f64> = f64_histogram("storage.sync.duration", "s", "Time until data is durable") seconds;
    /// Sizes of written batches.
    storage_batch_size: BoundHistogram<u64> = u64_histogram("storage.batch.size", "By", "Sizes of batches written at once") bound;

    // Connection pool.
    /// Connections by state.
    pool_connections: Table1<ConnectionState, BoundUpDownCounter<i64>> = i64_up_down_counter("connection.pool.connections", "{connection}", "Pooled connections by state") table1;
    /// Connections made, by how it ended.
    pool_dials: Table1<Outcome, BoundCounter<u64>> = u64_counter("connection.pool.dials", "{connection}", "Attempts to connect by how they ended") table1;
    /// How long it takes to get a connection.
    pool_wait_duration: BoundHistogram<f64> = f64_histogram("connection.pool.wait.duration", "s", "Time to get a connection from the pool") seconds;
}

impl NodeMetrics {
    /// The catalogue of the whole process, in a registry of its own: [`global_registry`](Self::global_registry) is what exporters
    /// attach to.
    ///
    /// # Errors
    /// [`MetricsError::NoCells`] if the process had no cells left when this was first called.
    pub fn global() -> Result<&'static Self, &'static MetricsError> {
        static GLOBAL: OnceLock<Result<NodeMetrics, MetricsError>> = OnceLock::new();
        GLOBAL
            .get_or_init(|| Self::new(Self::global_registry()))
            .as_ref()
    }

    /// The registry of [`global`](Self::global).
    #[must_use]
    pub fn global_registry() -> &'static Registry {
        static REGISTRY: OnceLock<Registry> = OnceLock::new();
        REGISTRY.get_or_init(Registry::new)
    }
}
