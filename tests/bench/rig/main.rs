//! Measures Shoal beside its references: one figure a call, on a real Kafka and real embeddings.
//!
//! `tests/bench/run` builds this and the `shoal` binary and calls it; what each figure means is in
//! `docs/benchmarks.md`. Servers are what a user would run: `shoal indexer` and `shoal query` as
//! processes of their own, with their default settings. Ours and the reference take turns in one
//! run. Nothing is asserted: the last line is one JSON object with what was found.

#![allow(
    clippy::as_conversions,
    reason = "counts become floating figures; nothing here is read back"
)]

mod arguments;
mod bare_index;
mod bare_kafka;
mod client;
mod embeddings;
mod figures;
mod freshness;
mod ingest;
mod place;
mod recall;
mod role;
mod search;

use arguments::Arguments;

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
            other => anyhow::bail!("no figure is called `{other}`"),
        }
    })?;
    figures::say(measured)
}
