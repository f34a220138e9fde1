//! Searching, counting and paging a few points in the plainest way: look at all of them.
//!
//! This is what a shard's answer means, said without an index, so that a test of whatever asks
//! shards can trust it.

use std::collections::BTreeMap;

use shoal_schemas::{
    Collection, Filter, Metric, Payload, Point, Tenant, Version,
    digest::{Digest, row_hash},
    payload::Selection,
    v1,
};

use crate::merge::by_distance_then_id;

/// The points of a shard by id.
pub(super) type Points = BTreeMap<String, v1::StoredPoint>;

/// Which points are meant.
pub(super) struct Which {
    filter: Option<Filter>,
    tenant: Option<Tenant>,
}

impl Which {
    /// Those that match. What no query node sends, as it checks before it asks, matches nothing.
    pub(super) fn of(collection: &Collection, filter: Option<&v1::Filter>, tenant: &str) -> Self {
        let read = filter.map(|filter| {
            let read = Filter::from_proto(filter.clone());
            read.unwrap_or(Filter::Any(Vec::new()))
        });
        let tenant = Tenant::asked(tenant, collection);
        Self {
            filter: match tenant {
                Ok(_) => read,
                Err(_) => Some(Filter::Any(Vec::new())),
            },
            tenant: tenant.unwrap_or_default(),
        }
    }

    fn has(&self, collection: &Collection, point: &v1::Point) -> bool {
        let is_of_tenant = |tenant: &Tenant| tenant.holds(&point.id);
        let matches = |filter: &Filter| {
            let payload = Payload::from_proto(point.payload.clone());
            payload.is_ok_and(|payload| filter.matches_declared(&payload, &collection.fields))
        };
        self.tenant.as_ref().is_none_or(is_of_tenant) && self.filter.as_ref().is_none_or(matches)
    }

    /// The points meant, by id.
    pub(super) fn select<'a>(
        &'a self,
        collection: &'a Collection,
        points: &'a Points,
    ) -> impl Iterator<Item = (&'a v1::StoredPoint, &'a v1::Point)> {
        points.values().filter_map(|stored| {
            let point = stored.point.as_ref()?;
            self.has(collection, point).then_some((stored, point))
        })
    }
}

/// Takes out of the answers of shards that were asked together what is farther than so many of their hits.
pub(super) fn leave_out(answers: &mut [v1::ShardAnswer], together: &[u32]) {
    for (query, total) in together.iter().enumerate() {
        let lists = answers.iter_mut();
        let mut lists: Vec<_> = lists
            .filter_map(|answer| answer.results.get_mut(query))
            .collect();
        let mut hits: Vec<v1::Hit> = lists.iter().flat_map(|list| list.hits.clone()).collect();
        hits.sort_unstable_by(by_distance_then_id);
        let total = usize::try_from(*total).unwrap_or(usize::MAX);
        let last = total.checked_sub(1).filter(|_| hits.len() > total);
        let Some(last) = last.and_then(|last| hits.get(last)) else {
            continue;
        };
        for list in &mut lists {
            list.hits
                .retain(|hit| by_distance_then_id(hit, last).is_le());
            list.left_out_from = Some(last.distance);
        }
    }
    let is_whole = |list: &v1::HitList| list.left_out_from.is_none();
    for answer in answers {
        if !answer.results.iter().all(is_whole) {
            answer.version.clear();
        }
    }
}

/// Answers one query over all points of a shard.
pub(super) fn search(
    collection: &Collection,
    shard: u32,
    points: &Points,
    query: &v1::Query,
) -> v1::HitList {
    let which = Which::of(collection, query.filter.as_ref(), &query.tenant);
    let selection = Selection::new(&query.include_payload, &query.exclude_payload);
    let with_payload = query.with_payload || !selection.is_all();
    let hit = |(stored, point): (&v1::StoredPoint, &v1::Point)| v1::Hit {
        id: point.id.clone(),
        distance: distance(collection.metric, &query.vector, &point.vector),
        version: stored.version,
        payload: point.payload.clone(),
        vector: if query.with_vector {
            point.vector.clone()
        } else {
            Vec::new()
        },
    };
    let mut hits: Vec<v1::Hit> = which.select(collection, points).map(hit).collect();
    let matches = u64::try_from(hits.len()).unwrap_or(u64::MAX);
    hits.sort_unstable_by(by_distance_then_id);
    hits.retain(|hit| {
        let near = query.max_distance.is_none_or(|most| hit.distance <= most);
        let behind = query.after.as_ref().is_none_or(|after| {
            let last = v1::Hit {
                id: after.id.clone(),
                distance: after.distance,
                ..v1::Hit::default()
            };
            by_distance_then_id(hit, &last).is_gt()
        });
        near && behind
    });
    let k = usize::try_from(query.k).unwrap_or(usize::MAX);
    let mut answer = v1::HitList::default();
    match &query.group_by {
        Some(group_by) => answer.groups = grouped(collection, &hits, group_by, k),
        None => {
            hits.truncate(k);
            answer.hits = hits;
        }
    }
    let groups = answer.groups.iter_mut().flat_map(|group| &mut group.hits);
    for hit in answer.hits.iter_mut().chain(groups) {
        if with_payload {
            selection.cut(&mut hit.payload);
        } else {
            hit.payload.clear();
        }
    }
    if query.explain {
        answer.explain.push(v1::ShardExplain {
            shard,
            plan: v1::SearchPlan::Exact.into(),
            estimated_matches: matches,
            matches: Some(matches),
            rows_scanned: matches,
            segments: 1,
            ..v1::ShardExplain::default()
        });
    }
    answer
}

/// The `k` groups whose hits come first in a sorted list.
fn grouped(
    collection: &Collection,
    hits: &[v1::Hit],
    group_by: &v1::GroupBy,
    k: usize,
) -> Vec<v1::HitGroup> {
    let size = usize::try_from(group_by.group_size).unwrap_or(usize::MAX);
    let mut groups: Vec<v1::HitGroup> = Vec::new();
    for hit in hits {
        let value = Payload::from_proto(hit.payload.clone()).ok();
        let value = value.and_then(|payload| payload.0.get(&group_by.field).cloned());
        let kind = collection.fields.get(&group_by.field);
        let (Some(value), Some(kind)) = (value, kind) else {
            continue;
        };
        for value in kind.groups(&value) {
            let value = Some(value.to_proto());
            match groups.iter().position(|group| group.value == value) {
                Some(at) => {
                    let held = groups.get_mut(at).filter(|group| group.hits.len() < size);
                    held.into_iter()
                        .for_each(|group| group.hits.push(hit.clone()));
                }
                None if groups.len() < k => groups.push(v1::HitGroup {
                    value,
                    hits: vec![hit.clone()],
                    may_lack_hits: false,
                }),
                None => {}
            }
        }
    }
    groups
}

/// A page of points by id.
pub(super) fn page(
    collection: &Collection,
    points: &Points,
    request: &v1::ShardScrollRequest,
) -> Vec<v1::StoredPoint> {
    let which = Which::of(collection, request.filter.as_ref(), &request.tenant);
    let selection = Selection::new(&request.include_payload, &request.exclude_payload);
    let behind = which
        .select(collection, points)
        .filter(|(_, point)| point.id > request.after_id);
    let page = behind.take(usize::try_from(request.limit).unwrap_or(usize::MAX));
    let told = page.map(|(stored, _)| {
        let mut stored = stored.clone();
        if let Some(point) = &mut stored.point {
            selection.cut(&mut point.payload);
            if !request.with_vector {
                point.vector.clear();
            }
        }
        stored
    });
    told.collect()
}

/// The digest of a shard's points, as an indexer keeps it.
pub(super) fn digest(collection: &Collection, points: &Points) -> Digest {
    let mut digest = Digest::default();
    for stored in points.values() {
        let point = stored.point.clone();
        let read = point.and_then(|point| Point::from_proto(point, collection).ok());
        if let Some((id, point)) = read {
            let mut payload = Vec::new();
            point.payload.encode_canonical(&mut payload);
            digest.add(row_hash(
                &id,
                Version::from_raw(stored.version),
                &point.vector,
                &payload,
                point.model.as_deref(),
                point.event_time_ms,
                point.expires_at_ms,
            ));
        }
    }
    digest
}

/// The collection's distance, in the plainest way.
fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    match metric {
        Metric::Cosine => 1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt(),
        Metric::InnerProduct => 1.0 - dot(a, b),
        Metric::L2 => a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum(),
    }
}
