//! ONNX Runtime: its library loaded at run time, one environment for the process.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;

use super::{library, version};

/// Why ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "ONNX Runtime's library is not named: set ORT_DYLIB_PATH to libonnxruntime.so (or .dylib), 1.{OLDEST} or newer; \
         `scripts/fetch-onnxruntime` fetches one and prints its path"
    )]
    Unnamed,
    #[error("ONNX Runtime's library {}: no such file (--onnxruntime or ORT_DYLIB_PATH)", .0.display())]
    Missing(PathBuf),
    #[error("ONNX Runtime's library {}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("ONNX Runtime's library {}: {reason} (expected version 1.{OLDEST} or newer)", path.display())]
    Load { path: PathBuf, reason: String },
}

/// The oldest minor version of ONNX Runtime that this build works with (the `ort` feature `api-24`).
const OLDEST: u32 = 24;

/// A loaded ONNX Runtime. It stays for the life of the process: releasing the environment at exit aborts.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    version: String,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

impl Runtime {
    /// Loads the library at `path`, or gives the one that is loaded already.
    ///
    /// # Errors
    /// No path, no file there, one that cannot be read or is not whole, no ONNX Runtime, or one that is too old.
    pub fn load(path: Option<&Path>) -> Result<&'static Self, RuntimeError> {
        // Held while loading, so that two threads do not initialise the library at once.
        static LOADING: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _loading = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime);
        }
        let path = path.filter(|path| !path.as_os_str().is_empty()).ok_or(RuntimeError::Unnamed)?;
        if path.is_dir() {
            let reason = "it is a directory".to_owned();
            return Err(RuntimeError::Damaged { path: path.to_path_buf(), reason });
        }
        let refused = match path.metadata() {
            Ok(found) if found.is_file() => None,
            Ok(_) => Some("it is no regular file".to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(RuntimeError::Missing(path.to_path_buf())),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = refused {
            return Err(RuntimeError::Damaged { path: path.to_path_buf(), reason });
        }
        // Loaders look for a relative path in places of their own.
        let path = &std::path::absolute(path).map_err(|_| RuntimeError::Missing(path.to_path_buf()))?;
        library::check(path)
            .map_err(|reason| RuntimeError::Damaged { path: path.clone(), reason: reason.to_string() })?;
        let failed = |reason: String| RuntimeError::Load { path: path.to_path_buf(), reason };
        let builder = ort::init_from(path)
            .map_err(|error| failed(version::refusal(path).unwrap_or_else(|| error.to_string())))?;
        let environment = builder
            .with_name(env!("CARGO_PKG_NAME"))
            .with_telemetry(false)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let version = version::of(path).unwrap_or_else(|| "unknown".to_owned());
        Ok(RUNTIME.get_or_init(|| Self { environment, version }))
    }

    /// The library's version, such as `1.32.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The process's ONNX Runtime environment, for sessions of one's own.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}
