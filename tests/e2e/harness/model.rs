//! What a collection has to hold, worked out by the test itself from what it wrote.
//!
//! The oracle for "nothing lost, nothing twice": the digest is recomputed from the last record of
//! each id, independent of any indexer.

use std::collections::{BTreeMap, BTreeSet};

use shoal_schemas::{
    Collection, Digest, Point, PointId, Version,
    digest::{contested_hash, row_hash},
};

use super::state::State;

/// The last good record of each id, and the ids whose last record is bad.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) collection: Collection,
    points: BTreeMap<PointId, (Version, Point)>,
    contested: BTreeSet<PointId>,
}

impl Model {
    pub(crate) fn new(collection: &Collection) -> Self {
        Self {
            collection: collection.clone(),
            points: BTreeMap::new(),
            contested: BTreeSet::new(),
        }
    }

    pub(crate) fn upsert(&mut self, id: &PointId, version: Version, point: &Point) {
        self.points.insert(id.clone(), (version, point.clone()));
        self.contested.remove(id);
    }

    pub(crate) fn delete(&mut self, id: &PointId) {
        self.points.remove(id);
        self.contested.remove(id);
    }

    pub(crate) fn contest(&mut self, id: &PointId) {
        self.contested.insert(id.clone());
    }

    pub(crate) fn points(&self) -> &BTreeMap<PointId, (Version, Point)> {
        &self.points
    }

    pub(crate) fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for (id, (version, point)) in &self.points {
            if self.contested.contains(id) {
                continue;
            }
            let mut payload = Vec::new();
            point.payload.encode_canonical(&mut payload);
            digest.add(row_hash(
                id,
                *version,
                &point.vector,
                &payload,
                point.model.as_deref(),
                point.event_time_ms,
                point.expires_at_ms,
            ));
        }
        for id in &self.contested {
            digest.add(contested_hash(id));
        }
        digest
    }

    /// Compares with what a live indexer says at `now_ms`.
    #[track_caller]
    pub(crate) fn assert_is(&self, state: &State, now_ms: i64) {
        let expired = |point: &Point| point.expires_at_ms.is_some_and(|at| at <= now_ms);
        let live = self
            .points
            .values()
            .filter(|(_, point)| !expired(point))
            .count();
        let expected = (
            self.digest(),
            u64::try_from(live).unwrap(),
            u64::try_from(self.contested.len()).unwrap(),
        );
        let found = (state.digest, state.points, state.contested);
        assert_eq!(
            found, expected,
            "(digest, points, contested) of `{}`",
            self.collection.name
        );
    }
}
