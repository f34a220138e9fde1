//! Publishing over a real Apache Kafka.
//!
//! One broker serves every test that does not harm it; it dies with this process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusBuilder;
use shoal_producer::{
    PublishConfig, Publisher,
    dlq::{self, Correction, Filter},
    gateway,
    read::{self, Input, Rows},
    run::{Options, delete_all, publish_all},
};
use shoal_runtime::{
    ErrorKind,
    clock::{Stopwatch, System},
    eventually,
    http::Readiness,
    tasks::Tasks,
};
use shoal_schemas::{
    Collection, Metric, Offset, Partition, Payload, Point, PointId, Reason, Record, Rejection,
    Source, Vector,
    avro::{NoRegistry, WriterSchemas},
    event,
    headers::Meta,
    route,
    v1::{UpsertRequest, publish_client::PublishClient},
};
use shoal_topic::{
    Cleanup, Cluster, Deps, Start, TopicPartition, TopicSpec,
    broker::{BrokerOptions, LocalBroker},
    collections::{self, CreateError},
    control::{ControlHandle, ControlLog},
    kafka::{self, Config},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

const DEADLINE: Duration = Duration::from_secs(60);

struct Shared {
    broker: LocalBroker,
}

/// A folder of this process under the target folder. Nobody is left to drop what a static holds,
/// so the folders of test runs that have ended are removed by the next one.
fn folder() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("producer-broker");
    fs::create_dir_all(&all).unwrap();
    for run in fs::read_dir(&all).unwrap().flatten() {
        if !Path::new("/proc").join(run.file_name()).exists() {
            // Another run may be removing it too.
            let _gone = fs::remove_dir_all(run.path());
        }
    }
    all.join(std::process::id().to_string())
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let options = BrokerOptions::new(folder());
        let broker = LocalBroker::start(&options).unwrap_or_else(|error| panic!("{error}"));
        Shared { broker }
    })
}

/// A cluster and its control log.
struct World {
    cluster: Cluster,
    control: ControlHandle,
    tasks: Tasks,
}

impl World {
    fn on(bootstrap: &str) -> Self {
        let cluster = kafka::connect(&Config::to(bootstrap)).unwrap();
        ControlLog::ensure(&cluster, None).unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let control = ControlLog::spawn(&cluster, &tasks, System::shared()).unwrap();
        Self {
            cluster,
            control,
            tasks,
        }
    }

    async fn publisher(&self, collection: &Collection) -> Publisher {
        collections::create(&self.cluster, &self.control, collection.clone())
            .await
            .unwrap();
        let config = PublishConfig::default();
        let clock = System::shared();
        Publisher::new(&self.cluster, clock, collection.clone(), config)
            .await
            .unwrap()
    }

    /// Every record of a topic, by partition.
    fn records(&self, topic: &str, partitions: u32) -> Vec<(Partition, Offset, Record)> {
        let starts: Vec<(TopicPartition, Start)> = (0..partitions)
            .map(|partition| {
                let at = TopicPartition {
                    topic: topic.into(),
                    partition: Partition(partition),
                };
                (at, Start::Beginning)
            })
            .collect();
        let mut reader = self.cluster.connect.open_reader(&starts).unwrap();
        let mut ended = BTreeSet::new();
        let mut all = Vec::new();
        eventually(DEADLINE, "the ends of all partitions", || {
            let fetched = match reader.poll(4096, Duration::from_millis(200)) {
                Ok(fetched) => fetched,
                // A busy machine may have a connection time out; the reader goes on by itself.
                Err(error) if error.kind() == ErrorKind::Retry => return None,
                Err(error) => panic!("{error}"),
            };
            for found in fetched.records {
                all.push((starts[found.source].0.partition, found.offset, found.record));
            }
            ended.extend(fetched.ends.into_iter().map(|(source, _)| source));
            (ended.len() == starts.len()).then_some(())
        });
        all
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

fn collection(name: &str, dim: u32, partitions: u32) -> Collection {
    Collection::new(
        name.parse().unwrap(),
        dim.try_into().unwrap(),
        Metric::Cosine,
        partitions,
    )
}

fn point(first: f32) -> Point {
    Point {
        vector: Vector::new(&[first, 1.0], 2.try_into().unwrap(), Metric::Cosine).unwrap(),
        payload: Payload::default(),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    }
}

fn id(text: &str) -> PointId {
    PointId::new(text).unwrap()
}

fn data(name: &str) -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap())
        .join("../tests/data/wordnet20k")
        .join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_is_made_found_again_and_refused_where_a_topic_does_not_fit() {
    let world = World::on(&shared().broker.bootstrap());
    let made = collection("made", 8, 3);
    for first in [true, false] {
        let created = collections::create(&world.cluster, &world.control, made.clone()).await;
        assert_eq!(created.unwrap().created, first);
    }
    let home = world
        .cluster
        .admin
        .describe_topic("embeddings.made")
        .unwrap()
        .unwrap();
    assert_eq!((home.partitions, home.cleanup), (3, Cleanup::Compact));
    for (setting, value) in [
        ("cleanup.policy", "compact"),
        ("delete.retention.ms", "604800000"),
        ("message.timestamp.type", "CreateTime"),
        ("min.cleanable.dirty.ratio", "0.25"),
    ] {
        assert_eq!(home.settings[setting], value);
    }
    let letters = world
        .cluster
        .admin
        .describe_topic("shoal.dlq.embeddings.made")
        .unwrap()
        .unwrap();
    assert_eq!(letters.settings["cleanup.policy"], "delete");

    // As somebody makes it who knows nothing of Shoal.
    let foreign = |name: &str, settings: &[(&str, &str)]| {
        let settings = settings
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        let spec = TopicSpec {
            name: format!("embeddings.{name}"),
            partitions: 2,
            replication_factor: None,
            cleanup: Cleanup::Compact,
            settings: settings.collect::<BTreeMap<_, _>>(),
        };
        world.cluster.admin.create_topic(&spec).unwrap();
    };
    foreign("misfit", &[("cleanup.policy", "delete")]);
    let refused =
        collections::create(&world.cluster, &world.control, collection("misfit", 8, 3)).await;
    let CreateError::Misfit { faults, .. } = refused.unwrap_err() else {
        panic!("it was taken");
    };
    for told in [
        "it has 2 partitions",
        "cleanup.policy is `",
        "delete.retention.ms is 86400000",
    ] {
        assert!(
            faults.iter().any(|fault| fault.starts_with(told)),
            "{told}: {faults:?}"
        );
    }
    foreign("adopted", &[("delete.retention.ms", "604800000")]);
    let adopted = collection("adopted", 8, 2);
    assert!(
        collections::create(&world.cluster, &world.control, adopted)
            .await
            .unwrap()
            .created
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_shipped_data_arrives_once_where_its_key_belongs() {
    let world = World::on(&shared().broker.bootstrap());
    let docs = collection("wordnet", 384, 4);
    let publisher = world.publisher(&docs).await;
    let options = read::Options {
        metadata: Some(data("w_meta.jsonl.gz")),
        ..read::Options::default()
    };
    let input = Input::File(data("w_base_f16.npy"));
    let open = || read::open(&input, &docs, &options).unwrap();
    let cancel = CancellationToken::new();
    let summary = publish_all(&publisher, open(), &Options::default(), &cancel)
        .await
        .unwrap();
    let expected: BTreeMap<PointId, Point> = open().map(Result::unwrap).collect();
    assert_eq!(usize::try_from(summary.records).unwrap(), expected.len());
    let found = world.records("embeddings.wordnet", 4);
    assert_eq!(found.len(), expected.len());
    let mut last_versions = BTreeMap::new();
    for (partition, offset, record) in found {
        let id = PointId::from_key(record.key.as_deref()).unwrap();
        assert_eq!(partition, route::partition_of(&docs, &id));
        let value = record.value.as_deref().unwrap();
        let read = event::decode_value(&id, value, &docs, &NoRegistry).unwrap();
        assert_eq!(&read, &expected[&id], "{id}");
        let version = Meta::decode(&record).unwrap().version;
        let before = last_versions.insert(partition, (offset, version));
        assert!(before.is_none_or(|(at, before)| at < offset && before < version));
    }
    for (partition, (offset, version)) in last_versions {
        let token = &summary.tokens[&(docs.topic().into(), partition)];
        assert_eq!((token.offset, token.version), (offset, version));
        assert_eq!(token.cluster, world.cluster.writer.cluster_id().unwrap());
    }

    let gone: Vec<PointId> = expected.keys().take(100).cloned().collect();
    let ids = gone.clone().into_iter().map(Ok);
    let deleted = delete_all(&publisher, ids, &Options::default(), &cancel)
        .await
        .unwrap();
    assert_eq!(deleted.records, 100);
    let tombstones = world
        .records("embeddings.wordnet", 4)
        .into_iter()
        .filter(|(_, _, record)| record.value.is_none());
    assert_eq!(tombstones.count(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_and_put_back() {
    let world = World::on(&shared().broker.bootstrap());
    let docs = collection("letters", 2, 4);
    let publisher = world.publisher(&docs).await;
    let schemas: Arc<dyn WriterSchemas> = Arc::new(NoRegistry);
    let right = route::partition_of(&docs, &id("stray"));
    let source = Source {
        cluster: world.cluster.writer.cluster_id().unwrap(),
        topic: docs.name.topic().into(),
        partition: Partition((right.0 + 1) % 4),
    };
    for (offset, value, reason) in [
        (5, r#"{"vector": [1, 2]}"#, Reason::WrongPartition),
        (6, r#"{"vector": [1, 2, 3]}"#, Reason::WrongDimension),
    ] {
        let record = Record {
            key: Some("stray".into()),
            value: Some(value.into()),
            ..Record::default()
        };
        let rejection = Rejection::new(reason, "planted");
        let entry = shoal_schemas::dlq::entry(&record, &rejection, &source, Offset(offset), offset);
        let to = TopicPartition {
            topic: docs.name.dlq_topic().into(),
            partition: source.partition,
        };
        world
            .cluster
            .writer
            .send(&to, &entry)
            .unwrap()
            .await
            .unwrap();
    }
    let listed = dlq::list(&world.cluster, &docs.name, Filter::default())
        .await
        .unwrap();
    assert_eq!((listed.matched, listed.unreadable), (2, 0));
    assert_eq!(listed.entries[1].reason, Reason::WrongDimension);
    let retried = dlq::retry_all(&world.cluster, Filter::default(), &publisher, &schemas).await;
    assert_eq!((retried.done.len(), retried.refused.len()), (1, 1));
    let origin = &listed.entries[1].origin;
    let entry = dlq::show(&world.cluster, &docs.name, origin)
        .await
        .unwrap()
        .unwrap();
    let correction = Correction::Value(r#"{"vector": [3, 4]}"#.into());
    dlq::retry(&entry, correction, &publisher, &schemas)
        .await
        .unwrap();
    let found = world.records("embeddings.letters", 4);
    let places: Vec<(Partition, Offset)> = found
        .iter()
        .map(|(partition, offset, _)| (*partition, *offset))
        .collect();
    assert_eq!(places, [(right, Offset(0)), (right, Offset(1))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_and_the_gateway_go_on_after_the_broker_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let options = BrokerOptions::new(folder.path());
    let broker = LocalBroker::start(&options).unwrap();
    let world = World::on(&broker.bootstrap());
    let docs = collection("survives", 2, 2);
    let publisher = world.publisher(&docs).await;
    let deps = Deps {
        cluster: world.cluster.clone(),
        control: world.control.clone(),
        clock: System::shared(),
        schemas: Arc::new(NoRegistry),
        readiness: Readiness::default(),
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        tasks: world.tasks.clone(),
    };
    let any = "127.0.0.1:0".parse().unwrap();
    let config = gateway::Config {
        grpc_listen: any,
        http_listen: any,
        deadline: Duration::from_secs(1),
        ..gateway::Config::default()
    };
    let at = gateway::start(&config, &deps, None).await.unwrap();
    let mut client = PublishClient::connect(format!("http://{}", at.grpc))
        .await
        .unwrap();
    let upsert = || UpsertRequest {
        collection: "survives".into(),
        points: vec![point(1.0).to_proto(&id("by-gateway"))],
        conditions: Vec::new(),
    };
    client.upsert(upsert()).await.unwrap();

    let read = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&read);
    let rows = Rows::new(
        Some(6000),
        (0..6000_u32).map(move |n| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok((id(&n.to_string()), point(1.0)))
        }),
    );
    let paced = Options {
        rate_limit: Some(3000.0),
        ..Options::default()
    };
    let cancel = CancellationToken::new();
    let publishing = publish_all(&publisher, rows, &paced, &cancel);
    let harming = async {
        let read = Arc::clone(&read);
        let broker = shoal_runtime::tasks::blocking(move || {
            eventually(DEADLINE, "the run to be under way", || {
                (read.load(Ordering::SeqCst) > 2000).then_some(())
            });
            broker.kill();
        });
        broker.await;
        let watch = Stopwatch::start();
        let refused = client.upsert(upsert()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains("repeat the call"), "{refused}");
        assert!(
            watch.elapsed() < Duration::from_secs(20),
            "{:?}",
            watch.elapsed()
        );
        shoal_runtime::tasks::blocking(move || LocalBroker::start(&options).unwrap()).await
    };
    let (summary, broker) = tokio::join!(publishing, harming);
    let summary = summary.unwrap();
    assert_eq!((summary.records, summary.unacknowledged), (6000, 0));
    client.upsert(upsert()).await.unwrap();
    let found = world.records("embeddings.survives", 2);
    let keys: BTreeSet<Vec<u8>> = found
        .iter()
        .map(|(_, _, record)| record.key.as_ref().unwrap().to_vec())
        .collect();
    assert_eq!(keys.len(), 6001);
    let by_run = found
        .iter()
        .filter(|(_, _, record)| record.key.as_deref() != Some(b"by-gateway"));
    assert_eq!(by_run.count(), 6000, "each once");
    assert!(broker.is_running());
}
