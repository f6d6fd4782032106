//! What can go wrong in the engine.

use super::provider::Provider;
use crate::bundle::JoinError;

/// A model that cannot be made ready, or an image that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    #[error("ONNX Runtime cannot run on {provider}: {reason}")]
    Provider { provider: Provider, reason: String },
    #[error("{what}: ONNX Runtime cannot make a session on {provider}: {reason}")]
    Session { what: String, provider: Provider, reason: String },
    #[error("{what} gives values that are not finite numbers for an image of zeros")]
    Broken { what: String },
    #[error("{0}")]
    Join(String),
    #[error("ONNX Runtime failed: {0}")]
    Run(String),
    #[error("the network gave values that are not finite numbers")]
    NotFinite,
}

impl From<ort::Error> for EngineError {
    fn from(error: ort::Error) -> Self {
        Self::Run(error.to_string())
    }
}

impl From<JoinError> for EngineError {
    fn from(error: JoinError) -> Self {
        Self::Join(error.to_string())
    }
}
