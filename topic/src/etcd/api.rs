//! The messages and clients of etcd's API, generated from `proto/etcd.proto`.
#![allow(missing_docs, unreachable_pub, reason = "generated")]
#![allow(clippy::all, clippy::as_conversions, reason = "generated")]

tonic::include_proto!("etcdserverpb");
