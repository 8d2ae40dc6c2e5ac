//! Mutual TLS: TLS 1.3 by rustls, both sides with certificates of the cluster's own authority.

use crate::connect::{BoxRead, BoxWrite, ByteStream};
use crate::error::TransportError;
use crate::proto::{CertificateFault, HandshakeError};
use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, SliceReader, Tag};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, ServerConfig, version,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// How much is read from the socket at once: four records.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// What a node shows, and whom it believes.
///
/// A certificate belongs to node 7 of cluster `prod` if one of its subject alternative names is the DNS name
/// [`node_name(7, "prod")`](node_name). Both sides check it: who dials, that it reached the node it wanted; who
/// accepts, that the peer is who it says. Each connection is checked in full: sessions are never resumed.
/// [`Transport::set_identity`](crate::Transport::set_identity) gives a running node another one.
#[derive(Clone)]
pub struct TlsIdentity {
    client: TlsConnector,
    server: TlsAcceptor,
    chain: Arc<[CertificateDer<'static>]>,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// The name that the certificate of a node must have: `node-7.prod`.
///
/// ```
/// assert_eq!(perf_transport::node_name(7, "prod"), "node-7.prod");
/// ```
#[must_use]
pub fn node_name(node: u64, cluster: &str) -> String {
    format!("node-{node}.{cluster}")
}

impl TlsIdentity {
    /// From PEM texts: the authority's certificates, this node's chain with its own certificate first, and its private
    /// key.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] if a text has no certificate or key, or they do not fit.
    pub fn from_pem(
        authority: &[u8],
        chain: &[u8],
        private_key: &[u8],
    ) -> Result<Self, TransportError> {
        Self::from_pem_with_crl(authority, chain, private_key, &[])
    }

    /// The same with certificate revocation lists in PEM: of peers, and of the authorities between, certificates in one
    /// of them are refused. A list that is out of date still counts, and an authority without a list has revoked
    /// nothing.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub fn from_pem_with_crl(
        authority: &[u8],
        chain: &[u8],
        private_key: &[u8],
        crl: &[u8],
    ) -> Result<Self, TransportError> {
        let key = private_key_of(private_key)?;
        let chain = certificates(chain, "certificate chain")?;
        let mut roots = RootCertStore::empty();
        for root in certificates(authority, "authority")? {
            roots
                .add(root)
                .map_err(|error| wrong("authority", &error))?;
        }
        let revoked: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(crl).collect();
        let revoked = revoked.map_err(|error| wrong("revocation list", &error))?;
        if revoked.is_empty() && !crl.is_empty() {
            return Err(wrong("revocation list", &"no list in the PEM text"));
        }
        let roots = Arc::new(roots);
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .with_crls(revoked.clone())
                .allow_unknown_revocation_status()
                .build()
                .map_err(|error| wrong("authority", &error))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(revoked)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| wrong("authority", &error))?;
        let verifier = Arc::clone(&servers);
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong("versions", &error))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong("certificate and key", &error))?;
        // A resumed session is not checked: a certificate that has expired, or was revoked since, would go on being
        // accepted.
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong("versions", &error))?
            .with_client_cert_verifier(Arc::clone(&clients))
            .with_single_cert(chain.clone(), key)
            .map_err(|error| wrong("certificate and key", &error))?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            client: TlsConnector::from(Arc::new(client)),
            server: TlsAcceptor::from(Arc::new(server)),
            chain: chain.into(),
            servers,
            clients,
        })
    }

    /// Whether other nodes that believe the same authority would take this for `node` of `cluster` now.
    pub(crate) fn check(&self, node: u64, cluster: &str) -> Result<(), TransportError> {
        let own = PeerCertificate {
            chain: Arc::clone(&self.chain),
        };
        let is_sound = self
            .check_peer(&own, Side::Dialled, (node, cluster))
            .and_then(|()| self.check_peer(&own, Side::Accepted, (node, cluster)))
            .and_then(|()| own.is_of(node, cluster));
        is_sound.map_err(|error| TransportError::Configuration {
            reason: format!("this node's own certificate would be refused: {error}"),
        })
    }

    /// Whether the certificate of a connected peer would be accepted now.
    pub(crate) fn check_peer(
        &self,
        peer: &PeerCertificate,
        side: Side,
        (node, cluster): (u64, &str),
    ) -> Result<(), HandshakeError> {
        let name = server_name(node, cluster)?;
        let Some((first, others)) = peer.chain.split_first() else {
            return Err(certificate(&"there is none"));
        };
        let now = UnixTime::now();
        let checked = match side {
            Side::Accepted => self
                .clients
                .verify_client_cert(first, others, now)
                .map(drop),
            Side::Dialled => {
                let checked = self
                    .servers
                    .verify_server_cert(first, others, &name, &[], now);
                checked.map(drop)
            }
        };
        checked.map_err(|error| rustls_error(&error))
    }

    /// Encrypts a dialled stream, and checks that the other side is `node` of `cluster`.
    pub(crate) async fn connect(
        &self,
        stream: Box<dyn ByteStream>,
        node: u64,
        cluster: &str,
    ) -> Result<(Box<dyn ByteStream>, PeerCertificate), HandshakeError> {
        let name = server_name(node, cluster)?;
        let stream = self.client.connect(name, read_ahead(stream)).await;
        let stream = stream.map_err(|error| io_error(&error))?;
        let peer = PeerCertificate::of(stream.get_ref().1.peer_certificates())?;
        Ok((Box::new(TlsStream::from(stream)), peer))
    }

    /// Encrypts an accepted stream. The peer has a certificate of the authority then; whose is checked by
    /// [`PeerCertificate::is_of`]. `spoken` is called when the first bytes have come.
    pub(crate) async fn accept(
        &self,
        stream: Box<dyn ByteStream>,
        spoken: impl FnOnce(),
    ) -> Result<(Box<dyn ByteStream>, PeerCertificate), HandshakeError> {
        let mut stream = read_ahead(stream);
        let first = stream.fill_buf().await;
        if first.map_err(|error| io_error(&error))?.is_empty() {
            return Err(HandshakeError::Refused {
                reason: "it closed the connection".to_owned(),
            });
        }
        spoken();
        let stream = self.server.accept(stream).await;
        let stream = stream.map_err(|error| io_error(&error))?;
        let peer = PeerCertificate::of(stream.get_ref().1.peer_certificates())?;
        Ok((Box::new(TlsStream::from(stream)), peer))
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity")
    }
}

/// Who of a connection dialled the other, by what this node did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Dialled,
    Accepted,
}

/// The certificate that a peer has proven to have, and those that sign it.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificate {
    chain: Arc<[CertificateDer<'static>]>,
}

impl PeerCertificate {
    fn of(chain: Option<&[CertificateDer<'_>]>) -> Result<Self, HandshakeError> {
        let chain: Arc<[_]> = chain
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        if chain.is_empty() {
            return Err(certificate(&"the peer showed none"));
        }
        Ok(Self { chain })
    }

    /// Its bytes, DER.
    pub(crate) fn der(&self) -> &[u8] {
        self.chain.first().map_or(&[], |first| first.as_ref())
    }

    /// When it expires, in seconds since 1970; `None` if that cannot be read.
    pub(crate) fn expires_at(&self) -> Option<Duration> {
        not_after(self.der()).ok()
    }

    /// Whether it names this node and cluster.
    pub(crate) fn is_of(&self, node: u64, cluster: &str) -> Result<(), HandshakeError> {
        let name = server_name(node, cluster)?;
        let first = CertificateDer::from(self.der());
        let parsed = ParsedCertificate::try_from(&first).map_err(|error| rustls_error(&error))?;
        verify_server_name(&parsed, &name).map_err(|error| HandshakeError::Certificate {
            fault: CertificateFault::WrongName,
            reason: format!("not of {}: {error}", node_name(node, cluster)),
        })
    }
}

/// The end of a certificate's validity.
fn not_after(certificate: &[u8]) -> der::Result<Duration> {
    let mut reader = SliceReader::new(certificate)?;
    let mut outer = SliceReader::new(AnyRef::decode(&mut reader)?.value())?;
    let mut inner = SliceReader::new(AnyRef::decode(&mut outer)?.value())?;
    // A version, if it is said; number, algorithm and issuer.
    if Tag::peek(&inner)?.is_context_specific() {
        AnyRef::decode(&mut inner)?;
    }
    for _ in 0..3 {
        AnyRef::decode(&mut inner)?;
    }
    let mut validity = SliceReader::new(AnyRef::decode(&mut inner)?.value())?;
    AnyRef::decode(&mut validity)?;
    match Tag::peek(&validity)? {
        Tag::UtcTime => UtcTime::decode(&mut validity).map(|time| time.to_unix_duration()),
        _ => GeneralizedTime::decode(&mut validity).map(|time| time.to_unix_duration()),
    }
}

fn private_key_of(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TransportError> {
    let has = |text: &str| {
        pem.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
        let reason = "it is encrypted: decrypt it first, for example with `openssl pkey`";
        return Err(wrong("private key", &reason));
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| wrong("private key", &error))
}

fn server_name(node: u64, cluster: &str) -> Result<ServerName<'static>, HandshakeError> {
    ServerName::try_from(node_name(node, cluster)).map_err(|error| certificate(&error))
}

fn certificates(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| wrong(what, &error))?;
    if found.is_empty() {
        return Err(wrong(what, &"no certificate in the PEM text"));
    }
    Ok(found)
}

fn wrong(what: &str, error: &dyn fmt::Display) -> TransportError {
    TransportError::Configuration {
        reason: format!("{what}: {error}"),
    }
}

fn certificate(error: &dyn fmt::Display) -> HandshakeError {
    HandshakeError::Certificate {
        fault: CertificateFault::Other,
        reason: error.to_string(),
    }
}

fn rustls_error(error: &Error) -> HandshakeError {
    use CertificateError as Wrong;
    let fault = match error {
        Error::InvalidCertificate(wrong) => match wrong {
            Wrong::Expired | Wrong::ExpiredContext { .. } => CertificateFault::Expired,
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => CertificateFault::NotYetValid,
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
                CertificateFault::WrongName
            }
            Wrong::UnknownIssuer | Wrong::BadSignature => CertificateFault::UnknownAuthority,
            Wrong::Revoked => CertificateFault::Revoked,
            _ => CertificateFault::Other,
        },
        Error::NoCertificatesPresented => CertificateFault::Missing,
        // The other side says so, of this node's certificate.
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => CertificateFault::Expired,
            AlertDescription::CertificateRevoked => CertificateFault::Revoked,
            AlertDescription::UnknownCA => CertificateFault::UnknownAuthority,
            AlertDescription::CertificateRequired => CertificateFault::Missing,
            _ => CertificateFault::Other,
        },
        _ => CertificateFault::Other,
    };
    HandshakeError::Certificate {
        fault,
        reason: error.to_string(),
    }
}

/// What the system or rustls said while hands were shaken.
pub(crate) fn io_error(error: &io::Error) -> HandshakeError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.map_or_else(|| certificate(error), rustls_error)
}

/// Whether an error of a stream is one of the encryption.
pub(crate) fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Error>())
}

/// What is under the encryption: rustls asks for 4 KiB at a time, which would be 16 system calls for 64 KiB.
type ReadAhead = BufReader<Box<dyn ByteStream>>;

fn read_ahead(stream: Box<dyn ByteStream>) -> ReadAhead {
    BufReader::with_capacity(READ_AHEAD_BYTES, stream)
}

impl ByteStream for TlsStream<ReadAhead> {
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = tokio::io::split(*self);
        (Box::new(read), Box::new(write))
    }
}
