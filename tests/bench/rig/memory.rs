//! `memory`: resident memory a vector of a whole indexer, beside usearch with f32.
//!
//! The indexer is a process with default settings that reads everything from Kafka; it is looked
//! at once its segments are sealed and every query was asked over gRPC. Then it is started again
//! and looked at the same way. The reference is a fresh process that adds the same rows to a
//! usearch index of f32 with the same M, its room reserved to the row, and asks every query.
//! The second pair of figures leaves out what each process held before the first row.

use serde_json::{Value, json};
use shoal_runtime::tasks::blocking;
use shoal_schemas::{IndexParameters, Quantization};
use tokio::task::block_in_place;

use crate::{
    arguments::Arguments,
    bare_index::Bare,
    client::{Shard, is_folded},
    embeddings::{self, Embeddings, K, collection},
    figures::{Repeats, round, say},
    place::Place,
    process::{Memory, fresh},
    rest::at_rest,
    role::Role,
};

/// What one process held.
struct Held {
    before: Memory,
    after: Memory,
}

#[derive(Default)]
struct Side {
    sum: Repeats,
    anon: Repeats,
    file: Repeats,
    /// Without what the process held before the first row.
    grown: Repeats,
}

impl Side {
    fn push(&mut self, held: &Held, rows: f64) {
        self.sum.push(held.after.sum() / rows);
        self.anon.push(held.after.anon / rows);
        self.file.push(held.after.file / rows);
        self.grown.push((held.after - held.before).sum() / rows);
    }

    fn text(&self) -> String {
        format!(
            "{}  anonymous {}  files {}; grown by {}",
            self.sum.text("bytes"),
            self.anon.text(""),
            self.file.text(""),
            self.grown.text("")
        )
    }

    fn figures(&self) -> Value {
        json!({
            "bytes_per_vector": round(self.sum.median()),
            "spread": self.sum.spread(),
            "anon_per_vector": round(self.anon.median()),
            "file_per_vector": round(self.file.median()),
            "grown_per_vector": round(self.grown.median()),
        })
    }
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let repeats = arguments.repeats_or(3);
    let rows = embeddings.points.len();
    let parameters = collection("memory")?.index;
    let (mut live, mut restarted, mut reference) =
        (Side::default(), Side::default(), Side::default());
    let mut recalls = Repeats::default();
    for repeat in 0..repeats {
        let place = Place::start().await?;
        let (ours, again, recall) = ours_once(arguments, &place, &embeddings).await?;
        live.push(&ours, rows as f64);
        restarted.push(&again, rows as f64);
        recalls.push(recall);
        let bare = block_in_place(|| fresh("usearch-memory", arguments, &[]))?;
        let bare = Held {
            before: serde_json::from_value(bare.get("before").cloned().unwrap_or_default())?,
            after: serde_json::from_value(bare.get("after").cloned().unwrap_or_default())?,
        };
        reference.push(&bare, rows as f64);
        say(format!(
            "repeat {repeat}: bytes a vector: Shoal {:.0}, started again {:.0}, usearch f32 {:.0}",
            ours.after.sum() / rows as f64,
            again.after.sum() / rows as f64,
            bare.after.sum() / rows as f64,
        ))?;
    }
    let ratio = live.sum.median() / reference.sum.median();
    let grown = live.grown.median() / reference.grown.median();
    let again = restarted.sum.median() / reference.sum.median();
    say(format!(
        "\nresident bytes a vector, less is better; median (lowest - highest) of {repeats}"
    ))?;
    say(format!("  Shoal, a whole indexer   {}", live.text()))?;
    say(format!("  Shoal, started again     {}", restarted.text()))?;
    say(format!("  usearch f32, bare        {}", reference.text()))?;
    say(format!(
        "  x {ratio:.3}; started again x {again:.3}; without what each process held before x {grown:.3}"
    ))?;
    Ok(json!({
        "name": "memory",
        "ours": live.figures(),
        "started_again": restarted.figures(),
        "reference": reference.figures(),
        "ratio": round(ratio),
        "ratio_started_again": round(again),
        "ratio_grown": round(grown),
        "recall_at_10": round(recalls.median()),
        "settings": {
            "rows": rows,
            "queries": embeddings.queries.len(),
            "m": parameters.m,
            "quantization": format!("{:?}", parameters.quantization),
            "reference_quantization": "F32",
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}

async fn ours_once(
    arguments: &Arguments,
    place: &Place,
    embeddings: &Embeddings,
) -> anyhow::Result<(Held, Held, f64)> {
    let collection = collection("memory")?;
    let rows = embeddings.points.len();
    place.create(&collection).await?;
    let data = place.folder().join("indexer");
    let mut indexer = block_in_place(|| Role::sealing_indexer(arguments, place, &data, rows))?;
    let mut shard = Shard::connect(indexer.grpc, &collection).await?;
    shard.wait(&mut indexer, 0, |_| true).await?;
    let before = Memory::of(indexer.pid())?;
    place.publish(&collection, &embeddings.points).await?;
    shard.wait(&mut indexer, rows, is_folded).await?;
    at_rest(&mut indexer, &data, &collection, rows).await?;
    let recall = ask_all(&mut shard, embeddings).await?;
    let live = Held {
        before,
        after: Memory::of(indexer.pid())?,
    };
    blocking(move || indexer.stop()).await?;
    let mut indexer = block_in_place(|| Role::sealing_indexer(arguments, place, &data, rows))?;
    let mut shard = Shard::connect(indexer.grpc, &collection).await?;
    shard.wait(&mut indexer, rows, is_folded).await?;
    at_rest(&mut indexer, &data, &collection, rows).await?;
    ask_all(&mut shard, embeddings).await?;
    let again = Held {
        before,
        after: Memory::of(indexer.pid())?,
    };
    blocking(move || indexer.stop()).await?;
    Ok((live, again, recall))
}

/// Every query once; the mean recall.
async fn ask_all(shard: &mut Shard, embeddings: &Embeddings) -> anyhow::Result<f64> {
    let mut recall = 0.0;
    for (number, query) in embeddings.queries.iter().enumerate() {
        recall += embeddings.recall(number, &shard.search(query).await?);
    }
    Ok(recall / embeddings.queries.len().max(1) as f64)
}

/// The reference, in a process of its own: never holds more than one row beside the index.
pub(crate) fn bare(arguments: &Arguments) -> anyhow::Result<Value> {
    let parameters = IndexParameters {
        quantization: Some(Quantization::F32),
        ..collection("memory")?.index
    };
    let queries = embeddings::vectors(&arguments.data, "w_queries_f16.npy")?;
    let queries = queries.collect::<anyhow::Result<Vec<_>>>()?;
    let rows = embeddings::vectors(&arguments.data, "w_base_f16.npy")?;
    let count = embeddings::vectors(&arguments.data, "w_base_f16.npy")?.count();
    let wanted = arguments.rows.unwrap_or(count).min(count);
    let before = Memory::own()?;
    let index = Bare::new(wanted, parameters)?;
    for (key, vector) in (0..).zip(rows.take(wanted)) {
        index.add(key, &vector?)?;
    }
    for query in &queries {
        index.search(query, K, usize::from(parameters.ef_search))?;
    }
    Ok(json!({ "before": before, "after": Memory::own()? }))
}
