//! A whole Shoal of a test: a Kafka, the library's view of it, and roles started as needed.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use shoal_producer::{Delivery, PublishConfig, Publisher};
use shoal_runtime::{
    clock::{Clock as _, System},
    eventually,
    tasks::Tasks,
};
use shoal_schemas::{Collection, Metric, Point, PointId, Token, v1};
use shoal_topic::{
    Cluster,
    broker::{RegistryOptions, SchemaRegistry},
    collections,
    control::{ControlHandle, ControlLog},
    kafka,
};
use tokio_util::sync::CancellationToken;

use super::{
    DEADLINE, client, folder,
    kafka::Kafka,
    model::Model,
    role::{Role, Settings},
    runtime,
    state::{self, State},
    wait,
};

/// A cluster, seen through the library.
pub(crate) struct World {
    pub(crate) folder: PathBuf,
    pub(crate) kafka: Kafka,
    pub(crate) cluster: Cluster,
    pub(crate) control: ControlHandle,
    cancel: CancellationToken,
}

impl World {
    /// A world whose broker runs.
    pub(crate) fn new(name: &str) -> Self {
        let mut world = Self::without_broker(name);
        world.kafka.start();
        world.is_up();
        world
    }

    /// A world whose broker is not started yet.
    pub(crate) fn without_broker(name: &str) -> Self {
        let folder = folder::fresh(name);
        let kafka = Kafka::down(folder.join("kafka"));
        let cluster = kafka::connect(&kafka::Config::to(kafka.bootstrap())).unwrap();
        let cancel = CancellationToken::new();
        let tasks = Tasks::new(cancel.clone());
        let _inside = runtime().enter();
        let control = ControlLog::spawn(&cluster, &tasks, System::shared()).unwrap();
        Self {
            folder,
            kafka,
            cluster,
            control,
            cancel,
        }
    }

    /// Makes the control topic, once the broker runs.
    pub(crate) fn is_up(&self) {
        eventually(DEADLINE, "the control topic", || {
            ControlLog::ensure(&self.cluster, None).ok()
        });
        self.control.caught_up_blocking(DEADLINE).unwrap();
    }

    /// Makes a collection: cosine, murmur2.
    pub(crate) fn collection(&self, name: &str, dim: u32, partitions: u32) -> Collection {
        let dim = dim.try_into().unwrap();
        self.create(Collection::new(
            name.parse().unwrap(),
            dim,
            Metric::Cosine,
            partitions,
        ))
    }

    /// Makes this very collection.
    pub(crate) fn create(&self, collection: Collection) -> Collection {
        let made = wait(collections::create(
            &self.cluster,
            &self.control,
            collection,
        ))
        .unwrap();
        assert!(made.created);
        made.collection
    }

    pub(crate) fn publisher(&self, collection: &Collection) -> Publisher {
        publisher(&self.cluster, collection)
    }

    /// One whose batches are no larger than `bytes`, and so what shards fetch at once.
    pub(crate) fn publisher_in_batches(&self, collection: &Collection, bytes: u32) -> Publisher {
        let config = kafka::Config {
            batch_bytes: bytes,
            ..kafka::Config::to(self.kafka.bootstrap())
        };
        publisher(&kafka::connect(&config).unwrap(), collection)
    }

    pub(crate) fn indexer(&self, name: &str) -> Settings {
        Settings::indexer(name, &self.folder, &self.kafka.bootstrap())
    }

    pub(crate) fn group_indexer(&self, name: &str) -> Settings {
        Settings::group_indexer(name, &self.folder, &self.kafka.bootstrap())
    }

    pub(crate) fn query(&self, name: &str) -> Settings {
        Settings::query(name, &self.folder, &self.kafka.bootstrap())
    }

    pub(crate) fn gateway(&self, name: &str) -> Settings {
        Settings::gateway(name, &self.folder, &self.kafka.bootstrap())
    }

    /// Variables for a verb of the command line.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        vec![("SHOAL_KAFKA__BOOTSTRAP".to_owned(), self.kafka.bootstrap())]
    }

    /// Waits until one indexer has applied everything of a collection.
    #[track_caller]
    pub(crate) fn settled(&self, indexer: &Role, collection: &Collection) -> State {
        state::settled(&[indexer.settings.grpc], &self.cluster, collection)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The world that tests share which harm nobody: every role once, and a real schema registry.
pub(crate) struct Shared {
    pub(crate) world: World,
    pub(crate) indexer: Role,
    pub(crate) query: client::Query,
    pub(crate) query_role: Role,
    pub(crate) gateway: client::Gateway,
    pub(crate) registry: SchemaRegistry,
}

/// Starts it with the first test that asks.
pub(crate) fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let world = World::new("shared");
        let registry = registry(&world.folder);
        let url = registry.url();
        let traced = "info,shoal_indexer=debug,shoal_query=debug";
        let indexer = world
            .indexer("indexer")
            .with("REGISTRY__URL", &url)
            .with("TELEMETRY__FILTER", traced)
            .start();
        let query_role = world
            .query("query")
            .with("TELEMETRY__FILTER", traced)
            .start();
        let gateway_role = world.gateway("gateway").start();
        let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
        let gateway = client::Gateway::to(gateway_role.settings.grpc, gateway_role.settings.http);
        // Lives as long as the tests do.
        std::mem::forget(gateway_role);
        Shared {
            world,
            indexer,
            query,
            query_role,
            gateway,
            registry,
        }
    })
}

fn registry(folder: &Path) -> SchemaRegistry {
    let started = SchemaRegistry::start(&RegistryOptions::new(folder.join("registry")));
    started.unwrap_or_else(|error| panic!("{error}"))
}

impl Shared {
    /// Makes a collection, cosine and murmur2, and waits until its shards serve.
    #[track_caller]
    pub(crate) fn collection(&self, name: &str, dim: u32, partitions: u32) -> Collection {
        let made = self.world.collection(name, dim, partitions);
        self.serves(made)
    }

    /// Makes this very collection and waits until its shards serve.
    #[track_caller]
    pub(crate) fn create(&self, collection: Collection) -> Collection {
        let made = self.world.create(collection);
        self.serves(made)
    }

    fn serves(&self, collection: Collection) -> Collection {
        let ask = v1::CountRequest {
            collection: collection.name.to_string(),
            read: client::at_least(&[]),
            ..v1::CountRequest::default()
        };
        eventually(DEADLINE, "every shard to serve", || {
            self.query.count(ask.clone()).ok()
        });
        // The gateway learns of it in its own time.
        eventually(DEADLINE, "the gateway to know the collection", || {
            self.gateway
                .delete(collection.name.as_str(), &[])
                .err()
                .filter(|refused| refused.code() != tonic::Code::NotFound)
        });
        collection
    }

    /// Waits until the query node can answer with everything the topic holds.
    #[track_caller]
    pub(crate) fn settled(&self, collection: &Collection) -> State {
        self.world.settled(&self.indexer, collection)
    }
}

/// Publishes points one after the other and notes them in the model, all acknowledged.
pub(crate) fn publish(
    publisher: &Publisher,
    model: &mut Model,
    points: Vec<(PointId, Point)>,
) -> Vec<Token> {
    let sent: Vec<(Delivery, Point)> = points
        .into_iter()
        .map(|(id, point)| (wait(publisher.publish(&id, &point)).unwrap(), point))
        .collect();
    let mut tokens = Vec::new();
    for (delivery, point) in sent {
        let token = wait(delivery).unwrap();
        model.upsert(&token.key, token.version, &point);
        tokens.push(token);
    }
    tokens
}

/// Publishes deletes and notes them in the model, all acknowledged.
pub(crate) fn delete(publisher: &Publisher, model: &mut Model, ids: &[PointId]) -> Vec<Token> {
    let sent: Vec<Delivery> = ids
        .iter()
        .map(|id| wait(publisher.delete(id)).unwrap())
        .collect();
    let mut tokens = Vec::new();
    for delivery in sent {
        let token = wait(delivery).unwrap();
        model.delete(&token.key);
        tokens.push(token);
    }
    tokens
}

/// Wall time, milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(System::new().now_ms()).unwrap()
}

fn publisher(cluster: &Cluster, collection: &Collection) -> Publisher {
    let config = PublishConfig::default();
    let made = Publisher::new(cluster, System::shared(), collection.clone(), config);
    wait(made).unwrap()
}
