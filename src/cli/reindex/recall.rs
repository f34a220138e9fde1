//! Whether searches of a new generation find what they should, told by a sample of points.
//!
//! Digests say that all points are there, not that the graph leads to them. So some points are looked for
//! by their own vectors, as any search would; and where the old generation measures alike, what is near
//! them there is compared with what is near them here. A hit is not missing where others are as near:
//! vectors that occur often would be told as lost.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context as _, bail};
use shoal_indexer::shard::buckets::MAX_BUCKETS;
use shoal_schemas::{
    Collection, CollectionName, Metric, Partition, PointId,
    buckets::{BUCKETS, Bucket, Row},
    route, v1,
};
use shoal_topic::control::ControlState;
use tonic::transport::Channel;

use super::{
    super::query_link::{connect, request, told},
    same::rows,
    upkeep::copies,
};

/// Points that are looked for.
const SAMPLE: usize = 100;
/// Hits of each.
const NEAREST: usize = 10;
/// How long a shard may take to answer for all of them.
const ANSWER: Duration = Duration::from_secs(60);
/// Vectors and payloads of a sample.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Distances that differ by less are the same.
const SAME: f32 = 1e-5;

/// What a sample has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Points that were looked for.
    points: usize,
    /// Those among the nearest to their own vectors; not told where a vector is not nearest to itself.
    themselves: Option<usize>,
    /// What the old generation holds near to them, and how much of it the new one finds.
    neighbours: Option<(usize, usize)>,
}

/// Searches of the new generation would find too little.
#[derive(Debug, thiserror::Error)]
#[error(
    "searches of `{to}` would find too little ({found}), at least {least} is wanted; the name was not \
     moved. A denser graph (--m, --ef-construction), a wider search (--ef-search), a finer \
     --quantization or no graph (--index flat) finds more, and a lower --recall takes it as it is"
)]
pub(super) struct TooLow {
    pub(super) to: CollectionName,
    pub(super) found: Found,
    pub(super) least: f64,
}

impl Found {
    /// By what searches have found of some points, in their order.
    fn of(ids: &[PointId], metric: Metric, news: &[Hits], olds: Option<&[Hits]>) -> Self {
        let finds_itself = |(id, hits): &(&PointId, &Hits)| hits.covers(id, None);
        let themselves = (metric != Metric::InnerProduct)
            .then(|| ids.iter().zip(news).filter(finds_itself).count());
        let neighbours = olds.map(|olds| {
            let pairs = olds.iter().zip(news);
            let near = pairs.flat_map(|(old, new)| old.0.iter().map(move |hit| (hit, new)));
            let (mut all, mut found) = (0, 0);
            for ((id, distance), new) in near {
                all += 1;
                found += usize::from(new.covers(id, Some(*distance)));
            }
            (all, found)
        });
        Self {
            points: ids.len(),
            themselves,
            neighbours,
        }
    }

    /// Whether each share is so large; a sample of nothing shows nothing.
    pub(super) fn is_at_least(&self, least: f64) -> bool {
        let is_enough = |all: usize, found: usize| all == 0 || share(all, found) >= least;
        self.themselves
            .is_none_or(|found| is_enough(self.points, found))
            && (self.neighbours).is_none_or(|(all, found)| is_enough(all, found))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {} points looked for", self.points)?;
        if let Some(found) = self.themselves {
            write!(f, " {found} were found")?;
        }
        if let Some((all, found)) = self.neighbours {
            write!(f, ", with {found} of {all} neighbours")?;
        }
        Ok(())
    }
}

#[expect(clippy::as_conversions, reason = "a sample is far below 2^53")]
fn share(all: usize, found: usize) -> f64 {
    found as f64 / all as f64
}

/// What a search has found, nearest first.
#[derive(Clone, Debug, Default, PartialEq)]
struct Hits(Vec<(PointId, f32)>);

impl Hits {
    /// Whether a point is there, or the answer is full of points that are as near: nearer than
    /// `distance`, or all at one where none is given.
    fn covers(&self, id: &PointId, distance: Option<f32>) -> bool {
        if self.0.iter().any(|(found, _)| found == id) {
            return true;
        }
        let (Some((_, nearest)), Some((_, farthest))) = (self.0.first(), self.0.last()) else {
            return false;
        };
        let bound = distance.unwrap_or(*nearest);
        self.0.len() == NEAREST && *farthest <= bound + SAME * bound.abs().max(1.0)
    }
}

/// Looks for some points of the new collection.
pub(super) async fn sample(
    state: &ControlState,
    old: &Collection,
    new: &Collection,
) -> anyhow::Result<Found> {
    let (ids, vectors) = points(state, new).await?;
    let news = search(state, new, &vectors).await?;
    let olds = if old.dim == new.dim && old.metric == new.metric {
        Some(search(state, old, &vectors).await?)
    } else {
        None
    };
    Ok(Found::of(&ids, new.metric, &news, olds.as_deref()))
}

/// Some points, by the hashes of their ids.
async fn points(
    state: &ControlState,
    of: &Collection,
) -> anyhow::Result<(Vec<PointId>, Vec<Vec<f32>>)> {
    let copies = copies(state, of).await?;
    let all: Vec<Bucket> = (0..u32::try_from(BUCKETS)?)
        .filter_map(Bucket::new)
        .collect();
    let mut by_shard: BTreeMap<Partition, Vec<String>> = BTreeMap::new();
    let (mut count, mut left, mut parts) = (0, all.as_slice(), 1);
    // A part of a large collection has enough; of a small one it takes many.
    while count < SAMPLE && !left.is_empty() {
        let (some, others) = left.split_at(parts.min(left.len()));
        (left, parts) = (others, (parts * 4).min(MAX_BUCKETS));
        let found = rows(&copies, some).await?;
        let served = found
            .into_iter()
            .filter(|(_, row)| matches!(row, Row::Served { .. }));
        for (id, _) in served.take(SAMPLE - count) {
            count += 1;
            let shard = route::partition_of(of, &id);
            by_shard.entry(shard).or_default().push(id.to_string());
        }
    }
    let (mut ids, mut vectors) = (Vec::new(), Vec::new());
    for (shard, wanted) in by_shard {
        let asked = v1::GetPointsRequest {
            collection: of.name.to_string(),
            shards: vec![v1::ShardIds {
                ask: Some(ask(shard)),
                ids: wanted,
            }],
            with_vector: true,
        };
        let mut client = client(state, of, shard).await?;
        let answer = client.get_points(request(asked, ANSWER)).await;
        let answer = answer.map_err(|status| told(&status))?.into_inner();
        // One that was deleted meanwhile is not there.
        let stored = answer.shards.into_iter().flat_map(|shard| shard.points);
        for point in stored.filter_map(|stored| stored.point) {
            ids.push(PointId::new(&point.id)?);
            vectors.push(point.vector);
        }
    }
    Ok((ids, vectors))
}

/// What a collection finds near some vectors, in their order.
async fn search(
    state: &ControlState,
    of: &Collection,
    vectors: &[Vec<f32>],
) -> anyhow::Result<Vec<Hits>> {
    let mut all = vec![Hits::default(); vectors.len()];
    if vectors.is_empty() {
        return Ok(all);
    }
    for number in 0..of.partitions {
        let shard = Partition(number);
        let queries = vectors.iter().map(|vector| v1::Query {
            vector: vector.clone(),
            k: u32::try_from(NEAREST).unwrap_or(u32::MAX),
            ..v1::Query::default()
        });
        let asked = v1::SearchShardsRequest {
            collection: of.name.to_string(),
            shards: vec![ask(shard)],
            queries: queries.collect(),
            ..v1::SearchShardsRequest::default()
        };
        let mut client = client(state, of, shard).await?;
        let answer = client.search_shards(request(asked, ANSWER)).await;
        let answer = answer.map_err(|status| told(&status))?.into_inner();
        let found = answer.shards.into_iter().next().unwrap_or_default();
        if found.results.len() != vectors.len() {
            let why = found.coverage.map(|coverage| coverage.error);
            bail!(
                "shard {}/{number} does not search: {}",
                of.name,
                why.unwrap_or_default()
            );
        }
        for (hits, found) in all.iter_mut().zip(found.results) {
            for hit in found.hits {
                hits.0.push((PointId::new(&hit.id)?, hit.distance));
            }
        }
    }
    for Hits(hits) in &mut all {
        hits.sort_by(|(a, one), (b, other)| one.total_cmp(other).then_with(|| a.cmp(b)));
        hits.truncate(NEAREST);
    }
    Ok(all)
}

fn ask(shard: Partition) -> v1::ShardAsk {
    v1::ShardAsk {
        shard: shard.0,
        at_least: Vec::new(),
    }
}

async fn client(
    state: &ControlState,
    of: &Collection,
    shard: Partition,
) -> anyhow::Result<v1::shard_client::ShardClient<Channel>> {
    let owner = state.owner(&of.name, shard);
    let (claim, _) = owner.with_context(|| format!("nobody serves shard {}/{shard}", of.name))?;
    let channel = connect("the indexer", &claim.address).await?;
    let client = v1::shard_client::ShardClient::new(channel);
    Ok(client
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Metric, PointId};

    use super::{Found, Hits};

    fn id(text: &str) -> PointId {
        PointId::new(text).unwrap()
    }

    fn hits(all: &[(&str, f32)]) -> Hits {
        Hits(all.iter().map(|(name, at)| (id(name), *at)).collect())
    }

    /// Ten others, the first at one distance and the rest at another.
    fn others(first: f32, rest: f32) -> Hits {
        let names = ('b'..='k').map(|name| (id(&name.to_string()), rest));
        let mut all: Vec<_> = names.collect();
        all[0].1 = first;
        Hits(all)
    }

    #[test]
    fn a_point_is_lost_unless_others_are_as_near() {
        let ids = [id("a"), id("a"), id("a"), id("a")];
        let news = [
            hits(&[("a", 0.0), ("b", 0.5)]),
            hits(&[("b", 0.5)]),
            others(0.1, 0.5),
            // Ten times the same vector: any ten of eleven are right.
            others(0.0, 0.0),
        ];
        let found = Found::of(&ids, Metric::L2, &news, None);
        assert_eq!((found.points, found.themselves), (4, Some(2)));
        assert!(found.is_at_least(0.5) && !found.is_at_least(0.6));
        assert_eq!(found.to_string(), "of 4 points looked for 2 were found");
        // A longer vector is nearer than one itself.
        let found = Found::of(&ids, Metric::InnerProduct, &news, None);
        assert!(found.is_at_least(1.0), "{found}");
    }

    #[test]
    fn a_neighbour_is_lost_unless_the_new_one_found_nearer_ones() {
        let ids = [id("a")];
        let olds = [hits(&[("a", 0.0), ("x", 0.2), ("y", 0.4)])];
        let found = |new: Hits| {
            let found = Found::of(&ids, Metric::L2, &[new], Some(&olds));
            found.neighbours.unwrap()
        };
        assert_eq!(found(hits(&[("a", 0.0), ("x", 0.2)])), (3, 2));
        assert_eq!(found(hits(&[("a", 0.0), ("x", 0.2), ("y", 0.4)])), (3, 3));
        // Ten within 0.3: `y` has no place among them, `x` and `a` would have.
        assert_eq!(found(others(0.1, 0.3)), (3, 1));
        let low = Found::of(&ids, Metric::L2, &[hits(&[("a", 0.0)])], Some(&olds));
        assert!(!low.is_at_least(0.8) && low.is_at_least(0.3), "{low}");
    }
}
