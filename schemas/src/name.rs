//! Names of collections, regions and replica sets, and the topics they stand for.
//!
//! MirrorMaker splits topic names at dots and skips some suffixes, so a name that would confuse
//! it is refused here, once, and cannot exist further in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Prefix of every topic of embeddings.
pub const TOPIC_PREFIX: &str = "embeddings.";
/// Prefix of every dead-letter topic.
pub const DLQ_PREFIX: &str = "shoal.dlq.";
/// The compacted topic of definitions and ownership.
pub const CONTROL_TOPIC: &str = "shoal.control";

const MAX_NAME_BYTES: usize = 128;
const RESERVED: [&str; 4] = ["internal", "replica", "embeddings", "shoal"];

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or longer than a topic name can carry.
    #[error("name `{name}` has {name_bytes} bytes, allowed are 1 to {MAX_NAME_BYTES}")]
    Length {
        /// The name as given.
        name: String,
        /// Its length.
        name_bytes: usize,
    },
    /// Outside `[a-z0-9][a-z0-9_-]*`.
    #[error("name `{name}` has `{found}` at byte {at}, allowed is [a-z0-9][a-z0-9_-]*")]
    Character {
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        found: char,
        /// Where it stands.
        at: usize,
    },
    /// MirrorMaker or Shoal itself uses it.
    #[error("name `{name}` is reserved")]
    Reserved {
        /// The name as given.
        name: String,
    },
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(NameError::Length {
            name: name.to_owned(),
            name_bytes: name.len(),
        });
    }
    let bad = name.char_indices().find(|&(at, c)| {
        let first = c.is_ascii_lowercase() || c.is_ascii_digit();
        !(first || at > 0 && matches!(c, '_' | '-'))
    });
    if let Some((at, found)) = bad {
        return Err(NameError::Character {
            name: name.to_owned(),
            found,
            at,
        });
    }
    let reserved =
        RESERVED.contains(&name) || name.starts_with("resident-") || name.ends_with("-internal");
    if reserved {
        return Err(NameError::Reserved {
            name: name.to_owned(),
        });
    }
    Ok(())
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                check(name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                check(&name)?;
                Ok(Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name! {
    /// Name of a collection; one topic, one index.
    CollectionName
}
checked_name! {
    /// Name of a region: one Kafka cluster and the Shoal nodes beside it.
    RegionName
}
checked_name! {
    /// Name of a replica set: indexers that serve every shard once more.
    ReplicaSet
}

impl CollectionName {
    /// The collection's home topic, `embeddings.<name>`.
    pub fn topic(&self) -> String {
        format!("{TOPIC_PREFIX}{}", self.0)
    }

    /// The topic its refused records go to, `shoal.dlq.embeddings.<name>`.
    pub fn dlq_topic(&self) -> String {
        dlq_topic(&self.topic())
    }

    /// The collection whose home topic this is; `None` for any other topic.
    pub fn from_topic(topic: &str) -> Option<Self> {
        topic.strip_prefix(TOPIC_PREFIX)?.parse().ok()
    }
}

/// The topic that refused records of `topic` go to.
pub fn dlq_topic(topic: &str) -> String {
    format!("{DLQ_PREFIX}{topic}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{CollectionName, NameError};

    #[test]
    fn plain_names_make_topics_and_come_back() {
        let name: CollectionName = "word-net_2".parse().unwrap();
        assert_eq!(name.topic(), "embeddings.word-net_2");
        assert_eq!(name.dlq_topic(), "shoal.dlq.embeddings.word-net_2");
        assert_eq!(CollectionName::from_topic(&name.topic()), Some(name));
    }

    #[test]
    fn names_that_mirrormaker_would_misread_are_refused() {
        for name in ["internal", "replica", "resident-eu", "x-internal", "shoal"] {
            let refused = name.parse::<CollectionName>();
            assert!(matches!(refused, Err(NameError::Reserved { .. })), "{name}");
        }
        for name in ["a.b", "-a", "_a", "Ab", "a b", "é"] {
            let refused = name.parse::<CollectionName>();
            assert!(
                matches!(refused, Err(NameError::Character { .. })),
                "{name}"
            );
        }
        let long = "a".repeat(129);
        for name in ["", long.as_str()] {
            let refused = name.parse::<CollectionName>();
            assert!(matches!(refused, Err(NameError::Length { .. })), "{name}");
        }
    }
}
