//! Names of objects: a hash of the content, and its length.
//!
//! CRC-32 finds damage, but it is too short to tell two files apart: two owners that build the
//! same segment of the same shard would, in time, have a graph of one length and one CRC, and one
//! would be served with the other's. So the name is the first half of a BLAKE3.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
};

use blake3::Hasher;
use serde::{Deserialize, Serialize};

const READ_BYTES: usize = 1 << 20;
const HEX_DIGITS: usize = 32;

/// What an object is called: 32 hexadecimal digits, a dash, its length.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

impl ObjectName {
    /// The length in it.
    pub fn bytes(&self) -> u64 {
        let digits = self.0.get(HEX_DIGITS + 1..);
        let bytes = digits.and_then(|digits| digits.parse().ok());
        bytes.expect("a name is only made with its length")
    }

    fn parse(text: &str) -> Option<Self> {
        let (hash, bytes) = text.split_once('-')?;
        let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let is_ours = hash.len() == HEX_DIGITS
            && hash.bytes().all(is_hex)
            && bytes.parse::<u64>().is_ok_and(|n| n.to_string() == bytes);
        is_ours.then(|| Self(text.to_owned()))
    }
}

impl TryFrom<String> for ObjectName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is no object's name"))
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What some content looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Its length.
    pub bytes: u64,
    /// Its CRC-32.
    pub crc32: u32,
    /// What an object of it is called.
    pub object: ObjectName,
}

/// Takes content in, piece by piece.
#[derive(Default)]
pub(super) struct Looker {
    bytes: u64,
    crc: crc32fast::Hasher,
    hash: Hasher,
}

impl Looker {
    /// Takes the next piece.
    pub(super) fn take(&mut self, piece: &[u8]) {
        let len = u64::try_from(piece.len()).expect("a length fits 64 bits");
        self.bytes = self.bytes.saturating_add(len);
        self.crc.update(piece);
        self.hash.update(piece);
    }

    /// What everything taken looks like.
    pub(super) fn look(self) -> Look {
        let hex = self.hash.finalize().to_hex();
        let half = hex.get(..HEX_DIGITS).expect("a BLAKE3 has 64 digits");
        Look {
            bytes: self.bytes,
            crc32: self.crc.finalize(),
            object: ObjectName(format!("{half}-{}", self.bytes)),
        }
    }
}

/// Reads a file from where it stands to its end. Blocks.
///
/// # Errors
/// The system's own.
pub(super) fn look_at(mut file: &File) -> io::Result<Look> {
    let mut looker = Looker::default();
    let mut piece = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(looker.look());
        }
        looker.take(piece.split_at(read).0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Looker, ObjectName};

    #[test]
    fn a_name_holds_hash_and_length_and_nothing_else_is_one() {
        let mut looker = Looker::default();
        looker.take(b"sho");
        looker.take(b"al");
        let look = looker.look();
        assert_eq!((look.bytes, look.object.bytes()), (5, 5));
        assert_eq!(look.crc32, crc32fast::hash(b"shoal"));
        let text = look.object.to_string();
        assert_eq!(ObjectName::parse(&text), Some(look.object));
        for bad in [
            "",
            "x-5",
            "../../etc-5",
            &text[..33],
            &text.replace("-5", "-05"),
        ] {
            assert_eq!(ObjectName::parse(bad), None, "{bad}");
        }
    }
}
