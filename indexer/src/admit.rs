//! Admission: a record from the log becomes a checked change, or a refusal with its reason. Pure
//! but for the look-up of a writer schema.
//!
//! A refusal never stops the shard. Whether the id is contested by it follows from the reason.

use shoal_schemas::{
    Collection, Partition, PointId, Reason, Record, RegionName, Rejection, Version,
    avro::{LookupError, WriterSchemas},
    event::{ValueError, decode_value},
    headers::{Meta, TraceParent},
    route,
};

use crate::entry::{Draft, Stamp, check_point};

/// What admission needs to know besides the record.
pub struct Gate<'a> {
    /// The collection's definition.
    pub collection: &'a Collection,
    /// The partition the record was found in.
    pub partition: Partition,
    /// This indexer's region, for records tagged with a residency.
    pub region: &'a RegionName,
    /// Writer schemas by registry id.
    pub schemas: &'a dyn WriterSchemas,
}

/// A record's fate.
#[derive(Debug)]
pub enum Admitted {
    /// It changes a point.
    Change {
        /// The change, ready for the shard's own log.
        draft: Draft,
        /// The trace that wrote it.
        trace: Option<TraceParent>,
    },
    /// It is refused.
    Refused {
        /// Why.
        rejection: Rejection,
        /// The id it leaves contested, if it does.
        contested: Option<Draft>,
    },
}

/// Decides about one record.
///
/// # Errors
/// [`LookupError::Unavailable`] when the schema registry does not answer; ask again later.
pub fn admit(gate: &Gate<'_>, stamp: Stamp, record: &Record) -> Result<Admitted, LookupError> {
    let id = match PointId::from_key(record.key.as_deref()) {
        Ok(id) => id,
        Err(error) => {
            return Ok(Admitted::Refused {
                rejection: Rejection::new(Reason::BadKey, error),
                contested: None,
            });
        }
    };
    let meta = Meta::decode(record);
    let version = match &meta {
        Ok(meta) => meta.version,
        Err(_) => Version::from_timestamp(record.timestamp_ms),
    };
    let stamp = Stamp { version, ..stamp };
    let refused = |rejection: Rejection, id: PointId| Admitted::Refused {
        contested: rejection
            .reason
            .contests()
            .then_some(Draft::Contest(stamp, id)),
        rejection,
    };
    if route::partition_of(gate.collection, &id) != gate.partition {
        let rejection = route::explain_mismatch(gate.collection, &id, gate.partition);
        return Ok(refused(rejection, id));
    }
    let meta = match meta {
        Ok(meta) => meta,
        Err(rejection) => return Ok(refused(rejection, id)),
    };
    if let Some(tag) = meta
        .residency
        .as_deref()
        .filter(|tag| *tag != gate.region.as_str())
    {
        let detail = format!(
            "record is tagged to stay in `{tag}`, this region is `{}`; publish it to a topic of `{tag}`",
            gate.region
        );
        return Ok(refused(Rejection::new(Reason::Residency, detail), id));
    }
    let limit_bytes = usize::try_from(gate.collection.max_record_bytes).unwrap_or(usize::MAX);
    if record.size_bytes() > limit_bytes {
        let detail = format!(
            "record has {} bytes, collection `{}` takes {limit_bytes} (max_record_bytes)",
            record.size_bytes(),
            gate.collection.name,
        );
        return Ok(refused(Rejection::new(Reason::TooLarge, detail), id));
    }
    let Some(value) = &record.value else {
        return Ok(Admitted::Change {
            draft: Draft::Delete(stamp, id),
            trace: meta.trace,
        });
    };
    match decode_value(&id, value, gate.collection, gate.schemas) {
        Ok(point) => Ok(match check_point(&point) {
            Ok(()) => Admitted::Change {
                draft: Draft::Upsert(stamp, id, point),
                trace: meta.trace,
            },
            Err(detail) => refused(Rejection::new(Reason::BadPayload, detail), id),
        }),
        Err(ValueError::Rejected(rejection)) => Ok(refused(rejection, id)),
        Err(ValueError::Unavailable(error)) => Err(error),
    }
}
