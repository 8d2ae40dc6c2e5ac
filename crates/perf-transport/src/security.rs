//! Who may connect.

use crate::error::TransportError;
use std::fmt;

/// Who may connect, and who is believed. There is no default.
#[derive(Clone)]
#[non_exhaustive]
pub enum Security {
    /// Both sides show a certificate of the cluster's authority that names their node and cluster.
    #[cfg(feature = "tls")]
    MutualTls(crate::tls::TlsIdentity),
    /// No encryption and no proof: every peer that reaches the port is believed. For tests, and for networks that do
    /// both themselves.
    InsecurePlaintext,
}

impl Security {
    /// Whether other nodes would take this for `node` of `cluster`.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    pub(crate) fn check(&self, node: u64, cluster: &str) -> Result<(), TransportError> {
        match self {
            #[cfg(feature = "tls")]
            Self::MutualTls(identity) => identity.check(node, cluster),
            Self::InsecurePlaintext => Ok(()),
        }
    }

    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::InsecurePlaintext)
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(feature = "tls")]
            Self::MutualTls(_) => "MutualTls",
            Self::InsecurePlaintext => "InsecurePlaintext",
        })
    }
}
