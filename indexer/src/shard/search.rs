//! Reading a shard: searches, points by id, counts, and waiting for writes.
//!
//! Everything here runs beside the writer and never waits for it, but for a token, whose whole
//! meaning is to wait.

use std::sync::Arc;

use shoal_runtime::{ErrorKind, clock::Stopwatch};
use shoal_schemas::{Offset, Payload, Token, Version, v1};

use crate::{
    catalog::CatalogError,
    entry::{self, Entry, EntryError},
    index::distance::Query,
    rule::Says,
    shard::Shared,
    view::{Found, Moment, SearchError},
    wal,
};

/// One query, checked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// As many finite components as the collection has.
    pub vector: Vec<f32>,
    /// How many points, at least 1.
    pub k: usize,
    /// Beam width; the collection's own if `None`.
    pub beam: Option<usize>,
    /// Whether vectors are wanted back.
    pub with_vector: bool,
    /// Whether payloads are wanted back.
    pub with_payload: bool,
    /// Scan instead of walking the graph.
    pub exact: bool,
}

/// Why reading failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The search itself.
    #[error("search failed")]
    Search(#[from] SearchError),
    /// The own log.
    #[error("cannot read a point from the shard's log")]
    Log(#[from] wal::ReadError),
    /// A frame of the own log.
    #[error("point in the shard's log does not read")]
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
            Self::Log(error) => error.kind(),
            Self::Search(_) | Self::Entry(_) => ErrorKind::Corrupt,
        }
    }
}

impl Shared {
    /// Answers one query.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn search(&self, ask: &Ask) -> Result<Vec<v1::Hit>, ReadError> {
        let (view, sequence) = self.moment();
        let moment = Moment {
            sequence,
            now_ms: self.now_ms(),
        };
        let query = Query::new(self.spec.collection.metric, &ask.vector);
        let found = if ask.exact {
            view.search_exact(&query, ask.k, moment, &self.log)?
        } else {
            let own = usize::from(self.spec.collection.index.ef_search);
            view.search(&query, ask.k, ask.beam.unwrap_or(own), moment)?
        };
        found
            .iter()
            .map(|one| self.hit(one, ask.with_vector, ask.with_payload))
            .collect()
    }

    fn hit(
        &self,
        found: &Found<'_>,
        with_vector: bool,
        with_payload: bool,
    ) -> Result<v1::Hit, ReadError> {
        let mut hit = v1::Hit {
            id: found.row.id.as_str().to_owned(),
            distance: found.distance,
            version: found.row.version.raw(),
            ..v1::Hit::default()
        };
        if with_vector || with_payload {
            let frame = self.log.read(found.row.wal)?;
            let body = entry::upsert_body(&frame)?;
            if with_vector {
                hit.vector = body.components();
            }
            if with_payload {
                hit.payload = Payload::to_proto(&body.payload()?);
            }
        }
        Ok(hit)
    }

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
            if let Some(point) = self.point(id, with_vector)? {
                points.push(point);
            }
        }
        Ok(points)
    }

    fn point(&self, id: &str, with_vector: bool) -> Result<Option<v1::StoredPoint>, ReadError> {
        // A row that moves between two looks is found at the second.
        let position = loop {
            let Some(place) = self.catalog.read(id)?.place else {
                return Ok(None);
            };
            if let Some(position) = self.log_position(place) {
                break position;
            }
        };
        let frame = self.log.read(position)?;
        let Entry::Upsert(stamp, id, body) = Entry::decode(&frame)? else {
            return Ok(None);
        };
        if body.expires_at_ms.is_some_and(|at| at <= self.now_ms()) {
            return Ok(None);
        }
        let source = self.sources.get(usize::from(stamp.source.0));
        let (topic, partition) = source.map_or_else(Default::default, |one| {
            (one.source.topic.to_string(), one.source.partition.0)
        });
        Ok(Some(v1::StoredPoint {
            point: Some(v1::Point {
                id: id.to_owned(),
                vector: if with_vector {
                    body.components()
                } else {
                    Vec::new()
                },
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
        if view.segments.iter().all(|segment| !segment.has_expiring()) {
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
            graph_rows: rows(crate::segment::Segment::folded),
            dead_rows: rows(crate::segment::Segment::dead),
            code: 0,
        }
    }

    /// What every answer says of this shard.
    pub fn coverage(&self, node: &str, watch: Stopwatch) -> v1::ShardCoverage {
        let progress = self.progress();
        let next = progress.borrow().next.first().copied();
        v1::ShardCoverage {
            shard: self.spec.shard.0,
            answered: true,
            error: String::new(),
            node: node.to_owned(),
            next_offset: next.unwrap_or_default().0,
            lag_seconds: self.lag.read().behind.as_secs_f64(),
            shard_us: u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX),
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

    fn now_ms(&self) -> i64 {
        i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX)
    }
}
