//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};
use lexopt::prelude::*;

use crate::sim;

const HELP: &str = "\
Usage: cargo xtask <command> [options]

Commands:
  bench     measure every case: before, after, allocations; table and JSON
  test      unit, integration, doc and loom tests, and the mutants of the simulations
  sim       a crate's simulation over many seeds
  lint      formatting, clippy, docs, and this workspace's own rules
  features  build every crate with no feature, each feature alone, and all
  package   what would be published: file lists and a dry run
  ci        all of the above, with a quick bench, in the order of .ci/run

`cargo xtask <command> --help` says more.
";

const BENCH_HELP: &str = "\
Usage: cargo xtask bench [FILTER] [--quick] [--peers] [--icount] [--json FILE]

Measures the cases whose id contains FILTER, all without it, and prints a table:
before, after, their ratio with its 95 % interval, allocations before -> after.

  --quick      less precise, within 45 seconds; without it within 3 minutes
  --peers      also compare with other crates and allocators
  --icount     also count the instructions of `after`; needs valgrind
  --json FILE  also write the report to FILE

docs/BENCHMARKING.md says how it measures. A goal that is not met is reported, and is no failure.
";

const TEST_HELP: &str = "\
Usage: cargo xtask test

Runs the unit, integration and doc tests of all crates with all features, then the loom
tests (tests/loom.rs) under `--cfg perf_loom` and the mutants of the simulations (tests/mutants.rs)
under `--cfg perf_mutants`, and stops at the first failure.
";

const SIM_HELP: &str = "\
Usage: cargo xtask sim CRATE [--seeds N] [--start SEED]

Runs the simulation of a crate (tests/simulation.rs), such as `transport` or `raft`, in a release build.
A seed that fails is printed with the command that runs it again.

  --seeds N     how many seeds, 1000 without it
  --start SEED  the first of them, 0 without it
";

/// Seeds of a simulation when nothing else is asked for.
const SIM_SEEDS: u64 = 1_000;

const LINT_HELP: &str = "\
Usage: cargo xtask lint

Runs `cargo fmt --check`, clippy and rustdoc with warnings denied, and checks that every member
inherits the workspace's lints, that every published crate has its README, CHANGELOG, licences and
description, and that no source has a path of somebody's machine or unfinished work.
";

const FEATURES_HELP: &str = "\
Usage: cargo xtask features

Checks every crate with no feature, with each feature alone, and with all of them.
";

const PACKAGE_HELP: &str = "\
Usage: cargo xtask package [--allow-dirty]

Checks the files each published crate would contain, packs and builds all of them from their
packages (a dry run: nothing is uploaded), and prints the order to publish them in.

  --allow-dirty  also with uncommitted changes
";

const CI_HELP: &str = "\
Usage: cargo xtask ci [--allow-dirty]

Runs test, lint, features, package and a quick bench, and repeats cargo test's summary at the end.

  --allow-dirty  package also with uncommitted changes
";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print this.
    Help(&'static str),
    Bench(BenchOptions),
    Test,
    Sim(sim::Options),
    Lint,
    Features,
    Package {
        allow_dirty: bool,
    },
    Ci {
        allow_dirty: bool,
    },
}

/// The options of `bench`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BenchOptions {
    /// A part of the ids to measure.
    pub(crate) filter: Option<String>,
    pub(crate) quick: bool,
    pub(crate) peers: bool,
    pub(crate) icount: bool,
    /// Where the report goes.
    pub(crate) json: Option<PathBuf>,
}

/// Parses the arguments after the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let name = match parser.next()? {
        None => bail!("no command given"),
        Some(Short('h') | Long("help")) => return Ok(Command::Help(HELP)),
        Some(Value(name)) => name.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    match name.as_str() {
        "bench" => parse_bench(parser),
        "test" => parse_flags(parser, TEST_HELP, false, |_| Command::Test),
        "sim" => parse_sim(parser),
        "lint" => parse_flags(parser, LINT_HELP, false, |_| Command::Lint),
        "features" => parse_flags(parser, FEATURES_HELP, false, |_| Command::Features),
        "package" => parse_flags(parser, PACKAGE_HELP, true, |allow_dirty| Command::Package {
            allow_dirty,
        }),
        "ci" => parse_flags(parser, CI_HELP, true, |allow_dirty| Command::Ci {
            allow_dirty,
        }),
        "help" => Ok(Command::Help(HELP)),
        other => bail!("unknown command `{other}`"),
    }
}

fn parse_bench(mut parser: lexopt::Parser) -> Result<Command> {
    let mut options = BenchOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(BENCH_HELP)),
            Long("quick") => options.quick = true,
            Long("peers") => options.peers = true,
            Long("icount") => options.icount = true,
            Long("json") => options.json = Some(parser.value()?.into()),
            Value(filter) if options.filter.is_none() => options.filter = Some(filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Bench(options))
}

fn parse_sim(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut name, mut seeds, mut start) = (None, SIM_SEEDS, 0);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(SIM_HELP)),
            Long("seeds") => seeds = parser.value()?.parse()?,
            Long("start") => start = parser.value()?.parse()?,
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(name) = name else {
        bail!("`sim` needs the name of a crate, such as `cargo xtask sim raft`");
    };
    if seeds == 0 {
        bail!("--seeds must be at least 1");
    }
    Ok(Command::Sim(sim::Options { name, seeds, start }))
}

/// Parses the arguments of a command that takes `--allow-dirty` or nothing.
fn parse_flags(
    mut parser: lexopt::Parser,
    help: &'static str,
    takes_allow_dirty: bool,
    command: fn(bool) -> Command,
) -> Result<Command> {
    let mut allow_dirty = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(help)),
            Long("allow-dirty") if takes_allow_dirty => allow_dirty = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(command(allow_dirty))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_option_of_bench_is_taken() {
        let all = parsed("bench --quick pool/ --peers --icount --json out.json").ok();
        let options = BenchOptions {
            filter: Some("pool/".to_owned()),
            quick: true,
            peers: true,
            icount: true,
            json: Some("out.json".into()),
        };
        assert_eq!(all, Some(Command::Bench(options)));
        let none = Command::Bench(BenchOptions::default());
        assert_eq!(parsed("bench").ok(), Some(none));
    }

    #[test]
    fn plain_commands_parse() {
        assert_eq!(parsed("test").ok(), Some(Command::Test));
        assert_eq!(parsed("lint").ok(), Some(Command::Lint));
        assert_eq!(parsed("features").ok(), Some(Command::Features));
        let sim = |seeds, start| {
            let name = "raft".to_owned();
            Some(Command::Sim(sim::Options { name, seeds, start }))
        };
        assert_eq!(parsed("sim raft").ok(), sim(1_000, 0));
        assert_eq!(parsed("sim raft --seeds 7 --start 9").ok(), sim(7, 9));
        let dirty = Command::Package { allow_dirty: true };
        assert_eq!(parsed("package --allow-dirty").ok(), Some(dirty));
        let clean = Command::Ci { allow_dirty: false };
        assert_eq!(parsed("ci").ok(), Some(clean));
    }

    #[test]
    fn help_is_help_of_the_command() {
        assert_eq!(parsed("--help").ok(), Some(Command::Help(HELP)));
        assert_eq!(parsed("bench -h").ok(), Some(Command::Help(BENCH_HELP)));
        assert_eq!(parsed("ci --help").ok(), Some(Command::Help(CI_HELP)));
    }

    #[test]
    fn what_is_not_known_is_named_in_the_error() {
        let wrong = [
            ("", "no command"),
            ("frobnicate", "frobnicate"),
            ("--quick", "--quick"),
            ("bench --slow", "--slow"),
            ("bench --json", "--json"),
            ("bench --quick=yes", "quick"),
            ("bench one two", "two"),
            ("bench --gate", "--gate"),
            ("test now", "now"),
            ("sim", "name of a crate"),
            ("sim raft --seeds 0", "at least 1"),
            ("sim raft --seeds many", "many"),
            ("lint --allow-dirty", "--allow-dirty"),
        ];
        for (line, part) in wrong {
            match parsed(line) {
                Ok(command) => panic!("`{line}` was taken as {command:?}"),
                Err(error) => assert!(error.to_string().contains(part), "`{line}`: {error}"),
            }
        }
    }
}
