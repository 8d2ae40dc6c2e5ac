//! The origin's claims against what was measured.

use std::collections::BTreeMap;

use super::listing::{Headline, Measure};
use super::report::{CaseReport, HeadlineReport};

/// Allocations per operation before and after, by case.
pub(crate) type Allocations = BTreeMap<String, (f64, f64)>;

/// Returns the rows whose cases were measured.
pub(crate) fn rows(
    headlines: &[Headline],
    cases: &[CaseReport],
    allocations: &Allocations,
) -> Vec<HeadlineReport> {
    let row = |headline: &Headline| {
        let reduction = match &headline.measure {
            Measure::Time { case } => {
                let case = cases.iter().find(|report| report.id == *case)?;
                // The paired median: more exact than the quotient of two medians.
                1.0 - 1.0 / case.ratio
            }
            Measure::Allocations { whole, rest } => {
                let (whole, rest) = (allocations.get(whole)?, allocations.get(rest)?);
                let before = whole.0 - rest.0;
                if before <= 0.0 {
                    return None;
                }
                1.0 - (whole.1 - rest.1) / before
            }
        };
        Some(HeadlineReport {
            claim: headline.claim.clone(),
            promised_reduction: headline.promised_reduction,
            measured_reduction: reduction,
        })
    };
    headlines.iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    fn headline(measure: Measure) -> Headline {
        Headline {
            claim: "claim".to_owned(),
            promised_reduction: 0.5,
            measure,
        }
    }

    #[test]
    fn time_is_measured_by_the_paired_ratio() {
        let mut cases = sample().cases;
        cases[0].ratio = 4.0;
        let case = "pool/1k".to_owned();
        let rows = rows(
            &[headline(Measure::Time { case })],
            &cases,
            &Allocations::new(),
        );
        assert_eq!(rows[0].measured_reduction, 0.75);
    }

    #[test]
    fn allocations_are_those_that_the_rest_does_not_make() {
        let measure = Measure::Allocations {
            whole: "mix/node".to_owned(),
            rest: "mix/rest".to_owned(),
        };
        let mut counts = Allocations::new();
        counts.insert("mix/node".to_owned(), (5.0, 1.5));
        assert!(rows(&[headline(measure.clone())], &[], &counts).is_empty());
        counts.insert("mix/rest".to_owned(), (3.0, 1.0));
        let found = rows(&[headline(measure.clone())], &[], &counts);
        assert_eq!(found[0].measured_reduction, 0.75);
        counts.insert("mix/rest".to_owned(), (5.0, 1.5));
        assert!(rows(&[headline(measure)], &[], &counts).is_empty());
    }
}
