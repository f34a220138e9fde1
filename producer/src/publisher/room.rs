//! Room in the writer's queue: when it is full, the oldest outstanding delivery is waited for.
//!
//! A delivery belongs to whoever published the record and may never be polled, so it cannot be
//! waited for here. Therefore every [`SAMPLE`]-th delivery is shared, and one half of it stays here
//! as a mark of how far the log has got.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use shoal_topic::{Delivery, WriteError, writer::DeliveryFuture};

/// One delivery in so many is a mark.
const SAMPLE: u32 = 64;
/// Marks kept: more than any queue's records need; a mark too many is forgotten, oldest first.
const MARKS: usize = 1 << 17;
/// How long to wait where the queue is full of records that others sent through the same writer.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) type SharedDelivery = Shared<BoxFuture<'static, Result<Delivery, WriteError>>>;

/// A delivery that one or two wait for.
pub(super) enum Outcome {
    Own(DeliveryFuture),
    Marked(SharedDelivery),
}

#[derive(Default)]
pub(super) struct Room {
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Marks {
    since_last: u32,
    oldest_first: VecDeque<SharedDelivery>,
}

impl Room {
    /// Takes note of a delivery.
    pub(super) fn note(&self, delivery: DeliveryFuture) -> Outcome {
        let mut marks = self.lock();
        marks.since_last += 1;
        if marks.since_last < SAMPLE {
            return Outcome::Own(delivery);
        }
        marks.since_last = 0;
        // Whatever has arrived is no mark any more.
        while let Some(oldest) = marks.oldest_first.front() {
            if oldest.clone().now_or_never().is_none() && marks.oldest_first.len() < MARKS {
                break;
            }
            marks.oldest_first.pop_front();
        }
        let shared = delivery.shared();
        marks.oldest_first.push_back(shared.clone());
        Outcome::Marked(shared)
    }

    /// Waits until there may be room.
    ///
    /// # Cancel safety
    /// Safe: a mark not waited for to its end is only forgotten.
    pub(super) async fn wait(&self) {
        let oldest = self.lock().oldest_first.pop_front();
        match oldest {
            Some(oldest) => {
                // What became of it is its owner's business.
                let _outcome = oldest.await;
            }
            None => tokio::time::sleep(PAUSE).await,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Marks> {
        self.marks
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}
