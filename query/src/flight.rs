//! Equal calls that come while the first is under way: asked once, answered all.
//!
//! The first to come leads: it does the work in its own task, as if it were alone. The others wait
//! for what it gets, each until its own deadline. A leader that is given up is followed by one of
//! those that wait. An answer that its leader's deadline may have cut short is nothing to somebody
//! who has more time: that one does the work itself.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_runtime::clock::Stopwatch;
use tokio::sync::watch;

use crate::call::Deadline;

/// A deadline that is later by no more than this is the same.
const SAME_DEADLINE: Duration = Duration::from_millis(5);

/// What is under way, by what it is about.
pub(crate) struct Flights<K, T> {
    under_way: Mutex<HashMap<K, Flight<T>>>,
    /// How many there have been.
    count: AtomicU64,
}

/// Work under way, as those see it that wait for it.
struct Flight<T> {
    number: u64,
    since: Stopwatch,
    deadline: Deadline,
    told: watch::Receiver<Option<T>>,
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self {
            told: self.told.clone(),
            ..*self
        }
    }
}

/// Whether what another one got may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// By anybody.
    Always,
    /// By those who had no more time.
    WithoutMoreTime,
    /// By nobody else.
    Never,
}

/// What came of a call, and whether another one did the work.
pub(crate) struct Landed<T> {
    pub(crate) value: T,
    pub(crate) is_shared: bool,
}

/// Takes the work out of the table however it ends.
struct Lead<'a, K: Eq + Hash, T> {
    flights: &'a Flights<K, T>,
    key: K,
    number: u64,
    told: watch::Sender<Option<T>>,
}

enum Part<'a, K: Eq + Hash, T> {
    Lead(Lead<'a, K, T>),
    Follow(Flight<T>),
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
            count: AtomicU64::new(0),
        }
    }
}

impl<K: Copy + Eq + Hash, T: Clone> Flights<K, T> {
    /// Does the work, or waits for an equal one under way.
    ///
    /// `takes` says who may have what another one got; it is given how long ago that began.
    ///
    /// # Cancel safety
    /// Cancel safe: those that wait for this one go on without it.
    pub(crate) async fn once(
        &self,
        key: K,
        deadline: Deadline,
        work: impl Future<Output = T>,
        takes: impl Fn(&T, Duration) -> Takes,
    ) -> Landed<T> {
        let alone = |value| Landed {
            value,
            is_shared: false,
        };
        loop {
            let mut flight = match self.join(key, deadline) {
                Part::Lead(lead) => {
                    let value = work.await;
                    lead.land(&value);
                    return alone(value);
                }
                Part::Follow(flight) => flight,
            };
            // One with more time may still wait when there is none left here to do the work.
            if flight.deadline.remaining() > deadline.remaining() + SAME_DEADLINE {
                return alone(work.await);
            }
            let landing = flight.told.wait_for(Option::is_some);
            let landed = match tokio::time::timeout(deadline.remaining(), landing).await {
                Ok(Ok(landed)) => landed.clone(),
                // Its leader was given up.
                Ok(Err(_)) => continue,
                // No time is left, which the work says best.
                Err(_) => None,
            };
            let Some(value) = landed else {
                return alone(work.await);
            };
            let has_more_time = deadline.remaining() > flight.deadline.remaining() + SAME_DEADLINE;
            let is_taken = match takes(&value, flight.since.elapsed()) {
                Takes::Always => true,
                Takes::WithoutMoreTime => !has_more_time,
                Takes::Never => false,
            };
            if !is_taken {
                return alone(work.await);
            }
            return Landed {
                value,
                is_shared: true,
            };
        }
    }

    fn join(&self, key: K, deadline: Deadline) -> Part<'_, K, T> {
        let mut under_way = self.lock();
        if let Some(flight) = under_way.get(&key) {
            return Part::Follow(flight.clone());
        }
        let (told, receiver) = watch::channel(None);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let flight = Flight {
            number,
            since: Stopwatch::start(),
            deadline,
            told: receiver,
        };
        under_way.insert(key, flight);
        Part::Lead(Lead {
            flights: self,
            key,
            number,
            told,
        })
    }
}

impl<K: Eq + Hash, T> Flights<K, T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Flight<T>>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, T: Clone> Lead<'_, K, T> {
    /// Tells those that wait, if any do.
    fn land(self, value: &T) {
        self.flights.lock().remove(&self.key);
        if self.told.receiver_count() > 0 {
            self.told.send_replace(Some(value.clone()));
        }
    }
}

impl<K: Eq + Hash, T> Drop for Lead<'_, K, T> {
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        // After it has landed another one may have begun.
        let is_own = |flight: &Flight<T>| flight.number == self.number;
        if under_way.get(&self.key).is_some_and(is_own) {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        future::{Future as _, pending},
        pin::pin,
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use tokio::sync::oneshot;

    use super::{Flights, Landed, Takes};
    use crate::call::Deadline;

    const LONG: Duration = Duration::from_secs(60);

    fn anybody(_: &u32, _: Duration) -> Takes {
        Takes::Always
    }

    fn only_without_more_time(_: &u32, _: Duration) -> Takes {
        Takes::WithoutMoreTime
    }

    fn told<T>(polled: Poll<Landed<T>>) -> (T, bool) {
        match polled {
            Poll::Ready(landed) => (landed.value, landed.is_shared),
            Poll::Pending => panic!("it has not landed"),
        }
    }

    #[tokio::test]
    async fn equal_calls_are_done_once_and_others_for_themselves() {
        let flights = Flights::<u8, u32>::default();
        let (sender, receiver) = oneshot::channel::<u32>();
        let done = Cell::new(0);
        let deadline = Deadline::within(LONG);
        let first = async {
            done.set(done.get() + 1);
            receiver.await.unwrap_or(0)
        };
        let again = || async {
            done.set(done.get() + 1);
            99
        };
        let mut first = pin!(flights.once(1, deadline, first, anybody));
        let mut second = pin!(flights.once(1, deadline, again(), anybody));
        let mut third = pin!(flights.once(1, deadline, again(), anybody));
        let mut context = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(third.as_mut().poll(&mut context).is_pending());
        let other = flights.once(2, deadline, async { 7 }, anybody).await;
        assert_eq!((other.value, other.is_shared), (7, false));
        assert_eq!(sender.send(5), Ok(()));
        assert_eq!(told(first.as_mut().poll(&mut context)), (5, false));
        assert_eq!(told(second.as_mut().poll(&mut context)), (5, true));
        assert_eq!(told(third.as_mut().poll(&mut context)), (5, true));
        assert_eq!(done.get(), 1);
        let later = flights.once(1, deadline, again(), anybody).await;
        assert_eq!((later.value, later.is_shared), (99, false));
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn a_leader_that_is_given_up_is_followed_by_one_that_waits() {
        let flights = Flights::<u8, u32>::default();
        let deadline = Deadline::within(LONG);
        let mut context = Context::from_waker(Waker::noop());
        let mut second = pin!(flights.once(1, deadline, async { 6 }, anybody));
        {
            let mut first = pin!(flights.once(1, deadline, pending(), anybody));
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert!(second.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(told(second.as_mut().poll(&mut context)), (6, false));
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn who_has_more_time_does_not_take_what_a_shorter_deadline_may_have_cut() {
        let flights = Flights::<u8, u32>::default();
        let (sender, receiver) = oneshot::channel::<u32>();
        let mut context = Context::from_waker(Waker::noop());
        let short = Deadline::within(LONG / 2);
        let cut = async { receiver.await.unwrap_or(0) };
        let mut first = pin!(flights.once(1, short, cut, only_without_more_time));
        assert!(first.as_mut().poll(&mut context).is_pending());
        let patient = Deadline::within(LONG);
        let whole = flights.once(1, patient, async { 10 }, only_without_more_time);
        let mut whole = pin!(whole);
        let mut hasty = pin!(flights.once(1, short, async { 11 }, only_without_more_time));
        assert!(whole.as_mut().poll(&mut context).is_pending());
        assert!(hasty.as_mut().poll(&mut context).is_pending());
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(told(first.as_mut().poll(&mut context)), (1, false));
        assert_eq!(told(whole.as_mut().poll(&mut context)), (10, false));
        assert_eq!(told(hasty.as_mut().poll(&mut context)), (1, true));
    }

    #[tokio::test]
    async fn who_has_less_time_does_not_wait() {
        let flights = Flights::<u8, u32>::default();
        let mut context = Context::from_waker(Waker::noop());
        let patient = Deadline::within(LONG);
        let mut first = pin!(flights.once(1, patient, pending(), anybody));
        assert!(first.as_mut().poll(&mut context).is_pending());
        let hasty = Deadline::within(LONG / 2);
        let second = pin!(flights.once(1, hasty, async { 12 }, anybody));
        assert_eq!(told(second.poll(&mut context)), (12, false));
    }
}
