//! A worker process and the talk with it.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::listing::Listing;

/// Longest wait for one reply. A sample takes milliseconds; preparing a case may take seconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for an experiment's first figure: it runs whole before it answers.
const EXPERIMENT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a worker may take to end once its input is closed, before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines a worker may be ahead of its reader: a listing.
const LINES_AHEAD: usize = 64;

/// What one `run` reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// The time that counts.
    pub(crate) time_ns: f64,
    /// The time that passed here.
    pub(crate) wall_ns: f64,
    /// Operations performed, by all threads together.
    pub(crate) operations: f64,
    /// Allocations by the whole process; 0 from a worker that does not count.
    pub(crate) allocations: f64,
    /// The bytes they asked for.
    pub(crate) allocated_bytes: f64,
}

/// A running worker.
///
/// It ends when its input is closed, and that is how it is ended: also when this process dies.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    /// Where it puts its temporary files. It ends without removing them, so this process does, after its end.
    _scratch: TempDir,
}

impl Worker {
    /// Starts a worker, or a tool that runs one.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let scratch = scratch()?;
        let mut child = command
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        let (sender, lines) = sync_channel(LINES_AHEAD);
        let stdout = child.stdout.take();
        thread::spawn(move || {
            let lines = stdout.map(|stdout| BufReader::new(stdout).lines());
            for line in lines.into_iter().flatten().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = child
            .stderr
            .take()
            .map(|stderr| thread::spawn(move || read_all(stderr)));
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            lines,
            stderr,
            _scratch: scratch,
        })
    }

    /// Starts one of the worker binaries.
    pub(crate) fn of(binary: &PathBuf) -> Result<Self> {
        Self::start(Command::new(binary))
    }

    /// Asks what there is to measure.
    pub(crate) fn list(&mut self) -> Result<Listing> {
        self.send("list")?;
        let lines = self.lines_until_ok("list", REPLY_TIMEOUT)?;
        Listing::parse(lines.iter().map(String::as_str))
    }

    /// Has a path's state built.
    pub(crate) fn prepare(&mut self, case: &str, path: &str) -> Result<()> {
        let request = format!("prepare\t{case}\t{path}");
        let what = format!("preparing `{path}` of `{case}`");
        self.send(&request)
            .and_then(|()| ok_fields(&self.receive(&what)?).map(drop))
            .context(what)
    }

    /// Runs a prepared path.
    pub(crate) fn run(&mut self, case: &str, path: &str, iters: u64) -> Result<Sample> {
        // A fixed width makes the harness's own instructions the same whatever the number is.
        let request = format!("run\t{case}\t{path}\t{iters:012}");
        let what = format!("running `{path}` of `{case}`");
        let start = Instant::now();
        let reply = self.send(&request).and_then(|()| self.receive(&what));
        let wall_ns = start.elapsed().as_nanos() as f64;
        let sample = reply.and_then(|reply| parse_sample(&reply)).context(what)?;
        Ok(Sample { wall_ns, ..sample })
    }

    /// Runs an experiment and returns the lines that say what it found.
    pub(crate) fn experiment(&mut self, id: &str, quick: bool) -> Result<Vec<String>> {
        let depth = if quick { "quick" } else { "full" };
        let what = format!("running `{id}`");
        self.send(&format!("experiment\t{id}\t{depth}"))
            .and_then(|()| self.lines_until_ok(&what, EXPERIMENT_TIMEOUT))
            .context(what)
    }

    /// Lets the worker end and waits for it.
    pub(crate) fn end(mut self) -> Result<()> {
        let status = self.reap()?;
        if !status.success() {
            bail!(
                "the worker failed at its end: {status}{}",
                self.last_words()
            );
        }
        Ok(())
    }

    fn send(&mut self, request: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .ok_or_else(|| anyhow!("the worker was ended"))?;
        let sent = writeln!(stdin, "{request}").and_then(|()| stdin.flush());
        match sent {
            Ok(()) => Ok(()),
            Err(_) => Err(self.died()),
        }
    }

    /// Receives the lines of one reply without the `ok` behind them.
    fn lines_until_ok(&mut self, what: &str, timeout: Duration) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let line = self.receive_within(what, timeout)?;
            if line == "ok" {
                return Ok(lines);
            }
            if line.starts_with("error\t") {
                ok_fields(&line)?;
            }
            lines.push(line);
        }
    }

    fn receive(&mut self, what: &str) -> Result<String> {
        self.receive_within(what, REPLY_TIMEOUT)
    }

    fn receive_within(&mut self, what: &str, timeout: Duration) -> Result<String> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Disconnected) => Err(self.died()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the worker did not answer within {timeout:?} ({what})")
            }
        }
    }

    /// The error for a worker that is gone.
    fn died(&mut self) -> anyhow::Error {
        match self.reap() {
            Ok(status) => anyhow!("the worker died: {status}{}", self.last_words()),
            Err(error) => error.context("the worker died"),
        }
    }

    /// Closes the worker's input and waits for its end; kills it when that takes too long.
    fn reap(&mut self) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let start = Instant::now();
        while start.elapsed() < END_TIMEOUT {
            if let Some(status) = self
                .child
                .try_wait()
                .context("cannot wait for the worker")?
            {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.child.kill().context("cannot kill the worker")?;
        self.child.wait().context("cannot wait for the worker")
    }

    /// What the worker wrote to its standard error, for the end of a message.
    fn last_words(&mut self) -> String {
        let text = self
            .stderr
            .take()
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default();
        if text.trim().is_empty() {
            String::new()
        } else {
            format!("\n  it said: {}", text.trim().replace('\n', "\n  "))
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // After `end` this finds the status that is already known.
        let _ = self.reap();
    }
}

/// A new folder beside this program: build directories are on disks, where `/tmp` is memory on many machines and a log kept
/// there would be synced at no cost.
fn scratch() -> Result<TempDir> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    let beside = program.parent().context("this program is nowhere")?;
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(beside)
        .with_context(|| format!("cannot make a folder in {}", beside.display()))
}

fn read_all(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is still worth showing.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the fields after `ok`, or the worker's error.
fn ok_fields(reply: &str) -> Result<Vec<&str>> {
    let mut fields = reply.split('\t');
    match fields.next() {
        Some("ok") => Ok(fields.collect()),
        Some("error") => bail!("{}", fields.collect::<Vec<_>>().join(" ")),
        _ => bail!("the worker answered {reply:?}"),
    }
}

fn parse_sample(reply: &str) -> Result<Sample> {
    let fields = ok_fields(reply)?;
    let numbers: Result<Vec<u64>, _> = fields.iter().map(|field| field.parse::<u64>()).collect();
    let numbers = numbers.with_context(|| format!("the worker answered {reply:?}"))?;
    let number = |place: usize| numbers.get(place).map_or(0.0, |&number| number as f64);
    match numbers.len() {
        2 | 4 => Ok(Sample {
            time_ns: number(0),
            wall_ns: 0.0,
            operations: number(1),
            allocations: number(2),
            allocated_bytes: number(3),
        }),
        _ => bail!("the worker answered {reply:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_both_kinds_are_parsed() -> Result<()> {
        let plain = parse_sample("ok\t1500\t10")?;
        assert_eq!(
            (plain.time_ns, plain.operations, plain.allocations),
            (1500.0, 10.0, 0.0)
        );
        let counting = parse_sample("ok\t1500\t10\t20\t640")?;
        assert_eq!(
            (counting.allocations, counting.allocated_bytes),
            (20.0, 640.0)
        );
        Ok(())
    }

    #[test]
    fn errors_and_nonsense_are_errors() {
        for (reply, part) in [
            ("error\tthere is no `x`", "there is no `x`"),
            ("ok", "\"ok\""),
            ("ok\t1", "ok"),
            ("ok\t1\tx", "ok"),
            ("ok\t1\t2\t3", "ok"),
            ("", "\"\""),
        ] {
            let error = parse_sample(reply).expect_err("it is wrong");
            assert!(format!("{error:#}").contains(part), "{reply:?}: {error:#}");
        }
    }

    fn shell(script: &str) -> Result<Worker> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Worker::start(command)
    }

    #[test]
    fn a_worker_that_dies_names_the_path_and_its_last_words() -> Result<()> {
        let mut worker = shell("read line; echo 'out of luck' >&2; exit 7")?;
        let error = worker.run("pool/1k", "after", 3).expect_err("it died");
        let text = format!("{error:#}");
        for part in ["`after` of `pool/1k`", "exit status: 7", "out of luck"] {
            assert!(text.contains(part), "{text}");
        }
        Ok(())
    }

    #[test]
    fn an_experiments_lines_or_its_error_are_returned() -> Result<()> {
        let mut worker = shell("read line; printf 'figure\\tx\\nok\\n'; read line; exit 0")?;
        assert_eq!(worker.experiment("cache/hit_ratio", true)?, ["figure\tx"]);
        worker.end()?;
        let mut worker = shell("read line; printf 'error\\tout of luck\\n'; read line")?;
        let error = worker
            .experiment("cache/hit_ratio", false)
            .expect_err("so it said");
        let text = format!("{error:#}");
        assert!(
            text.contains("cache/hit_ratio") && text.contains("out of luck"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn a_worker_that_answers_is_understood_and_ends_with_its_input() -> Result<()> {
        let mut worker = shell("read line; printf 'ok\\t10\\t3\\n'; read line; exit 0")?;
        let sample = worker.run("pool/1k", "after", 3)?;
        assert_eq!((sample.time_ns, sample.operations), (10.0, 3.0));
        assert!(sample.wall_ns > 0.0);
        worker.end()
    }

    #[test]
    fn what_a_worker_left_behind_is_removed_after_its_end() -> Result<()> {
        let script =
            r#"read line; mkdir "$TMPDIR/log"; printf '%s\nok\n' "$TMPDIR"; read line; exit 1"#;
        let mut worker = shell(script)?;
        let lines = worker.experiment("raft/durable_latency", true)?;
        let scratch = PathBuf::from(lines.concat());
        assert!(scratch.join("log").is_dir(), "{}", scratch.display());
        assert!(worker.end().is_err());
        assert!(!scratch.exists());
        Ok(())
    }
}
