//! Experiments: figures that are no time per operation, each run once in a process of its own.

use anyhow::{Context, Result, bail};

use super::build::Binaries;
use super::listing::Experiment;
use super::report::{ExperimentReport, FigureReport, GoalReport};
use super::units;
use super::worker::Worker;

/// Runs an experiment.
pub(crate) fn run(
    binaries: &Binaries,
    experiment: &Experiment,
    quick: bool,
) -> Result<ExperimentReport> {
    let mut worker = Worker::of(&binaries.system)?;
    let lines = worker.experiment(&experiment.id, quick)?;
    worker.end()?;
    let figures: Result<Vec<FigureReport>> = lines.iter().map(|line| figure(line)).collect();
    let figures = figures.with_context(|| format!("cannot use what `{}` found", experiment.id))?;
    if figures.is_empty() {
        bail!("`{}` found nothing", experiment.id);
    }
    Ok(ExperimentReport {
        id: experiment.id.clone(),
        about: experiment.about.clone(),
        figures,
    })
}

/// Parses a line of `perf_benches::protocol::figures`.
fn figure(line: &str) -> Result<FigureReport> {
    let fields: Vec<&str> = line.split('\t').collect();
    let (name, unit, value, bound) = match fields[..] {
        ["figure", name, unit, value] => (name, unit, value, None),
        ["figure", name, unit, value, side, bound] => (name, unit, value, Some((side, bound))),
        _ => bail!("no such line: {line:?}"),
    };
    let number = |text: &str| -> Result<f64> {
        let number: f64 = text
            .parse()
            .with_context(|| format!("no number in {line:?}"))?;
        if !number.is_finite() {
            bail!("not a finite number in {line:?}");
        }
        Ok(number)
    };
    let value = number(value)?;
    let goal = match bound {
        None => None,
        Some((side, bound)) => {
            let bound = number(bound)?;
            let (sign, met) = match side {
                "at_least" => (">=", value >= bound),
                "at_most" => ("<=", value <= bound),
                _ => bail!("no such bound: {line:?}"),
            };
            Some(GoalReport {
                goal: format!("{sign} {}", units::of(unit, bound)),
                target: bound,
                measured: Some(value),
                met: Some(met),
            })
        }
    };
    Ok(FigureReport {
        name: name.to_owned(),
        unit: unit.to_owned(),
        value,
        goal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_its_bound() -> Result<()> {
        let plain = figure("figure\tlru\tshare\t0.5")?;
        assert_eq!((plain.value, plain.goal), (0.5, None));
        let verdict = |line: &str| -> Result<(String, Option<bool>)> {
            let goal = figure(line)?.goal.expect("it has one");
            Ok((goal.goal, goal.met))
        };
        let low = verdict("figure\tours\tshare\t0.5\tat_least\t0.6")?;
        assert_eq!(low, (">= 60 %".to_owned(), Some(false)));
        let fast = verdict("figure\tp99\tns\t1500\tat_most\t2000")?;
        assert_eq!(fast, ("<= 2.00 us".to_owned(), Some(true)));
        Ok(())
    }

    #[test]
    fn nonsense_is_quoted() {
        for line in [
            "figure\tlru",
            "figure\tlru\tshare\tmany",
            "figure\tlru\tshare\tNaN",
            "figure\tlru\tshare\t0.5\tabout\t0.6",
            "",
        ] {
            let error = figure(line).expect_err("it is wrong");
            let text = format!("{error:#}");
            assert!(text.contains(&format!("{line:?}")), "{text}");
        }
    }
}
