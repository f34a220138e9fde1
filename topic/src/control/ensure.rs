//! The control topic's own settings, made once and checked ever after.

use std::collections::BTreeMap;

use shoal_runtime::ErrorKind;
use shoal_schemas::name::CONTROL_TOPIC;

use crate::{Admin, AdminError, Cleanup, TopicSpec};

/// Why the control topic cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// It could not be asked for or made.
    #[error("cannot make topic `{CONTROL_TOPIC}`")]
    Admin(#[from] AdminError),
    /// It is there with settings that lose entries.
    #[error(
        "topic `{CONTROL_TOPIC}` has {partitions} partitions and cleanup.policy={cleanup}, \
         wanted are 1 and compact"
    )]
    Mismatch {
        /// Partitions found.
        partitions: u32,
        /// The policy found.
        cleanup: String,
    },
}

impl EnsureError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Admin(error) => error.kind(),
            Self::Mismatch { .. } => ErrorKind::Caller,
        }
    }
}

pub(super) fn ensure(
    admin: &dyn Admin,
    replication_factor: Option<u16>,
) -> Result<(), EnsureError> {
    if let Some(found) = admin.describe_topic(CONTROL_TOPIC)? {
        return check(&found);
    }
    let settings = [
        // A node that was away for less sees every removal.
        ("delete.retention.ms", "604800000"),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("segment.ms", "86400000"),
    ];
    let spec = TopicSpec {
        name: CONTROL_TOPIC.into(),
        partitions: 1,
        replication_factor,
        cleanup: Cleanup::Compact,
        settings: settings
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    match admin.create_topic(&spec) {
        Ok(()) => Ok(()),
        // Somebody else made it meanwhile.
        Err(AdminError::Exists { .. }) => admin
            .describe_topic(CONTROL_TOPIC)?
            .as_ref()
            .map_or(Ok(()), check),
        Err(error) => Err(error.into()),
    }
}

fn check(found: &TopicSpec) -> Result<(), EnsureError> {
    let cleanup = policy(&found.settings);
    if found.partitions == 1 && cleanup == "compact" {
        return Ok(());
    }
    Err(EnsureError::Mismatch {
        partitions: found.partitions,
        cleanup: cleanup.to_owned(),
    })
}

fn policy(settings: &BTreeMap<String, String>) -> &str {
    settings
        .get("cleanup.policy")
        .map_or("unknown", String::as_str)
}
