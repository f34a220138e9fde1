//! Keeping a copy of a node's claims in etcd, and of the definitions they are of.
//!
//! What is to stand there follows from the control topic alone ([`Mirror::of`]), so a claim that lost in
//! the log is never put back. The lease ends with the node: then its claims are gone from etcd, while
//! the log keeps them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_runtime::{
    chain,
    tasks::{Tasks, blocking},
};
use shoal_schemas::{
    ClusterId, Offset,
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
/// How often it is looked at what the control topic says, should nothing be heard of it.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long to wait before an etcd that failed is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How long the end may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// How long Kafka has to have gone on saying that the control topic ends before what etcd says of it.
const ANEW_AFTER: Duration = Duration::from_secs(10);

/// What a node has to have in etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mirror {
    /// Up to where the control topic was read.
    read_to: Offset,
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
            read_to: state.next_offset,
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
    ///
    /// The lease is kept beside that: writing many definitions and claims may take longer than it lasts.
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
        client.put(CLUSTER_KEY, cluster.0.as_bytes()).await?;
        tokio::select! {
            biased;
            error = keep_lease(&client, lease) => Err(error),
            copied = self.copy(&client, lease, is_silent) => copied,
        }
    }

    /// Brings the copy up to date again and again, until something fails.
    async fn copy(
        &self,
        client: &Client,
        lease: LeaseId,
        is_silent: &mut bool,
    ) -> Result<(), EtcdError> {
        let mut changes = self.control.changed();
        let mut written = self.left_behind(client).await?;
        let mut behind = None;
        loop {
            changes.mark_unchanged();
            let state = self.control.snapshot();
            let wanted = Mirror::of(&self.node, &state);
            let brought = bring(client, lease, &mut written, &wanted).await?;
            let is_whole = brought == Brought::Whole;
            if is_whole && std::mem::replace(is_silent, false) {
                info!("claims are in etcd again");
            }
            behind = match brought {
                Brought::Behind => self.look_behind(client, behind).await?,
                _ => None,
            };
            let pause = if is_whole { LOOK_EVERY } else { RETRY };
            let changed = tokio::time::timeout(pause, changes.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return Ok(());
            }
        }
    }

    /// Somebody has read the control topic further than this node. It catches up, unless the topic was made
    /// anew: then Kafka goes on saying that it ends before that. A node that is cut off from Kafka hears no
    /// such thing.
    async fn look_behind(
        &self,
        client: &Client,
        before: Option<Behind>,
    ) -> Result<Option<Behind>, EtcdError> {
        let Some(there) = client.read_to().await? else {
            return Ok(None);
        };
        let state = self.control.snapshot();
        let (Some(heard_at), true) = (state.caught_up_at, state.next_offset < there) else {
            return Ok(None);
        };
        let since = match before {
            Some(before) if before.there == there => before.since,
            _ => heard_at,
        };
        if heard_at.saturating_sub(since) < ANEW_AFTER {
            return Ok(Some(Behind { there, since }));
        }
        warn!(
            there = there.0,
            here = state.next_offset.0,
            "control topic was made anew, definitions of before are replaced in etcd"
        );
        client.set_back(there, state.next_offset).await?;
        Ok(None)
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

/// Begins the lease's time anew until that fails, and says why it does.
async fn keep_lease(client: &Client, lease: LeaseId) -> EtcdError {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        if let Err(error) = client.keep_alive(lease).await {
            return error;
        }
    }
}

/// Since when Kafka has said that the control topic ends before where it was read to, by the clock's
/// monotonic time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Behind {
    there: Offset,
    since: Duration,
}

/// How far the copy came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    Whole,
    /// Somebody wrote at the same time.
    Raced,
    /// Whoever wrote the definitions had read further than this node.
    Behind,
}

/// Writes and removes what differs.
async fn bring(
    client: &Client,
    lease: LeaseId,
    written: &mut Mirror,
    wanted: &Mirror,
) -> Result<Brought, EtcdError> {
    let mut brought = bring_definitions(client, written, wanted).await?;
    if !bring_claims(client, lease, written, wanted).await? && brought == Brought::Whole {
        brought = Brought::Raced;
    }
    Ok(brought)
}

async fn bring_definitions(
    client: &Client,
    written: &mut Mirror,
    wanted: &Mirror,
) -> Result<Brought, EtcdError> {
    let mut brought = Brought::Whole;
    let all = written.definitions.keys().chain(wanted.definitions.keys());
    let all: BTreeSet<String> = all.cloned().collect();
    for key in all {
        let value = wanted.definitions.get(&key);
        if written.definitions.get(&key) == value {
            continue;
        }
        let defined = client.define(&key, value.map(Vec::as_slice), wanted.read_to);
        match (defined.await?, value) {
            (Fenced::Overtaken, _) => return Ok(Brought::Behind),
            (Fenced::Raced, _) => brought = Brought::Raced,
            (Fenced::Done, Some(value)) => {
                written.definitions.insert(key, value.clone());
            }
            (Fenced::Done, None) => {
                written.definitions.remove(&key);
            }
        }
    }
    Ok(brought)
}

/// The same for claims; false if somebody wrote at the same time.
async fn bring_claims(
    client: &Client,
    lease: LeaseId,
    written: &mut Mirror,
    wanted: &Mirror,
) -> Result<bool, EtcdError> {
    let mut is_whole = true;
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

#[cfg(test)]
#[path = "announce_tests.rs"]
mod tests;
