//! A query node as its callers see it: over gRPC and HTTP, in front of indexers on the loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "a test program has no readers outside"
)]

mod answers;
mod deadlines;
mod definitions;
mod http;
mod indexer;
mod narrowed;
mod ownership;
mod refusals;
mod replicas;
mod seam;
mod tokens;
mod world;
