//! What `mixed` publishes beside its searches: records that give each point the vector of another row, in turn.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_producer::Publisher;
use shoal_schemas::{Collection, v1};
use tokio::{task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Shard, on_this_thread},
    embeddings::Embeddings,
};

pub(crate) const RECORDS_PER_SECOND: u32 = 500;
/// At full speed so many records may be published and not applied: the indexer never waits for
/// one, and has soon caught up afterwards.
const AHEAD: u64 = 20_000;
/// At full speed, how often some is published.
const PUBLISH_EVERY: Duration = Duration::from_millis(2);
/// In so many portions what the indexer may take goes out before it is looked how far it has come: all of it at
/// once would meet each search, or none, for a whole part.
const PORTIONS: u64 = 100;

/// What comes in beside the searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Idle,
    Steady,
    Full,
}

/// What publishes the records.
pub(crate) struct Feed {
    pub(crate) embeddings: Arc<Embeddings>,
    pub(crate) collection: Collection,
    /// The indexer's.
    pub(crate) grpc: SocketAddr,
    pub(crate) publisher: Publisher,
    /// Records published so far.
    pub(crate) published: AtomicU64,
}

impl Feed {
    /// Publishes what the load says until it ends, on the calling thread.
    pub(crate) fn run(&self, load: Load, ends: &CancellationToken) -> anyhow::Result<()> {
        on_this_thread(async {
            match load {
                Load::Idle => Ok(()),
                Load::Steady => self.steadily(ends).await,
                Load::Full => self.fully(ends).await,
            }
        })
    }

    /// Publishes the next record: a point gets another point's vector.
    async fn publish(&self, deliveries: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
        let number = self.published.fetch_add(1, Ordering::Relaxed) as usize;
        let points = &self.embeddings.points;
        // Not the same pairs in each turn over the points.
        let other = (number + number / points.len()) % points.len();
        if let (Some((id, _)), Some((_, point))) =
            (points.get(number % points.len()), points.get(other))
        {
            let delivery = self.publisher.publish(id, point).await?;
            deliveries.spawn(async move {
                delivery.await?;
                Ok(())
            });
        }
        while let Some(done) = deliveries.try_join_next() {
            done??;
        }
        Ok(())
    }

    async fn steadily(&self, ends: &CancellationToken) -> anyhow::Result<()> {
        let mut deliveries = JoinSet::new();
        let mut ticks = interval(Duration::from_secs(1) / RECORDS_PER_SECOND);
        while !ends.is_cancelled() {
            ticks.tick().await;
            self.publish(&mut deliveries).await?;
        }
        finish(deliveries).await
    }

    async fn fully(&self, ends: &CancellationToken) -> anyhow::Result<()> {
        let mut shard = Shard::connect(self.grpc, &self.collection).await?;
        let mut deliveries = JoinSet::new();
        let mut ticks = interval(PUBLISH_EVERY);
        while !ends.is_cancelled() {
            let limit = applied(&mut shard).await? + AHEAD;
            let due = limit.saturating_sub(self.published.load(Ordering::Relaxed));
            for portion in 0..PORTIONS {
                if ends.is_cancelled() {
                    break;
                }
                ticks.tick().await;
                for _ in due * portion / PORTIONS..due * (portion + 1) / PORTIONS {
                    self.publish(&mut deliveries).await?;
                }
            }
        }
        finish(deliveries).await
    }
}

async fn finish(mut deliveries: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(done) = deliveries.join_next().await {
        done??;
    }
    Ok(())
}

/// Records of the home topic that the shard has applied.
pub(crate) async fn applied(shard: &mut Shard) -> anyhow::Result<u64> {
    Ok(next(&shard.status().await?))
}

pub(crate) fn next(status: &v1::ShardStatus) -> u64 {
    status.positions.first().map_or(0, |at| at.next_offset)
}
