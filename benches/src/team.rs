//! Threads that work at once, for the cases whose subject is contention.

use std::any::Any;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::case::Run;

/// A member's work: performs the given number of operations.
pub type Member = Box<dyn FnMut(u64) + Send>;

/// A companion's work: one action, repeated with pauses for as long as the members are busy.
pub type Companion = Box<dyn FnMut() + Send>;

/// Two threads that perform the same operation on something they share.
///
/// `make` is called once per thread. The results are added up as [`summed`](crate::case::summed) does it.
pub fn pair<F>(make: impl Fn() -> F) -> Run
where
    F: FnMut() -> u64 + Send + 'static,
{
    let member = |_| -> Member {
        let mut own = Apart(make());
        Box::new(move |iters| {
            let Apart(operation) = &mut own;
            let mut sum = 0_u64;
            for _ in 0..iters {
                sum = sum.wrapping_add(operation());
            }
            black_box(sum);
        })
    };
    Team::sharing((0..2).map(member).collect()).into_run()
}

/// A member's own state, on cache lines of its own: where the allocator happens to put it must not decide whether
/// the members slow each other down.
#[derive(Debug)]
#[repr(align(128))]
pub struct Apart<T>(pub T);

/// Spins at the start of a batch before giving the core away: there may be fewer cores than threads.
const SPINS_BEFORE_YIELD: u32 = 200;

/// Portions of a batch per member that shares it: few enough that taking one costs nothing beside its
/// work, many enough that the members end at nearly the same time.
const PORTIONS_PER_MEMBER: u64 = 64;

/// Operations that teams performed beyond the `iters` their [`Run`] was called with: with `n` members
/// a batch performs `n * iters` of them. The allocation counter divides by the sum.
static OPERATIONS_BEYOND: AtomicU64 = AtomicU64::new(0);

/// Operations performed beyond those that were asked for, since the process started.
pub(crate) fn operations_beyond() -> u64 {
    OPERATIONS_BEYOND.load(Ordering::Relaxed)
}

/// Persistent threads that start each batch together.
///
/// Make it in a path's `prepare` and turn it into the path's [`Run`]: a batch of `iters` lets the
/// members perform `iters` operations each, and takes from the first start to the last end, so that
/// the time per operation is that of one thread. Between batches every thread is blocked. The
/// threads end when the [`Run`] is dropped.
///
/// Members that contend for something are made by [`Team::sharing`]: a lock is seldom fair, and
/// with a fixed number for each, the last one would have it to itself for the rest of its own.
///
/// Each member is bound to a core of its own as long as there are enough: the system often starts
/// new threads on one core, where they take turns, and then there is no contention to measure.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use perf_benches::team::{Member, Team};
///
/// let hits = Arc::new(AtomicU64::new(0));
/// let member = || -> Member {
///     let hits = Arc::clone(&hits);
///     Box::new(move |iters| {
///         for _ in 0..iters {
///             hits.fetch_add(1, Ordering::Relaxed);
///         }
///     })
/// };
/// let mut run = Team::sharing(vec![member(), member()]).into_run();
/// run(1_000);
/// assert_eq!(hits.load(Ordering::Relaxed), 2_000);
/// ```
///
/// # Panics
///
/// A batch panics with the member's message when a member panics. Making a team panics when the
/// system gives no more threads.
#[derive(Debug)]
pub struct Team {
    threads: Vec<Thread>,
    members: u64,
    /// The operations of the current batch that nobody has taken yet; `None` when each member has its own.
    shared: Option<Arc<AtomicU64>>,
    /// Every thread of every batch raises it by one; a batch starts when all of its threads have.
    arrived: Arc<AtomicU64>,
    /// What `arrived` will be once every thread of the current batch is there.
    arrived_goal: u64,
    companions_stop: Arc<AtomicBool>,
    ended: Receiver<Ended>,
    ended_sender: SyncSender<Ended>,
}

#[derive(Debug)]
struct Thread {
    /// `None` once the team is being dropped: a closed channel ends the thread.
    orders: Option<SyncSender<Order>>,
    handle: Option<JoinHandle<()>>,
    is_companion: bool,
}

#[derive(Clone, Copy, Debug)]
struct Order {
    iters: u64,
    arrived_goal: u64,
}

/// How a thread's part of a batch ended; the companion's has no span.
type Ended = Result<Option<Span>, String>;

#[derive(Clone, Copy, Debug)]
struct Span {
    start: Instant,
    end: Instant,
}

impl Team {
    /// Starts one thread per member; each performs `iters` operations of every batch.
    ///
    /// For members with different parts, such as the two ends of a queue.
    #[must_use]
    pub fn new(members: Vec<Member>) -> Self {
        Self::start(members, None)
    }

    /// Starts one thread per member; whoever is ready takes the next few of a batch's operations.
    ///
    /// All members are busy until the batch ends, however unfair what they contend for is. A member
    /// is called several times per batch.
    #[must_use]
    pub fn sharing(members: Vec<Member>) -> Self {
        Self::start(members, Some(Arc::new(AtomicU64::new(0))))
    }

    fn start(members: Vec<Member>, shared: Option<Arc<AtomicU64>>) -> Self {
        let (ended_sender, ended) = sync_channel(members.len() + 1);
        let mut team = Self {
            threads: Vec::new(),
            members: members.len() as u64,
            shared,
            arrived: Arc::new(AtomicU64::new(0)),
            arrived_goal: 0,
            companions_stop: Arc::new(AtomicBool::new(false)),
            ended,
            ended_sender,
        };
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        for (number, mut member) in members.into_iter().enumerate() {
            let arrived = Arc::clone(&team.arrived);
            let shared = team.shared.clone();
            let mut core = cores.get(number).copied();
            team.spawn(false, move |order| {
                if let Some(core) = core.take() {
                    // Where threads cannot be bound, they run where the system puts them.
                    core_affinity::set_for_current(core);
                }
                meet(&arrived, order.arrived_goal);
                let start = Instant::now();
                match &shared {
                    None => member(order.iters),
                    Some(left) => {
                        let portion = (order.iters / PORTIONS_PER_MEMBER).max(1);
                        while let Some(count) = take(left, portion) {
                            member(count);
                        }
                    }
                }
                let end = Instant::now();
                Some(Span { start, end })
            });
        }
        team
    }

    /// Adds a thread that acts beside the members during each batch, at most once per `pause`.
    ///
    /// It is there before the members start and its time does not count: a writer that updates
    /// what the members read.
    #[must_use]
    pub fn with_companion(mut self, pause: Duration, mut companion: Companion) -> Self {
        let arrived = Arc::clone(&self.arrived);
        let stop = Arc::clone(&self.companions_stop);
        self.spawn(true, move |order| {
            companion();
            meet(&arrived, order.arrived_goal);
            while !stop.load(Ordering::Acquire) {
                companion();
                thread::park_timeout(pause);
            }
            None
        });
        self
    }

    /// Makes the team a path's [`Run`].
    #[must_use]
    pub fn into_run(mut self) -> Run {
        Box::new(move |iters| self.batch(iters))
    }

    fn spawn(
        &mut self,
        is_companion: bool,
        mut work: impl FnMut(Order) -> Option<Span> + Send + 'static,
    ) {
        let (orders, inbox) = sync_channel::<Order>(1);
        let ended = self.ended_sender.clone();
        let handle = thread::Builder::new()
            .name(format!("team-{}", self.threads.len()))
            .spawn(move || {
                while let Ok(order) = inbox.recv() {
                    let outcome = catch_unwind(AssertUnwindSafe(|| work(order)));
                    let failed = outcome.is_err();
                    let sent = ended.send(outcome.map_err(|panic| message(panic.as_ref())));
                    if failed || sent.is_err() {
                        return;
                    }
                }
            })
            .expect("a benchmark cannot go on without its threads");
        self.threads.push(Thread {
            orders: Some(orders),
            handle: Some(handle),
            is_companion,
        });
    }

    /// Runs one batch and returns the time from the first start to the last end.
    fn batch(&mut self, iters: u64) -> Duration {
        self.companions_stop.store(false, Ordering::Release);
        if let Some(left) = &self.shared {
            left.store(self.members * iters, Ordering::Release);
        }
        self.arrived_goal += self.threads.len() as u64;
        let order = Order {
            iters,
            arrived_goal: self.arrived_goal,
        };
        for thread in &self.threads {
            if let Some(orders) = &thread.orders {
                // A thread that is gone has said why in `ended`, where `span` meets it.
                let _ = orders.send(order);
            }
        }
        // Folded and not collected: a batch must not allocate, since the path's allocations are counted.
        let mut whole: Option<Span> = None;
        for _ in 0..self.members {
            whole = match (whole, self.span()) {
                (Some(one), Some(other)) => Some(Span {
                    start: one.start.min(other.start),
                    end: one.end.max(other.end),
                }),
                (one, other) => one.or(other),
            };
        }
        self.stop_companions();
        OPERATIONS_BEYOND.fetch_add(self.members.saturating_sub(1) * iters, Ordering::Relaxed);
        whole.map_or(Duration::ZERO, |span| span.end - span.start)
    }

    /// Ends the companions' part of the batch and waits for it.
    fn stop_companions(&self) {
        self.companions_stop.store(true, Ordering::Release);
        let companions = self.threads.iter().filter(|thread| thread.is_companion);
        for handle in companions.filter_map(|companion| companion.handle.as_ref()) {
            handle.thread().unpark();
            self.span();
        }
    }

    /// Waits for one thread's end of the batch.
    fn span(&self) -> Option<Span> {
        match self.ended.recv() {
            Ok(Ok(span)) => span,
            Ok(Err(panic)) => panic!("a member of the team panicked: {panic}"),
            Err(_) => unreachable!("the team itself holds a sender"),
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.companions_stop.store(true, Ordering::Release);
        for thread in &mut self.threads {
            thread.orders = None;
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                handle.thread().unpark();
                // Its panic, if any, was reported by the batch it happened in.
                let _ = handle.join();
            }
        }
    }
}

/// Waits until every thread of the batch is here, so that all start within nanoseconds and not
/// within the tens of microseconds that waking a thread takes.
fn meet(arrived: &AtomicU64, goal: u64) {
    arrived.fetch_add(1, Ordering::AcqRel);
    let mut spins = 0_u32;
    while arrived.load(Ordering::Acquire) < goal {
        spins += 1;
        if spins < SPINS_BEFORE_YIELD {
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

/// Takes up to `most` operations of those that are left.
fn take(left: &AtomicU64, most: u64) -> Option<u64> {
    let rest = |left: u64| (left > 0).then(|| left.saturating_sub(most));
    let before = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, rest);
    before.ok().map(|before| before.min(most))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_work_at_the_same_time_and_the_time_spans_them() {
        // Each waits for the other inside its work: only members that run together get through.
        let inside = Arc::new(AtomicU64::new(0));
        let member = |sleep_ms| -> Member {
            let inside = Arc::clone(&inside);
            Box::new(move |_| {
                let goal = inside.fetch_add(1, Ordering::AcqRel) / 2 * 2 + 2;
                while inside.load(Ordering::Acquire) < goal {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(sleep_ms));
            })
        };
        let mut run = Team::new(vec![member(1), member(20)]).into_run();
        for _ in 0..3 {
            assert!(run(1) >= Duration::from_millis(20));
        }
        assert_eq!(inside.load(Ordering::Acquire), 6);
    }

    #[test]
    fn members_that_share_do_all_the_work_and_the_faster_does_more() {
        let member = |done: &Arc<AtomicU64>, pause_us| -> Member {
            let done = Arc::clone(done);
            Box::new(move |iters| {
                thread::sleep(Duration::from_micros(pause_us * iters));
                done.fetch_add(iters, Ordering::Relaxed);
            })
        };
        let (fast, slow) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut run = Team::sharing(vec![member(&fast, 1), member(&slow, 1_000)]).into_run();
        run(300);
        let (fast, slow) = (fast.load(Ordering::Relaxed), slow.load(Ordering::Relaxed));
        assert_eq!(fast + slow, 600);
        assert!(fast > slow, "{fast} and {slow}");
    }

    #[test]
    fn a_companion_acts_during_batches_only() {
        let acts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&acts);
        let member: Member = Box::new(|_| thread::sleep(Duration::from_millis(20)));
        let companion = Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let mut run = Team::new(vec![member])
            .with_companion(Duration::from_millis(1), companion)
            .into_run();
        assert!(run(1) >= Duration::from_millis(20));
        let during = acts.load(Ordering::Relaxed);
        assert!(during >= 2, "acted {during} times");
        thread::sleep(Duration::from_millis(20));
        assert_eq!(acts.load(Ordering::Relaxed), during);
        run(1);
        assert!(acts.load(Ordering::Relaxed) > during);
    }

    #[test]
    fn threads_end_with_the_run() {
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let member: Member = Box::new(move |_| {
            let _ = &held;
        });
        let mut run = Team::new(vec![member]).into_run();
        run(1);
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(run);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    #[should_panic(expected = "a member of the team panicked: out of luck")]
    fn a_members_panic_reaches_the_caller() {
        let lucky: Member = Box::new(|_| ());
        let unlucky: Member = Box::new(|_| panic!("out of luck"));
        Team::new(vec![lucky, unlucky]).into_run()(1);
    }
}
