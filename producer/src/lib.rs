//! Publishing: points from files or callers into a collection's topic.
//!
//! [`publisher`] is the library: it checks, encodes, routes and sends one point and answers with
//! a token once the log has it. [`read`] takes points from files, [`run`] publishes a whole
//! reader with back-pressure and progress. [`gateway`] does the same for clients that speak gRPC
//! or HTTP instead of Kafka. [`dlq`] lists refused records and puts them back. [`feed`] copies a
//! collection into another one's topic.
//!
//! What a record looks like is decided in `shoal-schemas`, how it travels in `shoal-topic`.
#![forbid(unsafe_code)]

pub mod dlq;
pub mod feed;
pub mod gateway;
pub mod metrics;
pub mod publisher;
pub mod read;
pub mod run;
pub mod trace;

pub use publisher::{Delivery, PublishConfig, PublishError, Publisher};
