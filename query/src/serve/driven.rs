//! Work of a stream that goes on by itself, though nobody takes what it gives.

use std::{panic::resume_unwind, pin::pin};

use futures::{
    Stream, StreamExt as _,
    stream::{self, FuturesUnordered},
};
use tokio::{sync::mpsc, task::JoinSet};

/// Has work done in the order in which it is ready, `most` pieces at once with those that nobody has taken yet: a piece
/// that has begun comes to its end, and gives back what it holds, though the caller reads no answer. All of it
/// ends with the stream.
pub(crate) fn driven<T, F>(
    most: usize,
    work: impl Stream<Item = F> + Send + 'static,
) -> impl Stream<Item = T> + Send
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (places, done) = mpsc::channel(most.max(1));
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let mut work = pin!(work);
        let mut running = FuturesUnordered::new();
        let mut is_over = false;
        while !(is_over && running.is_empty()) {
            let begin = async {
                let place = places.clone().reserve_owned().await.ok()?;
                Some((place, work.next().await?))
            };
            tokio::select! {
                Some(()) = running.next() => {}
                begun = begin, if !is_over => match begun {
                    Some((place, piece)) => running.push(async move {
                        place.send(piece.await);
                    }),
                    None => is_over = true,
                },
            }
        }
    });
    stream::unfold((done, driver), |(mut done, mut driver)| async move {
        match done.recv().await {
            Some(piece) => Some((piece, (done, driver))),
            None => match driver.join_next().await {
                // Whoever takes the pieces shall not take this for their end.
                Some(Err(ended)) if ended.is_panic() => resume_unwind(ended.into_panic()),
                _ => None,
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        panic::AssertUnwindSafe,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use futures::{FutureExt as _, StreamExt as _, future, stream};
    use tokio::sync::oneshot;

    use super::driven;

    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_has_begun_ends_though_nobody_takes_it_and_no_more_is_begun_than_has_a_place() {
        let (begun, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (begun.clone(), ended.clone());
        let pieces = (0..5).map(move |number| {
            let (begun, ended) = counts.clone();
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                ended.fetch_add(1, Ordering::SeqCst);
                number
            }
        });
        let answers = driven(2, stream::iter(pieces));
        let both_end = async {
            while ended.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, both_end).await;
        assert!(in_time.is_ok(), "nobody has taken an answer");
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        let mut all: Vec<i32> = answers.collect().await;
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_panic_is_no_end() {
        let piece = async { panic!("a piece fails") };
        let all = driven(1, stream::iter([piece])).collect::<Vec<_>>();
        let panic = AssertUnwindSafe(all).catch_unwind().await.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"a piece fails"));
    }

    #[tokio::test]
    async fn what_is_under_way_goes_with_the_stream() {
        let (held, gone) = oneshot::channel::<()>();
        let piece = async move {
            let _held = held;
            future::pending::<()>().await;
        };
        let mut answers = Box::pin(driven(1, stream::iter([piece])));
        assert!(answers.next().now_or_never().is_none());
        drop(answers);
        let gone = tokio::time::timeout(DEADLINE, gone).await;
        assert!(gone.is_ok_and(|gone| gone.is_err()), "it was given up");
    }
}
