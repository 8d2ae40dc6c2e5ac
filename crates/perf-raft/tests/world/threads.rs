//! The threads of a simulated node: the log, its reader, the state machine. Each reports late at times, as the real ones do.

use super::{Event, MS, Op, World};
use perf_raft::StopReason;
use perf_raft::core::{ApplyJob, Fetch};
use perf_raft::log::run_jobs;

impl World {
    pub(super) fn begin_log(&mut self, id: u64) {
        let delay = if self.random.one_in(15) {
            self.random.below(60 * MS)
        } else {
            100_000 + self.random.below(4 * MS)
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.log_busy.is_some() || node.log_jobs.is_empty() {
            return;
        }
        node.log_busy = Some(std::mem::take(&mut node.log_jobs));
        let run = node.run;
        self.at(delay, Event::LogDone(id, run));
    }

    pub(super) fn log_done(&mut self, id: u64) {
        let fails = self.fsync_error_at == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(mut jobs) = node.log_busy.take() else {
            return;
        };
        if fails {
            node.disk.fail_next_sync();
        }
        match run_jobs(&mut node.disk, &mut jobs) {
            Ok(sequence) => {
                self.with_core(id, |core, _| core.persisted(sequence));
            }
            Err(error) => {
                self.fsync_error_at = None;
                self.coverage.fsync_errors += 1;
                self.stop(id, &StopReason::Log(std::sync::Arc::new(error)));
                let after = 100 * MS + self.random.below(800 * MS);
                self.at(after, Event::Restart(id));
            }
        }
    }

    /// Reads now or when it is done, as a thread does that is fast or slow to begin.
    pub(super) fn begin_fetch(&mut self, id: u64, fetch: Fetch) {
        let is_late = self.random.one_in(2);
        let delay = if !self.calm && self.random.one_in(3) {
            self.random.below(400 * MS)
        } else {
            100_000 + self.random.below(2 * MS)
        };
        let fails = self.read_error_at == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.fetch.is_some() {
            self.fail(format!("node {id} has two fetches under way"));
            return;
        }
        if fails {
            self.read_error_at = None;
            node.has_read_fault = true;
            node.disk.fail_next_read();
        }
        let read = (!is_late).then(|| node.disk.read(fetch));
        node.fetch = Some((fetch, read));
        let run = node.run;
        self.at(delay, Event::Fetched(id, run));
    }

    pub(super) fn fetched(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some((fetch, read)) = node.fetch.take() else {
            return;
        };
        let read = read.unwrap_or_else(|| node.disk.read(fetch));
        let has_fault = node.has_read_fault;
        match read {
            Ok(entries) => {
                self.with_core(id, |core, _| core.fetched(fetch, entries));
            }
            Err(error) if !has_fault => {
                self.fail(format!("node {id} cannot read its log: {error}"));
            }
            Err(error) => {
                self.coverage.failed_reads += 1;
                self.stop(id, &StopReason::Log(std::sync::Arc::new(error)));
                let after = 100 * MS + self.random.below(800 * MS);
                self.at(after, Event::Restart(id));
            }
        }
    }

    pub(super) fn begin_apply(&mut self, id: u64) {
        let delay = if self.random.one_in(20) {
            self.random.below(40 * MS)
        } else {
            50_000
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.apply_busy {
            return;
        }
        if node.apply_list.is_empty() {
            // The thread takes all that waits.
            node.apply_list.extend(node.apply_jobs.drain(..));
        }
        if node.apply_list.is_empty() {
            return;
        }
        node.apply_busy = true;
        let run = node.run;
        self.at(delay, Event::ApplyDone(id, run));
    }

    pub(super) fn apply_done(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.apply_busy = false;
        let Some(job) = node.apply_list.pop_front() else {
            return;
        };
        match job {
            ApplyJob::Apply {
                commands,
                waiting,
                index,
            } => {
                let mut waiting = waiting.into_iter().peekable();
                let begun_at = node.begun_at;
                for (place, command) in commands.iter().enumerate() {
                    if command.index <= begun_at {
                        // It has that.
                        continue;
                    }
                    let seen = (command.term, command.data.clone());
                    let known = self
                        .applied
                        .entry((command.index, command.place))
                        .or_insert_with(|| seen.clone());
                    if *known != seen {
                        let known = known.clone();
                        self.fail(format!(
                            "node {id} applies {seen:?} at {} ({}), another applied {known:?}",
                            command.index, command.place
                        ));
                        return;
                    }
                    let node = self.nodes.get_mut(&id).expect("it is there");
                    let response = node.machine.apply(command);
                    match waiting.next_if(|(at, _)| *at == place) {
                        Some((_, Op::Client(op))) => {
                            self.coverage.writes_acked += 1;
                            self.history.returned(op, self.now, response);
                        }
                        Some((_, Op::Filler(number))) => {
                            self.fillers.remove(&number);
                        }
                        _ => {}
                    }
                }
                let late = self.random.one_in(2);
                let is_durable = self.nodes[&id].durable.is_some();
                let syncs = is_durable && self.random.one_in(3);
                let node = self.nodes.get_mut(&id).expect("it is there");
                let last = commands.last().map_or(0, |last| last.index);
                node.last_command = node.last_command.max(last);
                if let Some(durable) = &mut node.durable
                    && syncs
                    && node.last_command > durable.1
                {
                    *durable = (node.machine.clone(), node.last_command);
                }
                node.machine.index = index;
                node.unreported = index;
                // With the last of its list at the latest, as in the runtime.
                if late && !node.apply_list.is_empty() {
                    self.coverage.late_reports += 1;
                } else {
                    self.report_applied(id);
                }
            }
            ApplyJob::DurableIndex => {
                // It makes durable what it has, now or later.
                let syncs = self.random.one_in(2);
                let node = self.nodes.get_mut(&id).expect("it is there");
                if let Some(durable) = &mut node.durable
                    && syncs
                    && node.last_command > durable.1
                {
                    *durable = (node.machine.clone(), node.last_command);
                }
                let durable = node.durable.as_ref().map_or(0, |(_, index)| *index);
                self.coverage.durable_indexes += 1;
                self.with_core(id, |core, _| core.durable_up_to(Ok(durable)));
                if self.nodes[&id].apply_list.is_empty() {
                    self.report_applied(id);
                }
            }
            ApplyJob::Restore(snapshot) => {
                let syncs = node.durable.is_some() && self.random.one_in(2);
                let node = self.nodes.get_mut(&id).expect("it is there");
                let index = snapshot.metadata.index;
                let is_there = index <= node.begun_at;
                if !is_there {
                    let data = match &node.streams {
                        None => Ok(snapshot.data.clone()),
                        Some(streams) => streams.load(&snapshot),
                    };
                    let data = match data {
                        Ok(data) => data,
                        Err(error) => return self.stream_failed(id, error),
                    };
                    if !node.machine.restore(&data) {
                        self.fail(format!("node {id} got a snapshot at {index} that is none"));
                        return;
                    }
                }
                if index > 1 && !is_there {
                    self.coverage.snapshots_installed += 1;
                    self.coverage.empty_installed += u64::from(node.machine.state.is_empty());
                }
                node.last_command = node.last_command.max(index);
                if !is_there
                    && syncs
                    && let Some(durable) = &mut node.durable
                {
                    *durable = (node.machine.clone(), index);
                }
                node.machine.index = index;
                self.with_core(id, |core, _| core.applied(index));
            }
            ApplyJob::Snapshot => {
                let (index, data) = (node.machine.index, node.machine.snapshot());
                // Its state is that of its index at the start, until the log is replayed up to there.
                let is_ahead = index < node.begun_at;
                let fails = self.now < self.no_snapshots_until || is_ahead;
                self.coverage.snapshots_failed += u64::from(fails);
                if node.streams.is_some() {
                    self.begin_own_snapshot(id, index, data, fails);
                } else {
                    let data = match fails {
                        true => Err("simulated".to_owned()),
                        false => Ok(data),
                    };
                    self.with_core(id, |core, _| core.snapshot_made(index, data));
                }
                if self.nodes[&id].apply_list.is_empty() {
                    self.report_applied(id);
                }
            }
        }
        self.begin_apply(id);
    }

    pub(super) fn report_applied(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        let index = std::mem::take(&mut node.unreported);
        if index > 0 {
            self.with_core(id, |core, _| core.applied(index));
        }
    }
}
