//! What fuzz targets reach of this module beside its interface.

use std::path::Path;

use super::graph::{Border, Graph};
use super::{BundleError, Manifest};

/// The manifest of `bytes`, `file` for messages.
///
/// # Errors
/// It does not fit.
pub fn manifest(file: &Path, bytes: &[u8]) -> Result<Manifest, BundleError> {
    Manifest::parse(file, bytes)
}

/// The graph of `bytes` with one `input` and one `output`, `file` for messages.
///
/// # Errors
/// It does not fit.
pub fn graph(
    file: &Path,
    bytes: &[u8],
    input: &'static str,
    output: &'static str,
    opset: i64,
) -> Result<Graph, BundleError> {
    Graph::parse(file, bytes, Border { input, output }, opset)
}
