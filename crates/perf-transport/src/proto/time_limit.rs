//! How long a caller waits, in one byte of the header.

use std::time::Duration;

/// Bits of a [`TimeLimit`] behind the leading one.
const FRACTION_BITS: u32 = 3;
const FRACTIONS: u64 = 1 << FRACTION_BITS;
/// The longest that has a code.
const LONGEST_MS: u64 = 14 << 28;

/// How long the caller of a request waits for its answer, as sent in the request's header: a floating-point number of
/// milliseconds with five bits of exponent and three of fraction, rounded up, so that it is never shorter than what the
/// caller said and at most an eighth longer.
///
/// The code 0 stands for no limit, which is also sent for limits past the longest (43 days).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeLimit(u8);

impl TimeLimit {
    /// The caller waits for ever, or there is no caller.
    pub const NONE: Self = Self(0);

    /// Of so many milliseconds, at least 1.
    #[inline]
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        if millis > LONGEST_MS {
            return Self::NONE;
        }
        let millis = if millis == 0 { 1 } else { millis };
        let exponent = millis.ilog2();
        let rest = millis - (1 << exponent);
        // A fraction of 8/8 carries into the exponent, as it should.
        let fraction = (rest << FRACTION_BITS).div_ceil(1 << exponent);
        Self((((exponent as u64) << FRACTION_BITS) + fraction + 1) as u8)
    }

    /// The byte on the wire.
    #[inline]
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// From the byte on the wire. Each byte is one.
    #[inline]
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        Self(code)
    }

    /// How long that is; `None` without a limit.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        let code = u64::from(self.0.checked_sub(1)?);
        let (exponent, fraction) = (code >> FRACTION_BITS, code % FRACTIONS);
        // Below 8 ms not every code is a whole number.
        let millis = ((FRACTIONS + fraction) << exponent).div_ceil(FRACTIONS);
        Some(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(millis: u64) -> Option<u64> {
        let limit = TimeLimit::from_millis(millis);
        let duration = TimeLimit::from_code(limit.code()).duration();
        duration.map(|duration| u64::try_from(duration.as_millis()).expect("it is short"))
    }

    #[test]
    fn a_limit_is_never_shorter_and_at_most_an_eighth_longer() {
        let powers = (0..34).flat_map(|power| (0..2000).map(move |more| (1_u64 << power) + more));
        for millis in powers.filter(|millis| *millis <= LONGEST_MS) {
            let sent = sent(millis).unwrap_or_else(|| panic!("{millis} ms have no code"));
            assert!(sent >= millis, "{millis} ms became {sent}");
            assert!(sent - millis <= millis / 8, "{millis} ms became {sent}");
        }
        assert_eq!(sent(0), Some(1));
        assert_eq!(sent(30_000), Some(30_720));
    }

    #[test]
    fn what_is_too_long_has_no_limit() {
        assert_eq!(TimeLimit::from_millis(LONGEST_MS).code(), u8::MAX);
        assert_eq!(sent(LONGEST_MS), Some(LONGEST_MS));
        assert_eq!(TimeLimit::from_millis(LONGEST_MS + 1), TimeLimit::NONE);
        assert_eq!(sent(u64::MAX), None);
        assert_eq!(TimeLimit::NONE.duration(), None);
    }

    #[test]
    fn longer_limits_have_greater_codes() {
        let durations: Vec<_> = (1..=u8::MAX)
            .map(|code| TimeLimit::from_code(code).duration())
            .collect();
        assert!(durations.is_sorted());
    }
}
