//! What a cumulative request says that the next one does not contain.
//!
//! A newer cumulative request contains all earlier ones but for the last values of series that have left meanwhile: these are told once. A
//! receiver that was down when they were told gets them with the next request.

use super::ExportMetricsServiceRequest;
use super::split::{move_points, with_points};
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    Metric, ResourceMetrics, ScopeMetrics, metric::Data,
};
use prost::Message;
use std::collections::{HashMap, HashSet};

/// What identifies a series on the wire, encoded: the scope, the metric, the attributes, and when it began.
type Key = Vec<u8>;

/// The points of `old`, each in the order given, whose series `newer` does not have, as one request; `None` if there are none.
pub(super) fn left_behind(
    old: impl Iterator<Item = ExportMetricsServiceRequest>,
    newer: &ExportMetricsServiceRequest,
) -> Option<ExportMetricsServiceRequest> {
    let contained = keys(newer);
    let mut left = Merged::default();
    for resource in old.flat_map(|request| request.resource_metrics) {
        for scope in resource.scope_metrics {
            for mut metric in scope.metrics {
                let frame = frame(scope.scope.as_ref(), &scope.schema_url, &metric);
                retain(&mut metric, &frame, &contained);
                let is_empty = with_points!(&mut metric.data, points => points.is_empty());
                if metric.data.is_some() && !is_empty {
                    let of = ResourceMetrics {
                        resource: resource.resource.clone(),
                        scope_metrics: Vec::new(),
                        schema_url: resource.schema_url.clone(),
                    };
                    let within = ScopeMetrics {
                        scope: scope.scope.clone(),
                        metrics: Vec::new(),
                        schema_url: scope.schema_url.clone(),
                    };
                    left.add(of, within, metric, frame);
                }
            }
        }
    }
    (!left.request.resource_metrics.is_empty()).then_some(left.request)
}

/// The series of a request.
fn keys(request: &ExportMetricsServiceRequest) -> HashSet<Key> {
    let mut keys = HashSet::new();
    let scopes = request
        .resource_metrics
        .iter()
        .flat_map(|resource| &resource.scope_metrics);
    for scope in scopes {
        for metric in &scope.metrics {
            let frame = frame(scope.scope.as_ref(), &scope.schema_url, metric);
            let mut add = |attributes: &[KeyValue], start: u64| {
                keys.insert(key(&frame, attributes, start));
            };
            match &metric.data {
                Some(Data::Gauge(data)) => data
                    .data_points
                    .iter()
                    .for_each(|point| add(&point.attributes, point.start_time_unix_nano)),
                Some(Data::Sum(data)) => data
                    .data_points
                    .iter()
                    .for_each(|point| add(&point.attributes, point.start_time_unix_nano)),
                Some(Data::Histogram(data)) => data
                    .data_points
                    .iter()
                    .for_each(|point| add(&point.attributes, point.start_time_unix_nano)),
                Some(Data::ExponentialHistogram(data)) => data
                    .data_points
                    .iter()
                    .for_each(|point| add(&point.attributes, point.start_time_unix_nano)),
                Some(Data::Summary(data)) => data
                    .data_points
                    .iter()
                    .for_each(|point| add(&point.attributes, point.start_time_unix_nano)),
                None => {}
            }
        }
    }
    keys
}

/// Drops the points whose series are in `contained`.
fn retain(metric: &mut Metric, frame: &[u8], contained: &HashSet<Key>) {
    with_points!(&mut metric.data, points => points.retain(|point| {
        !contained.contains(&key(frame, &point.attributes, point.start_time_unix_nano))
    }));
}

/// The scope, and what all series of a metric share.
fn frame(scope: Option<&InstrumentationScope>, schema_url: &str, metric: &Metric) -> Vec<u8> {
    let mut frame = scope
        .map(Message::encode_length_delimited_to_vec)
        .unwrap_or_default();
    for text in [schema_url, &metric.name, &metric.unit] {
        frame.extend((text.len() as u64).to_le_bytes());
        frame.extend(text.as_bytes());
    }
    frame.push(match &metric.data {
        Some(Data::Gauge(_)) => 1,
        Some(Data::Sum(data)) if data.is_monotonic => 2,
        Some(Data::Sum(_)) => 3,
        Some(Data::Histogram(_)) => 4,
        Some(Data::ExponentialHistogram(_)) => 5,
        Some(Data::Summary(_)) => 6,
        None => 0,
    });
    frame
}

/// Attributes come in the order of their keys.
fn key(frame: &[u8], attributes: &[KeyValue], start: u64) -> Key {
    let mut key = frame.to_vec();
    for attribute in attributes {
        key.extend(attribute.encode_length_delimited_to_vec());
    }
    key.extend(start.to_le_bytes());
    key
}

/// A request that is put together from metrics.
#[derive(Default)]
struct Merged {
    request: ExportMetricsServiceRequest,
    /// The frame of a metric to its place: resource, scope, metric.
    places: HashMap<Vec<u8>, [usize; 3]>,
}

impl Merged {
    /// `of` and `within` have no metrics.
    fn add(
        &mut self,
        of: ResourceMetrics,
        within: ScopeMetrics,
        mut metric: Metric,
        frame: Vec<u8>,
    ) {
        let resources = &mut self.request.resource_metrics;
        if let Some([resource, scope, place]) = self.places.get(&frame).copied()
            && let Some(found) = resources.get_mut(resource)
            && (&found.resource, &found.schema_url) == (&of.resource, &of.schema_url)
            && let Some(found) = found.scope_metrics.get_mut(scope)
            && let Some(first) = found.metrics.get_mut(place)
        {
            let count = with_points!(&mut metric.data, points => points.len());
            move_points(&mut metric.data, &mut first.data, count);
            return;
        }
        let is_same = |other: &ResourceMetrics| {
            (&other.resource, &other.schema_url) == (&of.resource, &of.schema_url)
        };
        let resource = resources.iter().position(is_same).unwrap_or_else(|| {
            resources.push(of);
            resources.len() - 1
        });
        let scopes = &mut resources[resource].scope_metrics;
        let is_same = |other: &ScopeMetrics| {
            (&other.scope, &other.schema_url) == (&within.scope, &within.schema_url)
        };
        let scope = scopes.iter().position(is_same).unwrap_or_else(|| {
            scopes.push(within);
            scopes.len() - 1
        });
        let metrics = &mut scopes[scope].metrics;
        metrics.push(metric);
        self.places
            .insert(frame, [resource, scope, metrics.len() - 1]);
    }
}
