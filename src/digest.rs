//! The two digests of a repository, each for one thing.
//!
//! [`PlainDigest`] (BLAKE3) says what a thing *is*; [`StoredDigest`] (SHA-256) says that the
//! bytes in the store *arrived whole*. `b3sum` and `sha256sum` print the same digits.

use std::fmt;
use std::str::FromStr;

use blake3::hazmat::HasherExt;
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

    /// The digest of `size` bytes out of the digests of their parts, in order: all of
    /// [`part_size`](Subtree) bytes, and the last of what is left.
    pub fn of_parts(parts: &[Subtree], part_size: u64, size: u64) -> Self {
        let (left, right) = Subtree::join_both(parts, part_size, size);
        let mode = blake3::hazmat::Mode::Hash;
        PlainHasher::cut(&blake3::hazmat::merge_subtrees_root(
            &left.0, &right.0, mode,
        ))
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
        Self::cut(&self.0.finalize())
    }

    /// For a part of something larger that begins at byte `offset` of it, a multiple of the size
    /// of its parts. It ends with [`finish_part`](Self::finish_part).
    pub fn of_part(offset: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        Self(hasher)
    }

    /// The digest of a part, which has bytes.
    pub fn finish_part(&self) -> Subtree {
        Subtree(self.0.finalize_non_root())
    }

    fn cut(whole: &blake3::Hash) -> PlainDigest {
        let mut short = [0; 16];
        short.copy_from_slice(&whole.as_bytes()[..16]);
        PlainDigest(short)
    }
}

/// What is known of a part of something whose [`PlainDigest`] is made of several: all parts but
/// the last have the same size, a power of two of at least 1 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subtree([u8; 32]);

impl Subtree {
    fn join(parts: &[Self], part_size: u64, size: u64) -> Self {
        if let [only] = parts {
            return *only;
        }
        let (left, right) = Self::join_both(parts, part_size, size);
        let mode = blake3::hazmat::Mode::Hash;
        Self(blake3::hazmat::merge_subtrees_non_root(
            &left.0, &right.0, mode,
        ))
    }

    /// The two halves of a tree.
    fn join_both(parts: &[Self], part_size: u64, size: u64) -> (Self, Self) {
        let left = blake3::hazmat::left_subtree_len(size);
        let (one, other) = parts.split_at((left / part_size) as usize);
        let right = Self::join(other, part_size, size - left);
        (Self::join(one, part_size, left), right)
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
    fn parts_make_the_digest_of_the_whole() {
        let bytes: Vec<u8> = (0..70_000u32).map(|i| (i / 3) as u8).collect();
        for size in [4097, 8192, 12_288, 65_536, 65_537, 70_000] {
            let parts: Vec<Subtree> = bytes[..size]
                .chunks(4096)
                .enumerate()
                .map(|(at, part)| {
                    let mut hasher = PlainHasher::of_part(at as u64 * 4096);
                    part.chunks(1000).for_each(|piece| hasher.update(piece));
                    hasher.finish_part()
                })
                .collect();
            let digest = PlainDigest::of_parts(&parts, 4096, size as u64);
            assert_eq!(digest, PlainDigest::of(&bytes[..size]), "{size} bytes");
        }
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
