//! What a segment's rows are still good for: how many have a node, how many of those are of use, and which
//! have expired.
//!
//! A point that has expired stays a row, for the digest counts it until its id is written again, as
//! the topic keeps its record. Compaction *reclaims* it: vector, payload and node go, and what the
//! digest and the catalog know of it stays. Such rows are in segments of their own, so that they are not
//! written again whenever others are.

use std::sync::{Mutex, PoisonError};

use crate::segment::{NEVER, Rows, Segment};

/// A point is reclaimed so long after it expired: clocks differ, and may be set back.
pub const GRACE_MS: i64 = 60_000;
/// Rows that have expired are counted anew after so long, if there may be others by then.
const COUNT_EVERY_MS: i64 = 60_000;

/// Rows that have not ended, but expired, and still hold their points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Expired {
    rows: u32,
    /// Those of them with a node of their own.
    nodes: u32,
}

/// The last count of [`Expired`].
#[derive(Default)]
pub(super) struct LastCount(Mutex<Option<Counted>>);

#[derive(Clone, Copy)]
struct Counted {
    expired: Expired,
    at_ms: i64,
    /// Rows that had ended by then.
    dead: u32,
    /// Until then it is the same, if no row ends.
    until_ms: i64,
}

impl Segment {
    /// Rows that are or will be in no graph, ended ones too: they ride or rode, or are reclaimed.
    pub fn riding(&self) -> u32 {
        match &self.rows {
            Rows::Growing(_) => self.rides.riding(),
            Rows::Sealed(sealed) => sealed.manifest.riders,
        }
    }

    /// Whether nothing but its rows is left of points that have expired.
    pub fn is_reclaimed(&self) -> bool {
        let sealed = self.as_sealed();
        sealed.is_some_and(|sealed| sealed.manifest.is_reclaimed)
    }

    /// Rows with a node, folded or not, ended ones too.
    fn with_node(&self) -> u32 {
        self.len().saturating_sub(self.riding())
    }

    /// Nodes of its graph.
    pub fn nodes(&self) -> u32 {
        match &self.rows {
            Rows::Growing(growing) => growing.graph.rows(),
            Rows::Sealed(_) => self.with_node(),
        }
    }

    /// Rows of its own nodes that have ended.
    fn dead_nodes(&self) -> u32 {
        let rode = self.riding().saturating_sub(self.rides.riding_live());
        self.dead().saturating_sub(rode)
    }

    /// Nodes, folded or not, by which a search finds a row that has not ended.
    pub fn live_nodes(&self) -> u32 {
        let masked = self.dead_nodes().saturating_sub(self.rides.carrying());
        self.with_node().saturating_sub(masked)
    }

    /// Of these, those that are in the graph, where rows below `folded` are.
    pub fn live_in_graph(&self, folded: u32) -> u32 {
        let waiting = self.len().saturating_sub(folded);
        self.live_nodes().saturating_sub(waiting).min(self.nodes())
    }

    /// Rows that are of no use any more and those there are: of all rows, and of those with a node.
    /// One whose point had expired by `expired_by_ms` is of none; such rows are counted now and then.
    pub fn wear(&self, expired_by_ms: i64) -> [(u32, u32); 2] {
        let carrying = self.rides.carrying();
        let expired = self.expired(expired_by_ms);
        let dead = self.dead().saturating_sub(carrying);
        let dead_nodes = self.dead_nodes().saturating_sub(carrying);
        [
            (dead.saturating_add(expired.rows), self.len()),
            (dead_nodes.saturating_add(expired.nodes), self.with_node()),
        ]
    }

    fn expired(&self, by_ms: i64) -> Expired {
        if !self.has_expiring() {
            return Expired::default();
        }
        let mut last = self
            .expired
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let dead = self.dead();
        if let Some(last) = *last {
            let is_recent =
                (last.at_ms..last.at_ms.saturating_add(COUNT_EVERY_MS)).contains(&by_ms);
            let is_same = (last.at_ms..last.until_ms).contains(&by_ms) && last.dead == dead;
            if is_recent || is_same {
                return last.expired;
            }
        }
        let mut expired = Expired::default();
        let mut next_ms = NEVER;
        for row in 0..self.len() {
            match self.expires_at_ms(row) {
                Some(at_ms) if at_ms > by_ms => next_ms = next_ms.min(at_ms),
                Some(_) if self.end_of(row).is_none() => {
                    expired.rows += 1;
                    expired.nodes += u32::from(!self.rides.is_rider(row));
                }
                _ => {}
            }
        }
        // Rows that come may expire before any there is.
        let until_ms = match self.as_growing() {
            Some(_) => by_ms,
            None => next_ms,
        };
        *last = Some(Counted {
            expired,
            at_ms: by_ms,
            dead,
            until_ms,
        });
        expired
    }

    /// Whether a row that has not ended had expired by then.
    pub fn has_expired(&self, row: u32, by_ms: i64) -> bool {
        let expires = self.has_expiring().then(|| self.expires_at_ms(row));
        let expires = expires.flatten();
        expires.is_some_and(|expires| expires <= by_ms) && self.end_of(row).is_none()
    }

    /// When a row is hidden for its age; `None` for never.
    fn expires_at_ms(&self, row: u32) -> Option<i64> {
        match &self.rows {
            Rows::Growing(growing) => growing.row(row)?.expires_at_ms,
            Rows::Sealed(sealed) => sealed.expires_at_ms(row),
        }
    }
}
