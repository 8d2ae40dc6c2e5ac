//! One case: a bar per path on a logarithmic scale, and the trials behind it.

use super::super::report::CaseReport;
use super::super::units;
use super::{escaped, push};

/// A path's line in a chart.
struct Line<'a> {
    class: &'static str,
    name: &'a str,
    ns: f64,
    trials_ns: &'a [f64],
    /// In words; empty for `after`.
    ratio: String,
    allocations: f64,
}

/// The least width of a bar in per cent: the smallest has to be seen.
const BAR_MIN: f64 = 4.0;
/// The dots of a distribution span at least this share on either side of the median.
const SPAN_MIN: f64 = 0.05;

/// Renders a case.
pub(super) fn case(case: &CaseReport) -> String {
    let lines = lines(case);
    let scale = Scale::of(&lines);
    let threads = if case.threads > 1 {
        format!(", {} threads", case.threads)
    } else {
        String::new()
    };
    let mut text = String::new();
    push(
        &mut text,
        format_args!(
            "<article class=\"case\"><h3>{}</h3><p>{}{threads}</p>",
            escaped(&case.id),
            escaped(&case.about)
        ),
    );
    for line in &lines {
        push(
            &mut text,
            format_args!(
                "<div class=\"row\"><span class=\"label\">{}</span>\
                 <span class=\"track\"><span class=\"bar {}\" style=\"width:{:.1}%\"></span></span>\
                 <span class=\"value\">{}</span><span class=\"ratio\">{}</span>\
                 <span class=\"allocations\">{} allocations</span>{}</div>",
                escaped(line.name),
                line.class,
                scale.width(line.ns),
                units::time(line.ns),
                line.ratio,
                units::count(line.allocations),
                distribution(line)
            ),
        );
    }
    if let Some(instructions) = case.instructions_after {
        push(
            &mut text,
            format_args!("<p>{instructions:.1} instructions per operation after</p>"),
        );
    }
    text += "</article>\n";
    text
}

fn lines(case: &CaseReport) -> Vec<Line<'_>> {
    let mut lines = vec![
        Line {
            class: "before",
            name: "before",
            ns: case.before_ns,
            trials_ns: &case.before_trials_ns,
            ratio: units::interval(case.ratio, case.ratio_low, case.ratio_high),
            allocations: case.allocs_before,
        },
        Line {
            class: "after",
            name: "after",
            ns: case.after_ns,
            trials_ns: &case.after_trials_ns,
            ratio: String::new(),
            allocations: case.allocs_after,
        },
    ];
    lines.extend(case.peers.iter().map(|peer| Line {
        class: "peer",
        name: &peer.name,
        ns: peer.ns,
        trials_ns: &peer.trials_ns,
        ratio: units::interval(peer.ratio, peer.ratio_low, peer.ratio_high),
        allocations: peer.allocs,
    }));
    lines
}

/// From the shortest time to the longest.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(lines: &[Line<'_>]) -> Self {
        let times = || lines.iter().map(|line| line.ns.max(f64::MIN_POSITIVE));
        Self {
            low: times().fold(f64::INFINITY, f64::min),
            high: times().fold(0.0, f64::max),
        }
    }

    /// In per cent of the track. Logarithmic, since ratios go into the thousands; the numbers beside the bars are exact.
    fn width(&self, ns: f64) -> f64 {
        let decades = (self.high / self.low).log10().max(1.0);
        let above = (ns / self.low).max(1.0).log10();
        BAR_MIN + (100.0 - BAR_MIN) * above / decades
    }
}

/// The trials as dots around their median, with the span in words.
fn distribution(line: &Line<'_>) -> String {
    if line.trials_ns.is_empty() || line.ns <= 0.0 {
        return "<span class=\"trials\"></span>".to_owned();
    }
    let off = |ns: &f64| ns / line.ns - 1.0;
    let span = line
        .trials_ns
        .iter()
        .map(|ns| off(ns).abs())
        .fold(SPAN_MIN, f64::max);
    let mut text = format!(
        "<span class=\"trials\" title=\"{} trials within {} of the median\"><i class=\"middle\"></i>",
        line.trials_ns.len(),
        units::percent(span)
    );
    for ns in line.trials_ns {
        text += &format!(
            "<i style=\"left:{:.1}%\"></i>",
            50.0 + 48.0 * off(ns) / span
        );
    }
    text += &format!("<b>±{}</b></span>", units::percent(span));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    #[test]
    fn bars_grow_with_the_time_and_fill_the_track() {
        let scale = Scale {
            low: 10.0,
            high: 10_000.0,
        };
        let widths = [10.0, 100.0, 1_000.0, 10_000.0].map(|ns| scale.width(ns));
        assert_eq!(widths, [4.0, 36.0, 68.0, 100.0]);
        // Nearly equal times look nearly equal.
        let scale = Scale {
            low: 10.0,
            high: 11.0,
        };
        assert!(scale.width(11.0) < 10.0);
    }

    #[test]
    fn every_trial_is_a_dot_in_the_field() {
        let case = sample().cases.remove(0);
        let text = super::case(&case);
        assert_eq!(text.matches("<i style").count(), 9);
        let lefts = text.split("left:").skip(1).map(|rest| {
            rest.split('%')
                .next()
                .and_then(|number| number.parse::<f64>().ok())
        });
        for left in lefts {
            assert!(
                left.is_some_and(|left| (0.0..=100.0).contains(&left)),
                "{left:?}"
            );
        }
    }
}
