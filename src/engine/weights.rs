//! Weights in memory once, however many sessions use them.
//!
//! ONNX Runtime lays the filters of convolutions out anew for the processor when it optimises a graph, into memory of
//! each session's own. Here a graph is optimised once, its weights are taken out, and the session that runs is made of
//! the optimised graph with weights that it shares with every other session that has the same ones: those of a block
//! are there once for all paths that keep it, and stay in the processor's caches from path to path.

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array1, s};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, Tensor};
use prost::Message;
use sha2::{Digest, Sha256};

use super::provider::Provider;
use super::runtime::Runtime;
use crate::bundle::onnx::{ModelProto, TensorProto};

/// Smaller ones are not worth sharing.
const LEAST_BYTES: usize = 1024;

/// The weights of a model, by what is in them. They stay as long as the store.
pub(super) struct Weights {
    known: Mutex<HashMap<[u8; 32], Arc<DynValue>>>,
    prepacked: PrepackedWeights,
}

impl Weights {
    pub(super) fn new() -> Self {
        Self { known: Mutex::default(), prepacked: PrepackedWeights::new() }
    }

    /// A session of `onnx` on the CPU with shared weights.
    pub(super) fn session(&self, runtime: &Runtime, onnx: &[u8]) -> Result<Session, Unshared> {
        let optimised = optimise(runtime, onnx)?;
        let mut builder = {
            let model = ModelProto::decode(&*optimised)?;
            let graph = model.graph.as_ref().ok_or(Unshared::NoGraph)?;
            self.sharing(runtime, &graph.initializer)?
        };
        Ok(builder.commit_from_memory(&optimised)?)
    }

    fn sharing(&self, runtime: &Runtime, weights: &[TensorProto]) -> ort::Result<SessionBuilder> {
        // The graph is optimised already.
        let builder =
            Provider::Cpu.session(runtime, false)?.with_optimization_level(GraphOptimizationLevel::Disable)?;
        let mut builder = builder.with_prepacked_weights(&self.prepacked)?;
        for tensor in weights {
            if let Some(value) = self.share(tensor)? {
                builder = builder.with_initializer(tensor.name(), value)?;
            }
        }
        Ok(builder)
    }

    /// The shared value of a tensor; `None` where it is not worth it, or not of plain f32 values.
    fn share(&self, tensor: &TensorProto) -> ort::Result<Option<Arc<DynValue>>> {
        const FLOAT: i32 = 1;
        let Some(bytes) = tensor.raw_data.as_deref() else { return Ok(None) };
        let count: i64 = tensor.dims.iter().product();
        if tensor.data_type() != FLOAT || bytes.len() < LEAST_BYTES || bytes.len() as i64 != 4 * count {
            return Ok(None);
        }
        let mut hash = Sha256::new();
        tensor.dims.iter().for_each(|side| hash.update(side.to_le_bytes()));
        hash.update(bytes);
        let hash = hash.finalize().into();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = known.get(&hash) {
            return Ok(Some(Arc::clone(value)));
        }
        let shape: Vec<usize> = tensor.dims.iter().map(|&side| side as usize).collect();
        let values = bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().expect("four bytes")));
        let values = aligned(values).into_shape_with_order(shape).expect("as many values as the shape has");
        let value = Arc::new(Tensor::from_array(values)?.into_dyn());
        known.insert(hash, Arc::clone(&value));
        Ok(Some(value))
    }
}

/// The values at an address that is good for vector instructions.
fn aligned(values: impl ExactSizeIterator<Item = f32>) -> Array1<f32> {
    const LINE: usize = 64 / size_of::<f32>();
    let count = values.len();
    let mut all = vec![0.0; count + LINE];
    let from = all.as_ptr().align_offset(64).min(LINE);
    all[from..].iter_mut().zip(values).for_each(|(to, value)| *to = value);
    Array1::from_vec(all).slice_move(s![from..from + count])
}

/// Why a session cannot share its weights. It can have its own.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unshared {
    #[error("{0}")]
    Runtime(#[from] ort::Error),
    #[error("the optimised graph cannot be kept: {0}")]
    File(#[from] std::io::Error),
    #[error("the optimised graph cannot be read: {0}")]
    Onnx(#[from] prost::DecodeError),
    #[error("the optimised model has no graph")]
    NoGraph,
}

/// The graph as ONNX Runtime runs it on this processor.
fn optimise(runtime: &Runtime, onnx: &[u8]) -> Result<Vec<u8>, Unshared> {
    let (mut file, path) = scratch_file()?;
    drop(optimising(runtime, &path)?.commit_from_memory(onnx)?);
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn optimising(runtime: &Runtime, path: &Path) -> ort::Result<SessionBuilder> {
    // Only errors: it would warn that the file is good for this processor alone.
    Ok(Provider::Cpu.session(runtime, false)?.with_optimized_model_path(path)?.with_log_level(LogLevel::Error)?)
}

/// A file in memory, which needs no directory that can be written to.
#[cfg(target_os = "linux")]
fn scratch_file() -> std::io::Result<(std::fs::File, PathBuf)> {
    use std::os::fd::AsRawFd;

    let file = std::fs::File::from(rustix::fs::memfd_create("optimised", rustix::fs::MemfdFlags::CLOEXEC)?);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, path))
}

/// A file that is gone with its handle.
#[cfg(not(target_os = "linux"))]
fn scratch_file() -> std::io::Result<(tempfile::NamedTempFile, PathBuf)> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_path_buf();
    Ok((file, path))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use blockdrop_testkit::{Net, noise};
    use ort::value::TensorRef;

    use super::*;
    use crate::bundle::{Bundle, join};
    use crate::policy::Mask;

    fn logits(session: &mut Session, image: &[f32]) -> Vec<f32> {
        let outputs = session.run([TensorRef::from_array_view(([1, 3, 16, 16], image)).unwrap().into()]).unwrap();
        outputs[0].try_extract_tensor::<f32>().unwrap().1.to_vec()
    }

    #[test]
    fn sessions_that_share_weights_compute_the_same_and_hold_them_once() {
        let path = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        let runtime = Runtime::load(path.as_deref()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        drop(Net::tiny(1).bundle(dir.path()));
        let bundle = Bundle::load(dir.path()).unwrap();
        let full = Mask::full(bundle.blocks.len());
        let fewer = Mask::from_fn(bundle.blocks.len(), |block| block % 2 == 0);
        let onnx = |mask: &Mask| join(&bundle.path(mask)).unwrap().encode_to_vec();
        let image = &noise(1, 1, 3 * 16 * 16)[0];

        let weights = Weights::new();
        let held = || weights.known.lock().unwrap().keys().copied().collect::<HashSet<_>>();
        let mut sharing = weights.session(runtime, &onnx(&full)).unwrap();
        let of_full = held();
        assert!(!of_full.is_empty());
        let again = weights.session(runtime, &onnx(&full)).unwrap();
        assert_eq!(held(), of_full, "a second session brings nothing new");
        let mut path = weights.session(runtime, &onnx(&fewer)).unwrap();
        assert_eq!(held(), of_full, "a path's weights are those of the full net");
        for (session, mask) in [(&mut sharing, &full), (&mut path, &fewer)] {
            let mut own = Provider::Cpu.session(runtime, false).unwrap().commit_from_memory(&onnx(mask)).unwrap();
            assert_eq!(logits(session, image), logits(&mut own, image), "{mask}");
        }
        let expected = logits(&mut sharing, image);
        drop((weights, again));
        assert_eq!(logits(&mut sharing, image), expected, "weights stay while a session uses them");
    }

    #[test]
    fn weights_are_aligned_for_vector_instructions() {
        for count in [1, 15, 16, 257] {
            let values = aligned((0..count).map(|value| value as f32));
            assert_eq!(values.as_ptr().align_offset(64), 0);
            assert_eq!(values.to_vec(), (0..count).map(|value| value as f32).collect::<Vec<_>>());
        }
    }
}
