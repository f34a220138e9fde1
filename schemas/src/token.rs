//! Proof of one write, for a search that has to see it.
//!
//! A token names the record twice: by its place in the log, which the shard that consumed that
//! very log waits for, and by key and version, which another region waits for. As text it is the
//! protobuf message in URL-safe base64 without padding, so it fits a header or a query string.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message as _;

use crate::{
    log::{ClusterId, Offset, Partition},
    name::{NameError, RegionName},
    point::{IdError, PointId},
    v1,
    version::Version,
};

/// Where the log keeps one write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The cluster that took the write.
    pub cluster: ClusterId,
    /// The topic's full name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: Partition,
    /// The record's place in it.
    pub offset: Offset,
    /// The point written or deleted.
    pub key: PointId,
    /// The write's version.
    pub version: Version,
    /// The region whose gateway wrote it, if that is known. Decides nothing.
    pub region: Option<RegionName>,
}

/// Why a token does not read.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not URL-safe base64 without padding.
    #[error("token is no URL-safe base64 without padding")]
    Base64(#[from] base64::DecodeError),
    /// The bytes are no `shoal.v1.Token`.
    #[error("token is no `shoal.v1.Token` message")]
    Message(#[from] prost::DecodeError),
    /// A field that every token has is empty.
    #[error("token says no {0}")]
    Missing(&'static str),
    /// The key is no id.
    #[error("token's key is refused")]
    Key(#[from] IdError),
    /// The region is no name.
    #[error("token's region is refused")]
    Region(#[from] NameError),
}

impl Token {
    /// The message that goes over the wire.
    pub fn to_proto(&self) -> v1::Token {
        v1::Token {
            cluster_id: self.cluster.0.to_string(),
            topic: self.topic.to_string(),
            partition: self.partition.0,
            offset: self.offset.0,
            key: self.key.as_str().to_owned(),
            version: self.version.raw(),
            region: self.region.clone().map_or(String::new(), String::from),
        }
    }

    /// Checks a message.
    ///
    /// # Errors
    /// [`TokenError::Missing`], [`TokenError::Key`] and [`TokenError::Region`].
    pub fn from_proto(token: v1::Token) -> Result<Self, TokenError> {
        if token.cluster_id.is_empty() {
            return Err(TokenError::Missing("cluster id"));
        }
        if token.topic.is_empty() {
            return Err(TokenError::Missing("topic"));
        }
        Ok(Self {
            cluster: ClusterId(token.cluster_id.into()),
            topic: token.topic.into(),
            partition: Partition(token.partition),
            offset: Offset(token.offset),
            key: PointId::new(&token.key)?,
            version: Version::from_raw(token.version),
            region: match token.region.as_str() {
                "" => None,
                region => Some(region.parse()?),
            },
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.to_proto().encode_to_vec()))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim())?;
        Self::from_proto(v1::Token::decode(bytes.as_slice())?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::{Token, TokenError};
    use crate::{Offset, Partition, PointId, Version};

    fn token(topic: &str, place: (u32, u64), key: &str, version: u64) -> Token {
        Token {
            cluster: "MkU3OEVBNTcwNTJENDM2Qk".into(),
            topic: topic.into(),
            partition: Partition(place.0),
            offset: Offset(place.1),
            key: PointId::new(key).unwrap(),
            version: Version::from_raw(version),
            region: None,
        }
    }

    #[test]
    fn a_token_once_given_still_reads() {
        let text = "ChZNa1UzT0VWQk5UY3dOVEpFTkRNMlFrEg9lbWJlZGRpbmdzLmRvY3MYAyCHrUsqB2NhZsOpLzEwhYCAwNb888UB";
        let given = token(
            "embeddings.docs",
            (3, 1_234_567),
            "café/1",
            111_411_200_000_000_005,
        );
        assert_eq!(given.to_string(), text);
        assert_eq!(text.parse::<Token>().unwrap(), given);
    }

    #[test]
    fn each_fault_of_a_token_is_named() {
        assert!(matches!("a b".parse::<Token>(), Err(TokenError::Base64(_))));
        assert!(matches!(
            "____".parse::<Token>(),
            Err(TokenError::Message(_))
        ));
        assert!(matches!(
            "".parse::<Token>(),
            Err(TokenError::Missing("cluster id"))
        ));
        let mut proto = token("t", (0, 0), "k", 0).to_proto();
        proto.key.clear();
        assert!(matches!(
            Token::from_proto(proto.clone()),
            Err(TokenError::Key(_))
        ));
        proto.key.push('k');
        proto.region.push_str("Europe");
        assert!(matches!(
            Token::from_proto(proto.clone()),
            Err(TokenError::Region(_))
        ));
        proto.topic.clear();
        let refused = Token::from_proto(proto).unwrap_err();
        assert_eq!(refused.to_string(), "token says no topic");
    }

    proptest! {
        #[test]
        fn every_token_reads_back(
            topic in "[a-z.]{1,20}",
            place: (u32, u64),
            key in "\\PC{1,80}",
            version: u64,
            region in proptest::option::of("[a-z]{1,6}-[0-9]"),
        ) {
            let given = Token {
                region: region.map(|name| name.parse().unwrap()),
                ..token(&topic, place, &key, version)
            };
            prop_assert_eq!(given.to_string().parse::<Token>().unwrap(), given);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _refused_or_not = text.parse::<Token>();
        }
    }
}
