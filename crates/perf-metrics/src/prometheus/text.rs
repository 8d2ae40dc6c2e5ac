//! The text formats.

use super::model::{Distribution, Family, Kind, Labels, Sample, Series};
use crate::exemplar::Exemplar;
use crate::number::Value;
use std::fmt::Write;
use std::time::UNIX_EPOCH;

/// Prometheus' format 0.0.4, or OpenMetrics 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Prometheus,
    OpenMetrics,
}

/// Writing to a string cannot fail, here and below.
pub(super) fn write(families: &[Family], dialect: Dialect, out: &mut String) {
    // OpenMetrics names the family of `target_info` without its suffix: a name that an instrument may have.
    let has_target = families.iter().any(|family| family.name == "target");
    for family in families {
        let is_info = family.kind == Kind::Info && dialect == Dialect::OpenMetrics && !has_target;
        write_family(family, dialect, is_info, out);
    }
    if dialect == Dialect::OpenMetrics {
        out.push_str("# EOF\n");
    }
}

/// `is_info` says that the family is an info of OpenMetrics.
fn write_family(family: &Family, dialect: Dialect, is_info: bool, out: &mut String) {
    let is_open = dialect == Dialect::OpenMetrics;
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Histogram => "histogram",
        Kind::Info if is_info => "info",
        Kind::Gauge | Kind::Info => "gauge",
    };
    // OpenMetrics names the family, the older format the samples of counters.
    let name = match family.kind {
        Kind::Counter if !is_open => format!("{}_total", family.name),
        Kind::Info if is_info => family.name.trim_end_matches("_info").to_owned(),
        _ => family.name.clone(),
    };
    if !family.help.is_empty() {
        out.push_str("# HELP ");
        out.push_str(&name);
        out.push(' ');
        escape(out, &family.help, is_open);
        out.push('\n');
    }
    let _ = writeln!(out, "# TYPE {name} {kind}");
    if is_open && !family.unit.is_empty() {
        let _ = writeln!(out, "# UNIT {name} {}", family.unit);
    }
    for series in &family.series {
        let labels = &series.labels;
        match &series.sample {
            Sample::Number(value) => {
                let suffix = if family.kind == Kind::Counter {
                    "_total"
                } else {
                    ""
                };
                sample(out, (&family.name, suffix), labels, None, *value);
                if is_open && family.kind == Kind::Counter {
                    exemplar(out, series.exemplar(f64::NEG_INFINITY, f64::INFINITY));
                }
                out.push('\n');
            }
            Sample::Histogram(histogram) => {
                write_histogram(histogram, series, &family.name, is_open, out)
            }
        }
        let has_start = is_open && matches!(family.kind, Kind::Counter | Kind::Histogram);
        if let Some(start) = series.start.filter(|_| has_start) {
            let since = start.duration_since(UNIX_EPOCH).unwrap_or_default();
            sample(
                out,
                (&family.name, "_created"),
                labels,
                None,
                Value::F64(since.as_secs_f64()),
            );
            out.push('\n');
        }
    }
}

fn write_histogram(
    histogram: &Distribution,
    series: &Series,
    name: &str,
    is_open: bool,
    out: &mut String,
) {
    let labels = &series.labels;
    let (mut count, mut low) = (0u64, f64::NEG_INFINITY);
    let classic = histogram.classic();
    let all = classic.iter().copied();
    for (bound, n) in all.chain([(f64::INFINITY, 0)]) {
        count = count.wrapping_add(n);
        let up_to = if bound == f64::INFINITY {
            histogram.count
        } else {
            count
        };
        sample(
            out,
            (name, "_bucket"),
            labels,
            Some(bound),
            Value::U64(up_to),
        );
        if is_open {
            exemplar(out, series.exemplar(low, bound));
        }
        out.push('\n');
        low = bound;
    }
    // OpenMetrics allows no sum where values can be negative; exponential histograms know.
    let is_negative = histogram
        .native()
        .is_some_and(|native| !native.negative.counts.is_empty())
        || classic
            .first()
            .is_some_and(|(bound, count)| *bound <= 0.0 && *count > 0);
    if !(is_open && is_negative) {
        sample(out, (name, "_sum"), labels, None, histogram.sum);
        out.push('\n');
        sample(
            out,
            (name, "_count"),
            labels,
            None,
            Value::U64(histogram.count),
        );
        out.push('\n');
    }
}

/// Behind a sample, on its line.
fn exemplar(out: &mut String, exemplar: Option<&Exemplar>) {
    let Some(exemplar) = exemplar else {
        return;
    };
    let (trace, span) = exemplar.trace().to_hex();
    let _ = write!(out, " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} ");
    number(out, exemplar.value());
    let since = exemplar.time().duration_since(UNIX_EPOCH);
    let _ = write!(out, " {:.3}", since.unwrap_or_default().as_secs_f64());
}

/// Without the end of the line.
fn sample(
    out: &mut String,
    (name, suffix): (&str, &str),
    labels: &Labels,
    bound: Option<f64>,
    value: Value,
) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() || bound.is_some() {
        out.push('{');
        for (place, (key, value)) in labels.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            out.push_str(key);
            out.push_str("=\"");
            escape(out, value, true);
            out.push('"');
        }
        if let Some(bound) = bound {
            if !labels.is_empty() {
                out.push(',');
            }
            out.push_str("le=\"");
            float(out, bound);
            out.push('"');
        }
        out.push('}');
    }
    out.push(' ');
    number(out, value);
}

fn number(out: &mut String, value: Value) {
    match value {
        Value::U64(value) => drop(write!(out, "{value}")),
        Value::I64(value) => drop(write!(out, "{value}")),
        Value::F64(value) => float(out, value),
    }
}

fn escape(out: &mut String, text: &str, with_quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if with_quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

fn float(out: &mut String, value: f64) {
    let _ = if value == f64::INFINITY {
        write!(out, "+Inf")
    } else if value == f64::NEG_INFINITY {
        write!(out, "-Inf")
    } else {
        // NaN is written like that; others with an exponent where that is shorter.
        write!(out, "{value:?}")
    };
}
