//! What operators' tools ask of a shard: its digest in parts, what has expired, and a snapshot.

use std::collections::HashSet;

use shoal_runtime::tasks::blocking;
use shoal_schemas::{Partition, buckets::Bucket, v1};
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::{Deadline, Ready, Refusal, Service, collection_name, request_span, timed};
use crate::{
    node::ShardKey,
    shard::{
        Shared,
        buckets::{BucketsError, MAX_BUCKETS},
        expired::MAX_EXPIRED,
    },
};

impl Service {
    /// Goes over all rows of a shard, in place of another read.
    async fn over_rows<T: Send + 'static>(
        &self,
        collection: &str,
        ask: Option<v1::ShardAsk>,
        deadline: Deadline,
        work: impl FnOnce(&Shared) -> Result<T, BucketsError> + Send + 'static,
    ) -> Result<T, Status> {
        let collection = collection_name(collection)?;
        let ask = ask.unwrap_or_default();
        let Ready { shared, .. } = self
            .ready_shard(&collection, &ask, deadline)
            .await
            .map_err(Refusal::into_status)?;
        let permit = self.reads.enter().await.map_err(Refusal::into_status)?;
        let outcome = blocking(move || {
            let outcome = work(&shared);
            drop(permit);
            outcome
        });
        outcome
            .await
            .map_err(|error| Refusal::from_buckets(&error).into_status())
    }
}

#[tonic::async_trait]
impl v1::shard_upkeep_server::ShardUpkeep for Service {
    async fn shard_buckets(
        &self,
        request: Request<v1::ShardBucketsRequest>,
    ) -> Result<Response<v1::ShardBucketsResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("shard_buckets", &request);
        let request = request.into_inner();
        let work = |shared: &Shared| shared.buckets();
        let found = self.over_rows(&request.collection, request.ask, deadline, work);
        timed(&self.meters.buckets, async {
            Ok(Response::new(found.await?))
        })
        .instrument(span)
        .await
    }

    async fn shard_bucket_ids(
        &self,
        request: Request<v1::ShardBucketIdsRequest>,
    ) -> Result<Response<v1::ShardBucketIdsResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("shard_bucket_ids", &request);
        let request = request.into_inner();
        if !(1..=MAX_BUCKETS).contains(&request.buckets.len()) {
            return Err(Status::invalid_argument(format!(
                "{} buckets are asked for, allowed are 1 to {MAX_BUCKETS}",
                request.buckets.len()
            )));
        }
        let buckets: Option<HashSet<Bucket>> = request
            .buckets
            .iter()
            .map(|one| Bucket::new(*one))
            .collect();
        let buckets = buckets.ok_or_else(|| {
            Status::invalid_argument("a bucket's number is too large; allowed are 0 to 4095")
        })?;
        let at = request.at;
        let work = move |shared: &Shared| shared.bucket_ids(&buckets, &at);
        let found = self.over_rows(&request.collection, request.ask, deadline, work);
        timed(&self.meters.bucket_ids, async {
            Ok(Response::new(found.await?))
        })
        .instrument(span)
        .await
    }

    async fn expired_ids(
        &self,
        request: Request<v1::ExpiredIdsRequest>,
    ) -> Result<Response<v1::ExpiredIdsResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("expired_ids", &request);
        let v1::ExpiredIdsRequest {
            collection,
            ask,
            by_ms,
            after_id,
            limit,
        } = request.into_inner();
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        if !(1..=MAX_EXPIRED).contains(&most) {
            return Err(Status::invalid_argument(format!(
                "limit is {limit}, allowed are 1 to {MAX_EXPIRED}"
            )));
        }
        let work = move |shared: &Shared| shared.expired_ids(by_ms, &after_id, most);
        let found = self.over_rows(&collection, ask, deadline, work);
        timed(&self.meters.expired_ids, async {
            let ids = found.await?;
            Ok(Response::new(v1::ExpiredIdsResponse { ids }))
        })
        .instrument(span)
        .await
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::CreateSnapshotResponse>, Status> {
        let span = request_span("create_snapshot", &request);
        let request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let shard: ShardKey = (collection, Partition(request.shard));
        // No deadline: an upload that is given up is done again from its start.
        let taker = self.snapshots.clone().ok_or_else(|| {
            Status::unimplemented("this indexer takes no snapshots; set indexer.snapshot.url")
        })?;
        let taken = timed(&self.meters.snapshot, taker.take(&shard))
            .instrument(span)
            .await;
        let taken = taken.map_err(|error| Refusal::from_take(&error).into_status())?;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(Response::new(v1::CreateSnapshotResponse {
            number: taken.created.number,
            files: count(taken.created.files),
            bytes: taken.created.bytes,
            sent_files: count(taken.created.sent_files),
            sent_bytes: taken.created.sent_bytes,
            taken_ms: i64::try_from(taken.taken_ms).unwrap_or(i64::MAX),
            positions: taken
                .checkpoint
                .into_iter()
                .map(|one| v1::SourcePosition {
                    cluster_id: one.source.cluster.to_string(),
                    topic: one.source.topic.to_string(),
                    partition: one.source.partition.0,
                    next_offset: one.next.0,
                    durable_next_offset: one.next.0,
                })
                .collect(),
        }))
    }
}
