//! The query node: finds the shards of a collection, asks their indexers, merges what they say.
//!
//! ```text
//! Search (gRPC) or JSON (HTTP) -> admit -> check -> plan -> scatter -> merge -> answer with coverage
//!                                                     ^ shard map, kept up to date from its source
//! ```
//!
//! Stateless: a node can be added or killed at any time. It holds no points and no index, and
//! takes no writes except definitions of collections. An edge node has no shards at all and forwards
//! to a region ([`edge`]); [`cache`] keeps answers where it is told to. What it learns about indexers (`fleet.rs`,
//! [`hedge`]) only says whom it asks first. Deciding ([`plan`], `depth`, [`merge`], [`groups`],
//! [`tokens`], [`coverage`], [`shard_map`]) is pure; doing is thin around it. tonic is named in `client/` and
//! `serve/` only, axum in `http/` only, reqwest in `embedding.rs` only, redis in `cache/remote.rs` only.
#![forbid(unsafe_code)]

pub mod admission;
pub mod cache;
pub mod call;
pub mod client;
pub mod config;
pub mod coordinator;
pub mod coverage;
pub mod definitions;
mod depth;
pub mod edge;
pub mod embedding;
mod fleet;
mod flight;
mod front;
pub mod groups;
pub mod hedge;
mod http;
pub mod merge;
pub mod metrics;
pub mod plan;
mod scatter;
mod serve;
pub mod shard_map;
pub mod source;
pub mod tokens;

pub use config::Config;
pub use coordinator::{Coordinator, QueryError};
pub use serve::{Addresses, EdgeDeps, StartError, start, start_edge};
