//! Delivers to a receiver that the example starts itself, over HTTP and gRPC, and prints what arrived:
//!
//! `cargo run -p perf-metrics --example otlp`

#[path = "../tests/common/grpc.rs"]
mod grpc_receiver;
#[path = "../tests/common/receiver.rs"]
mod receiver;

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use perf_metrics::helpers::{record_vm_operation_fast, update_cluster_metrics_fast};
use perf_metrics::otlp::OtlpExporter;
use perf_metrics::string_constants::{OPERATION_CREATE, OPERATION_STOP};
use perf_metrics::{KeyValue, NodeMetrics, Registry, Temporality};
use std::time::Duration;
use tonic::transport::Server;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (http, over_http) = receiver::http(vec![]);
    let (grpc, over_grpc) = grpc_receiver::serve(Server::builder(), grpc_receiver::BYTES_MAX, None);

    let registry = Registry::new();
    let metrics = NodeMetrics::new(&registry)?;
    let resource = || [KeyValue::new("service.name", "node-1")];
    let exporters = [
        OtlpExporter::http(&format!("http://{http}"))
            .with_temporality(Temporality::Delta)
            .with_resource(resource())
            .start(&registry)?,
        OtlpExporter::grpc(&format!("http://{grpc}"))
            .with_resource(resource())
            .start(&registry)?,
    ];
    for round in 1..=2u64 {
        for n in 0..1000 {
            record_vm_operation_fast(OPERATION_CREATE, n % 10 != 0, &metrics);
            record_vm_operation_fast(OPERATION_STOP, true, &metrics);
            metrics.message_size.record(n * round);
            metrics.raft_commit_duration.record(0.001 * n as f64);
        }
        update_cluster_metrics_fast(3, 24, 10 * round, 49_152, 20_000, &metrics);
        for exporter in &exporters {
            exporter.flush(Duration::from_secs(10))?;
        }
    }
    for exporter in exporters {
        exporter.shutdown(Duration::from_secs(10))?;
    }
    print("HTTP, delta", &over_http);
    print("gRPC, cumulative", &over_grpc);
    Ok(())
}

fn print(way: &str, arrived: &receiver::Arrived) {
    let Ok(arrived) = arrived.lock() else { return };
    println!("over {way}: {} requests", arrived.len());
    for (place, request) in arrived.iter().enumerate() {
        println!("  request {}", place + 1);
        for metric in request
            .resource_metrics
            .iter()
            .flat_map(|r| &r.scope_metrics)
            .flat_map(|s| &s.metrics)
        {
            match &metric.data {
                Some(Data::Sum(sum)) => sum
                    .data_points
                    .iter()
                    .for_each(|p| println!("    {} {:?}", metric.name, p.value)),
                Some(Data::Gauge(gauge)) => gauge
                    .data_points
                    .iter()
                    .for_each(|p| println!("    {} {:?}", metric.name, p.value)),
                Some(Data::Histogram(h)) => h.data_points.iter().for_each(|p| {
                    println!("    {} count {} sum {:?}", metric.name, p.count, p.sum)
                }),
                Some(Data::ExponentialHistogram(h)) => {
                    h.data_points.iter().for_each(|p| {
                        println!("    {} count {} scale {}", metric.name, p.count, p.scale)
                    });
                }
                _ => {}
            }
        }
    }
}
