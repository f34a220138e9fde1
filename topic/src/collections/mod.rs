//! Making and dropping a collection: its topic, its dead-letter topic, its definition.
//!
//! The definition in the control topic comes last, so whoever reads it finds the topics there.
//! Nothing of this is a transaction: a call that breaks off half-way is made again and goes on,
//! because topics that are there and fit are taken as they are. A topic that does not fit is
//! never altered: its owner is told what to change.
//!
//! Two calls that define one name differently at the same moment are told apart by the log: the
//! later definition stands, and the caller of the other one gets [`CreateError::Differs`] if it
//! is overtaken before it has read its own back.

mod alias;
mod difference;
mod topics;

use std::time::Duration;

use shoal_runtime::{ErrorKind, tasks::blocking};
use shoal_schemas::{
    Collection, CollectionName,
    collection::DefinitionError,
    control::{Entry, Key},
};

use crate::{
    AdminError, Cluster,
    control::{ControlError, ControlHandle, ControlState},
};

pub use alias::{AliasError, Taken, drop_alias, set_alias};
pub use difference::Difference;
use difference::{differences, listed, log_differences};

/// How long the control topic may take to be read for the first time.
const CAUGHT_UP: Duration = Duration::from_secs(10);
/// How long a definition may take to come back from the control topic.
const READ_BACK: Duration = Duration::from_secs(30);

/// A collection that is there now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its definition.
    pub collection: Collection,
    /// False if an equal one was there already.
    pub created: bool,
}

/// Why a collection was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The definition itself.
    #[error("collection definition is refused")]
    Definition(#[from] DefinitionError),
    /// One of that name says something else.
    #[error("collection `{name}` exists and differs: {}", listed(.differences))]
    Differs {
        /// The name.
        name: CollectionName,
        /// Every field that differs.
        differences: Vec<Difference>,
    },
    /// An alias has that name.
    #[error("`{name}` is an alias of collection `{target}`, so it cannot be a collection")]
    Alias {
        /// The name.
        name: CollectionName,
        /// What it stands for.
        target: CollectionName,
    },
    /// It is to read a topic that is no collection's.
    #[error("collection `{name}` cannot read the topic of `{reads}`: {why}")]
    Reads {
        /// The name.
        name: CollectionName,
        /// Whose topic it is to read.
        reads: CollectionName,
        /// What is wrong.
        why: String,
    },
    /// A topic is there and cannot hold the collection.
    #[error("topic `{topic}` exists and does not fit: {}", .faults.join("; "))]
    Misfit {
        /// The topic.
        topic: String,
        /// Each fault, with what to do about it.
        faults: Vec<String>,
    },
    /// The broker did not make or describe a topic.
    #[error("topic `{topic}` cannot be made")]
    Topic {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: AdminError,
    },
    /// The control topic was not read, or did not take the definition.
    #[error("definition of `{name}` cannot be recorded")]
    Control {
        /// The collection.
        name: CollectionName,
        /// Why.
        #[source]
        source: ControlError,
    },
    /// Somebody dropped it while it was being made.
    #[error("collection `{name}` was dropped by another call meanwhile")]
    Dropped {
        /// The collection.
        name: CollectionName,
    },
}

impl CreateError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Definition(_)
            | Self::Differs { .. }
            | Self::Alias { .. }
            | Self::Reads { .. }
            | Self::Misfit { .. } => ErrorKind::Caller,
            Self::Dropped { .. } => ErrorKind::Retry,
            Self::Topic { source, .. } => source.kind(),
            Self::Control { source, .. } => source.kind(),
        }
    }
}

/// Why a collection was not dropped.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// There is none of that name.
    #[error("collection `{name}` does not exist; there are: {}", known(.existing))]
    Missing {
        /// The name.
        name: CollectionName,
        /// All names there are.
        existing: Vec<CollectionName>,
    },
    /// An alias stands for it.
    #[error("alias `{alias}` stands for collection `{name}`; set or drop the alias first")]
    Aliased {
        /// The name.
        name: CollectionName,
        /// The alias.
        alias: CollectionName,
    },
    /// Its topic is to go, and another collection reads it.
    #[error(
        "topic `{topic}` cannot be deleted, collection `{reader}` reads it; nothing was dropped"
    )]
    Read {
        /// The topic.
        topic: String,
        /// Who reads it.
        reader: CollectionName,
    },
    /// The control topic did not take the tombstones.
    #[error("collection `{name}` cannot be forgotten")]
    Control {
        /// The collection.
        name: CollectionName,
        /// Why.
        #[source]
        source: ControlError,
    },
    /// The definition is gone, a topic is still there.
    #[error("collection is dropped, but its topic `{topic}` is still there")]
    Topic {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: AdminError,
    },
}

impl DropError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } | Self::Aliased { .. } | Self::Read { .. } => ErrorKind::Caller,
            Self::Control { source, .. } => source.kind(),
            Self::Topic { source, .. } => source.kind(),
        }
    }
}

/// Makes a collection, or finds that an equal one is there.
///
/// Its topics are made if missing (also for a definition that is there already) and taken as
/// they are if they fit. Returns once this process has read the definition back.
///
/// # Errors
/// [`CreateError`]; after a [`ErrorKind::Retry`] the same call may be made again.
pub async fn create(
    cluster: &Cluster,
    control: &ControlHandle,
    mut wanted: Collection,
) -> Result<Created, CreateError> {
    wanted.check()?;
    let name = wanted.name.clone();
    let failed = |source| CreateError::Control {
        name: name.clone(),
        source,
    };
    let state = control.caught_up(CAUGHT_UP).await.map_err(failed)?;
    let existing = state.collections.get(&name);
    match (existing, state.aliases.get(&name)) {
        (Some(found), _) => same(found, &wanted)?,
        (None, Some(target)) => {
            let target = target.clone();
            return Err(CreateError::Alias { name, target });
        }
        (None, None) => can_read(&state, &wanted)?,
    }
    for which in [topics::Which::Home, topics::Which::DeadLetter] {
        let admin = cluster.admin.clone();
        let wanted = wanted.clone();
        blocking(move || topics::ensure(&*admin, which, &wanted)).await?;
    }
    if let Some(found) = existing {
        return Ok(Created {
            collection: found.clone(),
            created: false,
        });
    }
    // Said from here on: what suits may be another in a later version, and this one stays as it is.
    wanted.index.quantization = Some(wanted.quantization());
    let entry = Entry::Collection(Box::new(wanted.clone()));
    let key = Key::Collection(name.clone());
    let offset = control.put(&key, &entry).await.map_err(failed)?;
    let state = control.wait_for(offset, READ_BACK).await.map_err(failed)?;
    match state.collections.get(&name) {
        Some(found) => same(found, &wanted)?,
        None => return Err(CreateError::Dropped { name }),
    }
    Ok(Created {
        collection: wanted,
        created: true,
    })
}

/// Forgets a collection: tombstones its definition, then the claims of its shards.
///
/// The definition goes first, so that indexers let go and claim nothing anew. The topics and all
/// points stay, and `create` takes them up again, unless `delete_topics` is set.
///
/// # Errors
/// [`DropError`]; after a [`ErrorKind::Retry`] the same call may be made again, except that a
/// [`DropError::Topic`] leaves only the topics to delete.
pub async fn drop(
    cluster: &Cluster,
    control: &ControlHandle,
    name: &CollectionName,
    delete_topics: bool,
) -> Result<(), DropError> {
    let refused = |source| DropError::Control {
        name: name.clone(),
        source,
    };
    let state = control.caught_up(CAUGHT_UP).await.map_err(refused)?;
    let Some(collection) = state.collections.get(name) else {
        return Err(DropError::Missing {
            name: name.clone(),
            existing: state.collections.keys().cloned().collect(),
        });
    };
    if let Some((alias, _)) = state.aliases.iter().find(|(_, target)| *target == name) {
        return Err(DropError::Aliased {
            name: name.clone(),
            alias: alias.clone(),
        });
    }
    let mut readers = state.readers(collection.home()).into_iter();
    if let Some(other) = readers.find(|other| other.name != *name)
        && delete_topics
    {
        return Err(DropError::Read {
            topic: collection.topic(),
            reader: other.name.clone(),
        });
    }
    let definition = Key::Collection(name.clone());
    let mut last = control.remove(&definition).await.map_err(refused)?;
    let shards = state.shards.keys().filter(|(of, _)| of == name);
    for (of, shard) in shards {
        let claim = Key::Shard(of.clone(), *shard);
        last = control.remove(&claim).await.map_err(refused)?;
    }
    let replicas = state.replicas.keys().filter(|(of, ..)| of == name);
    for (of, shard, set) in replicas {
        let claim = Key::Replica(of.clone(), *shard, set.clone());
        last = control.remove(&claim).await.map_err(refused)?;
    }
    if state.feeds.contains_key(name) {
        let feed = Key::Feed(name.clone());
        last = control.remove(&feed).await.map_err(refused)?;
    }
    control.wait_for(last, READ_BACK).await.map_err(refused)?;
    if delete_topics {
        for topic in [collection.topic(), collection.home().dlq_topic()] {
            let admin = cluster.admin.clone();
            blocking(move || {
                admin
                    .delete_topic(&topic)
                    .map_err(|source| DropError::Topic { topic, source })
            })
            .await?;
        }
    }
    Ok(())
}

/// Passes if the topic that a definition reads is there for it: one of a collection that routes the
/// same vectors in the same way.
fn can_read(state: &ControlState, wanted: &Collection) -> Result<(), CreateError> {
    let Some(reads) = &wanted.reads else {
        return Ok(());
    };
    let readers = state.readers(reads);
    let why = match readers.first() {
        None => match state.collections.get(reads) {
            None => format!("no collection has it; there are: {}", {
                let names: Vec<_> = state.collections.keys().cloned().collect();
                known(&names)
            }),
            Some(other) => format!("it reads that of `{}` itself; name that one", other.home()),
        },
        Some(reader) => {
            let differences = log_differences(reader, wanted);
            if differences.is_empty() {
                return Ok(());
            }
            format!("of `{}`, {}", reader.name, listed(&differences))
        }
    };
    Err(CreateError::Reads {
        name: wanted.name.clone(),
        reads: reads.clone(),
        why,
    })
}

/// Passes if both say the same.
fn same(found: &Collection, wanted: &Collection) -> Result<(), CreateError> {
    let differences = differences(found, wanted);
    if differences.is_empty() {
        Ok(())
    } else {
        Err(CreateError::Differs {
            name: wanted.name.clone(),
            differences,
        })
    }
}

/// Names for an error's text, at most twenty.
fn known(names: &[CollectionName]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "none".into();
    }
    let shown: Vec<&str> = names
        .iter()
        .take(SHOWN)
        .map(CollectionName::as_str)
        .collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests;
