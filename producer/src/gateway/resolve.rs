//! Writes that depend on the point as it is: forwarded to the owners of the shards.
//!
//! A call is checked as a whole before anything of it is forwarded; from there each point succeeds or
//! fails by itself. An owner that is gone, or says that it is none, has done nothing: the next claim
//! of the shard is waited for and asked once. A call that broke off is not made again, since the
//! owner may be at it: its points are UNKNOWN.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::join_all;
use prost::Message as _;
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{
    Collection, CollectionName, Condition, Offset, Partition, Patch, PointId,
    avro::Framing,
    json,
    patch::PatchError,
    route,
    v1::{self, point_change::Kind, write_result::Outcome},
};
use tonic::Code;

use super::{
    CallError,
    calls::{Calls, Candidate, check_count, prepare},
    owners::AskError,
    status,
};
use crate::{Publisher, metrics::GATEWAY_FORWARDED_TOTAL};

/// Part of a call's time that is kept for the way back of its answer.
const WAY_BACK: Duration = Duration::from_millis(50);

/// Something that may be a patch.
pub(super) trait PatchCandidate: Send {
    fn decode(self, collection: &Collection) -> Result<(PointId, Patch, Condition), PatchError>;
}

impl PatchCandidate for v1::PointPatch {
    fn decode(self, collection: &Collection) -> Result<(PointId, Patch, Condition), PatchError> {
        Patch::from_proto(self, collection)
    }
}

/// A patch as JSON, with the id where the path says it.
pub(super) struct JsonPatch {
    pub(super) id: Option<String>,
    pub(super) text: Box<[u8]>,
    /// What the path's query asks for.
    pub(super) condition: Condition,
}

impl PatchCandidate for JsonPatch {
    fn decode(self, collection: &Collection) -> Result<(PointId, Patch, Condition), PatchError> {
        let (id, patch, said) = json::decode_patch(&self.text, self.id.as_deref(), collection)?;
        let condition = match (said, self.condition) {
            (said, Condition::Always) => said,
            (Condition::Always, asked) => asked,
            (said, asked) if said == asked => said,
            _ => {
                return Err(PatchError::Json {
                    detail: "path and body say if_version, and not the same one".to_owned(),
                });
            }
        };
        patch.check(condition)?;
        Ok((id, patch, condition))
    }
}

/// When a call has to be answered.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    since: Stopwatch,
    time: Duration,
}

impl Deadline {
    /// So long from now, less the way back.
    pub(super) fn within(time: Duration) -> Self {
        Self {
            since: Stopwatch::start(),
            time: time.saturating_sub(WAY_BACK.min(time / 10)),
        }
    }

    fn left(&self) -> Duration {
        self.time.saturating_sub(self.since.elapsed())
    }
}

/// One change, and the shard it belongs to.
type Routed = (Partition, v1::PointChange);

impl Calls {
    /// Changes parts of points.
    pub(super) async fn patch<C: PatchCandidate>(
        &self,
        collection: &str,
        patches: Vec<C>,
        deadline: Deadline,
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        check_count("points", patches.len())?;
        let publisher = self.settled_publisher(collection, deadline).await?;
        let defined = publisher.collection();
        let checked: Result<Vec<Routed>, CallError> = patches
            .into_iter()
            .enumerate()
            .map(|(index, patch)| {
                let decoded = patch.decode(defined);
                let (id, patch, condition) =
                    decoded.map_err(|source| CallError::Patch { index, source })?;
                let change = Kind::Patch(patch.to_proto(&id, condition));
                Ok(routed(defined, &id, change))
            })
            .collect();
        let changes = checked?;
        let sizes = changes.iter().map(|(_, change)| size_of(change));
        self.quotas.take(defined, sizes)?;
        self.forward(&publisher, changes, deadline).await
    }

    /// Publishes complete points, some of them only where their conditions hold.
    pub(super) async fn upsert_if<C: Candidate>(
        &self,
        collection: &str,
        points: Vec<C>,
        conditions: &[Condition],
        deadline: Deadline,
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        check_count("points", points.len())?;
        check_conditions(points.len(), conditions.len())?;
        let publisher = self.settled_publisher(collection, deadline).await?;
        let defined = publisher.collection();
        let prepared = prepare(&publisher, points)?;
        self.take(&publisher, &prepared)?;
        let changes = prepared
            .into_iter()
            .zip(conditions)
            .map(|(record, condition)| {
                let write = v1::PointWrite {
                    id: record.id().as_str().to_owned(),
                    value: record.value().cloned(),
                    if_version: condition.to_wire(),
                };
                routed(defined, record.id(), Kind::Write(write))
            });
        self.forward(&publisher, changes.collect(), deadline).await
    }

    /// Publishes deletes, some of them only where their conditions hold.
    pub(super) async fn delete_if(
        &self,
        collection: &str,
        ids: &[String],
        conditions: &[Condition],
        deadline: Deadline,
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        check_count("ids", ids.len())?;
        check_conditions(ids.len(), conditions.len())?;
        let publisher = self.settled_publisher(collection, deadline).await?;
        let defined = publisher.collection();
        let changes: Result<Vec<Routed>, CallError> = ids
            .iter()
            .zip(conditions)
            .enumerate()
            .map(|(index, (id, condition))| {
                let id = PointId::new(id).map_err(|source| CallError::Id { index, source })?;
                let write = v1::PointWrite {
                    id: id.as_str().to_owned(),
                    value: None,
                    if_version: condition.to_wire(),
                };
                Ok(routed(defined, &id, Kind::Write(write)))
            })
            .collect();
        let changes = changes?;
        let sizes = changes.iter().map(|(_, change)| size_of(change));
        self.quotas.take(defined, sizes)?;
        self.forward(&publisher, changes, deadline).await
    }

    /// The publisher of what a name stands for, once it is sure in which topic the newest record of its
    /// points is: the end of a re-indexing's feed is waited for, also under other names of the old
    /// collection.
    async fn settled_publisher(
        &self,
        name: &str,
        deadline: Deadline,
    ) -> Result<Publisher, CallError> {
        let name: CollectionName = name.parse()?;
        let mut changes = self.control.changed();
        loop {
            changes.mark_unchanged();
            let state = self.control.snapshot();
            if !state.is_moving(&name) {
                return self.publisher_in(&state, name).await;
            }
            let changed = tokio::time::timeout(deadline.left(), changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(CallError::Moving { name });
            }
        }
    }

    /// Forwards changes to the owners of their shards; answers one result a change, in order.
    async fn forward(
        &self,
        publisher: &Publisher,
        changes: Vec<Routed>,
        deadline: Deadline,
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        let mut by_shard: BTreeMap<Partition, (Vec<usize>, Vec<v1::PointChange>)> = BTreeMap::new();
        for (index, (shard, change)) in changes.into_iter().enumerate() {
            let (places, changes) = by_shard.entry(shard).or_default();
            places.push(index);
            changes.push(change);
        }
        let asked = by_shard
            .into_iter()
            .map(async |(shard, (places, changes))| {
                let results = self.ask_owner(publisher, shard, changes, deadline).await;
                places.into_iter().zip(results)
            });
        let mut results: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        results.sort_by_key(|(place, _)| *place);
        let results: Vec<v1::WriteResult> = results.into_iter().map(|(_, result)| result).collect();
        for result in &results {
            let code = match &result.outcome {
                Some(Outcome::Failure(failure)) => Code::from(failure.code),
                _ => Code::Ok,
            };
            metrics::counter!(GATEWAY_FORWARDED_TOTAL, "code" => status::name(code)).increment(1);
        }
        Ok(results)
    }

    async fn ask_owner(
        &self,
        publisher: &Publisher,
        shard: Partition,
        changes: Vec<v1::PointChange>,
        deadline: Deadline,
    ) -> Vec<v1::WriteResult> {
        let count = changes.len();
        let collection = publisher.collection();
        let request = v1::ResolveRequest {
            collection: collection.name.to_string(),
            shard: shard.0,
            changes,
            origin: self
                .publish
                .origin
                .as_ref()
                .map_or(String::new(), ToString::to_string),
            schema_id: match publisher.framing() {
                Framing::SingleObject => None,
                Framing::Confluent { schema_id } => Some(schema_id),
            },
        };
        let mut why = "nobody serves it".to_owned();
        let mut asked = None;
        for _ in 0..2 {
            let Some((address, epoch)) = self.owner(collection, shard, asked, deadline).await
            else {
                break;
            };
            let left = deadline.left();
            match self.owners.resolve(&address, request.clone(), left).await {
                Ok(response) if response.code == 0 && response.results.len() == count => {
                    return response.results;
                }
                Ok(response) if response.code == 0 => {
                    let why = format!(
                        "indexer at {address} answered {} results for {count} changes",
                        response.results.len()
                    );
                    return all_failed(count, Code::Unknown, &why);
                }
                Ok(response) => why = response.error,
                Err(AskError::NotSent(error)) => why = error,
                Err(AskError::Lost(error)) => {
                    let why = format!(
                        "it is unknown whether the point was changed: {error}; read it, and repeat the change with if_version"
                    );
                    return all_failed(count, Code::Unknown, &why);
                }
            }
            asked = Some(epoch);
        }
        let why = format!(
            "shard {shard} of `{}` takes no changes now ({why}); nothing was written",
            collection.name
        );
        all_failed(count, Code::Unavailable, &why)
    }

    /// Where the shard's owner listens, and its claim's epoch; waits for a claim that is ready and
    /// not the one asked before.
    async fn owner(
        &self,
        collection: &Collection,
        shard: Partition,
        asked: Option<Offset>,
        deadline: Deadline,
    ) -> Option<(String, Offset)> {
        let mut changes = self.control.changed();
        loop {
            changes.mark_unchanged();
            let state = self.control.snapshot();
            if let Some((claim, epoch)) = state.owner(&collection.name, shard)
                && claim.ready
                && asked != Some(*epoch)
            {
                if asked.is_some() {
                    let claims = state.shards.values();
                    let all: BTreeSet<_> =
                        claims.map(|(claim, _)| claim.address.as_str()).collect();
                    self.owners.retain(&all);
                }
                return Some((claim.address.clone(), *epoch));
            }
            let changed = tokio::time::timeout(deadline.left(), changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return None;
            }
        }
    }
}

/// Whose a change is, and the bytes it is sent with.
fn size_of(change: &v1::PointChange) -> (&str, usize) {
    match &change.kind {
        Some(Kind::Patch(patch)) => (
            &patch.id,
            patch.encoded_len().saturating_sub(patch.id.len()),
        ),
        Some(Kind::Write(write)) => (
            &write.id,
            write.value.as_ref().map_or(0, |value| value.len()),
        ),
        None => ("", 0),
    }
}

fn routed(collection: &Collection, id: &PointId, kind: Kind) -> Routed {
    let change = v1::PointChange { kind: Some(kind) };
    (route::partition_of(collection, id), change)
}

fn check_conditions(points: usize, conditions: usize) -> Result<(), CallError> {
    if points == conditions {
        Ok(())
    } else {
        Err(CallError::Conditions { points, conditions })
    }
}

fn all_failed(count: usize, code: Code, why: &str) -> Vec<v1::WriteResult> {
    let failure = v1::WriteFailure {
        code: i32::from(code),
        message: why.to_owned(),
        current_version: None,
    };
    let one = v1::WriteResult {
        outcome: Some(Outcome::Failure(failure)),
    };
    vec![one; count]
}
