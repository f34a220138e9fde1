//! Putting refused records back.
//!
//! A retried record is a *new* record of its id: sent to the partition that the collection's rule
//! says, with a version of now. So one that stood in the wrong partition lands in the right one,
//! and one that was overtaken by a newer write of the same id overtakes that write again: look
//! at the id before putting an old record back. What would be refused again is not sent. What was
//! put back is marked so in the dead-letter topic.

use std::sync::Arc;

use bytes::Bytes;
use shoal_runtime::{ErrorKind, chain, tasks::blocking};
use shoal_schemas::{
    PointId, Record, Rejection, Token,
    avro::WriterSchemas,
    dlq::{Entry, Item},
    event::{self, ValueError},
    headers::{self, Meta},
    point::IdError,
};
use shoal_topic::Cluster;
use tokio::sync::mpsc;
use tracing::warn;

use super::{Filter, Listed, Origin, ScanError, Seen, put_back, scan};
use crate::{PublishError, Publisher, trace};

/// Entries read ahead of a retry of many. Full = the reader waits.
const AHEAD: usize = 16;

/// What is put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Correction {
    /// The record as it was.
    #[default]
    Unchanged,
    /// Another value in any encoding that a collection takes, JSON for one.
    Value(Bytes),
    /// A delete of the id.
    Delete,
}

/// Why a record was not put back.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// Its content never left its region.
    #[error(
        "record {origin} was refused for its residency and its content is not kept here; publish it again where it belongs"
    )]
    Withheld {
        /// The record.
        origin: Origin,
    },
    /// Its key is no id.
    #[error(
        "record {origin} has no usable id; publish the point anew under an id of 1 to 512 bytes of UTF-8"
    )]
    Key {
        /// The record.
        origin: Origin,
        /// Why.
        #[source]
        source: IdError,
    },
    /// It would be refused again.
    #[error("record {origin} would be refused again; give a corrected value, or delete the id")]
    StillRefused {
        /// The record.
        origin: Origin,
        /// Why.
        #[source]
        source: Rejection,
    },
    /// Whether it would be refused cannot be known now.
    #[error("record {origin} cannot be checked now")]
    Unchecked {
        /// The record.
        origin: Origin,
        /// Why.
        #[source]
        source: ValueError,
    },
    /// The log did not take it.
    #[error("record {origin} was not put back")]
    Publish {
        /// The record.
        origin: Origin,
        /// Why.
        #[source]
        source: PublishError,
    },
}

impl RetryError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Withheld { .. } | Self::Key { .. } | Self::StillRefused { .. } => {
                ErrorKind::Caller
            }
            Self::Unchecked { .. } => ErrorKind::Retry,
            Self::Publish { source, .. } => source.kind(),
        }
    }
}

/// Puts one record back and returns its token once the log has it, whether or not it was put back
/// before.
///
/// `publisher` is that of the entry's collection.
///
/// # Errors
/// [`RetryError`]; nothing was sent, except perhaps after [`RetryError::Publish`].
pub async fn retry(
    entry: &Entry,
    correction: Correction,
    publisher: &Publisher,
    schemas: &Arc<dyn WriterSchemas>,
) -> Result<Token, RetryError> {
    let origin = Origin::of(entry);
    if entry.is_withheld() {
        return Err(RetryError::Withheld { origin });
    }
    let id = match PointId::from_key(entry.record.key.as_deref()) {
        Ok(id) => id,
        Err(source) => return Err(RetryError::Key { origin, source }),
    };
    let value = match correction {
        Correction::Unchanged => entry.record.value.clone(),
        Correction::Value(value) => Some(value),
        Correction::Delete => None,
    };
    let kept = kept_headers(entry);
    let record = Record {
        key: entry.record.key.clone(),
        value: value.clone(),
        headers: kept.clone(),
        timestamp_ms: entry.record.timestamp_ms,
    };
    let refused = |source| RetryError::StillRefused {
        origin: origin.clone(),
        source,
    };
    Meta::decode(&record).map_err(refused)?;
    if let Some(value) = value.clone() {
        let (id, collection) = (id.clone(), publisher.collection().clone());
        let schemas = Arc::clone(schemas);
        // Looking a schema up may ask the registry.
        let read = blocking(move || event::decode_value(&id, &value, &collection, &*schemas)).await;
        match read {
            Ok(_) => {}
            Err(ValueError::Rejected(source)) => return Err(refused(source)),
            Err(source) => return Err(RetryError::Unchecked { origin, source }),
        }
    }
    let failed = |source| RetryError::Publish {
        origin: origin.clone(),
        source,
    };
    let delivery = publisher.resend(&id, value, &kept).await.map_err(failed)?;
    let token = delivery.await.map_err(failed)?;
    if let Err(error) = publisher.mark_put_back(entry).await {
        warn!(
            record = %origin,
            error = %chain(&error),
            "record was put back, but goes on being listed"
        );
    }
    Ok(token)
}

/// The record's headers without those that a new record gets anew.
fn kept_headers(entry: &Entry) -> Vec<(String, Bytes)> {
    let traced = trace::current().is_some();
    let kept = entry
        .record
        .headers
        .iter()
        .filter(|(name, _)| match name.as_str() {
            headers::VERSION | headers::ORIGIN => false,
            headers::TRACEPARENT => !traced,
            _ => true,
        });
    kept.cloned().collect()
}

/// What came of a retry of many.
#[derive(Debug, Default)]
pub struct Retried {
    /// Put back, with their tokens.
    pub done: Vec<(Origin, Token)>,
    /// Not put back, and why.
    pub refused: Vec<(Listed, RetryError)>,
    /// Why the topic was not read to its end, if it was not.
    pub broke_off: Option<ScanError>,
}

/// Puts back every record that the filter takes, unchanged, in the order of each partition. Those
/// that were put back before are passed over, unless the filter takes them.
///
/// The filter's limit counts here too, from the oldest on: a call is bounded, and a further call
/// goes on behind what this one put back.
pub async fn retry_all(
    cluster: &Cluster,
    filter: Filter,
    publisher: &Publisher,
    schemas: &Arc<dyn WriterSchemas>,
) -> Retried {
    let (to, mut entries) = mpsc::channel::<Entry>(AHEAD);
    let (cluster, collection) = (cluster.clone(), publisher.collection().home().clone());
    let limit = filter.limit;
    let reading = blocking(move || {
        let done = match filter.retried {
            true => Seen::default(),
            false => put_back(&cluster, &collection)?,
        };
        let mut seen = Seen::default();
        scan::scan(&cluster, &collection, |item| {
            let Item::Entry(entry) = item else {
                return true;
            };
            let wanted = filter.takes(&entry) && !done.has(&entry) && seen.is_new(&entry);
            !wanted || to.blocking_send(entry).is_ok()
        })
    });
    let retrying = async {
        let mut retried = Retried::default();
        while retried.done.len() + retried.refused.len() < limit
            && let Some(entry) = entries.recv().await
        {
            match retry(&entry, Correction::Unchanged, publisher, schemas).await {
                Ok(token) => retried.done.push((Origin::of(&entry), token)),
                Err(error) => retried.refused.push((Listed::from(&entry), error)),
            }
        }
        drop(entries);
        retried
    };
    let (read, retried) = tokio::join!(reading, retrying);
    Retried {
        broke_off: read.err(),
        ..retried
    }
}
