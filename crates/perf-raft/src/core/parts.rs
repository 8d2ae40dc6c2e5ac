//! Messages that are too long for one frame to a peer, in parts.
//!
//! A peer may take shorter frames than this node. An append with one long entry cannot be made shorter, and the group may need that very peer for its
//! quorum: so the encoded message goes in parts. Parts may arrive in any order, within the window in which
//! repeated frames are told from late ones. One that is lost loses the message, which Raft sends again.

use crate::codec::{self, MessagePart};
use bytes::{BufMut, Bytes, BytesMut};
use raft::eraftpb::Message;
use std::collections::{BTreeMap, VecDeque};

/// A part has at least so many bytes unless it is the last one: what the list of parts takes stays below what is in them.
const PART_BYTES_MIN: usize = 64;

/// Messages that arrive at a time. A leader sends some thirty at once.
const MESSAGES_MAX: usize = 64;

/// Splits a message into parts of `part_bytes`. `None` if that is too little.
pub(super) fn split(
    message: &Message,
    number: u64,
    part_bytes: usize,
) -> Option<impl Iterator<Item = MessagePart>> {
    if part_bytes < PART_BYTES_MIN {
        return None;
    }
    let mut encoded = BytesMut::with_capacity(codec::encoded_len(message));
    codec::encode(message, &mut encoded);
    let whole = encoded.freeze();
    let total = whole.len();
    let starts = (0..total).step_by(part_bytes);
    Some(starts.map(move |start| MessagePart {
        number,
        total_bytes: total as u64,
        offset: start as u64,
        data: whole.slice(start..total.min(start + part_bytes)),
    }))
}

/// Messages whose parts arrive: at most 64, whose parts together have no more bytes than the longest message may have. Beyond, the oldest one goes.
#[derive(Debug, Default)]
pub(super) struct Parts {
    arriving: VecDeque<Arriving>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Arriving {
    /// The sender's session and the number of the message.
    of: (u64, u64),
    total_bytes: u64,
    bytes: u64,
    /// By their places.
    parts: BTreeMap<u64, Bytes>,
}

/// A part that no correct peer sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl Parts {
    /// Takes a part of a message of at most `bytes_max`. Returns the message's bytes when it is whole.
    pub(super) fn add(
        &mut self,
        session: u64,
        part: MessagePart,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, Invalid> {
        let len = part.data.len() as u64;
        let is_last = part.offset.checked_add(len) == Some(part.total_bytes);
        let fits = part.total_bytes <= bytes_max as u64
            && len > 0
            && (is_last || part.offset.saturating_add(len) < part.total_bytes)
            && (is_last || part.data.len() >= PART_BYTES_MIN);
        if !fits {
            return Err(Invalid);
        }
        let (of, total_bytes) = ((session, part.number), part.total_bytes);
        let known = self.arriving.iter().position(|message| message.of == of);
        let place = known.unwrap_or_else(|| {
            self.arriving.push_back(Arriving {
                of,
                total_bytes,
                ..Arriving::default()
            });
            self.arriving.len() - 1
        });
        let message = &mut self.arriving[place];
        let is_sound =
            message.total_bytes == total_bytes && !message.parts.contains_key(&part.offset);
        if !is_sound {
            return Err(Invalid);
        }
        // The frame's memory is free at once.
        message
            .parts
            .insert(part.offset, Bytes::copy_from_slice(&part.data));
        message.bytes += len;
        self.bytes += len;
        if message.bytes >= total_bytes
            && let Some(message) = self.arriving.remove(place)
        {
            self.bytes -= message.bytes;
            return message.whole().map(Some);
        }
        while (self.bytes > bytes_max as u64 || self.arriving.len() > MESSAGES_MAX)
            && let Some(oldest) = self.arriving.pop_front()
        {
            self.bytes -= oldest.bytes;
        }
        Ok(None)
    }
}

impl Arriving {
    fn whole(self) -> Result<Bytes, Invalid> {
        let mut whole = BytesMut::with_capacity(self.bytes as usize);
        for (offset, data) in self.parts {
            if offset != whole.len() as u64 {
                return Err(Invalid);
            }
            whole.put(data);
        }
        Ok(whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft::eraftpb::Entry;

    fn long(bytes: usize) -> Message {
        let mut message = Message {
            term: 7,
            ..Default::default()
        };
        let entry = Entry {
            index: 3,
            term: 7,
            data: (0..bytes).map(|at| at as u8).collect(),
            ..Default::default()
        };
        message.set_entries(vec![entry].into());
        message
    }

    proptest! {
        #[test]
        fn parts_in_any_order_make_the_message(
            bytes in 0_usize..5000,
            part_bytes in PART_BYTES_MIN..2000,
            order in any::<prop::sample::Index>(),
        ) {
            let message = long(bytes);
            let mut parts: Vec<MessagePart> =
                split(&message, 5, part_bytes).expect("it is enough").collect();
            let at = order.index(parts.len());
            parts.rotate_left(at);
            let mut taken = Parts::default();
            let count = parts.len();
            for (place, part) in parts.into_iter().enumerate() {
                let whole = taken.add(9, part, 10_000).expect("it is sound");
                prop_assert_eq!(whole.is_some(), place + 1 == count);
                if let Some(whole) = whole {
                    prop_assert_eq!(&codec::decode(whole).expect("it was encoded here"), &message);
                }
            }
        }

        #[test]
        fn what_a_hostile_peer_sends_takes_no_more_than_the_bound(
            sent in prop::collection::vec((0_u64..200, 0_u64..300, 0_u64..300, 0_usize..200), 1..200),
        ) {
            let mut taken = Parts::default();
            for (number, total_bytes, offset, len) in sent {
                let data = Bytes::from(vec![0; len]);
                let part = MessagePart { number, total_bytes, offset, data };
                if let Ok(Some(whole)) = taken.add(1, part, 250) {
                    prop_assert!(whole.len() <= 250);
                }
                let parts = taken.arriving.iter().flat_map(|message| message.parts.values());
                let held: usize = parts.map(Bytes::len).sum();
                prop_assert!(held as u64 == taken.bytes && held <= 250);
                prop_assert!(taken.arriving.len() <= MESSAGES_MAX);
            }
        }
    }

    #[test]
    fn a_byte_of_each_of_many_messages_takes_little() {
        let mut taken = Parts::default();
        for number in 0..10_000 {
            let part = MessagePart {
                number,
                total_bytes: 1000,
                offset: 999,
                data: Bytes::from_static(b"x"),
            };
            assert_eq!(taken.add(1, part, 1 << 20), Ok(None));
        }
        assert_eq!((taken.arriving.len(), taken.bytes), (MESSAGES_MAX, 64));
    }

    #[test]
    fn messages_may_mix_and_a_lost_part_loses_one_of_them() {
        let part = |number, place| {
            let message = long(300);
            let mut parts = split(&message, number, 100).expect("it is enough");
            parts.nth(place).expect("there are so many")
        };
        let mut taken = Parts::default();
        let is_whole =
            |outcome: Result<Option<Bytes>, Invalid>| outcome.is_ok_and(|whole| whole.is_some());
        for (number, place) in [(1, 0), (2, 3), (2, 1), (1, 2), (2, 2)] {
            assert_eq!(taken.add(1, part(number, place), 1000), Ok(None));
        }
        assert_eq!(taken.add(1, part(2, 1), 1000), Err(Invalid), "it was there");
        assert!(is_whole(taken.add(1, part(2, 0), 1000)));
        // Another one takes the room of the first, which lacks two.
        for place in 0..3 {
            assert_eq!(taken.add(1, part(3, place), 400), Ok(None));
        }
        assert_eq!(taken.add(1, part(1, 1), 400), Ok(None), "it begins anew");
        assert!(is_whole(taken.add(1, part(3, 3), 400)));
        assert_eq!(
            taken.add(1, part(4, 0), 100),
            Err(Invalid),
            "it is above the bound"
        );
        assert!(split(&long(300), 1, PART_BYTES_MIN - 1).is_none());
    }
}
