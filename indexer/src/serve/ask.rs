//! What comes over the wire, checked against the collection: queries, counts and scrolls.
//!
//! A query node checks the same before it asks. Here it is checked again, because a shard answers
//! whoever asks it, and because the definitions of two processes may differ for a moment.

use std::sync::{Arc, OnceLock};

use shoal_schemas::{Collection, Filter, PointId, Tenant, Vector, payload::Selection, v1};
use tonic::Code;

use crate::{
    index::target::Target,
    serve::Refusal,
    shard::search::{After, Ask, CountAsk, GroupBy, ScrollAsk},
};

/// Most points one query may ask for; also groups times their size.
const MAX_K: u32 = 10_000;

/// What a call wants of each of its shards.
pub(super) struct Asked {
    queries: Vec<v1::Query>,
    /// Of each query, how many candidates are re-scored; none or 0 is for the shard to say.
    rescore: Vec<u32>,
    /// Of each query, how many hits are wanted of all shards together; none or 0 is for each to say.
    together: Vec<u32>,
    /// Answers that the caller has already.
    pub(super) known: Vec<v1::KnownAnswer>,
    /// The queries, checked against the definition of the first shard that needed them.
    checked: OnceLock<(Arc<Collection>, Arc<[Ask]>)>,
}

impl Asked {
    /// What is asked, not checked yet.
    pub(super) fn new(request: v1::SearchShardsRequest) -> Self {
        Self {
            queries: request.queries,
            rescore: request.rescore,
            together: request.together,
            known: request.known,
            checked: OnceLock::new(),
        }
    }

    /// How many hits of each query are wanted of all shards together, if that is said of every query.
    pub(super) fn together(&self) -> Option<Vec<usize>> {
        let is_said = self.together.len() == self.queries.len();
        let wanted = self.together.iter().filter(|_| is_said);
        let wanted = wanted.map(|one| usize::try_from(*one).ok().filter(|one| *one > 0));
        let wanted: Vec<usize> = wanted.collect::<Option<_>>()?;
        (!wanted.is_empty()).then_some(wanted)
    }

    /// All queries, checked once for all shards of a definition. Two shards may differ in theirs for
    /// a moment.
    ///
    /// # Errors
    /// [`Refusal`] with `INVALID_ARGUMENT`, naming the query.
    pub(super) fn checked(&self, collection: &Arc<Collection>) -> Result<Arc<[Ask]>, Refusal> {
        if let Some((of, asks)) = self.checked.get()
            && of == collection
        {
            return Ok(asks.clone());
        }
        let mut asks = check(&self.queries, collection)?;
        for (ask, rescore) in asks.iter_mut().zip(&self.rescore) {
            let rescore = usize::try_from(*rescore)
                .ok()
                .filter(|rescore| *rescore > 0);
            ask.rescore = rescore;
        }
        let asks: Arc<[Ask]> = asks.into();
        // Where another shard was first and is of another definition, this one's are its own.
        let _first = self.checked.set((collection.clone(), asks.clone()));
        Ok(asks)
    }
}

fn invalid(message: impl std::fmt::Display) -> Refusal {
    Refusal {
        code: Code::InvalidArgument,
        message: message.to_string(),
    }
}

/// Checks all queries of a call.
///
/// # Errors
/// [`Refusal`] with `INVALID_ARGUMENT`, naming the query.
fn check(queries: &[v1::Query], collection: &Collection) -> Result<Vec<Ask>, Refusal> {
    let checked = queries.iter().enumerate().map(|(number, query)| {
        check_query(query, collection).map_err(|refusal| Refusal {
            message: format!("query {number}: {}", refusal.message),
            ..refusal
        })
    });
    checked.collect()
}

fn check_query(query: &v1::Query, collection: &Collection) -> Result<Ask, Refusal> {
    let k = up_to("k", query.k)?;
    Vector::new(&query.vector, collection.dim, collection.metric).map_err(invalid)?;
    if query.offset != 0 {
        return Err(invalid(
            "offset is for query nodes, which skip hits of all shards together; ask for more",
        ));
    }
    if query.max_distance.is_some_and(f32::is_nan) {
        return Err(invalid("max_distance is no number"));
    }
    let group_by = (query.group_by.as_ref())
        .map(|group_by| check_group_by(group_by, query.k, collection))
        .transpose()?;
    let after = query.after.as_ref().map(check_after).transpose()?;
    if after.is_some() && group_by.is_some() {
        return Err(invalid("after does not go with group_by"));
    }
    let beam = query.ef.min(MAX_K);
    let selection = Selection::new(&query.include_payload, &query.exclude_payload);
    Ok(Ask {
        vector: Target::new(query.vector.clone()),
        k,
        rescore: None,
        beam: (beam > 0).then(|| usize::try_from(beam).unwrap_or(usize::MAX)),
        with_vector: query.with_vector,
        with_payload: query.with_payload || !selection.is_all(),
        exact: query.exact,
        filter: check_filter(query.filter.as_ref(), collection)?,
        max_distance: query.max_distance,
        group_by,
        selection,
        after,
        explain: query.explain,
        tenant: check_tenant(&query.tenant, collection)?,
    })
}

/// Checks a count.
///
/// # Errors
/// [`Refusal`].
pub(super) fn check_count(
    filter: Option<&v1::Filter>,
    tenant: &str,
    collection: &Collection,
) -> Result<CountAsk, Refusal> {
    Ok(CountAsk {
        filter: check_filter(filter, collection)?,
        tenant: check_tenant(tenant, collection)?,
    })
}

/// Checks a page of points by id.
///
/// # Errors
/// [`Refusal`].
pub(super) fn check_scroll(
    request: &v1::ShardScrollRequest,
    collection: &Collection,
) -> Result<ScrollAsk, Refusal> {
    if !request.after_id.is_empty() {
        PointId::new(&request.after_id).map_err(invalid)?;
    }
    Ok(ScrollAsk {
        filter: check_filter(request.filter.as_ref(), collection)?,
        tenant: check_tenant(&request.tenant, collection)?,
        after_id: request.after_id.clone(),
        limit: up_to("limit", request.limit)?,
        with_vector: request.with_vector,
        selection: Selection::new(&request.include_payload, &request.exclude_payload),
    })
}

fn up_to(field: &str, found: u32) -> Result<usize, Refusal> {
    match found {
        1..=MAX_K => Ok(usize::try_from(found).unwrap_or(usize::MAX)),
        _ => Err(invalid(format_args!(
            "{field} is {found}, allowed are 1 to {MAX_K}"
        ))),
    }
}

fn check_filter(
    filter: Option<&v1::Filter>,
    collection: &Collection,
) -> Result<Option<Filter>, Refusal> {
    let Some(filter) = filter else {
        return Ok(None);
    };
    let read = Filter::from_proto(filter.clone()).map_err(invalid)?;
    read.resolve(&collection.fields).map(Some).map_err(invalid)
}

fn check_tenant(tenant: &str, collection: &Collection) -> Result<Option<Tenant>, Refusal> {
    Tenant::asked(tenant, collection).map_err(invalid)
}

fn check_group_by(
    group_by: &v1::GroupBy,
    k: u32,
    collection: &Collection,
) -> Result<GroupBy, Refusal> {
    let Some(kind) = collection.fields.get(&group_by.field) else {
        return Err(invalid(format_args!(
            "group_by field `{}` is not declared",
            group_by.field.chars().take(80).collect::<String>()
        )));
    };
    up_to("k times group_size", k.saturating_mul(group_by.group_size))?;
    Ok(GroupBy {
        field: group_by.field.clone(),
        kind: *kind,
        group_size: up_to("group_size", group_by.group_size)?,
    })
}

fn check_after(after: &v1::After) -> Result<After, Refusal> {
    if after.distance.is_nan() {
        return Err(invalid("the distance of after is no number"));
    }
    PointId::new(&after.id).map_err(invalid)?;
    Ok(After {
        distance: after.distance,
        id: after.id.clone(),
    })
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
