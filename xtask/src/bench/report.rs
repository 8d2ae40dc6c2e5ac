//! The report: what `--json` writes, and what the table shows.
//!
//! Tools read it, so keys keep their names and meanings within a [`SCHEMA`]; new ones may be added.

use serde::{Deserialize, Serialize};

use super::machine::Machine;

/// Raised when a key changes its meaning or goes.
pub(crate) const SCHEMA: u32 = 1;

/// From this share of the processors' time on, other work is worth a warning.
const BUSY_MAX: f64 = 0.1;

/// One run of `cargo xtask bench`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    pub(crate) machine: Machine,
    pub(crate) rustc: String,
    /// `null` outside a git work tree.
    pub(crate) commit: Option<String>,
    /// Whether there were uncommitted changes; `null` outside a git work tree.
    pub(crate) dirty: Option<bool>,
    pub(crate) quick: bool,
    /// When the run began, in UTC; `null` in reports of before it was noted.
    #[serde(default)]
    pub(crate) date: Option<String>,
    /// Whether the run was interrupted: what was not measured by then is missing.
    #[serde(default)]
    pub(crate) partial: bool,
    /// How quiet the machine was; `null` in reports of before it was measured.
    #[serde(default)]
    pub(crate) noise: Option<NoiseReport>,
    pub(crate) cases: Vec<CaseReport>,
    /// Empty in reports of before there were any.
    #[serde(default)]
    pub(crate) experiments: Vec<ExperimentReport>,
    pub(crate) headline: Vec<HeadlineReport>,
    /// The comparison that `--against` asked for.
    #[serde(default)]
    pub(crate) against: Option<AgainstReport>,
}

/// How quiet the machine was when the run began.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct NoiseReport {
    /// The share of the processors' time that went into other work, 0 to 1; `null` where the system does not say.
    pub(crate) busy: Option<f64>,
    /// A fixed computation against itself: what a ratio of exactly 1 looks like here.
    pub(crate) ratio: f64,
    pub(crate) ratio_low: f64,
    pub(crate) ratio_high: f64,
}

impl NoiseReport {
    /// Whether other work took so much that a reader has to know.
    pub(crate) fn is_loud(&self) -> bool {
        self.busy.is_some_and(|busy| busy > BUSY_MAX)
    }
}

/// One case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct CaseReport {
    pub(crate) id: String,
    pub(crate) about: String,
    pub(crate) threads: u32,
    /// Medians per operation of one thread.
    pub(crate) before_ns: f64,
    pub(crate) after_ns: f64,
    /// Before / after: the median of the trials' ratios, and its 95 % interval.
    pub(crate) ratio: f64,
    pub(crate) ratio_low: f64,
    pub(crate) ratio_high: f64,
    /// Observations behind the interval, each in processes of its own, and rounds of all of them.
    pub(crate) trials: usize,
    pub(crate) rounds: usize,
    /// The median of each trial.
    #[serde(default)]
    pub(crate) before_trials_ns: Vec<f64>,
    #[serde(default)]
    pub(crate) after_trials_ns: Vec<f64>,
    /// Per operation.
    pub(crate) allocs_before: f64,
    pub(crate) allocs_after: f64,
    pub(crate) alloc_bytes_before: f64,
    pub(crate) alloc_bytes_after: f64,
    /// Per operation; `null` when they were not counted.
    pub(crate) instructions_after: Option<f64>,
    pub(crate) peers: Vec<PeerReport>,
    pub(crate) goals: Vec<GoalReport>,
}

/// One peer of a case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct PeerReport {
    pub(crate) name: String,
    pub(crate) ns: f64,
    /// Peer / after.
    pub(crate) ratio: f64,
    pub(crate) ratio_low: f64,
    pub(crate) ratio_high: f64,
    pub(crate) trials: usize,
    pub(crate) rounds: usize,
    /// The median of each trial.
    #[serde(default)]
    pub(crate) trials_ns: Vec<f64>,
    pub(crate) allocs: f64,
}

/// One goal of a case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct GoalReport {
    /// The goal in words, such as `>= 8x parking_lot`.
    pub(crate) goal: String,
    /// What was asked for.
    pub(crate) target: f64,
    /// `null` when this run did not measure it.
    pub(crate) measured: Option<f64>,
    pub(crate) met: Option<bool>,
}

impl GoalReport {
    /// Whether it is a least ratio; all others are a most count.
    pub(crate) fn is_ratio(&self) -> bool {
        self.goal.starts_with(">=")
    }
}

/// One experiment: what it found in this run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct ExperimentReport {
    pub(crate) id: String,
    pub(crate) about: String,
    pub(crate) figures: Vec<FigureReport>,
}

/// One figure of an experiment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct FigureReport {
    pub(crate) name: String,
    /// `ns`, `share` (0 to 1), `count`, `ratio`, `per_second` or `bytes_per_second`.
    pub(crate) unit: String,
    pub(crate) value: f64,
    /// `null` where nothing is expected of it.
    pub(crate) goal: Option<GoalReport>,
}

/// This run against an earlier one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct AgainstReport {
    /// The baseline's name, commit and date.
    pub(crate) name: String,
    pub(crate) commit: Option<String>,
    pub(crate) date: Option<String>,
    /// Whether its programs were there to be run beside this run's.
    pub(crate) timed: bool,
    /// Why times or instructions were not compared, in sentences.
    pub(crate) remarks: Vec<String>,
    pub(crate) cases: Vec<CaseAgainst>,
}

/// One case against the baseline's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct CaseAgainst {
    pub(crate) id: String,
    /// `null` without the baseline's programs.
    pub(crate) time: Option<TimeAgainst>,
    pub(crate) allocs_base: f64,
    pub(crate) allocs: f64,
    /// `null` unless both runs counted them, and for the same compiler and processor.
    pub(crate) instructions_base: Option<f64>,
    pub(crate) instructions: Option<f64>,
    /// What got worse, in words; the gate fails on any.
    pub(crate) worse: Vec<String>,
}

/// `after` of this build and of the baseline's, run in turn.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct TimeAgainst {
    /// Time now / time then, so more than 1 is slower, with its 95 % interval.
    pub(crate) ratio: f64,
    pub(crate) ratio_low: f64,
    pub(crate) ratio_high: f64,
    /// How far this build's `after` was from itself: the ratio that says nothing yet.
    pub(crate) spread: f64,
    /// Whether the whole interval was past the spread, and again when it was measured anew.
    pub(crate) slower: bool,
}

/// One of the origin's claims.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct HeadlineReport {
    pub(crate) claim: String,
    /// Shares from 0 to 1.
    pub(crate) promised_reduction: f64,
    pub(crate) measured_reduction: f64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use anyhow::Result;

    /// A report with something in every field.
    pub(crate) fn sample() -> Report {
        Report {
            schema: SCHEMA,
            machine: Machine {
                os: "linux".to_owned(),
                arch: "x86_64".to_owned(),
                cpu: "Fast 9000".to_owned(),
                cores: 8,
            },
            rustc: "rustc 1.95.0".to_owned(),
            commit: Some("0123456789abcdef".to_owned()),
            dirty: Some(true),
            quick: false,
            date: Some("2026-01-02T03:04:05Z".to_owned()),
            partial: false,
            noise: Some(NoiseReport {
                busy: Some(0.02),
                ratio: 1.0,
                ratio_low: 0.99,
                ratio_high: 1.01,
            }),
            cases: vec![CaseReport {
                id: "pool/1k".to_owned(),
                about: "a buffer".to_owned(),
                threads: 1,
                before_ns: 43.21,
                after_ns: 3.5,
                ratio: 12.345,
                ratio_low: 11.9,
                ratio_high: 12.8,
                trials: 9,
                rounds: 250,
                before_trials_ns: vec![42.0, 43.21, 44.0],
                after_trials_ns: vec![3.4, 3.5, 3.7],
                allocs_before: 2.0,
                allocs_after: 0.0,
                alloc_bytes_before: 1024.0,
                alloc_bytes_after: 0.0,
                instructions_after: Some(17.0),
                peers: vec![PeerReport {
                    name: "glibc malloc".to_owned(),
                    ns: 6.3,
                    ratio: 1.8,
                    ratio_low: 1.75,
                    ratio_high: 1.85,
                    trials: 9,
                    rounds: 240,
                    trials_ns: vec![6.2, 6.3, 6.5],
                    allocs: 1.0,
                }],
                goals: vec![GoalReport {
                    goal: ">= 1.7x glibc malloc".to_owned(),
                    target: 1.7,
                    measured: Some(1.8),
                    met: Some(true),
                }],
            }],
            experiments: vec![ExperimentReport {
                id: "cache/hit_ratio".to_owned(),
                about: "traces".to_owned(),
                figures: vec![
                    FigureReport {
                        name: "zipf 0.9, lru".to_owned(),
                        unit: "share".to_owned(),
                        value: 0.7,
                        goal: None,
                    },
                    FigureReport {
                        name: "zipf 0.9, ours".to_owned(),
                        unit: "share".to_owned(),
                        value: 0.712,
                        goal: Some(GoalReport {
                            goal: ">= 69 %".to_owned(),
                            target: 0.69,
                            measured: Some(0.712),
                            met: Some(true),
                        }),
                    },
                ],
            }],
            headline: vec![HeadlineReport {
                claim: "buffer allocations".to_owned(),
                promised_reduction: 0.5,
                measured_reduction: 1.0,
            }],
            against: None,
        }
    }

    #[test]
    fn a_report_survives_its_json() -> Result<()> {
        let report = sample();
        let text = serde_json::to_string(&report)?;
        assert_eq!(serde_json::from_str::<Report>(&text)?, report);
        Ok(())
    }

    #[test]
    fn the_documented_keys_are_there() -> Result<()> {
        let json = serde_json::to_value(sample())?;
        assert_eq!(json["schema"], 1);
        for key in ["machine", "rustc", "commit", "cases", "headline"] {
            assert!(!json[key].is_null(), "{key}");
        }
        let case_keys = [
            "id",
            "before_ns",
            "after_ns",
            "ratio",
            "ratio_low",
            "ratio_high",
            "allocs_before",
            "allocs_after",
            "instructions_after",
            "threads",
            "peers",
        ];
        for key in case_keys {
            assert!(!json["cases"][0][key].is_null(), "{key}");
        }
        for key in ["name", "ns", "ratio", "allocs"] {
            assert!(!json["cases"][0]["peers"][0][key].is_null(), "{key}");
        }
        for key in ["claim", "promised_reduction", "measured_reduction"] {
            assert!(!json["headline"][0][key].is_null(), "{key}");
        }
        Ok(())
    }

    #[test]
    fn what_was_not_measured_is_null_and_not_absent() -> Result<()> {
        let mut report = sample();
        report.commit = None;
        report.cases[0].instructions_after = None;
        let json = serde_json::to_value(&report)?;
        assert!(json.get("commit").is_some_and(serde_json::Value::is_null));
        let case = &json["cases"][0];
        assert!(
            case.get("instructions_after")
                .is_some_and(serde_json::Value::is_null)
        );
        Ok(())
    }
}
