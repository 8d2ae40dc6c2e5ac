//! What goes through the log and what comes back, as bytes.

use bytes::Bytes;
use prost::{Message, Oneof};
use serde::Serialize;

/// A change of the inventory.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Command {
    /// A client that asks again for the same thing says the same here, and gets the same answer.
    #[prost(string, tag = "1")]
    pub(crate) request_id: String,
    #[prost(oneof = "Action", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub(crate) action: Option<Action>,
    /// Over how many Raft groups the node that proposed it spreads the inventory; 0 means one. Another count than the
    /// first command's is refused.
    #[prost(uint32, tag = "9")]
    pub(crate) raft_groups: u32,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Action {
    #[prost(message, tag = "2")]
    Create(Create),
    #[prost(string, tag = "3")]
    Start(String),
    #[prost(string, tag = "4")]
    Stop(String),
    #[prost(string, tag = "5")]
    Delete(String),
    /// A leader announces a host from its own list. A host that was removed stays removed.
    #[prost(message, tag = "6")]
    Host(Host),
    /// An operator adds a host. A known id with other addresses or another size is refused.
    #[prost(message, tag = "7")]
    Join(Host),
    /// An operator removes a host. It gets no VMs any more, and is forgotten with its last one.
    #[prost(uint64, tag = "8")]
    Leave(u64),
}

impl Action {
    /// The VM that it is about, if it is about one.
    pub(crate) fn vm(&self) -> Option<&str> {
        match self {
            Self::Create(create) => Some(&create.name),
            Self::Start(name) | Self::Stop(name) | Self::Delete(name) => Some(name),
            Self::Host(_) | Self::Join(_) | Self::Leave(_) => None,
        }
    }
}

/// A VM to be made on the host that the leader chose for it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Create {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, required, tag = "2")]
    pub(crate) size: Size,
    /// VMs of one group are not placed on one host while another one has room; empty for none.
    #[prost(string, tag = "3")]
    pub(crate) apart: String,
    /// The host that was chosen when the request came; another one is taken where that one will not do. 0 for none.
    #[prost(uint64, tag = "4")]
    pub(crate) host: u64,
    /// What the VM reads when it starts, UTF-8.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) user_data: Bytes,
}

/// What a VM takes and what a host has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message, Serialize)]
pub(crate) struct Size {
    #[prost(uint32, tag = "1")]
    pub(crate) vcpus: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) memory_mib: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) disk_gib: u32,
}

impl Size {
    /// What each of so many Raft groups has of it, rounded down.
    pub(crate) fn part(self, groups: u32) -> Self {
        Self {
            vcpus: self.vcpus / groups,
            memory_mib: self.memory_mib / groups,
            disk_gib: self.disk_gib / groups,
        }
    }
}

/// A node of the cluster, as a place for VMs and as an address for clients.
#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct Host {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// Where its clients connect to.
    #[prost(string, tag = "2")]
    pub(crate) http: String,
    /// Where its peers connect to.
    #[prost(string, tag = "3")]
    pub(crate) raft: String,
    #[prost(message, required, tag = "4")]
    pub(crate) size: Size,
    /// It was removed and still has VMs.
    #[prost(bool, tag = "5")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) removed: bool,
}

/// A VM.
#[derive(Clone, PartialEq, Message, Serialize)]
pub(crate) struct Vm {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, required, tag = "2")]
    pub(crate) size: Size,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) apart: String,
    #[prost(uint64, tag = "4")]
    pub(crate) host: u64,
    #[prost(bool, tag = "5")]
    pub(crate) running: bool,
    /// Grows with each change of it.
    #[prost(uint64, tag = "6")]
    pub(crate) version: u64,
    /// As in [`Create`]. Empty in answers to writes, which are remembered.
    #[prost(bytes = "bytes", tag = "7")]
    #[serde(skip)]
    pub(crate) user_data: Bytes,
}

impl Vm {
    /// All but the user data.
    pub(crate) fn without_user_data(&self) -> Self {
        Self {
            name: self.name.clone(),
            apart: self.apart.clone(),
            user_data: Bytes::new(),
            ..*self
        }
    }
}

/// What became of a command.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(oneof = "Outcome", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Outcome {
    /// The VM as it is now; as it was, when it was deleted.
    #[prost(message, tag = "1")]
    Vm(Vm),
    /// The host is known now.
    #[prost(uint64, tag = "2")]
    Host(u64),
    #[prost(string, tag = "3")]
    Unknown(String),
    #[prost(string, tag = "4")]
    Exists(String),
    /// No host has room for it. Which host was asked for.
    #[prost(uint64, tag = "5")]
    NoRoom(u64),
    /// The bytes were no command.
    #[prost(string, tag = "6")]
    Malformed(String),
    /// The id of the new host is that of a host with other addresses or another size.
    #[prost(uint64, tag = "7")]
    HostExists(u64),
    /// There is no host of this id.
    #[prost(uint64, tag = "8")]
    UnknownHost(u64),
    /// The id of the request was used for another request. Nothing was done.
    #[prost(string, tag = "9")]
    Reused(String),
    /// The number of the request is not above the newest one of its client, and its answer is not kept any more. Nothing was done.
    #[prost(string, tag = "10")]
    TooOld(String),
    /// The user data of all VMs together would be above this many bytes. Nothing was done.
    #[prost(uint64, tag = "11")]
    UserDataFull(u64),
    /// The command came from a node that spreads the inventory over another count of Raft groups; the count that holds.
    #[prost(uint32, tag = "12")]
    OtherGroups(u32),
}

impl Outcome {
    pub(crate) fn into_bytes(self) -> Bytes {
        let reply = Reply {
            outcome: Some(self),
        };
        Bytes::from(reply.encode_to_vec())
    }

    /// Reads what [`into_bytes`](Self::into_bytes) made.
    pub(crate) fn from_bytes(bytes: Bytes) -> Self {
        match Reply::decode(bytes) {
            Ok(Reply {
                outcome: Some(outcome),
            }) => outcome,
            Ok(Reply { outcome: None }) => Self::Malformed("the reply is empty".to_owned()),
            Err(error) => Self::Malformed(error.to_string()),
        }
    }
}
