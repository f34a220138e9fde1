//! A shard without a folder begins with its newest snapshot, if that still leads on to the topic.
//!
//! Whatever goes wrong here is told and passed over: the topic is a complete copy, so the shard
//! is read from its beginning then, which is slower and never wrong.

use std::{sync::Arc, time::Duration};

use shoal_runtime::{chain, clock::Stopwatch};
use shoal_schemas::Offset;
use shoal_topic::TopicPartition;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    shard::{gone, run::Context, topics},
    snapshot::{ReadError, Settings, ShardPlace, Shelf, manifest::Manifest, store::Store},
};

/// How long the broker may take to tell its ends.
const ENDS_TIMEOUT: Duration = Duration::from_secs(10);

/// Where snapshots are, for a shard's thread.
#[derive(Clone)]
pub struct Snapshots {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How they are kept.
    pub settings: Settings,
    /// Runs what the store does.
    pub runtime: Handle,
}

/// Brings the newest snapshot into the shard's folder, if there is no folder and one of use.
pub(super) fn restore_newest(context: &Context) {
    let Some(snapshots) = &context.snapshots else {
        return;
    };
    if context.spec.folder.exists() {
        return;
    }
    let shard = context.spec.label();
    let place = ShardPlace {
        collection: context.spec.collection.name.clone(),
        incarnation: context.spec.incarnation,
        shard: context.spec.shard,
    };
    let shelf = Shelf::new(
        snapshots.store.clone(),
        place,
        context.clock.clone(),
        snapshots.settings,
    );
    let manifest = match snapshots.runtime.block_on(shelf.find(None)) {
        Ok(manifest) => manifest,
        Err(ReadError::None { .. }) => return,
        Err(error) => {
            warn!(shard, error = %chain(&error), "snapshots cannot be read, the shard is read from its topic");
            return;
        }
    };
    if let Some(why) = why_useless(context, &manifest) {
        warn!(
            shard,
            snapshot = manifest.number,
            why,
            "newest snapshot is of no use, the shard is read from its topic"
        );
        return;
    }
    let watch = Stopwatch::start();
    let restored = run(
        snapshots,
        &context.cancel,
        shelf.restore(Some(manifest.number), &context.spec.folder),
    );
    match restored {
        None => {}
        Some(Ok(manifest)) => info!(
            shard,
            snapshot = manifest.number,
            points = manifest.points,
            bytes = manifest.bytes(),
            seconds = watch.seconds(),
            "shard restored from a snapshot"
        ),
        Some(Err(error)) => {
            warn!(shard, error = %chain(&error), "snapshot cannot be restored, the shard is read from its topic");
        }
    }
}

/// Waits for `work` unless the shard is let go of meanwhile.
fn run<T>(
    snapshots: &Snapshots,
    cancel: &CancellationToken,
    work: impl Future<Output = T>,
) -> Option<T> {
    snapshots.runtime.block_on(async {
        tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            done = work => Some(done),
        }
    })
}

/// Why a shard of that snapshot would not lead on to its topic, if it would not.
fn why_useless(context: &Context, manifest: &Manifest) -> Option<String> {
    let home = context.spec.sources.first()?;
    let kept = manifest
        .checkpoint
        .iter()
        .find(|one| one.source == home.source);
    let partition = TopicPartition {
        topic: home.source.topic.clone(),
        partition: home.source.partition,
    };
    let known = kept.and_then(|one| one.topic_id.clone());
    let admin = &context.cluster.admin;
    match admin.watermarks(&partition, ENDS_TIMEOUT) {
        Ok(ends) => gone::why(&gone::Standing {
            found: topics::told_now(&**admin, &partition.topic, known.as_ref(), &context.cancel),
            known,
            next: kept.map_or(Offset(0), |one| one.next),
            heard_ms: manifest.taken_ms,
            now_ms: context.clock.now_ms(),
            delete_retention_ms: context.spec.collection.delete_retention_ms,
            ends,
        }),
        // It is compared once more when the shard goes on.
        Err(_) => None,
    }
}
