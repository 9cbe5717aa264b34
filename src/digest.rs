//! The two digests of a repository, each for one thing.
//!
//! [`PlainDigest`] (BLAKE3) says what a thing *is*; [`StoredDigest`] (SHA-256) says that the
//! bytes in the store *arrived whole*. `b3sum` and `sha256sum` print the same digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// BLAKE3 of plain bytes, cut to its first 16 bytes: 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlainDigest([u8; 16]);

/// SHA-256 of stored (compressed, perhaps encrypted) bytes: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoredDigest([u8; 32]);

/// A text that is no digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a digest of {1} lower-case hexadecimal digits")]
pub struct DigestError(String, usize);

impl PlainDigest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = PlainHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The same digits as a number, to fold many into one.
    pub fn as_number(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl StoredDigest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = StoredHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Computes a [`PlainDigest`] piece by piece.
#[derive(Default, Clone)]
pub struct PlainHasher(blake3::Hasher);

impl PlainHasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    pub fn finish(&self) -> PlainDigest {
        let mut short = [0; 16];
        short.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        PlainDigest(short)
    }
}

/// Computes a [`StoredDigest`] piece by piece.
#[derive(Default, Clone)]
pub struct StoredHasher(sha2::Sha256);

impl StoredHasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    pub fn finish(self) -> StoredDigest {
        StoredDigest(self.0.finalize().into())
    }
}

macro_rules! as_hex {
    ($name:ident, $digits:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<Self, DigestError> {
                let wrong = || DigestError(text.chars().take(80).collect(), $digits);
                if text.len() != $digits || text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(wrong());
                }
                let mut bytes = [0; $digits / 2];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| wrong())?;
                Ok(Self(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
as_hex!(PlainDigest, 32);
as_hex!(StoredDigest, 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_print_what_b3sum_and_sha256sum_print() {
        // printf abc | b3sum ; printf abc | sha256sum
        assert_eq!(
            PlainDigest::of(b"abc").to_string(),
            "6437b3ac38465133ffb63b75273a8db5"
        );
        assert_eq!(
            StoredDigest::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_digest_reads_back_and_anything_else_is_refused() {
        let digest = PlainDigest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for wrong in [
            "",
            "6437",
            "6437B3AC38465133FFB63B75273A8DB5",
            "zz37b3ac38465133ffb63b75273a8db5",
        ] {
            assert!(wrong.parse::<PlainDigest>().is_err());
        }
    }
}
