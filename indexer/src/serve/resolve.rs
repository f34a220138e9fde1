//! Changes that a gateway forwards: checked, handed to the resolver in order, answered one by one.

use std::collections::VecDeque;

use shoal_schemas::{
    CollectionName, Condition, Partition, Patch, PointId, RegionName, Token,
    avro::Framing,
    headers::{TRACEPARENT, TraceParent},
    patch::PatchError,
    route, v1,
};
use tonic::{Code, Request, Status};

use crate::{
    node::NotServing,
    resolve::{Change, ResolveError, Style, Target, Want},
    serve::{Refusal, Service, collection_name, not_serving, status::write_failure},
};

pub(super) use crate::resolve::Deadline;

/// The caller's trace; one that does not read is no reason to refuse a change.
pub(super) fn trace<T>(request: &Request<T>) -> Option<TraceParent> {
    let value = request.metadata().get(TRACEPARENT)?;
    value.to_str().ok()?.parse().ok()
}

impl Service {
    /// Makes the changes of one shard.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a request that only a bug of the gateway makes.
    pub(super) async fn resolve_changes(
        &self,
        request: v1::ResolveRequest,
        trace: Option<TraceParent>,
        deadline: Deadline,
    ) -> Result<v1::ResolveResponse, Status> {
        let collection = collection_name(&request.collection)?;
        let target = match self.owned(&collection, request.shard) {
            Ok(target) => target,
            Err(refusal) => {
                return Ok(v1::ResolveResponse {
                    results: Vec::new(),
                    code: refusal.number(),
                    error: refusal.message,
                });
            }
        };
        let residency = named("residency", &request.residency)?;
        if let Some(tag) = residency
            .as_ref()
            .filter(|tag| **tag != target.shared.spec.region)
        {
            // Sooner than admission, which would refuse the record once it is in the log.
            let why = format!(
                "records are to stay in `{tag}`, indexer stands in `{}`; nothing was written: gateway.residency.region and indexer.region have to be the same",
                target.shared.spec.region
            );
            return Ok(v1::ResolveResponse {
                results: vec![misplaced(&why); request.changes.len()],
                ..v1::ResolveResponse::default()
            });
        }
        let style = Style {
            framing: request
                .schema_id
                .map_or(Framing::SingleObject, |schema_id| Framing::Confluent {
                    schema_id,
                }),
            origin: named("origin", &request.origin)?,
            residency,
            trace,
        };
        let changes = request.changes.into_iter();
        let changes: Vec<Change> = changes
            .map(|change| self::change(change, &target))
            .collect::<Result<_, Status>>()?;
        // Handed over one after the other, so that those of one id keep their order.
        let mut pending = VecDeque::with_capacity(changes.len());
        for change in changes {
            let taken = self
                .resolver
                .submit(target.clone(), change, style.clone(), deadline);
            pending.push_back(taken.await);
        }
        // No async closure: compiled anew in steps, rustc 1.95 stops at this one.
        let outcomes = pending.into_iter().map(|taken| async move {
            match taken {
                Ok(pending) => result(pending.outcome().await),
                Err(error) => result(Err(error)),
            }
        });
        Ok(v1::ResolveResponse {
            results: futures::future::join_all(outcomes).await,
            code: 0,
            error: String::new(),
        })
    }

    /// The shard, if it serves and this node's is the latest claim of it.
    fn owned(&self, collection: &CollectionName, shard: u32) -> Result<Target, Refusal> {
        let key = (collection.clone(), Partition(shard));
        let refuse = |why: NotServing| not_serving(shard, &why);
        let held = self.node.shard(&key);
        let held = held.ok_or_else(|| refuse(NotServing::NotOwned))?;
        let shared = held.serving().map_err(refuse)?.clone();
        if !self.node.owns(&key) {
            return Err(refuse(NotServing::NotOwned));
        }
        Ok(Target {
            shared,
            cancel: held.cancelled().clone(),
        })
    }
}

/// The region that a field of the request names, if it does.
fn named(field: &str, text: &str) -> Result<Option<RegionName>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let region = text.parse();
    region
        .map(Some)
        .map_err(|_| malformed(&format!("its {field} is no region")))
}

fn misplaced(why: &str) -> v1::WriteResult {
    let failure = v1::WriteFailure {
        code: Code::FailedPrecondition.into(),
        message: why.to_owned(),
        current_version: None,
    };
    v1::WriteResult {
        outcome: Some(v1::write_result::Outcome::Failure(failure)),
    }
}

fn change(change: v1::PointChange, target: &Target) -> Result<Change, Status> {
    let collection = &target.shared.spec.collection;
    let change = match change.kind {
        Some(v1::point_change::Kind::Write(write)) => Change {
            id: PointId::new(&write.id).map_err(|error| malformed(&error.to_string()))?,
            want: Want::Write(write.value),
            condition: Condition::from_wire(write.if_version),
        },
        Some(v1::point_change::Kind::Patch(patch)) => {
            let read = Patch::from_proto(patch, collection);
            let (id, patch, condition) =
                read.map_err(|error: PatchError| malformed(&error.to_string()))?;
            Change {
                id,
                want: Want::Patch(patch),
                condition,
            }
        }
        None => return Err(malformed("a change says nothing")),
    };
    if route::partition_of(collection, &change.id) != target.shared.spec.shard {
        return Err(malformed("a change is of another shard"));
    }
    Ok(change)
}

fn malformed(why: &str) -> Status {
    Status::new(
        Code::InvalidArgument,
        format!("request to resolve is malformed: {why}"),
    )
}

fn result(outcome: Result<Token, ResolveError>) -> v1::WriteResult {
    let outcome = match outcome {
        Ok(token) => v1::write_result::Outcome::Token(token.to_proto()),
        Err(error) => v1::write_result::Outcome::Failure(write_failure(&error)),
    };
    v1::WriteResult {
        outcome: Some(outcome),
    }
}
