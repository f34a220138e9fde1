//! Where a run writes: one collection, or whatever a name stands for by now.
//!
//! A run from standard input may last for days, and `shoal reindex` may move its name meanwhile. So the
//! name is looked at before each record, which costs no more than comparing two offsets until something
//! has changed.

use std::sync::Arc;

use shoal_runtime::{ErrorKind, clock::Clock};
use shoal_schemas::{Collection, CollectionName, Offset};
use shoal_topic::{Cluster, WriteError, control::ControlHandle};
use tracing::info;

use crate::{PublishConfig, Publisher};

/// Where a run writes.
#[derive(Clone)]
pub struct Outlet {
    pub(super) publisher: Publisher,
    followed: Option<Followed>,
}

/// A name that is followed.
#[derive(Clone)]
struct Followed {
    name: CollectionName,
    control: ControlHandle,
    cluster: Cluster,
    clock: Arc<dyn Clock>,
    config: PublishConfig,
    /// Up to where the control topic was looked at.
    seen: Offset,
}

/// Why a run cannot go over with its name.
#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    /// It was dropped.
    #[error("`{name}` stands for no collection any more")]
    Gone {
        /// The name.
        name: CollectionName,
    },
    /// The broker does not answer.
    #[error("`{name}` stands for another collection now, which cannot be written to")]
    Away {
        /// The name.
        name: CollectionName,
        /// Why.
        #[source]
        source: WriteError,
    },
}

impl OutletError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Gone { .. } => ErrorKind::Caller,
            Self::Away { source, .. } => source.kind(),
        }
    }
}

impl From<&Publisher> for Outlet {
    fn from(publisher: &Publisher) -> Self {
        Self {
            publisher: publisher.clone(),
            followed: None,
        }
    }
}

impl Outlet {
    /// Writes for a name, beginning with what it stands for now.
    ///
    /// # Errors
    /// [`OutletError`].
    pub async fn following(
        name: CollectionName,
        cluster: &Cluster,
        control: &ControlHandle,
        clock: Arc<dyn Clock>,
        config: PublishConfig,
    ) -> Result<Self, OutletError> {
        let followed = Followed {
            name,
            control: control.clone(),
            cluster: cluster.clone(),
            clock,
            config,
            // Looked at again before the first record, should it change from here on.
            seen: control.snapshot().changed_at,
        };
        let defined = followed.defined()?;
        Ok(Self {
            publisher: followed.publisher(defined).await?,
            followed: Some(followed),
        })
    }

    /// Goes over with the name if that has moved.
    pub(super) async fn follow(&mut self) -> Result<(), OutletError> {
        let Some(followed) = &mut self.followed else {
            return Ok(());
        };
        let changed_at = followed.control.snapshot().changed_at;
        if changed_at == followed.seen {
            return Ok(());
        }
        let defined = followed.defined()?;
        if defined != *self.publisher.collection() {
            let (from, to) = (self.publisher.collection().topic(), defined.topic());
            self.publisher = followed.publisher(defined).await?;
            info!(from, to, "name has moved, publishing goes on there");
        }
        followed.seen = changed_at;
        Ok(())
    }
}

impl Followed {
    /// What the name stands for now.
    fn defined(&self) -> Result<Collection, OutletError> {
        let state = self.control.snapshot();
        let defined = state.written(&self.name).cloned();
        defined.ok_or_else(|| OutletError::Gone {
            name: self.name.clone(),
        })
    }

    async fn publisher(&self, of: Collection) -> Result<Publisher, OutletError> {
        let (clock, config) = (Arc::clone(&self.clock), self.config.clone());
        let made = Publisher::new(&self.cluster, clock, of, config).await;
        made.map_err(|source| OutletError::Away {
            name: self.name.clone(),
            source,
        })
    }
}
