//! The task that drives groups: each at its ticks, when it is notified, and as long as work remains.

use super::combining_lock::DriveOutcome;
use super::drive::next_tick;
use super::pass::Pass;
use super::run_queue::{Notifier, RunQueue};
use super::shared::NodeShared;
use super::sleepers::Sleepers;
use crate::error::StopReason;
use crate::primitive::mutant;
use crate::primitive::threads::{self, Mutex};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// After so many groups in a row the other tasks of the runtime have their turn.
const GROUPS_PER_TURN: usize = 64;

/// How groups get to a driving task. Each group belongs to one.
pub(crate) struct TaskHandle {
    queue: Arc<RunQueue>,
    intake: Mutex<Intake>,
    /// Closed when the task has ended.
    ended: watch::Receiver<()>,
}

#[derive(Default)]
struct Intake {
    entering: Vec<(u32, Instant, Group)>,
    /// Numbers of groups that are gone.
    free: Vec<u32>,
    numbers: u32,
    /// The task ends with its last group.
    is_closing: bool,
    /// The task is gone with its runtime.
    is_gone: bool,
}

/// A group that is driven here.
struct Group {
    shared: Arc<NodeShared>,
    tick: Duration,
    /// It has its place in [`Task::due`].
    is_due: bool,
}

/// What a group needs after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// A tick, then.
    Tick(Instant),
    /// Nothing until it is notified: it sleeps.
    Nothing,
    /// No more turns: it has ended.
    End,
}

impl TaskHandle {
    /// Starts a task on the present runtime, without groups. It ends after [`close`](Self::close) with its last one. It ticks for the groups that sleep, if
    /// it is given these.
    pub(crate) fn start(sleepers: Option<Arc<Sleepers>>) -> Arc<Self> {
        let (end, ended) = watch::channel(());
        let handle = Arc::new(Self {
            queue: Arc::default(),
            intake: Mutex::default(),
            ended,
        });
        let task = Task {
            handle: Arc::clone(&handle),
            groups: Vec::new(),
            due: BinaryHeap::new(),
            again: Vec::new(),
            running: 0,
            pass: Pass::default(),
            sleepers: sleepers.map(|sleepers| (Instant::now() + sleepers.tick, sleepers)),
            _end: end,
        };
        // Dropped at any time, also before it is polled, the task stops its groups.
        threads::spawn(task.run());
        handle
    }

    /// A number for a new group, and what that is notified by. The group is to be [added](Self::add) then.
    pub(crate) fn notifier(&self) -> (u32, Notifier) {
        let mut intake = self.intake.lock();
        let number = intake.free.pop().unwrap_or_else(|| {
            intake.numbers += 1;
            intake.numbers - 1
        });
        (number, Notifier::new(Arc::clone(&self.queue), number))
    }

    /// Drives a group from now on, with its first tick at `due`. If the runtime has ended, the group is stopped.
    pub(crate) fn add(&self, number: u32, shared: Arc<NodeShared>, due: Instant, tick: Duration) {
        let mut intake = self.intake.lock();
        if intake.is_gone {
            drop(intake);
            stop_at_once(&shared);
            return;
        }
        let group = Group {
            shared,
            tick,
            is_due: true,
        };
        intake.entering.push((number, due, group));
        drop(intake);
        self.queue.wake();
    }

    /// Ends the task once it has no group.
    pub(crate) fn close(&self) {
        self.intake.lock().is_closing = true;
        self.queue.wake();
    }

    /// Waits for the end of the task, after [`close`](Self::close).
    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

/// Stops a group whose runtime has ended: nothing of it outlives its task, and no caller waits for it.
fn stop_at_once(shared: &NodeShared) {
    if let Some(driver) = shared.driver.take() {
        shared.mailbox.close(&StopReason::Shutdown);
        // Answers what it holds. A panic of its state machine's destructor is its own affair: others are stopped too.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(driver)));
    }
}

struct Task {
    handle: Arc<TaskHandle>,
    groups: Vec<Option<Group>>,
    /// When each group's next tick is. Each group that does not sleep has one place here, until it is found to have ended.
    due: BinaryHeap<Reverse<(Instant, u32)>>,
    /// Groups that have more to do at once.
    again: Vec<u32>,
    /// Groups that have not ended.
    running: usize,
    pass: Pass,
    /// Those of the host, and when their next tick is, if this task sees to them.
    sleepers: Option<(Instant, Arc<Sleepers>)>,
    /// Dropped with the task.
    _end: watch::Sender<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut intake = self.handle.intake.lock();
        intake.is_gone = true;
        let entering = std::mem::take(&mut intake.entering);
        drop(intake);
        let entering = entering.into_iter().map(|(_, _, group)| group);
        for group in self.groups.drain(..).flatten().chain(entering) {
            stop_at_once(&group.shared);
        }
    }
}

impl Task {
    async fn run(mut self) {
        let mut alarm = pin!(sleep_until(Instant::now()));
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            let is_closing = self.enter();
            if let Some((due, sleepers)) = &mut self.sleepers
                && *due <= now
            {
                *due = next_tick(*due, now, sleepers.tick);
                sleepers.tick();
            }
            let mut driven = 0;
            while let Some(&Reverse((due, number))) = self.due.peek()
                && due <= now
            {
                self.due.pop();
                if let Some(group) = self.group(number) {
                    group.is_due = false;
                }
                self.drive(number);
                driven += 1;
                self.breathe(driven).await;
            }
            self.handle.queue.take(&mut ready);
            ready.append(&mut self.again);
            // Each group has one place, and maybe one of before it came: a flood makes the list no longer, and gives the
            // group no second turn.
            debug_assert!(ready.len() <= 2 * self.groups.len());
            for number in ready.drain(..) {
                self.drive_ready(number);
                driven += 1;
                self.breathe(driven).await;
            }
            self.pass.end();
            if is_closing && self.running == 0 {
                return;
            }
            if !self.again.is_empty() {
                // Callers take their answers meanwhile, and propose again.
                tokio::task::yield_now().await;
                continue;
            }
            let next = self.due.peek().map(|Reverse((due, _))| *due);
            let of_sleepers = self.sleepers.as_ref().map(|(due, _)| *due);
            let next = next.into_iter().chain(of_sleepers).min();
            if let Some(due) = next
                && due != alarm.deadline()
            {
                alarm.as_mut().reset(due);
            }
            tokio::select! {
                biased;
                () = &mut alarm, if next.is_some() => {}
                () = self.handle.queue.notified() => {}
            }
        }
    }

    /// Takes new groups in. Returns whether the task ends with its last group.
    fn enter(&mut self) -> bool {
        let mut intake = self.handle.intake.lock();
        for (number, due, group) in intake.entering.drain(..) {
            let place = number as usize;
            if self.groups.len() <= place {
                self.groups.resize_with(place + 1, || None);
            }
            self.due.push(Reverse((due, number)));
            // A place that it got before it was here may have been passed over: it gets another one.
            group.shared.mailbox.begin_turn();
            if group.shared.mailbox.mark_ready() {
                self.again.push(number);
            }
            self.groups[place] = Some(group);
            self.running += 1;
        }
        let is_closing = intake.is_closing;
        drop(intake);
        is_closing
    }

    /// Drives a group that was taken from among those that are ready.
    fn drive_ready(&mut self, number: u32) {
        let group = self.groups.get(number as usize);
        let Some(mailbox) = group
            .and_then(Option::as_ref)
            .map(|group| Arc::clone(&group.shared.mailbox))
        else {
            return;
        };
        if mutant::is("turn_begins_late") {
            self.drive(number);
            mailbox.begin_turn();
            return;
        }
        mailbox.begin_turn();
        self.drive(number);
    }

    fn group(&mut self, number: u32) -> Option<&mut Group> {
        self.groups.get_mut(number as usize)?.as_mut()
    }

    /// Drives a group for one turn, and sees to its next.
    fn drive(&mut self, number: u32) {
        let needs = self.turn(number);
        let Some(group) = self.group(number) else {
            return;
        };
        match needs {
            Needs::Tick(_) | Needs::End if group.is_due => {}
            Needs::Tick(due) => {
                group.is_due = true;
                self.due.push(Reverse((due, number)));
            }
            Needs::Nothing => {}
            Needs::End => self.forget(number),
        }
    }

    /// Drives a group for one turn.
    fn turn(&mut self, number: u32) -> Needs {
        let Some(group) = self.groups.get(number as usize).and_then(Option::as_ref) else {
            return Needs::End;
        };
        let shared = &group.shared;
        // A group alone shares with nobody.
        let mut pass = (self.running > 1).then_some(&mut self.pass);
        let (mut needs, mut failed) = (Needs::End, None);
        let outcome = shared.driver.drive(1, |driver| {
            let more = driver.drive(pass.as_deref_mut());
            needs = if driver.core.is_asleep() {
                Needs::Nothing
            } else {
                Needs::Tick(driver.due)
            };
            failed.clone_from(&driver.failed);
            more
        });
        if let Some(reason) = failed {
            if let Some(driver) = shared.driver.take() {
                self.running -= 1;
                shared.mailbox.close(&reason);
                // Others do not wait for its log and its state machine.
                threads::spawn(driver.stop(reason));
            }
            return Needs::End;
        }
        match outcome {
            DriveOutcome::Done => needs,
            DriveOutcome::More => {
                if shared.mailbox.mark_ready() {
                    self.again.push(number);
                }
                needs
            }
            // A caller drives. It looks again, and sees that it is time.
            DriveOutcome::Taken => Needs::Tick(Instant::now() + group.tick),
            DriveOutcome::Empty => Needs::End,
        }
    }

    /// Frees the number of a group that has ended, for a later one. It must be in [`due`](Self::due) no more.
    fn forget(&mut self, number: u32) {
        if let Some(group) = self.groups.get_mut(number as usize) {
            *group = None;
        }
        self.handle.intake.lock().free.push(number);
    }

    /// Lets others of the runtime have their turn, after some groups.
    async fn breathe(&mut self, driven: usize) {
        if driven.is_multiple_of(GROUPS_PER_TURN) {
            self.pass.end();
            tokio::task::yield_now().await;
        }
    }
}
