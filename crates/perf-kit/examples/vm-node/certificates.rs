//! Certificates for a cluster on one machine, and how the naive node uses them.
//!
//! A real cluster has an authority of its own and gives each node its certificate by a secure way; what a
//! certificate must say is the same: the DNS name `node-<id>.<cluster>`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use perf_kit::transport::{TlsIdentity, node_name};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The name of the cluster in all certificates.
pub(crate) const CLUSTER: &str = "vm";

/// The name of a node in its certificate.
pub(crate) fn name(node: u64) -> String {
    node_name(node, CLUSTER)
}

/// Makes an authority and a certificate for each node, as PEM files in a directory that has none.
///
/// # Errors
///
/// One of the files is there: an authority that is replaced would leave a running cluster without its certificates. Nothing
/// is written then.
pub(crate) fn make(directory: &Path, nodes: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let nodes: Vec<u64> = nodes.into_iter().collect();
    let names = nodes
        .iter()
        .flat_map(|node| [format!("node-{node}.pem"), format!("node-{node}.key")]);
    for name in std::iter::once("authority.pem".to_owned()).chain(names) {
        let path = directory.join(name);
        anyhow::ensure!(
            !path.exists(),
            "{} is there already, and nothing was written: choose another directory, or remove the files in this one",
            path.display()
        );
    }
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    fs::write(directory.join("authority.pem"), authority.pem())?;
    for node in nodes {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name(node)])?.signed_by(&key, &authority)?;
        fs::write(
            directory.join(format!("node-{node}.pem")),
            certificate.pem(),
        )?;
        let path = directory.join(format!("node-{node}.key"));
        write_secret(&path, &key.serialize_pem())?;
    }
    Ok(())
}

/// Writes a new file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

/// A node's files.
#[derive(Debug)]
pub(crate) struct Identity {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Identity {
    /// Reads what [`make`] wrote.
    pub(crate) fn read(directory: &Path, node: u64) -> io::Result<Self> {
        let read = |name: String| -> io::Result<Vec<u8>> {
            let path: PathBuf = directory.join(name);
            fs::read(&path).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot read {}: {error}", path.display()),
                )
            })
        };
        Ok(Self {
            authority: read("authority.pem".to_owned())?,
            certificate: read(format!("node-{node}.pem"))?,
            key: read(format!("node-{node}.key"))?,
        })
    }

    /// For `perf-transport`.
    pub(crate) fn transport(&self) -> anyhow::Result<TlsIdentity> {
        Ok(TlsIdentity::from_pem(
            &self.authority,
            &self.certificate,
            &self.key,
        )?)
    }

    /// For the naive node: the same checks, by hand.
    pub(crate) fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider())
            .build()
            .map_err(io::Error::other)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.private_key()?)
            .map_err(io::Error::other)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// The other side of [`acceptor`](Self::acceptor).
    pub(crate) fn connector(&self) -> io::Result<TlsConnector> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.private_key()?)
            .map_err(io::Error::other)?;
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn roots(&self) -> io::Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&self.authority) {
            roots
                .add(root.map_err(io::Error::other)?)
                .map_err(io::Error::other)?;
        }
        Ok(Arc::new(roots))
    }

    fn chain(&self) -> io::Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)
    }

    fn private_key(&self) -> io::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.key).map_err(io::Error::other)
    }
}

fn provider() -> Arc<tokio_rustls::rustls::crypto::CryptoProvider> {
    Arc::new(tokio_rustls::rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_certificates_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        make(directory.path(), 1..=2).expect("it is empty");
        let read = |name: &str| fs::read(directory.path().join(name)).expect("it was written");
        let before = (read("authority.pem"), read("node-2.key"));
        let again = make(directory.path(), 2..=3).expect_err("node 2 has one");
        assert!(again.to_string().contains("authority.pem"), "{again}");
        assert_eq!(before, (read("authority.pem"), read("node-2.key")));
        assert!(!directory.path().join("node-3.key").exists());
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_may_read_a_key() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory can be made");
        make(directory.path(), 1..=1).expect("it is empty");
        let file = fs::metadata(directory.path().join("node-1.key")).expect("it was written");
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }
}
