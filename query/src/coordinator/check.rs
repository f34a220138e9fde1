//! Checks of what callers send, before any shard is asked: pure.

use shoal_schemas::{Collection, PointId, v1};

use crate::{
    coordinator::{
        QueryError,
        wanted::{Most, Wanted},
    },
    shard_map::ShardMap,
};

/// Beam width an index takes at most.
const MAX_EF: u32 = 10_000;
/// Most hits of one group.
const MAX_GROUP_SIZE: u32 = 1_000;

/// How much one call may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest `k`, also of `k + offset` and of hits in groups.
    pub max_k: u32,
    /// Most queries in a batch.
    pub max_batch_queries: u32,
    /// Most ids in a get, and points of a page.
    pub max_get_ids: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_k: 10_000,
            max_batch_queries: 1_000,
            max_get_ids: 10_000,
        }
    }
}

impl Limits {
    /// The queries, each checked; refuses the first that no shard could answer.
    pub(crate) fn check_queries(
        &self,
        collection: &Collection,
        queries: Vec<v1::Query>,
    ) -> Result<Vec<Wanted>, QueryError> {
        let (count, most) = (counted(queries.len()), self.max_batch_queries.into());
        in_range("number of queries", count, 1, most)?;
        let most = Most {
            k: self.max_k,
            ef: MAX_EF,
            group_size: MAX_GROUP_SIZE,
        };
        let check = |(at, query)| {
            Wanted::check(query, collection, most)
                .map_err(|source| QueryError::Query { at, source })
        };
        queries.into_iter().enumerate().map(check).collect()
    }

    /// How many points a page holds.
    pub(crate) fn check_page(&self, limit: u32) -> Result<usize, QueryError> {
        in_range("limit", limit.into(), 1, self.max_get_ids.into())?;
        Ok(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// The ids, each checked.
    pub(crate) fn check_ids(&self, ids: &[String]) -> Result<Vec<PointId>, QueryError> {
        in_range(
            "number of ids",
            counted(ids.len()),
            1,
            self.max_get_ids.into(),
        )?;
        let check = |(at, id): (usize, &String)| {
            PointId::new(id).map_err(|source| QueryError::Id { at, source })
        };
        ids.iter().enumerate().map(check).collect()
    }
}

fn counted(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}

pub(super) fn in_range(
    field: &'static str,
    found: u64,
    min: u64,
    max: u64,
) -> Result<(), QueryError> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(QueryError::Range {
        field,
        found,
        min,
        max,
    })
}

/// Says which collections there are instead.
pub(crate) fn unknown_collection(name: &str, map: &ShardMap) -> QueryError {
    QueryError::UnknownCollection {
        name: name.chars().take(128).collect(),
        existing: map.listed_names(),
    }
}
