//! Generates the ONNX message types from `proto/onnx/onnx.proto`, without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["onnx/onnx.proto"], ["proto"])?;
    // The comments of onnx.proto hold indented text that rustdoc would compile as examples.
    prost_build::Config::new().disable_comments(["."]).compile_fds(descriptors)?;
    Ok(())
}
