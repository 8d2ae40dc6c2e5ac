//! Prepares a transport, and starts it.

use crate::accept::{Arrival, MaybeHook};
use crate::config::Config;
use crate::connect::{Connector, Listener};
use crate::error::TransportError;
use crate::event::{Callback, Events, PeerEvent};
use crate::names::NameTable;
use crate::proto::Local;
use crate::router::Router;
use crate::security::Security;
use crate::shell::{accept, ticker};
use crate::stats::Counts;
use parking_lot::{Mutex, RwLock};
use perf_atomics::Membership;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::watch;

use super::Inner;
use super::Life;
use super::Transport;
use super::shared::TRANSPORTS;

pub(super) enum ListenOn {
    Nothing,
    Address(String),
    Listener(Box<dyn Listener>),
}

/// Prepares a [`Transport`].
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    pub(super) node: u64,
    pub(super) cluster: String,
    pub(super) security: Security,
    pub(super) config: Config,
    pub(super) router: Router,
    pub(super) connector: Arc<dyn Connector>,
    pub(super) listener: ListenOn,
    pub(super) callback: Option<Arc<Callback>>,
    pub(super) hook: MaybeHook,
    pub(super) peers: Vec<(u64, String)>,
    #[cfg(feature = "metrics")]
    pub(super) metrics: Option<&'static perf_metrics::NodeMetrics>,
    #[cfg(feature = "metrics")]
    pub(super) method_metrics: Option<crate::methods::MethodMetrics>,
}

impl Builder {
    /// Bounds and times.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Handlers of what arrives, and the priorities of what is sent.
    pub fn router(mut self, router: Router) -> Self {
        self.router = router;
        self
    }

    /// Accepts connections at an address, `host:port`, or on Unix `unix:/path`; port 0 lets the system choose. Without
    /// it the node only dials.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listener = ListenOn::Address(address.into());
        self
    }

    /// Accepts connections from a listener of the caller's.
    pub fn listener(mut self, listener: impl Listener) -> Self {
        self.listener = ListenOn::Listener(Box::new(listener));
        self
    }

    /// Dials through a connector of the caller's instead of TCP.
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.connector = Arc::new(connector);
        self
    }

    /// Makes a peer known.
    pub fn peer(mut self, peer: u64, address: impl Into<String>) -> Self {
        self.peers.push((peer, address.into()));
        self
    }

    /// Called with everything that happens to connections, in the task where it happens: it must not block.
    pub fn on_event(mut self, callback: impl Fn(&PeerEvent) + Send + Sync + 'static) -> Self {
        self.callback = Some(Arc::new(callback));
        self
    }

    /// Asked about each peer that has proven who it is, before it is let in; `Err` refuses it, with a text that it
    /// gets. The answer must come within [`Config::handshake_timeout`], the rest of the handshake included. Many peers
    /// may be asked about at once, up to [`Config::inbound_max`].
    ///
    /// ```
    /// # use perf_transport::{Security, Transport};
    /// let builder = Transport::builder(2, "prod", Security::InsecurePlaintext)
    ///     .on_accept(|arrival| async move {
    ///         match arrival.is_duplicate {
    ///             true => Err("this node is here already".to_owned()),
    ///             false => Ok(()),
    ///         }
    ///     });
    /// ```
    pub fn on_accept<F>(mut self, hook: impl Fn(Arrival) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.hook = Some(Arc::new(move |arrival| Box::pin(hook(arrival))));
        self
    }

    /// Records into a node's catalogue.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, metrics: &'static perf_metrics::NodeMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Records calls, errors, latency, bytes and what is in flight, for each service and method.
    #[cfg(feature = "metrics")]
    pub fn method_metrics(mut self, metrics: crate::methods::MethodMetrics) -> Self {
        self.method_metrics = Some(metrics);
        self
    }

    /// Starts the transport on the current tokio runtime, which must have time and IO enabled.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] if the configuration cannot work, [`TransportError::Io`] if the address cannot
    /// be listened on.
    pub async fn start(mut self) -> Result<Transport, TransportError> {
        self.config.check()?;
        if self.cluster.is_empty() || self.cluster.len() > 128 {
            return Err(TransportError::Configuration {
                reason: "the cluster's name must have 1 to 128 bytes".to_owned(),
            });
        }
        self.security.check(self.node, &self.cluster)?;
        let io = |error: std::io::Error| TransportError::Io {
            action: "listen",
            reason: error.to_string(),
        };
        let listen_on = std::mem::replace(&mut self.listener, ListenOn::Nothing);
        let listener: Option<Box<dyn Listener>> = match listen_on {
            ListenOn::Nothing => None,
            ListenOn::Address(address) => Some(crate::connect::listen(&address).await.map_err(io)?),
            ListenOn::Listener(listener) => Some(listener),
        };
        let address = listener.as_ref().map(|listener| listener.address());
        let peers = std::mem::take(&mut self.peers);
        let inner = Arc::new(self.into_inner(address));
        let transport = Transport {
            _life: Arc::new(Life(Arc::clone(&inner))),
            inner: Arc::clone(&inner),
        };
        for (peer, address) in peers {
            transport.add_peer(peer, address);
        }
        if let Some(listener) = listener {
            let (alive, accepting) = (inner.alive(), Arc::clone(&inner));
            tokio::spawn(async move {
                accept::run(accepting, listener).await;
                drop(alive);
            });
        }
        if inner.config.busy_poll {
            tokio::spawn(stay_awake(inner.stop.subscribe()));
        }
        // With its runtime the transport ends: nothing would move on, and nothing would time out.
        let life = Life(Arc::clone(&inner));
        tokio::spawn(async move {
            ticker::run(inner).await;
            drop(life);
        });
        Ok(transport)
    }

    /// What the tasks share. Called on the runtime that they will run on.
    pub(super) fn into_inner(self, address: Option<String>) -> Inner {
        let local = Local {
            cluster: self.cluster,
            node: self.node,
            incarnation: foldhash::quality::RandomState::default().hash_one(self.node),
            frame_bytes_max: self.config.frame_bytes_max,
            stream_window_bytes: self.config.stream_window_bytes,
            streams_max: self.config.streams_max,
            checksum: self.config.checksum && self.security.is_plain(),
        };
        Inner {
            number: TRANSPORTS.fetch_add(1, Ordering::Relaxed),
            counts: Counts {
                #[cfg(feature = "metrics")]
                metrics: self.metrics.map(crate::metrics::Recorder::new),
                ..Counts::default()
            },
            config: self.config,
            local,
            security: RwLock::new(self.security),
            #[cfg(feature = "tls")]
            identity_era: AtomicU64::new(0),
            hook: self.hook,
            sources: Mutex::default(),
            tasks: AtomicUsize::new(0),
            router: Arc::new(self.router),
            #[cfg(feature = "metrics")]
            method_metrics: self.method_metrics,
            connector: self.connector,
            events: Events::new(self.callback),
            runtime: tokio::runtime::Handle::current(),
            stop: watch::Sender::new(false),
            next_connection: AtomicU64::new(1),
            unhandled: Arc::new(AtomicU64::new(0)),
            names: NameTable::new(),
            peers: Membership::new(),
            all: Mutex::new(Vec::new()),
            inbound: Mutex::default(),
            now_ms: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            address,
        }
    }
}

/// Keeps the runtime from sleeping until the transport shuts down, see [`Config::busy_poll`].
async fn stay_awake(stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        tokio::task::yield_now().await;
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("node", &self.node)
            .field("cluster", &self.cluster)
            .field("security", &self.security)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
