//! A node over a log in memory, none of whose threads runs: a test takes its steps one by one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::executor::block_on;
use metrics_exporter_prometheus::PrometheusBuilder;
use shoal_runtime::{clock::System, eventually, http::Readiness, tasks::Tasks};
use shoal_schemas::{
    ClusterId, Collection, CollectionName, Metric, Offset, Partition, Record,
    avro::NoRegistry,
    control::{Announcement, Claim, Entry, Key},
    name::CONTROL_TOPIC,
};
use shoal_topic::{
    Admin as _, Cleanup, DeliveryFuture, Deps, TopicPartition, TopicSpec, WriteError, Writer,
    control::{ControlHandle, ControlLog},
    memory::MemoryLog,
};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::CatalogError,
    config::{Config, EngineConfig, Ownership},
    node::{Held, Node, ShardKey},
    shard::{Shared, offline::open_offline, recover::OpenError},
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const ADDRESS: &str = "127.0.0.1:1";

/// A writer that acknowledges nothing more once it is silent, and counts what it was given since.
pub(crate) struct Quiet {
    log: MemoryLog,
    is_silent: AtomicBool,
    unanswered: AtomicUsize,
}

impl Quiet {
    pub(crate) fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::Release);
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Acquire)
    }
}

impl Writer for Quiet {
    fn send(&self, to: &TopicPartition, record: &Record) -> Result<DeliveryFuture, WriteError> {
        if !self.is_silent.load(Ordering::Acquire) {
            return self.log.send(to, record);
        }
        self.unanswered.fetch_add(1, Ordering::AcqRel);
        Ok(Box::pin(std::future::pending()))
    }

    fn cluster_id(&self) -> Result<ClusterId, WriteError> {
        Writer::cluster_id(&self.log)
    }
}

/// The node, and what is around it.
pub(crate) struct Alone {
    pub(crate) node: Node,
    pub(crate) cluster_id: ClusterId,
    pub(crate) writer: Arc<Quiet>,
    log: MemoryLog,
    control: ControlHandle,
    folder: tempfile::TempDir,
}

impl Alone {
    pub(crate) fn new(ownership: Ownership) -> Self {
        Self::with_engine(ownership, EngineConfig::default())
    }

    pub(crate) fn with_engine(ownership: Ownership, engine: EngineConfig) -> Self {
        let log = MemoryLog::new("test-cluster", System::shared());
        let writer = Arc::new(Quiet {
            log: log.clone(),
            is_silent: AtomicBool::new(false),
            unanswered: AtomicUsize::new(0),
        });
        let mut cluster = log.cluster();
        cluster.writer = writer.clone();
        ControlLog::ensure(&cluster, None).unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let clock = System::shared();
        let control = ControlLog::spawn(&cluster, &tasks, clock.clone()).unwrap();
        let deps = Deps {
            cluster,
            control: control.clone(),
            clock,
            schemas: Arc::new(NoRegistry),
            readiness: Readiness::default(),
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            tasks,
        };
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            node: "alone".into(),
            data_dir: folder.path().to_owned(),
            ownership,
            engine,
            ..Config::default()
        };
        Self {
            node: Node::new(config, deps, ADDRESS.into()),
            cluster_id: ClusterId::from("test-cluster"),
            writer,
            log,
            control,
            folder,
        }
    }

    fn wait(&self, offset: Offset) {
        self.control.wait_for_blocking(offset, DEADLINE).unwrap();
    }

    /// Defines a collection of one shard, and returns it once it is read back.
    pub(crate) fn define(&self, name: &str, placement: &[(&str, &str)]) -> Collection {
        let dim = 3.try_into().unwrap();
        let mut collection = Collection::new(name.parse().unwrap(), dim, Metric::L2, 1);
        let placement = placement.iter();
        collection.placement = placement
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        for (name, cleanup) in [
            (collection.topic(), Cleanup::Compact),
            (collection.name.dlq_topic(), Cleanup::Delete),
        ] {
            let spec = TopicSpec {
                name,
                partitions: 1,
                replication_factor: None,
                cleanup,
                settings: [].into(),
            };
            self.log.create_topic(&spec).unwrap();
        }
        self.wait(self.put_definition(&collection));
        collection
    }

    /// Writes a point with a vector of its own.
    pub(crate) fn publish(&self, collection: &Collection, number: u16) {
        self.publish_at(collection, number, number);
    }

    /// Writes a point with the vector that another number has.
    pub(crate) fn publish_at(&self, collection: &Collection, number: u16, at: u16) {
        let to = home(collection);
        let record = Record {
            key: Some(format!("id-{number}").into()),
            value: Some(format!("{{\"vector\": [1.0, {at}.0, 2.0]}}").into()),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        };
        block_on(self.writer.send(&to, &record).unwrap()).unwrap();
    }

    fn put_definition(&self, collection: &Collection) -> Offset {
        let key = Key::Collection(collection.name.clone());
        let entry = Entry::Collection(Box::new(collection.clone()));
        self.control.put_blocking(&key, &entry).unwrap()
    }

    pub(crate) fn drop_definition(&self, collection: &Collection) {
        let key = Key::Collection(collection.name.clone());
        self.wait(self.control.remove_blocking(&key).unwrap());
    }

    /// Claims the one shard of a collection for a node at this one's address.
    pub(crate) fn claim(&self, collection: &Collection, node: &str, ready: bool) {
        self.claim_in(collection, None, node, ready);
    }

    /// The same in a replica set.
    pub(crate) fn claim_in(
        &self,
        collection: &Collection,
        set: Option<&str>,
        node: &str,
        ready: bool,
    ) {
        let claim = Claim {
            node: node.to_owned(),
            address: ADDRESS.to_owned(),
            ready,
            next_offset: None,
            early: false,
        };
        let name = collection.name.clone();
        let key = match set {
            None => Key::Shard(name, Partition(0)),
            Some(set) => Key::Replica(name, Partition(0), set.parse().unwrap()),
        };
        let put = self.control.put_blocking(&key, &Entry::Shard(claim));
        self.wait(put.unwrap());
    }

    /// Has a node of that name say that it lives.
    pub(crate) fn announce(&self, node: &str) {
        let announcement = Announcement {
            address: "127.0.0.1:2".into(),
            set: None,
            labels: [].into(),
            weight: 1,
            lease_ms: 600_000,
            beat: 1,
        };
        let key = Key::Node(node.to_owned());
        let put = self.control.put_blocking(&key, &Entry::Node(announcement));
        self.wait(put.unwrap());
    }

    /// One round of who follows the definitions.
    pub(crate) fn round(&self, seen: &mut Option<Offset>) {
        self.node.follow_generations(seen, &self.cluster_id);
    }

    /// The control topic is lost, and made anew with these definitions alone.
    pub(crate) fn lose_control(&self, kept: &[&Collection]) {
        self.log.delete_topic(CONTROL_TOPIC).unwrap();
        ControlLog::ensure(&self.log.cluster(), None).unwrap();
        for collection in kept {
            self.put_definition(collection);
        }
        let names: Vec<&CollectionName> = kept.iter().map(|one| &one.name).collect();
        eventually(DEADLINE, "the new control topic to be read", || {
            let state = self.control.snapshot();
            let is_new = state.next_offset.0 == u64::try_from(kept.len()).unwrap();
            (is_new && state.collections.keys().eq(names.iter().copied())).then_some(())
        });
    }

    /// Takes the one shard of a collection, and waits until it serves.
    pub(crate) fn take(&self, collection: &Collection) -> ShardKey {
        let held = self.reopen(collection);
        eventually(DEADLINE, "the shard to serve", || {
            held.serving().is_ok().then_some(())
        });
        (collection.name.clone(), Partition(0))
    }

    /// Takes it, and waits until it is open and knows where its topic ends.
    pub(crate) fn reopen(&self, collection: &Collection) -> Arc<Held> {
        let key = (collection.name.clone(), Partition(0));
        assert!(self.node.take_as(&key, &self.cluster_id, false).unwrap());
        let held = self.node.shard(&key).unwrap();
        eventually(DEADLINE, "the shard to open", || {
            held.opened().map(|shared| {
                let ends = self.log.watermarks(&home(collection), DEADLINE).unwrap();
                shared.lag.heard(0, shared.lag.now(), ends.high);
            })
        });
        held
    }

    /// Opens the folder of a shard that was let go, once its catalog's own threads have let go of it, too.
    pub(crate) fn offline(&self, collection: &Collection) -> Arc<Shared> {
        let folder = self.folder(collection);
        eventually(DEADLINE, "the folder is let go", || {
            match open_offline(&folder, System::shared()) {
                Err(OpenError::Catalog {
                    source: CatalogError::Held,
                    ..
                }) => None,
                opened => Some(opened.unwrap()),
            }
        })
    }

    /// Where the one shard of a collection keeps its files.
    pub(crate) fn folder(&self, collection: &Collection) -> PathBuf {
        let shards = self.folder.path().join("shards");
        shards.join(collection.name.as_str()).join("0")
    }
}

fn home(collection: &Collection) -> TopicPartition {
    TopicPartition {
        topic: collection.topic().into(),
        partition: Partition(0),
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.node.deps.tasks.cancel().cancel();
        self.node.let_go_of_all();
    }
}
