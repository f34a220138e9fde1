//! An indexer as a process has it, over a log in memory: its gRPC service and its claims.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test")]

mod claims;
mod known;
mod pooled;

use std::{
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use metrics_exporter_prometheus::PrometheusHandle;
use shoal_indexer::{
    Addresses, Config,
    config::{EngineConfig, Ownership},
};
use shoal_runtime::{
    clock::{Stopwatch, System},
    eventually,
    http::Readiness,
    tasks::{Tasks, blocking},
    telemetry,
};
use shoal_schemas::{
    Collection, CollectionName, Metric, Offset, Partition, Record, ReplicaSet,
    avro::{LookupError, WriterSchema, WriterSchemas},
    control::{Claim, Entry, Key},
    v1,
};
use shoal_topic::{
    Cleanup, Deps, TopicPartition, TopicSpec,
    control::{ControlHandle, ControlLog},
    memory::MemoryLog,
};
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

const DEADLINE: Duration = Duration::from_secs(60);
const DIM: u32 = 8;
/// What one connection carries.
const CALLS: usize = 1000;

type Shard = v1::shard_client::ShardClient<Channel>;

struct World {
    log: MemoryLog,
    control: ControlHandle,
    tasks: Tasks,
    name: CollectionName,
    addresses: Addresses,
    _folder: tempfile::TempDir,
}

/// A schema registry that does not answer.
struct SilentRegistry;

impl WriterSchemas for SilentRegistry {
    fn by_id(&self, id: u32) -> Result<Arc<WriterSchema>, LookupError> {
        let source = "nobody answers".into();
        Err(LookupError::Unavailable { id, source })
    }
}

/// The recorder is one a process.
fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let made = || telemetry::install_metrics().unwrap();
    HANDLE.get_or_init(made).clone()
}

impl World {
    /// An indexer that owns the one shard of `docs`, with so many points in it.
    async fn start(points: u32) -> Self {
        Self::probing_every(points, Config::default().probe_interval).await
    }

    /// The same, which asks the broker for its ends so often.
    async fn probing_every(points: u32, probe_interval: Duration) -> Self {
        let world = Self::start_in(None, 1, points, probe_interval, None).await;
        world.claim(true).await;
        world
    }

    /// An indexer of a replica set, or one that owns the shard. If another node claimed the shard before, it never catches
    /// up: the last record's schema is not to be had.
    async fn start_in(
        replica_set: Option<ReplicaSet>,
        shards: u32,
        points: u32,
        probe_interval: Duration,
        claimed: Option<Claim>,
    ) -> Self {
        let log = MemoryLog::new("test-cluster", System::shared());
        let cluster = log.cluster();
        ControlLog::ensure(&cluster, None).unwrap();
        let collection = Collection::new(
            "docs".parse().unwrap(),
            DIM.try_into().unwrap(),
            Metric::L2,
            shards,
        );
        let name = collection.name.clone();
        for (topic, cleanup) in [
            (name.topic(), Cleanup::Compact),
            (name.dlq_topic(), Cleanup::Delete),
        ] {
            let spec = TopicSpec {
                name: topic,
                partitions: shards,
                replication_factor: None,
                cleanup,
                settings: [].into(),
            };
            cluster.admin.create_topic(&spec).unwrap();
        }
        let tasks = Tasks::new(CancellationToken::new());
        let control = ControlLog::spawn(&cluster, &tasks, System::shared()).unwrap();
        let defined = Entry::Collection(Box::new(collection));
        control
            .put(&Key::Collection(name.clone()), &defined)
            .await
            .unwrap();
        let to = |shard| partition(&name, shard);
        for number in 0..points {
            let record = record(format!("id-{number}"), &vector(number));
            let to = to(number % shards);
            cluster.writer.send(&to, &record).unwrap().await.unwrap();
        }
        if let Some(claim) = claimed {
            let record = Record {
                key: Some("late".into()),
                value: Some(Bytes::from_static(&[0, 0, 0, 0, 1, 0])),
                headers: Vec::new(),
                timestamp_ms: 1_700_000_000_000,
            };
            cluster.writer.send(&to(0), &record).unwrap().await.unwrap();
            let key = Key::Shard(name.clone(), Partition(0));
            control.put(&key, &Entry::Shard(claim)).await.unwrap();
        }
        let deps = Deps {
            cluster,
            control: control.clone(),
            clock: System::shared(),
            schemas: Arc::new(SilentRegistry),
            readiness: Readiness::default(),
            metrics: metrics(),
            tasks: tasks.clone(),
        };
        let folder = tempfile::tempdir().unwrap();
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            node: "node-1".into(),
            data_dir: folder.path().to_owned(),
            grpc_listen: free,
            http_listen: free,
            ownership: Ownership::Static { shards: Vec::new() },
            probe_interval,
            replica_set,
            engine: EngineConfig {
                search_threads: 1.try_into().unwrap(),
                ..EngineConfig::default()
            },
            ..Config::default()
        };
        let addresses = shoal_indexer::start(&config, &deps).await.unwrap();
        Self {
            log,
            control,
            tasks,
            name,
            addresses,
            _folder: folder,
        }
    }

    async fn put(&self, id: &'static str, vector: Vec<f32>) {
        let (to, record) = (partition(&self.name, 0), record(id, &vector));
        let writer = &self.log.cluster().writer;
        writer.send(&to, &record).unwrap().await.unwrap();
    }

    fn shard(&self) -> Shard {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addresses.grpc));
        Shard::new(endpoint.unwrap().connect_lazy()).max_decoding_message_size(64 << 20)
    }

    /// Waits for a claim of the shard that is ready or not.
    async fn claim(&self, ready: bool) -> Claim {
        self.claim_of(0, ready).await
    }

    async fn claim_of(&self, shard: u32, ready: bool) -> Claim {
        let (control, name) = (self.control.clone(), self.name.clone());
        let what = "a claim of the shard";
        let found = move || {
            let state = control.snapshot();
            let (claim, _) = state.owner(&name, Partition(shard))?;
            (claim.ready == ready).then(|| claim.clone())
        };
        blocking(move || eventually(DEADLINE, what, found)).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

fn record(id: impl Into<Bytes>, vector: &[f32]) -> Record {
    Record {
        key: Some(id.into()),
        value: Some(format!("{{\"vector\": {vector:?}}}").into()),
        headers: Vec::new(),
        timestamp_ms: 1_700_000_000_000,
    }
}

fn partition(name: &CollectionName, shard: u32) -> TopicPartition {
    TopicPartition {
        topic: name.topic().into(),
        partition: Partition(shard),
    }
}

fn vector(number: u32) -> Vec<f32> {
    let part = |at: u32| f32::from(u8::try_from((number >> (2 * at)) % 251).unwrap());
    (0..DIM).map(part).collect()
}

fn search(queries: Vec<v1::Query>) -> v1::SearchShardsRequest {
    v1::SearchShardsRequest {
        collection: "docs".into(),
        shards: vec![v1::ShardAsk::default()],
        queries,
        ..v1::SearchShardsRequest::default()
    }
}

fn query(number: u32, exact: bool) -> v1::Query {
    v1::Query {
        vector: vector(number),
        k: 3,
        exact,
        ..v1::Query::default()
    }
}

async fn nearest(shard: &mut Shard, number: u32, exact: bool) -> String {
    let answer = shard
        .search_shards(search(vec![query(number, exact)]))
        .await;
    let answer = answer.unwrap().into_inner().shards.remove(0);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer
        .results
        .first()
        .unwrap()
        .hits
        .first()
        .unwrap()
        .id
        .clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_serves_once_it_has_caught_up_however_seldom_the_broker_is_asked() {
    // The first time is when no shard is open yet; the second would be long after the deadline.
    let world = World::probing_every(20, DEADLINE * 60).await;
    assert_eq!(nearest(&mut world.shard(), 7, true).await, "id-7");
}

// On a runtime of one thread, which a search that is done where it was read must not upset.
#[tokio::test]
async fn searches_are_answered_alike_whatever_thread_they_run_on() {
    let world = World::start(300).await;
    let mut shard = world.shard();
    for number in 0..100 {
        let wanted = format!("id-{number}");
        assert_eq!(nearest(&mut shard, number, false).await, wanted);
    }
    let status = v1::ShardStatusRequest {
        collection: "docs".into(),
        shards: Vec::new(),
    };
    let status = shard.shard_status(status).await.unwrap().into_inner();
    assert_eq!(status.shards.first().unwrap().live_points, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_holds_a_thousand_calls() {
    let world = World::start(3).await;
    let mut shard = world.shard();
    // Each waits for a write that is made once all of them are there.
    let to_come = v1::Token {
        cluster_id: "test-cluster".into(),
        topic: world.name.topic(),
        offset: 3,
        key: "id-3".into(),
        ..v1::Token::default()
    };
    let calls = (0..CALLS - 1).map(|_| {
        let mut shard = shard.clone();
        let mut asked = search(vec![query(3, false)]);
        asked.shards = vec![v1::ShardAsk {
            shard: 0,
            at_least: vec![to_come.clone()],
        }];
        let mut request = Request::new(asked);
        request.set_timeout(DEADLINE);
        async move { shard.search_shards(request).await }
    });
    let mut held = pin!(unconstrained(join_all(calls)));
    let polled = poll_fn(|context| Poll::Ready(held.as_mut().poll(context).is_pending()));
    assert!(polled.await, "they wait");
    // Sent behind all the others, and answered while they are held.
    let status = v1::ShardStatusRequest {
        collection: "docs".into(),
        shards: Vec::new(),
    };
    let status = tokio::time::timeout(DEADLINE, shard.shard_status(status));
    tokio::select! {
        _ = held.as_mut() => panic!("nothing was written"),
        status = status => {
            let status = status.unwrap().unwrap().into_inner();
            assert_eq!(status.shards[0].live_points, 3);
        }
    }
    world.put("id-3", vector(3)).await;
    for answer in held.await {
        let answer = answer.unwrap().into_inner().shards.remove(0);
        assert_eq!(answer.code, 0, "{answer:?}");
        assert_eq!(answer.results[0].hits[0].id, "id-3");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_nobody_waits_for_any_more_is_given_up() {
    let world = World::start(3000).await;
    let mut shard = world.shard();
    let watch = Stopwatch::start();
    assert_eq!(nearest(&mut shard, 7, true).await, "id-7");
    let one_scan = watch.elapsed();
    // Whoever comes next waits for the only thread that searches: for seconds, if the first
    // caller's scans went on.
    let scans = 1000;
    for by_deadline in [true, false] {
        let mut request = Request::new(search(vec![query(1, true); 1000]));
        if by_deadline {
            request.set_timeout(one_scan * 5);
        }
        let mut first = shard.clone();
        let asked = first.search_shards(request);
        let gone = tokio::time::timeout(one_scan * 10, asked).await;
        if let Ok(answered) = gone {
            let code = answered.map(|answer| answer.into_inner().shards.remove(0).code);
            assert!(
                matches!(&code, Err(status) if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded))
                    || code
                        .as_ref()
                        .is_ok_and(|code| *code == i32::from(Code::DeadlineExceeded)),
                "{code:?}"
            );
        }
        let watch = Stopwatch::start();
        assert_eq!(nearest(&mut shard, 9, true).await, "id-9");
        assert!(
            watch.elapsed() < one_scan * (scans / 4),
            "{:?}",
            watch.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexer_of_a_replica_set_serves_and_leaves_to_the_owner_what_is_done_once() {
    let set: ReplicaSet = "b".parse().unwrap();
    let often = Config::default().probe_interval;
    let world = World::start_in(Some(set.clone()), 1, 5, often, None).await;
    // The owner is another node.
    let owner = Claim {
        node: "owner".into(),
        address: "127.0.0.1:1".into(),
        ready: true,
        next_offset: None,
        early: false,
    };
    let key = Key::Shard(world.name.clone(), Partition(0));
    let owned = world.control.put(&key, &Entry::Shard(owner)).await.unwrap();
    // A record that is refused, in front of one that is not.
    let to = TopicPartition {
        topic: world.name.topic().into(),
        partition: Partition(0),
    };
    for (key, value) in [
        ("bad", "{".to_owned()),
        ("good", format!("{{\"vector\": {:?}}}", vector(7))),
    ] {
        let record = Record {
            key: Some(Bytes::from(key)),
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: 1_700_000_000_000,
        };
        let writer = &world.log.cluster().writer;
        writer.send(&to, &record).unwrap().await.unwrap();
    }
    let (control, name) = (world.control.clone(), world.name.clone());
    let claimed = move || {
        let state = control.snapshot();
        let (claim, _) = state.claim(&name, Partition(0), Some(&set))?;
        let still = state.owner(&name, Partition(0))?.1;
        assert_eq!(still, owned, "it claims nothing that is the owner's");
        claim.ready.then(|| claim.node.clone())
    };
    let claimed = blocking(move || eventually(DEADLINE, "a claim of the set", claimed)).await;
    assert_eq!(claimed, "node-1");

    let mut shard = world.shard();
    // Behind the refused record, however it was refused.
    let ask = v1::ShardStatusRequest {
        collection: "docs".into(),
        shards: vec![v1::ShardAsk {
            shard: 0,
            at_least: vec![v1::Token {
                cluster_id: "test-cluster".into(),
                topic: world.name.topic(),
                offset: 6,
                key: "good".into(),
                ..v1::Token::default()
            }],
        }],
    };
    let answer = shard.shard_status(ask).await.unwrap().into_inner();
    let status = answer.shards.into_iter().next().unwrap();
    assert_eq!(status.code, 0, "{status:?}");
    assert_eq!((status.live_points, status.contested), (6, 1));
    let letters = TopicPartition {
        topic: world.name.dlq_topic().into(),
        partition: Partition(0),
    };
    let admin = world.log.cluster().admin;
    assert_eq!(
        admin.watermarks(&letters, DEADLINE).unwrap().high,
        Offset(0)
    );

    let change = v1::ResolveRequest {
        collection: "docs".into(),
        ..v1::ResolveRequest::default()
    };
    let refused = shard.resolve(change).await.unwrap().into_inner();
    assert_eq!(refused.code, i32::from(Code::FailedPrecondition));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_to_stay_in_another_region_is_not_made() {
    let world = World::start(1).await;
    let mut shard = world.shard();
    let patch = v1::PointPatch {
        id: "id-0".into(),
        unset: vec!["x".into()],
        ..v1::PointPatch::default()
    };
    let change = v1::PointChange {
        kind: Some(v1::point_change::Kind::Patch(patch)),
    };
    for (region, ends) in [("eu", 1), ("local", 2)] {
        let asked = v1::ResolveRequest {
            collection: "docs".into(),
            changes: vec![change.clone()],
            residency: region.into(),
            ..v1::ResolveRequest::default()
        };
        let mut answer = shard.resolve(asked).await.unwrap().into_inner();
        match answer.results.pop().unwrap().outcome.unwrap() {
            v1::write_result::Outcome::Failure(failure) => {
                assert_eq!(failure.code, i32::from(Code::FailedPrecondition));
                assert!(failure.message.contains("`eu`"), "{failure:?}");
                assert_eq!(region, "eu");
            }
            v1::write_result::Outcome::Token(_) => assert_eq!(region, "local"),
        }
        let home = TopicPartition {
            topic: world.name.topic().into(),
            partition: Partition(0),
        };
        let admin = world.log.cluster().admin;
        let end = admin.watermarks(&home, DEADLINE).unwrap().high;
        assert_eq!(end, Offset(ends), "{region}");
    }
}

/// Where the owner's claim of the first shard is, once it was read back.
async fn owned(world: &World) -> Offset {
    let (control, name) = (world.control.clone(), world.name.clone());
    let read_back = move || {
        let state = control.snapshot();
        state.owner(&name, Partition(0)).map(|(_, at)| *at)
    };
    blocking(move || eventually(DEADLINE, "the owner's claim", read_back)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_let_go_and_taken_again_at_once_is_not_in_its_own_way() {
    let world = World::start(3).await;
    let first = owned(&world).await;
    let state = world.control.snapshot();
    // Defined anew, it is another collection: the shard is let go and taken in one step.
    let again = state.collections.get(&world.name).unwrap().clone();
    let key = Key::Collection(world.name.clone());
    let again = Entry::Collection(Box::new(again));
    let defined = world.control.put(&key, &again).await.unwrap();
    assert!(defined > first);
    let (control, name) = (world.control.clone(), world.name.clone());
    let found = move || {
        let state = control.snapshot();
        let (claim, epoch) = state.owner(&name, Partition(0))?;
        (claim.ready && *epoch > defined).then_some(())
    };
    blocking(move || eventually(DEADLINE, "a claim of the new shard", found)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_another_node_serves_is_not_claimed_before_it_can_be_served_here() {
    let of_other = |ready| Claim {
        node: "other".into(),
        address: "127.0.0.1:1".into(),
        ready,
        next_offset: None,
        early: false,
    };
    let often = Config::default().probe_interval;
    let world = World::start_in(None, 1, 5, often, Some(of_other(true))).await;
    let control = world.control.clone();
    let served = owned(&world).await;
    // It is open, and lacks the last record.
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let opened = async {
        loop {
            ticks.tick().await;
            let status = v1::ShardStatusRequest {
                collection: "docs".into(),
                shards: vec![v1::ShardAsk::default()],
            };
            let Ok(told) = world.shard().shard_status(status).await else {
                continue;
            };
            let shard = told.into_inner().shards.remove(0);
            if shard.coverage.unwrap().error.contains("catching up") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, opened).await.unwrap();
    // Once the other one serves it no longer, it says that it restores it; and not before.
    let key = Key::Shard(world.name.clone(), Partition(0));
    let let_go = Entry::Shard(of_other(false));
    let let_go = control.put(&key, &let_go).await.unwrap();
    assert_eq!(let_go.0, served.0 + 1, "nobody claimed it in between");
    let found = {
        let (control, name) = (control.clone(), world.name.clone());
        move || {
            let state = control.snapshot();
            let (claim, _) = state.owner(&name, Partition(0))?;
            (claim.node == "node-1").then(|| claim.clone())
        }
    };
    let claim = blocking(move || eventually(DEADLINE, "a claim", found)).await;
    assert!(!claim.ready);
}
