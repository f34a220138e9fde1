//! Every shard of a collection with who serves it and what that node says of it, for operators.
//!
//! Unlike a count it is an answer whoever is silent: a node that is missing is what one looks for.
//! Each claim is asked about by itself, also one that says that it is not ready; nobody answers for
//! another.

use std::collections::{BTreeMap, HashMap};

use futures::future::join_all;
use shoal_schemas::{Partition, v1};

use crate::{
    call::Call,
    client::ShardCall,
    coordinator::{Coordinator, QueryError},
    plan,
    shard_map::{Replica, Shards},
};

/// What a node said of its shards by number, or why it said nothing.
type Told = Result<HashMap<u32, v1::ShardStatus>, String>;

impl Coordinator {
    pub(super) async fn served(
        &self,
        request: v1::ShardsRequest,
        call: Call,
    ) -> Result<v1::ShardsResponse, QueryError> {
        let shards = self.shards(&request.collection)?;
        let claims = shards.numbers().flat_map(|shard| {
            let replicas = shards.replicas(shard).iter().map(Some);
            // A shard that nobody serves has a row, too.
            let nobody = shards.replicas(shard).is_empty().then_some(None);
            (replicas.chain(nobody)).map(move |replica| (shard.0, replica))
        });
        let claims: Vec<(u32, Option<&Replica>)> = claims.collect();
        let mut asks: BTreeMap<&str, Vec<v1::ShardAsk>> = BTreeMap::new();
        for (shard, replica) in claims.iter().copied() {
            if let Some(replica) = replica {
                let asked = asks.entry(&replica.claim.address).or_default();
                asked.push(v1::ShardAsk {
                    shard,
                    at_least: Vec::new(),
                });
            }
        }
        let call = ShardCall {
            timeout: call.deadline.for_shards().remaining(),
            trace: call.trace,
        };
        if call.timeout.is_zero() {
            return Err(QueryError::NoTime);
        }
        let asked = asks.into_iter().map(|(address, asked)| {
            let request = v1::ShardStatusRequest {
                collection: shards.collection.name.to_string(),
                shards: asked,
            };
            async move { (address, self.status_of(address, request, call).await) }
        });
        let told: HashMap<&str, Told> = join_all(asked).await.into_iter().collect();
        let rows = claims.into_iter().map(|(shard, replica)| match replica {
            None => unclaimed(&shards, shard),
            Some(replica) => row(shard, replica, told.get(replica.claim.address.as_str())),
        });
        Ok(v1::ShardsResponse {
            shards: rows.collect(),
        })
    }

    async fn status_of(
        &self,
        address: &str,
        request: v1::ShardStatusRequest,
        call: ShardCall,
    ) -> Told {
        let answered = self.client.shard_status(address, request, call).await;
        let statuses = answered.map_err(|error| error.to_string())?.shards;
        let by_shard = statuses.into_iter().map(|status| {
            let shard = status
                .coverage
                .as_ref()
                .map_or(0, |coverage| coverage.shard);
            (shard, status)
        });
        Ok(by_shard.collect())
    }
}

fn unclaimed(shards: &Shards, shard: u32) -> v1::ServedShard {
    v1::ServedShard {
        owner: Some(v1::ShardOwner {
            shard,
            ..v1::ShardOwner::default()
        }),
        error: plan::nobody(shards, Partition(shard)),
        ..v1::ServedShard::default()
    }
}

fn row(shard: u32, replica: &Replica, told: Option<&Told>) -> v1::ServedShard {
    let claimed = v1::ServedShard {
        owner: Some(v1::ShardOwner {
            shard,
            node: replica.claim.node.clone(),
            address: replica.claim.address.clone(),
            epoch: replica.epoch.0,
            ..v1::ShardOwner::default()
        }),
        set: replica
            .set
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        ready: replica.claim.ready,
        ..v1::ServedShard::default()
    };
    let silent = |error: &str| v1::ServedShard {
        error: error.to_owned(),
        ..claimed.clone()
    };
    let status = match told {
        Some(Ok(shards)) => shards.get(&shard),
        Some(Err(error)) => return silent(error),
        None => None,
    };
    let Some(status) = status else {
        return silent("node says nothing of the shard");
    };
    let coverage = status.coverage.clone().unwrap_or_default();
    if status.code != 0 {
        return silent(&coverage.error);
    }
    v1::ServedShard {
        answered: true,
        lag_seconds: coverage.lag_seconds,
        next_offset: coverage.next_offset,
        live_points: status.live_points,
        contested: status.contested,
        digest: status.digest.to_vec(),
        wal_bytes: status.wal_bytes,
        index_bytes: status.index_bytes,
        memtable_rows: status.memtable_rows,
        graph_rows: status.graph_rows,
        dead_rows: status.dead_rows,
        ..claimed
    }
}
