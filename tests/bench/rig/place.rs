//! Where a measurement takes place: a folder that is gone afterwards, and a real Kafka in it.

use std::{collections::VecDeque, path::Path};

use shoal_producer::{PublishConfig, Publisher};
use shoal_runtime::{
    clock::{Stopwatch, System},
    tasks::{Tasks, blocking},
};
use shoal_schemas::{Collection, CollectionName, Offset, Point, PointId};
use shoal_topic::{
    Cluster,
    broker::{BrokerOptions, LocalBroker},
    collections::{self, Taken},
    control::{ControlHandle, ControlLog},
    kafka,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Records on their way before the oldest is waited for.
const IN_FLIGHT: usize = 50_000;

/// A broker of our own and what its users share.
pub(crate) struct Place {
    pub(crate) broker: LocalBroker,
    pub(crate) cluster: Cluster,
    control: ControlHandle,
    tasks: Tasks,
    // Last: everything above has files in it.
    folder: TempDir,
}

impl Place {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("shoal-bench-")?;
        let options = BrokerOptions::new(folder.path().join("kafka"));
        let broker = blocking(move || LocalBroker::start(&options)).await?;
        let cluster = kafka::connect(&kafka::Config::to(broker.bootstrap()))?;
        let tasks = Tasks::new(CancellationToken::new());
        let ensured = cluster.clone();
        blocking(move || ControlLog::ensure(&ensured, None)).await?;
        let control = ControlLog::spawn(&cluster, &tasks, System::shared())?;
        Ok(Self {
            broker,
            cluster,
            control,
            tasks,
            folder,
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) async fn create(&self, collection: &Collection) -> anyhow::Result<()> {
        collections::create(&self.cluster, &self.control, collection.clone()).await?;
        Ok(())
    }

    /// Has a name stand for a collection.
    pub(crate) async fn set_alias(
        &self,
        name: &CollectionName,
        to: &CollectionName,
    ) -> anyhow::Result<()> {
        collections::set_alias(&self.control, name, to, Taken::Refuse).await?;
        Ok(())
    }

    pub(crate) async fn drop_collection(&self, collection: &Collection) -> anyhow::Result<()> {
        collections::drop(&self.cluster, &self.control, &collection.name, true).await?;
        Ok(())
    }

    /// Which of the definitions a collection has had it is.
    pub(crate) fn incarnation(&self, collection: &Collection) -> Offset {
        let state = self.control.snapshot();
        let defined = state.defined_at.get(&collection.name);
        defined.copied().unwrap_or_default()
    }

    pub(crate) async fn publisher(&self, collection: &Collection) -> anyhow::Result<Publisher> {
        let config = PublishConfig::default();
        let clock = System::shared();
        Ok(Publisher::new(&self.cluster, clock, collection.clone(), config).await?)
    }

    /// Publishes all points and waits for their acknowledgements; returns the seconds it took.
    pub(crate) async fn publish(
        &self,
        collection: &Collection,
        points: &[(PointId, Point)],
    ) -> anyhow::Result<f64> {
        let publisher = self.publisher(collection).await?;
        let watch = Stopwatch::start();
        let mut on_their_way = VecDeque::new();
        for (id, point) in points {
            on_their_way.push_back(publisher.publish(id, point).await?);
            if on_their_way.len() >= IN_FLIGHT
                && let Some(oldest) = on_their_way.pop_front()
            {
                oldest.await?;
            }
        }
        for delivery in on_their_way {
            delivery.await?;
        }
        Ok(watch.seconds())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}
