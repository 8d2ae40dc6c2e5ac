//! A few threads that refresh stale values, shared by all caches of the process; and how many tasks do.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// A refresh beyond these is not made: the value stays stale, and the next reader asks again.
const JOBS_MAX: usize = 1024;
/// A refresh that never ends takes one thread of these out of service.
const THREADS_MAX: usize = 4;
/// An idle thread ends after this.
const IDLE_MAX: Duration = Duration::from_secs(10);

struct Pool {
    state: Mutex<State>,
    has_jobs: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static POOL: Pool = Pool {
    state: Mutex::new(State {
        jobs: VecDeque::new(),
        threads: 0,
        idle: 0,
    }),
    has_jobs: Condvar::new(),
};

/// Tasks that refresh, of all caches. Relaxed: the number is all there is to see.
static TASKS: AtomicUsize = AtomicUsize::new(0);

/// The right to be one of [`JOBS_MAX`] tasks that refresh.
pub(crate) struct Permit(());

/// A permit, if one is left.
pub(crate) fn permit() -> Option<Permit> {
    let one_more = |tasks| (tasks < JOBS_MAX).then_some(tasks + 1);
    let before = TASKS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
    before.ok().map(|_| Permit(()))
}

impl Drop for Permit {
    fn drop(&mut self) {
        TASKS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a job soon, or gives up: `false` if there are too many or the system gives no thread. The job is then dropped.
pub(crate) fn submit(job: Job) -> bool {
    let mut state = POOL.state.lock();
    if state.jobs.len() >= JOBS_MAX {
        drop(state);
        drop(job);
        return false;
    }
    let needs_thread = state.idle <= state.jobs.len() && state.threads < THREADS_MAX;
    state.jobs.push_back(job);
    if needs_thread {
        state.threads += 1;
        drop(state);
        let spawned = std::thread::Builder::new()
            .name("perf-cache-refresh".to_owned())
            .spawn(work);
        if spawned.is_err() {
            let mut state = POOL.state.lock();
            state.threads -= 1;
            // With no thread at all nobody would come for the jobs.
            let orphans = if state.threads == 0 {
                std::mem::take(&mut state.jobs)
            } else {
                VecDeque::new()
            };
            drop(state);
            let is_kept = orphans.is_empty();
            drop(orphans);
            return is_kept;
        }
        return true;
    }
    drop(state);
    POOL.has_jobs.notify_one();
    true
}

fn work() {
    let mut state = POOL.state.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            // A panic was the job's: what it held has been dropped, and says so to those who wait for it.
            let _ = catch_unwind(AssertUnwindSafe(job));
            state = POOL.state.lock();
            continue;
        }
        state.idle += 1;
        let outcome = POOL.has_jobs.wait_for(&mut state, IDLE_MAX);
        state.idle -= 1;
        if outcome.timed_out() && state.jobs.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}
