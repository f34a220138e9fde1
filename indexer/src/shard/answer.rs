//! Answering from a shard: searches with all they can ask for, counts and scrolls.
//!
//! Everything here looks at one moment ([`Shared::moment`]) and runs beside the writer. What a
//! search asks beyond the nearest k, pages and groups, is done by asking [`find::nearest`] for more
//! until there is enough.

use std::collections::BinaryHeap;

use shoal_schemas::{Collection, Filter, Payload, v1};

use crate::{
    entry,
    fields::group::{Groups, Needs, Shared as Value},
    find::{self, Found, Timer, Told, Wanted},
    index::distance::Query,
    segment::{Segment, indexed},
    shard::{
        Shared,
        search::{After, Ask, CountAsk, GroupBy, ReadError, ScrollAsk},
    },
    view::{Moment, View},
};

/// Hits looked at together while groups are filled, at least and at most.
const GROUP_HITS: (usize, usize) = (32, 4096);

impl Shared {
    /// The hits of one query that asks for no groups.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn search(&self, ask: &Ask) -> Result<Vec<v1::Hit>, ReadError> {
        Ok(self.answer(ask, &|| false)?.hits)
    }

    /// Answers one query, unless `stop` says that nobody waits for it any more.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn answer(&self, ask: &Ask, stop: &dyn Fn() -> bool) -> Result<v1::HitList, ReadError> {
        loop {
            match self.answer_once(ask, stop) {
                // A search that was held up while its segment was sealed: the view is a newer one.
                Err(error) if error.is_outdated() => {}
                other => return other,
            }
        }
    }

    fn answer_once(&self, ask: &Ask, stop: &dyn Fn() -> bool) -> Result<v1::HitList, ReadError> {
        if stop() {
            return Err(find::SearchError::Stopped.into());
        }
        let (view, moment) = self.present();
        let query = Query::of(self.spec.collection.metric, &ask.vector);
        let filter = indexed::narrowed(ask.filter.as_ref(), ask.tenant.as_ref());
        let mut pager = Pager {
            shared: self,
            view: &view,
            query: &query,
            ask,
            moment,
            stop,
            told: Told::default(),
        };
        let mut answer = v1::HitList::default();
        let payload_us;
        match &ask.group_by {
            None => {
                let found = pager.page(filter.as_ref(), ask.after.as_ref(), ask.k)?;
                answer.expires_at_ms = first_expiry(&found);
                let timer = Timer::start_if(ask.explain);
                let hits = found.iter().map(|one| self.hit(one, ask));
                answer.hits = hits.collect::<Result<_, _>>()?;
                payload_us = timer.micros();
            }
            Some(group_by) => {
                let groups = pager.groups(filter.as_ref(), group_by)?;
                answer.expires_at_ms = first_expiry(groups.iter().flat_map(|(_, found)| found));
                let timer = Timer::start_if(ask.explain);
                for (value, found) in groups {
                    let hits = found.iter().map(|one| self.hit(one, ask));
                    answer.groups.push(v1::HitGroup {
                        value: Some(value.to_value().to_proto()),
                        hits: hits.collect::<Result<_, _>>()?,
                        may_lack_hits: false,
                    });
                }
                payload_us = timer.micros();
            }
        }
        if ask.explain {
            answer.explain.push(v1::ShardExplain {
                shard: self.spec.shard.0,
                payload_us,
                ..explained(&pager.told, &view)
            });
        }
        Ok(answer)
    }

    pub(super) fn hit(&self, found: &Found<'_>, ask: &Ask) -> Result<v1::Hit, ReadError> {
        let mut hit = v1::Hit {
            id: found.row.id.to_owned(),
            distance: found.distance,
            version: found.row.version.raw(),
            ..v1::Hit::default()
        };
        let row = found.place.row;
        if ask.with_vector {
            found.segment.vector(row, &self.log, &mut hit.vector)?;
        }
        if ask.with_payload {
            hit.payload = self.payload(found)?.to_proto();
            ask.selection.cut(&mut hit.payload);
        }
        Ok(hit)
    }

    fn payload(&self, found: &Found<'_>) -> Result<Payload, ReadError> {
        let frame = found.segment.frame(found.place.row, &self.log)?;
        Ok(entry::upsert_body(&frame)?.payload()?)
    }

    /// How many points a question is about.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn count(&self, ask: &CountAsk) -> Result<u64, ReadError> {
        let Some(filter) = indexed::narrowed(ask.filter.as_ref(), ask.tenant.as_ref()) else {
            return Ok(self.live_points());
        };
        let (view, moment) = self.present();
        let mut points = 0u64;
        for segment in &view.segments {
            let rows = segment
                .matches(&filter)
                .map_err(find::SearchError::Fields)?;
            let visible = rows.iter().filter(|row| segment.is_visible(*row, moment));
            points += u64::try_from(visible.count()).unwrap_or(u64::MAX);
        }
        Ok(points)
    }

    /// A page of points in the order of their ids' bytes. Looks at every row of the shard.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn scroll(&self, ask: &ScrollAsk) -> Result<Vec<v1::StoredPoint>, ReadError> {
        loop {
            match self.scroll_once(ask) {
                Err(error) if error.is_outdated() => {}
                other => return other,
            }
        }
    }

    fn scroll_once(&self, ask: &ScrollAsk) -> Result<Vec<v1::StoredPoint>, ReadError> {
        let (view, moment) = self.present();
        let filter = indexed::narrowed(ask.filter.as_ref(), ask.tenant.as_ref());
        // The last ids of the page so far on top.
        let mut page: BinaryHeap<(&str, usize, u32)> = BinaryHeap::new();
        for (at, segment) in view.segments.iter().enumerate() {
            let mut take = |number: u32| {
                let Some(row) = segment.row(number) else {
                    return;
                };
                let is_behind = row.id > ask.after_id.as_str();
                let is_wanted =
                    page.len() < ask.limit || page.peek().is_some_and(|last| row.id < last.0);
                if is_behind && is_wanted && row.is_visible(moment.sequence, moment.now_ms) {
                    page.push((row.id, at, number));
                    if page.len() > ask.limit {
                        page.pop();
                    }
                }
            };
            match &filter {
                None => segment.visible(u32::MAX, moment).for_each(&mut take),
                Some(filter) => {
                    let rows = segment.matches(filter).map_err(find::SearchError::Fields)?;
                    rows.iter().for_each(&mut take);
                }
            }
        }
        let mut points = Vec::with_capacity(page.len());
        for (_, at, row) in page.into_sorted_vec() {
            let Some(segment) = view.segments.get(at) else {
                continue;
            };
            if let Some(mut stored) = self.stored(segment, row, ask.with_vector)? {
                if let Some(point) = &mut stored.point {
                    ask.selection.cut(&mut point.payload);
                }
                points.push(stored);
            }
        }
        Ok(points)
    }

    pub(super) fn present(&self) -> (std::sync::Arc<View>, Moment) {
        let (view, sequence) = self.moment();
        let now_ms = self.now_ms();
        (view, Moment { sequence, now_ms })
    }
}

/// One question to a view, asked as often as it takes.
struct Pager<'v, 'q> {
    shared: &'q Shared,
    view: &'v View,
    query: &'q Query<'q>,
    ask: &'q Ask,
    moment: Moment,
    stop: &'q dyn Fn() -> bool,
    told: Told,
}

impl<'v> Pager<'v, '_> {
    /// The nearest `k` behind `after` that are within the distance asked for.
    fn page(
        &mut self,
        filter: Option<&Filter>,
        after: Option<&After>,
        k: usize,
    ) -> Result<Vec<Found<'v>>, ReadError> {
        let own = usize::from(self.shared.spec.collection.index.ef_search);
        let mut want = match after {
            None => k,
            Some(_) => k.saturating_mul(2),
        };
        let mut exact = self.ask.exact;
        let collection = &self.shared.spec.collection;
        let is_plain = after.is_none() && self.ask.group_by.is_none();
        loop {
            let wanted = Wanted {
                query: self.query,
                k: want,
                rescore: rescored(collection, want, self.ask.rescore.filter(|_| is_plain)),
                beam: self.ask.beam.unwrap_or(own),
                exact,
                filter,
                moment: self.moment,
                log: &self.shared.log,
                stop: self.stop,
                is_timed: self.ask.explain,
            };
            let mut found = find::nearest(self.view, &wanted, &mut self.told)?;
            let is_all = found.len() < want;
            if let Some(most) = self.ask.max_distance {
                found.retain(|one| one.distance.total_cmp(&most).is_le());
            }
            let is_cut = found.len() < want && !is_all;
            if let Some(after) = after {
                found.retain(|one| {
                    let by_distance = one.distance.total_cmp(&after.distance);
                    by_distance.then_with(|| one.row.id.cmp(&after.id)).is_gt()
                });
            }
            if after.is_none() || found.len() >= k || is_cut || (is_all && exact) {
                found.truncate(k);
                return Ok(found);
            }
            // A walk may miss rows at the far end; a scan does not.
            exact |= is_all;
            want = want.saturating_mul(2);
        }
    }

    /// The groups asked for, in the order of their nearest hits.
    fn groups(
        &mut self,
        filter: Option<&Filter>,
        group_by: &GroupBy,
    ) -> Result<Vec<(Value, Vec<Found<'v>>)>, ReadError> {
        let mut groups = Groups::new(self.ask.k, group_by.group_size);
        let (least, most) = GROUP_HITS;
        let wanted = self.ask.k.saturating_mul(group_by.group_size);
        let batch = wanted.saturating_mul(2).clamp(least, most);
        let mut hits: Vec<Found<'v>> = Vec::new();
        let mut last: Option<After> = None;
        let mut narrowed: Option<Filter> = filter.cloned();
        loop {
            let page = self.page(narrowed.as_ref(), last.as_ref(), batch)?;
            for found in &page {
                let payload = self.shared.payload(found)?;
                let value = payload.0.get(&group_by.field);
                let values = value.map_or_else(Vec::new, |value| group_by.kind.groups(value));
                let values = values.iter().flat_map(Value::of);
                if groups.offer(&hits.len(), values) {
                    hits.push(*found);
                }
            }
            let is_all = page.len() < batch;
            last = page.last().map(|found| After {
                distance: found.distance,
                id: found.row.id.to_owned(),
            });
            let of = |values: Vec<&Value>| Filter::In {
                field: group_by.field.clone(),
                values: values.into_iter().map(Value::to_value).collect(),
            };
            let more = match groups.needs() {
                Needs::Nothing => break,
                Needs::Of(values) => of(values),
                Needs::NotOf(values) => Filter::All(vec![
                    Filter::Exists {
                        field: group_by.field.clone(),
                    },
                    Filter::Not(Box::new(of(values))),
                ]),
            };
            if is_all {
                break;
            }
            narrowed = Some(Filter::All(
                filter.cloned().into_iter().chain([more]).collect(),
            ));
        }
        let groups = groups.finish().into_iter().map(|group| {
            let found = group.hits.iter().filter_map(|at| hits.get(*at).copied());
            (group.value, found.collect())
        });
        Ok(groups.collect())
    }
}

pub(super) fn explained(told: &Told, view: &View) -> v1::ShardExplain {
    let plan = if told.walked > 0 {
        v1::SearchPlan::Graph
    } else if told.filtered > 0 {
        v1::SearchPlan::FilteredGraph
    } else if told.scanned > 0 {
        v1::SearchPlan::Exact
    } else {
        v1::SearchPlan::MemtableOnly
    };
    let points = view.searched().map(|one| u64::from(Segment::live(one)));
    v1::ShardExplain {
        shard: 0,
        plan: plan.into(),
        estimated_matches: match told.matches {
            Some(_) => told.estimated,
            None => points.sum(),
        },
        matches: told.matches,
        rows_scanned: told.distances,
        segments: u32::try_from(view.searched().count()).unwrap_or(u32::MAX),
        plan_us: told.plan_us,
        search_us: told.search_us,
        rescore_us: told.rescore_us,
        payload_us: 0,
    }
}

/// When the first of these expires, 0 if none ever does.
pub(super) fn first_expiry<'a, 'v: 'a>(found: impl IntoIterator<Item = &'a Found<'v>>) -> i64 {
    let times = found.into_iter().filter_map(|one| one.row.expires_at_ms);
    times.min().unwrap_or(0)
}

/// How many candidates are re-scored for `k` rows. Whoever asks for another number can spare work, not
/// cause it.
pub(super) fn rescored(collection: &Collection, k: usize, asked: Option<usize>) -> usize {
    let own = collection.rescored(u32::try_from(k).unwrap_or(u32::MAX));
    let own = usize::try_from(own).unwrap_or(usize::MAX);
    asked.map_or(own, |asked| asked.clamp(k, own))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Collection, Metric, Quantization};

    use super::rescored;

    #[test]
    fn a_caller_may_have_fewer_candidates_re_scored_but_not_fewer_than_it_gets() {
        let dim = 384.try_into().unwrap();
        let mut collection = Collection::new("docs".parse().unwrap(), dim, Metric::Cosine, 1);
        collection.index.quantization = Some(Quantization::I8);
        let asked = [None, Some(0), Some(9), Some(13), Some(1000)];
        let told = |collection| asked.map(|asked| rescored(collection, 7, asked));
        assert_eq!(told(&collection), [13, 7, 9, 13, 13]);
        assert_eq!(rescored(&collection, 100, None), 150);
        collection.index.quantization = Some(Quantization::I4);
        assert_eq!(rescored(&collection, 100, Some(1000)), 175);
    }
}
