//! Measures Shoal beside its references: one figure a call, on real embeddings.
//!
//! `tests/bench/run` builds this and the `shoal` binary and calls it; what each figure means is in
//! `docs/benchmarks.md`. Servers are what a user would run: `shoal indexer` and `shoal query` as
//! processes of their own, on a real Kafka, with their default settings; figures of the engine
//! alone run shards in this process. Ours and the reference take turns in one run. Nothing is
//! asserted: the last line is one JSON object with what was found.

#![allow(
    clippy::as_conversions,
    reason = "counts become floating figures; nothing here is read back"
)]

mod arguments;
mod bare_index;
mod bare_kafka;
mod build;
mod cache;
mod changes;
mod churn;
mod client;
mod codes;
mod curve;
mod embeddings;
mod engine;
mod fanout;
mod feed;
mod figures;
mod filter;
mod freshness;
mod hedge;
mod ingest;
mod jitter;
mod kinds;
mod library;
mod lost;
mod memory;
mod mixed;
mod opened;
mod place;
mod process;
mod random;
mod recall;
mod recovery;
mod references;
mod rest;
mod role;
mod scale;
mod search;
mod timed;
mod truth;
mod turnover;

use arguments::Arguments;
use tokio::task::block_in_place;

/// The one that the `shoal` program has.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let measured = runtime.block_on(async {
        match arguments.name.as_str() {
            "ingest" => ingest::measure(&arguments).await,
            "freshness" => freshness::measure(&arguments).await,
            "search" => search::measure(&arguments).await,
            "recall" => recall::measure(&arguments).await,
            "build" => block_in_place(|| build::measure(&arguments)),
            "filter" => block_in_place(|| filter::measure(&arguments)),
            "codes" => block_in_place(|| codes::measure(&arguments)),
            "kinds" => block_in_place(|| kinds::measure(&arguments)),
            "churn" => block_in_place(|| churn::measure(&arguments)),
            "opened" => block_in_place(|| opened::measure(&arguments)),
            "recovery" => recovery::measure(&arguments).await,
            "mixed" => mixed::measure(&arguments).await,
            "fanout" => fanout::measure(&arguments).await,
            "hedge" => hedge::measure(&arguments).await,
            "cache" => cache::measure(&arguments).await,
            "changes" => changes::measure(&arguments).await,
            "scale" => block_in_place(|| scale::measure(&arguments)),
            "scale-once" => block_in_place(|| scale::once(&arguments)),
            "memory" => memory::measure(&arguments).await,
            "usearch-memory" => block_in_place(|| memory::bare(&arguments)),
            "library" => block_in_place(|| library::measure(&arguments)),
            other => anyhow::bail!("no figure is called `{other}`"),
        }
    })?;
    figures::say(measured)
}
