//! Publishes two points to a collection in memory, deletes one, and prints the tokens.
//!
//! Against a real cluster only the first lines differ: `shoal_topic::kafka::connect` gives the
//! cluster, and the collection is there already. Run it with `cargo run -p shoal-producer
//! --example publish`.

use std::{io::Write, time::Duration};

use shoal_producer::{PublishConfig, Publisher};
use shoal_runtime::{clock::System, tasks::Tasks};
use shoal_schemas::{Collection, Metric, Payload, Point, PointId, Value, Vector};
use shoal_topic::{collections, control::ControlLog, memory::MemoryLog};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cluster = MemoryLog::new("example", System::shared()).cluster();
    let tasks = Tasks::new(CancellationToken::new());
    ControlLog::ensure(&cluster, None)?;
    let control = ControlLog::spawn(&cluster, &tasks, System::shared())?;
    let docs = Collection::new("docs".parse()?, 3.try_into()?, Metric::Cosine, 2);
    collections::create(&cluster, &control, docs.clone()).await?;

    let publisher =
        Publisher::new(&cluster, System::shared(), docs, PublishConfig::default()).await?;
    let mut out = std::io::stdout();
    for (id, vector) in [("fox", [0.1, 0.2, 0.3]), ("dog", [0.3, 0.2, 0.1])] {
        let collection = publisher.collection();
        let point = Point {
            vector: Vector::new(&vector, collection.dim, collection.metric)?,
            payload: Payload([("kind".to_owned(), Value::String("animal".to_owned()))].into()),
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
        };
        // The record is queued now, and in the log once the delivery has resolved.
        let delivery = publisher.publish(&PointId::new(id)?, &point).await?;
        let token = delivery.await?;
        writeln!(
            out,
            "{id} is in partition {} at {}: {token}",
            token.partition, token.offset
        )?;
    }
    let token = publisher.delete(&PointId::new("dog")?).await?.await?;
    writeln!(out, "dog is deleted: {token}")?;

    tasks.cancel().cancel();
    tasks.finish(Duration::from_secs(5)).await?;
    Ok(())
}
