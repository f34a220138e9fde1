//! Settings of an indexer.

use std::{
    collections::BTreeMap, net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration,
};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;
use shoal_schemas::{
    RegionName, ReplicaSet,
    control::{MAX_NODE_BYTES, is_node_name},
    placement::{Labels, check_labels},
};
use shoal_topic::etcd;

use crate::snapshot::url;

/// How an indexer runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node's name in claims and logs, unique in its region. Default: the host's name
    /// if `HOSTNAME` is set, else `indexer`.
    pub node: String,
    /// The region this indexer and its Kafka stand in. Default `local`.
    pub region: RegionName,
    /// Where shards keep their files. Default `.shoal/indexer`. One indexer a folder.
    pub data_dir: PathBuf,
    /// Where the gRPC service listens. Default 127.0.0.1:7720.
    pub grpc_listen: SocketAddr,
    /// Where health, readiness and metrics listen. Default 127.0.0.1:7721.
    pub http_listen: SocketAddr,
    /// What others dial to reach `grpc_listen`, `host:port`. Default: the listen address.
    pub advertise: Option<String>,
    /// Which shards this node serves.
    pub ownership: Ownership,
    /// What this node has, for collections whose `placement` asks for it, such as `gpu = "true"`.
    /// Default: `region`, as set above.
    pub labels: BTreeMap<String, String>,
    /// This node's share of the shards beside that of others, where `ownership` is a ring. Default
    /// 1, 0 to 16; with 0 it hands over what it has and is given nothing.
    pub weight: u32,
    /// The replica set this node belongs to. Default: none, it is one of the home set, whose
    /// indexers own the shards.
    ///
    /// The indexers of a set share all shards among themselves, in a consumer group of their own,
    /// and serve them to queries too. Each set costs the memory, disk and work of all shards once
    /// more. What is done once a shard stays with its owner: patches, dead letters, snapshots.
    pub replica_set: Option<ReplicaSet>,
    /// Tuning of every shard.
    pub engine: EngineConfig,
    /// Memory the node may take, as the kernel counts what only the process can give back (`RssAnon`). Default: no
    /// limit.
    ///
    /// At nine tenths of it ingest stops until some is given back; searches go on. What is under way by then has the
    /// rest: shards fetch less ahead than `kafka.fetch_buffer_bytes`, all together a fiftieth of the budget. Each fetches at
    /// least 64 KiB and a whole batch of a producer, so many shards under a small budget may take more for a moment. Leave
    /// room above it for mapped segments: what of them stays in memory decides how fast searches are.
    pub memory_budget: Option<ByteSize>,
    /// Free space to leave on the disk of `data_dir`. Default 256 MiB.
    ///
    /// Below it ingest stops until there is room; searches go on. Checkpoints and sealing, which
    /// free space, take about as much as the largest segment for a moment. With 0 the disk may be
    /// filled: ingest stops then, too, but no checkpoint is stored until there is room.
    pub min_free_disk: ByteSize,
    /// Partial and conditional changes under way at a time. Default 1024.
    ///
    /// More wait, each until its deadline. A change takes a few milliseconds, most of it waiting for
    /// Kafka and the shard; one of an id waits for the one before it.
    pub resolves: NonZeroUsize,
    /// Searches that may wait for one of `engine.search_threads`, and as many other reads. Default
    /// 1024.
    ///
    /// More are refused, and asked of another replica if there is one. A search waits at most until
    /// its deadline; too many and all of them are late.
    pub search_queue: u32,
    /// An etcd to keep a copy of this node's claims in, for query nodes without Kafka. Default none.
    pub announce: AnnounceConfig,
    /// Copies of shards in an object store.
    pub snapshot: SnapshotConfig,
    /// `/readyz` says no while any shard is further behind. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub ready_lag: Duration,
    /// How often the broker is asked for its ends; the unit lag in seconds is told in.
    /// Default 1 s.
    #[serde(with = "humantime_serde")]
    pub probe_interval: Duration,
    /// Longest time to let go of a shard or to stop. Default 20 s; has to be below
    /// `kafka.rebalance_timeout` (1 min by default).
    ///
    /// While a shard is let go the node goes on saying that it lives, so the session time-out
    /// does not count; but a group that rebalances waits no longer than the rebalance time-out,
    /// and then another node starts before this one is done.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

/// How shards find their owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OwnershipSettings", into = "OwnershipSettings")]
pub enum Ownership {
    /// Indexers of one group share all shards of all collections; Kafka decides.
    Group {
        /// The consumer group's name.
        group: String,
    },
    /// This node serves these shard numbers of every collection, whoever else does.
    Static {
        /// The numbers; empty means all.
        shards: Vec<u32>,
    },
    /// Indexers announce themselves, and each takes the shards that a consistent-hash ring of those
    /// that live gives it: one that comes or goes moves few shards, labels are kept, and a shard is
    /// served by the node it leaves until the new one has it.
    Ring {
        /// A node that was not heard of for so long counts as dead.
        lease: Duration,
    },
}

/// Ownership as it is written: a kind, and the fields of every kind.
///
/// Settings come in layers, and one that names another kind leaves the fields of the layer below
/// where they are; they do not count then.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OwnershipSettings {
    kind: OwnershipKind,
    group: String,
    shards: Vec<u32>,
    #[serde(with = "humantime_serde")]
    lease: Duration,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OwnershipKind {
    Group,
    Static,
    Ring,
}

impl Default for OwnershipSettings {
    fn default() -> Self {
        Self {
            kind: OwnershipKind::Group,
            group: "shoal-indexers".into(),
            shards: Vec::new(),
            lease: Duration::from_secs(10),
        }
    }
}

impl From<OwnershipSettings> for Ownership {
    fn from(settings: OwnershipSettings) -> Self {
        match settings.kind {
            OwnershipKind::Group => Self::Group {
                group: settings.group,
            },
            OwnershipKind::Static => Self::Static {
                shards: settings.shards,
            },
            OwnershipKind::Ring => Self::Ring {
                lease: settings.lease,
            },
        }
    }
}

impl From<Ownership> for OwnershipSettings {
    fn from(ownership: Ownership) -> Self {
        match ownership {
            Ownership::Group { group } => Self {
                group,
                ..Self::default()
            },
            Ownership::Static { shards } => Self {
                kind: OwnershipKind::Static,
                shards,
                ..Self::default()
            },
            Ownership::Ring { lease } => Self {
                kind: OwnershipKind::Ring,
                lease,
                ..Self::default()
            },
        }
    }
}

/// Tuning of a shard's engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Records taken in one turn. Default 256.
    ///
    /// A turn is one write to the shard's own log and one publication to searches: more raises
    /// throughput, and the time until the first record of a turn is searchable.
    pub batch_records: NonZeroUsize,
    /// Rows that may wait for the graph, scanned exactly by every search. Default 2048.
    ///
    /// Full pauses the partition; from then until everything is applied only an eighth is used. Lower it
    /// for faster searches during bulk loads; too low and ingest stops and goes.
    pub memtable_rows: u32,
    /// Rows after which the growing segment is sealed and a new one begun. Default 262,144.
    ///
    /// A checkpoint writes the growing graph as a whole; smaller segments make it cheaper and
    /// every search dearer.
    pub seal_rows: u32,
    /// A growing segment of so many rows is sealed early once nothing was added for
    /// `idle_seal_after`. Default 4096.
    ///
    /// A sealed segment takes less memory and is searched faster. Lower makes more and smaller
    /// segments, which every search has to visit until they are merged.
    pub idle_seal_rows: u32,
    /// How long a growing segment has to be quiet to be sealed early. Default 3 s.
    #[serde(with = "humantime_serde")]
    pub idle_seal_after: Duration,
    /// A segment with this share of dead and expired rows is rebuilt without them. Default 0.125.
    ///
    /// Higher leaves more dead rows in memory, and searches pass them; lower rewrites more rows for each
    /// update, up to `1 / share` of them. What both cost: `churn` in docs/benchmarks.md.
    pub compact_dead_share: f64,
    /// Dead and expired rows below which no segment is rebuilt. Default 1024.
    pub compact_dead_rows: u32,
    /// Growth of the shard's own log after which a checkpoint is stored. Default 64 MiB.
    ///
    /// A restart replays at most about this much.
    pub checkpoint_bytes: ByteSize,
    /// How often the shard's own log is made durable, and offsets committed. Default 50 ms.
    #[serde(with = "humantime_serde")]
    pub sync_interval: Duration,
    /// Size of one file of the shard's own log. Default 64 MiB.
    pub wal_segment_bytes: ByteSize,
    /// Searches at a time, over all shards of the node. Default: the number of processors.
    pub search_threads: NonZeroUsize,
}

/// Where claims are copied to, section `[indexer.announce]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnnounceConfig {
    /// The etcd. Default none: no `endpoints`.
    ///
    /// The control topic stays the truth; the copy has its claims under a lease of 10 s.
    pub etcd: etcd::Config,
}

/// Copies of shards in an object store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// Where they are kept: a folder, `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`. Default: nowhere, none are taken. One for all indexers of a
    /// region; another region needs another prefix.
    ///
    /// Credentials come from the environment, by the names of the cloud's own tools.
    pub url: Option<String>,
    /// How often one is taken of every shard that changed. Default: only when asked for.
    ///
    /// A new node replays from Kafka what came since the last one. Only files that are new are
    /// sent, but the mask of a segment is new whenever a point in it was replaced.
    #[serde(with = "humantime_serde")]
    pub every: Option<Duration>,
    /// Snapshots kept of each shard; older ones are removed after each new one. Default 3.
    pub keep: NonZeroUsize,
}

/// A node that is so many times another would better be several.
const MAX_WEIGHT: u32 = 16;

/// Snapshots closer than this would be all an indexer does.
const LEAST_EVERY: Duration = Duration::from_secs(10);

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self {
            url: None,
            every: None,
            keep: NonZeroUsize::new(3).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            batch_records: NonZeroUsize::new(256).unwrap_or(NonZeroUsize::MIN),
            memtable_rows: 2048,
            seal_rows: 262_144,
            idle_seal_rows: 4096,
            idle_seal_after: Duration::from_secs(3),
            compact_dead_share: 0.125,
            compact_dead_rows: 1024,
            checkpoint_bytes: ByteSize::mib(64),
            sync_interval: Duration::from_millis(50),
            wal_segment_bytes: ByteSize::mib(64),
            search_threads: processors,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: std::env::var("HOSTNAME").unwrap_or_else(|_| "indexer".into()),
            region: "local".parse().expect("`local` is a valid name"),
            data_dir: ".shoal/indexer".into(),
            grpc_listen: ([127, 0, 0, 1], 7720).into(),
            http_listen: ([127, 0, 0, 1], 7721).into(),
            advertise: None,
            ownership: OwnershipSettings::default().into(),
            labels: BTreeMap::new(),
            weight: 1,
            replica_set: None,
            engine: EngineConfig::default(),
            memory_budget: None,
            min_free_disk: ByteSize::mib(256),
            resolves: NonZeroUsize::new(1024).unwrap_or(NonZeroUsize::MIN),
            search_queue: 1024,
            announce: AnnounceConfig::default(),
            snapshot: SnapshotConfig::default(),
            ready_lag: Duration::from_secs(30),
            probe_interval: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Config {
    /// This node's labels, its region among them unless it is set otherwise.
    pub fn all_labels(&self) -> Labels {
        let mut labels = self.labels.clone();
        let region = || self.region.as_str().to_owned();
        labels.entry("region".to_owned()).or_insert_with(region);
        labels
    }

    /// The consumer group that shares the shards out, if `group` is the home set's.
    ///
    /// Names of sets hold no dot, so two sets never share a group.
    pub fn group_of_set(&self, group: &str) -> String {
        match &self.replica_set {
            None => group.to_owned(),
            Some(set) => format!("{group}.{set}"),
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        if self.node.is_empty() {
            faults.push("indexer.node is empty; name this node".into());
        }
        let least = ByteSize::mib(64);
        if let Some(budget) = self.memory_budget.filter(|budget| *budget < least) {
            faults.push(format!(
                "indexer.memory_budget is {budget}, allowed are {least} and more; leave it out for no limit"
            ));
        }
        if self.probe_interval.is_zero() {
            faults.push("indexer.probe_interval is 0; set 1s or so".into());
        }
        if self.drain_timeout < Duration::from_secs(1) {
            faults.push(format!(
                "indexer.drain_timeout is {:?}, allowed is 1s and more",
                self.drain_timeout
            ));
        }
        if let Ownership::Group { group } = &self.ownership
            && group.is_empty()
        {
            faults.push("indexer.ownership.group is empty; name the consumer group".into());
        }
        if let Ownership::Ring { lease } = self.ownership {
            let (least, most) = (Duration::from_secs(1), Duration::from_secs(600));
            if !(least..=most).contains(&lease) {
                faults.push(format!(
                    "indexer.ownership.lease is {lease:?}, allowed are {least:?} to {most:?}"
                ));
            }
            if !is_node_name(&self.node) {
                faults.push(format!(
                    "indexer.node is `{}`; in a ring it has 1 to {MAX_NODE_BYTES} bytes and no `/`",
                    self.node
                ));
            }
        }
        if !self.announce.etcd.endpoints.is_empty() {
            self.announce.etcd.validate("indexer.announce.etcd", faults);
        }
        if self.weight > MAX_WEIGHT {
            faults.push(format!(
                "indexer.weight is {}, allowed are 0 to {MAX_WEIGHT}",
                self.weight
            ));
        }
        if let Err(error) = check_labels(&self.all_labels()) {
            faults.push(format!("indexer.labels: {error}"));
        }
        self.engine.validate(faults);
        self.snapshot.validate(faults);
    }
}

impl Validate for SnapshotConfig {
    fn validate(&self, faults: &mut Vec<String>) {
        if let Some(fault) = self.url.as_deref().and_then(url::fault_of_url) {
            faults.push(format!("indexer.snapshot.url: {fault}"));
        }
        if let Some(every) = self.every {
            if self.url.is_none() {
                faults
                    .push("indexer.snapshot.every is set, but no url to keep snapshots at".into());
            }
            if every < LEAST_EVERY {
                faults.push(format!(
                    "indexer.snapshot.every is {every:?}, allowed is {LEAST_EVERY:?} and more"
                ));
            }
        }
    }
}

impl Validate for EngineConfig {
    fn validate(&self, faults: &mut Vec<String>) {
        let minimum = crate::segment::growing::CHUNK_ROWS;
        if self.memtable_rows < minimum {
            faults.push(format!(
                "indexer.engine.memtable_rows is {}, allowed are {minimum} and more",
                self.memtable_rows
            ));
        }
        if self.seal_rows < self.memtable_rows {
            faults.push(format!(
                "indexer.engine.seal_rows is {}, has to be at least memtable_rows, {}",
                self.seal_rows, self.memtable_rows
            ));
        }
        if !(0.05..=0.95).contains(&self.compact_dead_share) {
            faults.push(format!(
                "indexer.engine.compact_dead_share is {}, allowed are 0.05 to 0.95",
                self.compact_dead_share
            ));
        }
        if self.sync_interval.is_zero() {
            faults.push("indexer.engine.sync_interval is 0; set 50ms or so".into());
        }
        let smallest = ByteSize::mib(1);
        for (key, size) in [
            ("checkpoint_bytes", self.checkpoint_bytes),
            ("wal_segment_bytes", self.wal_segment_bytes),
        ] {
            if size < smallest {
                faults.push(format!(
                    "indexer.engine.{key} is {size}, allowed are {smallest} and more"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use serde_json::json;
    use shoal_runtime::config::Validate;

    use super::{Ownership, SnapshotConfig};

    #[test]
    fn snapshots_need_a_place_that_is_one_and_are_not_taken_all_the_time() {
        let faults = |url: Option<&str>, every: Option<u64>| {
            let config = SnapshotConfig {
                url: url.map(Into::into),
                every: every.map(Duration::from_secs),
                ..SnapshotConfig::default()
            };
            let mut faults = Vec::new();
            config.validate(&mut faults);
            faults
        };
        assert_eq!(faults(None, None), Vec::<String>::new());
        assert_eq!(faults(Some("s3://b/p"), Some(300)), Vec::<String>::new());
        assert!(faults(None, Some(300))[0].contains("no url"));
        assert!(faults(Some("s3:/b"), None).is_empty(), "a relative folder");
        let both = faults(Some("ftp://b"), Some(1));
        assert!(
            both[0].contains("`ftp://b`") && both[1].contains("every is 1s"),
            "{both:?}"
        );
        let keep = json!({"keep": 0});
        assert!(serde_json::from_value::<SnapshotConfig>(keep).is_err());
    }

    #[test]
    fn a_layer_that_names_another_kind_may_leave_the_lower_layer_s_fields_behind() {
        let mut layers =
            serde_json::to_value(super::Config::default()).unwrap()["ownership"].take();
        assert_eq!(layers["kind"], "group");
        layers["kind"] = json!("static");
        layers["shards"] = json!([1, 3]);
        let read: Ownership = serde_json::from_value(layers).unwrap();
        assert_eq!(read, Ownership::Static { shards: vec![1, 3] });
        let misspelt = json!({"kind": "group", "grup": "x"});
        assert!(serde_json::from_value::<Ownership>(misspelt).is_err());
    }
}
