//! A query node without Kafka: its shard map is a file that somebody else keeps.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shoal_query::{
    Addresses, Config,
    source::{
        self, Source,
        document::{ClaimLine, Document},
    },
};
use shoal_runtime::{clock::System, http::Readiness, tasks::Tasks};
use shoal_schemas::{Collection, Offset, Partition, avro::NoRegistry, v1};
use shoal_topic::{Cluster, Deps, control::ControlHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Endpoint};

use crate::{
    indexer::Indexer,
    world::{self, CLUSTER, collection, fill, near_origin, wait},
};

struct Lone {
    tasks: Tasks,
    readiness: Readiness,
    addresses: Addresses,
    path: PathBuf,
    folder: tempfile::TempDir,
}

impl Drop for Lone {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

impl Lone {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.json");
        let tasks = Tasks::new(CancellationToken::new());
        let deps = Deps {
            cluster: Cluster::absent(),
            control: ControlHandle::absent(),
            clock: System::shared(),
            schemas: Arc::new(NoRegistry),
            readiness: Readiness::default(),
            metrics: world::metrics(),
            tasks: tasks.clone(),
        };
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            grpc_listen: free,
            http_listen: free,
            map: source::Config {
                source: Source::File,
                path: Some(path.clone()),
                poll: Duration::from_millis(10),
                ..source::Config::default()
            },
            ..Config::default()
        };
        let addresses = shoal_query::start(&config, &deps).await.unwrap();
        Self {
            tasks,
            readiness: deps.readiness,
            addresses,
            path,
            folder,
        }
    }

    fn search(&self) -> world::Search {
        let at = format!("http://{}", self.addresses.grpc);
        world::Search::new(Endpoint::from_shared(at).unwrap().connect_lazy())
    }

    /// A ConfigMap as Kubernetes mounts it: the file is a link through a link that is swapped.
    fn mount(&self, version: &str, content: &str) {
        let data = self.folder.path().join(version);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("map.json"), content).unwrap();
        let swapped = self.folder.path().join("..data");
        let beside = self.folder.path().join("..data_tmp");
        let before = fs::read_link(&swapped).ok();
        symlink(version, &beside).unwrap();
        fs::rename(&beside, &swapped).unwrap();
        // What nobody is led to any more goes at once.
        if let Some(before) = before {
            fs::remove_dir_all(self.folder.path().join(before)).unwrap();
        }
        if !self.path.is_symlink() {
            symlink(Path::new("..data/map.json"), &self.path).unwrap();
        }
    }
}

fn document(docs: &Collection, owner: &Indexer, epoch: u64) -> String {
    let claims = (0..docs.partitions).map(|shard| ClaimLine {
        collection: docs.name.clone(),
        shard: Partition(shard),
        set: None,
        node: owner.name.clone(),
        address: owner.address.to_string(),
        ready: true,
        early: false,
        epoch: Offset(epoch),
    });
    let document = Document {
        format: 1,
        cluster: Some(CLUSTER.into()),
        collections: vec![docs.clone()],
        claims: claims.collect(),
        aliases: BTreeMap::new(),
        nodes: BTreeMap::new(),
    };
    serde_json::to_string(&document).unwrap()
}

async fn hosting(name: &str, docs: &Collection, tasks: &Tasks) -> Indexer {
    let indexer = Indexer::start(name, tasks).await;
    for shard in 0..docs.partitions {
        indexer.node.host(docs, Partition(shard));
    }
    indexer
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_move_with_a_swapped_config_map_and_no_query_fails() {
    let lone = Lone::start().await;
    wait(
        || {
            let waiting = lone.readiness.waiting();
            (waiting.iter())
                .any(|why| why.contains("map.json"))
                .then_some(())
        },
        "the missing file to be told",
    );
    let docs = collection("docs", 2);
    let first = hosting("first", &docs, &lone.tasks).await;
    let second = hosting("second", &docs, &lone.tasks).await;
    for one in [&first, &second] {
        fill(std::slice::from_ref(one), &docs, 10);
    }
    lone.mount("v1", &document(&docs, &first, 1));
    wait(
        || lone.readiness.waiting().is_empty().then_some(()),
        "the map to be read",
    );
    // Queries without a pause, all of them whole, until both have been asked after the swap.
    let (client, stop) = (lone.search(), CancellationToken::new());
    let (ask, stopped) = (near_origin(&docs, 3), stop.clone());
    let mut steady = tokio::task::JoinSet::new();
    steady.spawn(async move {
        let mut answered = 0_u32;
        while !stopped.is_cancelled() {
            let request = v1::SearchRequest {
                read: world::read(&[], true),
                ..ask.clone()
            };
            let found = client.clone().search(request).await.unwrap().into_inner();
            assert_eq!(found.hits.len(), 3);
            answered += 1;
        }
        answered
    });
    let is_asked = |one: &Indexer, above: usize| (one.seen().len() > above).then_some(());
    wait(|| is_asked(&first, 20), "queries at the first");
    lone.mount("v2", &document(&docs, &second, 2));
    wait(|| is_asked(&second, 20), "queries at the second");
    lone.mount("v3", &document(&docs, &first, 3));
    let before = first.seen().len();
    wait(
        || is_asked(&first, before + 20),
        "queries at the first again",
    );
    stop.cancel();
    let answered: u32 = steady.join_all().await.into_iter().sum();
    assert!(answered > 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_keeps_the_last_good_map_and_says_so() {
    let lone = Lone::start().await;
    let docs = collection("docs", 1);
    let indexer = hosting("first", &docs, &lone.tasks).await;
    let tokens = fill(std::slice::from_ref(&indexer), &docs, 5);
    let good = document(&docs, &indexer, 1);
    fs::write(&lone.path, &good).unwrap();
    wait(
        || lone.readiness.waiting().is_empty().then_some(()),
        "the map to be read",
    );
    assert!(lone.readiness.noted().is_empty());
    fs::write(&lone.path, &good[..good.len() / 2]).unwrap();
    let noted = wait(
        || lone.readiness.noted().into_iter().next(),
        "the broken file to be told",
    );
    assert!(
        noted.contains("last good one") && noted.contains("map.json"),
        "{noted}"
    );
    assert!(lone.readiness.waiting().is_empty(), "it goes on serving");
    let request = v1::SearchRequest {
        // The file names the cluster, so tokens hold.
        read: world::read(&tokens, true),
        ..near_origin(&docs, 5)
    };
    let found = lone.search().search(request).await.unwrap().into_inner();
    assert_eq!(found.hits.len(), 5);
    fs::remove_file(&lone.path).unwrap();
    wait(
        || {
            let noted = lone.readiness.noted();
            noted
                .iter()
                .any(|one| one.contains("cannot read"))
                .then_some(())
        },
        "the missing file to be told",
    );
    fs::write(&lone.path, &good).unwrap();
    wait(
        || lone.readiness.noted().is_empty().then_some(()),
        "the good file to be read",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_kafka_changes_no_collection_and_says_why() {
    let lone = Lone::start().await;
    let docs = collection("docs", 1);
    let indexer = hosting("first", &docs, &lone.tasks).await;
    fs::write(&lone.path, document(&docs, &indexer, 1)).unwrap();
    wait(
        || lone.readiness.waiting().is_empty().then_some(()),
        "the map to be read",
    );
    let at = format!("http://{}", lone.addresses.grpc);
    let channel = Endpoint::from_shared(at).unwrap().connect_lazy();
    let mut collections = world::Collections::new(channel);
    let create = v1::CreateCollectionRequest {
        collection: Some(collection("more", 1).to_proto()),
    };
    let refused = collections.create_collection(create).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("no Kafka"), "{refused}");
    let drop = v1::DropCollectionRequest {
        name: "docs".to_owned(),
        delete_topic: false,
    };
    let refused = collections.drop_collection(drop).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let listed = collections
        .list_collections(v1::ListCollectionsRequest {})
        .await
        .unwrap();
    assert_eq!(listed.into_inner().collections.len(), 1);
}
