//! Writes to a log in memory and reads it back: the whole seam, without a broker.
//!
//! Run with `cargo run -p shoal-topic --example memory`.

use std::{collections::BTreeMap, io::Write, time::Duration};

use shoal_runtime::clock::System;
use shoal_schemas::{Partition, Record};
use shoal_topic::{Cleanup, Start, TopicPartition, TopicSpec, memory::MemoryLog};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = MemoryLog::new("example", System::shared()).cluster();
    cluster.admin.create_topic(&TopicSpec {
        name: "embeddings.docs".into(),
        partitions: 1,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: BTreeMap::new(),
    })?;
    let at = TopicPartition {
        topic: "embeddings.docs".into(),
        partition: Partition(0),
    };
    for (key, value) in [("a", Some("first")), ("b", Some("second")), ("a", None)] {
        let record = Record {
            key: Some(key.into()),
            value: value.map(Into::into),
            ..Record::default()
        };
        cluster.writer.send(&at, &record)?.await?;
    }
    let mut reader = cluster.connect.open_reader(&[(at, Start::Beginning)])?;
    let fetched = reader.poll(100, Duration::from_secs(1))?;
    let mut out = std::io::stdout().lock();
    for found in fetched.records {
        writeln!(out, "{} {:?}", found.offset, found.record)?;
    }
    writeln!(out, "ends: {:?}", fetched.ends)?;
    Ok(())
}
