//! One role of Shoal as a process of its own: its settings, its addresses, its state.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use shoal_runtime::eventually;

use super::{DEADLINE, child::Child, client, disk::Disk, place};

/// What an indexer logs of a shard that begins anew.
pub(crate) const SET_ASIDE: &str =
    "what the shard holds is damaged or does not lead on to the topic; it is set aside and rebuilt";

/// How a role is started. Settings are environment variables without their `SHOAL_`.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) role: &'static str,
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) variables: Vec<(String, String)>,
    /// What it is started through.
    pub(crate) entrance: Vec<String>,
}

impl Settings {
    fn of(role: &'static str, name: &str, folder: &Path, bootstrap: &str) -> Self {
        let settings = Self {
            role,
            name: name.to_owned(),
            folder: folder.to_owned(),
            grpc: place::free(),
            http: place::free(),
            variables: Vec::new(),
            entrance: Vec::new(),
        };
        let section = role.to_uppercase();
        let (grpc, http) = (settings.grpc, settings.http);
        settings
            .with("KAFKA__BOOTSTRAP", bootstrap)
            .with("TELEMETRY__FORMAT", "json")
            .with(&format!("{section}__GRPC_LISTEN"), grpc)
            .with(&format!("{section}__HTTP_LISTEN"), http)
    }

    /// An indexer that serves every shard of every collection, whoever else does.
    pub(crate) fn indexer(name: &str, folder: &Path, bootstrap: &str) -> Self {
        let data = folder.join(name);
        Self::of("indexer", name, folder, bootstrap)
            .with("INDEXER__NODE", name)
            .with("INDEXER__DATA_DIR", data.display())
            .with("INDEXER__OWNERSHIP__KIND", "static")
            .with("INDEXER__OWNERSHIP__SHARDS", "[]")
    }

    /// An indexer that shares the shards with the others of its group.
    pub(crate) fn group_indexer(name: &str, folder: &Path, bootstrap: &str) -> Self {
        let mut settings = Self::indexer(name, folder, bootstrap);
        settings
            .variables
            .retain(|(name, _)| !name.contains("OWNERSHIP"));
        settings
    }

    pub(crate) fn query(name: &str, folder: &Path, bootstrap: &str) -> Self {
        Self::of("query", name, folder, bootstrap)
    }

    pub(crate) fn gateway(name: &str, folder: &Path, bootstrap: &str) -> Self {
        Self::of("gateway", name, folder, bootstrap)
    }

    /// Sets one more variable; the last one of a name counts.
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        let name = format!("SHOAL_{name}");
        self.variables.retain(|(set, _)| *set != name);
        self.variables.push((name, value.to_string()));
        self
    }

    /// Where it sees this disk.
    pub(crate) fn on(mut self, disk: &Disk) -> Self {
        self.entrance = disk.entrance();
        self
    }

    /// An engine so small that a few thousand records make it checkpoint, seal and compact.
    pub(crate) fn small_engine(self) -> Self {
        self.with("INDEXER__ENGINE__CHECKPOINT_BYTES", "1MiB")
            .with("INDEXER__ENGINE__WAL_SEGMENT_BYTES", "1MiB")
            .with("INDEXER__ENGINE__MEMTABLE_ROWS", 256)
            .with("INDEXER__ENGINE__SEAL_ROWS", 1024)
            .with("INDEXER__ENGINE__COMPACT_DEAD_ROWS", 128)
            .with("INDEXER__ENGINE__COMPACT_DEAD_SHARE", 0.2)
            .with("INDEXER__ENGINE__SYNC_INTERVAL", "10ms")
    }

    /// Where its data is.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Starts it and does not wait.
    pub(crate) fn launch(&self) -> Role {
        // Each life has a log of its own.
        static LIVES: AtomicU32 = AtomicU32::new(0);
        let life = LIVES.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.join(format!("{}-{life}.log", self.name));
        let arguments = [self.role];
        let (name, variables) = (&self.name, &self.variables);
        Role {
            child: Child::shoal_through(name, &self.entrance, &arguments, variables, &log),
            settings: self.clone(),
        }
    }

    /// Starts it and waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn start(&self) -> Role {
        let mut role = self.launch();
        role.is_ready();
        role
    }
}

/// A running role.
pub(crate) struct Role {
    pub(crate) child: Child,
    pub(crate) settings: Settings,
}

impl Role {
    /// Waits until `/readyz` says yes.
    #[track_caller]
    pub(crate) fn is_ready(&mut self) {
        eventually(
            DEADLINE,
            &format!("{} to be ready", self.settings.name),
            || {
                self.child.lives();
                let (status, _) = client::try_get(self.settings.http, "/readyz")?;
                (status == 200).then_some(())
            },
        );
    }

    /// What `/metrics` says now.
    pub(crate) fn metrics(&self) -> Metrics {
        let (status, text) = client::get(self.settings.http, "/metrics");
        assert_eq!(status, 200);
        Metrics(text)
    }

    /// How often it has logged a message.
    pub(crate) fn said(&self, message: &str) -> usize {
        let lines = self.child.logged();
        let same = lines.iter().filter(|line| line["message"] == message);
        same.count()
    }

    /// Fails the test if it has logged errors other than the expected messages.
    #[track_caller]
    pub(crate) fn had_no_errors(&self, expected: &[&str]) {
        let errors = self.child.errors(expected);
        assert!(errors.is_empty(), "{}: {errors:#?}", self.settings.name);
    }
}

/// A Prometheus exposition.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// Every sample of a metric whose labels hold all of `labels`.
    pub(crate) fn samples(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        let lines = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            let is_whole_name = found.is_empty() || found.starts_with('{');
            let fits = is_whole_name && labels.iter().all(|label| found.contains(label));
            fits.then(|| value.parse().unwrap())
        });
        lines.collect()
    }

    /// Their sum.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples(name, labels).iter().sum()
    }
}
