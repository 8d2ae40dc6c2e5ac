//! Look-ups of names: how many the system is asked for at once.

use crate::primitive::mutant;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Names that are looked up at once. The system's resolver blocks a thread of the runtime's pool for each, for many
/// seconds where no name server answers; the pool has 512 threads for all that the node does.
const LOOKUPS_MAX: usize = 16;

static LOOKUPS: LazyLock<Arc<Lookups>> = LazyLock::new(|| Lookups::new(LOOKUPS_MAX));

/// The addresses of `host:port`. Dropping the future does not end the look-up: the next one for the same name waits for
/// its outcome.
///
/// # Errors
/// Those of the system's resolver.
pub(crate) async fn addresses(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    LOOKUPS.find(address, system).await
}

fn system(address: &str) -> io::Result<Vec<SocketAddr>> {
    std::net::ToSocketAddrs::to_socket_addrs(address).map(Iterator::collect)
}

type Found = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;
/// `None` until the look-up ends. Its sender is dropped if it ends without an outcome.
type Outcome = watch::Receiver<Option<Found>>;

/// Look-ups under way, one for each name: peers dial again long before the resolver gives up.
struct Lookups {
    under_way: Mutex<HashMap<Box<str>, Outcome>>,
    threads: Arc<Semaphore>,
}

/// A look-up that blocks a thread, or will.
struct Lookup {
    lookups: Arc<Lookups>,
    address: Box<str>,
    _thread: OwnedSemaphorePermit,
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.lookups.under_way.lock().remove(&self.address);
    }
}

impl Lookups {
    fn new(threads_max: usize) -> Arc<Self> {
        Arc::new(Self {
            under_way: Mutex::default(),
            threads: Arc::new(Semaphore::new(threads_max)),
        })
    }

    async fn find(
        self: &Arc<Self>,
        address: &str,
        look_up: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        let known = self.under_way.lock().get(address).cloned();
        let known = known.filter(|_| !mutant::is("look_up_for_each_dial"));
        let mut outcome = match known {
            Some(outcome) => outcome,
            None => {
                let thread = Arc::clone(&self.threads).acquire_owned().await;
                self.begin(address, thread.map_err(io::Error::other)?, look_up)
            }
        };
        let found = outcome.wait_for(Option::is_some).await;
        let ended = |_| io::Error::other("the look-up of the name panicked, or its runtime ended");
        match found.map_err(ended)?.clone() {
            Some(Ok(addresses)) => Ok(addresses),
            Some(Err((kind, text))) => Err(io::Error::new(kind, text)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Begins a look-up, unless another one for the same name has begun meanwhile.
    fn begin(
        self: &Arc<Self>,
        address: &str,
        thread: OwnedSemaphorePermit,
        look_up: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> Outcome {
        let mut under_way = self.under_way.lock();
        if let Some(outcome) = under_way.get(address)
            && !mutant::is("look_up_for_each_dial")
        {
            return outcome.clone();
        }
        let (sender, outcome) = watch::channel(None);
        under_way.insert(address.into(), outcome.clone());
        drop(under_way);
        let lookup = Lookup {
            lookups: Arc::clone(self),
            address: address.into(),
            _thread: thread,
        };
        // Dropped by a runtime that ends before it runs.
        tokio::task::spawn_blocking(move || {
            let found = look_up(&lookup.address);
            let found = found.map_err(|error| (error.kind(), error.to_string()));
            // The name is free again before its outcome is known: who asks behind that looks it up anew.
            drop(lookup);
            sender.send_replace(Some(found));
        });
        outcome
    }
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    /// No name server answers, and peers are dialled again and again: a name blocks one thread, and all names together
    /// a few.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn names_that_are_not_found_block_few_threads() {
        let lookups = Lookups::new(3);
        let begun = Arc::new(AtomicUsize::new(0));
        let mut answers = Vec::new();
        for attempt in 0..100 {
            let (answer, answered) = mpsc::channel::<()>();
            answers.push(answer);
            let begun = Arc::clone(&begun);
            let look_up = move |_: &str| {
                begun.fetch_add(1, Ordering::SeqCst);
                // Until all answers are dropped.
                let _ = answered.recv();
                Ok(vec![SocketAddr::from(([127, 0, 0, 1], 7))])
            };
            let name = format!("node-{}:7", attempt % 2);
            let found = lookups.find(&name, look_up);
            let found = tokio::time::timeout(Duration::from_millis(1), found).await;
            assert!(found.is_err(), "{found:?}");
        }
        assert!(begun.load(Ordering::SeqCst) <= 2);
        assert_eq!(lookups.threads.available_permits(), 1);
        let waits = lookups.find("node-0:7", |_| Ok(Vec::new()));
        // In this order: behind the answer it would look the name up anew.
        let (found, ()) = tokio::join!(waits, async { drop(answers) });
        assert_eq!(found.expect("found").len(), 1);
        while lookups.threads.available_permits() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(lookups.under_way.lock().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn errors_are_told_and_forgotten() {
        let lookups = Lookups::new(1);
        let failed = lookups.find("a:1", |_| Err(io::ErrorKind::TimedOut.into()));
        let kind = failed.await.expect_err("it failed").kind();
        assert_eq!(kind, io::ErrorKind::TimedOut);
        let panicked = lookups.find("a:1", |_| panic!("a fault of the resolver"));
        assert!(panicked.await.is_err());
        let found = lookups.find("a:1", |_| Ok(vec![SocketAddr::from(([10, 0, 0, 1], 1))]));
        assert_eq!(found.await.expect("found").len(), 1);
        assert!(addresses("no port").await.is_err());
        assert_eq!(addresses("10.0.0.1:1").await.expect("an address").len(), 1);
    }
}
