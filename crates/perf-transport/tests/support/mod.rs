//! What several tests need: two nodes on loopback, a cluster's certificates.
#![allow(dead_code, reason = "each test uses some of it")]

use perf_transport::{Builder, Config, Router, Security, Transport};
use std::time::Duration;

/// So long nothing here may take. Generous: it only ends tests that hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Fails instead of hanging.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it takes much too long")
}

/// Waits until something is so.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn plain(node: u64) -> Builder {
    Transport::builder(node, "test", Security::InsecurePlaintext)
}

/// Node 2 with these handlers, and node 1 which knows it.
pub(crate) async fn pair(router: Router, config: Config) -> (Transport, Transport) {
    let server = plain(2)
        .router(router)
        .config(config.clone())
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("loopback can be listened on");
    let client = plain(1).config(config).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    (client, server)
}

pub(crate) fn address(server: &Transport) -> String {
    server.address().expect("it listens").to_owned()
}

#[cfg(feature = "tls")]
pub(crate) mod certificates {
    use perf_transport::{TlsIdentity, node_name};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    /// An authority, and what it signs.
    pub(crate) struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        pub(crate) fn new() -> Self {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).expect("signs").pem();
            let issuer = Issuer::new(params, key);
            Self { pem, issuer }
        }

        pub(crate) fn pem(&self) -> &str {
            &self.pem
        }

        pub(crate) fn issue(&self, names: Vec<String>) -> (String, String) {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(names).expect("names");
            let certificate = params.signed_by(&key, &self.issuer).expect("signs");
            (certificate.pem(), key.serialize_pem())
        }

        pub(crate) fn identity(&self, node: u64, cluster: &str) -> TlsIdentity {
            let (chain, key) = self.issue(vec![node_name(node, cluster)]);
            TlsIdentity::from_pem(self.pem.as_bytes(), chain.as_bytes(), key.as_bytes())
                .expect("sound")
        }
    }
}
