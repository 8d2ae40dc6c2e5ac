//! How names, units and attributes are written.

use crate::attributes::KeyValue;
use crate::descriptor::{Descriptor, InstrumentKind};
use std::fmt::Write;

/// Units by their UCUM codes, as far as instruments of nodes use them.
const UNITS: [(&str, &str); 18] = [
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
    ("KBy", "kilobytes"),
    ("MBy", "megabytes"),
    ("GBy", "gigabytes"),
    ("Cel", "celsius"),
    ("Hz", "hertz"),
    ("%", "percent"),
];

pub(super) fn metric(descriptor: &Descriptor) -> String {
    let mut name = sanitize(descriptor.name());
    let unit = match descriptor.unit() {
        // A share is a ratio; a counter of ones is not.
        "1" if descriptor.kind() == InstrumentKind::Gauge => "ratio".to_owned(),
        "1" => String::new(),
        // What is in braces says what is counted.
        unit if unit.starts_with('{') => String::new(),
        unit => UNITS
            .iter()
            .find(|(code, _)| *code == unit)
            .map_or_else(|| sanitize(unit), |(_, word)| (*word).to_owned()),
    };
    if !unit.is_empty() && !name.ends_with(&unit) {
        name.push('_');
        name.push_str(&unit);
    }
    if descriptor.kind() == InstrumentKind::Counter && !name.ends_with("_total") {
        name.push_str("_total");
    }
    name
}

fn sanitize(name: &str) -> String {
    let mut clean: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if clean.starts_with(|first: char| first.is_ascii_digit()) {
        clean.insert(0, '_');
    }
    clean
}

/// Labels between braces. Keys that become the same are one label whose values are joined by `;`.
pub(super) fn labels(attributes: &[KeyValue]) -> String {
    let mut labels: Vec<(String, String)> = Vec::with_capacity(attributes.len());
    for attribute in attributes {
        let key = sanitize(attribute.key.as_str());
        let value = attribute.value.as_str();
        match labels.iter_mut().find(|(other, _)| *other == key) {
            Some((_, joined)) => {
                joined.push(';');
                joined.push_str(&value);
            }
            None => labels.push((key, value.into_owned())),
        }
    }
    let mut out = String::new();
    for (place, (key, value)) in labels.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        // Of the label `le` there can be only the histogram's own.
        let prefix = if key == "le" { "_" } else { "" };
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = write!(out, "{prefix}{key}=\"{value}\"");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NumberKind;

    #[test]
    fn names_get_their_unit_and_kind() {
        use InstrumentKind::{Counter, Gauge, Histogram};
        for (name, unit, kind, expected) in [
            (
                "vm.operations",
                "{operation}",
                Counter,
                "vm_operations_total",
            ),
            ("network.io", "By", Counter, "network_io_bytes_total"),
            ("rpc.duration", "s", Histogram, "rpc_duration_seconds"),
            ("raft.leader", "1", Gauge, "raft_leader_ratio"),
            ("a/b-c", "furlong", Gauge, "a_b_c_furlong"),
            ("x_total", "", Counter, "x_total"),
        ] {
            let descriptor =
                Descriptor::new(name.into(), unit.into(), "".into(), kind, NumberKind::U64)
                    .unwrap();
            assert_eq!(metric(&descriptor), expected);
        }
    }

    #[test]
    fn labels_are_escaped_and_joined() {
        let set = [
            KeyValue::new("a.b", "x\"\\\n"),
            KeyValue::new("a_b", 2),
            KeyValue::new("9", true),
            KeyValue::new("le", "l"),
        ];
        assert_eq!(labels(&set), "a_b=\"x\\\"\\\\\\n;2\",_9=\"true\",_le=\"l\"");
    }
}
