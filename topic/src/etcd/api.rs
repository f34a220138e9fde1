//! The messages and clients of etcd's API, generated from `proto/etcd.proto`. Tests answer with its servers.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "generated; only tests have servers"
)]
#![allow(clippy::all, clippy::as_conversions, reason = "generated")]

tonic::include_proto!("etcdserverpb");
