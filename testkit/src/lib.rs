//! Small made-up networks, bundles and images for blockdrop's tests and benchmarks.
//!
//! [`Net`] describes a residual network with random weights. It writes itself as a bundle, and builds the reference
//! for a mask as one graph of its own, layer by layer, without blockdrop's joining.

mod builder;
mod images;
mod net;

pub use images::{encoded, noise};
pub use net::{Kind, Net, Shortcut};

/// ONNX Runtime from `ORT_DYLIB_PATH`.
///
/// # Panics
/// The variable is not set or names no usable library; `make test` sets it.
pub fn runtime() -> &'static blockdrop::engine::Runtime {
    let path = std::env::var_os("ORT_DYLIB_PATH").map(std::path::PathBuf::from);
    blockdrop::engine::Runtime::load(path.as_deref()).unwrap_or_else(|error| panic!("{error}"))
}
