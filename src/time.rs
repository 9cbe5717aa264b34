//! Spans of time, between the standard library's kind and the one that moments are counted in.

use std::time::Duration;

use jiff::SignedDuration;

/// The same span; what is longer than any is the longest.
pub fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_the_longest() {
        let second = signed(Duration::from_secs(1));
        assert_eq!(second, SignedDuration::from_secs(1));
        assert_eq!(signed(Duration::MAX), SignedDuration::MAX);
    }
}
