//! Answers that a caller knows already: whether they still hold.

use bytes::Bytes;
use shoal_runtime::clock::{Clock as _, Stopwatch, System};
use shoal_schemas::{Partition, Record, v1};
use shoal_topic::TopicPartition;

use crate::{DEADLINE, Shard, World, query, search, vector};

/// Asks for the three nearest to a point, telling of an answer that is known.
async fn ask(shard: &mut Shard, known: Option<&v1::ShardAnswer>, token: u64) -> v1::ShardAnswer {
    let mut request = search(vec![query(1, true)]);
    request.known.extend(known.map(|known| v1::KnownAnswer {
        shard: 0,
        version: known.version.clone(),
        expires_at_ms: known.results.first().unwrap().expires_at_ms,
    }));
    for ask in &mut request.shards {
        ask.at_least = vec![v1::Token {
            cluster_id: "test-cluster".into(),
            topic: "embeddings.docs".into(),
            offset: token,
            key: "any".into(),
            ..v1::Token::default()
        }];
    }
    let answer = shard.search_shards(request).await.unwrap().into_inner();
    let answer = answer.shards.into_iter().next().unwrap();
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(answer.unchanged, answer.results.is_empty());
    assert!(answer.coverage.as_ref().unwrap().answered);
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_answer_holds_until_a_record_is_applied_or_one_of_its_points_expires() {
    let world = World::start(20).await;
    let mut shard = world.shard();
    let to = TopicPartition {
        topic: world.name.topic().into(),
        partition: Partition(0),
    };
    let first = ask(&mut shard, None, 19).await;
    assert!(!first.version.is_empty());
    let again = ask(&mut shard, Some(&first), 19).await;
    assert!(again.unchanged);
    assert_eq!(again.version, first.version);

    // Even a point that is far away.
    let publish = async |id: &str, value: String| {
        let record = Record {
            key: Some(Bytes::from(id.to_owned())),
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: 1_700_000_000_000,
        };
        let writer = &world.log.cluster().writer;
        writer.send(&to, &record).unwrap().await.unwrap();
    };
    publish("far", format!("{{\"vector\": {:?}}}", [200.0; 8])).await;
    let changed = ask(&mut shard, Some(&first), 20).await;
    assert!(!changed.unchanged);
    assert_ne!(changed.version, first.version);
    assert_eq!(changed.results, first.results);

    // The nearest of all, for a moment.
    let until = System::new().now_ms() + 1500;
    let nearest = format!("{{\"vector\": {:?}, \"expires_at\": {until}}}", vector(1));
    publish("a-short", nearest).await;
    let short = ask(&mut shard, None, 21).await;
    let list = short.results.first().unwrap();
    if list.hits.iter().any(|hit| hit.id == "a-short") {
        assert_eq!(list.expires_at_ms, i64::try_from(until).unwrap());
    }
    let expired = async || {
        let now = ask(&mut shard.clone(), Some(&short), 21).await;
        assert_eq!(now.version, short.version, "nothing was applied");
        let hits = now.results.first().map(|list| list.hits.clone());
        hits.filter(|hits| hits.iter().all(|hit| hit.id != "a-short"))
    };
    let watch = Stopwatch::start();
    let hits = loop {
        assert!(watch.elapsed() < DEADLINE, "it never expires");
        if let Some(hits) = expired().await {
            break hits;
        }
    };
    assert!(System::new().now_ms() >= until);
    assert_eq!(hits.first().unwrap().id, "id-1");
}
