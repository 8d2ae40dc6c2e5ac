//! Certificates of a cluster that exists for the measurement only.

use std::sync::LazyLock;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

pub(super) const CLUSTER: &str = "bench";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("the system has random numbers");
    let mut params = CertificateParams::new(Vec::new()).expect("no name is no wrong name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("a key signs").pem();
    let issuer = Issuer::new(params, key);
    Authority { pem, issuer }
});

/// PEM texts.
pub(super) struct Identity {
    pub(super) authority: String,
    pub(super) chain: String,
    pub(super) key: String,
}

/// A certificate of the authority for one DNS name.
pub(super) fn identity(name: &str) -> Identity {
    let key = KeyPair::generate().expect("the system has random numbers");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a DNS name");
    let signed = params.signed_by(&key, &AUTHORITY.issuer);
    Identity {
        authority: AUTHORITY.pem.clone(),
        chain: signed.expect("a key signs").pem(),
        key: key.serialize_pem(),
    }
}
