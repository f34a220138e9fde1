//! What the shards of a collection say: whether they serve, and how far they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context as _;
use shoal_runtime::tasks::blocking;
use shoal_schemas::{Collection, Offset, Partition, control::Claim, v1};
use shoal_topic::{TopicPartition, control::ControlState};
use tonic::transport::Channel;

use super::super::{
    kafka_link::KafkaLink,
    query_link::{connect, request},
    verify::copies::{Copy, Place},
};

/// How long a shard may take to say how it is.
const ASK: Duration = Duration::from_secs(5);
/// How long a shard may take to go over all its rows.
const GO_OVER: Duration = Duration::from_secs(120);
/// How long the broker may take to tell an end.
const ENDS: Duration = Duration::from_secs(10);

/// How a collection's shards stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Shards, counted once more for each replica set.
    pub(super) shards: usize,
    /// Those that serve and have applied what was asked for.
    pub(super) ready: usize,
    /// Records that the others have not applied.
    pub(super) records_left: u64,
    /// Why one of them does not serve.
    pub(super) why: Option<String>,
}

impl Standing {
    pub(super) fn is_ready(&self) -> bool {
        self.ready == self.shards
    }
}

/// The end of every partition of a collection's topic.
pub(super) async fn ends(link: &KafkaLink, of: &Collection) -> anyhow::Result<Vec<Offset>> {
    let (admin, topic, partitions) = (link.cluster.admin.clone(), of.topic(), of.partitions);
    let asked = blocking(move || {
        let ends = (0..partitions).map(|number| {
            let at = TopicPartition {
                topic: topic.as_str().into(),
                partition: Partition(number),
            };
            admin.watermarks(&at, ENDS).map(|ends| ends.high)
        });
        ends.collect::<Result<Vec<_>, _>>()
    });
    let topic = of.topic();
    asked
        .await
        .with_context(|| format!("the ends of `{topic}` are not known"))
}

/// Connections to indexers, kept.
#[derive(Default)]
pub(super) struct Indexers {
    open: BTreeMap<String, v1::shard_client::ShardClient<Channel>>,
}

impl Indexers {
    /// Asks every shard of a collection how far it is, by the newest claims: its owner, and those of
    /// every replica set that serves `beside` now.
    pub(super) async fn standing(
        &mut self,
        state: &ControlState,
        collection: &Collection,
        beside: Option<&Collection>,
        ends: &[Offset],
    ) -> Standing {
        let sets: BTreeSet<_> = (state.replicas.iter())
            .filter(|((name, ..), (claim, _))| {
                claim.ready && beside.is_some_and(|beside| beside.name == *name)
            })
            .map(|((.., set), _)| set)
            .collect();
        let all = std::iter::once(None).chain(sets.into_iter().map(Some));
        let mut standing = Standing::default();
        for set in all {
            for (number, end) in (0..collection.partitions).zip(ends) {
                let claim = state.claim(&collection.name, Partition(number), set);
                let next = match claim {
                    Some((claim, _)) if claim.ready => {
                        self.next_offset(collection, number, claim).await
                    }
                    Some((claim, _)) => Err(format!("`{}` is not ready with it", claim.node)),
                    None => Err("no indexer has claimed it".into()),
                };
                standing.shards += 1;
                match next {
                    Ok(next) if next >= *end => standing.ready += 1,
                    Ok(next) => standing.records_left += end.0.saturating_sub(next.0),
                    Err(why) => {
                        standing.records_left += end.0;
                        standing.why = Some(format!("shard {number}: {why}"));
                    }
                }
            }
        }
        standing
    }

    async fn next_offset(
        &mut self,
        collection: &Collection,
        shard: u32,
        claim: &Claim,
    ) -> Result<Offset, String> {
        if !self.open.contains_key(&claim.address) {
            let channel = connect("the indexer", &claim.address).await;
            let channel = channel.map_err(|error| format!("{error:#}"))?;
            let client = v1::shard_client::ShardClient::new(channel);
            self.open.insert(claim.address.clone(), client);
        }
        let client = self.open.get_mut(&claim.address).ok_or("not connected")?;
        let wanted = v1::ShardStatusRequest {
            collection: collection.name.to_string(),
            shards: vec![v1::ShardAsk {
                shard,
                at_least: Vec::new(),
            }],
        };
        let answer = client.shard_status(request(wanted, ASK)).await;
        let answer = answer.map_err(|status| status.message().to_owned())?;
        let status = answer.into_inner().shards.into_iter().next();
        let coverage = status
            .and_then(|status| status.coverage)
            .unwrap_or_default();
        if !coverage.answered {
            return Err(coverage.error);
        }
        Ok(Offset(coverage.next_offset))
    }
}

/// Every shard of a collection, to be asked for its rows.
pub(super) async fn copies(
    state: &ControlState,
    collection: &Collection,
) -> anyhow::Result<Vec<Copy>> {
    let mut copies = Vec::new();
    for number in 0..collection.partitions {
        let owner = state.owner(&collection.name, Partition(number));
        let (claim, _) =
            owner.with_context(|| format!("nobody serves shard {}/{number}", collection.name))?;
        let shard = (collection.name.to_string(), number);
        let place = Place::Indexer(claim.address.clone());
        copies.push(place.open(&shard, GO_OVER).await?);
    }
    Ok(copies)
}
