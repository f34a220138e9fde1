//! Which indexer serves which shard: a view of the control topic, rebuilt at every change.
//!
//! [`ShardMap::of`] is a pure function of the control state. [`Maps`] holds the newest map for
//! everybody to look at; a search takes one map and keeps it, so it never sees half a change.
//! A shard has an owner, and one more replica for each replica set that claimed it. A claim that is
//! not `ready` holds its place but is not asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use shoal_runtime::tasks::Tasks;
use shoal_schemas::{Collection, CollectionName, Offset, Partition, ReplicaSet, control::Claim};
use shoal_topic::control::{ControlHandle, ControlState};
use tokio::sync::watch;
use tracing::{debug, info};

/// One node that serves a shard, by the latest claim of its replica set in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its set; `None` for the owner.
    pub set: Option<ReplicaSet>,
    /// The claim.
    pub claim: Claim,
    /// Its offset in the control topic.
    pub epoch: Offset,
}

impl Replica {
    /// The shard's owner.
    pub fn owner(claim: Claim, epoch: Offset) -> Self {
        Self {
            set: None,
            claim,
            epoch,
        }
    }
}

/// A collection and who serves its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// The definition.
    pub collection: Collection,
    /// The replicas of each shard, by its number: the owner first, then by set.
    replicas: Vec<Vec<Replica>>,
}

impl Shards {
    /// A collection whose shards nobody claimed.
    pub fn unclaimed(collection: Collection) -> Self {
        let shards = usize::try_from(collection.partitions).unwrap_or(0);
        Self {
            collection,
            replicas: vec![Vec::new(); shards],
        }
    }

    /// Adds who serves a shard, in place of an earlier claim of its set; a number there is no shard
    /// of is left out.
    pub fn claim(&mut self, shard: Partition, replica: Replica) {
        let at = usize::try_from(shard.0).unwrap_or(usize::MAX);
        let Some(replicas) = self.replicas.get_mut(at) else {
            return;
        };
        match replicas.binary_search_by(|held| held.set.cmp(&replica.set)) {
            Ok(at) => {
                if let Some(held) = replicas.get_mut(at) {
                    *held = replica;
                }
            }
            Err(at) => replicas.insert(at, replica),
        }
    }

    /// Everybody who claimed one shard, the owner first; empty also for a number there is no shard
    /// of.
    pub fn replicas(&self, shard: Partition) -> &[Replica] {
        let at = usize::try_from(shard.0).unwrap_or(usize::MAX);
        self.replicas.get(at).map_or(&[], Vec::as_slice)
    }

    /// The owner of one shard.
    pub fn owner(&self, shard: Partition) -> Option<&Replica> {
        let first = self.replicas(shard).first();
        first.filter(|replica| replica.set.is_none())
    }

    /// All shards' numbers.
    pub fn numbers(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.collection.partitions).map(Partition)
    }
}

/// All collections with the owners of their shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMap {
    collections: BTreeMap<String, Arc<Shards>>,
    is_complete: bool,
}

impl ShardMap {
    /// The map that a state of the control topic says.
    pub fn of(state: &ControlState) -> Self {
        let owners = state.shards.iter().map(|((name, shard), (claim, epoch))| {
            let owner = Replica::owner(claim.clone(), *epoch);
            (name.clone(), *shard, owner)
        });
        let others = state.replicas.iter().map(|((name, shard, set), found)| {
            let (claim, epoch) = found.clone();
            let set = Some(set.clone());
            (name.clone(), *shard, Replica { set, claim, epoch })
        });
        Self::new(
            state.collections.values().cloned(),
            owners.chain(others),
            state.caught_up_at.is_some(),
        )
    }

    /// A map of these collections and claims. Claims of shards that do not exist are left out.
    ///
    /// `is_complete` says whether the control topic has been read to its end.
    pub fn new(
        collections: impl IntoIterator<Item = Collection>,
        claims: impl IntoIterator<Item = (CollectionName, Partition, Replica)>,
        is_complete: bool,
    ) -> Self {
        let mut map: BTreeMap<String, Shards> = BTreeMap::new();
        for collection in collections {
            let name = collection.name.as_str().to_owned();
            map.insert(name, Shards::unclaimed(collection));
        }
        for (name, shard, replica) in claims {
            if let Some(shards) = map.get_mut(name.as_str()) {
                shards.claim(shard, replica);
            }
        }
        let shared = map
            .into_iter()
            .map(|(name, shards)| (name, Arc::new(shards)));
        Self {
            collections: shared.collect(),
            is_complete,
        }
    }

    /// One collection by its name.
    pub fn find(&self, collection: &str) -> Option<&Arc<Shards>> {
        self.collections.get(collection)
    }

    /// All collections, by name.
    pub fn collections(&self) -> impl Iterator<Item = &Arc<Shards>> {
        self.collections.values()
    }

    /// The collections' names for an error's text, at most twenty.
    pub fn listed_names(&self) -> String {
        const SHOWN: usize = 20;
        let shown: Vec<&str> = self
            .collections
            .keys()
            .take(SHOWN)
            .map(String::as_str)
            .collect();
        match self.collections.len().saturating_sub(SHOWN) {
            0 if shown.is_empty() => "none".into(),
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }

    /// Whether the control topic has been read to its end, so that what is absent is absent.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The addresses that any claim names.
    pub fn addresses(&self) -> BTreeSet<String> {
        let shards = self.collections.values();
        let replicas = shards.flat_map(|shards| shards.replicas.iter().flatten());
        replicas
            .map(|replica| replica.claim.address.clone())
            .collect()
    }
}

/// The newest map. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Maps(watch::Receiver<Arc<ShardMap>>);

impl Maps {
    /// Maps that change only when the sender says so.
    pub fn channel(first: ShardMap) -> (watch::Sender<Arc<ShardMap>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(first));
        (sender, Self(receiver))
    }

    /// Maps that follow the control topic. Calls `changed` with each, the first one included.
    pub fn follow(
        control: &ControlHandle,
        tasks: &Tasks,
        changed: impl Fn(&ShardMap) + Send + 'static,
    ) -> Self {
        let mut changes = control.changed();
        changes.mark_unchanged();
        let first = ShardMap::of(&control.snapshot());
        changed(&first);
        let (sender, maps) = Self::channel(first);
        let (control, cancel) = (control.clone(), tasks.cancel().clone());
        tasks.spawn("query shard map", async move {
            loop {
                let is_open = tokio::select! {
                    biased;
                    () = cancel.cancelled() => break,
                    change = changes.changed() => change.is_ok(),
                };
                if !is_open {
                    break;
                }
                let map = ShardMap::of(&control.snapshot());
                sender.send_if_modified(|held| {
                    let is_new = **held != map;
                    if is_new {
                        if map.is_complete && !held.is_complete {
                            info!(collections = map.collections.len(), "control topic is read");
                        }
                        debug!(collections = map.collections.len(), "shard map changed");
                        changed(&map);
                        *held = Arc::new(map);
                    }
                    is_new
                });
            }
            Ok::<_, Infallible>(())
        });
        maps
    }

    /// The newest map.
    pub fn now(&self) -> Arc<ShardMap> {
        self.0.borrow().clone()
    }

    /// Waits until the control topic has been read to its end; forever if it never is.
    pub async fn complete(&self) {
        let mut maps = self.0.clone();
        if maps.wait_for(|map| map.is_complete()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits, at most `patience`, for a map that `is_wanted`, and returns the newest either way.
    pub async fn wait_for(
        &self,
        patience: Duration,
        mut is_wanted: impl FnMut(&ShardMap) -> bool,
    ) -> Arc<ShardMap> {
        let mut maps = self.0.clone();
        let found = maps.wait_for(|map| is_wanted(map));
        // The newest serves in every case: wanted, too late, or the sender is gone.
        drop(tokio::time::timeout(patience, found).await);
        self.now()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{sync::Arc, time::Duration};

    use shoal_schemas::{Collection, Metric, Offset, Partition, control::Claim};

    use super::{Maps, Replica, ShardMap};

    fn claim(node: &str, ready: bool) -> Claim {
        Claim {
            node: node.into(),
            address: format!("{node}:1"),
            ready,
        }
    }

    fn map(claims: &[(u32, &str, u64)]) -> ShardMap {
        let name: shoal_schemas::CollectionName = "docs".parse().unwrap();
        let docs = Collection::new(name.clone(), 3.try_into().unwrap(), Metric::L2, 2);
        let claims = claims.iter().map(|(shard, node, epoch)| {
            let owner = Replica::owner(claim(node, true), Offset(*epoch));
            (name.clone(), Partition(*shard), owner)
        });
        ShardMap::new([docs], claims, true)
    }

    #[test]
    fn shards_know_their_owner_or_that_they_have_none() {
        let map = map(&[(1, "a", 7), (9, "b", 8)]);
        let docs = map.find("docs").unwrap();
        assert_eq!(docs.owner(Partition(0)), None);
        let owner = docs.owner(Partition(1)).unwrap();
        assert_eq!((owner.claim.node.as_str(), owner.epoch), ("a", Offset(7)));
        assert_eq!(
            docs.owner(Partition(9)),
            None,
            "a claim of no shard is left out"
        );
        assert!(map.find("nothing").is_none());
    }

    #[test]
    fn replicas_of_a_shard_come_owner_first_and_a_set_has_one() {
        let mut docs = (*map(&[]).find("docs").unwrap().clone()).clone();
        let of_set = |set: &str, node: &str| Replica {
            set: Some(set.parse().unwrap()),
            ..Replica::owner(claim(node, true), Offset(0))
        };
        let shard = Partition(1);
        docs.claim(shard, of_set("c", "c1"));
        docs.claim(shard, of_set("b", "b1"));
        assert_eq!(docs.owner(shard), None, "a replica set owns nothing");
        docs.claim(shard, Replica::owner(claim("a", true), Offset(0)));
        docs.claim(shard, of_set("b", "b2"));
        docs.claim(Partition(2), of_set("b", "b3"));
        let nodes = docs.replicas(shard).iter();
        let nodes: Vec<_> = nodes.map(|one| one.claim.node.as_str()).collect();
        assert_eq!(nodes, ["a", "b2", "c1"]);
        assert_eq!(docs.owner(shard), docs.replicas(shard).first());
        assert!(docs.replicas(Partition(2)).is_empty());
    }

    #[test]
    fn addresses_are_those_some_claim_names() {
        let addresses = map(&[(0, "a", 1), (1, "a", 2)]).addresses();
        assert_eq!(addresses.into_iter().collect::<Vec<_>>(), ["a:1"]);
    }

    #[tokio::test]
    async fn waiting_for_a_map_ends_with_it_or_with_the_patience() {
        let (sender, maps) = Maps::channel(map(&[]));
        let is_claimed = |map: &ShardMap| {
            map.find("docs")
                .is_some_and(|d| d.owner(Partition(0)).is_some())
        };
        let late = maps.wait_for(Duration::from_millis(1), is_claimed).await;
        assert!(!is_claimed(&late));
        sender.send_replace(Arc::new(map(&[(0, "a", 1)])));
        let found = maps.wait_for(Duration::from_secs(60), is_claimed).await;
        assert!(is_claimed(&found));
    }
}
