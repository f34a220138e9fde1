//! One shard over a log in memory: write two points, delete one, search after each.
//!
//! Runs without a cluster: `cargo run -p shoal-indexer --example shard_in_memory`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, sync::Arc, time::Duration};

use futures::executor::block_on;
use shoal_indexer::{config::EngineConfig, shard::*};
use shoal_runtime::{clock::System, eventually, tasks::Tasks};
use shoal_schemas::{Collection, Metric, Partition, Record, avro::NoRegistry};
use shoal_topic::{Cleanup, TopicPartition, TopicSpec, memory::MemoryLog};

fn main() -> Result<(), Box<dyn Error>> {
    let (clock, partition) = (System::shared(), Partition(0));
    let cluster = MemoryLog::new("example", clock.clone()).cluster();
    let collection = Collection::new("colours".parse()?, 3.try_into()?, Metric::Cosine, 1);
    let topic: Arc<str> = collection.name.topic().into();
    cluster.admin.create_topic(&TopicSpec {
        name: topic.to_string(),
        partitions: 1,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: [].into(),
    })?;
    let folder = std::env::temp_dir().join(format!("shoal-example-{}", std::process::id()));
    let (id, region, engine) = ("example".into(), "local".parse()?, EngineConfig::default());
    let context = run::Context {
        spec: Spec::of_home(
            collection.into(),
            partition,
            id,
            region,
            folder.clone(),
            engine,
        ),
        cluster: cluster.clone(),
        schemas: Arc::new(NoRegistry),
        clock,
        tasks: Tasks::new(Default::default()),
        snapshots: None,
        cancel: Default::default(),
        opened: Arc::default(),
    };
    let (cancel, opened) = (context.cancel.clone(), context.opened.clone());
    let shard = std::thread::Builder::new().spawn(move || run::run(context))?;
    let wait = Duration::from_secs(10);
    let shared = eventually(wait, "the shard opens", || opened.get().cloned());
    let home = TopicPartition { topic, partition };
    let (red, blue) = (r#"{"vector":[1,0,0]}"#, r#"{"vector":[0,0,1]}"#);
    for (key, value) in [("red", Some(red)), ("blue", Some(blue)), ("red", None)] {
        let (key, value) = (Some(key.into()), value.map(Into::into));
        let record = Record {
            key,
            value,
            ..Record::default()
        };
        let offset = block_on(cluster.writer.send(&home, &record)?)?.offset;
        let applied = || (shared.progress().borrow().next.first() > Some(&offset)).then_some(());
        eventually(wait, "the record is applied", applied);
        let wants = search::Ask::nearest(vec![1.0, 0.1, 0.0], 1);
        println!(
            "after offset {offset} the nearest is {:?}",
            shared.search(&wants)?
        );
    }
    cancel.cancel();
    shard.join().map_err(|_| "the shard panicked")??;
    Ok(std::fs::remove_dir_all(folder)?)
}
