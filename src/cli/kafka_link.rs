//! A verb's own link to Kafka: clients, and the control topic read to its end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use shoal_runtime::{
    clock::{Clock, System},
    tasks::{Tasks, blocking},
};
use shoal_schemas::{
    Collection, CollectionName,
    avro::{NoRegistry, WriterSchemas},
    name::CONTROL_TOPIC,
};
use shoal_topic::{
    Cluster,
    control::{ControlHandle, ControlLog, ControlState},
    kafka,
};
use tokio_util::sync::CancellationToken;

use super::{Context, Usage, addresses::KafkaFlag};
use crate::roles;

/// Longest the control topic may take to be read.
const CAUGHT_UP: Duration = Duration::from_secs(20);
const CLOSE: Duration = Duration::from_secs(5);

/// What a verb needs of a cluster.
pub(super) struct KafkaLink {
    pub(super) cluster: Cluster,
    pub(super) control: ControlHandle,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: Tasks,
    pub(super) state: Arc<ControlState>,
}

/// Whether a cluster without a control topic gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    Refuse,
    Make,
}

impl KafkaLink {
    /// Connects and reads the definitions.
    pub(super) async fn open(
        context: &Context,
        flag: &KafkaFlag,
        fresh: Fresh,
    ) -> anyhow::Result<Self> {
        let config = flag.config(context);
        let bootstrap = config.bootstrap.clone();
        let cluster = kafka::connect(&config)?;
        let asked = cluster.clone();
        let found = blocking(move || match fresh {
            Fresh::Make => ControlLog::ensure(&asked, None)
                .map(|()| true)
                .map_err(anyhow::Error::from),
            Fresh::Refuse => asked
                .admin
                .describe_topic(CONTROL_TOPIC)
                .map(|topic| topic.is_some())
                .map_err(anyhow::Error::from),
        });
        let found = found
            .await
            .with_context(|| format!("cannot use Kafka at {bootstrap}"))?;
        if !found {
            bail!(
                "Kafka at {bootstrap} has no topic `{CONTROL_TOPIC}`, so no collections; make one \
                 with `shoal collection create`, or name another Kafka with --kafka"
            );
        }
        let clock = System::shared();
        let tasks = Tasks::new(CancellationToken::new());
        let control = ControlLog::spawn(&cluster, &tasks, clock.clone())?;
        let state = control
            .caught_up(CAUGHT_UP)
            .await
            .with_context(|| format!("cannot read the collections from Kafka at {bootstrap}"))?;
        Ok(Self {
            cluster,
            control,
            clock,
            tasks,
            state,
        })
    }

    /// The definition of what a name stands for.
    pub(super) fn collection(&self, name: &CollectionName) -> anyhow::Result<Collection> {
        self.known(name, self.state.resolve(name))
    }

    /// The definition of the collection that writes for a name go to.
    pub(super) fn written(&self, name: &CollectionName) -> anyhow::Result<Collection> {
        self.known(name, self.state.written(name))
    }

    fn known(
        &self,
        name: &CollectionName,
        found: Option<&Collection>,
    ) -> anyhow::Result<Collection> {
        match found {
            Some(found) => Ok(found.clone()),
            None => {
                let names: BTreeSet<&str> = (self.state.collections.keys())
                    .chain(self.state.aliases.keys())
                    .map(CollectionName::as_str)
                    .collect();
                let known: Vec<&str> = names.into_iter().collect();
                let known = match known.as_slice() {
                    [] => "none".to_owned(),
                    names => names.join(", "),
                };
                bail!("collection `{name}` does not exist; there are: {known}");
            }
        }
    }

    /// Writer schemas by id, from the registry if one is set.
    pub(super) fn schemas(&self, context: &Context) -> anyhow::Result<Arc<dyn WriterSchemas>> {
        let registry = roles::connect_registry(&context.loaded.settings, &self.clock)?;
        Ok(match registry {
            Some(registry) => registry,
            None => Arc::new(NoRegistry),
        })
    }

    /// Lets go of the cluster.
    pub(super) async fn close(self) {
        self.tasks.cancel().cancel();
        let _it_only_read = self.tasks.finish(CLOSE).await;
    }
}

/// A collection's name as an argument.
pub(super) fn collection_name(text: &str) -> Result<CollectionName, Usage> {
    text.parse()
        .map_err(|error: shoal_schemas::name::NameError| Usage(error.to_string()))
}
