//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};
use lexopt::prelude::*;

use crate::bench;
use crate::cluster;
use crate::release;
use crate::sim;

const HELP: &str = "\
Usage: cargo xtask <command> [options]

Commands:
  bench     measure every case: before, after, allocations; table and JSON
  profile   where the instructions and allocations of a case are
  gate-test whether `bench --gate` judges right on this machine
  test      unit, integration, doc and loom tests, and the mutants of the simulations
  sim       a crate's simulation over many seeds
  cluster   nodes built on all crates, under load, killed and checked
  soak      the same for minutes: every fault again and again, memory and disk as a curve
  lint      formatting, clippy, docs, and this workspace's own rules
  features  build every crate with no feature, each feature alone, and all
  package   what would be published: file lists and a dry run
  release   which versions a change to a crate implies, and its changelogs
  ci        what a change must pass, in the order of .ci/run

`cargo xtask <command> --help` says more.
";

const BENCH_HELP: &str = "\
Usage: cargo xtask bench [FILTER] [--quick] [--peers] [--icount] [--json FILE]
                         [--save NAME] [--against NAME] [--gate] [--open] [--report DIR]
       cargo xtask bench --write-readme

Measures the cases whose id contains FILTER, all without it, and prints a table:
before, after, their ratio with its 95 % interval, allocations before -> after.

  --quick         less precise: the cases within 45 seconds, without it within 3 minutes, where the machine is idle
  --peers         also compare with other crates and allocators
  --icount        also count the instructions of `after`; needs valgrind
  --json FILE     also write the report to FILE
  --report DIR    also write it as a page, DIR/index.html
  --open          also open that page; without --report it is in the target directory
  --save NAME     keep the run as benches/baselines/NAME.json, and its programs in the target directory
  --against NAME  compare with a kept run: counts with its report, times by running its programs beside this
                  build's; takes three times as long
  --gate          fail when anything is worse than that: allocations, instructions above +1 %, or a time
                  past what equals differ by, found twice
  --write-readme  write the READMEs' tables from the run kept as `main`; measures nothing

Ctrl-C ends the run with a report of what was measured until then.
docs/BENCHMARKING.md says how it measures. A goal that is not met is reported, and is no failure.
";

const PROFILE_HELP: &str = "\
Usage: cargo xtask profile CASE [--path NAME]

Prints the instructions per function (callgrind) and the allocations per place (dhat) of one operation of a
case, and draws a flame graph where perf and inferno are there. Needs valgrind.

  --path NAME  `before`, `after` or a peer's name; `after` without it
";

const GATE_TEST_HELP: &str = "\
Usage: cargo xtask gate-test [FILTER] [--tries N] [--plant]

Has the gate of `bench` judge every case that FILTER selects against itself, and its own case, work in registers,
also with a slowdown of 5 % planted. Fails on a false alarm, and when a slowdown of that case is missed.

  --tries N  how often, 20 without it
  --plant    plant slowdowns in every case; takes three times as long
";

/// Tries of the gate's test when nothing else is asked for.
const TRIES: usize = 20;

const TEST_HELP: &str = "\
Usage: cargo xtask test

Runs the unit, integration and doc tests of all crates with all features but the benches' peers, and beside them
in optimised builds the loom models (tests/loom.rs) under `--cfg perf_loom` and the mutants, simulations,
shells on shuttle's scheduler and hit ratios (tests/mutants.rs, shell_mutants.rs, *simulation.rs,
shuttle.rs, hit_ratio.rs) under `--cfg perf_mutants`.
";

const SIM_HELP: &str = "\
Usage: cargo xtask sim CRATE [--seeds N] [--start SEED] [--groups N]

Runs the simulation of a crate (tests/simulation.rs), such as `transport` or `raft`, in a release build;
of a part of a crate (tests/PART_simulation.rs) with CRATE/PART, such as `raft/segment`.
`raft --groups N` is `raft/host` with up to N groups.
A seed that fails is printed with the command that runs it again.

  --seeds N     how many seeds, 1000 without it
  --start SEED  the first of them, 0 without it
";

const SOAK_HELP: &str = "\
Usage: cargo xtask soak [--minutes N] [--seed N] [--debug]

A cluster of three nodes with 16 Raft groups under load and every fault of `cluster --chaos`, for so many minutes (10
without it): nodes are killed, also all at once, ended, paused, slow, wiped, replaced and cut off. VMs have user data
of 0 to 16 KiB, and logs are small, so that they are written past many purges. After each fault every node must have
what was acknowledged, user data by its length and checksum. Prints memory and disk of the largest node as a curve, and
fails when anything acknowledged is missing or wrong, a node does not start again or does not catch up, or, in a run of
two minutes or more, when memory grows, the disk is beyond its bound or too few segments were purged.

  --minutes N    how long the load lasts, 60 at most
  --seed N       the faults of an earlier run again
  --debug        the tests' debug build of the node, instead of a release build
";

const CLUSTER_HELP: &str = "\
Usage: cargo xtask cluster [--nodes N] [--for SECONDS] [--clients C] [--groups N] [--log-mib N] [--user-data N]
                           [--chaos] [--seed N] [--naive] [--compare] [--keep] [--debug]

Builds the node of crates/perf-kit/examples/vm-node, starts a cluster of it on this machine, puts it under
load, and checks that every acknowledged write is there and that all answers have an order. Prints throughput,
latency percentiles, CPU per request, failover times and a line per node.

  --nodes N      3 without it
  --for SECONDS  how long the load lasts, 10 without it
  --clients C    requests at once, 64 without it
  --groups N     Raft groups of the nodes; 1 without it, 16 with --chaos
  --log-mib N    MiB of log at which a node refuses writes until snapshots are made, 256 without it
  --user-data N  each VM has user data of 0 to N bytes, 0 without it
  --chaos        meanwhile kill, end, pause, slow, wipe, replace and cut off nodes; then every node must be well again
  --seed N       the faults of an earlier run again, a new seed without it
  --naive        the node the way one writes it first
  --compare      the naive node, then the other one, and the ratios
  --keep         leave the data, certificates and logs of the run
  --debug        the debug build of `cargo xtask test` instead of a release build
";

/// What makes a run of the cluster a soak: faults, values of every size, and logs that are purged often.
const SOAK: [&str; 5] = ["--chaos", "--user-data", "16384", "--log-mib", "16"];
/// The example runs for an hour at most.
const SOAK_MINUTES_MAX: u64 = 60;

/// Seeds of a simulation when nothing else is asked for.
const SIM_SEEDS: u64 = 1_000;

const LINT_HELP: &str = "\
Usage: cargo xtask lint

Runs `cargo fmt --check`, clippy and rustdoc with warnings denied, and checks that every member
inherits the workspace's lints, that every published crate has its README, CHANGELOG, licences and
description, and that no source has a path of somebody's machine or unfinished work.
";

const FEATURES_HELP: &str = "\
Usage: cargo xtask features [--measure]

Checks every crate with no feature, with each feature alone, and with all of them, the facade also with every
two of its features, and that its light features bring no more crates than promised.

  --measure  also build the facade with each feature from nothing, and write docs/FEATURES.md
";

const PACKAGE_HELP: &str = "\
Usage: cargo xtask package [--allow-dirty]

Checks the files each published crate would contain, packs and builds all of them from their
packages (a dry run: nothing is uploaded), and prints the order to publish them in.

  --allow-dirty  also with uncommitted changes
";

const RELEASE_HELP: &str = "\
Usage: cargo xtask release CRATE patch|minor|major [--dry-run]

Raises the version of a crate, and where cargo counts that as incompatible the versions of all crates that
depend on it; dates what their changelogs have under `Unreleased`, and prints the order to publish them in.

  --dry-run  print it all and change nothing
";

const CI_HELP: &str = "\
Usage: cargo xtask ci [--allow-dirty]

Runs test, lint, features, package, a quick bench with its gate and a soak of two minutes, and repeats cargo test's
summary at the end.

  --allow-dirty  package also with uncommitted changes
";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Print this.
    Help(&'static str),
    Bench(BenchOptions),
    Profile(ProfileOptions),
    GateTest(GateTestOptions),
    Test,
    Sim(sim::Options),
    /// With what the example itself understands.
    Cluster(cluster::Options),
    Lint,
    Features {
        measure: bool,
    },
    Package {
        allow_dirty: bool,
    },
    Release(release::Options),
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
    /// The directory of the page.
    pub(crate) report: Option<PathBuf>,
    pub(crate) open: bool,
    pub(crate) save: Option<bench::Name>,
    pub(crate) against: Option<bench::Name>,
    pub(crate) gate: bool,
    pub(crate) write_readme: bool,
}

/// The options of `profile`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProfileOptions {
    /// The case's id.
    pub(crate) case: String,
    pub(crate) path: String,
}

/// The options of `gate-test`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GateTestOptions {
    pub(crate) filter: Option<String>,
    pub(crate) tries: usize,
    /// Slowdowns in all cases.
    pub(crate) plant: bool,
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
        "test" => parse_flags(parser, TEST_HELP, None, |_| Command::Test),
        "profile" => parse_profile(parser),
        "gate-test" => parse_gate_test(parser),
        "release" => parse_release(parser),
        "sim" => parse_sim(parser),
        "cluster" => parse_cluster(parser),
        "soak" => parse_soak(parser),
        "lint" => parse_flags(parser, LINT_HELP, None, |_| Command::Lint),
        "features" => parse_flags(parser, FEATURES_HELP, Some("measure"), |measure| {
            Command::Features { measure }
        }),
        "package" => parse_flags(parser, PACKAGE_HELP, Some("allow-dirty"), |allow_dirty| {
            Command::Package { allow_dirty }
        }),
        "ci" => parse_flags(parser, CI_HELP, Some("allow-dirty"), |allow_dirty| {
            Command::Ci { allow_dirty }
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
            Long("report") => options.report = Some(parser.value()?.into()),
            Long("open") => options.open = true,
            Long("save") => options.save = Some(parser.value()?.string()?.parse()?),
            Long("against") => options.against = Some(parser.value()?.string()?.parse()?),
            Long("gate") => options.gate = true,
            Long("write-readme") => options.write_readme = true,
            Value(filter) if options.filter.is_none() => options.filter = Some(filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.gate && options.against.is_none() {
        bail!("--gate needs --against NAME: the run that nothing may be worse than");
    }
    let alone = BenchOptions {
        write_readme: true,
        ..BenchOptions::default()
    };
    if options.write_readme && options != alone {
        bail!("--write-readme measures nothing, and takes no other option");
    }
    Ok(Command::Bench(options))
}

fn parse_profile(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut case, mut path) = (None, "after".to_owned());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(PROFILE_HELP)),
            Long("path") => path = parser.value()?.string()?,
            Value(value) if case.is_none() => case = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(case) = case else {
        bail!("`profile` needs the id of a case, such as `cargo xtask profile pool/1k`");
    };
    Ok(Command::Profile(ProfileOptions { case, path }))
}

fn parse_gate_test(mut parser: lexopt::Parser) -> Result<Command> {
    let mut options = GateTestOptions {
        filter: None,
        tries: TRIES,
        plant: false,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(GATE_TEST_HELP)),
            Long("tries") => options.tries = parser.value()?.parse()?,
            Long("plant") => options.plant = true,
            Value(filter) if options.filter.is_none() => options.filter = Some(filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.tries == 0 {
        bail!("--tries must be at least 1");
    }
    Ok(Command::GateTest(options))
}

fn parse_release(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut name, mut level, mut dry_run) = (None, None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(RELEASE_HELP)),
            Long("dry-run") => dry_run = true,
            Value(value) if name.is_none() => name = Some(value.string()?),
            Value(value) if level.is_none() => level = Some(value.string()?.parse()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let (Some(name), Some(level)) = (name, level) else {
        bail!(
            "`release` needs a crate and a level, such as `cargo xtask release perf-pool minor --dry-run`"
        );
    };
    Ok(Command::Release(release::Options {
        name,
        level,
        dry_run,
    }))
}

fn parse_sim(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut name, mut seeds, mut start, mut groups) = (None, SIM_SEEDS, 0, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(SIM_HELP)),
            Long("seeds") => seeds = parser.value()?.parse()?,
            Long("start") => start = parser.value()?.parse()?,
            Long("groups") => groups = Some(parser.value()?.parse()?),
            Value(value) if name.is_none() => name = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(name) = name else {
        bail!("`sim` needs the name of a crate, such as `cargo xtask sim raft`");
    };
    if seeds == 0 || groups == Some(0) {
        bail!("--seeds and --groups must be at least 1");
    }
    Ok(Command::Sim(sim::Options {
        name,
        seeds,
        start,
        groups,
    }))
}

/// Looks at the options here too, so that a wrong one is found before anything is built.
fn parse_cluster(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut debug, mut arguments) = (false, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(CLUSTER_HELP)),
            Long("debug") => debug = true,
            Long(flag @ ("chaos" | "naive" | "compare" | "keep")) => {
                arguments.push(format!("--{flag}").into());
            }
            Long(
                name @ ("nodes" | "for" | "clients" | "groups" | "log-mib" | "user-data" | "seed"),
            ) => {
                let flag = format!("--{name}");
                let value: u64 = parser.value()?.parse()?;
                arguments.push(flag.into());
                arguments.push(value.to_string().into());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Cluster(cluster::Options { debug, arguments }))
}

fn parse_soak(mut parser: lexopt::Parser) -> Result<Command> {
    let (mut debug, mut minutes, mut arguments) = (false, 10_u64, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(SOAK_HELP)),
            Long("debug") => debug = true,
            Long("minutes") => minutes = parser.value()?.parse()?,
            Long("seed") => {
                let seed: u64 = parser.value()?.parse()?;
                arguments.extend(["--seed".into(), seed.to_string().into()]);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if !(1..=SOAK_MINUTES_MAX).contains(&minutes) {
        bail!("--minutes is {minutes}; it must be from 1 to {SOAK_MINUTES_MAX}");
    }
    arguments.extend(SOAK.map(OsString::from));
    arguments.extend(["--for".into(), (60 * minutes).to_string().into()]);
    Ok(Command::Cluster(cluster::Options { debug, arguments }))
}

/// Parses the arguments of a command that takes one flag or nothing.
fn parse_flags(
    mut parser: lexopt::Parser,
    help: &'static str,
    flag: Option<&str>,
    command: fn(bool) -> Command,
) -> Result<Command> {
    let mut is_set = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help(help)),
            Long(name) if flag == Some(name) => is_set = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(command(is_set))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_option_of_bench_is_taken() {
        let all = parsed(
            "bench --quick pool/ --peers --icount --json out.json --report out --open \
             --save new --against main --gate",
        )
        .ok();
        let options = BenchOptions {
            filter: Some("pool/".to_owned()),
            quick: true,
            peers: true,
            icount: true,
            json: Some("out.json".into()),
            report: Some("out".into()),
            open: true,
            save: "new".parse().ok(),
            against: "main".parse().ok(),
            gate: true,
            write_readme: false,
        };
        assert_eq!(all, Some(Command::Bench(options)));
        let none = Command::Bench(BenchOptions::default());
        assert_eq!(parsed("bench").ok(), Some(none));
        let readme = BenchOptions {
            write_readme: true,
            ..BenchOptions::default()
        };
        let written = Command::Bench(readme);
        assert_eq!(parsed("bench --write-readme").ok(), Some(written));
    }

    #[test]
    fn profile_and_gate_test_have_defaults() {
        let profile = |path: &str| {
            let (case, path) = ("pool/1k".to_owned(), path.to_owned());
            Some(Command::Profile(ProfileOptions { case, path }))
        };
        assert_eq!(parsed("profile pool/1k").ok(), profile("after"));
        assert_eq!(
            parsed("profile pool/1k --path before").ok(),
            profile("before")
        );
        let gate_test = |filter: Option<&str>, tries, plant| {
            let filter = filter.map(str::to_owned);
            Some(Command::GateTest(GateTestOptions {
                filter,
                tries,
                plant,
            }))
        };
        assert_eq!(parsed("gate-test").ok(), gate_test(None, 20, false));
        assert_eq!(
            parsed("gate-test pool/ --tries 3 --plant").ok(),
            gate_test(Some("pool/"), 3, true)
        );
    }

    #[test]
    fn plain_commands_parse() {
        assert_eq!(parsed("test").ok(), Some(Command::Test));
        assert_eq!(parsed("lint").ok(), Some(Command::Lint));
        let features = |measure| Some(Command::Features { measure });
        assert_eq!(parsed("features").ok(), features(false));
        assert_eq!(parsed("features --measure").ok(), features(true));
        let sim = |seeds, start, groups| {
            let name = "raft".to_owned();
            Some(Command::Sim(sim::Options {
                name,
                seeds,
                start,
                groups,
            }))
        };
        assert_eq!(parsed("sim raft").ok(), sim(1_000, 0, None));
        assert_eq!(parsed("sim raft --seeds 7 --start 9").ok(), sim(7, 9, None));
        assert_eq!(parsed("sim raft --groups 20").ok(), sim(1_000, 0, Some(20)));
        let release = Command::Release(release::Options {
            name: "perf-pool".to_owned(),
            level: release::Level::Minor,
            dry_run: true,
        });
        let line = "release perf-pool minor --dry-run";
        assert_eq!(parsed(line).ok(), Some(release));
        let cluster = ["--for", "20", "--chaos"].map(OsString::from);
        let cluster = Command::Cluster(cluster::Options {
            debug: false,
            arguments: cluster.into(),
        });
        assert_eq!(parsed("cluster --for 20 --chaos").ok(), Some(cluster));
        let seeded = ["--chaos", "--seed", "7"].map(OsString::from);
        let seeded = Command::Cluster(cluster::Options {
            debug: true,
            arguments: seeded.into(),
        });
        let line = "cluster --debug --chaos --seed 7";
        assert_eq!(parsed(line).ok(), Some(seeded));
        let soak = ["--seed", "7"].iter().chain(&SOAK).chain(&["--for", "120"]);
        let soak = Command::Cluster(cluster::Options {
            debug: true,
            arguments: soak.map(OsString::from).collect(),
        });
        assert_eq!(parsed("soak --minutes 2 --debug --seed 7").ok(), Some(soak));
        for minutes in ["0", "61", "-1", "many"] {
            assert!(parsed(&format!("soak --minutes {minutes}")).is_err());
        }
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
            ("bench --gate", "--against"),
            ("bench --save ../x", "no name"),
            ("bench --write-readme --quick", "--write-readme"),
            ("profile", "id of a case"),
            ("gate-test --tries 0", "at least 1"),
            ("test now", "now"),
            ("release perf-pool", "a level"),
            ("release perf-pool big", "big"),
            ("cluster --for ever", "ever"),
            ("cluster --fast", "--fast"),
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
