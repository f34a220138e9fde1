//! A shard map in etcd: indexers put definitions and claims there, claims under a lease.
//!
//! The keys are those of the control topic behind a prefix, and `cluster`. All of them are read once,
//! then watched from that revision on; when the watch ends, they are read again.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use shoal_runtime::{chain, tasks::Tasks};
use shoal_schemas::{
    ClusterId,
    control::{Entry, Key},
};
use shoal_topic::etcd::{CLUSTER_KEY, Client, Config, EtcdError, LeasedClaim};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Trouble;
use crate::{
    coordinator::HomeCluster,
    shard_map::{Feed, Replica, ShardMap},
};

/// How long to wait before an etcd that failed is asked again.
const RETRY: Duration = Duration::from_millis(500);

pub(super) fn spawn(
    config: &Config,
    feed: Feed,
    home: HomeCluster,
    trouble: Trouble,
    tasks: &Tasks,
) {
    let (config, cancel) = (config.clone(), tasks.cancel().clone());
    tasks.spawn("query map etcd", async move {
        while !cancel.is_cancelled() {
            let Err(error) = follow(&config, &feed, &home, &trouble, &cancel).await else {
                break;
            };
            trouble.failed(chain(&error).to_string());
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        Ok::<_, Infallible>(())
    });
}

/// Follows until cancelled.
async fn follow(
    config: &Config,
    feed: &Feed,
    home: &HomeCluster,
    trouble: &Trouble,
    cancel: &CancellationToken,
) -> Result<(), EtcdError> {
    let client = Client::connect(config)?;
    let (pairs, revision) = client.all().await?;
    let mut held: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    held.extend(pairs.into_iter().map(|pair| (pair.key, pair.value)));
    let mut watch = client.watch(revision + 1).await?;
    trouble.over();
    loop {
        if let Some(id) = held.get(CLUSTER_KEY) {
            let id = String::from_utf8_lossy(id).into_owned();
            // The first one counts: a node does not change its cluster.
            drop(home.set(ClusterId::from(id)));
        }
        feed.put(map_of(&held));
        let changes = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            changes = watch.next() => changes?,
        };
        for change in changes {
            match change.value {
                Some(value) => held.insert(change.key, value),
                None => held.remove(&change.key),
            };
        }
    }
}

/// The map that these keys say. One that does not read is named and left out.
fn map_of(held: &BTreeMap<String, Vec<u8>>) -> ShardMap {
    let mut collections = Vec::new();
    let mut claims = Vec::new();
    let mut aliases = Vec::new();
    for (text, value) in held {
        let Some(key) = Key::decode(text) else {
            continue;
        };
        let place = match &key {
            Key::Collection(name) => match Entry::decode(&key, value) {
                Ok(Entry::Collection(found)) if found.name == *name => {
                    collections.push(*found);
                    continue;
                }
                Ok(_) => continue,
                Err(error) => {
                    warn!(key = text, error = %chain(&error), "key of etcd is skipped");
                    continue;
                }
            },
            Key::Alias(name) => {
                match Entry::decode(&key, value) {
                    Ok(Entry::Alias(alias)) => aliases.push((name.clone(), alias.collection)),
                    Ok(_) => {}
                    Err(error) => {
                        warn!(key = text, error = %chain(&error), "key of etcd is skipped");
                    }
                }
                continue;
            }
            Key::Shard(name, shard) => (name.clone(), *shard, None),
            Key::Replica(name, shard, set) => (name.clone(), *shard, Some(set.clone())),
            Key::Node(_) | Key::Feed(_) | Key::Reindex(_) => continue,
        };
        match LeasedClaim::decode(value) {
            Ok(LeasedClaim { claim, epoch }) => {
                let (name, shard, set) = place;
                claims.push((name, shard, Replica { set, claim, epoch }));
            }
            Err(error) => warn!(key = text, %error, "key of etcd is skipped"),
        }
    }
    ShardMap::new(collections, claims, true).aliased(aliases)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use shoal_schemas::{
        Collection, Metric, Offset, Partition,
        control::{Alias, Claim, Entry, Key},
    };
    use shoal_topic::etcd::LeasedClaim;

    use super::map_of;

    #[test]
    fn keys_make_a_map_and_what_does_not_read_is_left_out() {
        let dim = 3.try_into().unwrap();
        let docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 2);
        let name = docs.name.clone();
        let claim = LeasedClaim {
            claim: Claim {
                node: "a".into(),
                address: "a:1".into(),
                ready: true,
                next_offset: Some(Offset(3)),
                early: false,
            },
            epoch: Offset(7),
        };
        let set = "b".parse().unwrap();
        let held = BTreeMap::from([
            (
                Key::Collection(name.clone()).encode(),
                Entry::Collection(Box::new(docs)).encode(),
            ),
            (
                Key::Shard(name.clone(), Partition(0)).encode(),
                claim.encode(),
            ),
            (
                Key::Replica(name.clone(), Partition(0), set).encode(),
                claim.encode(),
            ),
            (
                Key::Shard(name, Partition(1)).encode(),
                b"nonsense".to_vec(),
            ),
            (
                Key::Alias("live".parse().unwrap()).encode(),
                Entry::Alias(Alias {
                    collection: "docs".parse().unwrap(),
                })
                .encode(),
            ),
            ("alias/broken".to_owned(), b"{}".to_vec()),
            ("collection/broken".to_owned(), b"{}".to_vec()),
            ("somebody-elses".to_owned(), b"{}".to_vec()),
        ]);
        let map = map_of(&held);
        let docs = map.find("docs").unwrap();
        assert_eq!(map.collections().count(), 1);
        assert_eq!(map.aliases().collect::<Vec<_>>(), [("live", "docs")]);
        let owner = docs.owner(Partition(0)).unwrap();
        assert_eq!(
            (owner.claim.address.as_str(), owner.epoch),
            ("a:1", Offset(7))
        );
        assert_eq!(docs.replicas(Partition(0)).len(), 2);
        assert!(docs.replicas(Partition(1)).is_empty() && map.is_complete());
    }
}
