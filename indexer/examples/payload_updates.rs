//! What 20,000 updates cost that change the vector, and as many that change the payload alone.
//!
//! Run it optimised: `cargo run --release -p shoal-indexer --example payload_updates`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, sync::Arc, time::Duration};

use futures::executor::block_on;
use rustix::time::{ClockId, clock_gettime};
use shoal_indexer::{config::EngineConfig, shard::*};
use shoal_runtime::{
    clock::{Stopwatch, System},
    eventually,
    tasks::Tasks,
};
use shoal_schemas::{
    Collection, Metric, Partition, Payload, Point, Record, Value, Vector,
    avro::{self, Framing, NoRegistry},
};
use shoal_topic::{Cleanup, TopicPartition, TopicSpec, memory::MemoryLog};

const POINTS: u64 = 20_000;
const DIM: u32 = 384;
const WAIT: Duration = Duration::from_secs(600);

/// A direction that depends on the seed alone.
fn vector(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let component = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from(i8::from_le_bytes([state.to_le_bytes()[6]])) + 0.5
    };
    (0..DIM).map(component).collect()
}

fn record(id: u64, seed: u64, payload: u64) -> Result<Record, Box<dyn Error>> {
    let number = Value::Integer(i64::try_from(payload)?);
    let point = Point {
        vector: Vector::new(&vector(seed), DIM.try_into()?, Metric::Cosine)?,
        payload: Payload([("number".to_owned(), number)].into()),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    };
    let mut value = Vec::new();
    avro::encode(&point, Framing::SingleObject, &mut value);
    Ok(Record {
        key: Some(id.to_string().into()),
        value: Some(value.into()),
        ..Record::default()
    })
}

/// Seconds of processor time of this process.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let whole = Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?);
    Ok(whole.as_secs_f64())
}

fn main() -> Result<(), Box<dyn Error>> {
    let (clock, partition) = (System::shared(), Partition(0));
    let cluster = MemoryLog::new("example", clock.clone()).cluster();
    let collection = Collection::new("docs".parse()?, DIM.try_into()?, Metric::Cosine, 1);
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
    let collection = collection.into();
    let context = run::Context {
        spec: Spec::of_home(collection, partition, id, region, folder.clone(), engine),
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
    let shared = eventually(WAIT, "the shard opens", || opened.get().cloned());
    let home = TopicPartition { topic, partition };
    // Vectors come of seeds from the given one on; every round has a payload of its own.
    let rounds = [
        ("points", 0),
        ("payloads", 0),
        ("vectors", POINTS),
        ("payloads", POINTS),
    ];
    for (round, (what, seed)) in (0u64..).zip(rounds) {
        let records = (0..POINTS).map(|id| record(id, seed + id, round));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let (watch, before) = (Stopwatch::start(), cpu_seconds()?);
        let mut offset = None;
        for record in &records {
            offset = Some(block_on(cluster.writer.send(&home, record)?)?.offset);
        }
        eventually(WAIT, "all is applied and folded", || {
            let applied = shared.progress().borrow().next.first().copied() > offset;
            let (view, _) = shared.moment();
            (applied && view.memtable_rows() == 0).then_some(())
        });
        let (seconds, cpu) = (watch.seconds(), cpu_seconds()? - before);
        let status = shared.status();
        println!(
            "{POINTS} {what}: {seconds:.2} s, {cpu:.2} s of processor time, {} nodes, {} dead rows",
            status.graph_rows, status.dead_rows
        );
    }
    cancel.cancel();
    shard.join().map_err(|_| "the shard panicked")??;
    Ok(std::fs::remove_dir_all(folder)?)
}
