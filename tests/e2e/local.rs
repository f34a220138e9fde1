//! `shoal up`: one process and a Kafka of its own, which any client may use and which dies with it.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use shoal_runtime::eventually;
use shoal_schemas::v1;

use crate::harness::{
    DEADLINE,
    child::{self, Child},
    client, folder,
};

/// A `shoal up` and where it listens.
struct Up {
    child: Child,
    kafka: String,
    query: client::Query,
    gateway: client::Gateway,
}

fn variables(folder: &Path) -> Vec<(String, String)> {
    let data = folder.join("data").display().to_string();
    [
        ("SHOAL_LOCAL__DATA_DIR", data),
        ("SHOAL_LOCAL__KAFKA_HEAP_MIB", "320".to_owned()),
        ("SHOAL_TELEMETRY__FORMAT", "json".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn launch(folder: &Path, life: u32) -> Child {
    let log = folder.join(format!("up-{life}.log"));
    Child::shoal("shoal up", &["up", "--any-port"], &variables(folder), &log)
}

/// Starts it and waits until it says that it is ready.
fn up(folder: &Path, life: u32) -> Up {
    let mut child = launch(folder, life);
    eventually(DEADLINE, "`shoal up` to be ready", || {
        child.lives();
        child
            .output()
            .lines()
            .any(|line| line.starts_with("ready"))
            .then_some(())
    });
    let text = fs::read(folder.join("data/shoal.json")).unwrap();
    let running: Value = serde_json::from_slice(&text).unwrap();
    let address = |role: &str, kind: &str| -> SocketAddr {
        running[role][kind].as_str().unwrap().parse().unwrap()
    };
    Up {
        kafka: running["kafka"].as_str().unwrap().to_owned(),
        query: client::Query::to(address("query", "grpc"), address("query", "http")),
        gateway: client::Gateway::to(address("gateway", "grpc"), address("gateway", "http")),
        child,
    }
}

/// The process that runs Kafka below this folder.
fn kafka_pid(folder: &Path) -> Option<u32> {
    let settings = folder
        .join("data")
        .canonicalize()
        .ok()?
        .join("kafka/server.properties");
    let settings = settings.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        command.contains("kafka.Kafka") && command.contains(&settings)
    })
}

/// Whether that process is there and has not ended.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat")));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
}

fn count(up: &Up) -> u64 {
    let ask = v1::CountRequest {
        collection: "kept".to_owned(),
        read: client::at_least(&[]),
        ..v1::CountRequest::default()
    };
    up.query.count(ask).unwrap().points
}

#[test]
fn one_command_runs_everything_keeps_it_and_its_kafka_never_outlives_it() {
    let folder = folder::fresh("up");
    let first = up(&folder, 1);
    let kafka = kafka_pid(&folder).expect("Kafka runs as a child");

    // The verbs find a running `shoal up` by its data folder.
    let variables = variables(&folder);
    let create = [
        "collection",
        "create",
        "kept",
        "--dim",
        "4",
        "--metric",
        "cosine",
        "--partitions",
        "2",
    ];
    child::succeed(&create, &variables);
    // Any Kafka client publishes to it.
    let mut kcat = Command::new("kcat")
        .args([
            "-P",
            "-q",
            "-K",
            "|",
            "-b",
            &first.kafka,
            "-t",
            "embeddings.kept",
        ])
        .args(["-X", "partitioner=murmur2_random"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("setup/packages installs kcat");
    let mut input = kcat.stdin.take().unwrap();
    for number in 0..20 {
        writeln!(input, "k-{number}|{{\"vector\": [1, {number}, 0.5, 2]}}").unwrap();
    }
    drop(input);
    assert!(kcat.wait().unwrap().success());
    let point = v1::Point {
        id: "g".to_owned(),
        vector: vec![-1.0, 2.0, 3.0, 4.0],
        ..v1::Point::default()
    };
    let tokens = eventually(DEADLINE, "the gateway to know the collection", || {
        first.gateway.upsert("kept", vec![point.clone()]).ok()
    });
    let ask = v1::SearchRequest {
        read: client::at_least(&tokens),
        ..client::search("kept", &point.vector, 1)
    };
    let answer = eventually(DEADLINE, "the shards to serve", || {
        first.query.search(ask.clone()).ok()
    });
    assert_eq!(client::ids(&answer.hits), ["g"]);
    eventually(DEADLINE, "kcat's points to be there", || {
        (count(&first) == 21).then_some(())
    });

    // A second one on the same data is refused by name.
    let (status, _, told) = child::run(&["up", "--any-port"], &variables);
    assert!(!status.success());
    assert!(told.contains("in use by another `shoal up`"), "{told}");

    // Killed at once: Kafka is gone with it.
    assert!(runs(kafka));
    first.child.kill();
    eventually(DEADLINE, "Kafka to be gone", || {
        (!runs(kafka)).then_some(())
    });
    assert_eq!(kafka_pid(&folder), None);

    // Everything is still there.
    let second = up(&folder, 2);
    assert_eq!(count(&second), 21);
    assert_eq!(second.kafka, {
        let port = fs::read_to_string(folder.join("data/kafka/port")).unwrap();
        format!("127.0.0.1:{}", port.trim())
    });
    let kafka = kafka_pid(&folder).expect("Kafka runs as a child");
    let tokens = second.gateway.delete("kept", &["g"]).unwrap();
    let ask = v1::SearchRequest {
        read: client::at_least(&tokens),
        ..client::search("kept", &point.vector, 30)
    };
    assert_eq!(second.query.search(ask).unwrap().hits.len(), 20);

    // Ended in good order: Kafka too, and again nothing is lost.
    second.child.terminate();
    assert!(!runs(kafka));
    let third = up(&folder, 3);
    assert_eq!(count(&third), 20);
    third.child.terminate();
    assert_eq!(kafka_pid(&folder), None);
}

#[test]
fn killed_while_its_kafka_starts_it_leaves_no_kafka_behind() {
    let folder = folder::fresh("up-early");
    let mut child = launch(&folder, 1);
    let kafka = eventually(DEADLINE, "Kafka to be started", || {
        child.lives();
        kafka_pid(&folder)
    });
    child.kill();
    eventually(DEADLINE, "Kafka to be gone", || {
        (!runs(kafka)).then_some(())
    });
    assert_eq!(kafka_pid(&folder), None);
}
