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
        if self.share_weights() {
            match self.weights.session(self.runtime, onnx) {
                Ok(session) => return Ok(session),
                Err(error) => {
                    self.unshared.store(true, Ordering::Relaxed);
                    tracing::warn!(%what, %error, "sessions have weights of their own from now on, which takes more memory");
                }
            }
        }
        let failed = |error: &dyn Display| EngineError::Session {
            what: what.to_string(),
            provider: self.provider,
            reason: error.to_string(),
        };
        let mut builder = self.provider.session(self.runtime).map_err(|error| failed(&error))?;
        builder.commit_from_memory(onnx).map_err(|error| failed(&error))
    }
}

/// A session of one f32 input `[N, ...]` and one f32 output `[N, ...]`, whose buffers stay bound from run to run: as long
/// as N is the same, a run allocates nothing for them.
pub(super) struct Bound {
    session: Session,
    /// Of one image, without N.
    input: Vec<i64>,
    output: Vec<i64>,
    names: (String, String),
    buffers: Option<Buffers>,
}

struct Buffers {
    images: usize,
    input: Tensor<f32>,
    binding: IoBinding,
}

impl Bound {
    /// `input` and `output` are the shapes of one image, as the checked graph has them.
    pub(super) fn new(session: Session, input: &[u64], output: &[u64]) -> Self {
        let shape = |sides: &[u64]| sides.iter().map(|&side| side as i64).collect();
        let name = |outlets: &[ort::value::Outlet]| outlets.first().map(|outlet| outlet.name().to_owned());
        let names = (name(session.inputs()), name(session.outputs()));
        let (Some(first), Some(last)) = names else { unreachable!("a checked graph has one input and one output") };
        Self { input: shape(input), output: shape(output), names: (first, last), buffers: None, session }
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
        if self.buffers.as_ref().is_none_or(|buffers| buffers.images != images.len()) {
            self.buffers = Some(self.bind(images.len())?);
        }
        let buffers = self.buffers.as_mut().expect("bound above");
        let (_, pixels) = buffers.input.extract_tensor_mut();
        for (row, image) in pixels.chunks_exact_mut(elements).zip(images) {
            row.copy_from_slice(image);
        }
        // Bound anew at each run: where the device is not the CPU, this is what copies it there.
        buffers.binding.bind_input(&*self.names.0, &buffers.input)?;
        let outputs = self.session.run_binding(&buffers.binding)?;
        let (_, values) = outputs[0].try_extract_tensor::<f32>()?;
        let each = self.output.iter().product::<i64>() as usize;
        Ok(values.chunks_exact(each).map(<[f32]>::to_vec).collect())
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
