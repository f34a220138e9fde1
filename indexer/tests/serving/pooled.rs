//! Several shards of one call.

use shoal_indexer::Config;
use shoal_schemas::v1;

use crate::{Shard, World, query, search};

const SHARDS: u32 = 3;
const POINTS: u32 = 300;
const K: u32 = 3;

async fn ask(shard: &mut Shard, request: v1::SearchShardsRequest) -> Vec<v1::ShardAnswer> {
    let answers = shard.search_shards(request).await;
    answers.unwrap().into_inner().shards
}

fn of_all(shards: u32, number: u32, together: Vec<u32>) -> v1::SearchShardsRequest {
    let shards = (0..shards).map(|shard| v1::ShardAsk {
        shard,
        ..v1::ShardAsk::default()
    });
    v1::SearchShardsRequest {
        shards: shards.collect(),
        together,
        ..search(vec![query(number, false)])
    }
}

/// The hits of all shards, nearest first.
fn hits(answers: &[v1::ShardAnswer]) -> Vec<(f32, String)> {
    let lists = answers.iter().flat_map(|answer| &answer.results);
    let hits = lists.flat_map(|list| &list.hits);
    let mut hits: Vec<_> = hits.map(|hit| (hit.distance, hit.id.clone())).collect();
    hits.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    hits
}

fn is_left_out(answers: &[v1::ShardAnswer]) -> bool {
    let lists = answers.iter().flat_map(|answer| &answer.results);
    lists.into_iter().any(|list| list.left_out_from.is_some())
}

/// What so many shards say together. How long a walk takes is not known at first, nor once one was held up: then each
/// answers for itself.
async fn together(shard: &mut Shard, shards: u32, number: u32) -> Vec<v1::ShardAnswer> {
    for _ in 0..1000 {
        let together = ask(shard, of_all(shards, number, vec![K])).await;
        if is_left_out(&together) {
            return together;
        }
    }
    panic!("shards are never searched together");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_of_one_call_name_no_more_than_is_wanted_of_them_together() {
    let often = Config::default().probe_interval;
    let world = World::start_in(None, SHARDS, POINTS, often, None).await;
    for shard in 0..SHARDS {
        world.claim_of(shard, true).await;
    }
    let mut shard = world.shard();
    for number in 0..20 {
        let mut own = hits(&ask(&mut shard, of_all(SHARDS, number, Vec::new())).await);
        assert_eq!(own.len(), usize::try_from(SHARDS * K).unwrap());
        own.truncate(K.try_into().unwrap());
        let together = together(&mut shard, SHARDS, number).await;
        assert_eq!(hits(&together), own);
        for (at, answer) in (0..).zip(&together) {
            let coverage = answer.coverage.as_ref().unwrap();
            assert_eq!(
                (coverage.shard, coverage.answered, answer.code),
                (at, true, 0)
            );
            assert!(
                answer.version.is_empty(),
                "what is left out for others is not to be kept"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_not_here_costs_the_others_nothing() {
    let often = Config::default().probe_interval;
    let world = World::start_in(None, 2, POINTS, often, None).await;
    for shard in 0..2 {
        world.claim_of(shard, true).await;
    }
    let mut shard = world.shard();
    together(&mut shard, 2, 0).await;
    for number in 0..20 {
        let answers = ask(&mut shard, of_all(SHARDS, number, vec![K])).await;
        assert!(!is_left_out(&answers));
        let codes: Vec<bool> = answers.iter().map(|answer| answer.code == 0).collect();
        assert_eq!(codes, [true, true, false]);
        assert_eq!(hits(&answers).len(), usize::try_from(2 * K).unwrap());
    }
}
