//! Numbers for people.

/// A time per operation with three significant digits: `0.35 ns`, `12.3 us`, `1.20 s`.
pub(crate) fn time(ns: f64) -> String {
    // The limits are where three digits would round up to the next unit.
    let (value, unit) = match ns {
        _ if ns < 999.5 => (ns, "ns"),
        _ if ns < 999.5e3 => (ns / 1e3, "us"),
        _ if ns < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A ratio: `0.98x`, `12.3x`, `1234x`.
pub(crate) fn factor(ratio: f64) -> String {
    format!("{}x", three_digits(ratio))
}

/// A ratio with its interval: `12.3x [11.9, 12.8]`.
pub(crate) fn interval(ratio: f64, low: f64, high: f64) -> String {
    format!(
        "{} [{}, {}]",
        factor(ratio),
        three_digits(low),
        three_digits(high)
    )
}

/// A count per operation: `0`, `0.02`, `2.00`; what is not zero never looks like it.
pub(crate) fn count(per_operation: f64) -> String {
    if per_operation == 0.0 {
        "0".to_owned()
    } else if per_operation < 0.005 {
        "<0.01".to_owned()
    } else {
        format!("{per_operation:.2}")
    }
}

/// A figure of an experiment in the unit that `perf_benches::experiment::Unit` names.
pub(crate) fn of(unit: &str, value: f64) -> String {
    match unit {
        "ns" => time(value),
        "share" => percent(value),
        "ratio" => factor(value),
        "per_second" => format!("{}/s", thousands(value)),
        "bytes_per_second" => format!("{}B/s", thousands(value)),
        _ if value == value.round() => format!("{value:.0}"),
        _ => three_digits(value),
    }
}

/// Three significant digits with a decimal prefix: `12.3 k`, `1.20 G`.
fn thousands(value: f64) -> String {
    let (value, prefix) = match value {
        _ if value < 999.5 => (value, ""),
        _ if value < 999.5e3 => (value / 1e3, "k"),
        _ if value < 999.5e6 => (value / 1e6, "M"),
        _ => (value / 1e9, "G"),
    };
    format!("{} {prefix}", three_digits(value))
}

/// A share: `70 %`, `99.9 %`, `375 %`.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let is_whole = (percent - percent.round()).abs() < 0.05 || percent.abs() > 100.0;
    if is_whole {
        // Adding zero turns a negative zero into a plain one.
        format!("{:.0} %", percent.round() + 0.0)
    } else {
        format!("{percent:.1} %")
    }
}

/// At least three digits, none after the point from 100 on.
fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        small if small < 9.995 => 2,
        middle if middle < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_change_their_unit_at_a_thousand() {
        let expected = [
            (0.347, "0.35 ns"),
            (9.996, "10.0 ns"),
            (99.96, "100 ns"),
            (999.4, "999 ns"),
            (999.6, "1.00 us"),
            (12_345.0, "12.3 us"),
            (999_600.0, "1.00 ms"),
            (1.2e9, "1.20 s"),
        ];
        for (ns, text) in expected {
            assert_eq!(time(ns), text);
        }
    }

    #[test]
    fn figures_are_written_in_their_unit() {
        let expected = [
            ("ns", 1_500.0, "1.50 us"),
            ("share", 0.712, "71.2 %"),
            ("ratio", 12.34, "12.3x"),
            ("count", 1_000.0, "1000"),
            ("count", 0.5, "0.50"),
            ("per_second", 12_345.0, "12.3 k/s"),
            ("per_second", 12.0, "12.0 /s"),
            ("bytes_per_second", 1.2e9, "1.20 GB/s"),
        ];
        for (unit, value, text) in expected {
            assert_eq!(of(unit, value), text);
        }
    }

    #[test]
    fn ratios_counts_and_shares() {
        assert_eq!(interval(12.345, 11.9, 12.81), "12.3x [11.9, 12.8]");
        assert_eq!(
            (factor(0.98), factor(1234.4)),
            ("0.98x".to_owned(), "1234x".to_owned())
        );
        let counts = [0.0, 0.0001, 0.02, 2.0].map(count);
        assert_eq!(counts, ["0", "<0.01", "0.02", "2.00"]);
        let shares = [0.7, 1.0, 0.9991, -0.25, -0.0, 3.754].map(percent);
        assert_eq!(shares, ["70 %", "100 %", "99.9 %", "-25 %", "0 %", "375 %"]);
    }
}
