//! What a message must be before Raft sees it: raft-rs panics on some that no correct peer sends.

use super::step;
use raft::eraftpb::{EntryType, Message, MessageType};

/// Bytes of an entry that changes the membership.
pub(super) const CHANGE_BYTES_MAX: usize = 1 << 20;

/// Why a message from a peer is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// Checks what does not depend on the log.
pub(crate) fn check(message: &Message, self_id: u64) -> Result<(), Invalid> {
    use MessageType as T;
    let sound = message.from != 0
        && message.from != self_id
        && (message.to == self_id || message.to == 0)
        && match message.get_msg_type() {
            // Without a term Raft takes a message for one of its own node.
            T::MsgReadIndex => message.entries.len() == 1 && message.term == 0,
            T::MsgTransferLeader => message.entries.is_empty(),
            T::MsgReadIndexResp => message.entries.len() == 1 && message.term != 0,
            T::MsgAppend => message.term != 0 && are_contiguous(message),
            T::MsgSnapshot => message.term != 0 && is_snapshot(message),
            T::MsgAppendResponse
            | T::MsgRequestVote
            | T::MsgRequestVoteResponse
            | T::MsgRequestPreVote
            | T::MsgRequestPreVoteResponse
            | T::MsgHeartbeat
            | T::MsgHeartbeatResponse
            | T::MsgTimeoutNow => message.term != 0 && message.entries.is_empty(),
            // Proposals are sent to the leader by clients, not by followers.
            T::MsgPropose
            | T::MsgHup
            | T::MsgBeat
            | T::MsgUnreachable
            | T::MsgSnapStatus
            | T::MsgCheckQuorum => false,
        };
    if sound { Ok(()) } else { Err(Invalid) }
}

/// Entries follow `index` without a gap, with terms that do not fall and are none of the future.
fn are_contiguous(message: &Message) -> bool {
    let Some(last) = message.index.checked_add(message.entries.len() as u64) else {
        return false;
    };
    let mut term = message.log_term;
    // Where there is no entry raft-rs takes its term for 0, and would find this equal.
    let is_known = message.index == 0 || message.log_term != 0;
    last < u64::MAX
        && is_known
        && message.log_term <= message.term
        && message
            .entries
            .iter()
            .zip(message.index + 1..)
            .all(|(entry, index)| {
                let sound =
                    entry.index == index && entry.term >= term && entry.term <= message.term;
                term = entry.term;
                sound
                    && match entry.get_entry_type() {
                        EntryType::EntryNormal => step::is_readable(entry),
                        _ => entry.data.len() <= CHANGE_BYTES_MAX,
                    }
            })
}

/// A place in the log, and a membership with voters and no id twice.
fn is_snapshot(message: &Message) -> bool {
    let metadata = message.get_snapshot().get_metadata();
    let state = metadata.get_conf_state();
    let repeated = |ids: &[u64]| {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.windows(2).any(|pair| pair[0] == pair[1]) || sorted.first() == Some(&0)
    };
    let learner_votes = state
        .learners
        .iter()
        .any(|id| state.voters.contains(id) || state.voters_outgoing.contains(id));
    let next_is_out = state
        .learners_next
        .iter()
        .any(|id| !state.voters_outgoing.contains(id) || state.voters.contains(id));
    metadata.index != 0
        && metadata.term != 0
        && metadata.term <= message.term
        && !state.voters.is_empty()
        && !learner_votes
        && !next_is_out
        && (!state.auto_leave || !state.voters_outgoing.is_empty())
        && ![
            &state.voters,
            &state.learners,
            &state.voters_outgoing,
            &state.learners_next,
        ]
        .iter()
        .any(|ids| repeated(ids))
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;

    fn append(index: u64, entries: &[(u64, u64)]) -> Message {
        let mut message = Message {
            from: 2,
            to: 1,
            term: 5,
            index,
            log_term: 2,
            ..Default::default()
        };
        message.set_msg_type(MessageType::MsgAppend);
        let entries: Vec<Entry> = entries
            .iter()
            .map(|&(index, term)| Entry {
                index,
                term,
                ..Default::default()
            })
            .collect();
        message.set_entries(entries.into());
        message
    }

    #[test]
    fn appends_must_be_contiguous_and_of_no_future_term() {
        assert_eq!(check(&append(3, &[(4, 2), (5, 5)]), 1), Ok(()));
        for entries in [
            vec![(5, 2)],
            vec![(4, 2), (6, 2)],
            vec![(4, 6)],
            vec![(4, 1)],
            vec![(4, 3), (5, 2)],
        ] {
            assert_eq!(check(&append(3, &entries), 1), Err(Invalid), "{entries:?}");
        }
        assert_eq!(check(&append(u64::MAX, &[(4, 2)]), 1), Err(Invalid));
        let mut unknown = append(3, &[]);
        unknown.log_term = 0;
        assert_eq!(check(&unknown, 1), Err(Invalid));
    }

    #[test]
    fn what_would_make_raft_panic_is_refused() {
        let mut read = Message {
            from: 2,
            to: 1,
            ..Default::default()
        };
        read.set_msg_type(MessageType::MsgReadIndex);
        assert_eq!(check(&read, 1), Err(Invalid));
        let mut propose = append(0, &[]);
        propose.set_msg_type(MessageType::MsgPropose);
        assert_eq!(check(&propose, 1), Err(Invalid));
        let mut snapshot = append(0, &[]);
        snapshot.set_msg_type(MessageType::MsgSnapshot);
        let metadata = snapshot.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (9, 3);
        metadata.mut_conf_state().voters = vec![1, 2];
        assert_eq!(check(&snapshot, 1), Ok(()));
        snapshot
            .mut_snapshot()
            .mut_metadata()
            .mut_conf_state()
            .learners = vec![2];
        assert_eq!(check(&snapshot, 1), Err(Invalid));
    }
}
