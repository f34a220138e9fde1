//! How many rows may wait for the graph.
//!
//! Every search measures each row that waits. In a burst that is what makes its records searchable at once. A shard
//! that is behind gains nothing by it: its graph takes no more rows a second, and a record that waits in Kafka costs
//! no search anything. So once the memtable was full, it is kept small until the shard has held everything that the
//! broker had. Before a shard is searched for the first time, which mostly waits until it has caught up, all of the room is
//! used.

use std::time::Duration;

use super::builder::FOLD_ROWS;

/// The share of the room that a shard which is behind uses: one of so many.
const BEHIND: u32 = 8;

/// The room of a memtable.
#[derive(Debug)]
pub(super) struct Room {
    rows: u32,
    /// When it was full, if the shard has not held everything since.
    full_at: Option<Duration>,
}

/// How a shard stands. Times are of one clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Rows that wait for the graph.
    pub(super) waiting: u32,
    /// No checkpoint that is to be stored keeps the builder from those that came later.
    pub(super) folds: bool,
    /// It is searched: it has caught up once, or answers although it has not.
    pub(super) is_searched: bool,
    /// When it is.
    pub(super) at: Duration,
    /// When it last held everything that the broker had.
    pub(super) held_all_at: Duration,
}

impl Room {
    /// Of so many rows.
    pub(super) fn of(rows: u32) -> Self {
        Self {
            rows,
            full_at: None,
        }
    }

    /// Whether there is room for another turn; notes that there is none at all.
    pub(super) fn admits(&mut self, standing: Standing) -> bool {
        let Standing {
            waiting,
            folds,
            is_searched,
            at,
            held_all_at,
        } = standing;
        if waiting >= self.rows {
            self.full_at = Some(at);
            return false;
        }
        self.full_at = self.full_at.filter(|full| held_all_at <= *full);
        let is_small = self.full_at.is_some() && is_searched && folds;
        !is_small || waiting < (self.rows / BEHIND).max(FOLD_ROWS)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{hint, time::Duration};

    use shoal_runtime::clock::Stopwatch;

    use super::{FOLD_ROWS, Room, Standing};
    use crate::{
        config::{EngineConfig, Ownership},
        node::alone::{Alone, DEADLINE},
    };

    const BURST: Standing = Standing {
        waiting: 1000,
        folds: true,
        is_searched: true,
        at: Duration::from_secs(100),
        held_all_at: Duration::from_secs(99),
    };
    const FULL: Standing = Standing {
        waiting: 2048,
        ..BURST
    };
    /// Later, and it has not held everything since.
    const LATER: Standing = Standing {
        at: Duration::from_secs(105),
        held_all_at: Duration::from_secs(100),
        ..BURST
    };

    #[test]
    fn a_burst_uses_all_of_it() {
        let mut room = Room::of(2048);
        let last = Standing {
            waiting: 2047,
            ..BURST
        };
        assert!(room.admits(BURST));
        assert!(room.admits(last));
        assert!(!room.admits(FULL));
    }

    #[test]
    fn it_stays_small_from_when_it_was_full_until_the_shard_has_held_everything() {
        let mut room = Room::of(2048);
        assert!(!room.admits(FULL));
        assert!(!room.admits(LATER));
        let small = Standing {
            waiting: 255,
            ..LATER
        };
        assert!(room.admits(small));
        assert!(!room.admits(LATER));
        let held_all_at = Duration::from_secs(101);
        let caught_up = Standing {
            held_all_at,
            ..LATER
        };
        assert!(room.admits(caught_up));
        // What comes then is a burst again.
        assert!(room.admits(LATER));
    }

    #[test]
    fn a_shard_that_nobody_searches_yet_uses_all_of_it() {
        let mut room = Room::of(2048);
        assert!(!room.admits(FULL));
        let opening = Standing {
            is_searched: false,
            ..LATER
        };
        assert!(room.admits(opening));
        assert!(!room.admits(LATER));
    }

    #[test]
    fn a_small_one_still_takes_what_the_builder_is_woken_for() {
        let mut room = Room::of(256);
        let full = Standing {
            waiting: 256,
            ..BURST
        };
        assert!(!room.admits(full));
        let waits = |waiting| Standing { waiting, ..LATER };
        assert!(room.admits(waits(63)));
        assert!(!room.admits(waits(64)));
    }

    #[test]
    fn while_a_checkpoint_holds_the_builder_up_there_is_room_for_what_comes() {
        let mut room = Room::of(2048);
        assert!(!room.admits(FULL));
        let held_up = Standing {
            folds: false,
            ..LATER
        };
        assert!(room.admits(held_up));
        assert!(!room.admits(Standing {
            waiting: 2048,
            ..held_up
        }));
        // It is behind as before once the builder goes on.
        assert!(!room.admits(LATER));
    }

    #[test]
    fn the_rows_of_a_backlog_wait_in_the_log() {
        let engine = EngineConfig {
            memtable_rows: 256,
            ..EngineConfig::default()
        };
        let turn = u32::try_from(engine.batch_records.get()).unwrap();
        let alone = Alone::with_engine(Ownership::Static { shards: Vec::new() }, engine);
        let docs = alone.define("docs", &[]);
        alone.publish(&docs, 0);
        // It has caught up then, and nobody tells it of an end any more.
        let key = alone.take(&docs);
        let held = alone.node.shard(&key).unwrap();
        let shared = held.opened().unwrap();
        let applied = || shared.progress.borrow().next.first().map_or(0, |at| at.0);
        let backlog = 6000;
        for number in 1..backlog {
            alone.publish(&docs, number);
        }
        let (watch, mut heaps, mut is_heap) = (Stopwatch::start(), 0, false);
        while applied() < u64::from(backlog) {
            let was_heap = is_heap;
            is_heap = shared.view.load().memtable_rows() >= FOLD_ROWS + turn;
            if is_heap && !was_heap {
                heaps += 1;
            }
            assert!(watch.elapsed() < DEADLINE, "{} are applied", applied());
            hint::spin_loop();
        }
        // The first shows that it is behind.
        assert!(heaps <= 1, "rows heaped up {heaps} times");
    }
}
