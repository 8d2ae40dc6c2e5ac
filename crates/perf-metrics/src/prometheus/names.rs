//! How names, units and attributes are written, by
//! <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#otlp-metric-points-to-prometheus>.

use crate::attributes::KeyValue;
use crate::descriptor::{Descriptor, InstrumentKind};

/// Units by their UCUM codes.
const UNITS: [(&str, &str); 28] = [
    ("d", "days"),
    ("h", "hours"),
    ("min", "minutes"),
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("us", "microseconds"),
    ("ns", "nanoseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("GiBy", "gibibytes"),
    ("TiBy", "tibibytes"),
    ("kBy", "kilobytes"),
    ("KBy", "kilobytes"),
    ("MBy", "megabytes"),
    ("GBy", "gigabytes"),
    ("TBy", "terabytes"),
    ("m", "meters"),
    ("V", "volts"),
    ("A", "amperes"),
    ("J", "joules"),
    ("W", "watts"),
    ("g", "grams"),
    ("Cel", "celsius"),
    ("Hz", "hertz"),
    ("%", "percent"),
    ("1", ""),
    ("", ""),
];

/// Units behind the `/` of a rate.
const PER_UNITS: [(&str, &str); 7] = [
    ("s", "second"),
    ("m", "minute"),
    ("h", "hour"),
    ("d", "day"),
    ("w", "week"),
    ("mo", "month"),
    ("y", "year"),
];

/// Name of the family, without the suffix of its type, and its unit in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FamilyName {
    /// With the unit, and without `_total`.
    pub(super) name: String,
    /// Empty if there is none. The name ends with it, as OpenMetrics asks for.
    pub(super) unit: String,
}

pub(super) fn family(descriptor: &Descriptor) -> FamilyName {
    let mut tokens = tokens(descriptor.name());
    if descriptor.kind() == InstrumentKind::Counter {
        // It comes back as the last.
        tokens.retain(|token| token != "total");
    }
    let mut unit = unit(descriptor.unit());
    if unit.is_empty()
        && descriptor.unit().trim() == "1"
        && descriptor.kind() == InstrumentKind::Gauge
    {
        unit.push("ratio".to_owned());
    }
    let is_ratio = unit == ["ratio"];
    if is_ratio {
        tokens.retain(|token| token != "ratio");
    }
    let (main, per) = match unit.iter().position(|word| word == "per") {
        Some(at) => (unit[..at].to_vec(), unit[at..].to_vec()),
        None => (unit.clone(), Vec::new()),
    };
    for part in [main, per] {
        if part.iter().any(|word| !tokens.contains(word)) {
            tokens.extend(part);
        }
    }
    let mut name = tokens.join("_");
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        name.insert(0, '_');
    }
    let unit = unit.join("_");
    let is_last = !unit.is_empty() && name.ends_with(&format!("_{unit}"));
    FamilyName {
        name,
        unit: if is_last { unit } else { String::new() },
    }
}

/// The words of a unit: `By/s` is `bytes`, `per`, `second`. What is in braces is no unit.
fn unit(unit: &str) -> Vec<String> {
    let plain = without_braces(unit);
    let (main, per) = match plain.split_once('/') {
        Some((main, per)) => (main.trim(), Some(per.trim())),
        None => (plain.trim(), None),
    };
    let words =
        |table: &[(&str, &str)], code: &str| match table.iter().find(|(other, _)| *other == code) {
            Some((_, word)) => tokens(word),
            None => tokens(code),
        };
    let mut all = words(&UNITS, main);
    let per = per.map(|per| words(&PER_UNITS, per)).unwrap_or_default();
    if !per.is_empty() {
        all.push("per".to_owned());
        all.extend(per);
    }
    all
}

fn without_braces(unit: &str) -> String {
    let mut depth = 0usize;
    let is_outside = |c: &char| match c {
        '{' => {
            depth += 1;
            false
        }
        '}' => {
            depth = depth.saturating_sub(1);
            false
        }
        _ => depth == 0,
    };
    unit.chars().filter(is_outside).collect()
}

/// What lies between characters that names do not have: joined again with one `_` each.
fn tokens(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|token| !token.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The key of a label: of what is not allowed one `_` remains, names that Prometheus keeps for itself get another start.
fn label_key(key: &str) -> String {
    let mut clean = String::with_capacity(key.len());
    for c in key.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => clean.push(c),
            _ if clean.ends_with('_') => {}
            _ => clean.push('_'),
        }
    }
    if clean.is_empty() || clean == "_" || clean.starts_with(|first: char| first.is_ascii_digit()) {
        clean.insert_str(0, "key_");
    }
    clean
}

/// Labels in the order of their keys, without those whose value is empty, which mean the same as none. Keys that become the same are
/// one label whose values are joined by `;` in the order of the attributes' keys. `own` are the labels that the format gives a
/// sample itself.
pub(super) fn labels<'a>(
    attributes: impl IntoIterator<Item = &'a KeyValue>,
    prefix: &str,
    own: &[&str],
) -> Vec<(String, String)> {
    let mut attributes: Vec<&KeyValue> = attributes.into_iter().collect();
    attributes.sort_by(|a, b| a.key.cmp(&b.key));
    let mut labels: Vec<(String, String)> = Vec::with_capacity(attributes.len());
    for attribute in attributes {
        let mut key = format!("{prefix}{}", label_key(attribute.key.as_str()));
        if own.contains(&key.as_str()) {
            key.insert_str(0, "exported_");
        }
        let value = attribute.value.as_str();
        match labels.iter_mut().find(|(other, _)| *other == key) {
            Some((_, joined)) => {
                joined.push(';');
                joined.push_str(&value);
            }
            None => labels.push((key, value.into_owned())),
        }
    }
    labels.retain(|(_, value)| !value.is_empty());
    labels.sort();
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NumberKind;

    #[test]
    fn names_follow_the_specification() {
        use InstrumentKind::{Counter, Gauge, Histogram, UpDownCounter};
        // The last is with `_total`, where a counter has it.
        for (name, unit, kind, expected) in [
            // From the specification.
            (
                "http.server.duration",
                "ms",
                Histogram,
                "http_server_duration_milliseconds",
            ),
            (
                "system.filesystem.usage",
                "By",
                UpDownCounter,
                "system_filesystem_usage_bytes",
            ),
            ("speed", "m/s", Gauge, "speed_meters_per_second"),
            ("foo", "By/s", Gauge, "foo_bytes_per_second"),
            ("foo", "{packet}", Counter, "foo_total"),
            ("foo", "{packet}By", Counter, "foo_bytes_total"),
            ("utilization", "1", Gauge, "utilization_ratio"),
            ("objects", "1", Counter, "objects_total"),
            // From the issue.
            ("x_total", "By", Counter, "x_bytes_total"),
            ("net.rate", "By/s", Gauge, "net_rate_bytes_per_second"),
            ("ops", "{op}/s", Gauge, "ops_per_second"),
            ("a__b..c", "", Gauge, "a_b_c"),
            ("time.seconds", "s", Histogram, "time_seconds"),
            ("x_total", "", Counter, "x_total"),
            ("x.total.y", "", Counter, "x_y_total"),
            ("trailing_", "", Gauge, "trailing"),
            // As the collector does it.
            ("system.io", "By", Counter, "system_io_bytes_total"),
            (
                "network_transmitted_bytes_total",
                "By",
                Counter,
                "network_transmitted_bytes_total",
            ),
            (
                "system.network.dropped",
                "packets",
                Counter,
                "system_network_dropped_packets_total",
            ),
            (
                "system.network.packets.dropped",
                "packets",
                Gauge,
                "system_network_packets_dropped",
            ),
            ("hw.fan.speed_ratio", "1", Gauge, "hw_fan_speed_ratio"),
            (
                "hw.cpu.speed_limit",
                "Hz",
                Gauge,
                "hw_cpu_speed_limit_hertz",
            ),
            (
                "broken.metric.speed",
                "km/h",
                Gauge,
                "broken_metric_speed_km_per_hour",
            ),
            (
                "astro.light.speed_limit",
                "m/s",
                Gauge,
                "astro_light_speed_limit_meters_per_second",
            ),
            (
                "broken.metric.success_ratio",
                "%",
                Gauge,
                "broken_metric_success_ratio_percent",
            ),
            (
                "broken.metric.success_percent",
                "%",
                Gauge,
                "broken_metric_success_percent",
            ),
            ("test.metric.spaces", "   ", Gauge, "test_metric_spaces"),
            (
                "unsupported.metric.weird",
                "+=.:,!* & #",
                Gauge,
                "unsupported_metric_weird",
            ),
            (
                "nsxt.node.memory.usage",
                "KBy",
                Gauge,
                "nsxt_node_memory_usage_kilobytes",
            ),
            (
                "nginx.requests",
                "requests",
                Counter,
                "nginx_requests_total",
            ),
            ("apache.uptime", "s", Counter, "apache_uptime_seconds_total"),
            // Ours.
            (
                "vm.operations",
                "{operation}",
                Counter,
                "vm_operations_total",
            ),
            ("raft.leader", "1", Gauge, "raft_leader_ratio"),
            ("a/b-c", "furlong", Gauge, "a_b_c_furlong"),
            ("a", "{unclosed", Gauge, "a"),
        ] {
            let descriptor =
                Descriptor::new(name.into(), unit.into(), "".into(), kind, NumberKind::U64)
                    .unwrap();
            let mut found = family(&descriptor).name;
            if kind == Counter {
                found.push_str("_total");
            }
            assert_eq!(found, expected, "{name} {unit}");
        }
    }

    #[test]
    fn labels_are_valid_whatever_the_keys() {
        let set = [
            KeyValue::new("a.b", "x"),
            KeyValue::new("a_b", 2),
            KeyValue::new("9", true),
            KeyValue::new("le", "l"),
            KeyValue::new("__name__", "n"),
            KeyValue::new("", "e"),
            KeyValue::new("empty", ""),
            KeyValue::new("é", "u"),
        ];
        let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            labels(&set, "", &["le"]),
            [
                own("_name_", "n"),
                own("a_b", "x;2"),
                own("exported_le", "l"),
                own("key_", "e"),
                own("key_9", "true"),
                own("key__", "u"),
            ]
        );
    }
}
