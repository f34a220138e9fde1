//! Whether a new generation holds what the old one holds, while both are written to.
//!
//! The digest of a collection is the sum of its shards' digests, in 4096 parts by a hash of the id, so
//! it compares however many shards there are. Ids in parts that differ are looked at by themselves,
//! again and again: two collections are never at the same record while somebody writes. An id is the
//! same once it was seen the same, or once it was seen to change on both sides.

use std::{collections::BTreeMap, time::Duration};

use shoal_indexer::shard::buckets::MAX_BUCKETS;
use shoal_schemas::{
    PointId,
    buckets::{BUCKETS, Bucket, Buckets, Row},
};

use super::super::verify::copies::Copy;

/// How often a shard is asked that is written to so much that it cannot go over its rows.
const TRIES: usize = 20;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// What has to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sameness {
    /// Everything of every point: both hold the same records.
    Rows,
    /// The ids: another model has embedded the same things.
    Ids,
    /// No point of the new one is behind that of the old one: some writes go to the new one alone by now,
    /// deletes too, so a point that is not there any more was deleted.
    Newest,
}

impl Sameness {
    fn holds(self, one: Option<&Row>, other: Option<&Row>) -> bool {
        match self {
            Self::Rows => one == other,
            Self::Ids => one.is_some() == other.is_some(),
            Self::Newest => match (one, other) {
                (Some(Row::Served { version, .. }), Some(Row::Served { version: newer, .. })) => {
                    one == other || newer > version
                }
                _ => true,
            },
        }
    }
}

type Rows = BTreeMap<PointId, Row>;

/// What the two sides had of an id when it was last looked at.
type Pair = (Option<Row>, Option<Row>);

/// The ids about which two collections differ, as far as is known.
pub(super) struct Differences {
    sameness: Sameness,
    ids: BTreeMap<PointId, Pair>,
}

impl Differences {
    /// Compares all of two collections.
    pub(super) async fn find(
        sameness: Sameness,
        old: &[Copy],
        new: &[Copy],
    ) -> anyhow::Result<Self> {
        let parts = match sameness {
            Sameness::Rows | Sameness::Newest => sum(old).await?.differing(&sum(new).await?),
            Sameness::Ids => (0..u32::try_from(BUCKETS)?)
                .filter_map(Bucket::new)
                .collect(),
        };
        let mut found = Self {
            sameness,
            ids: BTreeMap::new(),
        };
        for some in parts.chunks(MAX_BUCKETS) {
            found.add(&rows(old, some).await?, &rows(new, some).await?);
        }
        Ok(found)
    }

    fn add(&mut self, old: &Rows, new: &Rows) {
        for id in old.keys().chain(new.keys()) {
            let (one, other) = (old.get(id), new.get(id));
            if !self.sameness.holds(one, other) {
                self.ids.insert(id.clone(), (one.copied(), other.copied()));
            }
        }
    }

    /// Looks at the ids once more and leaves those that are the same by now.
    pub(super) async fn look_again(&mut self, old: &[Copy], new: &[Copy]) -> anyhow::Result<()> {
        let mut parts: Vec<Bucket> = self.ids.keys().map(Bucket::of).collect();
        parts.sort_unstable();
        parts.dedup();
        let (mut olds, mut news) = (Rows::new(), Rows::new());
        for some in parts.chunks(MAX_BUCKETS) {
            olds.extend(rows(old, some).await?);
            news.extend(rows(new, some).await?);
        }
        self.settle(&olds, &news);
        Ok(())
    }

    fn settle(&mut self, olds: &Rows, news: &Rows) {
        let sameness = self.sameness;
        self.ids.retain(|id, (old, new)| {
            let now = (olds.get(id).copied(), news.get(id).copied());
            let is_same = sameness.holds(now.0.as_ref(), now.1.as_ref());
            let is_live = now.0 != *old && now.1 != *new;
            !is_same && !is_live
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// For a person: how many, and the first ones.
    pub(super) fn told(&self) -> String {
        const SHOWN: usize = 5;
        let side = |row: &Option<Row>| match row {
            None => "nothing".to_owned(),
            Some(Row::Contested) => "contested".to_owned(),
            Some(Row::Served { version, .. }) => format!("version {}", version.raw()),
        };
        let shown: Vec<String> = (self.ids.iter().take(SHOWN))
            .map(|(id, (old, new))| {
                format!("{}: {} there, {} here", id.as_str(), side(old), side(new))
            })
            .collect();
        format!("{} ids differ ({})", self.ids.len(), shown.join("; "))
    }
}

async fn sum(copies: &[Copy]) -> anyhow::Result<Buckets> {
    let mut sum = Buckets::default();
    for copy in copies {
        let (buckets, _) = patiently(|| copy.buckets()).await?;
        sum.merge(&buckets);
    }
    Ok(sum)
}

pub(super) async fn rows(copies: &[Copy], parts: &[Bucket]) -> anyhow::Result<Rows> {
    // Wherever the shards are: they go on meanwhile.
    let anywhere = Vec::new();
    let mut rows = Rows::new();
    for copy in copies {
        rows.extend(patiently(|| copy.rows(parts, &anywhere)).await?);
    }
    Ok(rows)
}

/// Asks again, a few times, what a shard that is on its way elsewhere does not answer.
async fn patiently<T, E, F: Future<Output = Result<T, E>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, E> {
    for _ in 1..TRIES {
        if let Ok(told) = ask().await {
            return Ok(told);
        }
        tokio::time::sleep(PAUSE).await;
    }
    ask().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use shoal_schemas::{PointId, RowHash, Version, buckets::Row};

    use super::{Differences, Rows, Sameness};

    fn rows(all: &[(&str, u8)]) -> Rows {
        let row = |n: u8| Row::Served {
            version: Version::from_raw(n.into()),
            hash: RowHash::from_bytes([n; 16]),
        };
        all.iter()
            .map(|(id, n)| (PointId::new(id).unwrap(), row(*n)))
            .collect()
    }

    fn between(sameness: Sameness, old: &Rows, new: &Rows) -> Differences {
        let mut found = Differences {
            sameness,
            ids: BTreeMap::new(),
        };
        found.add(old, new);
        found
    }

    #[test]
    fn ids_alone_are_compared_where_another_model_has_embedded_them() {
        let (old, new) = (rows(&[("a", 1), ("b", 1)]), rows(&[("a", 2), ("c", 2)]));
        let by_rows = between(Sameness::Rows, &old, &new);
        assert_eq!(by_rows.ids.len(), 3);
        let by_ids = between(Sameness::Ids, &old, &new);
        let names: Vec<_> = by_ids.ids.keys().map(PointId::as_str).collect();
        assert_eq!(names, ["b", "c"]);
        assert!(by_ids.told().contains("b: version 1 there, nothing here"));
    }

    #[test]
    fn a_point_that_was_written_to_the_new_one_alone_is_no_difference_and_an_older_one_is() {
        let old = rows(&[("same", 1), ("moved", 1), ("deleted", 1), ("behind", 3)]);
        let new = rows(&[("same", 1), ("moved", 2), ("behind", 2), ("made", 4)]);
        let found = between(Sameness::Newest, &old, &new);
        let names: Vec<_> = found.ids.keys().map(PointId::as_str).collect();
        assert_eq!(names, ["behind"]);
    }

    #[test]
    fn an_id_that_was_on_its_way_is_no_difference_and_one_that_stays_behind_is() {
        let old = rows(&[("late", 2), ("hot", 5), ("lost", 1)]);
        let mut found = between(Sameness::Rows, &old, &rows(&[("late", 1), ("hot", 4)]));
        let old = rows(&[("late", 2), ("hot", 7), ("lost", 1)]);
        found.settle(&old, &rows(&[("late", 2), ("hot", 6)]));
        let left: Vec<_> = found.ids.keys().map(PointId::as_str).collect();
        assert_eq!(left, ["lost"]);
        // One side alone that moves is not enough: the other one may have stopped.
        let mut stuck = between(Sameness::Rows, &rows(&[("k", 2)]), &rows(&[("k", 1)]));
        stuck.settle(&rows(&[("k", 3)]), &rows(&[("k", 1)]));
        assert!(!stuck.is_empty());
    }
}
