//! One ONNX graph made ready on a provider, with buffers of its own for its input and output.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::session::Session;
use ort::value::Tensor;

use super::buffers::Buffers;
use super::device::{Captured, Sharing};
use super::error::EngineError;
use super::provider::{Provider, Target};
use super::runtime::Runtime;
use super::weights::Weights;
use crate::bundle::Graph;

/// Makes the sessions of one model on one provider.
#[derive(Clone)]
pub(super) struct Sessions {
    pub(super) runtime: &'static Runtime,
    pub(super) provider: Provider,
    sharing: Sharing,
    weights: Arc<Weights>,
    /// Set where sharing failed.
    unshared: Arc<AtomicBool>,
}

impl Sessions {
    /// # Errors
    /// The provider cannot be had.
    pub(super) fn new(runtime: &'static Runtime, Target { provider, tactics }: Target) -> Result<Self, EngineError> {
        let sharing = if tactics.cuda_graphs { Sharing::Graphs } else { Sharing::Free };
        let using = sharing.shared();
        provider.check(runtime)?;
        drop(using);
        Ok(Self { runtime, provider, sharing, weights: Arc::new(Weights::new()), unshared: Arc::default() })
    }

    /// Whether sessions use the same weights in memory.
    pub(super) fn share_weights(&self) -> bool {
        self.provider == Provider::Cpu && !self.unshared.load(Ordering::Relaxed)
    }

    pub(super) fn of(&self, graph: &Graph) -> Result<Session, EngineError> {
        self.make(&graph.to_bytes(), graph.file.display(), false)
    }

    /// `what` is named by the error; a CUDA graph is captured where `graph` says so.
    pub(super) fn make(&self, onnx: &[u8], what: impl Display, graph: bool) -> Result<Session, EngineError> {
        let _using = self.sharing.shared();
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
        let mut builder = self.provider.session(self.runtime, graph).map_err(|error| failed(&error))?;
        let session = builder.commit_from_memory(onnx).map_err(|error| failed(&error))?;
        if let Some(error) = refused {
            self.unshared.store(true, Ordering::Relaxed);
            tracing::warn!(%what, %error, "sessions have weights of their own from now on, which takes memory");
        }
        Ok(session)
    }
}

/// A session that takes f32 images `[N, ...]` and gives one f32 output `[N, ...]`, with buffers of its own, which stay for the
/// sizes of batches that came last.
pub(super) struct Bound {
    /// Until it is dropped.
    session: Option<Session>,
    provider: Provider,
    sharing: Sharing,
    /// Of one image, without N.
    input: Vec<i64>,
    output: Vec<i64>,
    /// Images that it runs at a time, where that is always the same; fewer are filled up with zeros.
    size: Option<usize>,
    /// The threads that have captured it, where it is to be a CUDA graph.
    captured: Option<Captured>,
    spent: bool,
    /// With the images of their batches. Those used last come last.
    buffers: Vec<(usize, Buffers)>,
}

/// Bytes of a session's input buffers that stay from run to run, at most, where more than one stays.
const KEPT_BYTES: usize = 256 << 10;

impl Bound {
    /// `input` and `output` are the shapes of one image, as the checked graph has them. The images are the first input. `graph` is
    /// what the session was [made](Sessions::make) with.
    pub(super) fn new(
        session: Session,
        sessions: &Sessions,
        input: &[u64],
        output: &[u64],
        size: Option<usize>,
        graph: bool,
    ) -> Self {
        let shape = |sides: &[u64]| sides.iter().map(|&side| side as i64).collect();
        let (input, output) = (shape(input), shape(output));
        let Sessions { provider, sharing, .. } = *sessions;
        let (session, captured) = (Some(session), graph.then(Captured::default));
        Self { session, provider, sharing, input, output, size, captured, spent: false, buffers: Vec::new() }
    }

    /// What the buffers of a session take at most between runs, for inputs of `image` bytes each.
    pub(super) fn most_bytes(image: u64, size: Option<usize>) -> u64 {
        (image * size.unwrap_or(1) as u64).max(KEPT_BYTES as u64)
    }

    /// Whether it must not run again.
    pub(super) fn is_spent(&self) -> bool {
        self.spent
    }

    /// Elements of one image's input.
    fn elements(&self) -> usize {
        self.input.iter().product::<i64>() as usize
    }

    /// Images that a run of so many `images` has.
    pub(super) fn size(&self, images: usize) -> usize {
        self.size.unwrap_or(images)
    }

    /// Runs the graph on `images` and gives each one's output.
    ///
    /// # Panics
    /// An image is not of the input's size, or there are more than it runs at a time.
    pub(super) fn run(&mut self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.run_with(images, &[])
    }

    /// As [`run`](Self::run), with `more` inputs beside the images.
    pub(super) fn run_with(
        &mut self,
        images: &[&[f32]],
        more: &[(&str, Tensor<i64>)],
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let elements = self.elements();
        assert!(images.iter().all(|image| image.len() == elements), "an image has the model's input size");
        let size = self.size(images.len());
        assert!(images.len() <= size, "{} images are more than {size}", images.len());
        let there = self.buffers.iter().position(|(images, _)| *images == size);
        let mut buffers = match there {
            Some(at) => self.buffers.remove(at).1,
            None => self.make(size)?,
        };
        let using = match &mut self.captured {
            Some(captured) => captured.next(self.sharing),
            None => self.sharing.shared(),
        };
        let pixels = buffers.images();
        for (row, image) in pixels.chunks_exact_mut(elements).zip(images) {
            row.copy_from_slice(image);
        }
        pixels[images.len() * elements..].fill(0.0);
        let each = self.output.iter().product::<i64>() as usize;
        let rows = |values: &[f32]| values.chunks_exact(each).take(images.len()).map(<[f32]>::to_vec).collect();
        let session = self.session.as_mut().expect("a session until it is dropped");
        let result = buffers.run(session, more, rows);
        // Of a run that failed there may be half a graph, which would be taken for a whole one.
        self.spent |= result.is_err() && self.captured.is_some();
        if result.is_ok() {
            self.keep(size, buffers);
        } else {
            drop(buffers);
        }
        drop(using);
        Ok(result?)
    }

    /// Keeps buffers for the next run, and of the others as many as fit beside them; those of the one size that it runs, or
    /// of a single image, always.
    fn keep(&mut self, size: usize, buffers: Buffers) {
        let bytes = self.elements() * size_of::<f32>();
        let fits = |images: usize| images == self.size.unwrap_or(1) || images * bytes <= KEPT_BYTES;
        if !fits(size) {
            return;
        }
        self.buffers.push((size, buffers));
        let mut left = KEPT_BYTES.max(self.size.unwrap_or(1) * bytes);
        let kept = self.buffers.iter().rev().take_while(|(images, _)| {
            let room = left.checked_sub(images * bytes);
            left = room.unwrap_or(left);
            room.is_some()
        });
        let kept = kept.count();
        self.buffers.drain(..self.buffers.len() - kept);
    }

    fn make(&self, images: usize) -> ort::Result<Buffers> {
        let batch =
            |shape: &[i64]| -> Vec<i64> { std::iter::once(images as i64).chain(shape.iter().copied()).collect() };
        let session = self.session.as_ref().expect("a session until it is dropped");
        let _using = self.sharing.shared();
        Buffers::new(session, self.provider, &batch(&self.input), &batch(&self.output), self.captured.is_some())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _using = self.sharing.shared();
        self.buffers.clear();
        self.session = None;
    }
}
