//! A shard's digest in parts, and the ids in a part: what `shoal verify` finds differences with.
//!
//! Goes over all rows beside the writer. Whether what it saw is of one moment shows at the end:
//! the parts have to add up to the digest that the writer keeps. Where a write came between, it
//! starts again.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use shoal_runtime::ErrorKind;
use shoal_schemas::{
    PointId, RowHash,
    buckets::{Bucket, Buckets, Row},
    v1,
};

use crate::{
    catalog::CatalogError,
    segment::Sequence,
    shard::{Progress, Shared, SourceSpec},
    view::View,
};

/// Most buckets whose ids are told at once.
pub const MAX_BUCKETS: usize = 64;
/// How often all rows are gone over before it is given up.
const TRIES: usize = 8;
/// A wall time before any: an expired point is hidden, but still in the digest.
pub(super) const NOTHING_EXPIRED: i64 = i64::MIN;

/// Why the parts of a digest are not told.
#[derive(Debug, thiserror::Error)]
pub enum BucketsError {
    /// The catalog.
    #[error("catalog fails")]
    Catalog(#[from] CatalogError),
    /// Writes came between, again and again.
    #[error("shard changed {TRIES} times while it was gone over; ask when less is written")]
    Busy,
    /// It is not where the caller wants it.
    #[error("shard is at {found}, wanted is {wanted}; compare again")]
    Elsewhere {
        /// Where it is.
        found: String,
        /// Where it should be.
        wanted: String,
    },
    /// Nothing came between, and still.
    #[error(
        "rows do not add up to the shard's digest; set the shard's folder aside, it is rebuilt"
    )]
    DoesNotAddUp,
}

impl BucketsError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Catalog(error) => error.kind(),
            Self::Busy => ErrorKind::Retry,
            Self::Elsewhere { .. } => ErrorKind::Caller,
            Self::DoesNotAddUp => ErrorKind::Corrupt,
        }
    }
}

/// A shard's rows at one position.
struct GoneOver {
    progress: Arc<Progress>,
    buckets: Buckets,
    rows: BTreeMap<PointId, Row>,
}

impl Shared {
    /// The digest in parts. Reads every row: for a check now and then.
    ///
    /// # Errors
    /// [`BucketsError`].
    pub fn buckets(&self) -> Result<v1::ShardBucketsResponse, BucketsError> {
        let found = self.go_over(&HashSet::new())?;
        Ok(v1::ShardBucketsResponse {
            digests: found.buckets.to_bytes().into(),
            positions: positions(&self.sources, &found.progress),
        })
    }

    /// The ids in some buckets, if the shard is at the positions `at`; wherever it is, if there
    /// are none.
    ///
    /// # Errors
    /// [`BucketsError`].
    pub fn bucket_ids(
        &self,
        wanted: &HashSet<Bucket>,
        at: &[v1::SourcePosition],
    ) -> Result<v1::ShardBucketIdsResponse, BucketsError> {
        let found = self.go_over(wanted)?;
        let positions = positions(&self.sources, &found.progress);
        if !at.is_empty() && text_of(at) != text_of(&positions) {
            return Err(BucketsError::Elsewhere {
                found: text_of(&positions),
                wanted: text_of(at),
            });
        }
        let ids = found.rows.into_iter().map(|(id, row)| {
            let (contested, version, hash) = match row {
                Row::Served { version, hash } => (false, version.raw(), hash.to_bytes().to_vec()),
                Row::Contested => (true, 0, Vec::new()),
            };
            v1::BucketId {
                id: id.as_str().to_owned(),
                contested,
                version,
                row_hash: hash.into(),
            }
        });
        Ok(v1::ShardBucketIdsResponse {
            ids: ids.collect(),
            positions,
        })
    }

    fn go_over(&self, wanted: &HashSet<Bucket>) -> Result<GoneOver, BucketsError> {
        let mut before = self.now();
        for _ in 0..TRIES {
            let (view, sequence) = self.moment();
            let contested = match before.contested {
                0 => HashSet::new(),
                _ => self.catalog.contested()?,
            };
            let (buckets, rows) = rows_of(&view, sequence, &contested, wanted);
            let after = self.now();
            for progress in [&before, &after] {
                if progress.digest == buckets.total() {
                    return Ok(GoneOver {
                        progress: progress.clone(),
                        buckets,
                        rows,
                    });
                }
            }
            if before == after && self.moment().1 == sequence {
                return Err(BucketsError::DoesNotAddUp);
            }
            before = after;
        }
        Err(BucketsError::Busy)
    }

    fn now(&self) -> Arc<Progress> {
        Arc::clone(&self.progress().borrow())
    }
}

/// All rows of a moment by bucket, and those in the wanted buckets by id.
fn rows_of(
    view: &View,
    at: Sequence,
    contested: &HashSet<PointId>,
    wanted: &HashSet<Bucket>,
) -> (Buckets, BTreeMap<PointId, Row>) {
    let mut buckets = Buckets::default();
    let mut rows = BTreeMap::new();
    let mut take = |id: &PointId, row: Row| {
        buckets.add(id, &row);
        if !wanted.is_empty() && wanted.contains(&Bucket::of(id)) {
            rows.insert(id.clone(), row);
        }
    };
    for segment in &view.segments {
        for (_, row) in segment.rows() {
            // Every id was checked when its record was admitted.
            let Ok(id) = PointId::new(row.id) else {
                continue;
            };
            if row.is_visible(at, NOTHING_EXPIRED) && !contested.contains(&id) {
                let (version, hash): (_, RowHash) = (row.version, row.hash);
                take(&id, Row::Served { version, hash });
            }
        }
    }
    // Some of them were never served.
    for id in contested {
        take(id, Row::Contested);
    }
    (buckets, rows)
}

fn positions(sources: &[SourceSpec], progress: &Progress) -> Vec<v1::SourcePosition> {
    let sources = sources.iter().zip(&progress.next);
    let positions = sources.map(|(spec, next)| v1::SourcePosition {
        cluster_id: spec.source.cluster.to_string(),
        topic: spec.source.topic.to_string(),
        partition: spec.source.partition.0,
        next_offset: next.0,
        durable_next_offset: 0,
    });
    positions.collect()
}

/// Positions as a person reads them, in an order of their own.
fn text_of(positions: &[v1::SourcePosition]) -> String {
    let texts = positions.iter().map(|one| {
        let v1::SourcePosition {
            cluster_id,
            topic,
            partition,
            next_offset,
            ..
        } = one;
        format!("{cluster_id}/{topic}/{partition}={next_offset}")
    });
    let mut texts: Vec<String> = texts.collect();
    texts.sort();
    texts.join(" ")
}
