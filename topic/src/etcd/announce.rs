//! Keeping a copy of a node's claims in etcd, and of the definitions they are of.
//!
//! What is to stand there follows from the control topic alone ([`Mirror::of`]), so a claim that lost in
//! the log is never put back. The lease ends with the node: then its claims are gone from etcd, while
//! the log keeps them.

use std::{collections::BTreeMap, time::Duration};

use shoal_runtime::{
    chain,
    clock::Stopwatch,
    tasks::{Tasks, blocking},
};
use shoal_schemas::{
    ClusterId,
    control::{Alias, Entry, Key},
};
use tracing::{debug, info, warn};

use super::{CLUSTER_KEY, Client, Config, EtcdError, Fenced, LeaseId, LeasedClaim, Pair};
use crate::{
    Cluster,
    control::{ControlHandle, ControlState},
};

/// How long claims stand after the node was last heard of.
const LEASE_SECONDS: i64 = 10;
/// How often the lease is begun anew.
const KEEP_EVERY: Duration = Duration::from_secs(3);
/// How long to wait before an etcd that failed is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How long the end may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// What a node has to have in etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mirror {
    /// Its claims that are the newest of their shards.
    claims: BTreeMap<String, LeasedClaim>,
    /// The newest claims of other nodes.
    others: BTreeMap<String, LeasedClaim>,
    /// Every definition.
    definitions: BTreeMap<String, Vec<u8>>,
}

impl Mirror {
    /// What follows from the control topic for a node.
    fn of(node: &str, state: &ControlState) -> Self {
        let owned = state
            .shards
            .iter()
            .map(|((name, shard), found)| (Key::Shard(name.clone(), *shard), found));
        let served = state.replicas.iter().map(|((name, shard, set), found)| {
            (Key::Replica(name.clone(), *shard, set.clone()), found)
        });
        let (mut claims, mut others) = (BTreeMap::new(), BTreeMap::new());
        for (key, (claim, epoch)) in owned.chain(served) {
            let of = match claim.node == node {
                true => &mut claims,
                false => &mut others,
            };
            let (claim, epoch) = (claim.clone(), *epoch);
            of.insert(key.encode(), LeasedClaim { claim, epoch });
        }
        let definitions = state.collections.iter().map(|(name, collection)| {
            let key = Key::Collection(name.clone()).encode();
            (
                key,
                Entry::Collection(Box::new(collection.clone())).encode(),
            )
        });
        let aliases = state.aliases.iter().map(|(name, collection)| {
            let collection = collection.clone();
            let entry = Entry::Alias(Alias { collection });
            (Key::Alias(name.clone()).encode(), entry.encode())
        });
        Self {
            claims,
            others,
            definitions: definitions.chain(aliases).collect(),
        }
    }
}

/// A node whose claims are to stand in etcd.
pub struct Announcer {
    /// The node's name, as in its claims.
    pub node: String,
    /// Which etcd.
    pub config: Config,
    /// Where claims are made.
    pub control: ControlHandle,
    /// The Kafka they are about.
    pub cluster: Cluster,
}

/// A lease of this node.
struct Open {
    client: Client,
    lease: LeaseId,
}

impl Announcer {
    /// Starts the task that keeps the copy until the tasks are cancelled.
    pub fn spawn(self, tasks: &Tasks) {
        let cancel = tasks.cancel().clone();
        tasks.spawn("etcd claims", async move {
            let mut open: Option<Open> = None;
            let mut is_silent = false;
            while !cancel.is_cancelled() {
                let kept = tokio::select! {
                    biased;
                    () = cancel.cancelled() => break,
                    kept = self.keep(&mut open, &mut is_silent) => kept,
                };
                if let Err(error) = kept
                    && !std::mem::replace(&mut is_silent, true)
                {
                    warn!(error = %chain(&error), "claims are not in etcd, trying on");
                }
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
            if let Some(Open { client, lease }) = open {
                let revoked = tokio::time::timeout(LEAVE_WITHIN, client.revoke(lease)).await;
                if !matches!(revoked, Ok(Ok(()))) {
                    debug!("etcd was not told that this node leaves; its lease ends by itself");
                }
            }
            Ok::<_, std::convert::Infallible>(())
        });
    }

    /// Keeps the copy up to date under one lease, until something fails.
    async fn keep(&self, open: &mut Option<Open>, is_silent: &mut bool) -> Result<(), EtcdError> {
        let mut changes = self.control.changed();
        while self.control.snapshot().caught_up_at.is_none() {
            if changes.changed().await.is_err() {
                return Ok(());
            }
        }
        let cluster = self.cluster_id().await;
        let client = Client::connect(&self.config)?;
        let lease = client.grant(LEASE_SECONDS).await?;
        *open = Some(Open {
            client: client.clone(),
            lease,
        });
        let mut kept = Stopwatch::start();
        client.put(CLUSTER_KEY, cluster.0.as_bytes()).await?;
        let mut written = self.left_behind(&client).await?;
        loop {
            changes.mark_unchanged();
            let wanted = Mirror::of(&self.node, &self.control.snapshot());
            let is_whole = bring(&client, lease, &mut written, &wanted).await?;
            if is_whole && std::mem::replace(is_silent, false) {
                info!("claims are in etcd again");
            }
            if kept.elapsed() >= KEEP_EVERY {
                client.keep_alive(lease).await?;
                kept = Stopwatch::start();
            }
            let pause = if is_whole { KEEP_EVERY } else { RETRY };
            let changed = tokio::time::timeout(pause, changes.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return Ok(());
            }
        }
    }

    /// The cluster's id, waited for.
    async fn cluster_id(&self) -> ClusterId {
        loop {
            let admin = self.cluster.admin.clone();
            match blocking(move || admin.cluster_id()).await {
                Ok(id) => return id,
                Err(error) => debug!(%error, "cluster id is not known yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What stands there of an earlier life, so that what is not wanted any more is removed:
    /// definitions, and claims of this node.
    async fn left_behind(&self, client: &Client) -> Result<Mirror, EtcdError> {
        let mut copy = Mirror::default();
        let (pairs, _) = client.all().await?;
        for Pair { key, value } in pairs {
            match Key::decode(&key) {
                Some(Key::Collection(_) | Key::Alias(_)) => {
                    copy.definitions.insert(key, value);
                }
                Some(Key::Shard(..) | Key::Replica(..)) => {
                    // One of this node is written anew all the same, under the new lease.
                    let found = LeasedClaim::decode(&value).ok();
                    if let Some(mut found) = found.filter(|found| found.claim.node == self.node) {
                        found.claim.address.clear();
                        copy.claims.insert(key, found);
                    }
                }
                Some(Key::Node(_) | Key::Feed(_) | Key::Reindex(_)) | None => {}
            }
        }
        Ok(copy)
    }
}

/// Writes and removes what differs; false if somebody wrote at the same time.
async fn bring(
    client: &Client,
    lease: LeaseId,
    written: &mut Mirror,
    wanted: &Mirror,
) -> Result<bool, EtcdError> {
    let mut is_whole = true;
    for (key, value) in &wanted.definitions {
        if written.definitions.get(key) == Some(value) {
            continue;
        }
        match client.put(key, value).await? {
            Fenced::Raced => is_whole = false,
            Fenced::Done | Fenced::Overtaken => {
                written.definitions.insert(key.clone(), value.clone());
            }
        }
    }
    for (key, claim) in &wanted.claims {
        if written.claims.get(key) == Some(claim) {
            continue;
        }
        match client.claim(key, claim, lease).await? {
            Fenced::Raced => is_whole = false,
            outcome => {
                if outcome == Fenced::Overtaken {
                    info!(key, epoch = claim.epoch.0, "claim of etcd is newer, kept");
                }
                written.claims.insert(key.clone(), claim.clone());
            }
        }
    }
    let gone = written.definitions.keys();
    let gone: Vec<String> = gone
        .filter(|key| !wanted.definitions.contains_key(*key))
        .cloned()
        .collect();
    for key in gone {
        if client.remove(&key, None).await? == Fenced::Raced {
            is_whole = false;
        } else {
            written.definitions.remove(&key);
        }
    }
    let gone = written.claims.iter();
    let gone: Vec<_> = gone
        .filter(|(key, _)| !wanted.claims.contains_key(*key))
        .map(|(key, claim)| (key.clone(), claim.epoch))
        .collect();
    for (key, epoch) in gone {
        // A shard that was handed over is never without a claim: whoever comes first writes it.
        let outcome = match wanted.others.get(&key) {
            Some(newest) => client.claim_for_another(&key, newest, lease).await?,
            None => client.remove(&key, Some(epoch)).await?,
        };
        if outcome == Fenced::Raced {
            is_whole = false;
        } else {
            written.claims.remove(&key);
        }
    }
    Ok(is_whole)
}
