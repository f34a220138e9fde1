//! One query as a caller sends it, checked: what shards are asked, and what their answers make.
//!
//! Pure. Shards are asked for `k + offset` and skip nothing: only the merged list knows which
//! hits are the first. Everything else a query says is done by each shard for itself.

use std::collections::BTreeSet;

use shoal_schemas::{
    Collection, Filter, PointId, Tenant, Vector, filter::FilterError, point::IdError,
    tenant::TenantError, v1, vector::VectorError,
};

use crate::{
    cache::soonest,
    depth::{self, Depth},
    groups, merge,
};

/// Why a query is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QueryFault {
    /// Its vector.
    #[error(transparent)]
    Vector(#[from] VectorError),
    /// A number out of range.
    #[error("{field} is {found}, allowed are {min} to {max}")]
    Range {
        /// The field.
        field: &'static str,
        /// As given.
        found: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// Its filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Its tenant.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// The field to group by.
    #[error("group_by: {0}")]
    GroupBy(FilterError),
    /// The id of the last hit.
    #[error("after has an id that is refused: {0}")]
    AfterId(IdError),
    /// A distance that is no number.
    #[error("{field} is no number")]
    NotANumber {
        /// The field.
        field: &'static str,
    },
    /// Two ways of paging.
    #[error("after and {other} do not go together; {advice}")]
    After {
        /// The other field.
        other: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
}

/// A query, checked.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// As shards are asked.
    pub(crate) ask: v1::Query,
    tenant: Option<Tenant>,
    filter: Option<Filter>,
    offset: usize,
    /// Hits or groups of all shards, those skipped included.
    total: usize,
    /// Hits a group, if there are groups.
    group_size: Option<usize>,
}

/// Largest numbers of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) k: u32,
    pub(crate) ef: u32,
    pub(crate) group_size: u32,
}

impl Wanted {
    /// Checks a query against its collection.
    ///
    /// # Errors
    /// [`QueryFault`].
    pub(crate) fn check(
        query: v1::Query,
        collection: &Collection,
        most: Most,
    ) -> Result<Self, QueryFault> {
        let mut ask = query;
        in_range("k", ask.k.into(), 1, most.k)?;
        in_range("ef", ask.ef.into(), 0, most.ef)?;
        Vector::new(&ask.vector, collection.dim, collection.metric)?;
        let total = ask.k.saturating_add(ask.offset);
        if ask.offset > 0 {
            in_range("k + offset", total.into(), 1, most.k)?;
        }
        if ask.max_distance.is_some_and(f32::is_nan) {
            return Err(QueryFault::NotANumber {
                field: "max_distance",
            });
        }
        if let Some(group_by) = &ask.group_by {
            let named = Filter::Exists {
                field: group_by.field.clone(),
            };
            named
                .check(&collection.fields)
                .map_err(QueryFault::GroupBy)?;
            let size = group_by.group_size;
            in_range("group_size", size.into(), 1, most.group_size)?;
            let hits = u64::from(total) * u64::from(size);
            in_range("(k + offset) * group_size", hits, 1, most.k)?;
        }
        if let Some(after) = &ask.after {
            check_after(after, &ask)?;
        }
        let filter = match ask.filter.take() {
            None => None,
            Some(filter) => Some(Filter::from_proto(filter)?.resolve(&collection.fields)?),
        };
        let tenant = Tenant::asked(&ask.tenant, collection)?;
        let selects = !ask.include_payload.is_empty() || !ask.exclude_payload.is_empty();
        ask.with_payload |= selects;
        // With its values as the fields are declared: times are timestamps.
        ask.filter = filter.as_ref().map(Filter::to_proto);
        let offset = std::mem::take(&mut ask.offset);
        ask.k = total;
        Ok(Self {
            offset: size(offset),
            total: size(total),
            group_size: (ask.group_by.as_ref()).map(|group_by| size(group_by.group_size)),
            ask,
            tenant,
            filter,
        })
    }

    /// The tenant, if one is named.
    pub(crate) fn tenant(&self) -> Option<&Tenant> {
        self.tenant.as_ref()
    }

    /// How deep each of so many shards is searched.
    ///
    /// Groups are counted, not hits, and a key's prefix may send all of a tenant to one shard: then
    /// a shard's part of the answer is not what dice say. A filter lets few rows through, of which a
    /// narrow beam may miss some.
    pub(crate) fn depth(&self, collection: &Collection, shards: usize) -> Depth {
        if self.group_size.is_some() || collection.route_by_key_prefix {
            return self.whole();
        }
        let Depth { k, ef, .. } = self.whole();
        let shards = u32::try_from(shards).unwrap_or(u32::MAX);
        let is_narrowed = ef == 0 && self.filter.is_none() && !self.ask.exact;
        Depth {
            k: depth::hits(k, shards),
            ef: match is_narrowed {
                true => depth::beam(collection.index.ef_search.into(), shards),
                false => ef,
            },
            // A page that begins behind a hit is looked for in more than it holds.
            rescore: match self.ask.after {
                None => depth::rescored(k, shards, |k| collection.rescored(k)),
                Some(_) => 0,
            },
        }
    }

    /// The depth of a shard that is asked for all of it.
    pub(crate) fn whole(&self) -> Depth {
        Depth {
            k: self.ask.k,
            ef: self.ask.ef,
            rescore: 0,
        }
    }

    /// Whether a shard that was asked at that depth may have more than it named.
    pub(crate) fn may_have_more(&self, list: &v1::HitList, depth: Depth) -> bool {
        depth.k < self.ask.k && list.hits.len() >= size(depth.k)
    }

    /// How many hits of all shards are merged, where a node that has several of them may leave out what cannot
    /// be among them; 0 where each has to answer for itself.
    pub(crate) fn together(&self) -> u32 {
        let is_plain = self.group_size.is_none() && self.ask.after.is_none();
        match is_plain {
            true => self.ask.k,
            false => 0,
        }
    }

    /// Whether the merged hits may lack one that a node left out of a list, which is there from that distance on.
    ///
    /// Not where the lists of all shards that it was left out for are merged. Of one of them another
    /// replica's answer may have been taken, which does not have as many as near. Of hits at that very distance
    /// the merge may then have others than the first by id.
    pub(crate) fn may_lack(&self, merged: &v1::HitList, left_out_from: Option<f32>) -> bool {
        left_out_from.is_some_and(|from| match merged.hits.last() {
            Some(last) if merged.hits.len() >= self.total => last.distance.total_cmp(&from).is_gt(),
            _ => true,
        })
    }

    /// The query as shards are asked at that depth.
    pub(crate) fn at(&self, depth: Depth) -> v1::Query {
        v1::Query {
            k: depth.k,
            ef: depth.ef,
            ..self.ask.clone()
        }
    }

    /// Merges what shards answered, one list each.
    pub(crate) fn merge(&self, lists: Vec<v1::HitList>) -> v1::HitList {
        let (mut merged, _) = self.merge_noting(lists);
        self.skip(&mut merged);
        merged
    }

    /// Merges lists and skips nothing yet; also which of them the merge has used up.
    pub(crate) fn merge_noting(&self, lists: Vec<v1::HitList>) -> (v1::HitList, Vec<bool>) {
        let mut merged = v1::HitList {
            expires_at_ms: soonest(lists.iter().map(|list| list.expires_at_ms)),
            ..v1::HitList::default()
        };
        let used_up = match self.group_size {
            None => {
                let mut hits = Vec::with_capacity(lists.len());
                for list in lists {
                    hits.push(list.hits);
                    merged.explain.extend(list.explain);
                }
                let found = merge::merge_noting(hits, self.total);
                merged.hits = found.hits;
                found.used_up
            }
            Some(group_size) => {
                let mut groups = Vec::with_capacity(lists.len());
                for list in lists {
                    groups.push(list.groups);
                    merged.explain.extend(list.explain);
                }
                merged.groups = groups::merge_groups(groups, self.total, group_size);
                Vec::new()
            }
        };
        merged.explain.sort_by_key(|explain| explain.shard);
        (merged, used_up)
    }

    /// Merges what shards that were asked again answered into what was merged before.
    pub(crate) fn merge_again(&self, before: v1::HitList, again: Vec<v1::HitList>) -> v1::HitList {
        let told: Vec<v1::ShardExplain> = (again.iter())
            .flat_map(|list| list.explain.iter().cloned())
            .collect();
        let mut lists = again;
        // What a shard did the second time stands for it.
        lists.push(v1::HitList {
            explain: (before.explain.into_iter())
                .filter(|explain| told.iter().all(|told| told.shard != explain.shard))
                .collect(),
            ..before
        });
        self.merge_noting(lists).0
    }

    /// Skips the hits or groups of the pages before.
    pub(crate) fn skip(&self, merged: &mut v1::HitList) {
        merged.hits.drain(..self.offset.min(merged.hits.len()));
        merged.groups.drain(..self.offset.min(merged.groups.len()));
    }

    /// The places of merged groups that one of the shards may have more hits of.
    pub(crate) fn unnamed(
        &self,
        merged: &[v1::HitGroup],
        lists: &[&v1::HitList],
    ) -> BTreeSet<usize> {
        // The nearest hit of a group is always named.
        let Some(group_size) = self.group_size.filter(|size| *size > 1) else {
            return BTreeSet::new();
        };
        let unnamed = lists
            .iter()
            .flat_map(|list| groups::unnamed(merged, &list.groups, self.total, group_size));
        unnamed.collect()
    }

    /// A query for the hits of one group alone; `None` if there are no groups.
    pub(crate) fn of_group(&self, value: &v1::Value) -> Option<v1::Query> {
        let group_by = self.ask.group_by.as_ref()?;
        let is_in_group = v1::Filter {
            condition: Some(v1::filter::Condition::In(v1::FieldIn {
                field: group_by.field.clone(),
                values: vec![value.clone()],
            })),
        };
        let parts = self.filter.as_ref().map(Filter::to_proto).into_iter();
        let all = v1::FilterList {
            parts: parts.chain([is_in_group]).collect(),
        };
        Some(v1::Query {
            filter: Some(v1::Filter {
                condition: Some(v1::filter::Condition::All(all)),
            }),
            k: group_by.group_size,
            group_by: None,
            explain: false,
            ..self.ask.clone()
        })
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn check_after(after: &v1::After, query: &v1::Query) -> Result<(), QueryFault> {
    if after.distance.is_nan() {
        return Err(QueryFault::NotANumber {
            field: "the distance of after",
        });
    }
    PointId::new(&after.id).map_err(QueryFault::AfterId)?;
    if query.offset > 0 {
        return Err(QueryFault::After {
            other: "offset",
            advice: "after begins behind its hit, so leave offset out",
        });
    }
    if query.group_by.is_some() {
        return Err(QueryFault::After {
            other: "group_by",
            advice: "page through groups with offset",
        });
    }
    Ok(())
}

fn in_range(field: &'static str, found: u64, min: u64, max: u32) -> Result<(), QueryFault> {
    let max = u64::from(max);
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(QueryFault::Range {
        field,
        found,
        min,
        max,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Collection, FieldKind, Metric, v1};

    use super::{Most, Wanted};
    use crate::depth::Depth;

    #[test]
    fn a_shard_is_asked_for_its_share_of_hits_and_exact_distances_where_dice_say_what_that_is() {
        let dim = 2.try_into().unwrap();
        let mut docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 8);
        docs.fields = [("year".to_owned(), FieldKind::Integer)].into();
        let most = Most {
            k: 1000,
            ef: 1000,
            group_size: 10,
        };
        let query = v1::Query {
            vector: vec![0.0, 0.0],
            k: 10,
            ef: 40,
            ..v1::Query::default()
        };
        let told = |query: &v1::Query| {
            let wanted = Wanted::check(query.clone(), &docs, most).unwrap();
            let Depth { k, ef, rescore } = wanted.depth(&docs, 8);
            (k, ef, rescore)
        };
        assert_eq!(told(&query), (7, 40, 9));
        let behind = v1::Query {
            after: Some(v1::After {
                distance: 0.5,
                id: "a".into(),
            }),
            ..query.clone()
        };
        assert_eq!(told(&behind), (7, 40, 0));
        let grouped = v1::Query {
            group_by: Some(v1::GroupBy {
                field: "year".into(),
                group_size: 1,
            }),
            ..query
        };
        assert_eq!(told(&grouped), (10, 40, 0));
    }
}
