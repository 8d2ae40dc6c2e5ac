//! One computation per key, however many ask at once.
//!
//! A caller that misses waits for the computation of the key's hash that is under way, or begins one and leads it. The
//! leader looks into the table a second time, since another computation may have ended between its miss and its
//! beginning; then computes with nothing locked, and puts the value in. If others wait, it settles their flight. A
//! leader that panics or is cancelled abandons it, and every follower starts over: the first of them leads. So do
//! followers whose key only has the hash of the one computed.

use crate::background;
use crate::builder::Loader;
use crate::cache::TtlCache;
use crate::depth;
use crate::entry::{Content, Entry, Failure};
use crate::flight::{Flight, Follower, Outcome};
use crate::shared::{Look, Shared};
use crate::stats::Count;
use crate::store::Joined;
use crate::time::Time;
use std::borrow::Borrow;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, Hash};
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A refresh that failed is tried again after so long, unless `negative_ttl` says otherwise: a second.
const RETRY_NANOS: u64 = 1_000_000_000;

/// The cache of a lead. A caller borrows it, so that misses of many threads do not meet at its reference count.
enum Held<'a, K, V, S, T> {
    Borrowed(&'a Shared<K, V, S, T>),
    Owned(Arc<Shared<K, V, S, T>>),
}

impl<K, V, S, T> Deref for Held<'_, K, V, S, T> {
    type Target = Shared<K, V, S, T>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Borrowed(shared) => shared,
            Self::Owned(shared) => shared,
        }
    }
}

/// The right and duty to compute.
struct Lead<'a, K, V, S, T>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    T: Time,
{
    shared: Held<'a, K, V, S, T>,
    hash: u64,
    number: u64,
    has_ended: bool,
}

impl<K, V, S, T> Lead<'_, K, V, S, T>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    T: Time,
{
    /// Keeps a value, and gives it to all followers.
    fn finish(mut self, key: impl FnOnce() -> K, value: V) {
        // Cloning and weighing may use the cache, and must not wait for this computation then.
        let inside = depth::enter();
        let entry = self.shared.entry(key(), self.hash, value, None);
        drop(inside);
        self.has_ended = true;
        self.shared.land(self.number, entry);
    }

    /// Gives a failure to all followers; keeps it for the negative TTL if there is one and `is_kept`.
    fn fail(mut self, key: impl FnOnce() -> K, failure: Failure, is_kept: bool) {
        let shared = &*self.shared;
        shared.counters.one(Count::Failures);
        let inside = depth::enter();
        let remembers = shared.remembers.as_ref();
        let is_kept = is_kept && remembers.is_none_or(|remembers| remembers(&*failure));
        let ttl = shared.rules.negative_ttl.filter(|_| is_kept);
        let entry = shared.failed_entry(key(), self.hash, failure, ttl.unwrap_or(0));
        drop(inside);
        self.has_ended = true;
        if ttl.is_some() {
            self.shared.land(self.number, entry);
        } else if let Some(flight) = self.shared.store.end(self.hash, self.number) {
            flight.settle(Outcome::Computed(Arc::new(entry)));
        }
    }

    /// Ends a refresh in the background.
    fn refreshed(self, key: K, value: Option<V>) {
        match value {
            Some(value) => self.finish(|| key, value),
            None => self.fail(|| key, Arc::new(Unavailable), false),
        }
    }

    /// The same lead, which owns its cache and so may go to another thread.
    fn owning(mut self, shared: &Arc<Shared<K, V, S, T>>) -> Lead<'static, K, V, S, T> {
        // What is left of `self` has nothing to end.
        self.has_ended = true;
        Lead {
            shared: Held::Owned(Arc::clone(shared)),
            hash: self.hash,
            number: self.number,
            has_ended: false,
        }
    }

    /// Leaves the table as it is: all followers look again.
    fn end(&mut self) {
        self.has_ended = true;
        if let Some(flight) = self.shared.store.end(self.hash, self.number) {
            flight.settle(Outcome::Abandoned);
        }
    }

    /// What it leads to is there already.
    fn cede(mut self) {
        self.end();
    }
}

impl<K, V, S, T> Drop for Lead<'_, K, V, S, T>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    T: Time,
{
    fn drop(&mut self) {
        if !self.has_ended {
            self.shared.counters.one(Count::Abandoned);
            self.end();
        }
    }
}

/// A lead, with what the table holds by now.
type Led<'a, K, V, S, T> = (Lead<'a, K, V, S, T>, Option<Arc<Entry<K, V>>>);

/// What those wait by who wait for another caller already.
type OtherFlight<K, V> = Option<Arc<Flight<K, V>>>;

/// What to do about a miss or a stale value, after the look.
enum Step<'a, K, V, S, T, E>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    T: Time,
{
    Value(Arc<Entry<K, V>>),
    Error(Arc<E>),
    /// Compute; while a stale value may be served, an error falls back to it.
    Compute(Option<Lead<'a, K, V, S, T>>, Option<Arc<Entry<K, V>>>),
    Wait(Follower<K, V>),
    Again,
}

impl<K, V, S, T> TtlCache<K, V, S, T>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
    T: Time,
{
    /// The value of a key. If there is none, `compute` makes it, once for all callers that ask meanwhile.
    ///
    /// | when | then |
    /// |---|---|
    /// | others compute this key | the caller blocks until they have, and gets their value |
    /// | `compute` panics | the panic goes on in this caller; exactly one waiting caller computes next, with its own `compute` |
    /// | the key is invalidated meanwhile | callers from before get the value, it is not kept, and later callers compute anew |
    /// | called inside of a computation, of this cache or another | it never waits: a key that others compute is computed here too, and not kept |
    /// | more than 65 536 wait already | the same |
    /// | stale, within the window | see [`stale_while_revalidate`](crate::CacheBuilder::stale_while_revalidate) |
    ///
    /// A computation that never ends holds up callers that ask for its key, and no others.
    pub fn get_or_compute<Q>(&self, key: &Q, compute: impl FnOnce() -> V) -> V
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
    {
        match self.try_get_or_compute(key, || Ok::<V, Infallible>(compute())) {
            Ok(value) => value,
            Err(never) => match *never {},
        }
    }

    /// [`get_or_compute`](Self::get_or_compute) for a computation that may fail. All waiting callers get its error as it is; with a
    /// [`negative_ttl`](crate::CacheBuilder::negative_ttl) callers within that time get it, too.
    ///
    /// A caller whose error type differs from that of the computation it waits for cannot get its error, and computes next.
    ///
    /// # Errors
    /// What `compute` returned. While a stale value may be served, that is served instead.
    pub fn try_get_or_compute<Q, E>(
        &self,
        key: &Q,
        compute: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, Arc<E>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
        E: Send + Sync + 'static,
    {
        let (hash, mut look) = match self.with_fresh(key, V::clone) {
            Ok(value) => return Ok(value),
            Err((hash, look, _)) => (hash, look),
        };
        let mut is_first = true;
        loop {
            match self.step::<Q, E>(hash, key, look, is_first) {
                Step::Value(entry) => {
                    if let Some(value) = entry.value() {
                        return Ok(value.clone());
                    }
                }
                Step::Error(error) => return Err(error),
                Step::Compute(lead, stale) => {
                    self.shared.counters.one(Count::Computations);
                    let inside = depth::enter();
                    let computed = compute();
                    drop(inside);
                    return finish(key, lead, stale, computed);
                }
                Step::Wait(follower) => {
                    if let Some(result) = settled(key, follower.wait()) {
                        return result;
                    }
                }
                Step::Again => {}
            }
            is_first = false;
            look = self.shared.look(hash, key, None).1;
        }
    }

    /// [`get_or_compute`](Self::get_or_compute) for a task: it waits without blocking the thread, for computations of threads and of tasks alike.
    ///
    /// When the future is dropped before it is ready, exactly one waiting caller computes next. A computation that awaits another task which asks for the same
    /// key cannot be recognised, and waits for itself.
    pub async fn get_or_compute_async<Q, F>(&self, key: &Q, compute: impl FnOnce() -> F) -> V
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
        F: Future<Output = V>,
    {
        let compute = || async { Ok::<V, Infallible>(compute().await) };
        match self.try_get_or_compute_async(key, compute).await {
            Ok(value) => value,
            Err(never) => match *never {},
        }
    }

    /// [`try_get_or_compute`](Self::try_get_or_compute) for a task.
    ///
    /// # Errors
    /// What `compute` returned. While a stale value may be served, that is served instead.
    pub async fn try_get_or_compute_async<Q, E, F>(
        &self,
        key: &Q,
        compute: impl FnOnce() -> F,
    ) -> Result<V, Arc<E>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        let (hash, mut look) = match self.with_fresh(key, V::clone) {
            Ok(value) => return Ok(value),
            Err((hash, look, _)) => (hash, look),
        };
        let mut is_first = true;
        loop {
            match self.step::<Q, E>(hash, key, look, is_first) {
                Step::Value(entry) => {
                    if let Some(value) = entry.value() {
                        return Ok(value.clone());
                    }
                }
                Step::Error(error) => return Err(error),
                Step::Compute(lead, stale) => {
                    self.shared.counters.one(Count::Computations);
                    let inside = depth::enter();
                    let mut future = pin!(compute());
                    drop(inside);
                    let computed = poll_fn(|context| {
                        let _inside = depth::enter();
                        future.as_mut().poll(context)
                    });
                    let computed = computed.await;
                    return finish(key, lead, stale, computed);
                }
                Step::Wait(follower) => {
                    if let Some(result) = settled(key, follower.await) {
                        return result;
                    }
                }
                Step::Again => {}
            }
            is_first = false;
            look = self.shared.look(hash, key, None).1;
        }
    }

    fn step<'a, Q, E>(
        &'a self,
        hash: u64,
        key: &Q,
        look: Look<K, V>,
        is_first: bool,
    ) -> Step<'a, K, V, S, T, E>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
        E: Send + Sync + 'static,
    {
        // A read counts once, by what it found first.
        let count = |count| {
            if is_first {
                self.shared.counters.one(count);
            }
        };
        match look {
            Look::Fresh(entry) => {
                count(Count::Hits);
                return Step::Value(entry);
            }
            Look::Stale(entry) => {
                count(Count::StaleHits);
                return self.revalidate(hash, key, entry);
            }
            Look::Failed(failure) => {
                if let Ok(error) = failure.downcast::<E>() {
                    count(Count::NegativeHits);
                    return Step::Error(error);
                }
            }
            Look::Nothing => {}
        }
        count(Count::Misses);
        match self.lead(hash, false) {
            Err(flight) => self.follow(hash, flight),
            Ok((lead, None)) => Step::Compute(Some(lead), None),
            Ok((lead, Some(entry))) => {
                // Comparing keys, and the listener that is told of an ended entry, must not wait for this computation.
                let inside = depth::enter();
                let look = self.shared.classify(entry, key);
                drop(inside);
                match look {
                    Look::Fresh(_) | Look::Stale(_) => {
                        lead.cede();
                        Step::Again
                    }
                    Look::Failed(failure) if failure.is::<E>() => {
                        lead.cede();
                        Step::Again
                    }
                    Look::Failed(_) | Look::Nothing => Step::Compute(Some(lead), None),
                }
            }
        }
    }

    /// Waits for the computation of another caller, or computes without a lead: inside of a computation, and where too
    /// many wait already.
    #[cold]
    fn follow<E>(&self, hash: u64, flight: OtherFlight<K, V>) -> Step<'_, K, V, S, T, E> {
        if depth::is_inside() {
            return Step::Compute(None, None);
        }
        let store = &self.shared.store;
        let flight = flight.or_else(|| store.follow(hash, Arc::new(Flight::new())));
        let Some(flight) = flight else {
            return Step::Again;
        };
        let follower = flight.try_enter();
        follower.map_or(Step::Compute(None, None), Step::Wait)
    }

    /// One caller computes a stale value anew; all others get it as it is.
    fn revalidate<'a, Q, E>(
        &'a self,
        hash: u64,
        key: &Q,
        stale: Arc<Entry<K, V>>,
    ) -> Step<'a, K, V, S, T, E>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
    {
        let now = self.shared.precise();
        if now < stale.retry_at.load(Ordering::Relaxed) || self.shared.store.is_computed(hash) {
            return Step::Value(stale);
        }
        let Ok((lead, held)) = self.lead(hash, self.shared.loader.is_some()) else {
            return Step::Value(stale);
        };
        if !held.is_some_and(|held| Arc::ptr_eq(&held, &stale)) {
            // Replaced or gone meanwhile.
            lead.cede();
            return Step::Value(stale);
        }
        let pause = self.shared.rules.negative_ttl.unwrap_or(RETRY_NANOS);
        stale
            .retry_at
            .store(now.saturating_add(pause), Ordering::Relaxed);
        let Some(loader) = &self.shared.loader else {
            return Step::Compute(Some(lead), Some(stale));
        };
        let inside = depth::enter();
        let key = key.to_owned();
        let lead = lead.owning(&self.shared);
        let is_taken = match loader {
            Loader::Blocking(load) => {
                let load = Arc::clone(load);
                background::submit(Box::new(move || {
                    lead.shared.counters.one(Count::Computations);
                    let inside = depth::enter();
                    let value = load(&key);
                    drop(inside);
                    lead.refreshed(key, value);
                }))
            }
            Loader::Task(load, spawn) => background::permit().is_some_and(|permit| {
                let load = Arc::clone(load);
                spawn(Box::pin(async move {
                    let _permit = permit;
                    lead.shared.counters.one(Count::Computations);
                    let inside = depth::enter();
                    let mut loading = load(&key);
                    drop(inside);
                    let value = poll_fn(|context| {
                        let _inside = depth::enter();
                        loading.as_mut().poll(context)
                    });
                    let value = value.await;
                    lead.refreshed(key, value);
                }));
                true
            }),
        };
        drop(inside);
        if !is_taken {
            // The next reader asks again.
            stale.retry_at.store(now, Ordering::Relaxed);
        }
        Step::Value(stale)
    }

    /// Begins a computation. Where another caller computes: the flight of those who wait for that one already.
    fn lead(&self, hash: u64, is_refresh: bool) -> Result<Led<'_, K, V, S, T>, OtherFlight<K, V>> {
        match self.shared.store.join(hash, is_refresh) {
            Joined::Under(flight) => Err(flight),
            Joined::Lead(number, held) => {
                let lead = Lead {
                    shared: Held::Borrowed(&*self.shared),
                    hash,
                    number,
                    has_ended: false,
                };
                Ok((lead, held))
            }
        }
    }
}

/// The error of a refresh that said no.
#[derive(Debug)]
struct Unavailable;

/// A follower's result; `None` if it must ask again, because the computation was abandoned, was that of another key, or
/// its error is of another type.
fn settled<K, V, Q, E>(key: &Q, outcome: Outcome<K, V>) -> Option<Result<V, Arc<E>>>
where
    K: Borrow<Q>,
    V: Clone,
    Q: ?Sized + Eq,
    E: Send + Sync + 'static,
{
    let Outcome::Computed(entry) = outcome else {
        return None;
    };
    if entry.key.borrow() != key {
        return None;
    }
    match &entry.content {
        Content::Value(value) => Some(Ok(value.clone())),
        Content::Failed(failure) => Failure::clone(failure).downcast::<E>().ok().map(Err),
    }
}

/// Ends a computation that has returned.
fn finish<K, V, Q, S, T, E>(
    key: &Q,
    lead: Option<Lead<'_, K, V, S, T>>,
    stale: Option<Arc<Entry<K, V>>>,
    computed: Result<V, E>,
) -> Result<V, Arc<E>>
where
    K: Borrow<Q> + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    Q: ?Sized + ToOwned<Owned = K>,
    T: Time,
    E: Send + Sync + 'static,
{
    match (computed, lead) {
        (Ok(value), Some(lead)) => {
            let inside = depth::enter();
            let result = value.clone();
            drop(inside);
            lead.finish(|| key.to_owned(), value);
            Ok(result)
        }
        (Ok(value), None) => Ok(value),
        (Err(error), lead) => {
            let error = Arc::new(error);
            if let Some(lead) = lead {
                lead.fail(
                    || key.to_owned(),
                    Arc::clone(&error) as Failure,
                    stale.is_none(),
                );
            }
            // Better an old answer than none, while it is allowed.
            let fallback = stale.as_ref().and_then(|stale| stale.value().cloned());
            fallback.ok_or(error)
        }
    }
}
