//! The protobuf API `shoal.v1`, generated from `schemas/proto`.
//!
//! The descriptor set serves gRPC reflection. Conversions to and from our own checked types
//! stand beside those types, never here.
#![allow(missing_docs, reason = "generated; the .proto files carry the text")]
#![allow(clippy::all, clippy::as_conversions, reason = "generated")]

tonic::include_proto!("shoal.v1");

/// The API's encoded `FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/shoal_v1.descriptor.bin"));
