//! The same work by more threads.

use super::super::report::CaseReport;
use super::super::units;
use super::{escaped, push};

/// Renders the cases that were measured with several numbers of threads.
pub(super) fn section(cases: &[CaseReport]) -> String {
    let families = families(cases);
    if families.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<section id=\"scaling\"><h2>Over threads</h2>\n\
         <p>Time per operation of one thread: what scales stays the same.</p>\n\
         <div class=\"scroll\"><table>\n\
         <tr><th>case</th><th>threads</th><th>before</th><th>after</th><th>ratio</th></tr>\n",
    );
    for (base, members) in families {
        for case in members {
            push(
                &mut text,
                format_args!(
                    "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                    escaped(base),
                    case.threads,
                    units::time(case.before_ns),
                    units::time(case.after_ns),
                    units::factor(case.ratio)
                ),
            );
        }
    }
    text += "</table></div></section>\n";
    text
}

/// Cases whose ids differ in the number of threads only.
fn families(cases: &[CaseReport]) -> Vec<(&str, Vec<&CaseReport>)> {
    let mut families: Vec<(&str, Vec<&CaseReport>)> = Vec::new();
    for case in cases {
        let base = base(case);
        match families.iter_mut().find(|(other, _)| *other == base) {
            Some((_, members)) => members.push(case),
            None => families.push((base, vec![case])),
        }
    }
    families.retain(|(_, members)| members.len() > 1);
    families
}

fn base(case: &CaseReport) -> &str {
    let threads = case.threads;
    [format!("_{threads}_threads"), format!("_x{threads}")]
        .iter()
        .find_map(|suffix| case.id.strip_suffix(suffix.as_str()))
        .unwrap_or(&case.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    #[test]
    fn only_the_number_of_threads_makes_a_family() {
        let case = |id: &str, threads| {
            let mut case = sample().cases.remove(0);
            (case.id, case.threads) = (id.to_owned(), threads);
            case
        };
        let cases = [
            case("pool/1k", 1),
            case("pool/1k_x2", 2),
            case("raft/memory", 1),
            case("raft/memory_x64", 1),
            case("metrics/counter", 1),
            case("metrics/counter_2_threads", 2),
        ];
        let found: Vec<&str> = families(&cases).iter().map(|(base, _)| *base).collect();
        assert_eq!(found, ["pool/1k", "metrics/counter"]);
        assert!(section(&cases).contains("<td>pool/1k</td><td>2</td>"));
        assert!(section(&cases[..1]).is_empty());
    }
}
