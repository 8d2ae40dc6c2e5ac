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
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    };

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
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
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

        /// Valid from so many seconds before now to so many after.
        pub(crate) fn issue_for(&self, name: &str, from: i64, to: i64) -> (String, String) {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(vec![name.to_owned()]).expect("names");
            let now = std::time::SystemTime::now();
            let at = |seconds: i64| {
                let by = std::time::Duration::from_secs(seconds.unsigned_abs());
                if seconds < 0 { now - by } else { now + by }
            };
            params.not_before = at(from).into();
            params.not_after = at(to).into();
            let certificate = params.signed_by(&key, &self.issuer).expect("signs");
            (certificate.pem(), key.serialize_pem())
        }

        /// A certificate of a node with this serial number, and a list that revokes such a number.
        pub(crate) fn issue_numbered(&self, name: &str, serial: u64) -> (String, String) {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(vec![name.to_owned()]).expect("names");
            params.serial_number = Some(serial.into());
            let certificate = params.signed_by(&key, &self.issuer).expect("signs");
            (certificate.pem(), key.serialize_pem())
        }

        pub(crate) fn revoke(&self, serial: u64) -> String {
            let now = std::time::SystemTime::now();
            let day = std::time::Duration::from_secs(86_400);
            let revoked = RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: (now - day).into(),
                next_update: (now + day).into(),
                crl_number: 1_u64.into(),
                issuing_distribution_point: None,
                revoked_certs: vec![revoked],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(&self.issuer)
                .expect("signs")
                .pem()
                .expect("PEM")
        }

        pub(crate) fn identity(&self, node: u64, cluster: &str) -> TlsIdentity {
            let (chain, key) = self.issue(vec![node_name(node, cluster)]);
            TlsIdentity::from_pem(self.pem.as_bytes(), chain.as_bytes(), key.as_bytes())
                .expect("sound")
        }
    }
}

/// A peer that is not of this crate: what it sends is put together by the tests.
pub(crate) mod raw {
    use super::soon;
    use perf_transport::proto::{ConnectionClass, Define, Header, Kind, Local, Welcome};
    use prost::Message;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    pub(crate) fn frame(kind: Kind, (method, id): (u16, u64), payload: &[u8]) -> Vec<u8> {
        let mut header = Header::new(kind, method, id);
        header.length = u32::try_from(payload.len()).expect("short");
        let mut frame = header.encode().to_vec();
        frame.extend_from_slice(payload);
        frame
    }

    pub(crate) fn local(node: u64) -> Local {
        Local {
            cluster: "test".to_owned(),
            node,
            incarnation: node + 1000,
            frame_bytes_max: 1 << 20,
            stream_window_bytes: 1 << 20,
            streams_max: 8,
            checksum: false,
        }
    }

    /// What node `node` says first to node 2.
    pub(crate) fn hello(node: u64) -> Vec<u8> {
        let hello = local(node).hello(2, node, ConnectionClass::Bulk);
        frame(Kind::Hello, (0, 0), &hello.encode_to_vec())
    }

    pub(crate) fn define(number: u16, service: &str, method: &str) -> Vec<u8> {
        let define = Define {
            service: service.to_owned(),
            method: method.to_owned(),
        };
        frame(Kind::Define, (number, 0), &define.encode_to_vec())
    }

    /// Reads one frame: its kind, its id, and its payload.
    pub(crate) async fn read(stream: &mut TcpStream) -> std::io::Result<(u8, u64, Vec<u8>)> {
        let mut header = [0; 16];
        stream.read_exact(&mut header).await?;
        let [a, b, c, d, kind, .., s, t, u, v, w, x, y, z] = header;
        let mut payload = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
        stream.read_exact(&mut payload).await?;
        Ok((kind, u64::from_le_bytes([s, t, u, v, w, x, y, z]), payload))
    }

    /// Connects as node `node`, and is let in.
    pub(crate) async fn connect(node: u64, address: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(&hello(node)).await.expect("it reads");
        let (kind, ..) = soon(read(&mut stream)).await.expect("an answer");
        assert_eq!(kind, Kind::Welcome as u8);
        stream
    }

    /// Lets a dialling node in as node 2, of a version that has no feature.
    pub(crate) async fn welcome(stream: &mut TcpStream) {
        welcome_with(stream, 0).await;
    }

    /// The same with these features.
    pub(crate) async fn welcome_with(stream: &mut TcpStream, features: u64) {
        let (kind, ..) = soon(read(stream)).await.expect("a hello");
        assert_eq!(kind, Kind::Hello as u8);
        let welcome = Welcome {
            version: 1,
            features,
            node: 2,
            incarnation: 1,
            frame_bytes_max: 1 << 20,
            stream_window_bytes: 1 << 20,
            streams_max: 8,
        };
        let welcome = frame(Kind::Welcome, (0, 0), &welcome.encode_to_vec());
        stream.write_all(&welcome).await.expect("it reads");
    }
}
