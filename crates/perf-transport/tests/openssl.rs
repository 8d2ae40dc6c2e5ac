//! Another implementation of TLS at the other end: `openssl s_client`, with sound, missing, expired, foreign, rotated
//! and revoked certificates that `openssl` has made. It prints what happened; where there is no `openssl` nothing is
//! tested, and that is said.
//!
//! `cargo test -p perf-transport --test openssl -- --nocapture`

#![cfg(all(feature = "tls", not(perf_loom)))]

mod support;

use perf_transport::{Config, Router, Security, TlsIdentity, Transport, TransportError};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use support::{address, soon};
use tempfile::TempDir;

/// An authority in a folder, as `openssl ca` wants it.
struct Authority {
    folder: TempDir,
}

const SOUND: (&str, &str) = ("20200101000000Z", "20990101000000Z");
const EXPIRED: (&str, &str) = ("20200101000000Z", "20200201000000Z");

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Self { folder };
        let folder = authority.folder.path().display();
        let settings = format!(
            "[ca]\ndefault_ca = it\n[it]\ndatabase = {folder}/index.txt\nserial = {folder}/serial\n\
             new_certs_dir = {folder}\ncertificate = {folder}/ca.pem\nprivate_key = {folder}/ca.key\n\
             default_md = sha256\ncrlnumber = {folder}/crlnumber\ndefault_crl_days = 30\ncrl_extensions = list\npolicy = any\ncopy_extensions = copy\n\
             unique_subject = no\n[any]\ncommonName = supplied\n[list]\nauthorityKeyIdentifier = keyid:always\n"
        );
        authority.write("ca.cnf", &settings);
        authority.write("index.txt", "");
        authority.write("serial", "1000\n");
        authority.write("crlnumber", "01\n");
        authority.key("ca.key");
        authority.openssl(
            "req -x509 -new -key ca.key -days 30 -subj /CN=authority -out ca.pem \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
        );
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("it can be written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("openssl has written it")
    }

    /// Runs `openssl` in the folder.
    fn openssl(&self, arguments: &str) -> String {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("it was there before");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn key(&self, name: &str) {
        self.openssl(&format!(
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}"
        ));
    }

    /// `{file}.pem` and `{file}.key` for a name, valid from and to.
    fn issue(&self, file: &str, name: &str, (from, to): (&str, &str)) {
        self.key(&format!("{file}.key"));
        self.openssl(&format!(
            "req -new -key {file}.key -subj /CN={file} -out {file}.csr \
             -addext subjectAltName=DNS:{name} -addext extendedKeyUsage=serverAuth,clientAuth"
        ));
        self.openssl(&format!(
            "ca -config ca.cnf -batch -notext -startdate {from} -enddate {to} -in {file}.csr -out {file}.pem"
        ));
    }

    /// The list of what was revoked so far, and this certificate.
    fn revoke(&self, file: &str) -> String {
        self.openssl(&format!("ca -config ca.cnf -revoke {file}.pem"));
        self.openssl("ca -config ca.cnf -gencrl -out crl.pem");
        self.read("crl.pem")
    }

    fn identity(&self, file: &str, crl: &str) -> Result<TlsIdentity, TransportError> {
        let (chain, key) = (
            self.read(&format!("{file}.pem")),
            self.read(&format!("{file}.key")),
        );
        let authority = self.read("ca.pem");
        let [authority, chain, key] = [&authority, &chain, &key].map(|text| text.as_bytes());
        TlsIdentity::from_pem_with_crl(authority, chain, key, crl.as_bytes())
    }

    fn serial(&self, file: &str) -> String {
        self.openssl(&format!("x509 -in {file}.pem -noout -serial"))
    }

    /// What `openssl s_client` has to say of a server: with a certificate, or none.
    async fn s_client(&self, server: &Transport, file: Option<&str>) -> String {
        let mut command = Command::new("openssl");
        command
            .args([
                "s_client",
                "-connect",
                &address(server),
                "-CAfile",
                "ca.pem",
            ])
            .args(["-verify_return_error", "-verify_hostname", "node-2.test"]);
        if let Some(file) = file {
            command.args(["-cert", &format!("{file}.pem")]);
            command.args(["-key", &format!("{file}.key")]);
        }
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // It goes when the server closes: a client that says nothing is closed at the end of the handshake's time.
        let mut child = command.spawn().expect("it was there before");
        let input = child.stdin.take();
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output: Output = soon(ended).await.expect("no panics").expect("it ran");
        drop(input);
        let both = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&both).into_owned()
    }
}

fn lines<'a>(said: &'a str, words: &[&str]) -> Vec<&'a str> {
    let is_wanted = |line: &&str| words.iter().any(|word| line.contains(word));
    said.lines().map(str::trim).filter(is_wanted).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_openssl_sees_of_expired_rotated_and_revoked_certificates() {
    let version = Command::new("openssl").arg("version").output();
    let Ok(version) = version else {
        println!("there is no openssl here: nothing was tested");
        return;
    };
    println!("{}", String::from_utf8_lossy(&version.stdout).trim());
    let (ours, foreign) = (Authority::new(), Authority::new());
    ours.issue("server", "node-2.test", SOUND);
    ours.issue("rotated", "node-2.test", SOUND);
    ours.issue("sound", "node-7.test", SOUND);
    ours.issue("expired", "node-7.test", EXPIRED);
    ours.issue("revoked", "node-8.test", SOUND);
    foreign.issue("foreign", "node-7.test", SOUND);
    for kind in ["pem", "key"] {
        let name = format!("foreign.{kind}");
        fs::copy(foreign.path(&name), ours.path(&name)).expect("it is copied");
    }
    let expired = ours.identity("expired", "").expect("sound PEM");
    let refused = Transport::builder(7, "test", Security::MutualTls(expired))
        .start()
        .await;
    let refused = refused.expect_err("it has expired").to_string();
    println!("a node that starts with an expired certificate: {refused}");
    assert!(refused.contains("expired"), "{refused}");

    let mut config = Config::default();
    config.handshake_timeout = Duration::from_millis(500);
    let identity = ours.identity("server", "").expect("sound");
    let server = Transport::builder(2, "test", Security::MutualTls(identity))
        .router(Router::new())
        .config(config)
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let words = ["alert", "Verify return code", "Protocol", "New, TLS"];
    let cases = [
        (Some("sound"), None),
        (None, Some("certificate required")),
        (Some("expired"), Some("certificate expired")),
        (Some("foreign"), Some("alert")),
        (Some("revoked"), None),
    ];
    for (file, alert) in cases {
        let said = ours.s_client(&server, file).await;
        let name = file.unwrap_or("no");
        println!(
            "s_client with {name} certificate: {:?}",
            lines(&said, &words)
        );
        match alert {
            Some(alert) => assert!(said.contains(alert), "{name}: {said}"),
            None => assert!(
                said.contains("Verify return code: 0 (ok)") && !said.contains("alert"),
                "{name}: {said}"
            ),
        }
    }

    // Rotated and revoked while it runs: another certificate, and a list.
    let list = ours.revoke("revoked");
    let rotated = ours.identity("rotated", &list).expect("sound");
    server.set_identity(rotated).expect("sound");
    let said = ours.s_client(&server, Some("sound")).await;
    let begin = said.find("-----BEGIN CERTIFICATE").expect("it is shown");
    let end = said.find("-----END CERTIFICATE-----").expect("it is shown");
    ours.write(
        "seen.pem",
        &format!("{}-----END CERTIFICATE-----\n", &said[begin..end]),
    );
    let (seen, before) = (ours.serial("seen"), ours.serial("server"));
    println!("rotated: s_client saw {before} before and sees {seen} now");
    assert_eq!(seen, ours.serial("rotated"));
    assert_ne!(seen, before);
    let said = ours.s_client(&server, Some("revoked")).await;
    println!(
        "s_client with revoked certificate: {:?}",
        lines(&said, &words)
    );
    assert!(said.contains("certificate revoked"), "{said}");
    let said = ours.s_client(&server, Some("sound")).await;
    assert!(said.contains("Verify return code: 0 (ok)") && !said.contains("alert"));
}
