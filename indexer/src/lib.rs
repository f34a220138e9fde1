//! The indexer: consumes partitions, keeps each durable and searchable, answers for its shards.
//!
//! The files follow a record: [`admit`] decides whether it is taken, [`dlq`] keeps what is not,
//! [`entry`] is its form in the shard's own log ([`wal`]), [`rule`] decides what is served,
//! [`catalog`] remembers it, [`segment`] and [`index`] make it findable, [`view`] is what a search
//! sees, [`shard`] ties them to two threads, [`snapshot`] keeps them in an object store, [`node`]
//! runs a node's shards, [`resolve`] makes partial and conditional changes into complete records,
//! [`serve`] answers.
#![deny(unsafe_code)]

pub mod admit;
pub mod catalog;
pub mod config;
pub mod dlq;
pub mod entry;
pub mod fields;
pub mod find;
pub mod index;
pub mod metrics;
pub mod node;
pub mod pressure;
pub mod resolve;
pub mod rule;
pub mod segment;
pub mod serve;
pub mod shard;
pub mod snapshot;
mod start;
pub mod view;
pub mod wal;

pub use config::Config;
pub use start::{Addresses, StartError, start};
