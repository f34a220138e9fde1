//! `recall`: how many of the true 10 nearest a user gets at default settings, through everything.

use serde_json::{Value, json};
use shoal_runtime::clock::Stopwatch;

use crate::{
    arguments::Arguments,
    client::{Node, Shard, is_folded},
    embeddings::{Embeddings, K, collection},
    figures::{Repeats, round, say},
    place::Place,
    role::Role,
};

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let repeats = arguments.repeats_or(3);
    let (mut recalls, mut worst) = (Repeats::default(), Repeats::default());
    let collection = collection("recall")?;
    for repeat in 0..repeats {
        // A new broker and an empty disk: the graph is another one each time.
        let place = Place::start().await?;
        place.create(&collection).await?;
        place.publish(&collection, &embeddings.points).await?;
        let data = place.folder().join("indexer");
        let (mut indexer, mut query) = tokio::task::block_in_place(|| {
            anyhow::Ok((
                Role::indexer(arguments, &place, &data)?,
                Role::query(arguments, &place)?,
            ))
        })?;
        let mut shard = Shard::connect(indexer.grpc, &collection).await?;
        shard
            .wait(&mut indexer, embeddings.points.len(), is_folded)
            .await?;
        let mut node = Node::connect(query.grpc, &collection).await?;
        let probe = embeddings.queries.first().cloned().unwrap_or_default();
        node.wait(&mut query, &probe).await?;
        let watch = Stopwatch::start();
        let mut found = Vec::with_capacity(embeddings.queries.len());
        for (number, vector) in embeddings.queries.iter().enumerate() {
            let hits = node.search(vector, None).await?;
            found.push(embeddings.recall(number, &hits));
        }
        let mean = found.iter().sum::<f64>() / found.len().max(1) as f64;
        let below_half = found.iter().filter(|recall| **recall < 0.5).count();
        say(format!(
            "repeat {repeat}: recall@{K} {mean:.4}, {below_half} queries of {} below one half, {:.1} s",
            found.len(),
            watch.seconds()
        ))?;
        recalls.push(mean);
        worst.push(below_half as f64);
    }
    say(format!(
        "\nrecall@{K} through a query node, more is better: {:.4}",
        recalls.median()
    ))?;
    Ok(json!({
        "name": "recall",
        "ours": {
            "recall_at_10": round(recalls.median()),
            "spread": recalls.spread(),
            "queries_below_half": worst.median(),
        },
        "reference": { "recall_at_10": 1.0, "what": "exact neighbours" },
        "ratio": round(recalls.median()),
        "settings": {
            "rows": embeddings.points.len(),
            "queries": embeddings.queries.len(),
            "ef_search": collection.index.ef_search,
            "m": collection.index.m,
            "ef_construction": collection.index.ef_construction,
            "quantization": format!("{:?}", collection.index.quantization),
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}
