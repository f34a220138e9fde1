//! What a shard says it holds, and waiting until it holds everything the topic does.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use shoal_runtime::eventually;
use shoal_schemas::{Collection, Digest, v1};
use shoal_topic::Cluster;

use super::{DEADLINE, client, topic, wait};

/// A collection's state over all its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) digest: Digest,
    /// Neither deleted nor expired.
    pub(crate) points: u64,
    pub(crate) contested: u64,
    /// First offset not applied, by shard.
    pub(crate) next: BTreeMap<u32, u64>,
}

/// Asks an indexer for all its shards of a collection.
pub(crate) fn statuses(
    grpc: SocketAddr,
    collection: &Collection,
) -> Result<Vec<v1::ShardStatus>, tonic::Status> {
    let ask = v1::ShardStatusRequest {
        collection: collection.name.to_string(),
        shards: Vec::new(),
    };
    let request = client::within(Duration::from_secs(10), ask);
    let answer = wait(async { client::shard(grpc).shard_status(request).await })?;
    Ok(answer.into_inner().shards)
}

/// Sums up what some indexers hold. Every shard has to be there exactly once, and to answer.
pub(crate) fn sum(shards: &[v1::ShardStatus], collection: &Collection) -> Option<State> {
    let mut state = State {
        digest: Digest::default(),
        points: 0,
        contested: 0,
        next: BTreeMap::new(),
    };
    for shard in shards.iter().filter(|shard| shard.code == 0) {
        let coverage = shard.coverage.as_ref()?;
        let digest: [u8; 16] = shard.digest.as_ref().try_into().unwrap();
        state.digest.merge(Digest::from_bytes(digest));
        state.points += shard.live_points;
        state.contested += shard.contested;
        let earlier = state.next.insert(coverage.shard, coverage.next_offset);
        if earlier.is_some() {
            return None;
        }
    }
    let expected = usize::try_from(collection.partitions).unwrap();
    (state.next.len() == expected).then_some(state)
}

/// Waits until the indexers together have applied everything the topic holds now.
#[track_caller]
pub(crate) fn settled(
    indexers: &[SocketAddr],
    cluster: &Cluster,
    collection: &Collection,
) -> State {
    let ends = topic::ends(cluster, collection);
    let what = format!("`{}` to be applied up to {ends:?}", collection.name);
    let mut last = None;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(DEADLINE, &what, || {
            let answers = indexers
                .iter()
                .map(|indexer| statuses(*indexer, collection));
            let answers: Vec<_> = answers.collect();
            let shards: Vec<_> = answers.iter().flatten().flatten().cloned().collect();
            last = Some(answers);
            let state = sum(&shards, collection)?;
            let reached = state
                .next
                .values()
                .zip(&ends)
                .all(|(next, end)| next >= end);
            reached.then_some(state)
        })
    }));
    outcome.unwrap_or_else(|_| panic!("{what}; the last answers were {last:#?}"))
}
