//! A whole small world: a log in memory, a query node on the loopback, and indexers behind it.

use std::{future::Future, net::SocketAddr, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use shoal_query::{Addresses, Config, cache};
use shoal_runtime::{
    clock::{Clock as _, System},
    eventually,
    http::Readiness,
    tasks::Tasks,
    telemetry,
};
use shoal_schemas::{
    Collection, Metric, Offset, Partition, Payload, Point, PointId, Token, Value, Vector, Version,
    avro::NoRegistry,
    control::{Claim, Entry, Key},
    v1,
};
use shoal_topic::{
    Deps,
    collections::{self, Taken},
    control::{ControlHandle, ControlLog},
    memory::MemoryLog,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::indexer::Indexer;

/// The id of the cluster in memory.
pub const CLUSTER: &str = "home-cluster";
/// How long anything may take that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub type Search = v1::search_client::SearchClient<Channel>;
pub type Collections = v1::collections_client::CollectionsClient<Channel>;

pub struct World {
    pub log: MemoryLog,
    pub control: ControlHandle,
    pub tasks: Tasks,
    pub readiness: Readiness,
    pub addresses: Addresses,
    pub http: reqwest::Client,
    channel: Channel,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

/// The recorder is one a process.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| telemetry::install_metrics().unwrap())
        .clone()
}

impl World {
    /// A query node that has read the control topic.
    pub async fn start() -> Self {
        let world = Self::start_with(Config::default(), true).await;
        let readiness = world.readiness.clone();
        wait(
            || readiness.waiting().is_empty().then_some(()),
            "the query node to be ready",
        );
        world
    }

    /// A query node with these settings; its control topic may not be there yet.
    pub async fn start_with(config: Config, has_control_topic: bool) -> Self {
        let log = MemoryLog::new(CLUSTER, System::shared());
        let cluster = log.cluster();
        if has_control_topic {
            ControlLog::ensure(&cluster, None).unwrap();
        }
        let tasks = Tasks::new(CancellationToken::new());
        let control = ControlLog::spawn(&cluster, &tasks, System::shared()).unwrap();
        let deps = Deps {
            cluster,
            control: control.clone(),
            clock: System::shared(),
            schemas: std::sync::Arc::new(NoRegistry),
            readiness: Readiness::default(),
            metrics: metrics(),
            tasks: tasks.clone(),
        };
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            grpc_listen: free,
            http_listen: free,
            // Tests count what indexers are asked; `kept.rs` shows what equal calls share.
            cache: cache::Config {
                share: false,
                ..config.cache
            },
            ..config
        };
        let addresses = shoal_query::start(&config, &deps).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", addresses.grpc))
            .unwrap()
            .connect_lazy();
        Self {
            log,
            control,
            tasks,
            readiness: deps.readiness,
            addresses,
            http: reqwest::Client::new(),
            channel,
        }
    }

    pub fn search(&self) -> Search {
        Search::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn collections(&self) -> Collections {
        Collections::new(self.channel.clone())
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.http)
    }

    pub async fn indexer(&self, name: &str) -> Indexer {
        Indexer::start(name, &self.tasks).await
    }

    /// Writes a definition and waits until the query node knows it.
    pub async fn define(&self, collection: &Collection) {
        let key = Key::Collection(collection.name.clone());
        let entry = Entry::Collection(Box::new(collection.clone()));
        self.control.put(&key, &entry).await.unwrap();
        let name = collection.name.as_str();
        self.until("the definition to be known", async || {
            self.owners(name).await.map(drop)
        })
        .await;
    }

    /// Has a name stand for a collection, also in place of one of that name, and waits until the query
    /// node knows it.
    pub async fn alias(&self, name: &str, target: &Collection) {
        let (name, target) = (name.parse().unwrap(), target.name.clone());
        collections::set_alias(&self.control, &name, &target, Taken::Shadow)
            .await
            .unwrap();
        self.until("the alias to be known", async || {
            let mut client = self.collections();
            let all = client.list_aliases(v1::ListAliasesRequest {}).await.ok()?;
            let mut aliases = all.into_inner().aliases.into_iter();
            aliases.find(|one| one.name == name.as_str() && one.collection == target.as_str())
        })
        .await;
    }

    /// Writes a claim and waits until the query node knows it.
    pub async fn claim(&self, collection: &Collection, shard: u32, by: &Indexer, ready: bool) {
        let epoch = put_claim(&self.control, collection, shard, by, ready).await;
        let name = collection.name.as_str();
        self.until("the claim to be known", async || {
            let owners = self.owners(name).await?;
            let owner = owners.iter().find(|owner| owner.shard == shard)?;
            (owner.epoch >= epoch.0).then_some(())
        })
        .await;
    }

    /// A new indexer with all shards, and their claims: the owner's or those of a replica set.
    pub async fn replica(&self, collection: &Collection, set: Option<&str>) -> Indexer {
        let name = set.map_or("owner".to_owned(), |set| format!("node-of-{set}"));
        let indexer = self.indexer(&name).await;
        for shard in 0..collection.partitions {
            indexer.node.host(collection, Partition(shard));
            self.claim_in(collection, shard, set, &indexer).await;
        }
        indexer
    }

    /// Writes a claim of a replica set and waits until the query node knows it.
    pub async fn claim_in(
        &self,
        collection: &Collection,
        shard: u32,
        set: Option<&str>,
        by: &Indexer,
    ) {
        let claim = claim_by(by, true);
        self.announce(collection, shard, set, claim).await;
    }

    /// The same of a node that answers although it has not caught up.
    pub async fn claim_early(
        &self,
        collection: &Collection,
        shard: u32,
        set: Option<&str>,
        by: &Indexer,
    ) {
        let mut claim = claim_by(by, true);
        if let Entry::Shard(claim) = &mut claim {
            claim.early = true;
        }
        self.announce(collection, shard, set, claim).await;
    }

    async fn announce(&self, collection: &Collection, shard: u32, set: Option<&str>, claim: Entry) {
        let name = collection.name.clone();
        let key = match set {
            None => Key::Shard(name, Partition(shard)),
            Some(set) => Key::Replica(name, Partition(shard), set.parse().unwrap()),
        };
        let epoch = (self.control.put(&key, &claim).await).unwrap();
        self.until("the claim to be known", async || {
            let owners = self.owners(collection.name.as_str()).await?;
            let owner = owners.iter().find(|owner| owner.shard == shard)?;
            let mut replicas = owner.replicas.iter();
            replicas.any(|one| one.epoch == epoch.0).then_some(())
        })
        .await;
    }

    /// A collection whose shards are spread over new indexers, one each.
    pub async fn spread(&self, collection: &Collection) -> Vec<Indexer> {
        self.define(collection).await;
        let mut indexers = Vec::new();
        for shard in 0..collection.partitions {
            let indexer = self.indexer(&format!("node-{shard}")).await;
            indexer.node.host(collection, Partition(shard));
            self.claim(collection, shard, &indexer, true).await;
            indexers.push(indexer);
        }
        indexers
    }

    async fn owners(&self, collection: &str) -> Option<Vec<v1::ShardOwner>> {
        let request = v1::GetCollectionRequest {
            name: collection.to_owned(),
        };
        let answer = self.collections().get_collection(request).await;
        Some(answer.ok()?.into_inner().shards)
    }

    /// Asks until there is something.
    pub async fn until<T>(&self, what: &str, mut state: impl AsyncFnMut() -> Option<T>) -> T {
        block(|runtime| eventually(PATIENCE, what, || runtime.block_on(state())))
    }
}

/// Waits without keeping the runtime from its work.
pub fn wait<T>(state: impl FnMut() -> Option<T>, what: &str) -> T {
    block(|_| eventually(PATIENCE, what, state))
}

fn block<T>(work: impl FnOnce(&tokio::runtime::Handle) -> T) -> T {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| work(&runtime))
}

pub async fn put_claim(
    control: &ControlHandle,
    collection: &Collection,
    shard: u32,
    by: &Indexer,
    ready: bool,
) -> Offset {
    let key = Key::Shard(collection.name.clone(), Partition(shard));
    control.put(&key, &claim_by(by, ready)).await.unwrap()
}

fn claim_by(indexer: &Indexer, ready: bool) -> Entry {
    Entry::Shard(Claim {
        node: indexer.name.clone(),
        address: indexer.address.to_string(),
        ready,
        next_offset: None,
        early: false,
    })
}

/// A collection of 3-d points.
pub fn collection(name: &str, partitions: u32) -> Collection {
    let dim = 3.try_into().unwrap();
    Collection::new(name.parse().unwrap(), dim, Metric::L2, partitions)
}

pub fn id(text: &str) -> PointId {
    PointId::new(text).unwrap()
}

/// A point at `(at, 0, 0)` that says so.
pub fn point(collection: &Collection, at: f32) -> Point {
    let mut payload = Payload::default();
    payload.0.insert("at".into(), Value::Float(f64::from(at)));
    payload
        .0
        .insert("tags".into(), Value::Strings(vec!["a".into(), "b".into()]));
    Point {
        vector: Vector::new(&[at, 0.0, 0.0], collection.dim, collection.metric).unwrap(),
        payload,
        model: Some("test".into()),
        event_time_ms: None,
        expires_at_ms: None,
    }
}

/// Puts points `p0`, `p1`, ... at 0, 1, ... wherever their ids route, and returns their tokens.
pub fn fill(indexers: &[Indexer], collection: &Collection, points: u16) -> Vec<Token> {
    let token = |n: u16| {
        let (id, point) = (id(&format!("p{n}")), point(collection, f32::from(n)));
        let places = indexers
            .iter()
            .find_map(|indexer| indexer.node.upsert(collection, &id, &point));
        let (partition, offset) = places.expect("every shard is hosted somewhere");
        Token {
            cluster: CLUSTER.into(),
            topic: collection.name.topic().into(),
            partition,
            offset,
            key: id,
            version: Version::default(),
            region: None,
        }
    };
    (0..points).map(token).collect()
}

/// A search near the origin.
pub fn near_origin(collection: &Collection, k: u32) -> v1::SearchRequest {
    v1::SearchRequest {
        collection: collection.name.to_string(),
        vector: vec![0.1, 0.0, 0.0],
        k,
        ..v1::SearchRequest::default()
    }
}

pub fn ids(hits: &[v1::Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.id.as_str()).collect()
}

/// What a caller may insist on.
pub fn read(at_least: &[Token], require_all: bool) -> Option<v1::ReadOptions> {
    Some(v1::ReadOptions {
        at_least: at_least.iter().map(Token::to_proto).collect(),
        require_all,
        max_staleness_ms: None,
    })
}

/// Sends with a deadline.
pub fn within<T>(timeout: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Time as the tests measure it.
pub async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let clock = System::new();
    let before = clock.monotonic();
    let done = work.await;
    (done, clock.monotonic() - before)
}
