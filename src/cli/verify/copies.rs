//! A copy of a shard, wherever it is: on an indexer, or in a folder nobody has open.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use shoal_indexer::shard::{Shared, buckets::MAX_BUCKETS};
use shoal_runtime::tasks::blocking;
use shoal_schemas::{
    PointId, RowHash, Version,
    buckets::{Bucket, Buckets, Row},
    v1,
};
use tonic::transport::Channel;

use super::{Shard, connect, request, told};

/// Where a copy of a shard is.
#[derive(Clone)]
pub(in crate::cli) enum Place {
    /// An indexer's address.
    Indexer(String),
    /// A folder, and the shard in it.
    Folder(PathBuf, Arc<Shared>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Indexer(address) => f.write_str(address),
            Self::Folder(path, _) => path.display().fmt(f),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Place {
    /// Gets ready to ask it.
    pub(in crate::cli) async fn open(
        &self,
        shard: &Shard,
        timeout: Duration,
    ) -> anyhow::Result<Copy> {
        Ok(match self {
            Self::Indexer(address) => Copy::Indexer {
                client: Box::new(v1::shard_upkeep_client::ShardUpkeepClient::new(
                    connect("the indexer", address).await?,
                )),
                shard: shard.clone(),
                timeout,
            },
            Self::Folder(_, shared) => Copy::Folder(shared.clone()),
        })
    }
}

/// Positions a copy was asked at.
pub(in crate::cli) type At = Vec<v1::SourcePosition>;

/// A copy that can be asked what it has.
pub(in crate::cli) enum Copy {
    Indexer {
        client: Box<v1::shard_upkeep_client::ShardUpkeepClient<Channel>>,
        shard: Shard,
        timeout: Duration,
    },
    Folder(Arc<Shared>),
}

impl Copy {
    /// Its digest in parts.
    pub(in crate::cli) async fn buckets(&self) -> anyhow::Result<(Buckets, At)> {
        let found = match self {
            Self::Indexer {
                client,
                shard: (collection, shard),
                timeout,
            } => {
                let wanted = v1::ShardBucketsRequest {
                    collection: collection.clone(),
                    ask: Some(ask(*shard)),
                };
                let found = client
                    .clone()
                    .shard_buckets(request(wanted, *timeout))
                    .await;
                found.map_err(|status| told(&status))?.into_inner()
            }
            Self::Folder(shared) => {
                let shared = shared.clone();
                blocking(move || shared.buckets()).await?
            }
        };
        let buckets = Buckets::from_bytes(&found.digests);
        let buckets = buckets.context("the indexer splits its digest in another way")?;
        Ok((buckets, found.positions))
    }

    /// What it has in at most [`MAX_BUCKETS`] parts, if it is still there.
    pub(in crate::cli) async fn rows(
        &self,
        buckets: &[Bucket],
        at: &At,
    ) -> anyhow::Result<BTreeMap<PointId, Row>> {
        debug_assert!(buckets.len() <= MAX_BUCKETS, "as many as an indexer tells");
        let found = match self {
            Self::Indexer {
                client,
                shard: (collection, shard),
                timeout,
            } => {
                let wanted = v1::ShardBucketIdsRequest {
                    collection: collection.clone(),
                    ask: Some(ask(*shard)),
                    buckets: buckets.iter().map(|one| one.number()).collect(),
                    at: at.clone(),
                };
                let found = (**client)
                    .clone()
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .shard_bucket_ids(request(wanted, *timeout))
                    .await;
                found.map_err(|status| told(&status))?.into_inner()
            }
            Self::Folder(shared) => {
                let (shared, at) = (shared.clone(), at.clone());
                let wanted: HashSet<Bucket> = buckets.iter().copied().collect();
                blocking(move || shared.bucket_ids(&wanted, &at)).await?
            }
        };
        found.ids.into_iter().map(row).collect()
    }
}

/// Ids of 64 buckets of a shard of many millions of points.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

fn ask(shard: u32) -> v1::ShardAsk {
    v1::ShardAsk {
        shard,
        at_least: Vec::new(),
    }
}

fn row(told: v1::BucketId) -> anyhow::Result<(PointId, Row)> {
    let id = PointId::new(&told.id).context("the indexer tells an id that is none")?;
    if told.contested {
        return Ok((id, Row::Contested));
    }
    let hash = <[u8; 16]>::try_from(told.row_hash.as_ref());
    let hash = hash.context("the indexer tells a hash that is none")?;
    let row = Row::Served {
        version: Version::from_raw(told.version),
        hash: RowHash::from_bytes(hash),
    };
    Ok((id, row))
}
