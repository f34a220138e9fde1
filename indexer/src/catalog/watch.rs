//! Watching one id: every record about it that is applied, while somebody looks.
//!
//! Whoever resolves a change reads a point, publishes another and has to know what came in
//! between. The catalog only keeps the latest record of each source, so it is told here as it
//! happens. While nobody looks it costs one load of a counter a record.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use shoal_schemas::PointId;

use crate::rule::Latest;

/// Records kept for one who looks. More of one id in a moment means that they cannot be told.
const KEPT: usize = 1024;

/// What was applied, in order; `None` once it was too much.
type Seen = Arc<Mutex<Option<Vec<Latest>>>>;

/// Who looks at which id.
#[derive(Default)]
pub(super) struct Watches {
    open: AtomicUsize,
    by_id: Mutex<HashMap<PointId, Vec<Seen>>>,
}

impl Watches {
    pub(super) fn open(self: &Arc<Self>, id: &PointId) -> Watch {
        let seen: Seen = Arc::new(Mutex::new(Some(Vec::new())));
        // Counted before it is there: a record applied from now on may be missed by neither.
        self.open.fetch_add(1, Ordering::SeqCst);
        let mut by_id = lock(&self.by_id);
        by_id.entry(id.clone()).or_default().push(seen.clone());
        Watch {
            watches: self.clone(),
            id: id.clone(),
            seen,
        }
    }

    /// Whether anybody looks at anything.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    /// Tells what is known of an id now. Only the shard's writer, after the catalog says so too.
    pub(super) fn tell(&self, id: &PointId, known: &[Latest]) {
        let by_id = lock(&self.by_id);
        for seen in by_id.get(id).into_iter().flatten() {
            let mut seen = lock(seen);
            let Some(told) = seen.as_mut() else { continue };
            for one in known {
                let last = told.iter().rev().find(|known| known.source == one.source);
                if last.is_none_or(|last| last.offset < one.offset) {
                    told.push(*one);
                }
            }
            if told.len() > KEPT {
                *seen = None;
            }
        }
    }
}

/// A look at one id, from when it was opened until it is dropped.
pub struct Watch {
    watches: Arc<Watches>,
    id: PointId,
    seen: Seen,
}

impl Watch {
    /// The records applied so far, in order, each once; perhaps also the latest of each source
    /// from before. `None` if there were too many to keep.
    pub fn seen(&self) -> Option<Vec<Latest>> {
        lock(&self.seen).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut by_id = lock(&self.watches.by_id);
        if let Some(all) = by_id.get_mut(&self.id) {
            all.retain(|seen| !Arc::ptr_eq(seen, &self.seen));
            if all.is_empty() {
                by_id.remove(&self.id);
            }
        }
        self.watches.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("nothing panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::{Arc, atomic::Ordering};

    use shoal_schemas::{Offset, PointId, Version};

    use super::{KEPT, Watches};
    use crate::rule::{Latest, Says, SourceIndex};

    fn record(source: u16, offset: u64) -> Latest {
        Latest {
            source: SourceIndex(source),
            offset: Offset(offset),
            version: Version::from_raw(offset),
            says: Says::Deleted,
        }
    }

    #[test]
    fn each_record_of_the_id_is_told_once_in_order_while_somebody_looks() {
        let watches = Arc::new(Watches::default());
        let (a, b) = (PointId::new("a").unwrap(), PointId::new("b").unwrap());
        watches.tell(&a, &[record(0, 1)]);
        let watch = watches.open(&a);
        assert_eq!(watch.seen().unwrap(), []);
        watches.tell(&b, &[record(0, 2)]);
        watches.tell(&a, &[record(0, 3), record(1, 9)]);
        // A row that moved: nothing new is known.
        watches.tell(&a, &[record(0, 3), record(1, 9)]);
        watches.tell(&a, &[record(0, 5), record(1, 9)]);
        let expected = [record(0, 3), record(1, 9), record(0, 5)];
        assert_eq!(watch.seen().unwrap(), expected);
        drop(watch);
        assert_eq!(watches.open.load(Ordering::SeqCst), 0);
        assert!(watches.by_id.lock().unwrap().is_empty());
    }

    #[test]
    fn too_many_records_are_said_to_be_too_many() {
        let watches = Arc::new(Watches::default());
        let a = PointId::new("a").unwrap();
        let watch = watches.open(&a);
        for offset in 0..=u64::try_from(KEPT).unwrap() {
            watches.tell(&a, &[record(0, offset)]);
        }
        assert_eq!(watch.seen(), None);
    }
}
