//! Where a query node learns the shard map: the control topic, a watched file, or etcd.
//!
//! Each source feeds the same [`Maps`], so nothing behind them knows which one it is. A source that
//! cannot be read keeps the last good map and says so: in the log once, in `/readyz` and as a metric
//! while it lasts. Without the control topic a node has no Kafka, and changes no collection.

pub mod document;
mod etcd;
mod file;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;
use shoal_topic::{Deps, etcd as store};
use tracing::{info, warn};

use crate::{
    coordinator::HomeCluster,
    metrics::{QUERY_MAP_FAILURES_TOTAL, QUERY_MAP_STALE},
    shard_map::{Feed, Maps, ShardMap},
};

/// Where the shard map is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The topic `shoal.control`.
    Control,
    /// A file, read anew when it changes.
    File,
    /// An etcd that indexers put their claims into.
    Etcd,
}

/// Settings of the shard map's source, section `[query.map]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `control`, `file` or `etcd`. Default `control`.
    ///
    /// With another one than `control`, `shoal query` needs no Kafka and changes no collection.
    pub source: Source,
    /// The file, as `shoal map export` writes it. Default none; needed with `file`.
    pub path: Option<PathBuf>,
    /// How often it is looked whether the file is another one. Default 1 s, 10 ms to 1 min.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// The etcd, with `etcd`.
    pub etcd: store::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            source: Source::Control,
            path: None,
            poll: Duration::from_secs(1),
            etcd: store::Config::default(),
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        if self.source == Source::File && self.path.is_none() {
            faults.push("query.map.path is not set, query.map.source file needs it".to_owned());
        }
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(60));
        if !(least..=most).contains(&self.poll) {
            faults.push(format!(
                "query.map.poll is {:?}, allowed are {least:?} to {most:?}",
                self.poll
            ));
        }
        if self.source == Source::Etcd {
            self.etcd.validate("query.map.etcd", faults);
        }
    }
}

/// Whether the source is read, and why not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// What keeps the source from being read now.
    pub(crate) fn told(&self) -> Option<String> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    /// Notes a failure, and says a new one in the log.
    fn failed(&self, why: String) {
        counter!(QUERY_MAP_FAILURES_TOTAL).increment(1);
        gauge!(QUERY_MAP_STALE).set(1.0);
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(&why) {
            warn!(
                error = why,
                "shard map cannot be read, the last good one is kept"
            );
        }
        *told = Some(why);
    }

    fn over(&self) {
        gauge!(QUERY_MAP_STALE).set(0.0);
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.take().is_some() {
            info!("shard map is read again");
        }
    }
}

/// Starts following the source, and calls `changed` with each map.
pub(crate) fn follow(
    config: &Config,
    deps: &Deps,
    home: &HomeCluster,
    changed: impl Fn(&ShardMap) + Send + Sync + 'static,
) -> (Maps, Trouble) {
    let trouble = Trouble::default();
    match (config.source, &config.path) {
        (Source::File, Some(path)) => {
            let (sender, maps) = Maps::channel(ShardMap::default());
            let file = file::Watched::new(path.clone(), config.poll, home.clone(), trouble.clone());
            file.spawn(Feed::new(sender, changed), &deps.tasks);
            (maps, trouble)
        }
        (Source::Etcd, _) => {
            let (sender, maps) = Maps::channel(ShardMap::default());
            let feed = Feed::new(sender, changed);
            etcd::spawn(
                &config.etcd,
                feed,
                home.clone(),
                trouble.clone(),
                &deps.tasks,
            );
            (maps, trouble)
        }
        // Settings are checked: a file has a path.
        (Source::Control | Source::File, _) => {
            let maps = Maps::follow(&deps.control, &deps.tasks, changed);
            (maps, trouble)
        }
    }
}
