//! What a worker says there is to measure: the other end of `perf_benches::protocol::describe`.

use anyhow::{Context, Result, anyhow, bail};

/// Everything a worker listed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Listing {
    pub(crate) cases: Vec<Case>,
    pub(crate) experiments: Vec<Experiment>,
    pub(crate) headlines: Vec<Headline>,
}

/// A case and its paths.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) about: String,
    pub(crate) threads: u32,
    /// Not in the table: only its allocations are counted, for a headline.
    pub(crate) supporting: bool,
    /// `before`, `after`, then the peers.
    pub(crate) paths: Vec<Path>,
    pub(crate) goals: Vec<Goal>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Path {
    pub(crate) name: String,
    pub(crate) allocator: Allocator,
}

/// The global allocator of the process a path's time is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allocator {
    System,
    Mimalloc,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Goal {
    Ratio { against: String, at_least: f64 },
    Instructions(f64),
    Allocations(f64),
}

/// Something that finds figures of its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Experiment {
    pub(crate) id: String,
    pub(crate) about: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Headline {
    pub(crate) claim: String,
    pub(crate) promised_reduction: f64,
    pub(crate) measure: Measure,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Measure {
    Time { case: String },
    Allocations { whole: String, rest: String },
}

impl Case {
    /// The peers' paths.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Path> {
        self.paths
            .iter()
            .filter(|path| path.name != "before" && path.name != "after")
    }
}

impl Listing {
    /// Parses the lines before the final `ok`.
    pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut listing = Self::default();
        for line in lines {
            listing
                .take(line)
                .with_context(|| format!("cannot use the worker's line {line:?}"))?;
        }
        for case in &listing.cases {
            let has = |name: &str| case.paths.iter().any(|path| path.name == name);
            if !has("before") || !has("after") {
                bail!(
                    "the worker listed `{}` without `before` and `after`",
                    case.id
                );
            }
        }
        Ok(listing)
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let fields: Vec<&str> = line.split('\t').collect();
        let last = self
            .cases
            .last_mut()
            .ok_or_else(|| anyhow!("it belongs to no case"));
        match fields[..] {
            ["case", id, threads, role, about] => self.cases.push(Case {
                id: id.to_owned(),
                about: about.to_owned(),
                threads: threads.parse()?,
                supporting: match role {
                    "supporting" => true,
                    "shown" => false,
                    _ => bail!("no such role"),
                },
                paths: Vec::new(),
                goals: Vec::new(),
            }),
            ["path", name, allocator] => last?.paths.push(Path {
                name: name.to_owned(),
                allocator: match allocator {
                    "system" => Allocator::System,
                    "mimalloc" => Allocator::Mimalloc,
                    _ => bail!("no such allocator"),
                },
            }),
            ["goal", "ratio", against, at_least] => last?.goals.push(Goal::Ratio {
                against: against.to_owned(),
                at_least: at_least.parse()?,
            }),
            ["goal", "instructions", most] => last?.goals.push(Goal::Instructions(most.parse()?)),
            ["goal", "allocations", most] => last?.goals.push(Goal::Allocations(most.parse()?)),
            ["experiment", id, about] => self.experiments.push(Experiment {
                id: id.to_owned(),
                about: about.to_owned(),
            }),
            ["headline", claim, promised, "time", case] => {
                let case = case.to_owned();
                self.push_headline(claim, promised, Measure::Time { case })?;
            }
            ["headline", claim, promised, "allocations", whole, rest] => {
                let (whole, rest) = (whole.to_owned(), rest.to_owned());
                self.push_headline(claim, promised, Measure::Allocations { whole, rest })?;
            }
            _ => bail!("no such line"),
        }
        Ok(())
    }

    fn push_headline(&mut self, claim: &str, promised: &str, measure: Measure) -> Result<()> {
        self.headlines.push(Headline {
            claim: claim.to_owned(),
            promised_reduction: promised.parse()?,
            measure,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
case\tpool/1k\t2\tshown\ta buffer, used once
path\tbefore\tsystem
path\tafter\tsystem
path\tglibc malloc\tsystem
path\tmimalloc\tmimalloc
goal\tratio\tglibc malloc\t1.7
goal\tinstructions\t6
goal\tallocations\t0
case\tmix/rest\t1\tsupporting\tthe rest
path\tbefore\tsystem
path\tafter\tsystem
experiment\tcache/hit_ratio\ttraces
headline\tbuffer allocations\t0.5\tallocations\tpool/1k\tmix/rest
headline\tlock contention\t0.6\ttime\tpool/1k";

    #[test]
    fn every_kind_of_line_is_understood() -> Result<()> {
        let listing = Listing::parse(LINES.lines())?;
        assert_eq!(listing.cases.len(), 2);
        let case = &listing.cases[0];
        assert_eq!(
            (case.id.as_str(), case.threads, case.supporting),
            ("pool/1k", 2, false)
        );
        assert_eq!(case.about, "a buffer, used once");
        let peers: Vec<_> = case
            .peers()
            .map(|path| (path.name.as_str(), path.allocator))
            .collect();
        assert_eq!(
            peers,
            [
                ("glibc malloc", Allocator::System),
                ("mimalloc", Allocator::Mimalloc)
            ]
        );
        let against = "glibc malloc".to_owned();
        let ratio = Goal::Ratio {
            against,
            at_least: 1.7,
        };
        assert_eq!(
            case.goals,
            [ratio, Goal::Instructions(6.0), Goal::Allocations(0.0)]
        );
        assert!(listing.cases[1].supporting);
        let experiment = Experiment {
            id: "cache/hit_ratio".to_owned(),
            about: "traces".to_owned(),
        };
        assert_eq!(listing.experiments, [experiment]);
        assert_eq!(listing.headlines.len(), 2);
        assert_eq!(
            listing.headlines[1].measure,
            Measure::Time {
                case: "pool/1k".to_owned()
            }
        );
        Ok(())
    }

    #[test]
    fn a_line_that_is_not_understood_is_quoted() {
        let wrong = [
            "path\tbefore\tsystem",
            "case\ta/b\tmany\tshown\tx",
            "case\ta/b\t1\thidden\tx",
            "nonsense",
            "",
        ];
        for line in wrong {
            let error = Listing::parse([line]).expect_err("it is wrong");
            assert!(
                format!("{error:#}").contains(&format!("{line:?}")),
                "{error:#}"
            );
        }
        let half = Listing::parse(["case\ta/b\t1\tshown\tx", "path\tbefore\tsystem"]);
        assert!(half.is_err_and(|error| error.to_string().contains("a/b")));
    }
}
