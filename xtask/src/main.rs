//! The workspace's commands: `cargo xtask <command>`.

use std::process::ExitCode;

mod bench;
mod built;
mod checks;
mod ci;
mod cli;
mod cluster;
mod features;
mod links;
mod lint;
mod manifest;
mod package;
mod release;
mod rustc;
mod sim;
mod step;
mod test;
mod workspace;

use cli::Command;

/// Exit status of a command line that was not understood.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if let Some(cfg) = rustc::cfg_of(name.as_ref()) {
        return rustc::run(&cfg, arguments);
    }
    let command = match cli::parse(arguments) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("error: {error:#}\nTry `cargo xtask --help`.");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    let outcome = match command {
        Command::Help(text) => {
            print!("{text}");
            Ok(())
        }
        Command::Bench(options) if options.write_readme => bench::write_readme(),
        Command::Bench(options) => match bench::run(&options) {
            Ok(bench::Outcome::Interrupted) => return ExitCode::from(bench::INTERRUPTED_STATUS),
            outcome => outcome.map(drop),
        },
        Command::Profile(options) => bench::run_profile(&options),
        Command::GateTest(options) => bench::run_gate_test(&options),
        Command::Test => test::run(),
        Command::Sim(options) => sim::run(&options),
        Command::Cluster(options) => cluster::run(&options),
        Command::Lint => lint::run(),
        Command::Features { measure } => features::run(measure),
        Command::Package { allow_dirty } => package::run(allow_dirty),
        Command::Release(options) => release::run(&options),
        Command::Ci { allow_dirty } => ci::run(allow_dirty),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
