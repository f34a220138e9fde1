//! Snapshots of a node's shards: which may be taken, and what of them is copied.

use std::{fs::File, io};

use shoal_runtime::ErrorKind;

use crate::{
    node::{Node, ShardKey, generations::is_built, not_serving_text},
    shard::save::{SaveError, Saved},
    snapshot::{
        Files, Owner, ShardPlace,
        taker::{Held, HoldError, Source},
    },
};

impl Source for Node {
    fn shards(&self) -> Vec<ShardKey> {
        if self.config.replica_set.is_some() {
            // The owners take them; one copy of a shard is enough.
            return Vec::new();
        }
        let state = self.deps.control.snapshot();
        let shards = self.lock();
        // What a re-indexing builds is not worth a copy before it is known to be right.
        let serving = shards
            .iter()
            .filter(|(key, held)| held.serving().is_ok() && !is_built(&state, &key.0));
        serving.map(|(key, _)| key.clone()).collect()
    }

    fn hold(&self, shard: &ShardKey) -> Result<Held, HoldError> {
        let held = self.shard(shard).ok_or(HoldError::NotOwned)?;
        let shared = held.serving().map_err(|why| HoldError::NotYet {
            detail: not_serving_text(&why),
        })?;
        let state = self.deps.control.snapshot();
        // A node that was overtaken has no say about the shard's copies any more.
        let epoch = self.owned_at(&state, shard).ok_or(HoldError::NotOwned)?;
        let saved = shared.save().map_err(|error| HoldError::Failed {
            kind: match &error {
                SaveError::Busy | SaveError::Late => ErrorKind::Retry,
                SaveError::Folder(_) => ErrorKind::Retry,
                SaveError::File(error) => error.kind(),
                SaveError::Manifest(_) => ErrorKind::Corrupt,
            },
            source: Box::new(error),
        })?;
        Ok(Held {
            place: ShardPlace {
                collection: shard.0.clone(),
                incarnation: shared.spec.incarnation,
                shard: shard.1,
            },
            owner: Owner {
                node: self.config.node.clone(),
                epoch,
            },
            content: saved.content.clone(),
            files: Box::new(saved),
            names: shared.names.clone(),
        })
    }
}

impl Files for Saved {
    fn open(&self, path: &str) -> io::Result<File> {
        self.open_file(path)
    }
}
