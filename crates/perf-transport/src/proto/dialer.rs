//! When a link dials, and whether messages may wait for it.

use super::backoff::Backoff;

/// Where a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialState {
    /// Not connected, and no message waits.
    Idle,
    /// A dial is under way. Messages wait.
    Dialing,
    /// Connected.
    Up,
    /// Connected, but the peer takes no new requests.
    Draining,
    /// Connected and idle, so the connection is being closed. Messages wait for the next one.
    Ending,
    /// Dialling failed; the next attempt is not before this time. Messages are refused.
    Backoff {
        /// In milliseconds of the caller's clock.
        until_ms: u64,
    },
    /// For good.
    Closed,
}

/// Dials once however many want the connection, and not too often.
#[derive(Debug)]
pub struct Dialer {
    state: DialState,
    backoff: Backoff,
}

/// Whether a message may be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Queue,
    /// It may, and the caller must dial.
    QueueAndDial,
    /// Not before so many milliseconds have passed.
    Refused {
        /// Until the next attempt.
        retry_in_ms: u64,
    },
    /// The peer is draining.
    Draining,
    /// The link is closed.
    Closed,
}

impl Dialer {
    /// Idle.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Self {
            state: DialState::Idle,
            backoff,
        }
    }

    /// Where the link stands.
    #[must_use]
    pub fn state(&self) -> DialState {
        self.state
    }

    /// How many attempts failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// A caller wants to send.
    pub fn want(&mut self, now_ms: u64) -> Admission {
        match self.state {
            DialState::Up | DialState::Dialing | DialState::Ending => Admission::Queue,
            DialState::Idle => {
                self.state = DialState::Dialing;
                Admission::QueueAndDial
            }
            DialState::Backoff { until_ms } if now_ms >= until_ms => {
                self.state = DialState::Dialing;
                Admission::QueueAndDial
            }
            DialState::Backoff { until_ms } => Admission::Refused {
                retry_in_ms: until_ms - now_ms,
            },
            DialState::Draining => Admission::Draining,
            DialState::Closed => Admission::Closed,
        }
    }

    /// The handshake is done. `false` if the link was closed meanwhile.
    pub fn connected(&mut self) -> bool {
        if self.state == DialState::Closed {
            return false;
        }
        self.backoff.succeeded();
        self.state = DialState::Up;
        true
    }

    /// The peer takes no new requests.
    pub fn draining(&mut self) {
        if self.state == DialState::Up {
            self.state = DialState::Draining;
        }
    }

    /// The connection is being closed because it is idle. The task that closes it dials again after its
    /// [end](Self::lost) if messages wait then.
    pub fn ending(&mut self) {
        if self.state == DialState::Up {
            self.state = DialState::Ending;
        }
    }

    /// An attempt failed.
    pub fn failed(&mut self, now_ms: u64) {
        if self.state != DialState::Closed {
            let until_ms = now_ms.saturating_add(self.backoff.failed());
            self.state = DialState::Backoff { until_ms };
        }
    }

    /// An established connection was lost or closed: the next caller may dial at once.
    pub fn lost(&mut self) {
        if self.state != DialState::Closed {
            self.state = DialState::Idle;
        }
    }

    /// The peer has another address, or has connected to this node: what failed before says nothing any more.
    pub fn moved(&mut self) {
        self.backoff.succeeded();
        if let DialState::Backoff { .. } = self.state {
            self.state = DialState::Idle;
        }
    }

    /// No more connections.
    pub fn close(&mut self) {
        self.state = DialState::Closed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_address_is_dialled_at_once() {
        let mut dialer = Dialer::new(Backoff::new(100, 1000, 3));
        dialer.want(0);
        for _ in 0..5 {
            dialer.failed(0);
        }
        assert!(matches!(dialer.want(0), Admission::Refused { .. }));
        dialer.moved();
        assert_eq!(
            (dialer.want(0), dialer.failures()),
            (Admission::QueueAndDial, 0)
        );
        // Another state says nothing of the address.
        dialer.moved();
        assert_eq!(dialer.state(), DialState::Dialing);
        let mut patient = Dialer::new(Backoff::new(u64::MAX, u64::MAX, 3));
        patient.want(7);
        patient.failed(7);
        assert!(matches!(patient.want(1 << 40), Admission::Refused { .. }));
    }

    #[test]
    fn many_want_and_one_dials() {
        let mut dialer = Dialer::new(Backoff::new(100, 1000, 3));
        assert_eq!(dialer.want(0), Admission::QueueAndDial);
        assert_eq!(dialer.want(0), Admission::Queue);
        dialer.failed(0);
        let DialState::Backoff { until_ms } = dialer.state() else {
            panic!("it failed");
        };
        assert!((50..=100).contains(&until_ms));
        let retry_in_ms = until_ms - 10;
        assert_eq!(dialer.want(10), Admission::Refused { retry_in_ms });
        assert_eq!(dialer.want(until_ms), Admission::QueueAndDial);
        assert!(dialer.connected());
        assert_eq!(dialer.want(until_ms), Admission::Queue);
        dialer.draining();
        assert_eq!(dialer.want(until_ms), Admission::Draining);
        dialer.ending();
        assert_eq!(dialer.state(), DialState::Draining);
        dialer.lost();
        assert_eq!(dialer.want(until_ms), Admission::QueueAndDial);
        assert!(dialer.connected());
        dialer.ending();
        assert_eq!(dialer.want(until_ms), Admission::Queue);
        dialer.draining();
        assert_eq!(dialer.state(), DialState::Ending);
        dialer.lost();
        assert_eq!(dialer.want(until_ms), Admission::QueueAndDial);
        dialer.close();
        assert!(!dialer.connected());
        assert_eq!(dialer.want(until_ms), Admission::Closed);
    }
}
