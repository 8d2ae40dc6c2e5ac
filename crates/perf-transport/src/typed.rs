//! Services written once: a trait for the server and a client, with messages of prost.

use crate::envelope::Envelope;
use crate::error::{Rejection, RejectionCode, TransportError};
use crate::items::{Answer, ItemSender};
use crate::message::Message;
use crate::priority::Priority;
use crate::transport::Transport;
use crate::{Body, Call};
use bytes::Bytes;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Sends typed items: see [`ItemSender`].
pub struct TypedSender<M> {
    items: ItemSender,
    kind: PhantomData<fn(M)>,
}

impl<M: prost::Message> TypedSender<M> {
    /// Sends an item, and waits while its reader has a window full of unread ones.
    ///
    /// # Errors
    /// As [`ItemSender::send`].
    pub async fn send(&mut self, item: &M) -> Result<(), TransportError> {
        self.items.send(item.encode_to_vec()).await
    }

    /// Ends the caller's side of an exchange, as [`ItemSender::finish`] does.
    ///
    /// # Errors
    /// As there.
    pub async fn finish(self) -> Result<(), TransportError> {
        self.items.finish().await
    }
}

impl<M> fmt::Debug for TypedSender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items.fmt(f)
    }
}

/// An answer of typed items: see [`Answer`].
#[must_use = "dropping an answer cancels the request"]
pub struct TypedAnswer<M> {
    answer: Answer,
    peer: u64,
    kind: PhantomData<fn() -> M>,
}

impl<M: prost::Message + Default> TypedAnswer<M> {
    /// The next item; `None` when there are no more.
    ///
    /// # Errors
    /// As [`Answer::next`], and [`TransportError::Malformed`] if the item is no message of this type.
    pub async fn next(&mut self) -> Option<Result<M, TransportError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<M, TransportError>>> {
        let decoded = |item: Result<Bytes, _>| item.and_then(|item| decode(self.peer, item));
        self.answer.poll_next(cx).map(|item| item.map(decoded))
    }
}

impl<M: prost::Message + Default> futures_core::Stream for TypedAnswer<M> {
    type Item = Result<M, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        TypedAnswer::poll_next(&mut self, cx)
    }
}

impl<M> fmt::Debug for TypedAnswer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.answer.fmt(f)
    }
}

/// Typed items that a caller sends: see [`Body::next_item`].
pub struct TypedBody<M> {
    body: Body,
    kind: PhantomData<fn() -> M>,
}

impl<M: prost::Message + Default> TypedBody<M> {
    /// The next item; `None` when there are no more.
    ///
    /// # Errors
    /// As [`Body::next_item`], and [`TransportError::Malformed`] if the item is no message of this type.
    pub async fn next(&mut self) -> Option<Result<M, TransportError>> {
        let item = self.body.next_item().await?;
        let peer = self.body.peer();
        Some(item.and_then(|item| decode(peer, item)))
    }
}

impl<M> fmt::Debug for TypedBody<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.body.fmt(f)
    }
}

fn decode<M: prost::Message + Default>(peer: u64, bytes: Bytes) -> Result<M, TransportError> {
    M::decode(bytes).map_err(|_| TransportError::Malformed { peer })
}

/// A call whose reply is a message of a type.
async fn decoded<M: prost::Message + Default>(peer: u64, call: Call) -> Result<M, TransportError> {
    decode(peer, call.await?)
}

/// Where a generated client sends. Used by [`service!`](crate::service); not to be made by hand.
#[derive(Clone, Debug)]
pub struct ServiceClient {
    transport: Transport,
    peer: u64,
}

/// What a service says of one of its methods.
#[derive(Clone, Copy, Debug)]
pub struct MethodOptions {
    /// The service and the method.
    pub name: (&'static str, &'static str),
    /// The priority, if it is not that of the router's table.
    pub priority: Option<Priority>,
    /// How long a call may take, if it is not the configuration that says so.
    pub timeout: Option<Duration>,
}

impl ServiceClient {
    /// Calls to this peer.
    #[must_use]
    pub fn new(transport: &Transport, peer: u64) -> Self {
        Self {
            transport: transport.clone(),
            peer,
        }
    }

    fn envelope<'a>(&self, options: MethodOptions, payload: &'a [u8]) -> Envelope<'a> {
        let (service, method) = options.name;
        let mut envelope = Envelope::new(self.peer, service, method, payload);
        envelope.priority = options.priority;
        envelope.timeout = options.timeout;
        envelope
    }

    /// A request with a reply.
    pub fn call<Q: prost::Message, R: prost::Message + Default>(
        &self,
        options: MethodOptions,
        request: &Q,
    ) -> impl Future<Output = Result<R, TransportError>> + Send + use<Q, R> {
        let payload = request.encode_to_vec();
        decoded(
            self.peer,
            self.transport.call(self.envelope(options, &payload)),
        )
    }

    /// A message without a reply.
    ///
    /// # Errors
    /// As [`Transport::send`].
    pub fn send<Q: prost::Message>(
        &self,
        options: MethodOptions,
        request: &Q,
    ) -> Result<(), TransportError> {
        let payload = request.encode_to_vec();
        let sent = self.transport.send(self.envelope(options, &payload));
        sent.map_err(|undelivered| undelivered.error)
    }

    /// A request that is answered item by item.
    ///
    /// # Errors
    /// As [`Transport::watch`].
    pub fn watch<Q: prost::Message, R: prost::Message + Default>(
        &self,
        options: MethodOptions,
        request: &Q,
    ) -> Result<TypedAnswer<R>, TransportError> {
        let payload = request.encode_to_vec();
        let answer = self.transport.watch(self.envelope(options, &payload))?;
        Ok(self.typed(answer))
    }

    /// A request with items both ways.
    ///
    /// # Errors
    /// As [`Transport::exchange`].
    pub fn exchange<Q: prost::Message, I: prost::Message, R: prost::Message + Default>(
        &self,
        options: MethodOptions,
        request: &Q,
    ) -> Result<(TypedSender<I>, TypedAnswer<R>), TransportError> {
        let payload = request.encode_to_vec();
        let (items, answer) = self.transport.exchange(self.envelope(options, &payload))?;
        let kind = PhantomData;
        Ok((TypedSender { items, kind }, self.typed(answer)))
    }

    fn typed<M>(&self, answer: Answer) -> TypedAnswer<M> {
        TypedAnswer {
            answer,
            peer: self.peer,
            kind: PhantomData,
        }
    }
}

/// What [`service!`](crate::service) puts between bytes and types on the server's side.
#[doc(hidden)]
pub mod __server {
    use super::{
        Body, Bytes, ItemSender, Message, PhantomData, Rejection, RejectionCode, TypedBody,
        TypedSender,
    };

    pub fn request<M: prost::Message + Default>(message: &Message) -> Result<M, Rejection> {
        M::decode(message.payload().clone()).map_err(|_| {
            let text = "the payload is no message of the type that this method takes";
            Rejection::new(RejectionCode::Invalid, text)
        })
    }

    pub fn reply<M: prost::Message>(reply: &M) -> Bytes {
        reply.encode_to_vec().into()
    }

    pub fn sender<M>(items: ItemSender) -> TypedSender<M> {
        TypedSender {
            items,
            kind: PhantomData,
        }
    }

    pub fn body<M>(body: Body) -> TypedBody<M> {
        TypedBody {
            body,
            kind: PhantomData,
        }
    }
}

/// A service, written once: makes a module with a trait for the server (`Service`, registered by `serve`) and a
/// `Client`, with messages of prost 0.14.
///
/// | | the handler | the client |
/// |---|---|---|
/// | `call name(Q) -> R` | returns an `R` or a [`Rejection`] | awaits an `R` |
/// | `send name(Q)` | runs in the connection's task and must not block | sends, at most once |
/// | `watch name(Q) -> R` | sends items of `R` | reads them |
/// | `exchange name(Q, I) -> R` | reads items of `I` and sends items of `R` | the other way round |
///
/// Behind each there may be a `priority` (a [`Priority`]; by default that of the router's table) and a `timeout` (a
/// [`Duration`]; by default the configuration's). Both ends use the same names and priorities, since both are made from
/// this.
///
/// ```
/// use perf_transport::{Message, Rejection, RejectionCode, Router, Security, Transport, TypedSender};
/// use std::time::Duration;
///
/// #[derive(Clone, PartialEq, prost::Message)]
/// pub struct Vm {
///     #[prost(string, tag = "1")]
///     pub name: String,
/// }
///
/// perf_transport::service! {
///     /// Virtual machines of a node.
///     pub mod vms = "vm" {
///         /// Starts one.
///         call start(Vm) -> Vm { priority: High, timeout: Duration::from_secs(2) }
///         /// Those that run.
///         watch list(Vm) -> Vm {}
///     }
/// }
///
/// struct Node;
///
/// impl vms::Service for Node {
///     async fn start(&self, vm: Vm, _message: Message) -> Result<Vm, Rejection> {
///         match vm.name.is_empty() {
///             true => Err(Rejection::new(RejectionCode::Invalid, "a vm needs a name")),
///             false => Ok(vm),
///         }
///     }
///
///     async fn list(&self, vm: Vm, _message: Message, mut answer: TypedSender<Vm>) -> Result<(), Rejection> {
///         let _ = answer.send(&vm).await;
///         Ok(())
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), perf_transport::TransportError> {
/// let router = vms::serve(Router::new(), Node);
/// let server = Transport::builder(2, "prod", Security::InsecurePlaintext)
///     .router(router).listen("127.0.0.1:0").start().await?;
/// let client = Transport::builder(1, "prod", Security::InsecurePlaintext)
///     .peer(2, server.address().unwrap_or_default()).start().await?;
/// let node = vms::Client::new(&client, 2);
/// let vm = Vm { name: "vm-7".to_owned() };
/// assert_eq!(node.start(&vm).await?, vm);
/// let mut all = node.list(&vm)?;
/// assert_eq!(all.next().await, Some(Ok(vm)));
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! service {
    (
        $(#[$about:meta])*
        $visibility:vis mod $module:ident = $service:literal {
            $(
                $(#[$doc:meta])*
                $kind:ident $method:ident ( $request:ty $(, $item:ty)? ) $(-> $reply:ty)?
                { $($option:ident : $value:expr),* $(,)? }
            )*
        }
    ) => {
        $(#[$about])*
        $visibility mod $module {
            #[allow(unused_imports)]
            use super::*;

            /// The service's name on the wire.
            pub const NAME: &str = $service;

            /// What a server of it does. Registered by [`serve`].
            pub trait Service: ::core::marker::Send + ::core::marker::Sync + 'static {
                $(
                    $crate::__service!(@trait [$(#[$doc])*] $kind $method ($request) [$($item)?] [$($reply)?]);
                )*
            }

            /// Calls a node that serves it. Cheap to clone; it keeps the transport alive.
            #[derive(::core::clone::Clone, ::core::fmt::Debug)]
            pub struct Client($crate::ServiceClient);

            impl Client {
                /// A client of this node.
                #[must_use]
                pub fn new(transport: &$crate::Transport, peer: u64) -> Self {
                    Self($crate::ServiceClient::new(transport, peer))
                }

                $(
                    $crate::__service!(
                        @client [$(#[$doc])*] $kind $method ($request) [$($item)?] [$($reply)?]
                        { $($option : $value),* }
                    );
                )*
            }

            /// Handlers for all methods, by `service`.
            #[must_use]
            #[allow(unused_mut, unused_variables)]
            pub fn serve(router: $crate::Router, service: impl Service) -> $crate::Router {
                let service = ::std::sync::Arc::new(service);
                let mut router = router;
                $(
                    let options = $crate::__service!(@options $method { $($option : $value),* });
                    if let ::core::option::Option::Some(priority) = options.priority {
                        router = router.with_priority(NAME, stringify!($method), priority);
                    }
                    let served = ::std::sync::Arc::clone(&service);
                    router = $crate::__service!(@serve $kind $method router served);
                )*
                router
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __service {
    (@options $method:ident { $($option:ident : $value:expr),* }) => {{
        #[allow(unused_mut)]
        let mut options = $crate::MethodOptions {
            name: (NAME, stringify!($method)),
            priority: ::core::option::Option::None,
            timeout: ::core::option::Option::None,
        };
        $($crate::__service!(@option options $option $value);)*
        options
    }};
    (@option $options:ident priority $value:expr) => {{
        #[allow(unused_imports)]
        use $crate::Priority::{Critical, High, Low, Normal};
        $options.priority = ::core::option::Option::Some($value);
    }};
    (@option $options:ident timeout $value:expr) => {
        $options.timeout = ::core::option::Option::Some($value);
    };

    (@trait [$($doc:tt)*] call $method:ident ($request:ty) [] [$reply:ty]) => {
        $($doc)*
        fn $method(
            &self,
            request: $request,
            message: $crate::Message,
        ) -> impl ::core::future::Future<
            Output = ::core::result::Result<$reply, $crate::Rejection>,
        > + ::core::marker::Send;
    };
    (@trait [$($doc:tt)*] send $method:ident ($request:ty) [] []) => {
        $($doc)*
        fn $method(&self, request: $request, message: $crate::Message);
    };
    (@trait [$($doc:tt)*] watch $method:ident ($request:ty) [] [$reply:ty]) => {
        $($doc)*
        fn $method(
            &self,
            request: $request,
            message: $crate::Message,
            answer: $crate::TypedSender<$reply>,
        ) -> impl ::core::future::Future<
            Output = ::core::result::Result<(), $crate::Rejection>,
        > + ::core::marker::Send;
    };
    (@trait [$($doc:tt)*] exchange $method:ident ($request:ty) [$item:ty] [$reply:ty]) => {
        $($doc)*
        fn $method(
            &self,
            request: $request,
            message: $crate::Message,
            items: $crate::TypedBody<$item>,
            answer: $crate::TypedSender<$reply>,
        ) -> impl ::core::future::Future<
            Output = ::core::result::Result<(), $crate::Rejection>,
        > + ::core::marker::Send;
    };

    (@client [$($doc:tt)*] call $method:ident ($request:ty) [] [$reply:ty] $options:tt) => {
        $($doc)*
        ///
        /// # Errors
        /// What a call can fail with.
        pub async fn $method(
            &self,
            request: &$request,
        ) -> ::core::result::Result<$reply, $crate::TransportError> {
            self.0.call($crate::__service!(@options $method $options), request).await
        }
    };
    (@client [$($doc:tt)*] send $method:ident ($request:ty) [] [] $options:tt) => {
        $($doc)*
        ///
        /// # Errors
        /// As of `Transport::send`: nothing was sent.
        pub fn $method(
            &self,
            request: &$request,
        ) -> ::core::result::Result<(), $crate::TransportError> {
            self.0.send($crate::__service!(@options $method $options), request)
        }
    };
    (@client [$($doc:tt)*] watch $method:ident ($request:ty) [] [$reply:ty] $options:tt) => {
        $($doc)*
        ///
        /// # Errors
        /// As of `Transport::watch`.
        pub fn $method(
            &self,
            request: &$request,
        ) -> ::core::result::Result<$crate::TypedAnswer<$reply>, $crate::TransportError> {
            self.0.watch($crate::__service!(@options $method $options), request)
        }
    };
    (@client [$($doc:tt)*] exchange $method:ident ($request:ty) [$item:ty] [$reply:ty] $options:tt) => {
        $($doc)*
        ///
        /// # Errors
        /// As of `Transport::exchange`.
        pub fn $method(
            &self,
            request: &$request,
        ) -> ::core::result::Result<
            ($crate::TypedSender<$item>, $crate::TypedAnswer<$reply>),
            $crate::TransportError,
        > {
            self.0.exchange($crate::__service!(@options $method $options), request)
        }
    };

    (@serve call $method:ident $router:ident $service:ident) => {
        $router.spawned(NAME, stringify!($method), move |message| {
            let service = ::std::sync::Arc::clone(&$service);
            async move {
                let request = $crate::__server::request(&message)?;
                let reply = Service::$method(&*service, request, message).await?;
                ::core::result::Result::Ok($crate::__server::reply(&reply))
            }
        })
    };
    (@serve send $method:ident $router:ident $service:ident) => {
        $router.inline(NAME, stringify!($method), move |message, _reply| {
            let request = $crate::__server::request(message)?;
            Service::$method(&*$service, request, message.clone());
            ::core::result::Result::Ok(())
        })
    };
    (@serve watch $method:ident $router:ident $service:ident) => {
        $router.watch(NAME, stringify!($method), move |message, answer| {
            let service = ::std::sync::Arc::clone(&$service);
            async move {
                let request = $crate::__server::request(&message)?;
                let answer = $crate::__server::sender(answer);
                Service::$method(&*service, request, message, answer).await
            }
        })
    };
    (@serve exchange $method:ident $router:ident $service:ident) => {
        $router.exchange(NAME, stringify!($method), move |message, items, answer| {
            let service = ::std::sync::Arc::clone(&$service);
            async move {
                let request = $crate::__server::request(&message)?;
                let items = $crate::__server::body(items);
                let answer = $crate::__server::sender(answer);
                Service::$method(&*service, request, message, items, answer).await
            }
        })
    };
}
