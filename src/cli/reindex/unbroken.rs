//! Work that an interruption waits for.
//!
//! A step that is given up between its write and the answer may have written all the same, and whoever
//! takes the run back then does not see it. So writes go to their end first; waiting and comparing are
//! given up at once.

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(super) struct Unbroken(Semaphore);

impl Unbroken {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(1))
    }

    /// Work that [`Unbroken::or_stop`] does not give up. Not within itself.
    pub(super) async fn whole<T>(&self, work: impl Future<Output = T>) -> T {
        let _at_it = self.0.acquire().await;
        work.await
    }

    /// Goes through steps until they end; `None` if `stop` came before that.
    pub(super) async fn or_stop<T>(
        &self,
        stop: &CancellationToken,
        steps: impl Future<Output = T>,
    ) -> Option<T> {
        let stopped = async {
            stop.cancelled().await;
            // The steps go on meanwhile.
            let _nobody_is = self.0.acquire().await;
        };
        tokio::select! {
            biased;
            () = stopped => None,
            outcome = steps => Some(outcome),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio_util::sync::CancellationToken;

    use super::Unbroken;

    #[tokio::test]
    async fn a_write_goes_to_its_end_and_nothing_is_begun_behind_it() {
        let (unbroken, stop) = (Unbroken::new(), CancellationToken::new());
        let done = RefCell::new(Vec::new());
        let steps = async {
            let one = async {
                done.borrow_mut().push("topics made");
                stop.cancel();
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                done.borrow_mut().push("definition written");
            };
            unbroken.whole(one).await;
            let next = async { done.borrow_mut().push("fed") };
            unbroken.whole(next).await;
        };
        assert_eq!(unbroken.or_stop(&stop, steps).await, None);
        assert_eq!(*done.borrow(), ["topics made", "definition written"]);
    }

    #[tokio::test]
    async fn waiting_is_given_up_at_once_and_an_end_is_an_end() {
        let (unbroken, stop) = (Unbroken::new(), CancellationToken::new());
        assert_eq!(unbroken.or_stop(&stop, async { 7 }).await, Some(7));
        let waiting = async {
            stop.cancel();
            std::future::pending::<()>().await;
        };
        assert_eq!(unbroken.or_stop(&stop, waiting).await, None);
    }
}
