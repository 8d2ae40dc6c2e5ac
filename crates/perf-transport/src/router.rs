//! Which handler a message goes to, and how urgent a method is.

use crate::body::Body;
use crate::error::Rejection;
use crate::items::ItemSender;
use crate::message::{Message, MessageRef, Reply};
use crate::priority::Priority;
use crate::proto::MethodName;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = Result<Bytes, Rejection>> + Send>>;
type Inline = dyn Fn(&Message, &mut Reply<'_>) -> Result<(), Rejection> + Send + Sync;
type OneWay = dyn Fn(Message) + Send + Sync;
pub(crate) type OneWayRef = dyn Fn(MessageRef<'_>) + Send + Sync;
pub(crate) type Spawned = dyn Fn(Message) -> HandlerFuture + Send + Sync;
type Streamed = dyn Fn(Message, Body) -> HandlerFuture + Send + Sync;
type Watch = dyn Fn(Message, ItemSender) -> HandlerFuture + Send + Sync;
type Exchange = dyn Fn(Message, Body, ItemSender) -> HandlerFuture + Send + Sync;

#[derive(Clone)]
pub(crate) enum Handler {
    Inline(Arc<Inline>),
    OneWay(Arc<OneWay>),
    OneWayRef(Arc<OneWayRef>),
    Spawned(Arc<Spawned>),
    Streamed(Arc<Streamed>),
    Watch(Arc<Watch>),
    Exchange(Arc<Exchange>),
    /// An inline or one-way handler with a layer around it: polled once in the connection's task, and only then
    /// spawned.
    #[cfg(feature = "tower")]
    Now(Arc<Spawned>),
}

/// Handlers by service and method, and the table of priorities.
///
/// | | runs | for |
/// |---|---|---|
/// | [`inline`](Self::inline) | in the connection's task, between two reads | short work: look-ups, counters, state snapshots. It must not block |
/// | [`one_way`](Self::one_way) | the same | messages without a reply: hand them to a queue |
/// | [`one_way_ref`](Self::one_way_ref) | the same | small messages without a reply, many of them |
/// | [`spawned`](Self::spawned) | in a task of its own | everything that waits |
/// | [`streamed`](Self::streamed) | in a task of its own, with the body as it arrives | snapshots |
/// | [`watch`](Self::watch) | in a task of its own, answers item by item | events, lists, downloads |
/// | [`exchange`](Self::exchange) | in a task of its own, both at once | sessions, replication |
///
/// A request without a handler is answered `NotFound`; a one-way message without one is dropped and counted. A one-way
/// message may also go to an inline or spawned handler, whose reply is then dropped. The method `*` stands for all
/// methods of a service that have no handler of their own. A handler that panics answers `Internal`, and the connection
/// goes on.
///
/// ```
/// use perf_transport::{Priority, Rejection, RejectionCode, Router};
///
/// let router = Router::new()
///     .inline("vm", "status", |_message, reply| {
///         reply.put_slice(b"running");
///         Ok(())
///     })
///     .spawned("vm", "create", |message| async move {
///         match message.payload().is_empty() {
///             true => Err(Rejection::new(RejectionCode::Invalid, "no name")),
///             false => Ok(message.into_payload()),
///         }
///     })
///     .one_way("raft", "append", |message| drop(message))
///     .with_priority("audit", "*", Priority::High);
/// assert_eq!(router.priority("raft", "append"), Priority::Critical);
/// assert_eq!(router.priority("audit", "any"), Priority::High);
/// ```
#[derive(Clone, Default)]
pub struct Router {
    handlers: HashMap<MethodName, Handler>,
    priorities: HashMap<MethodName, Priority>,
    cancellable: HashSet<MethodName>,
    limits: HashMap<MethodName, usize>,
    fallback: Option<Handler>,
}

/// Stands for every method.
const ANY: &str = "*";

impl Router {
    /// No handlers, and the origin's table of priorities.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, service: &str, method: &str, handler: Handler) -> Self {
        // A name that no peer can send needs no handler.
        if let Some(name) = MethodName::new(service, method) {
            crate::names::intern(&name);
            self.handlers.insert(name, handler);
        }
        self
    }

    /// A handler that runs in the connection's task. It must not block: the connection waits for it.
    #[must_use]
    pub fn inline(
        self,
        service: &str,
        method: &str,
        handler: impl Fn(&Message, &mut Reply<'_>) -> Result<(), Rejection> + Send + Sync + 'static,
    ) -> Self {
        self.with(service, method, Handler::Inline(Arc::new(handler)))
    }

    /// A handler of messages without a reply. It runs in the connection's task and must not block.
    #[must_use]
    pub fn one_way(
        self,
        service: &str,
        method: &str,
        handler: impl Fn(Message) + Send + Sync + 'static,
    ) -> Self {
        self.with(service, method, Handler::OneWay(Arc::new(handler)))
    }

    /// A handler of messages without a reply that looks at them where they arrived, and counts their memory only if it
    /// keeps it ([`MessageRef::shared_payload`]): samples, counts, log lines. It runs in the connection's task and must
    /// not block. For small messages that are many.
    #[must_use]
    pub fn one_way_ref(
        self,
        service: &str,
        method: &str,
        handler: impl Fn(MessageRef<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.with(service, method, Handler::OneWayRef(Arc::new(handler)))
    }

    /// A handler that runs in a task of its own. It runs to its end though the caller waits no longer, unless it is one
    /// [with cancellation](Self::with_cancellation).
    #[must_use]
    pub fn spawned<F>(
        self,
        service: &str,
        method: &str,
        handler: impl Fn(Message) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Bytes, Rejection>> + Send + 'static,
    {
        let boxed = move |message| -> HandlerFuture { Box::pin(handler(message)) };
        self.with(service, method, Handler::Spawned(Arc::new(boxed)))
    }

    /// A handler of requests whose body arrives in chunks. It runs in a task of its own.
    #[must_use]
    pub fn streamed<F>(
        self,
        service: &str,
        method: &str,
        handler: impl Fn(Message, Body) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Bytes, Rejection>> + Send + 'static,
    {
        let boxed = move |message, body| -> HandlerFuture { Box::pin(handler(message, body)) };
        self.with(service, method, Handler::Streamed(Arc::new(boxed)))
    }

    /// A handler that answers item by item: watches of what changes, long lists, downloads. It runs in a task of its
    /// own. The caller has each item when it was sent, and the end, or the rejection, when the handler returns.
    ///
    /// It is dropped at its next `await` when the caller has given the answer up, as [with
    /// cancellation](Self::with_cancellation): a watch that waits for the next event would run for ever otherwise.
    ///
    /// ```
    /// # use perf_transport::Router;
    /// let router = Router::new().watch("vm", "count", |_message, mut answer| async move {
    ///     for number in 0..3_u8 {
    ///         // An error says that the caller has given the answer up.
    ///         if answer.send(vec![number]).await.is_err() {
    ///             break;
    ///         }
    ///     }
    ///     Ok(())
    /// });
    /// ```
    #[must_use]
    pub fn watch<F>(
        self,
        service: &str,
        method: &str,
        handler: impl Fn(Message, ItemSender) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Rejection>> + Send + 'static,
    {
        let boxed = move |message, answer| -> HandlerFuture {
            let handled = handler(message, answer);
            Box::pin(async move { handled.await.map(|()| Bytes::new()) })
        };
        self.with(service, method, Handler::Watch(Arc::new(boxed)))
    }

    /// A handler that reads items ([`Body::next_item`]) and answers item by item, both at once. As with
    /// [`watch`](Self::watch) it runs in a task of its own, and is dropped when the caller has given the answer up.
    #[must_use]
    pub fn exchange<F>(
        self,
        service: &str,
        method: &str,
        handler: impl Fn(Message, Body, ItemSender) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Rejection>> + Send + 'static,
    {
        let boxed = move |message, body, answer| -> HandlerFuture {
            let handled = handler(message, body, answer);
            Box::pin(async move { handled.await.map(|()| Bytes::new()) })
        };
        self.with(service, method, Handler::Exchange(Arc::new(boxed)))
    }

    /// A spawned handler for everything that has none: for a node that forwards.
    #[must_use]
    pub fn fallback<F>(mut self, handler: impl Fn(Message) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Bytes, Rejection>> + Send + 'static,
    {
        let boxed = move |message| -> HandlerFuture { Box::pin(handler(message)) };
        self.fallback = Some(Handler::Spawned(Arc::new(boxed)));
        self
    }

    /// Puts a layer around all handlers there are so far, the fallback among them: authorisation by origin and method,
    /// limits, timing. Layers that are put later are farther outside. A layer of `tower` fits if its service takes
    /// [`Request`](crate::Request) and gives [`Bytes`] or a [`Rejection`].
    ///
    /// Inline and one-way handlers stay in the connection's task, and messages stay in their order, as long as what the
    /// layer makes is ready when it is first polled; where it waits, it goes on in a task of its own. Each costs some
    /// allocations then. Routers without layers pay nothing.
    ///
    /// ```
    /// # #[cfg(feature = "tower")] {
    /// use perf_transport::{HandlerService, Rejection, RejectionCode, Request, Router};
    /// use tower::service_fn;
    /// use tower::layer::layer_fn;
    /// use tower_service::Service;
    ///
    /// let only_node_1 = layer_fn(|inner: HandlerService| {
    ///     service_fn(move |request: Request| {
    ///         let mut inner = inner.clone();
    ///         async move {
    ///             match request.message.from() {
    ///                 1 => inner.call(request).await,
    ///                 _ => Err(Rejection::new(RejectionCode::Forbidden, "only node 1 may")),
    ///             }
    ///         }
    ///     })
    /// });
    /// let router = Router::new().inline("vm", "stop", |_, _| Ok(())).layer(only_node_1);
    /// # }
    /// ```
    #[cfg(feature = "tower")]
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: tower_layer::Layer<crate::middleware::HandlerService>,
        L::Service: tower_service::Service<crate::middleware::Request, Response = Bytes, Error = Rejection>
            + Clone
            + Send
            + Sync
            + 'static,
        <L::Service as tower_service::Service<crate::middleware::Request>>::Future: Send + 'static,
    {
        let around = |handler: &mut Handler| {
            *handler = crate::middleware::layered(handler.clone(), &layer);
        };
        self.handlers.values_mut().for_each(around);
        self.fallback.iter_mut().for_each(around);
        self
    }

    /// Sets the priority of a method, or with `*` of all methods of a service that have none of their own.
    #[must_use]
    pub fn with_priority(mut self, service: &str, method: &str, priority: Priority) -> Self {
        if let Some(name) = MethodName::new(service, method) {
            self.priorities.insert(name, priority);
        }
        self
    }

    /// The priority of a method: as set, else by [`Priority::from_service_method`].
    #[must_use]
    pub fn priority(&self, service: &str, method: &str) -> Priority {
        self.find(&self.priorities, service, method)
            .copied()
            .unwrap_or_else(|| Priority::from_service_method(service, method))
    }

    /// Lets requests of a method, or with `*` of all methods of a service, be stopped: their spawned or streamed
    /// handler is dropped, at its next `await`, when the caller has given up. That is when the caller drops its
    /// [`Call`](crate::Call), its deadline passes, or the connection is lost. Without it handlers run to their end.
    ///
    /// For work that may be left half done at each `await`: reads, waiting for a turn or for an event, fetching and
    /// computing. A handler that changes several things, one after the other, rather finishes; or it spawns that part.
    ///
    /// ```
    /// use perf_transport::Router;
    /// use tokio::time::{Duration, sleep};
    ///
    /// let router = Router::new()
    ///     .spawned("vm", "wait_until_running", |message| async move {
    ///         sleep(Duration::from_secs(3600)).await;
    ///         Ok(message.into_payload())
    ///     })
    ///     .with_cancellation("vm", "wait_until_running");
    /// ```
    #[must_use]
    pub fn with_cancellation(mut self, service: &str, method: &str) -> Self {
        self.cancellable.extend(MethodName::new(service, method));
        self
    }

    /// Sets how many requests of a method, or with `*` of each method of a service, may run in spawned or streamed
    /// handlers at once for one connection, in the place of
    /// [`Config::handlers_per_method_max`](crate::Config::handlers_per_method_max). 0 counts as 1.
    ///
    /// Further requests with spawned handlers wait, and do not hold up other methods. More than may wait are answered
    /// [`Busy`](crate::RejectionCode::Busy), as requests with a body are at once.
    #[must_use]
    pub fn with_limit(mut self, service: &str, method: &str, handlers_max: usize) -> Self {
        if let Some(name) = MethodName::new(service, method) {
            self.limits.insert(name, handlers_max.max(1));
        }
        self
    }

    pub(crate) fn limit(&self, name: &MethodName) -> Option<usize> {
        self.find(&self.limits, name.service(), name.method())
            .copied()
    }

    pub(crate) fn is_cancellable(&self, name: &MethodName) -> bool {
        let any = MethodName::new(name.service(), ANY);
        self.cancellable.contains(name) || any.is_some_and(|any| self.cancellable.contains(&any))
    }

    fn find<'a, T>(
        &self,
        table: &'a HashMap<MethodName, T>,
        service: &str,
        method: &str,
    ) -> Option<&'a T> {
        let get = |method| MethodName::new(service, method).and_then(|name| table.get(&name));
        get(method).or_else(|| get(ANY))
    }

    /// Under which service and method a name is recorded: those that its handler was given for. Peers choose the names
    /// that a handler of `*` or the fallback gets, and would make series by that.
    #[cfg(feature = "metrics")]
    pub(crate) fn recorded<'a>(&self, name: &'a MethodName) -> Option<(&'a str, &'a str)> {
        let (service, method) = (name.service(), name.method());
        let has = |method| {
            MethodName::new(service, method).is_some_and(|name| self.handlers.contains_key(&name))
        };
        if has(method) {
            Some((service, method))
        } else if has(ANY) {
            Some((service, ANY))
        } else {
            self.fallback.as_ref().map(|_| (ANY, ANY))
        }
    }

    pub(crate) fn handler(&self, name: &MethodName) -> Option<Handler> {
        self.find(&self.handlers, name.service(), name.method())
            .or(self.fallback.as_ref())
            .cloned()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<String> = self.handlers.keys().map(ToString::to_string).collect();
        names.sort();
        f.debug_struct("Router")
            .field("handlers", &names)
            .finish_non_exhaustive()
    }
}
