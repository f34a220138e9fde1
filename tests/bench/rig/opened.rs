//! Memory of shards that a fresh process opens from their folders and searches.
//!
//! Nothing is written there: no log is read, no graph built. So it is what serving takes, without
//! what building left in the allocator's hands, and what opening did.

use std::{path::Path, time::Duration};

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shoal_indexer::shard::{recover, search::Ask};
use shoal_runtime::clock::{Stopwatch, System};

use crate::{
    arguments::Arguments,
    embeddings::{self, K, partitioned},
    engine::{self, ask},
    process::{Memory, fresh},
};

/// How long it is searched before it is looked at: what opening has freed is given back by then.
const SERVED: Duration = Duration::from_secs(3);

/// What a fresh process held.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    /// On top of what it held before the first shard.
    pub(crate) grown: Memory,
    /// Points served.
    pub(crate) points: u64,
}

/// Opens the shards of a collection, one a folder, in a process of their own.
pub(crate) fn in_fresh_process(
    arguments: &Arguments,
    collection: &str,
    folders: &[&Path],
) -> anyhow::Result<Held> {
    let name = Path::new(collection);
    let held = fresh("opened", arguments, &[&[name], folders].concat())?;
    Ok(serde_json::from_value(held)?)
}

/// What the fresh process does: the first folder is the collection's name.
pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let [name, folders @ ..] = arguments.folders.as_slice() else {
        anyhow::bail!("--folder names the collection, then each shard's folder");
    };
    let collection = partitioned(&name.to_string_lossy(), u32::try_from(folders.len())?)?;
    let queries = embeddings::vectors(&arguments.data, "w_queries_f16.npy")?;
    let queries = queries.collect::<anyhow::Result<Vec<_>>>()?;
    let before = Memory::own()?;
    let mut shards = Vec::new();
    let mut points = 0;
    for (shard, folder) in (0..).zip(folders) {
        let spec = engine::spec(&collection, shard, folder, engine::settings(usize::MAX));
        let mut opened = recover::open(spec, System::shared())?;
        ensure!(
            opened.replay(|| false)?.is_some(),
            "the shard's own log was not replayed"
        );
        let shared = opened.writer.shared.clone();
        points += shared.live_points();
        shards.push((opened, shared));
    }
    let beam = usize::from(collection.index.ef_search);
    let watch = Stopwatch::start();
    while watch.elapsed() < SERVED {
        for query in &queries {
            let question: Ask = ask(query, K, beam);
            for (_, shared) in &shards {
                shared.search(&question)?;
            }
        }
    }
    let grown = Memory::own()? - before;
    Ok(json!(Held { grown, points }))
}
