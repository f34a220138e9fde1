//! Reading a shard: searches, points by id, counts, and waiting for writes.
//!
//! Everything here runs beside the writer and never waits for it, but for a token, whose whole
//! meaning is to wait.

use std::sync::{Arc, atomic::Ordering};

use shoal_runtime::ErrorKind;
use shoal_schemas::{
    FieldKind, Filter, Offset, Payload, Tenant, Token, Version, payload::Selection, v1,
};

use crate::{
    catalog::CatalogError,
    entry::{Entry, EntryError},
    find::SearchError,
    index::target::Target,
    pressure::Reached,
    rule::Says,
    segment::{PointError, Segment},
    shard::Shared,
    view::Moment,
};

/// One query, checked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// As many finite components as the collection has.
    pub vector: Target,
    /// How many points, at least 1.
    pub k: usize,
    /// How many candidates are re-scored, if the caller knows better; never fewer than `k`. Not with
    /// `after` or `group_by`, which ask for more than `k`.
    pub rescore: Option<usize>,
    /// Beam width; the collection's own if `None`.
    pub beam: Option<usize>,
    /// Whether vectors are wanted back.
    pub with_vector: bool,
    /// Whether payloads are wanted back.
    pub with_payload: bool,
    /// Scan instead of walking the graph.
    pub exact: bool,
    /// Only rows that match; fits the collection's declared fields. A value of another kind than
    /// declared counts as absent ([`Filter::matches_declared`]).
    pub filter: Option<Filter>,
    /// Only rows at this distance or nearer; a number.
    pub max_distance: Option<f32>,
    /// Answer groups instead of hits; `k` then counts groups.
    pub group_by: Option<GroupBy>,
    /// The fields of a payload that are wanted, where payloads are.
    pub selection: Selection,
    /// Only rows behind this (distance, id), by the order of an answer. Not with `group_by`.
    pub after: Option<After>,
    /// Whether the answer says what was done and how long it took.
    pub explain: bool,
    /// Only rows whose id is the tenant's.
    pub tenant: Option<Tenant>,
}

impl Ask {
    /// A query for the nearest `k` and nothing else.
    pub fn nearest(vector: Vec<f32>, k: usize) -> Self {
        Self {
            vector: Target::new(vector),
            k,
            rescore: None,
            beam: None,
            with_vector: false,
            with_payload: false,
            exact: false,
            filter: None,
            max_distance: None,
            group_by: None,
            selection: Selection::default(),
            after: None,
            explain: false,
            tenant: None,
        }
    }
}

/// How hits are grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupBy {
    /// A declared field.
    pub field: String,
    /// Its kind, which says the groups of a value ([`FieldKind::groups`]).
    pub kind: FieldKind,
    /// Nearest hits of a group, at least 1.
    pub group_size: usize,
}

/// The last hit of the page before.
#[derive(Clone, Debug, PartialEq)]
pub struct After {
    /// Its distance; a number.
    pub distance: f32,
    /// Its id, which tells equal distances apart.
    pub id: String,
}

/// A count, checked.
#[derive(Clone, Debug)]
pub struct CountAsk {
    /// Only points that match.
    pub filter: Option<Filter>,
    /// Only the tenant's points.
    pub tenant: Option<Tenant>,
}

/// A page of points by id, checked.
#[derive(Clone, Debug)]
pub struct ScrollAsk {
    /// Only points that match.
    pub filter: Option<Filter>,
    /// Only the tenant's points.
    pub tenant: Option<Tenant>,
    /// Only ids behind this one; empty for the first page.
    pub after_id: String,
    /// Most points, at least 1.
    pub limit: usize,
    /// Whether vectors are wanted back.
    pub with_vector: bool,
    /// The fields of a payload that are wanted.
    pub selection: Selection,
}

/// Why reading failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The search itself.
    #[error("search failed")]
    Search(#[from] SearchError),
    /// Where the point is kept.
    #[error("cannot read a point")]
    Point(#[from] PointError),
    /// Its bytes.
    #[error("point does not read")]
    Entry(#[from] EntryError),
    /// The catalog.
    #[error("catalog fails")]
    Catalog(#[from] CatalogError),
}

impl ReadError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Catalog(error) => error.kind(),
            Self::Point(error) => error.kind(),
            Self::Search(error) => error.kind(),
            Self::Entry(_) => ErrorKind::Corrupt,
        }
    }

    /// Whether a newer view has to be looked at: see [`PointError::is_outdated`].
    pub(crate) fn is_outdated(&self) -> bool {
        match self {
            Self::Point(error) | Self::Search(SearchError::Point(error)) => error.is_outdated(),
            _ => false,
        }
    }
}

impl Shared {
    /// The points of these ids that are served, in the order asked; others are left out.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn points(
        &self,
        ids: &[String],
        with_vector: bool,
    ) -> Result<Vec<v1::StoredPoint>, ReadError> {
        let mut points = Vec::with_capacity(ids.len());
        for id in ids {
            let point = loop {
                match self.point(id, with_vector) {
                    Err(error) if error.is_outdated() => {}
                    other => break other?,
                }
            };
            points.extend(point);
        }
        Ok(points)
    }

    fn point(&self, id: &str, with_vector: bool) -> Result<Option<v1::StoredPoint>, ReadError> {
        // A row that moves between two looks is found at the second.
        let (segment, row) = loop {
            let Some(place) = self.catalog.read(id)?.place else {
                return Ok(None);
            };
            if let Some(segment) = self.segment(place.segment) {
                break (segment, place.row);
            }
        };
        self.stored(&segment, row, with_vector)
    }

    /// The point of a row; `None` once it has expired.
    pub(super) fn stored(
        &self,
        segment: &Segment,
        row: u32,
        with_vector: bool,
    ) -> Result<Option<v1::StoredPoint>, ReadError> {
        if segment.is_reclaimed() {
            return Ok(None);
        }
        let frame = segment.frame(row, &self.log)?;
        let Entry::Upsert(stamp, id, body) = Entry::decode(&frame)? else {
            return Ok(None);
        };
        if body.expires_at_ms.is_some_and(|at| at <= self.now_ms()) {
            return Ok(None);
        }
        let mut vector = Vec::new();
        if with_vector {
            segment.vector(row, &self.log, &mut vector)?;
        }
        let source = self.sources.get(usize::from(stamp.source.0));
        let (topic, partition) = source.map_or_else(Default::default, |one| {
            (one.source.topic.to_string(), one.source.partition.0)
        });
        Ok(Some(v1::StoredPoint {
            point: Some(v1::Point {
                id: id.to_owned(),
                vector,
                payload: Payload::to_proto(&body.payload()?),
                model: body.model.unwrap_or_default().to_owned(),
                event_time_ms: body.event_time_ms.unwrap_or_default(),
                expires_at_ms: body.expires_at_ms.unwrap_or_default(),
            }),
            version: stamp.version.raw(),
            topic,
            partition,
            offset: stamp.offset.0,
        }))
    }

    /// Points a search could answer with now.
    pub fn live_points(&self) -> u64 {
        let (view, sequence) = self.moment();
        let is_all = |segment: &Segment| !segment.has_expiring() && !segment.is_reclaimed();
        if view.segments.iter().all(|segment| is_all(segment)) {
            return self.progress().borrow().points;
        }
        view.count(Moment {
            sequence,
            now_ms: self.now_ms(),
        })
    }

    /// Everything `shoal verify` and the count verb ask, of one moment.
    pub fn status(&self) -> v1::ShardStatus {
        let progress = Arc::clone(&self.progress().borrow());
        let durable = self.durable();
        let (view, _) = self.moment();
        let sources = self.sources.iter().zip(&progress.next).zip(&durable);
        let rows = |count: fn(&crate::segment::Segment) -> u32| -> u64 {
            view.segments.iter().map(|s| u64::from(count(s))).sum()
        };
        v1::ShardStatus {
            coverage: None,
            live_points: self.live_points(),
            contested: progress.contested,
            digest: progress.digest.to_bytes().to_vec().into(),
            positions: sources
                .map(|((spec, next), durable)| v1::SourcePosition {
                    cluster_id: spec.source.cluster.to_string(),
                    topic: spec.source.topic.to_string(),
                    partition: spec.source.partition.0,
                    next_offset: next.0,
                    durable_next_offset: durable.0,
                })
                .collect(),
            wal_bytes: self.wal_bytes(),
            index_bytes: view.graph_bytes(),
            memtable_rows: u64::from(view.memtable_rows()),
            graph_rows: rows(crate::segment::Segment::nodes),
            dead_rows: rows(crate::segment::Segment::dead),
            code: 0,
            ingest_stopped: self.stopped_by().map_or("", Reached::told).to_owned(),
        }
    }

    /// What keeps the shard from taking records, if anything does.
    pub fn stopped_by(&self) -> Option<Reached> {
        let is_full = self.is_disk_full.load(Ordering::Relaxed);
        let reached = self.spec.pressure.reached();
        reached.or_else(|| is_full.then_some(Reached::Disk))
    }

    /// What every answer says of this shard, to be taken before the answer is.
    pub fn coverage(&self, node: &str) -> v1::ShardCoverage {
        let next = self.progress.borrow().next.first().copied();
        v1::ShardCoverage {
            shard: self.spec.shard.0,
            answered: true,
            error: String::new(),
            node: node.to_owned(),
            next_offset: next.unwrap_or_default().0,
            lag_seconds: self.behind().as_secs_f64(),
            shard_us: 0,
        }
    }

    /// Waits until a write is applied here. Never returns if it never is: give it a deadline.
    ///
    /// A token of one of this shard's sources waits for its offset; one from elsewhere waits
    /// until its key is at its version or newer, from whatever source.
    ///
    /// # Errors
    /// [`ReadError::Catalog`].
    pub async fn wait_for(&self, token: &Token) -> Result<(), ReadError> {
        let mut progress = self.progress();
        let source = self.source_index(&token.cluster.0, &token.topic);
        loop {
            let reached = {
                let now = progress.borrow_and_update();
                match source {
                    Some(source) => {
                        let next = now.next.get(source).copied().unwrap_or(Offset(0));
                        next > token.offset
                    }
                    None => false,
                }
            };
            let reached = reached || (source.is_none() && self.holds(token)?);
            if reached || progress.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Whether the newest record of the token's key is at its version or newer.
    fn holds(&self, token: &Token) -> Result<bool, CatalogError> {
        let state = self.catalog.read(token.key.as_str())?;
        let newest: Option<Version> = state
            .known
            .iter()
            .filter(|one| one.says != Says::Contested)
            .map(|one| one.version)
            .max();
        Ok(newest.is_some_and(|newest| newest >= token.version))
    }

    pub(super) fn now_ms(&self) -> i64 {
        i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX)
    }
}
