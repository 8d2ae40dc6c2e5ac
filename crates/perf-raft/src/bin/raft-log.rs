//! Looks at a `SegmentLog` that no process has open, checks it, and repairs it when told to.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use perf_raft::log::{LogInfo, Repair, SegmentLog};
use perf_raft::{GroupId, LogError};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const SOUND: u8 = 0;
const DAMAGED: u8 = 1;
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let matches = command().get_matches();
    let done = match matches.subcommand() {
        Some(("inspect", matches)) => inspect(matches),
        Some(("dump", matches)) => dump(matches),
        Some(("check", matches)) => check(matches),
        Some(("repair", matches)) => repair(matches),
        _ => Ok(FAILED),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        // The reader of a pipe has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::from(SOUND)
        }
        Err(Failure::Output(error)) => fail(&format!("cannot write the output: {error}")),
        Err(Failure::Log(error)) => fail(&error.to_string()),
    }
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("raft-log: {reason}");
    ExitCode::from(FAILED)
}

enum Failure {
    Log(LogError),
    Output(io::Error),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn command() -> Command {
    let folder = Arg::new("folder")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("The folder of the log");
    let subcommand = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).arg(folder.clone())
    };
    let group = Arg::new("group")
        .long("group")
        .value_parser(value_parser!(u64))
        .help("Only this group");
    let force = Arg::new("force")
        .long("force")
        .action(ArgAction::SetTrue)
        .help("Cut the log; without it, nothing is changed");
    Command::new("raft-log")
        .about("Looks at the log of a Raft node that is not running")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help("Exit codes: 0 for a sound log, 1 for a damaged one, 2 if that cannot be told. Only `repair --force` writes.")
        .subcommand(subcommand("inspect", "Show segments, groups, indices and sizes"))
        .subcommand(subcommand("dump", "Show each record and each job").arg(group))
        .subcommand(subcommand("check", "Read everything, snapshots too, and say whether it is sound"))
        .subcommand(
            subcommand("repair", "Cut a damaged log at its first damage, after saying what is lost")
                .arg(force),
        )
}

fn folder(matches: &ArgMatches) -> PathBuf {
    matches
        .get_one::<PathBuf>("folder")
        .cloned()
        .unwrap_or_default()
}

fn inspect(matches: &ArgMatches) -> Result<u8, Failure> {
    let info = SegmentLog::inspect(folder(matches), false)?;
    let mut out = io::stdout().lock();
    show(&mut out, &info)?;
    verdict(&mut out, info.damage.as_ref())
}

fn show(out: &mut impl Write, info: &LogInfo) -> Result<(), Failure> {
    let bytes: u64 = info.segments.iter().map(|segment| segment.bytes).sum();
    writeln!(
        out,
        "{} segments of {bytes} bytes, {} of them live; the next record is {}",
        info.segments.len(),
        info.live_bytes,
        info.next_record
    )?;
    for segment in &info.segments {
        let state = if segment.is_sealed { "sealed" } else { "open" };
        writeln!(
            out,
            "  {}: {} records, {} of {} bytes used, {state}",
            segment.file.display(),
            segment.records,
            segment.end,
            segment.bytes
        )?;
    }
    for group in &info.groups {
        let (term, vote, commit) = group.hard_state;
        let (compacted, compacted_term) = group.compacted;
        writeln!(
            out,
            "group {}: entries {} to {}, term {term}, vote {vote}, commit {commit}, compacted to {compacted} of term {compacted_term}",
            group.group.0,
            compacted + 1,
            group.last_index
        )?;
        if let Some((index, term, bytes)) = group.snapshot {
            writeln!(out, "  snapshot at {index} of term {term}, {bytes} bytes")?;
        }
        if let Some(identity) = group.identity {
            writeln!(
                out,
                "  node {}, incarnation {:016x}",
                identity.node, identity.incarnation
            )?;
        }
    }
    Ok(())
}

fn verdict(out: &mut impl Write, damage: Option<&LogError>) -> Result<u8, Failure> {
    match damage {
        None => Ok(SOUND),
        Some(damage) => {
            writeln!(out, "DAMAGED: {damage}")?;
            Ok(DAMAGED)
        }
    }
}

fn dump(matches: &ArgMatches) -> Result<u8, Failure> {
    let group = matches.get_one::<u64>("group").copied().map(GroupId);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut failed = Ok(());
    let damage = SegmentLog::dump(folder(matches), group, &mut |line| {
        if failed.is_ok() {
            failed = writeln!(out, "{line}");
        }
    })?;
    failed?;
    let code = verdict(&mut out, damage.as_ref())?;
    out.flush()?;
    Ok(code)
}

fn check(matches: &ArgMatches) -> Result<u8, Failure> {
    let info = SegmentLog::inspect(folder(matches), true)?;
    let mut out = io::stdout().lock();
    if info.damage.is_none() {
        writeln!(
            out,
            "sound: {} groups, {} segments",
            info.groups.len(),
            info.segments.len()
        )?;
    }
    verdict(&mut out, info.damage.as_ref())
}

fn repair(matches: &ArgMatches) -> Result<u8, Failure> {
    let force = matches.get_flag("force");
    let mut out = io::stdout().lock();
    let Some(repair) = SegmentLog::repair(folder(matches), force)? else {
        writeln!(
            out,
            "the segments are sound: nothing to repair (`check` reads snapshots too)"
        )?;
        return Ok(SOUND);
    };
    show_repair(&mut out, &repair)?;
    if force {
        writeln!(
            out,
            "Done. The damaged files are in {}.",
            repair.aside.display()
        )?;
        return Ok(SOUND);
    }
    writeln!(
        out,
        "Nothing was changed. A node that is one of several should rejoin its group instead. To cut this log: --force"
    )?;
    Ok(DAMAGED)
}

fn show_repair(out: &mut impl Write, repair: &Repair) -> Result<(), Failure> {
    let (file, offset) = &repair.cut;
    writeln!(out, "DAMAGED: {}", repair.damage)?;
    writeln!(out, "{} is cut at offset {offset}", file.display())?;
    for file in &repair.moved {
        writeln!(
            out,
            "{} is moved to {}",
            file.display(),
            repair.aside.display()
        )?;
    }
    writeln!(
        out,
        "LOST: what is damaged, and {} records behind it that can still be read; entries that were acknowledged and votes may be among them",
        repair.records_lost
    )?;
    for (group, index) in &repair.indices_lost {
        let kept = repair.kept.groups.iter().find(|kept| kept.group == *group);
        match kept {
            Some(kept) => writeln!(
                out,
                "  group {}: entries up to {index}, of which {} and before are kept",
                group.0, kept.last_index
            )?,
            None => writeln!(
                out,
                "  group {}: everything, entries up to {index}",
                group.0
            )?,
        }
    }
    writeln!(out, "What is kept:")?;
    show(out, &repair.kept)
}
