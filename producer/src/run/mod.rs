//! A whole reader into the log: with back-pressure, a rate limit, progress, and an orderly end.
//!
//! A thread of its own reads and decodes; one task encodes and sends. Between them stands a
//! short bounded queue, behind them the writer's own, so memory does not grow with the input.
//! An interruption stops the reading and waits for what was sent: the summary counts what the log
//! has acknowledged, never what was only tried.

mod feed;
mod outlet;
mod progress;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use shoal_runtime::{ErrorKind, clock::Stopwatch};
use shoal_schemas::{Event, Partition, PointId, Token};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    Delivery, PublishError,
    read::{ReadError, Rows},
};
use feed::Feed;
pub use outlet::{Outlet, OutletError};
use progress::Progress;

/// Deliveries held at most; past that the oldest is waited for, whatever room the queue has.
const OUTSTANDING: usize = 65_536;
/// Records between two looks at what has been acknowledged.
const REAP_EVERY: u64 = 256;
/// How long an interrupted run waits for what it has sent.
const DRAIN: Duration = Duration::from_secs(30);
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(200);

/// What a faulty record does to the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFault {
    /// The run stops there, with the file, the line and the reason.
    #[default]
    Stop,
    /// It is logged, counted and passed over.
    Skip,
}

/// How a run goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Records a second at most; `None` = as fast as the log takes them.
    pub rate_limit: Option<f64>,
    /// Whether progress goes to standard error: a bar on a terminal, a line now and then
    /// elsewhere.
    pub progress: bool,
    /// What a faulty record does.
    pub on_fault: OnFault,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Records the log has acknowledged.
    pub records: u64,
    /// Their bytes, key and value.
    pub bytes: u64,
    /// From the first read to the last acknowledgement.
    pub seconds: f64,
    /// Faulty records passed over.
    pub skipped: u64,
    /// Records sent and not acknowledged: they may or may not be in the log.
    pub unacknowledged: u64,
    /// Whether it was cancelled before the input's end.
    pub interrupted: bool,
    /// The last token of each partition of each topic that was written to: who waits for all of them
    /// sees the whole run.
    pub tokens: BTreeMap<(Arc<str>, Partition), Token>,
}

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The input.
    #[error(transparent)]
    Read(ReadError),
    /// The log, or a record it cannot take.
    #[error(transparent)]
    Publish(PublishError),
    /// The collection's name.
    #[error(transparent)]
    Outlet(#[from] OutletError),
    /// The reading thread ended without saying why.
    #[error("the reader ended before the input did")]
    Reader,
}

/// A run that stopped, with what it had published by then.
#[derive(Debug, thiserror::Error)]
#[error("publishing stopped after {} records", .summary.records)]
pub struct RunError {
    /// What is in the log.
    pub summary: Box<Summary>,
    /// Why it stopped.
    #[source]
    pub cause: Cause,
}

impl RunError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match &self.cause {
            Cause::Read(error) => error.kind(),
            Cause::Publish(error) => error.kind(),
            Cause::Outlet(error) => error.kind(),
            Cause::Reader => ErrorKind::Bug,
        }
    }
}

/// Publishes every point of `rows`, through a publisher or an [`Outlet`] that follows a name. Cancelling
/// ends it early and in order.
///
/// # Errors
/// [`RunError`] at the first record that is faulty (unless those are passed over) or that the log
/// does not take.
pub async fn publish_all(
    to: impl Into<Outlet>,
    rows: Rows,
    options: &Options,
    cancel: &CancellationToken,
) -> Result<Summary, RunError> {
    let total = rows.total;
    let events = rows.map(|row| row.map(|(id, point)| Event::Upsert(id, point)));
    run(to.into(), Feed::start(events), total, options, cancel).await
}

/// Deletes every id of `ids`. Cancelling ends it early and in order.
///
/// # Errors
/// As [`publish_all`].
pub async fn delete_all(
    to: impl Into<Outlet>,
    ids: impl Iterator<Item = Result<PointId, ReadError>> + Send + 'static,
    options: &Options,
    cancel: &CancellationToken,
) -> Result<Summary, RunError> {
    let events = ids.map(|id| id.map(Event::Delete));
    run(to.into(), Feed::start(events), None, options, cancel).await
}

async fn run(
    outlet: Outlet,
    mut feed: Feed,
    total: Option<u64>,
    options: &Options,
    cancel: &CancellationToken,
) -> Result<Summary, RunError> {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut run = Run {
        outlet,
        options,
        cancel,
        ticks,
        outstanding: VecDeque::new(),
        sent: 0,
        watch: Stopwatch::start(),
        progress: Progress::new(options.progress, total),
        summary: Summary::default(),
    };
    let mut cause = run.publish(&mut feed).await.err();
    drop(feed);
    let drained = run.drain().await;
    cause = cause.or(drained.err());
    run.finish(cause)
}

/// The run was cancelled.
struct Cancelled;

struct Run<'a> {
    outlet: Outlet,
    options: &'a Options,
    cancel: &'a CancellationToken,
    ticks: Interval,
    outstanding: VecDeque<Delivery>,
    sent: u64,
    watch: Stopwatch,
    progress: Progress,
    summary: Summary,
}

impl Run<'_> {
    /// Sends all there is, up to the end, a fault, or the cancellation.
    async fn publish(&mut self, feed: &mut Feed) -> Result<(), Cause> {
        loop {
            let Ok(chunk) = self.ticking(feed.next()).await else {
                return Ok(());
            };
            let Some(chunk) = chunk else {
                return Err(Cause::Reader);
            };
            for event in chunk.events {
                if self.cancel.is_cancelled() {
                    self.summary.interrupted = true;
                    return Ok(());
                }
                match event {
                    Ok(event) => self.one(&event).await?,
                    Err(error) if error.is_record() && self.options.on_fault == OnFault::Skip => {
                        self.summary.skipped += 1;
                        warn!(fault = %error, "faulty record passed over");
                    }
                    Err(error) => return Err(Cause::Read(error)),
                }
            }
            if chunk.last {
                return Ok(());
            }
        }
    }

    async fn one(&mut self, event: &Event) -> Result<(), Cause> {
        if let Some(pause) = self.ahead()
            && self.ticking(tokio::time::sleep(pause)).await.is_err()
        {
            return Ok(());
        }
        self.outlet.follow().await?;
        let publisher = &self.outlet.publisher;
        let sent = match event {
            Event::Upsert(id, point) => publisher.try_publish(id, point),
            Event::Delete(id) => publisher.try_send(&publisher.prepare_delete(id)),
        };
        let delivery = match sent {
            Err(full) if full.is_queue_full() => {
                // What has arrived meanwhile makes room; only then is there reason to wait.
                self.reap()?;
                let publisher = self.outlet.publisher.clone();
                let waited = async {
                    match event {
                        Event::Upsert(id, point) => publisher.publish(id, point).await,
                        Event::Delete(id) => publisher.delete(id).await,
                    }
                };
                match self.ticking(waited).await {
                    Ok(delivery) => delivery,
                    Err(Cancelled) => return Ok(()),
                }
            }
            sent => sent,
        };
        let delivery = match delivery {
            Ok(delivery) => delivery,
            // The record itself: too large, or made for another collection. Nothing was sent.
            Err(fault @ (PublishError::TooLarge { .. } | PublishError::Vector { .. }))
                if self.options.on_fault == OnFault::Skip =>
            {
                self.summary.skipped += 1;
                warn!(%fault, "faulty record passed over");
                return Ok(());
            }
            Err(error) => return Err(Cause::Publish(error)),
        };
        self.outstanding.push_back(delivery);
        self.sent += 1;
        if self.sent.is_multiple_of(REAP_EVERY) {
            self.reap()?;
            self.progress.look(&self.summary, self.outstanding.len());
        }
        while self.outstanding.len() > OUTSTANDING {
            let Some(mut oldest) = self.outstanding.pop_front() else {
                break;
            };
            let size_bytes = oldest.size_bytes();
            match self.ticking(&mut oldest).await {
                Ok(outcome) => self.acknowledged(outcome, size_bytes)?,
                Err(Cancelled) => self.outstanding.push_front(oldest),
            }
            if self.summary.interrupted {
                break;
            }
        }
        Ok(())
    }

    /// How long to wait for the rate limit.
    fn ahead(&self) -> Option<Duration> {
        let rate = self.options.rate_limit?;
        let due = Duration::try_from_secs_f64(count(self.sent) / rate).ok()?;
        due.checked_sub(self.watch.elapsed())
            .filter(|ahead| !ahead.is_zero())
    }

    /// Waits for `work`, showing progress meanwhile, unless the run is cancelled first.
    async fn ticking<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Cancelled> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = self.cancel.cancelled(), if !self.summary.interrupted => {
                    self.summary.interrupted = true;
                    return Err(Cancelled);
                }
                _ = self.ticks.tick() => {
                    self.progress.look(&self.summary, self.outstanding.len());
                }
            }
        }
    }

    /// Takes what has been acknowledged off the front, without waiting.
    fn reap(&mut self) -> Result<(), Cause> {
        while let Some(mut oldest) = self.outstanding.pop_front() {
            let size_bytes = oldest.size_bytes();
            match (&mut oldest).now_or_never() {
                Some(outcome) => self.acknowledged(outcome, size_bytes)?,
                None => {
                    self.outstanding.push_front(oldest);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits for everything sent; the first failure is told, the rest is counted.
    ///
    /// Without a limit until the log has answered; from a cancellation on for [`DRAIN`].
    async fn drain(&mut self) -> Result<(), Cause> {
        let mut first = Ok(());
        let mut until: Option<Duration> = None;
        while let Some(mut oldest) = self.outstanding.pop_front() {
            let size_bytes = oldest.size_bytes();
            let outcome = loop {
                let left = until.map(|until| until.saturating_sub(self.watch.elapsed()));
                tokio::select! {
                    biased;
                    outcome = &mut oldest => break Some(outcome),
                    () = self.cancel.cancelled(), if until.is_none() => {
                        until = Some(self.watch.elapsed() + DRAIN);
                    }
                    () = tokio::time::sleep(left.unwrap_or(DRAIN)), if left.is_some() => break None,
                    _ = self.ticks.tick() => {
                        self.progress.look(&self.summary, self.outstanding.len());
                    }
                }
            };
            match outcome {
                Some(outcome) => {
                    let taken = self.acknowledged(outcome, size_bytes);
                    if first.is_ok() {
                        first = taken;
                    }
                }
                None => self.summary.unacknowledged += 1,
            }
        }
        first
    }

    fn acknowledged(
        &mut self,
        outcome: Result<Token, PublishError>,
        size_bytes: usize,
    ) -> Result<(), Cause> {
        match outcome {
            Ok(token) => {
                self.summary.records += 1;
                self.summary.bytes += u64::try_from(size_bytes).unwrap_or(u64::MAX);
                let place = (token.topic.clone(), token.partition);
                let last = self.summary.tokens.get(&place);
                if last.is_none_or(|last| last.offset < token.offset) {
                    self.summary.tokens.insert(place, token);
                }
                Ok(())
            }
            Err(error) => {
                self.summary.unacknowledged += 1;
                Err(Cause::Publish(error))
            }
        }
    }

    fn finish(mut self, cause: Option<Cause>) -> Result<Summary, RunError> {
        self.summary.seconds = self.watch.seconds();
        self.progress.end(&self.summary);
        match cause {
            None => Ok(self.summary),
            Some(cause) => Err(RunError {
                summary: Box::new(self.summary),
                cause,
            }),
        }
    }
}

/// A count as a number to reckon with.
#[expect(clippy::as_conversions, reason = "exact up to 2^53 records")]
fn count(records: u64) -> f64 {
    records as f64
}

#[cfg(test)]
mod tests;
