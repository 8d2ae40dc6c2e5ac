//! The origin's claims, and which measurement answers each.

use crate::case::Case;
use crate::mix;

/// One claim and how it is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Headline {
    /// The claim in the origin's words.
    pub claim: &'static str,
    /// The share that the origin promised to remove, 0 to 1.
    pub promised_reduction: f64,
    /// Where the measured share comes from.
    pub measure: Measure,
}

/// Which quantity, of which case, `after` must have less of than `before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Time per operation of the case.
    Time {
        /// The case's id.
        case: &'static str,
    },
    /// Allocations per operation of `whole`, minus those of `rest`: the same work without the part
    /// that the claim is about.
    Allocations {
        /// The id of the case that does everything.
        whole: &'static str,
        /// The id of the case, usually a supporting one, that leaves the part out.
        rest: &'static str,
    },
}

/// The claims, in the order in which a report shows them.
///
/// A row whose cases are not in the list, or were not selected, is left out of the report.
#[must_use]
pub fn all() -> Vec<Headline> {
    vec![
        Headline {
            claim: "string allocations",
            promised_reduction: 0.70,
            measure: Measure::Allocations {
                whole: mix::NODE,
                rest: mix::MESSAGES,
            },
        },
        Headline {
            claim: "lock contention in status queries",
            promised_reduction: 0.60,
            measure: Measure::Time {
                case: mix::STATUS_QUERY,
            },
        },
        Headline {
            claim: "buffer allocations",
            promised_reduction: 0.50,
            measure: Measure::Allocations {
                whole: mix::NODE,
                rest: mix::NODE_UNSERIALISED,
            },
        },
        Headline {
            claim: "metric recording latency",
            promised_reduction: 0.70,
            measure: Measure::Time {
                case: "metrics/vm_operation",
            },
        },
    ]
}

/// Cases that only a headline needs: their allocations are counted, and no table shows them.
#[must_use]
pub fn supporting() -> Vec<Case> {
    mix::supporting()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_shares_and_claims_are_distinct() {
        let headlines = all();
        for (place, headline) in headlines.iter().enumerate() {
            assert!(headline.promised_reduction > 0.0 && headline.promised_reduction < 1.0);
            assert!(
                headlines[..place]
                    .iter()
                    .all(|other| other.claim != headline.claim)
            );
        }
    }
}
