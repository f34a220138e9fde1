//! A query node as its callers see it: over gRPC and HTTP, in front of indexers on the loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "a test program has no readers outside"
)]

mod answers;
mod browser;
mod chromium;
mod console;
mod deadlines;
mod definitions;
mod grpc_web;
mod http;
mod indexer;
mod narrowed;
mod openapi;
mod ownership;
mod recommend;
mod refusals;
mod replicas;
mod seam;
mod stream;
mod tokens;
mod world;
