//! An edge node in front of two regions: nearest first, another one where that fails, and what was
//! kept where none answers.

use std::{net::SocketAddr, time::Duration};

use bytesize::ByteSize;
use futures::stream;
use shoal_query::{Addresses, Config, EdgeDeps, cache, edge};
use shoal_runtime::{clock::System, http::Readiness, tasks::Tasks};
use shoal_schemas::{Collection, v1};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Endpoint};

use crate::{
    indexer::{Behaviour, Indexer},
    world::{self, PATIENCE, World, collection, fill, ids, near_origin, read, within},
};

const POINTS: u16 = 12;

/// A region: a query node, and one indexer a shard with points.
pub(crate) struct Region {
    pub(crate) world: World,
    pub(crate) indexers: Vec<Indexer>,
}

impl Region {
    pub(crate) async fn start(docs: &Collection) -> Self {
        let world = World::start().await;
        let indexers = world.spread(docs).await;
        fill(&indexers, docs, POINTS);
        Self { world, indexers }
    }

    /// How an edge node is told of it.
    pub(crate) fn named<'a>(&self, name: &'a str) -> (&'a str, SocketAddr) {
        (name, self.world.addresses.grpc)
    }

    pub(crate) fn asked(&self) -> usize {
        self.indexers.iter().map(|one| one.seen().len()).sum()
    }

    /// Ends its query node, as a power cut would.
    async fn dies(self) {
        self.world.tasks.cancel().cancel();
        let tasks = self.world.tasks.clone();
        drop(self);
        tasks.finish(PATIENCE).await.unwrap();
    }
}

pub(crate) struct Edge {
    addresses: Addresses,
    readiness: Readiness,
    tasks: Tasks,
    http: reqwest::Client,
    channel: tonic::transport::Channel,
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

impl Edge {
    /// One that keeps nothing.
    pub(crate) async fn over(regions: &[(&str, SocketAddr)]) -> Self {
        Self::start(regions, cache::Config::default(), Duration::ZERO).await
    }

    pub(crate) async fn start(
        regions: &[(&str, SocketAddr)],
        cache: cache::Config,
        stale: Duration,
    ) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let region = |(name, address): &(&str, SocketAddr)| edge::RegionConfig {
            name: (*name).to_owned(),
            address: address.to_string(),
        };
        let config = Config {
            grpc_listen: free,
            http_listen: free,
            cache,
            edge: edge::Config {
                regions: regions.iter().map(region).collect(),
                max_stale: stale,
                probe_interval: Duration::from_millis(50),
            },
            ..Config::default()
        };
        let deps = EdgeDeps {
            clock: System::shared(),
            readiness: Readiness::default(),
            metrics: world::metrics(),
            tasks: Tasks::new(CancellationToken::new()),
        };
        let addresses = shoal_query::start_edge(&config, &deps).await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", addresses.grpc));
        let edge = Self {
            addresses,
            readiness: deps.readiness,
            tasks: deps.tasks,
            http: reqwest::Client::new(),
            channel: endpoint.unwrap().connect_lazy(),
        };
        let readiness = edge.readiness.clone();
        world::wait(
            || readiness.waiting().is_empty().then_some(()),
            "a region to be reached",
        );
        for (name, _) in regions {
            edge.is_known(name, true);
        }
        edge
    }

    /// What it answers over HTTP, which has to be an answer.
    pub(crate) async fn told(
        &self,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> serde_json::Value {
        let method = method.to_uppercase().parse().unwrap();
        let url = format!("http://{}{path}", self.addresses.http);
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap().error_for_status().unwrap();
        answer.json().await.unwrap()
    }

    pub(crate) fn search(&self) -> world::Search {
        world::Search::new(self.channel.clone())
    }

    /// Waits until the edge node has found out that a region is there, or is not.
    fn is_known(&self, region: &str, is_there: bool) {
        let url = format!("http://{}/v1/node", self.addresses.http);
        let runtime = tokio::runtime::Handle::current();
        let look = || {
            runtime.block_on(async {
                let answer = self.http.get(&url).send().await.ok()?;
                let told: serde_json::Value = answer.json().await.ok()?;
                let regions = told["regions"].as_array()?.clone();
                let found = regions.iter().find(|one| one["name"] == region)?;
                (found["reachable"] == is_there).then_some(())
            })
        };
        world::wait(look, "the edge node to know");
    }
}

pub(crate) fn keeping(ttl: Duration) -> cache::Config {
    cache::Config {
        memory: ByteSize::mib(8),
        ttl,
        ..cache::Config::default()
    }
}

pub(crate) fn region_of(coverage: &Option<v1::Coverage>) -> &str {
    &coverage.as_ref().unwrap().region
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_forwarded_as_it_came_and_the_answer_names_the_region() {
    let docs = collection("docs", 2);
    let here = Region::start(&docs).await;
    let edge = Edge::over(&[("eu-1", here.world.addresses.grpc)]).await;
    let mut search = edge.search();
    let mut direct = here.world.search();

    let found = search
        .search(near_origin(&docs, 3))
        .await
        .unwrap()
        .into_inner();
    let same = direct
        .search(near_origin(&docs, 3))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.hits, same.hits);
    assert_eq!(region_of(&found.coverage), "eu-1");
    assert_eq!(region_of(&same.coverage), "");
    let batch = v1::SearchBatchRequest {
        collection: "docs".into(),
        queries: vec![v1::Query {
            vector: vec![0.0; 3],
            k: 2,
            ..v1::Query::default()
        }],
        read: None,
    };
    let found = search.search_batch(batch).await.unwrap().into_inner();
    assert_eq!(
        (found.results.len(), region_of(&found.coverage)),
        (1, "eu-1")
    );
    let recommend = v1::RecommendRequest {
        collection: "docs".into(),
        positive: vec!["p3".into()],
        query: Some(v1::Query {
            k: 2,
            ..v1::Query::default()
        }),
        ..v1::RecommendRequest::default()
    };
    let found = search
        .recommend(recommend.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((found.hits.len(), region_of(&found.coverage)), (2, "eu-1"));
    let get = v1::GetRequest {
        collection: "docs".into(),
        ids: vec!["p1".into(), "nobody".into()],
        ..v1::GetRequest::default()
    };
    let found = search.get(get).await.unwrap().into_inner();
    assert_eq!(
        (found.points.len(), region_of(&found.coverage)),
        (1, "eu-1")
    );
    let count = v1::CountRequest {
        collection: "docs".into(),
        ..v1::CountRequest::default()
    };
    let found = search.count(count).await.unwrap().into_inner();
    assert_eq!(
        (found.points, region_of(&found.coverage)),
        (u64::from(POINTS), "eu-1")
    );
    let scroll = v1::ScrollRequest {
        collection: "docs".into(),
        limit: 5,
        ..v1::ScrollRequest::default()
    };
    let found = search.scroll(scroll).await.unwrap().into_inner();
    assert_eq!(
        (found.points.len(), region_of(&found.coverage)),
        (5, "eu-1")
    );
    let shards = v1::ShardsRequest {
        collection: "docs".into(),
    };
    let found = search.shards(shards).await.unwrap().into_inner();
    assert_eq!(found.shards.len(), 2);
    let requests = stream::iter([v1::SearchStreamRequest {
        request_id: 7,
        call: Some(v1::search_stream_request::Call::Recommend(recommend)),
        timeout_ms: 5000,
    }]);
    let mut answers = search.search_stream(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(v1::search_stream_response::Outcome::Response(found)) = answer.outcome else {
        panic!("{answer:?}");
    };
    assert_eq!((answer.request_id, region_of(&found.coverage)), (7, "eu-1"));

    let mut collections = world::Collections::new(edge.channel.clone());
    let listed = collections
        .list_collections(v1::ListCollectionsRequest {})
        .await;
    assert_eq!(listed.unwrap().into_inner().collections.len(), 1);
    let url = format!("http://{}/v1/collections/docs", edge.addresses.http);
    let told: serde_json::Value = edge
        .http
        .get(&url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(told["shards"].as_array().unwrap().len(), 2, "{told}");
    let create = v1::CreateCollectionRequest {
        collection: Some(collection("more", 1).to_proto()),
    };
    let refused = collections.create_collection(create).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_call_is_told_as_the_region_tells_it_and_asked_nobody_else() {
    let docs = collection("docs", 1);
    let (one, other) = (Region::start(&docs).await, Region::start(&docs).await);
    let edge = Edge::over(&[one.named("one"), other.named("other")]).await;
    let unknown = v1::SearchRequest {
        collection: "nothing".into(),
        ..near_origin(&docs, 1)
    };
    let refused = edge.search().search(unknown.clone()).await.unwrap_err();
    let direct = one.world.search().search(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains(direct.message()), "{refused:?}");
    // A token goes through, and is honoured or fails.
    let tokens = fill(&one.indexers, &docs, 1);
    let mut with_token = v1::SearchRequest {
        read: read(&tokens, false),
        ..near_origin(&docs, 1)
    };
    for token in with_token
        .read
        .iter_mut()
        .flat_map(|read| &mut read.at_least)
    {
        token.offset += 1000;
    }
    let late = edge.search().search(with_token).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_dies_or_hangs_costs_no_call() {
    let docs = collection("docs", 1);
    let (one, other) = (Region::start(&docs).await, Region::start(&docs).await);
    let edge = Edge::over(&[one.named("one"), other.named("other")]).await;
    let whole = async |edge: &Edge| {
        let request = within(Duration::from_secs(20), near_origin(&docs, 3));
        let found = edge.search().search(request).await.unwrap().into_inner();
        assert_eq!(found.hits.len(), 3);
        region_of(&found.coverage).to_owned()
    };
    // Whichever is nearer: the one that answers hangs, and then is back.
    let first = whole(&edge).await;
    let (near, far) = match first.as_str() {
        "one" => (one, other),
        _ => (other, one),
    };
    near.indexers[0].behave(Behaviour::Hangs);
    let hasty = within(Duration::from_secs(2), near_origin(&docs, 3));
    let found = edge.search().search(hasty).await.unwrap().into_inner();
    assert_ne!(region_of(&found.coverage), first);
    near.indexers[0].behave(Behaviour::Answers);
    // Calls go on while it dies.
    let calls = async {
        let mut answered_by_other = 0;
        while answered_by_other < 20 {
            answered_by_other += usize::from(whole(&edge).await != first);
        }
    };
    tokio::join!(calls, near.dies());
    edge.is_known(&first, false);
    let before = far.asked();
    assert_ne!(whole(&edge).await, first);
    assert!(far.asked() > before);
    assert!(edge.readiness.waiting().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_region_answers_a_kept_answer_is_given_that_says_its_age() {
    let docs = collection("docs", 1);
    let only = Region::start(&docs).await;
    let regions = [("only", only.world.addresses.grpc)];
    let day = Duration::from_secs(86_400);
    let cache = cache::Config {
        keep: day,
        ..keeping(Duration::ZERO)
    };
    let edge = Edge::start(&regions, cache, day).await;
    let mut search = edge.search();
    let tokens = fill(&only.indexers, &docs, 1);
    let asked = only.asked();
    let first = search
        .search(near_origin(&docs, 3))
        .await
        .unwrap()
        .into_inner();
    search.search(near_origin(&docs, 3)).await.unwrap();
    assert_eq!(
        only.asked(),
        asked + 2,
        "as long as there is a region, it is asked"
    );
    assert_eq!(first.coverage.as_ref().unwrap().age_ms, None);
    only.dies().await;

    let demanding = |read: v1::ReadOptions| v1::SearchRequest {
        read: Some(read),
        ..near_origin(&docs, 3)
    };
    let fails = async |search: &mut world::Search, request: v1::SearchRequest| {
        let refused = search.search(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("`only`"), "{refused:?}");
    };
    // At once, and when the edge node has found out.
    for is_known in [false, true] {
        if is_known {
            edge.is_known("only", false);
        }
        let kept = search
            .search(near_origin(&docs, 3))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(ids(&kept.hits), ids(&first.hits));
        assert!(kept.coverage.as_ref().unwrap().age_ms.is_some());
        assert_eq!(region_of(&kept.coverage), "only");
        let all = v1::ReadOptions {
            require_all: true,
            ..v1::ReadOptions::default()
        };
        let kept = search.search(demanding(all)).await.unwrap().into_inner();
        assert!(kept.coverage.unwrap().age_ms.is_some());
        fails(&mut search, near_origin(&docs, 4)).await;
        fails(&mut search, demanding(read(&tokens, false).unwrap())).await;
        let fresh = v1::ReadOptions {
            max_staleness_ms: Some(1),
            ..v1::ReadOptions::default()
        };
        fails(&mut search, demanding(fresh)).await;
    }
    assert!(
        edge.readiness.waiting().is_empty(),
        "it has something to give"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn within_its_time_an_answer_is_given_without_asking_a_region() {
    let docs = collection("docs", 1);
    let only = Region::start(&docs).await;
    let regions = [("only", only.world.addresses.grpc)];
    let edge = Edge::start(&regions, keeping(Duration::from_secs(600)), Duration::ZERO).await;
    let mut search = edge.search();
    let first = search
        .search(near_origin(&docs, 3))
        .await
        .unwrap()
        .into_inner();
    let asked = only.asked();
    let again = search
        .search(near_origin(&docs, 3))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.hits, first.hits);
    assert!(again.coverage.unwrap().age_ms.is_some());
    assert_eq!(only.asked(), asked);
    // A token is never passed over.
    let tokens = fill(&only.indexers, &docs, 1);
    let with_token = v1::SearchRequest {
        read: read(&tokens, false),
        ..near_origin(&docs, 3)
    };
    let asked = only.asked();
    let shown = search.search(with_token).await.unwrap().into_inner();
    assert_eq!(shown.coverage.unwrap().age_ms, None);
    assert_eq!(only.asked(), asked + 1);
    only.dies().await;
    edge.is_known("only", false);
    let waiting = edge.readiness.waiting();
    assert_eq!(
        waiting.len(),
        1,
        "without old answers it says that it is of no use: {waiting:?}"
    );
}

/// Passes bytes on after a while, each way: a region that is far.
async fn far(to: SocketAddr, delay: Duration, tasks: &Tasks) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let spawner = tasks.clone();
    tasks.spawn("far", async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await?;
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            for (mut from, mut to) in [(near_read, far_write), (far_read, near_write)] {
                spawner.spawn("far, one way", async move {
                    let mut bytes = vec![0; 64 << 10];
                    while let Ok(read @ 1..) = from.read(&mut bytes).await {
                        let never = std::future::pending::<()>();
                        let _delay = tokio::time::timeout(delay, never).await;
                        if to.write_all(&bytes[..read]).await.is_err() {
                            break;
                        }
                    }
                    Ok::<_, std::convert::Infallible>(())
                });
            }
        }
        Ok::<_, std::io::Error>(())
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_region_is_asked_and_its_distance_is_told() {
    let docs = collection("docs", 1);
    let (near, distant) = (Region::start(&docs).await, Region::start(&docs).await);
    let way = Duration::from_millis(100);
    let tasks = &distant.world.tasks;
    let through = far(distant.world.addresses.grpc, way, tasks).await;
    let edge = Edge::over(&[("distant", through), near.named("near")]).await;
    for _ in 0..5 {
        let found = edge.search().search(near_origin(&docs, 3)).await.unwrap();
        assert_eq!(region_of(&found.into_inner().coverage), "near");
    }
    assert_eq!(distant.asked(), 0);
    let url = format!("http://{}/metrics", edge.addresses.http);
    let text = edge
        .http
        .get(&url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let rtt = |region: &str| -> f64 {
        let name = format!("network_cross_region_rtt_ms{{region=\"{region}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    };
    assert!(rtt("distant") >= 200.0, "{}", rtt("distant"));
    assert!(rtt("near") < rtt("distant"));
}
