//! The name an answer is kept under: a strong hash of all that it is an answer to.
//!
//! Every part goes in with its length, and what the name is for goes in first, so that no two
//! questions have one name: not those of two collections, clusters or tenants either.

use std::fmt;

/// The name of a kept answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// A name in the making.
#[derive(Clone)]
pub(crate) struct KeyOf(blake3::Hasher);

impl KeyOf {
    /// Begins the name of something; another use has another text.
    pub(crate) fn new(what_for: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(what_for))
    }

    /// Adds a part.
    #[must_use]
    pub(crate) fn with(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        self.0.update(&length.to_le_bytes());
        self.0.update(part);
        self
    }

    /// The name.
    pub(crate) fn finish(self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::KeyOf;

    fn key(what_for: &str, parts: &[String]) -> super::Key {
        let all = parts.iter().fold(KeyOf::new(what_for), KeyOf::with);
        all.finish()
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let parts = |parts: &[&str]| {
            parts
                .iter()
                .map(|part| (*part).to_owned())
                .collect::<Vec<_>>()
        };
        let names = [
            key("a", &parts(&["docs", "acme"])),
            key("a", &parts(&["docsa", "cme"])),
            key("a", &parts(&["docsacme"])),
            key("a", &parts(&["docs", "acme", ""])),
            key("b", &parts(&["docs", "acme"])),
        ];
        for (at, one) in names.iter().enumerate() {
            assert!(names.iter().skip(at + 1).all(|other| other != one), "{at}");
        }
    }

    proptest! {
        #[test]
        fn names_are_equal_exactly_where_all_parts_are(
            a in proptest::collection::vec("[ab]{0,3}", 0..4),
            b in proptest::collection::vec("[ab]{0,3}", 0..4),
        ) {
            prop_assert_eq!(key("x", &a) == key("x", &b), a == b);
        }
    }
}
