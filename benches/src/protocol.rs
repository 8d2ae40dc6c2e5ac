//! The lines a worker and `cargo xtask bench` exchange.
//!
//! One request per line, fields separated by tabs, since names contain spaces:
//!
//! | request | reply |
//! |---|---|
//! | `list` | the lines of [`describe`], then `ok` |
//! | `prepare <case> <path>` | `ok`: the path's state is built and kept |
//! | `run <case> <path> <iters>` | `ok <ns> <operations>`, in the counting worker `ok <ns> <operations> <allocations> <bytes>` |
//! | `drop` | `ok`: all prepared state is gone |
//! | `experiment <id> <quick \| full>` | the lines of [`figures`], then `ok` |
//!
//! `<path>` is `before`, `after` or a peer's name. A request that cannot be served is answered with
//! `error <why>`. A worker ends when its standard input does, also in the middle of a run.

use std::fmt::{self, Write};

use crate::case::{Allocator, Case, Goal};
use crate::experiment::{Bound, Depth, Experiment, Figure};
use crate::headline::{Headline, Measure};

/// What the worker is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Say what there is to measure.
    List,
    /// Build a path's state.
    Prepare(Address<'a>),
    /// Run a prepared path for a number of iterations.
    Run(Address<'a>, u64),
    /// Forget all prepared state.
    Drop,
    /// Run the experiment of the given id.
    Experiment(&'a str, Depth),
}

/// A path of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// The case's id.
    pub case: &'a str,
    /// `before`, `after` or a peer's name.
    pub path: &'a str,
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of `{}`", self.path, self.case)
    }
}

impl<'a> Request<'a> {
    /// Parses one line without its end.
    ///
    /// # Errors
    ///
    /// The line, when it is not a request.
    pub fn parse(line: &'a str) -> Result<Self, String> {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            ["list"] => Ok(Self::List),
            ["drop"] => Ok(Self::Drop),
            ["prepare", case, path] => Ok(Self::Prepare(Address { case, path })),
            ["run", case, path, iters] => match iters.parse() {
                Ok(iters) => Ok(Self::Run(Address { case, path }, iters)),
                Err(_) => Err(format!("not a number of iterations: {iters:?}")),
            },
            ["experiment", id, "quick"] => Ok(Self::Experiment(id, Depth::Quick)),
            ["experiment", id, "full"] => Ok(Self::Experiment(id, Depth::Full)),
            _ => Err(format!("not a request: {line:?}")),
        }
    }
}

/// Describes what can be measured.
///
/// ```text
/// case      <id> <threads> <shown | supporting> <about>
/// path      <before | after | peer's name> <system | mimalloc>      of the case above
/// goal      ratio <against> <at least>                              of the case above
/// goal      instructions <at most>
/// goal      allocations <at most>
/// experiment <id> <about>
/// headline  <claim> <promised> time <case>
/// headline  <claim> <promised> allocations <whole> <rest>
/// ```
#[must_use]
pub fn describe(
    cases: &[Case],
    supporting: &[Case],
    experiments: &[Experiment],
    headlines: &[Headline],
) -> String {
    let mut lines = String::new();
    for case in cases {
        describe_case(&mut lines, case, "shown");
    }
    for case in supporting {
        describe_case(&mut lines, case, "supporting");
    }
    for experiment in experiments {
        let Experiment { id, about, .. } = experiment;
        push(&mut lines, format_args!("experiment\t{id}\t{about}"));
    }
    for headline in headlines {
        let Headline {
            claim,
            promised_reduction,
            measure,
        } = headline;
        let measure = match measure {
            Measure::Time { case } => format!("time\t{case}"),
            Measure::Allocations { whole, rest } => format!("allocations\t{whole}\t{rest}"),
        };
        push(
            &mut lines,
            format_args!("headline\t{claim}\t{promised_reduction}\t{measure}"),
        );
    }
    lines
}

/// Writes what an experiment found.
///
/// ```text
/// figure    <name> <unit> <value>
/// figure    <name> <unit> <value> <at_least | at_most> <bound>
/// ```
#[must_use]
pub fn figures(figures: &[Figure]) -> String {
    let mut lines = String::new();
    for figure in figures {
        let Figure {
            name, value, goal, ..
        } = figure;
        let unit = figure.unit.name();
        let bound = match goal {
            None => String::new(),
            Some(Bound::AtLeast(least)) => format!("\tat_least\t{least}"),
            Some(Bound::AtMost(most)) => format!("\tat_most\t{most}"),
        };
        push(
            &mut lines,
            format_args!("figure\t{name}\t{unit}\t{value}{bound}"),
        );
    }
    lines
}

fn describe_case(lines: &mut String, case: &Case, role: &str) {
    let Case {
        id, about, threads, ..
    } = case;
    push(
        lines,
        format_args!("case\t{id}\t{threads}\t{role}\t{about}"),
    );
    let own = [("before", &case.before), ("after", &case.after)];
    let peers = case.peers.iter().map(|peer| (peer.name, peer));
    for (name, path) in own.into_iter().chain(peers) {
        let allocator = match path.allocator {
            Allocator::System => "system",
            Allocator::Mimalloc => "mimalloc",
        };
        push(lines, format_args!("path\t{name}\t{allocator}"));
    }
    for goal in &case.goals {
        match goal {
            Goal::Ratio { against, at_least } => {
                push(lines, format_args!("goal\tratio\t{against}\t{at_least}"));
            }
            Goal::Instructions(most) => push(lines, format_args!("goal\tinstructions\t{most}")),
            Goal::Allocations(most) => push(lines, format_args!("goal\tallocations\t{most}")),
        }
    }
}

fn push(lines: &mut String, line: fmt::Arguments<'_>) {
    writeln!(lines, "{line}").expect("a String takes every line");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{path, timed};
    use crate::experiment::Unit;

    #[test]
    fn requests_parse_and_anything_else_is_refused() {
        let address = Address {
            case: "pool/1k",
            path: "glibc malloc",
        };
        assert_eq!(Request::parse("list"), Ok(Request::List));
        assert_eq!(Request::parse("drop"), Ok(Request::Drop));
        assert_eq!(
            Request::parse("experiment\tcache/hit_ratio\tfull"),
            Ok(Request::Experiment("cache/hit_ratio", Depth::Full))
        );
        assert_eq!(
            Request::parse("prepare\tpool/1k\tglibc malloc"),
            Ok(Request::Prepare(address))
        );
        assert_eq!(
            Request::parse("run\tpool/1k\tglibc malloc\t12"),
            Ok(Request::Run(address, 12))
        );
        for wrong in [
            "",
            "run",
            "run\ta\tb",
            "run\ta\tb\t-1",
            "list\tx",
            "prepare\ta",
            "experiment\ta\tslow",
        ] {
            assert!(Request::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_figure_has_its_goal_behind_it() {
        let figure = |name| Figure::new(name, 0.5, Unit::Share);
        let found = [
            figure("lru"),
            figure("ours").expected(Bound::AtLeast(0.25)),
            figure("misses").expected(Bound::AtMost(2.0)),
        ];
        assert_eq!(
            figures(&found),
            "figure\tlru\tshare\t0.5\n\
             figure\tours\tshare\t0.5\tat_least\t0.25\n\
             figure\tmisses\tshare\t0.5\tat_most\t2\n"
        );
    }

    #[test]
    fn a_description_has_a_line_per_fact() {
        let prepare = || timed(|| ());
        let mut peer = path("mimalloc", prepare);
        peer.allocator = Allocator::Mimalloc;
        let case = Case {
            id: "pool/1k",
            about: "a buffer",
            threads: 2,
            before: path("before", prepare),
            after: path("after", prepare),
            peers: vec![peer],
            goals: vec![
                Goal::Ratio {
                    against: "mimalloc",
                    at_least: 1.5,
                },
                Goal::Instructions(6.0),
                Goal::Allocations(0.0),
            ],
        };
        let headline = Headline {
            claim: "buffers",
            promised_reduction: 0.5,
            measure: Measure::Time { case: "pool/1k" },
        };
        let experiment = Experiment {
            id: "cache/hit_ratio",
            about: "traces",
            measure: |_| Ok(Vec::new()),
        };
        assert_eq!(
            describe(&[case], &[], &[experiment], &[headline]),
            "case\tpool/1k\t2\tshown\ta buffer\n\
             path\tbefore\tsystem\n\
             path\tafter\tsystem\n\
             path\tmimalloc\tmimalloc\n\
             goal\tratio\tmimalloc\t1.5\n\
             goal\tinstructions\t6\n\
             goal\tallocations\t0\n\
             experiment\tcache/hit_ratio\ttraces\n\
             headline\tbuffers\t0.5\ttime\tpool/1k\n"
        );
    }
}
