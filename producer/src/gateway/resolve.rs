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

use futures::future::{join, join_all};
use prost::Message as _;
use shoal_runtime::{chain, clock::Stopwatch, grpc::code_name};
use shoal_schemas::{
    Collection, CollectionName, Condition, Offset, Partition, Patch, PointId, RegionName,
    avro::Framing,
    json,
    patch::PatchError,
    route,
    v1::{self, point_change::Kind, write_result::Outcome},
};
use tonic::Code;

use super::{
    CallError,
    calls::{Calls, Candidate, To, check_count, prepare},
    owners::AskError,
    residency::{Part, Place, RegionError, Sorted, Write, parts, placed},
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

    /// What is left of it.
    pub(super) fn left(&self) -> Duration {
        self.time.saturating_sub(self.since.elapsed())
    }
}

/// One change, the shard it belongs to, and the region that its record must not leave.
struct Routed {
    shard: Partition,
    residency: Option<RegionName>,
    change: v1::PointChange,
}

impl Calls {
    /// Changes parts of points.
    pub(super) async fn patch<C: PatchCandidate>(
        &self,
        to: &To<'_>,
        patches: Vec<C>,
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        check_count("points", patches.len())?;
        let publisher = self.settled_publisher(to).await?;
        let defined = publisher.collection();
        let rule = self.rule(to, &publisher)?;
        let mut sorted = Sorted::default();
        for (index, patch) in patches.into_iter().enumerate() {
            let decoded = patch.decode(defined);
            let (id, patch, condition) =
                decoded.map_err(|source| CallError::Patch { index, source })?;
            let patch = patch.to_proto(&id, condition);
            match placed(&rule, index, &id)? {
                Place::Here(region) => {
                    let change = routed(defined, &id, Kind::Patch(patch), region);
                    sorted.here.push((index, change));
                }
                Place::There(region) => sorted.add_there(region, index, patch),
            }
        }
        let there = parts(sorted.there, |points| {
            Write::Patch(v1::PatchRequest {
                collection: to.collection.to_owned(),
                points,
            })
        });
        self.forward(&publisher, sorted.here, there, to.deadline)
            .await
    }

    /// Publishes complete points, some of them only where their conditions hold.
    pub(super) async fn upsert_if<C: Candidate>(
        &self,
        to: &To<'_>,
        points: Vec<C>,
        conditions: &[Condition],
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        check_count("points", points.len())?;
        check_conditions(points.len(), conditions.len())?;
        let publisher = self.settled_publisher(to).await?;
        let defined = publisher.collection();
        let rule = self.rule(to, &publisher)?;
        let sorted = prepare(&publisher, &rule, points)?;
        let wanted = |at: usize| conditions.get(at).and_then(|wanted| wanted.to_wire());
        let mut here = Vec::with_capacity(sorted.here.len());
        for (index, record) in sorted.here {
            let write = v1::PointWrite {
                id: record.id().as_str().to_owned(),
                value: record.value().cloned(),
                if_version: wanted(index),
            };
            let region = match placed(&rule, index, record.id())? {
                Place::Here(region) => region,
                Place::There(_) => None,
            };
            let change = routed(defined, record.id(), Kind::Write(write), region);
            here.push((index, change));
        }
        let there = sorted.there.into_iter().map(|(region, points)| {
            let (at, points): (Vec<usize>, _) = points.into_iter().unzip();
            let conditions = at.iter().map(|at| v1::Condition {
                if_version: wanted(*at),
            });
            let upsert = v1::UpsertRequest {
                collection: to.collection.to_owned(),
                points,
                conditions: conditions.collect(),
            };
            let write = Write::Upsert(upsert);
            Part { region, at, write }
        });
        self.forward(&publisher, here, there.collect(), to.deadline)
            .await
    }

    /// Publishes deletes, some of them only where their conditions hold.
    pub(super) async fn delete_if(
        &self,
        to: &To<'_>,
        ids: &[String],
        conditions: &[Condition],
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        check_count("ids", ids.len())?;
        check_conditions(ids.len(), conditions.len())?;
        let publisher = self.settled_publisher(to).await?;
        let defined = publisher.collection();
        let rule = self.rule(to, &publisher)?;
        let mut sorted = Sorted::default();
        for (index, (id, condition)) in ids.iter().zip(conditions).enumerate() {
            let id = PointId::new(id).map_err(|source| CallError::Id { index, source })?;
            let if_version = condition.to_wire();
            match placed(&rule, index, &id)? {
                Place::Here(region) => {
                    let write = v1::PointWrite {
                        id: id.as_str().to_owned(),
                        value: None,
                        if_version,
                    };
                    let change = routed(defined, &id, Kind::Write(write), region);
                    sorted.here.push((index, change));
                }
                Place::There(region) => {
                    let doomed = (id.as_str().to_owned(), v1::Condition { if_version });
                    sorted.add_there(region, index, doomed);
                }
            }
        }
        let there = parts(sorted.there, |doomed| {
            let (ids, conditions) = doomed.into_iter().unzip();
            Write::Delete(v1::DeleteRequest {
                collection: to.collection.to_owned(),
                ids,
                conditions,
            })
        });
        self.forward(&publisher, sorted.here, there, to.deadline)
            .await
    }

    /// The publisher of what a name stands for, once it is sure in which topic the newest record of its
    /// points is: the end of a re-indexing's feed is waited for, also under other names of the old
    /// collection.
    async fn settled_publisher(&self, to: &To<'_>) -> Result<Publisher, CallError> {
        let name: CollectionName = to.collection.parse()?;
        let mut changes = self.control.changed();
        loop {
            changes.mark_unchanged();
            let state = self.control.snapshot();
            if !state.is_moving(&name) {
                return self.publisher_in(&state, name).await;
            }
            let changed = tokio::time::timeout(to.deadline.left(), changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(CallError::Moving { name });
            }
        }
    }

    /// Forwards changes to the owners of their shards and to the regions they belong to; answers one result a
    /// change, in order.
    async fn forward(
        &self,
        publisher: &Publisher,
        here: Vec<(usize, Routed)>,
        there: Vec<Part>,
        deadline: Deadline,
    ) -> Result<Vec<v1::WriteResult>, CallError> {
        let sizes = here.iter().map(|(_, routed)| size_of(&routed.change));
        self.quotas.take(publisher.collection(), sizes)?;
        let is_whole = here.is_empty() && there.len() == 1;
        let (here, there) = join(
            self.to_owners(publisher, here, deadline),
            self.to_regions(there, is_whole, deadline),
        )
        .await;
        let mut results = here;
        results.extend(there?);
        results.sort_by_key(|(place, _)| *place);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    async fn to_owners(
        &self,
        publisher: &Publisher,
        changes: Vec<(usize, Routed)>,
        deadline: Deadline,
    ) -> Vec<(usize, v1::WriteResult)> {
        let mut asks: BTreeMap<_, (Vec<usize>, Vec<v1::PointChange>)> = BTreeMap::new();
        for (index, routed) in changes {
            let ask = (routed.shard, routed.residency);
            let (places, changes) = asks.entry(ask).or_default();
            places.push(index);
            changes.push(routed.change);
        }
        let asked = asks.into_iter().map(async |(ask, (places, changes))| {
            let results = self.ask_owner(publisher, ask, changes, deadline).await;
            places.into_iter().zip(results)
        });
        let results: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        for (_, result) in &results {
            let code = code_name(status::of_result(result));
            metrics::counter!(GATEWAY_FORWARDED_TOTAL, "code" => code).increment(1);
        }
        results
    }

    /// Has other regions make their parts; a region that refuses the whole of a call fails it as a whole.
    async fn to_regions(
        &self,
        parts: Vec<Part>,
        is_whole: bool,
        deadline: Deadline,
    ) -> Result<Vec<(usize, v1::WriteResult)>, CallError> {
        let asked = parts.into_iter().map(async |part| {
            let Part { region, at, write } = part;
            let results = match self.regions.write(&region, write, deadline).await {
                Ok(written) => written.results,
                Err(error @ RegionError::Refused { .. }) if is_whole => return Err(error),
                Err(error @ RegionError::Lost { .. }) => {
                    let why = format!(
                        "it is unknown whether the point was changed: {}; read it there, and repeat the change with if_version",
                        chain(&error)
                    );
                    all_failed(at.len(), Code::Unknown, &why)
                }
                Err(error) => all_failed(at.len(), error.code(), &chain(&error).to_string()),
            };
            Ok(at.into_iter().zip(results).collect::<Vec<_>>())
        });
        let results: Result<Vec<_>, RegionError> = join_all(asked).await.into_iter().collect();
        Ok(results?.into_iter().flatten().collect())
    }

    async fn ask_owner(
        &self,
        publisher: &Publisher,
        (shard, residency): (Partition, Option<RegionName>),
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
            residency: residency.map_or(String::new(), String::from),
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
                Ok(mut response) if response.code == 0 && response.results.len() == count => {
                    self.in_own_region(&mut response.results);
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

    /// Has tokens say where they are from.
    fn in_own_region(&self, results: &mut [v1::WriteResult]) {
        let Some(own) = self.residency.own() else {
            return;
        };
        for result in results {
            if let Some(Outcome::Token(token)) = &mut result.outcome {
                token.region = own.to_string();
            }
        }
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

fn routed(
    collection: &Collection,
    id: &PointId,
    kind: Kind,
    residency: Option<&RegionName>,
) -> Routed {
    Routed {
        shard: route::partition_of(collection, id),
        residency: residency.cloned(),
        change: v1::PointChange { kind: Some(kind) },
    }
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
