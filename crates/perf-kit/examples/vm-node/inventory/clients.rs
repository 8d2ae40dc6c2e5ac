//! The newest number of each client that numbers its requests.
//!
//! A request id may be `<client>#<number>`, with numbers that grow. A number that is not above the newest one of its client is never
//! applied: it is answered as before, or refused as too old. So such a request takes effect once at most, however late it is
//! repeated, for as long as its client is remembered.

use std::collections::{BTreeMap, HashMap};

/// Clients that all Raft groups together remember. The one that was silent longest goes first.
pub(super) const CLIENTS_MAX: usize = 100_000;

/// Clients and their newest numbers.
#[derive(Debug, Default)]
pub(super) struct Clients {
    by_name: HashMap<String, Client>,
    /// Names by their last use.
    by_use: BTreeMap<u64, String>,
    uses: u64,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    newest: u64,
    used: u64,
}

impl Clients {
    /// Notes a request, and remembers up to `clients_max` clients. `false` if its number is not above the newest one
    /// of its client. Any id that has no number is new.
    pub(super) fn is_new(&mut self, request_id: &str, clients_max: usize) -> bool {
        let Some((name, number)) = parse(request_id) else {
            return true;
        };
        let known = self.by_name.get(name).copied();
        let is_new = known.is_none_or(|client| number > client.newest);
        let newest = known.map_or(number, |client| client.newest.max(number));
        if let Some(client) = known {
            self.by_use.remove(&client.used);
        } else if self.by_name.len() >= clients_max
            && let Some((_, silent)) = self.by_use.pop_first()
        {
            self.by_name.remove(&silent);
        }
        self.put(name.to_owned(), newest);
        is_new
    }

    /// Names and newest numbers, the longest silent first.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, u64)> {
        self.by_use
            .values()
            .filter_map(|name| Some((name.as_str(), self.by_name.get(name)?.newest)))
    }

    /// Adds a client from a snapshot, in the order of [`all`](Self::all).
    pub(super) fn put(&mut self, name: String, newest: u64) {
        self.uses += 1;
        let used = self.uses;
        self.by_use.insert(used, name.clone());
        self.by_name.insert(name, Client { newest, used });
    }
}

fn parse(request_id: &str) -> Option<(&str, u64)> {
    let (name, number) = request_id.rsplit_once('#')?;
    Some((name, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_client_only_grow() {
        let mut clients = Clients::default();
        for (request_id, is_new) in [
            ("a#2", true),
            ("a#2", false),
            ("a#1", false),
            ("b#1", true),
            ("a#3", true),
            ("a", true),
            ("a", true),
            ("a#x", true),
        ] {
            assert_eq!(clients.is_new(request_id, 2), is_new, "{request_id}");
        }
        let all: Vec<_> = clients.all().collect();
        assert_eq!(all, [("b", 1), ("a", 3)]);
    }

    #[test]
    fn the_client_that_was_silent_longest_is_forgotten() {
        let mut clients = Clients::default();
        for number in 0..CLIENTS_MAX {
            clients.is_new(&format!("c{number}#5"), CLIENTS_MAX);
        }
        assert!(!clients.is_new("c0#5", CLIENTS_MAX));
        clients.is_new("one more#1", CLIENTS_MAX);
        assert!(!clients.is_new("c0#5", CLIENTS_MAX), "it was not silent");
        assert!(clients.is_new("c1#5", CLIENTS_MAX), "it was silent longest");
        assert_eq!(clients.by_name.len(), CLIENTS_MAX);
        assert_eq!(clients.by_use.len(), CLIENTS_MAX);
    }
}
