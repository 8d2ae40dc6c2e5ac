//! The report for people.

use std::fmt::Write;

use super::report::{
    AgainstReport, CaseReport, ExperimentReport, GoalReport, HeadlineReport, NoiseReport, Report,
};
use super::units;

/// Green and red for verdicts, or nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Colours {
    on: bool,
}

impl Colours {
    pub(crate) const fn new(on: bool) -> Self {
        Self { on }
    }

    fn verdict(self, met: bool, text: &str) -> String {
        match (self.on, met) {
            (false, _) => text.to_owned(),
            (true, true) => format!("\x1b[32m{text}\x1b[0m"),
            (true, false) => format!("\x1b[31m{text}\x1b[0m"),
        }
    }
}

/// Cells of one line; the first is aligned to the left, the others to the right.
type Row = Vec<String>;

/// Renders the whole report.
pub(crate) fn render(report: &Report, colours: Colours) -> String {
    let mut text = preamble(report);
    text.push('\n');
    if !report.cases.is_empty() {
        text += &aligned(&case_rows(report));
    }
    if !report.experiments.is_empty() {
        if !report.cases.is_empty() {
            text.push('\n');
        }
        text += "Experiments\n";
        text += &aligned(&experiment_rows(&report.experiments, colours));
    }
    let goals = goal_lines(&report.cases, colours);
    if !goals.is_empty() {
        text += "\nGoals\n";
        text += &goals;
    }
    if !report.headline.is_empty() {
        text += "\nHeadline\n";
        text += &aligned(&headline_rows(&report.headline));
    }
    if let Some(against) = &report.against {
        line(
            &mut text,
            format_args!("\nAgainst {}", baseline_title(against)),
        );
        for remark in &against.remarks {
            line(&mut text, format_args!("  {remark}"));
        }
        text += &aligned(&against_rows(against));
    }
    if report.partial {
        text += "\nInterrupted: what was not measured by then is missing.\n";
    }
    text
}

/// Where, when and from what the report was made.
pub(crate) fn preamble(report: &Report) -> String {
    let machine = &report.machine;
    let commit = report
        .commit
        .as_deref()
        .map_or("unknown", |commit| commit.get(..12).unwrap_or(commit));
    let dirty = if report.dirty == Some(true) {
        " with uncommitted changes"
    } else {
        ""
    };
    let mode = if report.quick { ", quick" } else { "" };
    let date = report
        .date
        .as_ref()
        .map_or_else(String::new, |date| format!(", {date}"));
    let mut text = format!(
        "{} ({} {}, {} cores)\n{}, commit {commit}{dirty}{mode}{date}\n",
        machine.cpu, machine.os, machine.arch, machine.cores, report.rustc
    );
    if let Some(noise) = &report.noise {
        let busy = noise.busy.map_or_else(String::new, |busy| {
            format!("; other work took {}", units::percent(busy))
        });
        let interval = units::interval(noise.ratio, noise.ratio_low, noise.ratio_high);
        line(
            &mut text,
            format_args!("noise: equal work compares as {interval}{busy}"),
        );
    }
    let crowded = report
        .cases
        .iter()
        .filter(|case| case.threads as usize > machine.cores)
        .count();
    if crowded > 0 {
        line(
            &mut text,
            format_args!("{crowded} cases use more threads than the machine has cores"),
        );
    }
    text
}

/// What to say when the machine does other work.
pub(crate) fn busy_warning(noise: &NoiseReport) -> String {
    let busy = units::percent(noise.busy.unwrap_or_default());
    format!(
        "warning: other work takes {busy} of the processors; ratios stay right, their intervals get wide"
    )
}

/// The baseline's name, commit and date.
pub(crate) fn baseline_title(against: &AgainstReport) -> String {
    let commit = against
        .commit
        .as_deref()
        .map_or("unknown", |commit| commit.get(..12).unwrap_or(commit));
    let date = against
        .date
        .as_ref()
        .map_or_else(String::new, |date| format!(", {date}"));
    format!("`{}` (commit {commit}{date})", against.name)
}

/// A header, then a row per case: now / then, what equals differ by, and the counts.
pub(crate) fn against_rows(against: &AgainstReport) -> Vec<Row> {
    let mut rows = vec![
        [
            "  case",
            "time now / then [95 %]",
            "equals",
            "allocations",
            "instructions",
            "verdict",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let change = |then: Option<String>, now: Option<String>| match (then, now) {
        (Some(then), Some(now)) if then == now => now,
        (Some(then), Some(now)) => format!("{then} -> {now}"),
        _ => "-".to_owned(),
    };
    for case in &against.cases {
        let time = case.time.as_ref();
        let faster = time.is_some_and(|time| time.ratio_high * time.spread < 1.0);
        let verdict = match (case.worse.is_empty(), faster) {
            (false, _) => "WORSE",
            (true, true) => "faster",
            (true, false) => "same",
        };
        let instructions = |count: Option<f64>| count.map(|count| format!("{count:.1}"));
        rows.push(vec![
            format!("  {}", case.id),
            time.map_or_else(
                || "-".to_owned(),
                |time| units::interval(time.ratio, time.ratio_low, time.ratio_high),
            ),
            time.map_or_else(|| "-".to_owned(), |time| units::factor(time.spread)),
            change(
                Some(units::count(case.allocs_base)),
                Some(units::count(case.allocs)),
            ),
            change(
                instructions(case.instructions_base),
                instructions(case.instructions),
            ),
            verdict.to_owned(),
        ]);
    }
    rows
}

fn case_rows(report: &Report) -> Vec<Row> {
    let counted = report
        .cases
        .iter()
        .any(|case| case.instructions_after.is_some());
    let mut header: Row = ["bench", "before", "after", "ratio [95 %]", "allocations"]
        .map(str::to_owned)
        .into();
    if counted {
        header.push("instructions".to_owned());
    }
    let mut rows = vec![header];
    for case in &report.cases {
        let mut row = vec![
            case.id.clone(),
            units::time(case.before_ns),
            units::time(case.after_ns),
            units::interval(case.ratio, case.ratio_low, case.ratio_high),
            format!(
                "{} -> {}",
                units::count(case.allocs_before),
                units::count(case.allocs_after)
            ),
        ];
        if counted {
            let instructions = case.instructions_after;
            row.push(instructions.map_or_else(|| "-".to_owned(), |count| format!("{count:.1}")));
        }
        rows.push(row);
        for peer in &case.peers {
            rows.push(vec![
                format!("  {}", peer.name),
                units::time(peer.ns),
                String::new(),
                units::interval(peer.ratio, peer.ratio_low, peer.ratio_high),
                units::count(peer.allocs),
            ]);
        }
    }
    rows
}

/// A row per experiment, and under it one per figure with its goal.
fn experiment_rows(experiments: &[ExperimentReport], colours: Colours) -> Vec<Row> {
    let mut rows = Vec::new();
    for experiment in experiments {
        rows.push(vec![format!("  {}", experiment.id)]);
        for figure in &experiment.figures {
            let mut row = vec![
                format!("    {}", figure.name),
                units::of(&figure.unit, figure.value),
            ];
            if let Some(goal) = &figure.goal {
                let met = goal.met == Some(true);
                row.push(goal.goal.clone());
                row.push(colours.verdict(met, if met { "met" } else { "NOT met" }));
            }
            rows.push(row);
        }
    }
    rows
}

fn goal_lines(cases: &[CaseReport], colours: Colours) -> String {
    let mut text = String::new();
    let (mut met_count, mut judged) = (0, 0);
    // Goals that were not measured, by the option that measures them.
    let (mut with_peers, mut with_icount) = (0, 0);
    let all = || {
        cases
            .iter()
            .flat_map(|case| case.goals.iter().map(move |goal| (case, goal)))
    };
    let id_width = all()
        .map(|(case, _)| case.id.chars().count())
        .max()
        .unwrap_or(0);
    let goal_width = all()
        .map(|(_, goal)| goal.goal.chars().count())
        .max()
        .unwrap_or(0);
    for (case, goal) in all() {
        let (Some(measured), Some(met)) = (goal.measured, goal.met) else {
            let open = if goal.is_ratio() {
                &mut with_peers
            } else {
                &mut with_icount
            };
            *open += 1;
            continue;
        };
        judged += 1;
        met_count += usize::from(met);
        let verdict = colours.verdict(met, if met { "met" } else { "NOT met" });
        let by = distance(goal, measured, met);
        line(
            &mut text,
            format_args!(
                "  {:id_width$}  {:goal_width$}  {verdict}: {by}",
                case.id, goal.goal
            ),
        );
    }
    if judged > 0 {
        line(&mut text, format_args!("  {met_count} of {judged} met"));
    }
    for (open, option) in [(with_peers, "--peers"), (with_icount, "--icount")] {
        if open > 0 {
            line(
                &mut text,
                format_args!("  {open} not measured in this run: they need {option}"),
            );
        }
    }
    text
}

/// What was measured, and how far that is from the goal.
pub(crate) fn distance(goal: &GoalReport, measured: f64, met: bool) -> String {
    let at_least = goal.is_ratio();
    let text = if at_least {
        units::factor(measured)
    } else {
        units::count(measured)
    };
    // An exact hit, and a goal of zero, have no distance in per cent.
    if goal.target == 0.0 || measured == goal.target {
        return text;
    }
    let share = units::percent((measured / goal.target - 1.0).abs());
    let what = match (met, at_least) {
        (true, _) => "to spare",
        (false, true) => "short",
        (false, false) => "too many",
    };
    format!("{text} ({share} {what})")
}

fn headline_rows(headlines: &[HeadlineReport]) -> Vec<Row> {
    let mut rows = vec![
        ["  claim", "promised", "measured"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for headline in headlines {
        rows.push(vec![
            format!("  {}", headline.claim),
            units::percent(-headline.promised_reduction),
            units::percent(-headline.measured_reduction),
        ]);
    }
    rows
}

/// Pads every cell of a column to the column's width; two spaces between columns, none at the end.
fn aligned(rows: &[Row]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width_of = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width_of).collect();
    let mut text = String::new();
    for row in rows {
        let mut padded = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                padded += &format!("{cell:width$}");
            } else {
                padded += &format!("  {cell:>width$}");
            }
        }
        line(&mut text, format_args!("{}", padded.trim_end()));
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes every line");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;
    use crate::bench::report::{CaseAgainst, TimeAgainst};

    #[test]
    fn the_whole_report_looks_like_this() {
        let expected = "\
Fast 9000 (linux x86_64, 8 cores)
rustc 1.95.0, commit 0123456789ab with uncommitted changes, 2026-01-02T03:04:05Z
noise: equal work compares as 1.00x [0.99, 1.01]; other work took 2 %

bench            before    after        ratio [95 %]  allocations  instructions
pool/1k         43.2 ns  3.50 ns  12.3x [11.9, 12.8]    2.00 -> 0          17.0
  glibc malloc  6.30 ns           1.80x [1.75, 1.85]         1.00

Experiments
  cache/hit_ratio
    zipf 0.9, lru     70 %
    zipf 0.9, ours  71.2 %  >= 69 %  met

Goals
  pool/1k  >= 1.7x glibc malloc  met: 1.80x (5.9 % to spare)
  1 of 1 met

Headline
  claim               promised  measured
  buffer allocations     -50 %    -100 %
";
        assert_eq!(render(&sample(), Colours::new(false)), expected);
    }

    #[test]
    fn columns_that_were_not_measured_are_left_out() {
        let mut report = sample();
        report.cases[0].instructions_after = None;
        report.cases[0].goals.clear();
        report.headline.clear();
        let text = render(&report, Colours::new(false));
        for absent in ["instructions", "Goals", "Headline"] {
            assert!(!text.contains(absent), "{text}");
        }
    }

    #[test]
    fn unmet_and_open_goals_say_so() {
        let goal = |measured: Option<f64>, met| GoalReport {
            goal: "<= 6 instructions".to_owned(),
            target: 6.0,
            measured,
            met,
        };
        let mut case = sample().cases.remove(0);
        case.goals = vec![
            goal(Some(9.0), Some(false)),
            goal(None, None),
            goal(Some(6.0), Some(true)),
        ];
        let text = goal_lines(&[case], Colours::new(true));
        assert!(
            text.contains("\x1b[31mNOT met\x1b[0m: 9.00 (50 % too many)"),
            "{text}"
        );
        assert!(text.contains("\x1b[32mmet\x1b[0m: 6.00\n"), "{text}");
        assert!(
            text.contains("1 of 2 met")
                && text.contains("1 not measured in this run: they need --icount"),
            "{text}"
        );
    }

    #[test]
    fn a_baseline_is_shown_with_verdicts() {
        let mut report = sample();
        let case = |id: &str, ratio: f64, worse: &[&str]| CaseAgainst {
            id: id.to_owned(),
            time: Some(TimeAgainst {
                ratio,
                ratio_low: ratio - 0.01,
                ratio_high: ratio + 0.01,
                spread: 1.02,
                slower: !worse.is_empty(),
            }),
            allocs_base: 0.0,
            allocs: 0.0,
            instructions_base: Some(17.0),
            instructions: Some(17.0),
            worse: worse.iter().map(|text| (*text).to_owned()).collect(),
        };
        report.partial = true;
        report.against = Some(AgainstReport {
            name: "main".to_owned(),
            commit: Some("fedcba9876543210".to_owned()),
            date: Some("2026-01-01T00:00:00Z".to_owned()),
            timed: true,
            remarks: vec!["the baseline has no pool/new".to_owned()],
            cases: vec![
                case("pool/1k", 1.0, &[]),
                case("pool/64k", 0.5, &[]),
                case("pool/1m", 1.2, &["slow"]),
            ],
        });
        let text = render(&report, Colours::new(false));
        let expected = "
Against `main` (commit fedcba987654, 2026-01-01T00:00:00Z)
  the baseline has no pool/new
  case      time now / then [95 %]  equals  allocations  instructions  verdict
  pool/1k       1.00x [0.99, 1.01]   1.02x            0          17.0     same
  pool/64k      0.50x [0.49, 0.51]   1.02x            0          17.0   faster
  pool/1m       1.20x [1.19, 1.21]   1.02x            0          17.0    WORSE

Interrupted: what was not measured by then is missing.
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn the_table_fits_a_wide_terminal() {
        let mut report = sample();
        let case = &mut report.cases[0];
        case.id = "transport/oneway_64b_with_a_long_name".to_owned();
        (case.before_ns, case.after_ns) = (999e6, 999e3);
        (case.ratio, case.ratio_low, case.ratio_high) = (123_456.0, 120_000.0, 130_000.0);
        (case.allocs_before, case.allocs_after) = (1234.56, 1234.56);
        let text = render(&report, Colours::new(false));
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|width| width <= 120), "{text}");
    }
}
