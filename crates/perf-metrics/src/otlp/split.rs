//! Dividing a collection into requests that a receiver takes.

use super::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data};
use prost::Message;

/// Bytes of a request unless set: below the 4 MiB that gRPC servers take by default.
pub const REQUEST_BYTES_MAX_DEFAULT: usize = 3 << 20;
/// Data points of a request unless set.
pub const REQUEST_POINTS_MAX_DEFAULT: usize = 10_000;
/// What the length and the tag of a message take at most.
const FRAME_BYTES: usize = 12;

/// How large a request may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Max {
    pub(super) bytes: usize,
    pub(super) points: usize,
}

pub(super) fn bytes(request: &ExportMetricsServiceRequest) -> usize {
    request.encoded_len()
}

/// What each part of a request has at least: the resource and the scopes.
pub(super) fn empty_bytes(request: &ExportMetricsServiceRequest) -> usize {
    emptied(request).encoded_len()
}

/// Calls `$each` with the points of a metric, of whatever type.
macro_rules! with_points {
    ($data:expr, $points:ident => $each:expr) => {
        match $data {
            Some(Data::Gauge(data)) => {
                let $points = &mut data.data_points;
                $each
            }
            Some(Data::Sum(data)) => {
                let $points = &mut data.data_points;
                $each
            }
            Some(Data::Histogram(data)) => {
                let $points = &mut data.data_points;
                $each
            }
            Some(Data::ExponentialHistogram(data)) => {
                let $points = &mut data.data_points;
                $each
            }
            Some(Data::Summary(data)) => {
                let $points = &mut data.data_points;
                $each
            }
            None => Default::default(),
        }
    };
}
pub(super) use with_points;

/// The requests, in order, that together say what `request` says. One point alone may exceed the bytes.
pub(super) fn split(
    request: ExportMetricsServiceRequest,
    max: Max,
) -> Vec<ExportMetricsServiceRequest> {
    if request.encoded_len() <= max.bytes && points(&request) <= max.points {
        return vec![request];
    }
    let mut parts = Parts {
        empty: emptied(&request),
        max,
        done: Vec::new(),
        part: None,
        room: Max {
            bytes: 0,
            points: 0,
        },
    };
    for (resource, metrics) in request.resource_metrics.into_iter().enumerate() {
        for (scope, metrics) in metrics.scope_metrics.into_iter().enumerate() {
            for metric in metrics.metrics {
                parts.add(metric, resource, scope);
            }
        }
    }
    parts.done.extend(parts.part);
    // Resources and scopes of which a part has nothing.
    for part in &mut parts.done {
        for resource in &mut part.resource_metrics {
            resource
                .scope_metrics
                .retain(|scope| !scope.metrics.is_empty());
        }
        part.resource_metrics
            .retain(|resource| !resource.scope_metrics.is_empty());
    }
    parts.done
}

/// How many points it has.
pub(super) fn points(request: &ExportMetricsServiceRequest) -> usize {
    let metrics = request
        .resource_metrics
        .iter()
        .flat_map(|r| &r.scope_metrics)
        .flat_map(|s| &s.metrics);
    metrics
        .map(|metric| match &metric.data {
            Some(Data::Gauge(data)) => data.data_points.len(),
            Some(Data::Sum(data)) => data.data_points.len(),
            Some(Data::Histogram(data)) => data.data_points.len(),
            Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
            Some(Data::Summary(data)) => data.data_points.len(),
            None => 0,
        })
        .sum()
}

/// The same without metrics.
fn emptied(request: &ExportMetricsServiceRequest) -> ExportMetricsServiceRequest {
    let mut empty = ExportMetricsServiceRequest::default();
    for resource in &request.resource_metrics {
        let mut kept = opentelemetry_proto::tonic::metrics::v1::ResourceMetrics {
            resource: resource.resource.clone(),
            scope_metrics: Vec::new(),
            schema_url: resource.schema_url.clone(),
        };
        for scope in &resource.scope_metrics {
            kept.scope_metrics
                .push(opentelemetry_proto::tonic::metrics::v1::ScopeMetrics {
                    scope: scope.scope.clone(),
                    metrics: Vec::new(),
                    schema_url: scope.schema_url.clone(),
                });
        }
        empty.resource_metrics.push(kept);
    }
    empty
}

struct Parts {
    empty: ExportMetricsServiceRequest,
    max: Max,
    done: Vec<ExportMetricsServiceRequest>,
    part: Option<ExportMetricsServiceRequest>,
    room: Max,
}

impl Parts {
    /// Puts the points of a metric into this part and as many more as they need.
    fn add(&mut self, mut metric: Metric, resource: usize, scope: usize) {
        let mut frame = metric.clone();
        with_points!(&mut frame.data, points => points.clear());
        // With the frames of the metric and of its data.
        let frame_bytes = frame.encoded_len() + 2 * FRAME_BYTES;
        let sizes: Vec<usize> = with_points!(&mut metric.data, points => points.iter().map(|point| point.encoded_len() + FRAME_BYTES).collect());
        let mut rest = sizes.as_slice();
        while let [first, ..] = rest {
            let needed = frame_bytes + first;
            if self.part.is_none() || self.room.points == 0 || self.room.bytes < needed {
                self.done.extend(self.part.replace(self.empty.clone()));
                self.room = Max {
                    bytes: self
                        .max
                        .bytes
                        .saturating_sub(self.empty.encoded_len() + 4 * FRAME_BYTES),
                    points: self.max.points,
                };
            }
            let mut used = frame_bytes + first;
            let mut count = 1;
            while let Some(size) = rest.get(count)
                && count < self.room.points
                && used + size <= self.room.bytes
            {
                used += size;
                count += 1;
            }
            let mut taken = frame.clone();
            move_points(&mut metric.data, &mut taken.data, count);
            if let Some(scopes) = self
                .part
                .as_mut()
                .and_then(|part| part.resource_metrics.get_mut(resource))
                && let Some(scope) = scopes.scope_metrics.get_mut(scope)
            {
                scope.metrics.push(taken);
            }
            self.room.bytes = self.room.bytes.saturating_sub(used);
            self.room.points = self.room.points.saturating_sub(count);
            rest = rest.get(count..).unwrap_or_default();
        }
    }
}

/// Moves the first `count` points of `from` to `to`, which is of the same type.
pub(super) fn move_points(from: &mut Option<Data>, to: &mut Option<Data>, count: usize) {
    match (from, to) {
        (Some(Data::Gauge(from)), Some(Data::Gauge(to))) => {
            to.data_points.extend(from.data_points.drain(..count))
        }
        (Some(Data::Sum(from)), Some(Data::Sum(to))) => {
            to.data_points.extend(from.data_points.drain(..count))
        }
        (Some(Data::Histogram(from)), Some(Data::Histogram(to))) => {
            to.data_points.extend(from.data_points.drain(..count));
        }
        (Some(Data::ExponentialHistogram(from)), Some(Data::ExponentialHistogram(to))) => {
            to.data_points.extend(from.data_points.drain(..count));
        }
        (Some(Data::Summary(from)), Some(Data::Summary(to))) => {
            to.data_points.extend(from.data_points.drain(..count))
        }
        _ => {}
    }
}
