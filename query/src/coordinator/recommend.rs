//! Searches by examples: points like these and unlike those.
//!
//! The examples' vectors are read from their shards and combined into one, which is searched for
//! like any other. No shard knows of it: the examples are taken out of the merged answer, so the
//! shards are asked for so many more.

use std::collections::{HashMap, HashSet};

use shoal_schemas::{Metric, v1};

use crate::{
    call::Call,
    coordinator::{Coordinator, QueryError, wanted::QueryFault},
    groups::merge_groups,
};

/// Why examples are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExampleFault {
    /// Nothing to be like.
    #[error("there is no positive id; name at least one point that the answer shall be like")]
    NoPositive,
    /// A vector beside the examples.
    #[error("a vector and examples do not go together; search by one or recommend by the other")]
    Vector,
    /// Ids that are not there.
    #[error("collection `{collection}` has no point {}", listed(.ids))]
    Unknown {
        /// The collection.
        collection: String,
        /// The ids.
        ids: Vec<String>,
    },
    /// More than a search may ask for.
    #[error("{sum} is {found}, allowed are 1 to {max}")]
    TooMany {
        /// What is summed up.
        sum: &'static str,
        /// The sum.
        found: u64,
        /// The largest allowed.
        max: u32,
    },
}

fn listed(ids: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = (ids.iter().take(SHOWN))
        .map(|id| format!("`{}`", id.chars().take(80).collect::<String>()))
        .collect();
    match ids.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl Coordinator {
    pub(super) async fn alike(
        &self,
        request: v1::RecommendRequest,
        call: Call,
    ) -> Result<(v1::HitList, v1::Coverage), QueryError> {
        let v1::RecommendRequest {
            collection,
            positive,
            negative,
            query,
            read,
        } = request;
        let mut query = query.unwrap_or_default();
        if positive.is_empty() {
            return Err(ExampleFault::NoPositive.into());
        }
        if !query.vector.is_empty() {
            return Err(ExampleFault::Vector.into());
        }
        // Once for both questions, so that an alias that is set meanwhile parts no examples from hits.
        let shards = self.shards(&collection)?;
        let metric = shards.collection.metric;
        let wanted = v1::GetRequest {
            collection: collection.clone(),
            ids: positive.iter().chain(&negative).cloned().collect(),
            with_vector: true,
            // Without its shard there is no telling whether an example exists.
            read: Some(v1::ReadOptions {
                require_all: true,
                ..read.clone().unwrap_or_default()
            }),
            tenant: query.tenant.clone(),
        };
        let found = self.fetch_of(&shards, wanted, call).await?.points;
        let examples: HashMap<&str, &v1::Point> = (found.iter())
            .filter_map(|stored| stored.point.as_ref())
            .map(|point| (point.id.as_str(), point))
            .collect();
        let named: HashSet<&str> = (positive.iter().chain(&negative))
            .map(String::as_str)
            .collect();
        if examples.len() < named.len() {
            let missing = named.iter().filter(|id| !examples.contains_key(*id));
            let mut ids: Vec<String> = missing.map(|id| (*id).to_owned()).collect();
            ids.sort_unstable();
            return Err(ExampleFault::Unknown { collection, ids }.into());
        }
        let vectors = |ids: &[String]| -> Vec<&[f32]> {
            let points = ids.iter().filter_map(|id| examples.get(id.as_str()));
            points.map(|point| point.vector.as_slice()).collect()
        };
        query.vector = combine(&vectors(&positive), &vectors(&negative), metric);
        let cut = Cut::widen(&mut query, &examples, self.limits.max_k)?;
        let (lists, coverage) = self.nearest_of(shards, vec![query], read, call).await?;
        let mut list = lists.into_iter().next().unwrap_or_default();
        cut.apply(&mut list, &named);
        Ok((list, coverage))
    }
}

/// What a caller asked for, of an answer that holds more.
struct Cut {
    offset: usize,
    k: usize,
    group_size: usize,
}

impl Cut {
    /// Has a query ask for so much more that what is asked for stays when the examples are gone.
    ///
    /// Each example can take one place among the hits, or among those of a group; and a group that
    /// loses its nearest hit falls behind others, which at most as many do as hold an example.
    fn widen(
        query: &mut v1::Query,
        examples: &HashMap<&str, &v1::Point>,
        max: u32,
    ) -> Result<Self, QueryError> {
        let in_range = |field, found: u32, min| {
            let source = QueryFault::Range {
                field,
                found: found.into(),
                min,
                max: max.into(),
            };
            if (min..=u64::from(max)).contains(&u64::from(found)) {
                return Ok(());
            }
            Err(QueryError::Query { at: 0, source })
        };
        in_range("k", query.k, 1)?;
        in_range("offset", query.offset, 0)?;
        let cut = Self {
            offset: usize::try_from(query.offset).unwrap_or(usize::MAX),
            k: usize::try_from(query.k).unwrap_or(usize::MAX),
            group_size: (query.group_by.as_ref())
                .map_or(0, |by| usize::try_from(by.group_size).unwrap_or(usize::MAX)),
        };
        let (further, sum) = match &mut query.group_by {
            None => (examples.len(), "k + offset + examples"),
            Some(by) => {
                // A size that is out of range is refused with the query.
                if by.group_size > 0 {
                    by.group_size = by.group_size.saturating_add(count(examples.len()));
                }
                let groups = examples.values().map(|point| groups_of(point, &by.field));
                let sum = "(k + offset + groups of examples) * (group_size + examples)";
                (groups.sum(), sum)
            }
        };
        let total = u64::from(query.k) + u64::from(query.offset) + u64::from(count(further));
        let size = query.group_by.as_ref().map_or(1, |by| by.group_size.max(1));
        let found = total * u64::from(size);
        if found > u64::from(max) {
            return Err(ExampleFault::TooMany { sum, found, max }.into());
        }
        query.k = u32::try_from(total).unwrap_or(u32::MAX);
        query.offset = 0;
        Ok(cut)
    }

    /// Takes the examples out, and what is more than was asked for.
    fn apply(&self, list: &mut v1::HitList, examples: &HashSet<&str>) {
        let is_new = |hit: &v1::Hit| !examples.contains(hit.id.as_str());
        list.hits.retain(is_new);
        list.hits.drain(..self.offset.min(list.hits.len()));
        list.hits.truncate(self.k);
        for group in &mut list.groups {
            group.hits.retain(is_new);
        }
        let groups = std::mem::take(&mut list.groups);
        list.groups = merge_groups(vec![groups], self.offset + self.k, self.group_size);
        list.groups.drain(..self.offset.min(list.groups.len()));
    }
}

/// How many groups a point is in at most.
fn groups_of(point: &v1::Point, field: &str) -> usize {
    match point
        .payload
        .get(field)
        .and_then(|value| value.kind.as_ref())
    {
        None => 0,
        Some(v1::value::Kind::Strings(list)) => list.items.len(),
        Some(_) => 1,
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

/// The vector to search for: see `RecommendRequest`. Sums are made in `f64`.
fn combine(positive: &[&[f32]], negative: &[&[f32]], metric: Metric) -> Vec<f32> {
    let like = mean(positive, metric);
    if negative.is_empty() {
        return like.into_iter().map(narrow).collect();
    }
    let unlike = mean(negative, metric);
    let moved = like.iter().zip(&unlike);
    moved
        .map(|(like, unlike)| narrow(2.0 * like - unlike))
        .collect()
}

#[expect(
    clippy::as_conversions,
    reason = "there is no other way from f64 to f32; what is too large is infinite, and refused as a vector"
)]
fn narrow(component: f64) -> f32 {
    component as f32
}

fn mean(vectors: &[&[f32]], metric: Metric) -> Vec<f64> {
    let dim = vectors.first().map_or(0, |vector| vector.len());
    let mut sum = vec![0.0; dim];
    for vector in vectors {
        let squares: f64 = vector.iter().map(|one| f64::from(*one).powi(2)).sum();
        let length = match metric {
            Metric::Cosine if squares > 0.0 => squares.sqrt(),
            _ => 1.0,
        };
        for (sum, one) in sum.iter_mut().zip(*vector) {
            *sum += f64::from(*one) / length;
        }
    }
    let vectors = f64::from(count(vectors.len()));
    sum.into_iter().map(|sum| sum / vectors).collect()
}

#[cfg(test)]
mod tests {
    use shoal_schemas::Metric;

    use super::combine;

    #[test]
    fn the_vector_is_the_mean_moved_away_from_the_negative_mean() {
        let (a, b, c) = ([1.0, 0.0], [3.0, 2.0], [0.0, 4.0]);
        assert_eq!(combine(&[&a, &b], &[], Metric::L2), [2.0, 1.0]);
        assert_eq!(combine(&[&a, &b], &[&c], Metric::L2), [4.0, -2.0]);
        assert_eq!(
            combine(&[&a, &a, &b], &[], Metric::L2),
            [5.0 / 3.0, 2.0 / 3.0]
        );
    }

    #[test]
    fn length_counts_unless_the_metric_is_cosine() {
        let (long, short) = ([100.0, 0.0], [0.0, 1.0]);
        assert_eq!(combine(&[&long, &short], &[], Metric::Cosine), [0.5, 0.5]);
        assert_eq!(
            combine(&[&long, &short], &[], Metric::InnerProduct),
            [50.0, 0.5]
        );
    }
}
