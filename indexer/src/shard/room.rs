//! How many rows may wait for the graph.
//!
//! Every search measures each row that waits. In a burst that is what makes its records searchable at once. A shard
//! that is behind gains nothing by it: its graph takes no more rows a second, and a record that waits in Kafka costs
//! no search anything. So once the memtable was full, it is kept small until everything is applied that the
//! broker was known to hold.

/// The share of the room that a shard which is behind uses: one of so many.
const BEHIND: u32 = 8;

/// The room of a memtable.
#[derive(Debug)]
pub(super) struct Room {
    rows: u32,
    /// It was full, and not everything was applied since.
    is_behind: bool,
}

/// What a shard does at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Rows that wait for the graph.
    pub(super) waiting: u32,
    /// The builder takes all of them: no checkpoint that is being stored keeps it from those that came later.
    pub(super) folds: bool,
    /// Records that the broker is known to hold and that are not applied.
    pub(super) behind: u64,
}

impl Room {
    /// Of so many rows.
    pub(super) fn of(rows: u32) -> Self {
        Self {
            rows,
            is_behind: false,
        }
    }

    /// Whether another turn has to wait.
    pub(super) fn is_full(&mut self, now: Now) -> bool {
        if now.waiting >= self.rows {
            self.is_behind = true;
            return true;
        }
        self.is_behind &= now.behind > 0;
        self.is_behind && now.folds && now.waiting >= self.rows / BEHIND
    }
}

#[cfg(test)]
mod tests {
    use super::{Now, Room};

    const BURST: Now = Now {
        waiting: 1000,
        folds: true,
        behind: 5000,
    };
    const FULL: Now = Now {
        waiting: 2048,
        ..BURST
    };

    #[test]
    fn a_burst_uses_all_of_it() {
        let mut room = Room::of(2048);
        let last = Now {
            waiting: 2047,
            ..BURST
        };
        assert!(!room.is_full(BURST));
        assert!(!room.is_full(last));
        assert!(room.is_full(FULL));
    }

    #[test]
    fn it_stays_small_from_when_it_was_full_until_everything_is_applied() {
        let mut room = Room::of(2048);
        assert!(room.is_full(FULL));
        assert!(room.is_full(BURST));
        let small = Now {
            waiting: 255,
            ..BURST
        };
        assert!(!room.is_full(small));
        assert!(room.is_full(BURST));
        let caught_up = Now { behind: 0, ..BURST };
        assert!(!room.is_full(caught_up));
        // What comes then is a burst again.
        assert!(!room.is_full(BURST));
    }

    #[test]
    fn while_a_checkpoint_holds_the_builder_up_there_is_room_for_what_comes() {
        let mut room = Room::of(2048);
        assert!(room.is_full(FULL));
        let held_up = Now {
            folds: false,
            ..BURST
        };
        assert!(!room.is_full(held_up));
        assert!(room.is_full(Now {
            waiting: 2048,
            ..held_up
        }));
        // It is behind as before once the builder goes on.
        assert!(room.is_full(BURST));
    }
}
