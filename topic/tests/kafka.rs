//! The seam over a real Apache Kafka and a real schema registry.
//!
//! One broker serves every test that does not harm it; it dies with this process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../src/kafka/plain_client.rs"]
mod plain_client;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use shoal_runtime::{clock::System, eventually, tasks::Tasks};
use shoal_schemas::{
    Collection, Metric, Offset, Partition, Record,
    avro::{LookupError, SCHEMA_JSON, WriterSchemas},
    control::{Entry, Key},
};
use shoal_topic::{
    Cleanup, Cluster, Fetched, ReadError, Reader, Start, TopicPartition, TopicSpec, WriteError,
    broker::{BrokerOptions, LocalBroker, RegistryOptions, SchemaRegistry},
    conformance::{self, Fixture},
    control::ControlLog,
    kafka::{self, Config},
    registry::{Registry, RegistryError},
};
use tokio_util::sync::CancellationToken;

use plain_client::{Transactions, delete_before};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

struct Shared {
    broker: LocalBroker,
}

/// A folder of this process under the target folder. Nobody is left to drop what a static holds,
/// so the folders of test runs that have ended are removed by the next one.
fn folder() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("topic-kafka");
    fs::create_dir_all(&all).unwrap();
    for run in fs::read_dir(&all).unwrap().flatten() {
        let pid = run.file_name();
        if !Path::new("/proc").join(&pid).exists() {
            // Another run may be removing it too.
            let _gone = fs::remove_dir_all(run.path());
        }
    }
    all.join(std::process::id().to_string())
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let mut options = BrokerOptions::new(folder());
        // Compaction within a test's patience.
        for (key, value) in [
            ("log.cleaner.backoff.ms", "100"),
            ("log.initial.task.delay.ms", "100"),
        ] {
            options.settings.insert(key.into(), value.into());
        }
        let broker = LocalBroker::start(&options).unwrap_or_else(|error| panic!("{error}"));
        Shared { broker }
    })
}

fn config() -> Config {
    Config::to(shared().broker.bootstrap())
}

fn connect(config: &Config) -> Cluster {
    kafka::connect(config).unwrap()
}

fn make(cluster: &Cluster, name: &str, settings: &[(&str, &str)]) -> TopicPartition {
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
    };
    cluster.admin.create_topic(&spec).unwrap();
    TopicPartition {
        topic: name.into(),
        partition: Partition(0),
    }
}

fn keyed(key: &str, value: &str) -> Record {
    Record {
        key: Some(key.to_owned().into()),
        value: Some(value.to_owned().into()),
        ..Record::default()
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, future).await.unwrap() })
}

fn append(cluster: &Cluster, at: &TopicPartition, record: &Record) -> Offset {
    wait(cluster.writer.send(at, record).unwrap())
        .unwrap()
        .offset
}

/// Polls until `enough`, over errors that say "try again".
fn read_until(reader: &mut dyn Reader, what: &str, enough: impl Fn(&Fetched) -> bool) -> Fetched {
    let mut all = Fetched::default();
    eventually(DEADLINE, what, || {
        match reader.poll(1000, POLL) {
            Ok(fetched) => {
                all.records.extend(fetched.records);
                all.ends.extend(fetched.ends);
            }
            Err(error) => assert!(matches!(error, ReadError::Unreachable { .. }), "{error}"),
        }
        enough(&all).then(|| std::mem::take(&mut all))
    })
}

/// Appends until the broker's cleaner has taken all but one record of the first key.
fn compact(cluster: &Cluster, topic: &str) {
    let at = TopicPartition {
        topic: topic.into(),
        partition: Partition(0),
    };
    eventually(DEADLINE, "the broker to compact", || {
        // A new record rolls the segment; only closed ones are compacted.
        append(cluster, &at, &keyed("roll", "v"));
        let starts = [(at.clone(), Start::Beginning)];
        let mut reader = cluster.connect.open_reader(&starts).unwrap();
        let all = read_until(&mut *reader, "the end", |all| !all.ends.is_empty());
        let first = all.records.first()?.record.key.clone();
        let same = all
            .records
            .iter()
            .filter(|found| found.record.key == first)
            .count();
        (same == 1).then_some(())
    });
}

#[test]
fn kafka_conforms() {
    let cluster = connect(&config());
    let compacting = cluster.clone();
    let fixture = Fixture {
        small_queue: connect(&Config {
            queue_records: 50,
            ..config()
        }),
        cluster,
        compact: Some(Box::new(move |topic| compact(&compacting, topic))),
    };
    conformance::all(&fixture, "conformance");
}

#[test]
fn an_end_behind_transaction_markers_is_the_brokers_own() {
    let cluster = connect(&config());
    let at = make(&cluster, "markers", &[]);
    let foreign = Transactions::new(&shared().broker.bootstrap(), "markers").unwrap();
    let send = |value: &str, commit: bool| foreign.write("markers", value, commit).unwrap();
    let mut reader = cluster
        .connect
        .open_reader(&[(at.clone(), Start::Beginning)])
        .unwrap();
    send("kept", true);
    let all = read_until(&mut *reader, "the marker's end", |all| {
        all.ends.last() == Some(&(0, Offset(2)))
    });
    assert_eq!(all.records.len(), 1);
    send("thrown away", false);
    let all = read_until(&mut *reader, "the aborted one's end", |all| {
        all.ends.last() == Some(&(0, Offset(4)))
    });
    assert_eq!(all.records, vec![], "an aborted record is not read");
    send("kept", true);
    let all = read_until(&mut *reader, "the last end", |all| {
        all.ends.last() == Some(&(0, Offset(6)))
    });
    assert_eq!(all.records[0].offset, Offset(4));
    let mut late = cluster
        .connect
        .open_reader(&[(at, Start::At(Offset(5)))])
        .unwrap();
    let all = read_until(&mut *late, "an end right away", |all| !all.ends.is_empty());
    assert_eq!((all.records.len(), all.ends), (0, vec![(0, Offset(6))]));
}

#[test]
fn what_retention_took_is_out_of_range_and_the_beginning_is_the_oldest_left() {
    let cluster = connect(&config());
    let spec = TopicSpec {
        name: "retention".into(),
        partitions: 1,
        replication_factor: None,
        cleanup: Cleanup::Delete,
        settings: BTreeMap::new(),
    };
    cluster.admin.create_topic(&spec).unwrap();
    let at = TopicPartition {
        topic: "retention".into(),
        partition: Partition(0),
    };
    for i in 0..10 {
        append(&cluster, &at, &keyed(&i.to_string(), "v"));
    }
    let bootstrap = shared().broker.bootstrap();
    wait(delete_before(&bootstrap, "retention", 6)).unwrap();
    assert_eq!(
        cluster.admin.watermarks(&at, DEADLINE).unwrap().low,
        Offset(6)
    );

    let mut reader = cluster
        .connect
        .open_reader(&[(at.clone(), Start::At(Offset(2)))])
        .unwrap();
    let failed = eventually(DEADLINE, "out of range", || reader.poll(10, POLL).err());
    assert!(
        matches!(
            failed,
            ReadError::OutOfRange {
                offset: Offset(2),
                ..
            }
        ),
        "{failed}"
    );
    let mut reader = cluster
        .connect
        .open_reader(&[(at, Start::Beginning)])
        .unwrap();
    let all = read_until(&mut *reader, "what is left", |all| all.records.len() == 4);
    assert_eq!(all.records[0].offset, Offset(6));
}

#[test]
fn an_absent_broker_is_unreachable_and_connecting_does_not_wait_for_it() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let cluster = connect(&Config {
        request_timeout: Duration::from_millis(500),
        delivery_timeout: Duration::from_secs(1),
        ..Config::to(format!("127.0.0.1:{port}"))
    });
    let at = TopicPartition {
        topic: "any".into(),
        partition: Partition(0),
    };
    let mut reader = cluster
        .connect
        .open_reader(&[(at.clone(), Start::Beginning)])
        .unwrap();
    for _ in 0..2 {
        let failed = eventually(DEADLINE, "unreachable", || reader.poll(10, POLL).err());
        assert!(matches!(failed, ReadError::Unreachable { .. }), "{failed}");
    }
    assert!(cluster.admin.watermarks(&at, POLL).is_err());
    assert!(cluster.admin.cluster_id().is_err());
    let unsent = wait(cluster.writer.send(&at, &keyed("k", "v")).unwrap()).unwrap_err();
    assert!(matches!(unsent, WriteError::Unreachable { .. }), "{unsent}");
}

#[test]
fn a_killed_broker_comes_back_with_all_it_acknowledged_and_clients_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = BrokerOptions::new(folder.path());
    let broker = LocalBroker::start(&options).unwrap();
    let bootstrap = broker.bootstrap();
    let cluster = connect(&Config::to(&bootstrap));
    let at = make(&cluster, "survives", &[]);
    let mut reader = cluster
        .connect
        .open_reader(&[(at.clone(), Start::Beginning)])
        .unwrap();
    for i in 0..100 {
        append(&cluster, &at, &keyed(&i.to_string(), "before"));
    }
    broker.kill();
    let queued: Vec<_> = (100..200)
        .map(|i| {
            cluster
                .writer
                .send(&at, &keyed(&i.to_string(), "meanwhile"))
                .unwrap()
        })
        .collect();
    let mut read = 0;
    eventually(DEADLINE, "the reader to notice", || {
        match reader.poll(1000, POLL) {
            Ok(fetched) => {
                read += fetched.records.len();
                None
            }
            Err(error) => {
                assert!(matches!(error, ReadError::Unreachable { .. }), "{error}");
                Some(())
            }
        }
    });
    let broker = LocalBroker::start(&options).unwrap();
    assert_eq!(broker.bootstrap(), bootstrap, "the same port as before");
    for (i, delivery) in (100..).zip(queued) {
        assert_eq!(
            wait(delivery).unwrap().offset,
            Offset(i),
            "once each, in order"
        );
    }
    let all = read_until(&mut *reader, "all records", |all| {
        read + all.records.len() >= 200
    });
    assert_eq!(read + all.records.len(), 200);
    assert!(broker.stop(), "it ends by itself when asked to");
}

#[test]
fn the_control_log_is_kept_by_the_broker() {
    let cluster = connect(&config());
    ControlLog::ensure(&cluster, None).unwrap();
    ControlLog::ensure(&cluster, None).unwrap();
    let tasks = Tasks::new(CancellationToken::new());
    let control = ControlLog::spawn(&cluster, &tasks, System::shared()).unwrap();
    control.caught_up_blocking(DEADLINE).unwrap();
    let name: shoal_schemas::CollectionName = "docs".parse().unwrap();
    let dim = 384.try_into().unwrap();
    let entry = Entry::Collection(Box::new(Collection::new(name.clone(), dim, Metric::L2, 4)));
    let put = control
        .put_blocking(&Key::Collection(name.clone()), &entry)
        .unwrap();
    assert!(
        control
            .wait_for_blocking(put, DEADLINE)
            .unwrap()
            .collections
            .contains_key(&name)
    );
    let removed = control
        .remove_blocking(&Key::Collection(name.clone()))
        .unwrap();
    let late = ControlLog::spawn(&cluster, &tasks, System::shared()).unwrap();
    let state = late.wait_for_blocking(removed, DEADLINE).unwrap();
    assert!(state.collections.is_empty());
    tasks.cancel().cancel();
}

#[test]
fn schemas_are_registered_and_found_by_id() {
    let folder = tempfile::tempdir().unwrap();
    let server = SchemaRegistry::start(&RegistryOptions::new(folder.path()))
        .unwrap_or_else(|error| panic!("{error}"));
    let registry = Registry::new(&server.url(), System::shared()).unwrap();
    let id = registry
        .register_blocking("embeddings.docs-value", SCHEMA_JSON)
        .unwrap();
    let again = wait(registry.register("embeddings.docs-value", SCHEMA_JSON)).unwrap();
    assert_eq!(id, again, "the same schema has one id");
    assert!(registry.by_id(id).unwrap().is_ours());
    let unknown = registry.by_id(987_654).unwrap_err();
    assert!(
        matches!(unknown, LookupError::Unknown { id: 987_654, .. }),
        "{unknown}"
    );
    let refused = registry
        .register_blocking("s", "{\"type\": \"nonsense\"}")
        .unwrap_err();
    assert!(
        matches!(refused, RegistryError::Refused { .. }),
        "{refused}"
    );
    server.kill();
    assert!(
        registry.by_id(id).is_ok(),
        "what is known needs no registry"
    );
    let silent = registry.by_id(id + 1).unwrap_err();
    assert!(
        matches!(silent, LookupError::Unavailable { .. }),
        "{silent}"
    );
}

#[test]
fn the_broker_dies_with_its_parent_however_that_ends() {
    let folder = tempfile::tempdir().unwrap();
    let example = std::env::current_exe().unwrap();
    let example = example
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples/local_broker");
    let mut parent = Command::new(example)
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let (bootstrap, pid) = line.trim().split_once(' ').expect("an address and a pid");
    let status = format!("/proc/{pid}/cmdline");
    assert!(String::from_utf8_lossy(&fs::read(&status).unwrap()).contains("kafka.Kafka"));
    assert!(connect(&Config::to(bootstrap)).admin.list_topics().is_ok());
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually(DEADLINE, "the broker to be gone", || {
        fs::read(&status)
            .map_or(true, |line| line.is_empty())
            .then_some(())
    });
}

#[test]
fn a_broker_that_cannot_start_shows_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = BrokerOptions::new(folder.path());
    options
        .settings
        .insert("num.io.threads".into(), "none".into());
    let failed = LocalBroker::start(&options).err().unwrap().to_string();
    assert!(failed.contains("num.io.threads"), "{failed}");
    assert!(failed.contains(".log"), "{failed}");
}
