//! Opening a shard's folder to look at it: one that was restored, copied, or whose indexer is off.
//!
//! Nothing is read from Kafka and nothing is folded: what the shard's own log holds behind the
//! checkpoint stays in the memtable, however much it is. As any opening it cuts a torn tail, and
//! it fails while an indexer has the folder open.

use std::{fs, io, path::Path, sync::Arc};

use serde::Deserialize;
use shoal_runtime::clock::Clock;
use shoal_schemas::{
    ClusterId, Collection, CollectionName, Dim, Metric, Offset, Partition, Partitioner,
};

use crate::{
    config::EngineConfig,
    shard::{
        Shared, Spec,
        checkpoint::Manifest,
        recover::{IDENTITY_FILE, OpenError, open},
    },
};

/// What the folder says of itself, as far as it is needed.
#[derive(Deserialize)]
struct Identity {
    collection: CollectionName,
    shard: Partition,
    dim: Dim,
    metric: Metric,
    incarnation: Offset,
    cluster: ClusterId,
    partitions: u32,
    partitioner: Partitioner,
    route_by_key_prefix: bool,
    #[serde(default)]
    split_keys: Vec<String>,
}

/// Opens a folder as the shard it says it is.
///
/// # Errors
/// [`OpenError`], naming the file.
pub fn open_offline(folder: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Shared>, OpenError> {
    let path = folder.join(IDENTITY_FILE);
    let identity = fs::read(&path)
        .and_then(|bytes| serde_json::from_slice::<Identity>(&bytes).map_err(io::Error::other));
    let identity = identity.map_err(|source| OpenError::File { path, source })?;
    let Identity {
        collection: name,
        shard,
        dim,
        metric,
        partitions,
        ..
    } = identity;
    let mut collection = Collection::new(name, dim, metric, partitions);
    collection.partitioner = identity.partitioner;
    collection.route_by_key_prefix = identity.route_by_key_prefix;
    collection.split_keys = identity.split_keys;
    let engine = EngineConfig {
        // Nobody folds.
        memtable_rows: u32::MAX,
        ..EngineConfig::default()
    };
    let mut spec = Spec::of_home(
        Arc::new(collection),
        shard,
        identity.cluster,
        // Which region it is decides nothing where nothing new is applied.
        "local".parse().expect("`local` is a valid name"),
        folder.to_owned(),
        engine,
    );
    spec.incarnation = identity.incarnation;
    let checkpoints = spec.checkpoint_folder();
    // One that does not read is told and passed over by `open`.
    if checkpoints.exists()
        && let Ok(Some(manifest)) = Manifest::newest(&checkpoints)
    {
        let collection = Arc::make_mut(&mut spec.collection);
        collection.index = manifest.graph.parameters;
        collection.fields = manifest.graph.fields;
    }
    let mut opened = open(spec, clock)?;
    opened.replay(|| false)?;
    Ok(opened.writer.shared.clone())
}
