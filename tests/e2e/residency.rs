//! Two regions, each with a Kafka, an indexer, a query node and a gateway: every record is written in its own,
//! whichever gateway takes it, and the other region never has it.

use reqwest::Method;
use serde_json::json;
use shoal_runtime::eventually;
use shoal_schemas::{Collection, Metric, Partition, headers::Meta, v1};
use shoal_topic::TopicPartition;
use tonic::Code;

use crate::harness::{
    DEADLINE, client, place,
    role::{Role, Settings},
    topic, wait,
    world::World,
};

const DIM: u32 = 4;
const COLLECTION: &str = "people";
/// What a point holds that stays in its region.
const SECRET: &str = "lives-at-the-harbour";

/// One region, all of it.
struct Region {
    name: &'static str,
    world: World,
    collection: Collection,
    gateway_role: Role,
    gateway: client::Gateway,
    indexer: Role,
    query: client::Query,
    _query_role: Role,
}

impl Region {
    fn start(name: &'static str, gateway: &Settings, world: World) -> Self {
        let mut wanted = Collection::new(
            COLLECTION.parse().unwrap(),
            DIM.try_into().unwrap(),
            Metric::Cosine,
            2,
        );
        wanted.route_by_key_prefix = true;
        let collection = world.create(wanted);
        let indexer = world
            .indexer("indexer")
            .with("INDEXER__REGION", name)
            .start();
        let query_role = world.query("query").start();
        let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
        let gateway_role = gateway.start();
        let gateway = client::Gateway::to(gateway_role.settings.grpc, gateway_role.settings.http);
        let region = Self {
            name,
            world,
            collection,
            gateway_role,
            gateway,
            indexer,
            query,
            _query_role: query_role,
        };
        eventually(DEADLINE, "every shard to serve", || {
            region.query.count(count()).ok()
        });
        region
    }

    fn points(&self) -> u64 {
        self.query.count(count()).unwrap().points
    }

    /// Every record of the topic: its id, and its residency.
    fn records(&self) -> Vec<(String, Option<String>)> {
        let partitions = 0..self.collection.partitions;
        let records = partitions.flat_map(|number| {
            let at = TopicPartition {
                topic: self.collection.topic().into(),
                partition: Partition(number),
            };
            topic::read(&self.world.cluster, &at)
        });
        let records = records.map(|(_, record)| {
            let residency = Meta::decode(&record).unwrap().residency;
            let key = record.key.unwrap().to_vec();
            (String::from_utf8(key).unwrap(), residency)
        });
        let mut records: Vec<_> = records.collect();
        records.sort();
        records
    }

    fn ids(&self) -> Vec<String> {
        self.records().into_iter().map(|(id, _)| id).collect()
    }

    /// The point as it is with these writes.
    fn get(&self, id: &str, tokens: &[v1::Token]) -> Option<v1::Point> {
        let ask = v1::GetRequest {
            collection: COLLECTION.to_owned(),
            ids: vec![id.to_owned()],
            read: client::at_least(tokens),
            ..v1::GetRequest::default()
        };
        let answer = self.query.get(ask).unwrap();
        answer.points.into_iter().next()?.point
    }
}

fn count() -> v1::CountRequest {
    v1::CountRequest {
        collection: COLLECTION.to_owned(),
        read: client::at_least(&[]),
        ..v1::CountRequest::default()
    }
}

fn point(id: &str) -> v1::Point {
    let text = v1::Value {
        kind: Some(v1::value::Kind::String(SECRET.to_owned())),
    };
    v1::Point {
        id: id.to_owned(),
        vector: vec![1.0, 0.5, 0.0, -1.0],
        payload: [("text".to_owned(), text)].into(),
        ..v1::Point::default()
    }
}

/// A gateway of a region that knows the other one's.
fn gateway(world: &World, own: &str, other: &str, others: std::net::SocketAddr) -> Settings {
    world
        .gateway("gateway")
        .with("TELEMETRY__FILTER", "info,shoal_producer=trace,shoal=trace")
        .with("GATEWAY__RESIDENCY__REGION", own)
        .with(
            "GATEWAY__RESIDENCY__REGIONS",
            format!("{{{other}={{gateways=[\"{others}\"]}}}}"),
        )
        .with("GATEWAY__RESIDENCY__TENANTS", "{acme=\"eu\",apple=\"us\"}")
}

#[test]
fn a_record_is_written_in_its_region_whichever_gateway_takes_it() {
    let (in_us, in_eu) = (World::new("residency-us"), World::new("residency-eu"));
    let (at_us, at_eu) = (place::free(), place::free());
    let us = gateway(&in_us, "us", "eu", at_eu).with("GATEWAY__GRPC_LISTEN", at_us);
    let eu = gateway(&in_eu, "eu", "us", at_us).with("GATEWAY__GRPC_LISTEN", at_eu);
    let us = Settings { grpc: at_us, ..us };
    let eu = Settings { grpc: at_eu, ..eu };
    let (us, eu) = (
        Region::start("us", &us, in_us),
        Region::start("eu", &eu, in_eu),
    );
    let regions = [&us, &eu];

    // Over gRPC, in one batch, at the gateway of the wrong region for most.
    let batch = ["acme/1", "apple/1", "acme/2", "free/1"].map(point);
    let tokens = us.gateway.upsert(COLLECTION, batch.to_vec()).unwrap();
    let said: Vec<&str> = tokens.iter().map(|token| token.region.as_str()).collect();
    assert_eq!(said, ["eu", "us", "eu", "us"]);
    for token in &tokens {
        let region = regions.iter().find(|one| one.name == token.region);
        let region = region.expect("one of the two");
        let found = region.get(&token.key, std::slice::from_ref(token));
        assert!(found.is_some(), "{} in {}", token.key, region.name);
    }
    let tagged = |id: &str, region: &str| (id.to_owned(), Some(region.to_owned()));
    assert_eq!(
        us.records(),
        [tagged("apple/1", "us"), ("free/1".to_owned(), None)]
    );
    assert_eq!(
        eu.records(),
        [tagged("acme/1", "eu"), tagged("acme/2", "eu")]
    );

    // As NDJSON, the other way round, and tagged by the call.
    let lines = ["apple/2", "acme/3", "apple/3"].map(|id| {
        json!({"id": id, "vector": [1, 0.5, 0, -1], "payload": {"text": SECRET}}).to_string()
    });
    let path = format!("/v1/collections/{COLLECTION}/points");
    let (status, told) = post(&eu, &path, lines.join("\n"));
    assert_eq!((status, &told["points"]), (200, &json!(3)), "{told}");
    let body = json!({"points": [{"id": "free/2", "vector": [1, 0.5, 0, -1]}]});
    let residency = [("shoal-residency", "us".to_owned())];
    let (status, told) = client::json_with(Method::PUT, eu.gateway.http, &path, &body, &residency);
    assert_eq!(status, 200, "{told}");
    let in_us = ["apple/1", "apple/2", "apple/3", "free/1", "free/2"];
    assert_eq!(us.ids(), in_us);
    assert_eq!(eu.ids(), ["acme/1", "acme/2", "acme/3"]);

    // A patch is resolved by the region's own shard, and its record is tagged too.
    let patch = v1::PointPatch {
        id: "acme/1".to_owned(),
        unset: vec!["text".to_owned()],
        ..v1::PointPatch::default()
    };
    let token = us.gateway.patch(COLLECTION, patch).unwrap();
    assert_eq!(token.region, "eu");
    let patched = eu.get("acme/1", &[token]).unwrap();
    assert!(patched.payload.is_empty(), "{patched:?}");
    let tags = eu.records().into_iter().map(|(_, residency)| residency);
    assert!(tags.flatten().eq(std::iter::repeat_n("eu".to_owned(), 4)));
    let tokens = us.gateway.delete(COLLECTION, &["acme/1"]).unwrap();
    assert_eq!(tokens[0].region, "eu");
    assert_eq!(eu.get("acme/1", &tokens), None);

    // What may be written nowhere is not.
    let mut client = us.gateway.publish.clone();
    let ask = v1::UpsertRequest {
        collection: COLLECTION.to_owned(),
        points: vec![point("acme/9")],
        conditions: Vec::new(),
    };
    let mut ask = client::within(DEADLINE, ask);
    ask.metadata_mut()
        .insert("shoal-residency", "us".parse().unwrap());
    let refused = wait(client.upsert(ask)).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("tenant `acme`"), "{refused}");
    assert!(!refused.message().contains(SECRET), "{refused}");
    let metrics = us.gateway_role.metrics();
    let refusals = "producer_gateway_residency_refusals_total";
    assert_eq!(metrics.sum(refusals, &["not_allowed"]), 1.0);

    // Both indexers have taken all of it, and no gateway has logged what points hold.
    for region in regions {
        region.world.settled(&region.indexer, &region.collection);
        let letters = topic::dead_letters(&region.world.cluster, &region.collection);
        assert!(letters.is_empty(), "{}: {letters:?}", region.name);
        let output = region.gateway_role.child.output();
        assert!(!output.contains(SECRET), "{}", region.name);
        region.indexer.had_no_errors(&[]);
        region.gateway_role.had_no_errors(&[]);
    }
    assert_eq!((us.points(), eu.points()), (5, 2));
}

#[test]
fn while_a_region_is_away_its_records_go_nowhere() {
    let world = World::new("residency-away");
    // Nobody listens there.
    let away = gateway(&world, "us", "eu", place::free());
    let us = Region::start("us", &away, world);
    let refused = us.gateway.upsert(COLLECTION, vec![point("acme/1")]);
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("region `eu`"), "{refused}");
    us.gateway
        .upsert(COLLECTION, vec![point("apple/1")])
        .unwrap();
    assert_eq!(us.ids(), ["apple/1"]);
}

/// A body as it is.
fn post(region: &Region, path: &str, body: String) -> (u16, serde_json::Value) {
    let request = reqwest::Client::new()
        .post(format!("http://{}{path}", region.gateway.http))
        .body(body);
    wait(async {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap())
    })
}
