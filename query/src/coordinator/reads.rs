//! Gets, counts and scrolls: reading points without a vector.

use shoal_schemas::{Filter, Partition, PointId, Tenant, filter::FilterError, route, v1};

use crate::{
    cache::soonest,
    call::Call,
    coordinator::{
        Coordinator, QueryError, Told,
        question::{CountOf, MatchesOf, PageOf, PointsOf},
    },
    merge::merge_points,
    shard_map::Shards,
    tokens::TokensByShard,
};

impl Coordinator {
    pub(super) async fn fetch(
        &self,
        request: v1::GetRequest,
        call: Call,
    ) -> Result<v1::GetResponse, QueryError> {
        let shards = self.shards(&request.collection)?;
        self.fetch_of(&shards, request, call).await
    }

    /// The same of a collection that was looked up already.
    pub(super) async fn fetch_of(
        &self,
        shards: &Shards,
        request: v1::GetRequest,
        call: Call,
    ) -> Result<v1::GetResponse, QueryError> {
        let ids = self.limits.check_ids(&request.ids)?;
        if let Some(tenant) = Tenant::asked(&request.tenant, &shards.collection)? {
            check_ids_of(&tenant, &ids)?;
        }
        let terms = self.terms(shards, request.read, &call).await?;
        let mut question = PointsOf::new(shards.collection.name.to_string(), request.with_vector);
        for id in ids {
            let shard = route::partition_of(&shards.collection, &id);
            question.add(shard, id);
        }
        // A shard without ids is asked too if a token names it: the token still has to hold.
        let wanted: Vec<_> = (shards.numbers())
            .filter(|shard| question.names(*shard) || terms.tokens.contains_key(shard))
            .collect();
        let asked = self.ask(shards, &question, wanted, &terms, call);
        let Told {
            bodies,
            mut coverage,
            ..
        } = asked.await?;
        let points = question.in_order(bodies.into_iter().flatten());
        coverage.expires_at_ms = first_expiry(&points);
        Ok(v1::GetResponse {
            points,
            coverage: Some(coverage),
        })
    }

    pub(super) async fn tally(
        &self,
        request: v1::CountRequest,
        call: Call,
    ) -> Result<v1::CountResponse, QueryError> {
        let shards = self.shards(&request.collection)?;
        let filter = check_filter(request.filter, &shards)?;
        let tenant = Tenant::asked(&request.tenant, &shards.collection)?;
        let terms = self.terms(&shards, request.read, &call).await?;
        if filter.is_none() && tenant.is_none() {
            let question = CountOf {
                collection: shards.collection.name.to_string(),
            };
            let all = shards.numbers();
            let asked = self.ask(&shards, &question, all, &terms, call);
            let Told {
                bodies, coverage, ..
            } = asked.await?;
            return Ok(v1::CountResponse {
                points: bodies.iter().map(|counted| counted.live_points).sum(),
                contested: bodies.iter().map(|counted| counted.contested).sum(),
                coverage: Some(coverage),
            });
        }
        let question = MatchesOf {
            collection: shards.collection.name.to_string(),
            filter,
            tenant: request.tenant,
        };
        let homes = homes(tenant.as_ref(), &shards, &terms.tokens);
        let asked = self.ask(&shards, &question, homes, &terms, call);
        let Told {
            bodies, coverage, ..
        } = asked.await?;
        Ok(v1::CountResponse {
            points: bodies.into_iter().sum(),
            contested: 0,
            coverage: Some(coverage),
        })
    }

    pub(super) async fn page(
        &self,
        request: v1::ScrollRequest,
        call: Call,
    ) -> Result<v1::ScrollResponse, QueryError> {
        let shards = self.shards(&request.collection)?;
        let limit = self.limits.check_page(request.limit)?;
        if !request.after_id.is_empty() {
            let checked = PointId::new(&request.after_id);
            checked.map_err(|source| QueryError::Id { at: 0, source })?;
        }
        let tenant = Tenant::asked(&request.tenant, &shards.collection)?;
        let filter = check_filter(request.filter, &shards)?;
        let terms = self.terms(&shards, request.read, &call).await?;
        let question = PageOf(v1::ShardScrollRequest {
            collection: shards.collection.name.to_string(),
            shards: Vec::new(),
            filter,
            tenant: request.tenant,
            after_id: request.after_id,
            limit: request.limit,
            with_vector: request.with_vector,
            include_payload: request.include_payload,
            exclude_payload: request.exclude_payload,
        });
        let mut homes = homes(tenant.as_ref(), &shards, &terms.tokens);
        // Ranges that end before the page begins hold nothing of it.
        let first = route::first_partition_after(&shards.collection, &question.0.after_id);
        homes.retain(|shard| *shard >= first || terms.tokens.contains_key(shard));
        let asked = self.ask(&shards, &question, homes, &terms, call);
        let Told {
            bodies,
            mut coverage,
            ..
        } = asked.await?;
        // A shard that filled its page may have more; so do points that were cut off.
        let found: usize = bodies.iter().map(Vec::len).sum();
        let may_have_more = found > limit || bodies.iter().any(|points| points.len() >= limit);
        let points = merge_points(bodies, limit);
        coverage.expires_at_ms = first_expiry(&points);
        let last = points.last().and_then(|stored| stored.point.as_ref());
        let next_after_id = match last {
            Some(point) if may_have_more => point.id.clone(),
            _ => String::new(),
        };
        Ok(v1::ScrollResponse {
            points,
            next_after_id,
            coverage: Some(coverage),
        })
    }
}

/// When the first of these expires, 0 if none ever does.
fn first_expiry(points: &[v1::StoredPoint]) -> i64 {
    let points = points.iter().filter_map(|stored| stored.point.as_ref());
    soonest(points.map(|point| point.expires_at_ms))
}

/// The filter with its values as the fields are declared.
fn check_filter(
    filter: Option<v1::Filter>,
    shards: &Shards,
) -> Result<Option<v1::Filter>, QueryError> {
    let resolve = |filter| -> Result<v1::Filter, FilterError> {
        let read = Filter::from_proto(filter)?.resolve(&shards.collection.fields)?;
        Ok(read.to_proto())
    };
    filter.map(resolve).transpose().map_err(QueryError::Filter)
}

fn check_ids_of(tenant: &Tenant, ids: &[PointId]) -> Result<(), QueryError> {
    match ids.iter().position(|id| !tenant.holds(id.as_str())) {
        None => Ok(()),
        Some(at) => Err(QueryError::ForeignId {
            at,
            tenant: tenant.to_string(),
        }),
    }
}

/// The tenant's shards, or all; and those that tokens name.
fn homes(tenant: Option<&Tenant>, shards: &Shards, tokens: &TokensByShard) -> Vec<Partition> {
    let home = tenant.map(|tenant| tenant.shards(&shards.collection));
    let is_asked = |shard: &Partition| {
        home.as_ref().is_none_or(|home| home.contains(shard)) || tokens.contains_key(shard)
    };
    shards.numbers().filter(is_asked).collect()
}
