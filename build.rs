//! Generates message types and services from `proto/`, without a system `protoc`.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let onnx = protox::compile(["onnx/onnx.proto"], ["proto"])?;
    // The comments of onnx.proto hold indented text that rustdoc would compile as examples.
    prost_build::Config::new().disable_comments(["."]).compile_fds(onnx)?;

    let inference = protox::compile(["inference/grpc_service.proto"], ["proto"])?;
    let ours = protox::compile(["blockdrop/v1/classifier.proto"], ["proto"])?;
    // What reflection tells clients.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut both = inference.clone();
    both.file.extend(ours.file.iter().cloned());
    std::fs::write(out.join("services.bin"), both.encode_to_vec())?;
    let services =
        || tonic_prost_build::configure().build_transport(false).bytes(".").codec_path("crate::proto::codec::Bounded");
    services().build_client(false).compile_fds(inference)?;
    services().compile_fds(ours)?;
    Ok(())
}
