//! The report as a page: one file that needs nothing else, neither network nor script.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::report::{
    AgainstReport, CaseReport, ExperimentReport, GoalReport, HeadlineReport, Report,
};
use super::table;
use super::units;

mod chart;
mod scaling;

const STYLE: &str = include_str!("style.css");

/// A directory that a page can be written to.
#[derive(Debug)]
pub(crate) struct Page {
    file: PathBuf,
}

impl Page {
    /// Creates the directory and checks that the page can be written there.
    pub(crate) fn claim(directory: PathBuf) -> Result<Self> {
        let cannot = || format!("cannot write a page to {}", directory.display());
        fs::create_dir_all(&directory).with_context(cannot)?;
        let file = directory.join("index.html");
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&file)
            .with_context(cannot)?;
        Ok(Self { file })
    }

    /// Writes the page and returns where it is.
    pub(crate) fn write(&self, report: &Report) -> Result<PathBuf> {
        fs::write(&self.file, render(report))
            .with_context(|| format!("cannot write {}", self.file.display()))?;
        Ok(fs::canonicalize(&self.file).unwrap_or_else(|_| Path::new(&self.file).to_owned()))
    }
}

/// Renders the page.
pub(crate) fn render(report: &Report) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n");
    page += "<meta charset=\"utf-8\">\n";
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    page += "<title>cargo xtask bench</title>\n";
    push(&mut page, format_args!("<style>\n{STYLE}</style>"));
    page += "</head>\n<body>\n";
    page += &header(report);
    page += "<main>\n";
    page += &headline(&report.headline);
    page += &report.against.as_ref().map_or_else(String::new, against);
    for (group, cases) in groups(&report.cases) {
        let group = escaped(group);
        push(
            &mut page,
            format_args!("<section id=\"{group}\"><h2>{group}</h2>"),
        );
        for case in cases {
            page += &chart::case(case);
        }
        page += "</section>\n";
    }
    page += &scaling::section(&report.cases);
    page += &experiments(&report.experiments);
    page += &goals(&report.cases);
    page += "</main>\n";
    page += "<footer>Times are medians per operation of one thread; a ratio is the median of paired trials with its \
             distribution-free 95 % interval; dots are single trials, each in processes of its own.</footer>\n";
    page += "</body>\n</html>\n";
    page
}

fn header(report: &Report) -> String {
    let mut text = String::from("<header><h1>cargo xtask bench</h1>\n<p>");
    text += &escaped(&table::preamble(report)).replace('\n', "<br>\n");
    text += "</p>\n";
    if let Some(noise) = report.noise.as_ref().filter(|noise| noise.is_loud()) {
        let warning = escaped(&table::busy_warning(noise));
        push(
            &mut text,
            format_args!("<p class=\"warning\">{warning}</p>"),
        );
    }
    if report.partial {
        text += "<p class=\"warning\">The run was interrupted: what was not measured by then is missing.</p>\n";
    }
    let ids: Vec<&str> = groups(&report.cases)
        .iter()
        .map(|(group, _)| *group)
        .collect();
    if ids.len() > 1 {
        text += "<nav>";
        for id in ids {
            let id = escaped(id);
            push(&mut text, format_args!("<a href=\"#{id}\">{id}</a>"));
        }
        text += "</nav>\n";
    }
    text += "</header>\n";
    text
}

/// The claims as two bars each: how much was promised to go, and how much went.
fn headline(rows: &[HeadlineReport]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from("<section class=\"headline\"><h2>Promised and measured</h2>\n");
    for row in rows {
        let met = row.measured_reduction >= row.promised_reduction;
        let bar = |class: &str, label: &str, share: f64| {
            let width = share.clamp(0.0, 1.0) * 100.0;
            let value = units::percent(-share);
            format!(
                "<div class=\"row\"><span class=\"label\">{label}</span>\
                 <span class=\"track\"><span class=\"bar {class}\" style=\"width:{width:.1}%\"></span></span>\
                 <span class=\"value\">{value}</span></div>\n"
            )
        };
        push(
            &mut text,
            format_args!("<article><h3>{}</h3>", escaped(&row.claim)),
        );
        text += &bar("before", "promised", row.promised_reduction);
        text += &bar(
            if met { "after" } else { "short" },
            "measured",
            row.measured_reduction,
        );
        text += "</article>\n";
    }
    text += "</section>\n";
    text
}

fn against(against: &AgainstReport) -> String {
    let mut text = String::from("<section><h2>Against ");
    text += &escaped(&table::baseline_title(against));
    text += "</h2>\n";
    for remark in &against.remarks {
        push(&mut text, format_args!("<p>{}</p>", escaped(remark)));
    }
    text += "<div class=\"scroll\"><table>\n";
    for (place, row) in table::against_rows(against).iter().enumerate() {
        let cell = if place == 0 { "th" } else { "td" };
        text += "<tr>";
        for column in row {
            let _ = write!(text, "<{cell}>{}</{cell}>", escaped(column));
        }
        text += "</tr>\n";
    }
    text += "</table></div></section>\n";
    text
}

fn experiments(experiments: &[ExperimentReport]) -> String {
    if experiments.is_empty() {
        return String::new();
    }
    let mut text = String::from("<section id=\"experiments\"><h2>Experiments</h2>\n");
    for experiment in experiments {
        let (id, about) = (escaped(&experiment.id), escaped(&experiment.about));
        push(
            &mut text,
            format_args!("<article><h3>{id}</h3><p>{about}</p><div class=\"scroll\"><table>"),
        );
        for figure in &experiment.figures {
            let value = units::of(&figure.unit, figure.value);
            let goal = figure.goal.as_ref().map_or_else(
                || "<td></td><td></td>".to_owned(),
                |goal| format!("<td>{}</td>{}", escaped(&goal.goal), verdict(goal.met)),
            );
            push(
                &mut text,
                format_args!(
                    "<tr><td>{}</td><td>{}</td>{goal}</tr>",
                    escaped(&figure.name),
                    escaped(&value)
                ),
            );
        }
        text += "</table></div></article>\n";
    }
    text += "</section>\n";
    text
}

fn goals(cases: &[CaseReport]) -> String {
    let all: Vec<(&CaseReport, &GoalReport)> = cases
        .iter()
        .flat_map(|case| case.goals.iter().map(move |goal| (case, goal)))
        .filter(|(_, goal)| goal.met.is_some())
        .collect();
    if all.is_empty() {
        return String::new();
    }
    let met = all
        .iter()
        .filter(|(_, goal)| goal.met == Some(true))
        .count();
    let mut text = format!(
        "<section id=\"goals\"><h2>Goals: {met} of {} met</h2>\n<div class=\"scroll\"><table>\n",
        all.len()
    );
    for (case, goal) in all {
        let distance = goal.measured.map_or_else(String::new, |measured| {
            table::distance(goal, measured, goal.met == Some(true))
        });
        push(
            &mut text,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td>{}</tr>",
                escaped(&case.id),
                escaped(&goal.goal),
                escaped(&distance),
                verdict(goal.met)
            ),
        );
    }
    text += "</table></div></section>\n";
    text
}

fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "<td class=\"met\">met</td>",
        Some(false) => "<td class=\"unmet\">not met</td>",
        None => "<td></td>",
    }
}

/// The cases by the part of their id before the slash, in their order.
fn groups(cases: &[CaseReport]) -> Vec<(&str, Vec<&CaseReport>)> {
    let mut groups: Vec<(&str, Vec<&CaseReport>)> = Vec::new();
    for case in cases {
        let name = case.id.split_once('/').map_or("", |(group, _)| group);
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, cases)) => cases.push(case),
            None => groups.push((name, vec![case])),
        }
    }
    groups
}

/// Text in a place where HTML is expected.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            _ => safe.push(c),
        }
    }
    safe
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes every line");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    #[test]
    fn the_page_has_everything_of_the_report_and_needs_nothing_else() {
        let page = render(&sample());
        for part in [
            "Fast 9000",
            "rustc 1.95.0",
            "2026-01-02",
            "buffer allocations",
            "pool/1k",
            "glibc malloc",
            "12.3x",
            "cache/hit_ratio",
            "71.2 %",
            "1 of 1 met",
            "prefers-color-scheme: dark",
            "width=device-width",
        ] {
            assert!(page.contains(part), "`{part}` is not on the page");
        }
        for outside in ["http://", "https://", "src=", "<script", "@import"] {
            assert!(!page.contains(outside), "the page needs `{outside}`");
        }
    }

    #[test]
    fn every_tag_that_is_opened_is_closed() {
        let page = render(&sample());
        for tag in [
            "section", "article", "div", "span", "table", "tr", "td", "h2", "h3", "main",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            let closed = page.matches(&format!("</{tag}>")).count();
            assert_eq!(opened, closed, "<{tag}>");
        }
    }

    #[test]
    fn names_cannot_break_the_page() {
        let mut report = sample();
        report.cases[0].peers[0].name = "<em>&\"x\"".to_owned();
        report.partial = true;
        let page = render(&report);
        assert!(page.contains("&lt;em&gt;&amp;&quot;x&quot;") && !page.contains("<em>"));
        assert!(page.contains("interrupted"));
    }
}
