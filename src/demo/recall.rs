//! Searches: what is found, how much of what should be, and how many a second.

use std::collections::BTreeSet;

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::v1;
use tonic::transport::Channel;

use super::{
    data::{Data, Query},
    ingest::per_second,
    stage::{Stage, search},
    voice::Voice,
};

/// Queries that are shown with what they find.
const SHOWN: usize = 4;
/// How often all queries are asked for the rate.
const ROUNDS: usize = 4;

/// Asks every query and returns the share of the true ten nearest found.
pub(super) async fn measure(stage: &mut Stage, data: &Data, voice: &Voice) -> anyhow::Result<f64> {
    voice.say("\nsearching with sentences that are not among them");
    let (mut near, mut wanted) = (0, 0);
    for (n, query) in data.queries.iter().enumerate() {
        let hits = stage.search(query.vector.as_slice(), &[]).await?;
        if n < SHOWN {
            show(voice, query, &hits);
        }
        let distinct: BTreeSet<&str> = hits.iter().map(|hit| hit.id.as_str()).collect();
        near += distinct.iter().filter(|id| data.is_near(query, id)).count();
        wanted += 10;
    }
    let recall = per_second(near, 1.0) / per_second(wanted, 1.0);
    voice.say(&format!(
        "\nrecall@10 over {} queries, against the exact neighbours: {recall:.4}",
        data.queries.len()
    ));
    Ok(recall)
}

fn show(voice: &Voice, query: &Query, hits: &[v1::Hit]) {
    voice.say(&format!("\n  \"{}\"   ({})", query.text, query.answer));
    for hit in hits.iter().take(3) {
        voice.say(&format!("    {:.3}  {}", hit.distance, text_of(hit)));
    }
}

/// The text of an answer.
pub(super) fn text_of(hit: &v1::Hit) -> &str {
    match hit
        .payload
        .get("text")
        .and_then(|value| value.kind.as_ref())
    {
        Some(v1::value::Kind::String(text)) => text,
        _ => "",
    }
}

/// Two clients ask as fast as they are answered.
pub(super) async fn rate(stage: &mut Stage, data: &Data, voice: &Voice) -> anyhow::Result<f64> {
    let watch = Stopwatch::start();
    let (first, second) = tokio::join!(
        ask_all(stage.searches.clone(), data),
        ask_all(stage.second.clone(), data)
    );
    let asked = first? + second?;
    let rate = per_second(asked, watch.seconds());
    voice.say(&format!("2 clients over gRPC: {rate:.0} queries/s"));
    Ok(rate)
}

async fn ask_all(
    mut client: v1::search_client::SearchClient<Channel>,
    data: &Data,
) -> anyhow::Result<usize> {
    let mut asked = 0;
    for query in data
        .queries
        .iter()
        .cycle()
        .take(data.queries.len() * ROUNDS / 2)
    {
        search(&mut client, query.vector.as_slice(), &[], false).await?;
        asked += 1;
    }
    Ok(asked)
}
