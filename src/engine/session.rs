//! One ONNX graph made ready on a provider, with its input and output bound to buffers of its own.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::error::EngineError;
use super::provider::Provider;
use super::runtime::Runtime;
use super::weights::Weights;
use crate::bundle::Graph;

/// Makes the sessions of one model on one provider.
#[derive(Clone)]
pub(super) struct Sessions {
    pub(super) runtime: &'static Runtime,
    pub(super) provider: Provider,
    weights: Arc<Weights>,
    /// Set where sharing failed.
    unshared: Arc<AtomicBool>,
}

impl Sessions {
    pub(super) fn new(runtime: &'static Runtime, provider: Provider) -> Self {
        Self { runtime, provider, weights: Arc::new(Weights::new()), unshared: Arc::default() }
    }

    /// Whether sessions use the same weights in memory.
    pub(super) fn share_weights(&self) -> bool {
        self.provider == Provider::Cpu && !self.unshared.load(Ordering::Relaxed)
    }

    pub(super) fn of(&self, graph: &Graph) -> Result<Session, EngineError> {
        self.make(&graph.to_bytes(), graph.file.display())
    }

    /// `what` is named by the error.
    pub(super) fn make(&self, onnx: &[u8], what: impl Display) -> Result<Session, EngineError> {
        let mut refused = None;
        if self.share_weights() {
            match self.weights.session(self.runtime, onnx) {
                Ok(session) => return Ok(session),
                Err(error) => refused = Some(error),
            }
        }
        let failed = |error: &dyn Display| EngineError::Session {
            what: what.to_string(),
            provider: self.provider,
            reason: error.to_string(),
        };
        let mut builder = self.provider.session(self.runtime).map_err(|error| failed(&error))?;
        let session = builder.commit_from_memory(onnx).map_err(|error| failed(&error))?;
        if let Some(error) = refused {
            self.unshared.store(true, Ordering::Relaxed);
            tracing::warn!(%what, %error, "sessions have weights of their own from now on, which takes memory");
        }
        Ok(session)
    }
}

/// A session of one f32 input `[N, ...]` and one f32 output `[N, ...]`. Its input and output are bound to buffers of its
/// own, which stay for the sizes of batches that came last.
pub(super) struct Bound {
    session: Session,
    /// Of one image, without N.
    input: Vec<i64>,
    output: Vec<i64>,
    names: (String, String),
    /// The one used last comes last.
    buffers: Vec<Buffers>,
}

struct Buffers {
    images: usize,
    input: Tensor<f32>,
    binding: IoBinding,
}

/// Bytes of a session's input buffers that stay from run to run, at most, where more than one stays.
const KEPT_BYTES: usize = 256 << 10;

impl Bound {
    /// `input` and `output` are the shapes of one image, as the checked graph has them.
    pub(super) fn new(session: Session, input: &[u64], output: &[u64]) -> Self {
        let shape = |sides: &[u64]| sides.iter().map(|&side| side as i64).collect();
        let name = |outlets: &[ort::value::Outlet]| outlets.first().map(|outlet| outlet.name().to_owned());
        let names = (name(session.inputs()), name(session.outputs()));
        let (Some(first), Some(last)) = names else { unreachable!("a checked graph has one input and one output") };
        Self { input: shape(input), output: shape(output), names: (first, last), buffers: Vec::new(), session }
    }

    /// What the buffers of a session take at most between runs, for inputs of `image` bytes each.
    pub(super) fn most_bytes(image: u64) -> u64 {
        image.max(KEPT_BYTES as u64)
    }

    /// Elements of one image's input.
    fn elements(&self) -> usize {
        self.input.iter().product::<i64>() as usize
    }

    /// Runs the graph on `images` and gives each one's output.
    ///
    /// # Panics
    /// An image is not of the input's size.
    pub(super) fn run(&mut self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let elements = self.elements();
        assert!(images.iter().all(|image| image.len() == elements), "an image has the model's input size");
        let bound = self.buffers.iter().position(|buffers| buffers.images == images.len());
        let mut buffers = match bound {
            Some(at) => self.buffers.remove(at),
            None => self.bind(images.len())?,
        };
        let (_, pixels) = buffers.input.extract_tensor_mut();
        for (row, image) in pixels.chunks_exact_mut(elements).zip(images) {
            row.copy_from_slice(image);
        }
        // Bound anew at each run: where the device is not the CPU, this is what copies it there.
        buffers.binding.bind_input(&*self.names.0, &buffers.input)?;
        let each = self.output.iter().product::<i64>() as usize;
        let result = {
            let outputs = self.session.run_binding(&buffers.binding)?;
            let (_, values) = outputs[0].try_extract_tensor::<f32>()?;
            values.chunks_exact(each).map(<[f32]>::to_vec).collect()
        };
        self.keep(buffers);
        Ok(result)
    }

    /// Keeps buffers for the next run, and of the others as many as fit beside them; those of a single image always.
    fn keep(&mut self, buffers: Buffers) {
        let bytes = self.elements() * size_of::<f32>();
        let fits = |images: usize| images == 1 || images * bytes <= KEPT_BYTES;
        if !fits(buffers.images) {
            return;
        }
        self.buffers.push(buffers);
        let mut left = KEPT_BYTES.max(bytes);
        let kept = self.buffers.iter().rev().take_while(|buffers| {
            let room = left.checked_sub(buffers.images * bytes);
            left = room.unwrap_or(left);
            room.is_some()
        });
        let kept = kept.count();
        self.buffers.drain(..self.buffers.len() - kept);
    }

    fn bind(&self, images: usize) -> Result<Buffers, EngineError> {
        let batch =
            |shape: &[i64]| -> Vec<i64> { std::iter::once(images as i64).chain(shape.iter().copied()).collect() };
        let mut binding = self.session.create_binding()?;
        let input = Tensor::<f32>::new(self.session.allocator(), batch(&self.input))?;
        binding.bind_output(&*self.names.1, Tensor::<f32>::new(self.session.allocator(), batch(&self.output))?)?;
        Ok(Buffers { images, input, binding })
    }
}
