//! Whether a case reached what was expected of it.

use super::listing::Goal;
use super::report::{CaseReport, GoalReport};

/// What an instruction count may be off: start-up does not cancel to the last instruction.
const INSTRUCTIONS_TOLERANCE: f64 = 0.05;
/// What an allocation count may be off: floating point, no more.
const ALLOCATIONS_TOLERANCE: f64 = 1e-9;

/// Judges the goals of a case by what was measured.
pub(crate) fn judge(goals: &[Goal], case: &CaseReport) -> Vec<GoalReport> {
    goals.iter().map(|goal| judge_one(goal, case)).collect()
}

fn judge_one(goal: &Goal, case: &CaseReport) -> GoalReport {
    match goal {
        Goal::Ratio { against, at_least } => {
            let measured = ratio_against(case, against);
            GoalReport {
                goal: format!(">= {at_least}x {against}"),
                target: *at_least,
                measured,
                met: measured.map(|ratio| ratio >= *at_least),
            }
        }
        Goal::Instructions(most) => GoalReport {
            goal: format!("<= {most} instructions"),
            target: *most,
            measured: case.instructions_after,
            met: case
                .instructions_after
                .map(|count| count <= most + INSTRUCTIONS_TOLERANCE),
        },
        Goal::Allocations(most) => GoalReport {
            goal: format!("<= {most} allocations"),
            target: *most,
            measured: Some(case.allocs_after),
            met: Some(case.allocs_after <= most + ALLOCATIONS_TOLERANCE),
        },
    }
}

fn ratio_against(case: &CaseReport, path: &str) -> Option<f64> {
    if path == "before" {
        return Some(case.ratio);
    }
    case.peers
        .iter()
        .find(|peer| peer.name == path)
        .map(|peer| peer.ratio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    fn ratio(against: &str, at_least: f64) -> Goal {
        Goal::Ratio {
            against: against.to_owned(),
            at_least,
        }
    }

    #[test]
    fn each_kind_is_judged_by_its_number() {
        let case = sample().cases.remove(0);
        let met = |goal: Goal| judge(&[goal], &case)[0].met;
        assert_eq!(met(ratio("before", 12.0)), Some(true));
        assert_eq!(met(ratio("before", 12.4)), Some(false));
        assert_eq!(met(ratio("glibc malloc", 1.8)), Some(true));
        assert_eq!(met(ratio("glibc malloc", 1.81)), Some(false));
        assert_eq!(met(ratio("mimalloc", 1.0)), None);
        assert_eq!(met(Goal::Instructions(17.0)), Some(true));
        assert_eq!(met(Goal::Instructions(16.0)), Some(false));
        assert_eq!(met(Goal::Allocations(0.0)), Some(true));
        let mut leaky = case.clone();
        leaky.allocs_after = 0.001;
        assert_eq!(judge(&[Goal::Allocations(0.0)], &leaky)[0].met, Some(false));
        let mut uncounted = case.clone();
        uncounted.instructions_after = None;
        assert_eq!(judge(&[Goal::Instructions(17.0)], &uncounted)[0].met, None);
    }
}
