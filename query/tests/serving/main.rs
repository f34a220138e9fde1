//! A query node as its callers see it: over gRPC and HTTP, in front of indexers on the loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "a test program has no readers outside"
)]

mod aliases;
mod answers;
mod browser;
mod chromium;
mod connections;
mod console;
mod deadlines;
mod definitions;
mod depths;
mod edge;
mod edge_refused;
mod grpc_web;
mod http;
mod indexer;
mod kept;
mod lines;
mod map_file;
mod narrowed;
mod openapi;
mod ownership;
mod ranges;
mod recommend;
mod refusals;
mod replicas;
mod seam;
mod stream;
mod tokens;
mod world;
