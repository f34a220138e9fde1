//! One query as a caller sends it, checked: what shards are asked, and what their answers make.
//!
//! Pure. Shards are asked for `k + offset` and skip nothing: only the merged list knows which
//! hits are the first. Everything else a query says is done by each shard for itself.

use shoal_schemas::{
    Collection, Filter, PointId, Tenant, Vector, filter::FilterError, point::IdError,
    tenant::TenantError, v1, vector::VectorError,
};

use crate::{groups, merge::merge};

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

    /// Merges what shards answered, one list each.
    pub(crate) fn merge(&self, lists: Vec<v1::HitList>) -> v1::HitList {
        let mut merged = v1::HitList::default();
        match self.group_size {
            None => {
                let mut hits = Vec::with_capacity(lists.len());
                for list in lists {
                    hits.push(list.hits);
                    merged.explain.extend(list.explain);
                }
                merged.hits = merge(hits, self.total);
                merged.hits.drain(..self.offset.min(merged.hits.len()));
            }
            Some(group_size) => {
                let mut groups = Vec::with_capacity(lists.len());
                for list in lists {
                    groups.push(list.groups);
                    merged.explain.extend(list.explain);
                }
                merged.groups = groups::merge_groups(groups, self.total, group_size);
                merged.groups.drain(..self.offset.min(merged.groups.len()));
            }
        }
        merged.explain.sort_by_key(|explain| explain.shard);
        merged
    }

    /// Values of merged groups that one of the shards may have more hits of, each once.
    pub(crate) fn unnamed(
        &self,
        merged: &[v1::HitGroup],
        lists: &[&v1::HitList],
    ) -> Vec<v1::Value> {
        // The nearest hit of a group is always named.
        if self.group_size.is_none_or(|size| size < 2) {
            return Vec::new();
        }
        let mut values = Vec::new();
        for list in lists {
            for value in groups::unnamed(merged, &list.groups, self.total) {
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
        values
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
