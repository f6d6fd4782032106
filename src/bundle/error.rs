//! Why a bundle was refused: the file, what was found, what was expected.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::frequent::FrequentError;

/// A bundle that cannot be served. The message names the file and the mismatch, and holds its reason.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{}: cannot be read: {reason}", file.display())]
    Read { file: PathBuf, reason: std::io::Error },
    #[error("{}: is not a bundle manifest: {reason}", file.display())]
    Manifest { file: PathBuf, reason: serde_json::Error },
    #[error("{}: is not an ONNX model: {reason}", file.display())]
    Onnx { file: PathBuf, reason: prost::DecodeError },
    #[error("{}: {what}: found {found}, expected {expected}", file.display())]
    Mismatch { file: PathBuf, what: String, found: String, expected: String },
    #[error(transparent)]
    Frequent(#[from] FrequentError),
}

impl BundleError {
    /// The message without the file's name.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Read { reason, .. } => reason.to_string(),
            Self::Manifest { reason, .. } => reason.to_string(),
            Self::Onnx { reason, .. } => reason.to_string(),
            Self::Mismatch { what, found, expected, .. } => format!("{what}: found {found}, expected {expected}"),
            Self::Frequent(error) => error.to_string(),
        }
    }

    pub(crate) fn mismatch(file: &Path, what: impl Display, found: impl Display, expected: impl Display) -> Self {
        Self::Mismatch {
            file: file.to_path_buf(),
            what: what.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }
}
