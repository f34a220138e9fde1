//! End to end: the real binary, a real Kafka, a real schema registry, foreign clients, `kill -9`.
//!
//! Run with `cargo test --test e2e`. `make setup` fetches what it needs. Most tests share one
//! cluster and use collections of their own; a test that kills or stops something has its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test")]

#[path = "../checker/mod.rs"]
mod checker;
mod harness;

mod bad_input;
mod changes;
mod command_line;
mod compaction;
mod copies;
mod crash;
mod dead_letters;
mod edge;
mod expire;
mod foreign;
mod full_disk;
mod history;
mod index_kinds;
mod local;
mod made_anew;
mod main_path;
mod map_sources;
mod memory_budget;
mod observability;
mod openapi;
mod outage;
mod patch;
mod ranges;
mod rebalance;
mod refused_calls;
mod reindex;
mod reindex_ends;
mod replicas;
mod residency;
mod restored;
mod ring;
mod snapshots;
mod tenants;
mod wordnet;
