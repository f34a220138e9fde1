//! Other names of collections: setting and dropping them.
//!
//! An alias is one record of the control topic, so that every reader goes over from one collection to
//! the next between two calls, never within one. Names are one space: an alias may not have a
//! collection's name. The one exception is a re-indexing ([`Taken::Shadow`]): what clients call `docs`
//! has to stand for the next generation while the collection `docs` is still there, and readers ask
//! aliases first.

use shoal_runtime::ErrorKind;
use shoal_schemas::{
    CollectionName,
    control::{Alias, Entry, Key},
};

use super::{CAUGHT_UP, READ_BACK, known};
use crate::control::{ControlError, ControlHandle};

/// What becomes of a collection that has the alias's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The alias is refused.
    Refuse,
    /// The alias goes before it.
    Shadow,
}

/// Why an alias was not set or dropped.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    /// There is no such collection to stand for.
    #[error("collection `{name}` does not exist, and an alias stands for a collection; there are: {}", known(.existing))]
    Target {
        /// Its name.
        name: CollectionName,
        /// All names there are.
        existing: Vec<CollectionName>,
    },
    /// A collection has that name.
    #[error(
        "`{name}` is a collection, so it cannot be an alias; `shoal reindex` moves its users on"
    )]
    Taken {
        /// The name.
        name: CollectionName,
    },
    /// There is no such alias.
    #[error("alias `{name}` does not exist; there are: {}", known(.existing))]
    Missing {
        /// The name.
        name: CollectionName,
        /// All aliases there are.
        existing: Vec<CollectionName>,
    },
    /// The collection was dropped, or the alias set anew, at the same moment.
    #[error("alias `{name}` was changed by another call meanwhile")]
    Overtaken {
        /// The alias.
        name: CollectionName,
    },
    /// The control topic was not read, or did not take it.
    #[error("alias `{name}` cannot be recorded")]
    Control {
        /// The alias.
        name: CollectionName,
        /// Why.
        #[source]
        source: ControlError,
    },
}

impl AliasError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Target { .. } | Self::Taken { .. } | Self::Missing { .. } => ErrorKind::Caller,
            Self::Overtaken { .. } => ErrorKind::Retry,
            Self::Control { source, .. } => source.kind(),
        }
    }
}

/// Has `name` stand for `target`, and says what it stood for before.
///
/// Returns once this process has read it back.
///
/// # Errors
/// [`AliasError`]; after a [`ErrorKind::Retry`] the same call may be made again.
pub async fn set_alias(
    control: &ControlHandle,
    name: &CollectionName,
    target: &CollectionName,
    taken: Taken,
) -> Result<Option<CollectionName>, AliasError> {
    let failed = |source| AliasError::Control {
        name: name.clone(),
        source,
    };
    let state = control.caught_up(CAUGHT_UP).await.map_err(failed)?;
    if !state.collections.contains_key(target) {
        return Err(AliasError::Target {
            name: target.clone(),
            existing: state.collections.keys().cloned().collect(),
        });
    }
    if taken == Taken::Refuse && state.collections.contains_key(name) {
        return Err(AliasError::Taken { name: name.clone() });
    }
    let entry = Entry::Alias(Alias {
        collection: target.clone(),
    });
    let key = Key::Alias(name.clone());
    let before = state.aliases.get(name).cloned();
    let offset = control.put(&key, &entry).await.map_err(failed)?;
    let state = control.wait_for(offset, READ_BACK).await.map_err(failed)?;
    let holds = state.aliases.get(name) == Some(target) && state.collections.contains_key(target);
    if !holds {
        return Err(AliasError::Overtaken { name: name.clone() });
    }
    Ok(before)
}

/// Takes an alias away; what it stood for stays.
///
/// # Errors
/// [`AliasError`]; after a [`ErrorKind::Retry`] the same call may be made again.
pub async fn drop_alias(control: &ControlHandle, name: &CollectionName) -> Result<(), AliasError> {
    let failed = |source| AliasError::Control {
        name: name.clone(),
        source,
    };
    let state = control.caught_up(CAUGHT_UP).await.map_err(failed)?;
    if !state.aliases.contains_key(name) {
        return Err(AliasError::Missing {
            name: name.clone(),
            existing: state.aliases.keys().cloned().collect(),
        });
    }
    let key = Key::Alias(name.clone());
    let offset = control.remove(&key).await.map_err(failed)?;
    control.wait_for(offset, READ_BACK).await.map_err(failed)?;
    Ok(())
}
