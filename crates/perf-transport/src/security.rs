//! Who may connect.

use std::fmt;

/// Who may connect, and who is believed. There is no default.
#[derive(Clone)]
#[non_exhaustive]
pub enum Security {
    /// Both sides show a certificate of the cluster's authority that names their node and cluster.
    #[cfg(feature = "tls")]
    MutualTls(crate::tls::TlsIdentity),
    /// No encryption and no proof: whoever reaches the port is believed. For tests, and for networks that do both themselves.
    InsecurePlaintext,
}

impl Security {
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
