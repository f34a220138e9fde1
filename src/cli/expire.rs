//! `shoal expire`: deletes of points that have expired, so that Kafka's compaction takes their records away.
//!
//! Searches leave a point out from the moment it expires; its record stays in the topic, which knows keys alone. The
//! owner of each shard says which ids these are, and each is deleted on the condition that there is no such point: one
//! that was written again meanwhile stays.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::json;
use shoal_runtime::clock::System;
use shoal_schemas::{
    CollectionName,
    v1::{self, publish_client::PublishClient, write_result::Outcome},
};
use tonic::{Code, transport::Channel};

use super::{
    Context,
    addresses::{GatewayFlag, QueryFlag},
    collection::duration,
    kafka_link::collection_name,
    query_link::{connect, owners, request, told},
    table::Table,
};

/// Ids of a page: as many as one call may delete.
const PAGE: u32 = 1000;
/// How long one call may take. Going over a shard's rows takes a fraction of a second, a thousand deletes a few.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to delete.
///
/// Ends with 0 when all of them are deleted, 1 when some could not be, 2 for a wrong command line.
#[derive(Debug, Args)]
pub(super) struct Expire {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// Only points that expired so long ago, such as 2h
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "TIME")]
    older_than: Duration,
    /// Only this shard [default: all]
    #[arg(long)]
    shard: Option<u32>,
    /// Count them, and delete none
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    query: QueryFlag,
    #[command(flatten)]
    gateway: GatewayFlag,
}

/// What became of a shard's points.
#[derive(Debug, Default)]
struct Tally {
    expired: u64,
    deleted: u64,
    /// Written again before they were deleted.
    again: u64,
}

/// How a shard's points are found and deleted.
struct Work {
    collection: String,
    by_ms: i64,
    /// Without it nothing is deleted.
    gateway: Option<PublishClient<Channel>>,
}

impl Expire {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let age_ms = u64::try_from(self.older_than.as_millis()).unwrap_or(u64::MAX);
        let by_ms = System::shared().now_ms().saturating_sub(age_ms);
        let by_ms = i64::try_from(by_ms).unwrap_or(i64::MAX);
        let query = self.query.address(context);
        let (name, owners) = owners(&query, &self.collection, self.shard).await?;
        let gateway = match self.dry_run {
            true => None,
            false => {
                let channel = connect("the gateway", &self.gateway.address(context)).await?;
                Some(PublishClient::new(channel))
            }
        };
        let mut work = Work {
            collection: name.clone(),
            by_ms,
            gateway,
        };
        let mut table = Table::new(["SHARD", "NODE", "EXPIRED", "DELETED", "WRITTEN AGAIN"]);
        let (mut all, mut is_done) = (Vec::new(), true);
        for owner in owners {
            let mut tally = Tally::default();
            let outcome = work.shard(&owner, &mut tally).await;
            let mut shard = json!({
                "shard": owner.shard,
                "node": owner.node,
                "expired": tally.expired,
                "deleted": tally.deleted,
                "written_again": tally.again,
            });
            if let Err(error) = outcome {
                is_done = false;
                let error = format!("{error:#}");
                writeln!(io::stderr(), "shoal: shard {}: {error}", owner.shard)?;
                shard["error"] = error.into();
            }
            all.push(shard);
            table.row([
                owner.shard.to_string(),
                owner.node,
                tally.expired.to_string(),
                tally.deleted.to_string(),
                tally.again.to_string(),
            ]);
        }
        table.print_or(self.json, &json!({"collection": name, "shards": all}))?;
        Ok(match is_done {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

impl Work {
    /// Goes through a shard, page by page.
    async fn shard(&mut self, owner: &v1::ShardOwner, tally: &mut Tally) -> anyhow::Result<()> {
        anyhow::ensure!(!owner.address.is_empty(), "nobody serves it");
        let channel = connect("the indexer", &owner.address).await?;
        let mut indexer = v1::shard_upkeep_client::ShardUpkeepClient::new(channel);
        let mut after_id = String::new();
        loop {
            let wanted = v1::ExpiredIdsRequest {
                collection: self.collection.clone(),
                ask: Some(v1::ShardAsk {
                    shard: owner.shard,
                    at_least: Vec::new(),
                }),
                by_ms: self.by_ms,
                after_id,
                limit: PAGE,
            };
            let page = indexer.expired_ids(request(wanted, PATIENCE)).await;
            let ids = page.map_err(|status| told(&status))?.into_inner().ids;
            let Some(last) = ids.last() else {
                return Ok(());
            };
            after_id = last.clone();
            tally.expired += u64::try_from(ids.len()).unwrap_or(u64::MAX);
            self.delete(ids, tally).await?;
        }
    }

    async fn delete(&mut self, ids: Vec<String>, tally: &mut Tally) -> anyhow::Result<()> {
        let Some(gateway) = &mut self.gateway else {
            return Ok(());
        };
        let is_absent = v1::Condition {
            if_version: Some(0),
        };
        let wanted = v1::DeleteRequest {
            collection: self.collection.clone(),
            conditions: vec![is_absent; ids.len()],
            ids,
        };
        let answer = gateway.delete(request(wanted, PATIENCE)).await;
        let answer = answer.map_err(|status| told(&status))?.into_inner();
        let mut failed = None;
        for result in answer.results {
            match result.outcome {
                Some(Outcome::Token(_)) => tally.deleted += 1,
                Some(Outcome::Failure(failure)) if failure.code == i32::from(Code::Aborted) => {
                    tally.again += 1;
                }
                Some(Outcome::Failure(failure)) => failed = Some(failure),
                None => anyhow::bail!("the gateway answered nothing for a point"),
            }
        }
        match failed {
            Some(v1::WriteFailure { code, message, .. }) => {
                Err(anyhow::anyhow!("{message} ({:?})", Code::from(code)))
            }
            None => Ok(()),
        }
    }
}
