//! Snapshots: parts of an inventory one after the other, so that nobody has all of it as bytes at once.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::vec::IntoIter;

use bytes::{Buf, Bytes};
use prost::Message;

use super::command::{Host, Reply, Vm};
use super::{Inventory, Remembered};

/// VMs, answers or clients of one part.
const PART_RECORDS: usize = 256;

/// A part of a snapshot, with its length before it. What the hosts' VMs take is the sum of the VMs, and is not in it.
#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(message, repeated, tag = "1")]
    vms: Vec<Vm>,
    /// In the first part, as all single values.
    #[prost(message, repeated, tag = "2")]
    hosts: Vec<Host>,
    /// The oldest first.
    #[prost(message, repeated, tag = "3")]
    answers: Vec<Answer>,
    #[prost(uint64, tag = "4")]
    version: u64,
    #[prost(uint64, repeated, tag = "5")]
    removed: Vec<u64>,
    /// The longest silent first.
    #[prost(message, repeated, tag = "6")]
    clients: Vec<Client>,
    #[prost(uint32, tag = "7")]
    raft_groups: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Client {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    newest: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(message, required, tag = "2")]
    reply: Reply,
    #[prost(bytes = "bytes", tag = "3")]
    request: Bytes,
}

/// Reads as the snapshot of an inventory, as it was when this was made. Making it takes a reference to each VM and a copy of each answer
/// that is remembered; the bytes are made part by part.
pub(crate) struct Image {
    first: Option<Part>,
    vms: IntoIter<Arc<Vm>>,
    answers: IntoIter<Answer>,
    clients: IntoIter<Client>,
    encoded: Bytes,
}

impl Image {
    pub(crate) fn of(inventory: &Inventory) -> Self {
        let first = Part {
            hosts: inventory.hosts().map(|state| state.host.clone()).collect(),
            version: inventory.version,
            raft_groups: inventory.raft_groups,
            removed: inventory.removed.iter().copied().collect(),
            ..Part::default()
        };
        let answers = inventory.order.iter().filter_map(|request_id| {
            let known = inventory.answers.get(request_id)?;
            Some(Answer {
                request_id: request_id.clone(),
                reply: Reply {
                    outcome: Some(known.outcome.clone()),
                },
                request: known.request.clone(),
            })
        });
        let clients = inventory.clients.all().map(|(name, newest)| Client {
            name: name.to_owned(),
            newest,
        });
        Self {
            first: Some(first),
            vms: inventory.vms().cloned().collect::<Vec<_>>().into_iter(),
            answers: answers.collect::<Vec<_>>().into_iter(),
            clients: clients.collect::<Vec<_>>().into_iter(),
            encoded: Bytes::new(),
        }
    }

    fn next_part(&mut self) -> Option<Part> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let vms = self.vms.by_ref().take(PART_RECORDS);
        let part = Part {
            vms: vms.map(|vm| Vm::clone(&vm)).collect(),
            answers: self.answers.by_ref().take(PART_RECORDS).collect(),
            clients: self.clients.by_ref().take(PART_RECORDS).collect(),
            ..Part::default()
        };
        (part != Part::default()).then_some(part)
    }
}

impl Read for Image {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.encoded.is_empty()
            && let Some(part) = self.next_part()
        {
            self.encoded = part.encode_length_delimited_to_vec().into();
        }
        let len = buf.len().min(self.encoded.len());
        self.encoded.copy_to_slice(&mut buf[..len]);
        Ok(len)
    }
}

/// The inventory whose [`Image`] it reads.
pub(crate) fn read(image: &mut dyn Read) -> io::Result<Inventory> {
    let mut image = BufReader::new(image);
    let mut inventory = Inventory::default();
    let mut encoded = Vec::new();
    while !image.fill_buf()?.is_empty() {
        let len = read_len(&mut image)?;
        encoded.clear();
        // No more memory than there are bytes, whatever the length says.
        image.by_ref().take(len).read_to_end(&mut encoded)?;
        if encoded.len() as u64 != len {
            return Err(wrong("it ends in the middle of a part"));
        }
        let part = Part::decode(encoded.as_slice()).map_err(|error| wrong(&error.to_string()))?;
        inventory.add(part);
    }
    Ok(inventory)
}

fn wrong(reason: &str) -> io::Error {
    let reason = format!("the snapshot is not one of an inventory: {reason}");
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// A length, seven bits in a byte: <https://protobuf.dev/programming-guides/encoding/#varints>.
fn read_len(image: &mut impl BufRead) -> io::Result<u64> {
    let mut bytes = Vec::new();
    for byte in image.bytes().take(10) {
        let byte = byte?;
        bytes.push(byte);
        if byte < 0x80 {
            break;
        }
    }
    prost::encoding::decode_varint(&mut bytes.as_slice()).map_err(|error| wrong(&error.to_string()))
}

impl Inventory {
    fn add(&mut self, part: Part) {
        self.version = self.version.max(part.version);
        self.raft_groups = self.raft_groups.max(part.raft_groups);
        self.removed.extend(part.removed);
        for host in part.hosts {
            self.put_host(host);
        }
        for vm in part.vms {
            self.put_vm(&Arc::new(vm));
        }
        for client in part.clients {
            self.clients.put(client.name, client.newest);
        }
        for answer in part.answers {
            if let Some(outcome) = answer.reply.outcome {
                let known = Remembered {
                    request: answer.request,
                    outcome,
                };
                self.remember(answer.request_id, known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::{Action, Command, Create, Size};
    use super::*;

    fn apply(inventory: &mut Inventory, request_id: String, action: Action) {
        let command = Command {
            request_id,
            action: Some(action),
            raft_groups: 1,
        };
        inventory.apply(&command.encode_to_vec().into());
    }

    fn create(number: usize) -> Action {
        Action::Create(Create {
            name: format!("vm-{number}"),
            size: Size {
                vcpus: 1,
                memory_mib: 1,
                disk_gib: 1,
            },
            apart: format!("apart-{}", number % 7),
            host: 0,
            user_data: vec![b'x'; number].into(),
        })
    }

    /// More than one part of each kind has.
    fn inventory() -> Inventory {
        let mut inventory = Inventory::default();
        for id in 1..=3 {
            let host = Host {
                id,
                http: format!("h{id}"),
                raft: format!("r{id}"),
                size: Size {
                    vcpus: 1000,
                    memory_mib: 1000,
                    disk_gib: 1000,
                },
                removed: false,
            };
            apply(&mut inventory, String::new(), Action::Host(host));
        }
        for number in 0..3 * PART_RECORDS {
            let request_id = format!("client-{number}#1");
            apply(&mut inventory, request_id, create(number));
        }
        apply(&mut inventory, String::new(), Action::Leave(3));
        inventory
    }

    fn bytes_of(mut image: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.read_to_end(&mut bytes).expect("it is in memory");
        bytes
    }

    fn sorted(inventory: &Inventory) -> Vec<&Arc<Vm>> {
        let mut vms: Vec<_> = inventory.vms().collect();
        vms.sort_by_key(|vm| &vm.name);
        vms
    }

    #[test]
    fn an_image_is_the_inventory_of_its_moment() {
        let mut inventory = inventory();
        let (image, before) = (Image::of(&inventory), self::inventory());
        apply(&mut inventory, "later#1".to_owned(), create(1_000));
        apply(
            &mut inventory,
            "later#2".to_owned(),
            Action::Delete("vm-5".to_owned()),
        );
        let copy = read(&mut bytes_of(image).as_slice()).expect("it is an image");
        assert_eq!(sorted(&copy), sorted(&before));
        assert!(copy.hosts().eq(before.hosts()));
        assert_eq!(copy.removed, before.removed);
        assert_eq!(
            (&copy.answers, &copy.order),
            (&before.answers, &before.order)
        );
        assert!(copy.clients.all().eq(before.clients.all()));
        assert_eq!(copy.groups, before.groups);
        assert_eq!(copy.version, before.version);
        assert_eq!(copy.user_data_bytes, before.user_data_bytes);
        assert_eq!(copy.raft_groups(), 1);
    }

    #[test]
    fn what_is_cut_or_no_image_is_an_error() {
        let bytes = bytes_of(Image::of(&inventory()));
        assert!(read(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(read(&mut &bytes[..1]).is_err());
        for wrong in [&b"\x05hello"[..], &[0xff; 11], &[0xff]] {
            assert!(read(&mut &wrong[..]).is_err(), "{wrong:?}");
        }
        let empty = bytes_of(Image::of(&Inventory::default()));
        assert_eq!(
            read(&mut empty.as_slice()).expect("an image").vms().count(),
            0
        );
    }
}
