//! `shoal expire`: deletes of points that have expired, so that Kafka's compaction takes their records away.
//!
//! Searches leave a point out from the moment it expires; its record stays in the topic, which knows keys alone. The
//! owner of each shard says which ids these are, and each is deleted on the condition that there is no such point: one
//! that was written again meanwhile stays, or is put back by the owner if it came in the very moment between.

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
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

use super::{
    Context,
    addresses::{GatewayFlag, QueryFlag},
    collection::duration,
    kafka_link::collection_name,
    query_link::{connect, owners, request, told},
    table::Table,
};

/// Ids of a page. For each the shard goes over all rows that may expire, so it is a large one.
const PAGE: u32 = 10_000;
/// Room for a page of the longest ids.
const MAX_PAGE_BYTES: usize = 16 << 20;
/// Ids deleted by one call: few beside what an owner resolves at a time (`indexer.resolves`), for others want it, too, and
/// done well before the gateway's own deadline.
const PIECE: usize = 200;
/// How long one call may take; a gateway allows what its own deadline does.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a call is made that is refused for now.
const TRIES: u32 = 10;
/// How long is waited then, where nothing is said of it, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    failed: u64,
    /// Why the last of them was not deleted.
    why: Option<String>,
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
        let headings = [
            "SHARD",
            "NODE",
            "EXPIRED",
            "DELETED",
            "WRITTEN AGAIN",
            "FAILED",
        ];
        let mut table = Table::new(headings);
        let (mut all, mut is_done) = (Vec::new(), true);
        for owner in owners {
            let mut tally = Tally::default();
            let outcome = work.shard(&owner, &mut tally).await;
            let error = outcome.err().map(|error| format!("{error:#}"));
            let error = error.or_else(|| tally.told());
            let mut shard = json!({
                "shard": owner.shard,
                "node": owner.node,
                "expired": tally.expired,
                "deleted": tally.deleted,
                "written_again": tally.again,
                "failed": tally.failed,
            });
            if let Some(error) = error {
                is_done = false;
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
                tally.failed.to_string(),
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
        let indexer = v1::shard_upkeep_client::ShardUpkeepClient::new(channel);
        let mut indexer = indexer.max_decoding_message_size(MAX_PAGE_BYTES);
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
            tally.expired += count(ids.len());
            for piece in ids.chunks(PIECE) {
                self.delete(piece, tally).await?;
            }
        }
    }

    async fn delete(&mut self, ids: &[String], tally: &mut Tally) -> anyhow::Result<()> {
        let Some(gateway) = &mut self.gateway else {
            return Ok(());
        };
        let mut tries = 1;
        let answer = loop {
            let wanted = deletes(&self.collection, ids);
            match gateway.delete(request(wanted, PATIENCE)).await {
                Err(status) if tries < TRIES && is_for_now(&status) => {
                    tokio::time::sleep(pause(&status)).await;
                    tries += 1;
                }
                answer => break answer.map_err(|status| told(&status))?,
            }
        };
        tally.take(ids.len(), answer.into_inner().results)
    }
}

impl Tally {
    /// Notes what came of so many deletes.
    fn take(&mut self, deletes: usize, results: Vec<v1::WriteResult>) -> anyhow::Result<()> {
        anyhow::ensure!(
            results.len() == deletes,
            "the gateway answered {} of {deletes} deletes",
            results.len()
        );
        for result in results {
            match result.outcome {
                Some(Outcome::Token(_)) => self.deleted += 1,
                Some(Outcome::Failure(failure)) if failure.code == i32::from(Code::Aborted) => {
                    self.again += 1;
                }
                Some(Outcome::Failure(v1::WriteFailure { code, message, .. })) => {
                    self.failed += 1;
                    self.why = Some(format!("{message} ({:?})", Code::from(code)));
                }
                None => anyhow::bail!("the gateway answered nothing for a point"),
            }
        }
        Ok(())
    }

    /// What failed, if anything did.
    fn told(&self) -> Option<String> {
        let why = self.why.as_ref()?;
        Some(format!(
            "{} were not deleted, the last for: {why}",
            self.failed
        ))
    }
}

/// The deletes of these ids, of each only if there is no such point.
fn deletes(collection: &str, ids: &[String]) -> v1::DeleteRequest {
    let is_absent = v1::Condition {
        if_version: Some(0),
    };
    v1::DeleteRequest {
        collection: collection.to_owned(),
        conditions: vec![is_absent; ids.len()],
        ids: ids.to_vec(),
    }
}

/// Whether the same call may do later: what of it was done already is found gone then.
fn is_for_now(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded
    )
}

fn pause(status: &Status) -> Duration {
    let retry = status.get_details_retry_info();
    let asked = retry.and_then(|retry| retry.retry_delay);
    asked.unwrap_or(PAUSE).min(LONGEST_PAUSE)
}

fn count(ids: usize) -> u64 {
    u64::try_from(ids).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use shoal_schemas::v1::{self, write_result::Outcome};
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt};

    use super::{LONGEST_PAUSE, PAUSE, Tally, deletes, is_for_now, pause};

    fn failure(code: Code) -> v1::WriteResult {
        v1::WriteResult {
            outcome: Some(Outcome::Failure(v1::WriteFailure {
                code: code.into(),
                message: "planted".into(),
                current_version: None,
            })),
        }
    }

    #[test]
    fn every_delete_is_of_a_point_that_is_not_there() {
        let ids = ["a", "b"].map(str::to_owned);
        let wanted = deletes("docs", &ids);
        assert_eq!(wanted.ids, ids);
        let conditions: Vec<_> = wanted.conditions.iter().map(|one| one.if_version).collect();
        assert_eq!(conditions, [Some(0), Some(0)]);
    }

    #[test]
    fn what_came_of_each_is_counted_and_a_failure_ends_nothing() {
        let deleted = v1::WriteResult {
            outcome: Some(Outcome::Token(v1::Token::default())),
        };
        let mut tally = Tally::default();
        tally.take(1, vec![deleted.clone()]).unwrap();
        assert_eq!(tally.told(), None);
        let results = vec![
            failure(Code::FailedPrecondition),
            failure(Code::Aborted),
            deleted,
        ];
        tally.take(3, results).unwrap();
        assert_eq!((tally.deleted, tally.again, tally.failed), (2, 1, 1));
        let told = "1 were not deleted, the last for: planted (FailedPrecondition)";
        assert_eq!(tally.told().unwrap(), told);
        assert!(tally.take(1, Vec::new()).is_err(), "nothing was said of it");
        let nothing = v1::WriteResult { outcome: None };
        assert!(tally.take(1, vec![nothing]).is_err());
    }

    #[test]
    fn a_gateway_that_wants_to_be_asked_later_says_when() {
        assert!(is_for_now(&Status::unavailable("")) && !is_for_now(&Status::not_found("")));
        assert_eq!(pause(&Status::unavailable("")), PAUSE);
        let after = |delay| {
            let details = ErrorDetails::with_retry_info(Some(delay));
            pause(&Status::with_error_details(
                Code::ResourceExhausted,
                "quota",
                details,
            ))
        };
        assert_eq!(after(Duration::from_millis(70)), Duration::from_millis(70));
        assert_eq!(after(LONGEST_PAUSE * 3), LONGEST_PAUSE);
    }
}
