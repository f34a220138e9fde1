//! Which shard has to show a token's write: pure.
//!
//! A token of this cluster's home topic names its shard itself, by its partition. One of another
//! cluster, of a mirrored topic, or of the topic that the collection was fed from, is waited for
//! where its key lives. One that fits nowhere is refused: a token is never passed over.

use std::collections::BTreeMap;

use shoal_schemas::{
    ClusterId, Collection, Partition, PointId, RegionName, point::IdError, route, v1,
};

/// Tokens by the shard that has to show their writes.
pub type TokensByShard = BTreeMap<Partition, Vec<v1::Token>>;

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A field that every token has is empty.
    #[error("token {at} says no {field}; send tokens as an upsert or delete answered them")]
    Missing {
        /// Its place in the request, from 0.
        at: usize,
        /// The field.
        field: &'static str,
    },
    /// It is about another topic.
    #[error(
        "token {at} is of topic `{topic}`, a search of `{collection}` takes tokens of \
         `{collection_topic}` or `<region>.{collection_topic}`"
    )]
    OtherTopic {
        /// Its place in the request, from 0.
        at: usize,
        /// Its topic.
        topic: String,
        /// The collection searched.
        collection: String,
        /// The collection's topic.
        collection_topic: String,
    },
    /// No such partition.
    #[error("token {at} is of partition {partition}, the collection has {partitions}")]
    Partition {
        /// Its place in the request, from 0.
        at: usize,
        /// Its partition.
        partition: u32,
        /// The collection's partitions.
        partitions: u32,
    },
    /// Its key is no id.
    #[error("token {at} has a key that is no id")]
    Key {
        /// Its place in the request, from 0.
        at: usize,
        #[source]
        /// What is wrong with it.
        source: IdError,
    },
}

/// Sorts tokens to the shards that have to show their writes.
///
/// # Errors
/// [`TokenError`] for the first one that fits no shard.
pub fn by_shard(
    collection: &Collection,
    home: &ClusterId,
    tokens: Vec<v1::Token>,
) -> Result<TokensByShard, TokenError> {
    let mut by_shard = TokensByShard::new();
    for (at, token) in tokens.into_iter().enumerate() {
        let shard = shard_of(collection, home, at, &token)?;
        by_shard.entry(shard).or_default().push(token);
    }
    Ok(by_shard)
}

fn shard_of(
    collection: &Collection,
    home: &ClusterId,
    at: usize,
    token: &v1::Token,
) -> Result<Partition, TokenError> {
    for (field, text) in [("cluster id", &token.cluster_id), ("topic", &token.topic)] {
        if text.is_empty() {
            return Err(TokenError::Missing { at, field });
        }
    }
    let topic = collection.topic();
    let key = || PointId::new(&token.key).map_err(|source| TokenError::Key { at, source });
    // As many partitions as it likes: what it says is a key and a version.
    if (collection.fed_by.as_ref()).is_some_and(|feeder| token.topic == feeder.topic()) {
        return Ok(route::partition_of(collection, &key()?));
    }
    let is_home_topic = token.topic == topic;
    if !is_home_topic && !is_mirror(&token.topic, &topic) {
        return Err(TokenError::OtherTopic {
            at,
            topic: token.topic.clone(),
            collection: collection.name.to_string(),
            collection_topic: topic,
        });
    }
    // Every region has as many partitions, so the rule holds for foreign tokens too.
    if token.partition >= collection.partitions {
        return Err(TokenError::Partition {
            at,
            partition: token.partition,
            partitions: collection.partitions,
        });
    }
    if is_home_topic && *token.cluster_id == *home.0 {
        return Ok(Partition(token.partition));
    }
    Ok(route::partition_of(collection, &key()?))
}

/// Whether `topic` is `<region>.<home>`.
fn is_mirror(topic: &str, home: &str) -> bool {
    let region = topic
        .strip_suffix(home)
        .and_then(|rest| rest.strip_suffix('.'));
    region.is_some_and(|region| region.parse::<RegionName>().is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{ClusterId, Collection, Metric, Partition, PointId, route, v1};

    use super::{TokenError, by_shard};

    fn docs() -> Collection {
        Collection::new(
            "docs".parse().unwrap(),
            3.try_into().unwrap(),
            Metric::L2,
            4,
        )
    }

    fn token(cluster: &str, topic: &str, partition: u32, key: &str) -> v1::Token {
        v1::Token {
            cluster_id: cluster.into(),
            topic: topic.into(),
            partition,
            key: key.into(),
            ..v1::Token::default()
        }
    }

    fn shard_of(token: v1::Token) -> Result<Partition, TokenError> {
        let sorted = by_shard(&docs(), &ClusterId::from("home"), vec![token])?;
        assert_eq!(sorted.len(), 1);
        Ok(*sorted.first_key_value().unwrap().0)
    }

    #[test]
    fn a_token_of_the_home_topic_goes_to_its_partition() {
        for partition in 0..4 {
            let shard = shard_of(token("home", "embeddings.docs", partition, "k"));
            assert_eq!(shard, Ok(Partition(partition)));
        }
    }

    #[test]
    fn a_token_from_elsewhere_goes_where_its_key_lives() {
        for key in ["a", "b", "c", "ten/1"] {
            let lives = route::partition_of(&docs(), &PointId::new(key).unwrap());
            let other = (lives.0 + 1) % 4;
            for (cluster, topic) in [
                ("abroad", "embeddings.docs"),
                ("abroad", "eu-1.embeddings.docs"),
                ("home", "eu-1.embeddings.docs"),
            ] {
                assert_eq!(
                    shard_of(token(cluster, topic, other, key)),
                    Ok(lives),
                    "{topic}"
                );
            }
        }
    }

    #[test]
    fn a_generation_takes_the_tokens_of_the_topic_it_reads_or_was_fed_from() {
        let by = |docs: &Collection, token| {
            let sorted = by_shard(docs, &ClusterId::from("home"), vec![token])?;
            Ok::<_, TokenError>(*sorted.first_key_value().unwrap().0)
        };
        let mut reader = docs();
        reader.name = "docs-g2".parse().unwrap();
        reader.reads = Some("docs".parse().unwrap());
        let given = token("home", "embeddings.docs", 3, "k");
        assert_eq!(by(&reader, given.clone()), Ok(Partition(3)));
        let own = token("home", "embeddings.docs-g2", 3, "k");
        assert!(by(&reader, own.clone()).is_err());

        let mut fed = docs();
        fed.name = "docs-g2".parse().unwrap();
        fed.fed_by = Some("docs".parse().unwrap());
        fed.partitions = 2;
        let lives = route::partition_of(&fed, &PointId::new("k").unwrap());
        assert_eq!(by(&fed, given), Ok(lives));
        let far = token("home", "embeddings.docs-g2", 1, "k");
        assert_eq!(by(&fed, far), Ok(Partition(1)));
        assert!(by(&fed, own).is_err(), "its own topic has two partitions");
    }

    #[test]
    fn a_token_that_fits_nowhere_is_refused_by_name() {
        for topic in [
            "embeddings.other",
            "docs",
            "xembeddings.docs",
            ".embeddings.docs",
            "a.b.embeddings.docs",
            "embeddings.embeddings.docs",
        ] {
            let refused = shard_of(token("home", topic, 0, "k")).unwrap_err();
            assert!(
                matches!(refused, TokenError::OtherTopic { .. }),
                "{topic}: {refused}"
            );
            assert!(refused.to_string().contains(topic), "{refused}");
        }
        let refused = shard_of(token("home", "embeddings.docs", 4, "k")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "token 0 is of partition 4, the collection has 4"
        );
        let refused = shard_of(token("abroad", "embeddings.docs", 0, "")).unwrap_err();
        assert!(
            matches!(refused, TokenError::Key { at: 0, .. }),
            "{refused}"
        );
        let refused = shard_of(token("", "embeddings.docs", 0, "k")).unwrap_err();
        assert!(matches!(refused, TokenError::Missing { .. }), "{refused}");
        let refused = shard_of(token("home", "", 0, "k")).unwrap_err();
        assert!(matches!(refused, TokenError::Missing { .. }), "{refused}");
    }

    #[test]
    fn tokens_of_one_shard_stay_in_order() {
        let mut tokens: Vec<_> = (0..3)
            .map(|_| token("home", "embeddings.docs", 2, "k"))
            .collect();
        for (offset, token) in (0..).zip(&mut tokens) {
            token.offset = offset;
        }
        let sorted = by_shard(&docs(), &ClusterId::from("home"), tokens.clone()).unwrap();
        assert_eq!(sorted.get(&Partition(2)), Some(&tokens));
    }
}
