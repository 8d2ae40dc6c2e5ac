//! Mutual TLS: TLS 1.3 by rustls, both sides with certificates of the cluster's own authority.

use crate::connect::{BoxRead, BoxWrite, ByteStream};
use crate::error::TransportError;
use crate::proto::HandshakeError;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::fmt;
use std::sync::Arc;
use tokio::io::BufReader;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// How much is read from the socket at once: four records.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// What a node shows, and whom it believes.
///
/// A certificate belongs to node 7 of cluster `prod` if one of its subject alternative names is the DNS name [`node_name(7, "prod")`](node_name). Both sides
/// check it: who dials, that it reached the node it wanted; who accepts, that the peer is who it says.
#[derive(Clone)]
pub struct TlsIdentity {
    client: TlsConnector,
    server: TlsAcceptor,
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
    /// From PEM texts: the authority's certificates, this node's chain with its own certificate first, and its private key.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] if a text has no certificate or key, or they do not fit.
    pub fn from_pem(
        authority: &[u8],
        chain: &[u8],
        private_key: &[u8],
    ) -> Result<Self, TransportError> {
        let key = PrivateKeyDer::from_pem_slice(private_key)
            .map_err(|error| wrong("private key", &error))?;
        let chain = certificates(chain, "certificate chain")?;
        let mut roots = RootCertStore::empty();
        for root in certificates(authority, "authority")? {
            roots
                .add(root)
                .map_err(|error| wrong("authority", &error))?;
        }
        let roots = Arc::new(roots);
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong("versions", &error))?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong("certificate and key", &error))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| wrong("authority", &error))?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong("versions", &error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| wrong("certificate and key", &error))?;
        Ok(Self {
            client: TlsConnector::from(Arc::new(client)),
            server: TlsAcceptor::from(Arc::new(server)),
        })
    }

    /// Encrypts a dialled stream, and checks that the other side is `node` of `cluster`.
    pub(crate) async fn connect(
        &self,
        stream: Box<dyn ByteStream>,
        node: u64,
        cluster: &str,
    ) -> Result<Box<dyn ByteStream>, HandshakeError> {
        let name = server_name(node, cluster)?;
        let stream = self.client.connect(name, read_ahead(stream)).await;
        let stream = stream.map_err(|error| certificate(&error))?;
        Ok(Box::new(TlsStream::from(stream)))
    }

    /// Encrypts an accepted stream. The peer has a certificate of the authority then; whose is checked by [`PeerCertificate::is_of`].
    pub(crate) async fn accept(
        &self,
        stream: Box<dyn ByteStream>,
    ) -> Result<(Box<dyn ByteStream>, PeerCertificate), HandshakeError> {
        let stream = self.server.accept(read_ahead(stream)).await;
        let stream = stream.map_err(|error| certificate(&error))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let first = chain.first().cloned().map(CertificateDer::into_owned);
        let first = first.ok_or_else(|| certificate(&"the peer showed none"))?;
        Ok((Box::new(TlsStream::from(stream)), PeerCertificate { first }))
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity")
    }
}

/// The certificate that an accepted peer has proven to have.
#[derive(Debug)]
pub(crate) struct PeerCertificate {
    first: CertificateDer<'static>,
}

impl PeerCertificate {
    /// Whether it names this node and cluster.
    pub(crate) fn is_of(&self, node: u64, cluster: &str) -> Result<(), HandshakeError> {
        let name = server_name(node, cluster)?;
        let parsed =
            ParsedCertificate::try_from(&self.first).map_err(|error| certificate(&error))?;
        verify_server_name(&parsed, &name)
            .map_err(|error| certificate(&format!("not of {}: {error}", node_name(node, cluster))))
    }
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
        reason: error.to_string(),
    }
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
