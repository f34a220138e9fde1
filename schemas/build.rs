//! Compiles the protobuf API with `protox`, so that no `protoc` is needed on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "point",
        "filter",
        "collection",
        "search",
        "publish",
        "shard",
    ]
    .map(|name| format!("proto/shoal/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("shoal_v1.descriptor.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::MessageCodec")
        .bytes(".shoal.v1.ShardStatus.digest")
        .bytes(".shoal.v1.PointWrite.value")
        .bytes(".shoal.v1.ShardBucketsResponse.digests")
        .bytes(".shoal.v1.BucketId.row_hash")
        .bytes(".shoal.v1.KnownAnswer.version")
        .bytes(".shoal.v1.ShardAnswer.version")
        .compile_fds(descriptors)?;
    Ok(())
}
