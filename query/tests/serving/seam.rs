//! The shard client's seam: the one in memory and the one over gRPC answer alike.

use std::{collections::BTreeSet, time::Duration};

use shoal_query::client::{CallError, Channels, ShardCall, ShardClient, memory::Nodes};
use shoal_runtime::{ErrorKind, tasks::Tasks};
use shoal_schemas::{Partition, v1};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    indexer::{Behaviour, Indexer},
    world::{collection, fill},
};

const CALL: ShardCall = ShardCall {
    timeout: Duration::from_secs(20),
    trace: None,
};

fn ask(shard: u32) -> v1::ShardAsk {
    v1::ShardAsk {
        shard,
        at_least: Vec::new(),
    }
}

/// What every client has to do, in front of a node that has shard 0 of two with four points.
async fn conforms(client: &dyn ShardClient, address: &str, nobody: &str) {
    let query = v1::Query {
        vector: vec![0.0; 3],
        k: 3,
        with_vector: true,
        ..v1::Query::default()
    };
    let request = || v1::SearchShardsRequest {
        collection: "docs".into(),
        shards: vec![ask(0), ask(1)],
        queries: vec![query.clone(), query.clone()],
        ..v1::SearchShardsRequest::default()
    };
    let found = client
        .search_shards(address, request(), CALL)
        .await
        .unwrap();
    let [here, elsewhere] = &found.shards[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        (here.code, here.results.len(), here.results[0].hits.len()),
        (0, 2, 3)
    );
    assert!(here.coverage.as_ref().unwrap().answered);
    assert_eq!((elsewhere.code, elsewhere.results.len()), (9, 0));
    assert!(!elsewhere.coverage.as_ref().unwrap().error.is_empty());

    let known = |version: &[u8]| v1::SearchShardsRequest {
        known: vec![v1::KnownAnswer {
            shard: 0,
            version: version.to_vec().into(),
            expires_at_ms: 0,
        }],
        ..request()
    };
    for (version, is_unchanged) in [(&here.version[..], true), (b"another", false)] {
        let asked = client.search_shards(address, known(version), CALL);
        let again = asked.await.unwrap().shards.remove(0);
        assert_eq!(again.unchanged, is_unchanged);
        assert_eq!(again.results.len(), if is_unchanged { 0 } else { 2 });
        assert_eq!(again.version, here.version);
    }

    let nearest = here.results[0].hits[0].id.clone();
    let request_points = v1::GetPointsRequest {
        collection: "docs".into(),
        shards: vec![v1::ShardIds {
            ask: Some(ask(0)),
            ids: vec!["nobody".into(), nearest.clone()],
        }],
        with_vector: false,
    };
    let points = client
        .get_points(address, request_points, CALL)
        .await
        .unwrap();
    let [stored] = &points.shards[0].points[..] else {
        panic!("{points:?}");
    };
    assert_eq!(stored.point.as_ref().unwrap().id, nearest);

    let request_status = v1::ShardStatusRequest {
        collection: "docs".into(),
        shards: vec![ask(0)],
    };
    let status = client
        .shard_status(address, request_status, CALL)
        .await
        .unwrap();
    assert_eq!(status.shards[0].live_points, 4);

    let unreachable = client
        .search_shards(nobody, request(), CALL)
        .await
        .unwrap_err();
    assert!(
        matches!(unreachable, CallError::Unreachable { .. }),
        "{unreachable}"
    );
    assert_eq!(unreachable.kind(), ErrorKind::Retry);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_in_memory_and_the_one_over_grpc_conform() {
    let tasks = Tasks::new(CancellationToken::new());
    let indexer = Indexer::start("a", &tasks).await;
    let docs = collection("docs", 2);
    let other = Indexer::start("b", &tasks).await;
    indexer.node.host(&docs, Partition(0));
    other.node.host(&docs, Partition(1));
    let pair = [indexer.clone(), other];
    let mut points = 0;
    while {
        let status = v1::ShardStatusRequest {
            collection: "docs".into(),
            shards: vec![ask(0)],
        };
        indexer.node.status(&status).shards[0].live_points < 4
    } {
        points += 1;
        fill(&pair, &docs, points);
    }
    let free = shoal_runtime::http::bind(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    let address = indexer.address.to_string();
    let nodes = Nodes::default().with(&address, indexer.node.clone());
    conforms(&nodes, &address, &nobody).await;
    let channels = Channels::new(Duration::from_secs(5), 1 << 20);
    conforms(&channels, &address, &nobody).await;
    tasks.cancel().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_shared_and_let_go_when_no_claim_names_it() {
    let tasks = Tasks::new(CancellationToken::new());
    let indexer = Indexer::start("a", &tasks).await;
    let channels = Channels::new(Duration::from_secs(5), 1 << 20);
    let address = indexer.address.to_string();
    assert_eq!(channels.open(), 0);
    for _ in 0..3 {
        let request = v1::ShardStatusRequest::default();
        channels
            .shard_status(&address, request, CALL)
            .await
            .unwrap();
    }
    assert_eq!(channels.open(), 1);
    channels.retain(&BTreeSet::from([address.clone()]));
    assert_eq!(channels.open(), 1);
    channels.retain(&BTreeSet::new());
    assert_eq!(channels.open(), 0);
    let refused = channels
        .shard_status("not an address", v1::ShardStatusRequest::default(), CALL)
        .await;
    assert!(
        matches!(refused, Err(CallError::Unreachable { .. })),
        "{refused:?}"
    );
    tasks.cancel().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_of_a_call_has_its_name() {
    let tasks = Tasks::new(CancellationToken::new());
    let indexer = Indexer::start("a", &tasks).await;
    let channels = Channels::new(Duration::from_secs(5), 1 << 20);
    let address = indexer.address.to_string();
    let call = ShardCall {
        timeout: Duration::from_millis(100),
        trace: None,
    };
    type Named = fn(&CallError) -> bool;
    let cases: [(Behaviour, Named); 4] = [
        (Behaviour::Hangs, |error| {
            matches!(error, CallError::TimedOut { .. })
        }),
        (Behaviour::Fails(Code::Unavailable), |error| {
            matches!(error, CallError::Unreachable { .. })
        }),
        (Behaviour::Fails(Code::DeadlineExceeded), |error| {
            matches!(error, CallError::TimedOut { .. })
        }),
        (Behaviour::Fails(Code::NotFound), |error| {
            matches!(error, CallError::Refused { code: 5, .. })
        }),
    ];
    for (behaviour, is_named) in cases {
        indexer.behave(behaviour);
        let request = v1::ShardStatusRequest::default();
        let error = channels
            .shard_status(&address, request, call)
            .await
            .unwrap_err();
        assert!(is_named(&error), "{behaviour:?}: {error:?}");
    }
    // A request that is too large says nothing about the indexer.
    let narrow = Channels::new(Duration::from_secs(5), 16);
    let request = v1::ShardStatusRequest {
        collection: "longer than sixteen bytes".to_owned(),
        ..Default::default()
    };
    let error = narrow.shard_status(&address, request, call).await;
    assert!(
        matches!(error, Err(CallError::Refused { code: 11, .. })),
        "{error:?}"
    );
    tasks.cancel().cancel();
}
