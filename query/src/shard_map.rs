//! Which indexer serves which shard: a view of the control topic, or of another source, rebuilt at
//! every change.
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
use shoal_schemas::{
    Collection, CollectionName, Offset, Partition, ReplicaSet, control::Claim, placement::Labels,
};
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
    /// Labels of the nodes that announced themselves, by name.
    nodes: Arc<BTreeMap<String, Labels>>,
}

impl Shards {
    /// A collection whose shards nobody claimed.
    pub fn unclaimed(collection: Collection) -> Self {
        let shards = usize::try_from(collection.partitions).unwrap_or(0);
        Self {
            collection,
            replicas: vec![Vec::new(); shards],
            nodes: Arc::default(),
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

    /// Labels of the nodes that announced themselves, whether they live or not.
    pub fn nodes(&self) -> &BTreeMap<String, Labels> {
        &self.nodes
    }

    /// All shards' numbers.
    pub fn numbers(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.collection.partitions).map(Partition)
    }
}

/// All collections with the owners of their shards, and their other names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMap {
    collections: BTreeMap<String, Arc<Shards>>,
    aliases: BTreeMap<String, String>,
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
        let nodes = state.nodes.iter();
        let nodes = nodes.map(|(name, (node, _))| (name.clone(), node.labels.clone()));
        Self::with_nodes(
            state.collections.values().cloned(),
            owners.chain(others),
            nodes.collect(),
            state.caught_up_at.is_some(),
        )
        .aliased(state.aliases.clone())
    }

    /// A map of these collections and claims. Claims of shards that do not exist are left out.
    ///
    /// `is_complete` says whether the source has been read to its end.
    pub fn new(
        collections: impl IntoIterator<Item = Collection>,
        claims: impl IntoIterator<Item = (CollectionName, Partition, Replica)>,
        is_complete: bool,
    ) -> Self {
        Self::with_nodes(collections, claims, BTreeMap::new(), is_complete)
    }

    /// The same, with the labels of the nodes that announced themselves.
    pub fn with_nodes(
        collections: impl IntoIterator<Item = Collection>,
        claims: impl IntoIterator<Item = (CollectionName, Partition, Replica)>,
        nodes: BTreeMap<String, Labels>,
        is_complete: bool,
    ) -> Self {
        let nodes = Arc::new(nodes);
        let mut map: BTreeMap<String, Shards> = BTreeMap::new();
        for collection in collections {
            let name = collection.name.as_str().to_owned();
            let mut shards = Shards::unclaimed(collection);
            shards.nodes = nodes.clone();
            map.insert(name, shards);
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
            aliases: BTreeMap::new(),
            is_complete,
        }
    }

    /// The same map with these aliases, each with the collection that it stands for.
    #[must_use]
    pub fn aliased(
        self,
        aliases: impl IntoIterator<Item = (CollectionName, CollectionName)>,
    ) -> Self {
        let aliases = aliases.into_iter();
        Self {
            aliases: aliases
                .map(|(alias, target)| (alias.into(), target.into()))
                .collect(),
            ..self
        }
    }

    /// The collection that a name stands for: an alias goes before a collection of its name.
    pub fn find(&self, name: &str) -> Option<&Arc<Shards>> {
        let aliased = (self.aliases.get(name)).and_then(|target| self.collections.get(target));
        aliased.or_else(|| self.collections.get(name))
    }

    /// The collection of this very name, whatever an alias of it stands for.
    pub fn collection(&self, name: &str) -> Option<&Arc<Shards>> {
        self.collections.get(name)
    }

    /// Every alias with what it stands for, by name.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.aliases.iter();
        all.map(|(alias, target)| (alias.as_str(), target.as_str()))
    }

    /// All collections, by name.
    pub fn collections(&self) -> impl Iterator<Item = &Arc<Shards>> {
        self.collections.values()
    }

    /// The collections' and aliases' names for an error's text, at most twenty.
    pub fn listed_names(&self) -> String {
        const SHOWN: usize = 20;
        let names: BTreeSet<&str> = (self.collections.keys())
            .chain(self.aliases.keys())
            .map(String::as_str)
            .collect();
        let shown: Vec<&str> = names.iter().copied().take(SHOWN).collect();
        match names.len().saturating_sub(SHOWN) {
            0 if shown.is_empty() => "none".into(),
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }

    /// Whether the source has been read to its end, so that what is absent is absent.
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

/// Where a source puts each map it has read.
pub(crate) struct Feed {
    maps: watch::Sender<Arc<ShardMap>>,
    changed: Box<dyn Fn(&ShardMap) + Send + Sync>,
}

impl Feed {
    pub(crate) fn new(
        maps: watch::Sender<Arc<ShardMap>>,
        changed: impl Fn(&ShardMap) + Send + Sync + 'static,
    ) -> Self {
        Self {
            maps,
            changed: Box::new(changed),
        }
    }

    /// Makes a map the newest, if it says anything new.
    pub(crate) fn put(&self, map: ShardMap) {
        self.maps.send_if_modified(|held| {
            let is_new = **held != map;
            if is_new {
                if map.is_complete && !held.is_complete {
                    info!(collections = map.collections.len(), "shard map is read");
                }
                debug!(collections = map.collections.len(), "shard map changed");
                (self.changed)(&map);
                *held = Arc::new(map);
            }
            is_new
        });
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
        changed: impl Fn(&ShardMap) + Send + Sync + 'static,
    ) -> Self {
        let mut changes = control.changed();
        changes.mark_unchanged();
        let first = ShardMap::of(&control.snapshot());
        changed(&first);
        let (sender, maps) = Self::channel(first);
        let feed = Feed::new(sender, changed);
        let mut seen = (Offset(0), false);
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
                let state = control.snapshot();
                let now = (state.changed_at, state.caught_up_at.is_some());
                if std::mem::replace(&mut seen, now) == now {
                    // Nodes have said that they live, no more.
                    continue;
                }
                feed.put(ShardMap::of(&state));
            }
            Ok::<_, Infallible>(())
        });
        maps
    }

    /// The newest map.
    pub fn now(&self) -> Arc<ShardMap> {
        self.0.borrow().clone()
    }

    /// Waits until the source has been read to its end; forever if it never is.
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
            next_offset: None,
            early: false,
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
    fn an_alias_goes_before_a_collection_of_its_name_while_it_leads_somewhere() {
        let named = |name: &str| {
            let dim = 3.try_into().unwrap();
            Collection::new(name.parse().unwrap(), dim, Metric::L2, 1)
        };
        let to = |target: &str| {
            let map = ShardMap::new([named("docs"), named("docs-g2")], [], true);
            map.aliased([("docs".parse().unwrap(), target.parse().unwrap())])
        };
        let found =
            |map: &ShardMap, name: &str| map.find(name).unwrap().collection.name.to_string();
        let map = to("docs-g2");
        assert_eq!(found(&map, "docs"), "docs-g2");
        assert_eq!(found(&map, "docs-g2"), "docs-g2");
        assert_eq!(map.collection("docs").unwrap().collection, named("docs"));
        assert_eq!(map.aliases().collect::<Vec<_>>(), [("docs", "docs-g2")]);
        assert_eq!(map.listed_names(), "docs, docs-g2");
        assert_eq!(found(&to("gone"), "docs"), "docs");
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
