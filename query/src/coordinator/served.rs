//! Every shard of a collection with who serves it and what that node says of it, for operators.
//!
//! Unlike a count it is an answer whoever is silent: a shard that is missing is what one looks for.

use std::collections::BTreeMap;

use shoal_schemas::v1;

use crate::{
    call::Call,
    coordinator::{Coordinator, QueryError, question::StatusOf},
    definitions,
    tokens::TokensByShard,
};

impl Coordinator {
    pub(super) async fn served(
        &self,
        request: v1::ShardsRequest,
        call: Call,
    ) -> Result<v1::ShardsResponse, QueryError> {
        let shards = self.shards(&request.collection)?;
        let question = StatusOf {
            collection: request.collection,
        };
        let tokens = TokensByShard::new();
        let gathered = self.gather(&shards, &question, shards.numbers(), &tokens, call);
        let (gathered, _) = gathered.await?;
        let mut told: BTreeMap<u32, v1::ShardStatus> = (gathered.answers.into_iter())
            .map(|(coverage, status)| (coverage.shard, status))
            .collect();
        let mut silent: BTreeMap<u32, String> = (gathered.misses.into_iter())
            .map(|miss| (miss.shard.0, miss.why))
            .collect();
        let owners = definitions::owners(&shards).into_iter().zip(&shards.owners);
        let rows = owners.map(|(owner, claimed)| {
            let row = v1::ServedShard {
                ready: claimed.as_ref().is_some_and(|owner| owner.claim.ready),
                error: silent.remove(&owner.shard).unwrap_or_default(),
                ..v1::ServedShard::default()
            };
            let status = told.remove(&owner.shard);
            with_status(row, owner, status)
        });
        Ok(v1::ShardsResponse {
            shards: rows.collect(),
        })
    }
}

fn with_status(
    row: v1::ServedShard,
    owner: v1::ShardOwner,
    status: Option<v1::ShardStatus>,
) -> v1::ServedShard {
    let owner = Some(owner);
    let Some(status) = status else {
        return v1::ServedShard { owner, ..row };
    };
    let coverage = status.coverage.unwrap_or_default();
    v1::ServedShard {
        owner,
        ready: row.ready,
        answered: true,
        error: String::new(),
        lag_seconds: coverage.lag_seconds,
        next_offset: coverage.next_offset,
        live_points: status.live_points,
        contested: status.contested,
        digest: status.digest.into(),
        wal_bytes: status.wal_bytes,
        index_bytes: status.index_bytes,
        memtable_rows: status.memtable_rows,
        graph_rows: status.graph_rows,
        dead_rows: status.dead_rows,
    }
}
