//! The ids of points that have expired: what `shoal expire` deletes.

use std::collections::{BTreeSet, HashSet};

use shoal_schemas::PointId;

use crate::shard::{
    Shared,
    buckets::{BucketsError, NOTHING_EXPIRED},
};

/// Most ids of one answer.
pub const MAX_EXPIRED: usize = 10_000;

impl Shared {
    /// The first ids behind `after`, at most so many, of points that expired at `by_ms` or before, in the order of
    /// their bytes: also of those of which nothing but a row is left. One whose newest record was refused is left out,
    /// for somebody meant to write it again. Looks at every row of segments with any that expire.
    ///
    /// # Errors
    /// [`BucketsError::Catalog`].
    pub fn expired_ids(
        &self,
        by_ms: i64,
        after: &str,
        most: usize,
    ) -> Result<Vec<String>, BucketsError> {
        let by_ms = by_ms.min(self.now_ms());
        let (view, sequence) = self.moment();
        let contested: HashSet<PointId> = match self.progress().borrow().contested {
            0 => HashSet::new(),
            _ => self.catalog.contested()?,
        };
        let contested: HashSet<&str> = contested.iter().map(PointId::as_str).collect();
        let mut first: BTreeSet<&str> = BTreeSet::new();
        for segment in &view.segments {
            if !segment.has_expiring() && !segment.is_reclaimed() {
                continue;
            }
            for (_, row) in segment.rows() {
                let has_expired = row.expires_at_ms.is_some_and(|at| at <= by_ms);
                let is_far = first.len() == most && first.last().is_some_and(|last| row.id > *last);
                if !has_expired || is_far || row.id <= after {
                    continue;
                }
                if row.is_visible(sequence, NOTHING_EXPIRED) && !contested.contains(row.id) {
                    first.insert(row.id);
                    if first.len() > most {
                        first.pop_last();
                    }
                }
            }
        }
        Ok(first.into_iter().map(str::to_owned).collect())
    }
}
