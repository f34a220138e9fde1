//! The contract every Shoal role and every foreign client shares.
//!
//! Names, points, filters, versions, routing, placement, the record's encodings and headers, tokens, the reasons a
//! record is refused, what stands in the control topic, and the protobuf API. Everything here is
//! pure: no file, no socket, no clock is read, so each rule can be tested and replayed.
#![forbid(unsafe_code)]

pub mod avro;
pub mod buckets;
pub mod codec;
pub mod collection;
pub mod control;
pub mod digest;
pub mod dlq;
pub mod event;
pub mod filter;
pub mod headers;
pub mod json;
pub mod log;
pub mod name;
pub mod patch;
pub mod payload;
pub mod placement;
pub mod point;
pub mod reject;
pub mod route;
pub mod tenant;
pub mod token;
pub mod v1;
pub mod vector;
pub mod version;

pub use collection::{
    Collection, FieldKind, IndexKind, IndexParameters, Metric, Partitioner, Quantization,
};
pub use digest::{Digest, RowHash};
pub use event::{Event, Record};
pub use filter::Filter;
pub use log::{ClusterId, Offset, Partition, Source, TopicId};
pub use name::{CollectionName, RegionName, ReplicaSet};
pub use patch::{Condition, Patch};
pub use payload::{Payload, Value};
pub use point::{Point, PointId};
pub use reject::{Reason, Rejection};
pub use tenant::Tenant;
pub use token::Token;
pub use vector::{Dim, Vector};
pub use version::Version;
