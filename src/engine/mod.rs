//! How a mask runs: ONNX Runtime, its providers, and a model's sessions.
//!
//! An [`Engine`] holds a model's sessions once for each worker ([`Replica`]), since a session serves one thread at a
//! time. A replica looks at images once with the policy, groups them by mask and runs each group as a batch.

mod error;
mod executor;
mod provider;
mod runtime;
mod version;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ort::session::Session;

pub use error::EngineError;
pub use provider::Provider;
pub use runtime::{Runtime, RuntimeError};

use crate::bundle::Bundle;
use crate::policy::{Costs, Mask, Selection};
use executor::{Batch, BlockByBlock, Executor, Fused, Sessions, step, values};

/// An image to classify: its normalised tensor and how its mask is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// `[3, H, W]` of the model's input, row by row.
    pub pixels: &'a [f32],
    pub selection: &'a Selection,
    /// Position in its request; seeds `random_k`.
    pub index: u64,
}

/// What the engine found for one image.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Class logits, `[C]`.
    pub logits: Vec<f32>,
    /// The blocks that ran.
    pub mask: Mask,
    /// Whether the policy network looked at the image.
    pub policy_ran: bool,
    /// Wall-clock time of the policy batch that the image was in.
    pub policy: Duration,
    /// Wall-clock time of the backbone batch that the image was in.
    pub backbone: Duration,
}

/// Who asked about a batch of images, by their positions in it. A closure that takes the answers is one.
pub trait Replies {
    /// Whether the image is still worth running; asked before each step that would spend compute on it. An image that
    /// is not wanted gets no answer.
    fn wanted(&mut self, _at: usize) -> bool {
        true
    }

    /// A group of `images` is about to run a path together.
    fn running(&mut self, _images: usize) {}

    /// The image's answer; called once.
    fn answered(&mut self, at: usize, answer: Result<Answer, EngineError>);
}

impl<F: FnMut(usize, Result<Answer, EngineError>)> Replies for F {
    fn answered(&mut self, at: usize, answer: Result<Answer, EngineError>) {
        self(at, answer);
    }
}

/// Something that answers images: an [`Engine`], or a made-up one in the scheduler's tests.
pub trait Backend: Send + Sync {
    /// Answers every image of `images` that is wanted, each exactly once, as soon as its group has run.
    fn answer(&self, images: &[Image<'_>], replies: &mut dyn Replies);
}

/// A model ready to run: its bundle and its sessions.
pub struct Engine {
    bundle: Arc<Bundle>,
    costs: Costs,
    provider: Provider,
    idle: Mutex<Vec<Replica>>,
    returned: Condvar,
}

impl Engine {
    /// Makes `replicas` sets of sessions for `bundle` on `provider` and runs an image of zeros through each.
    ///
    /// # Errors
    /// The provider cannot be registered, ONNX Runtime refuses a graph, or the first image fails.
    pub fn new(
        bundle: Arc<Bundle>,
        runtime: &Runtime,
        provider: Provider,
        replicas: usize,
    ) -> Result<Self, EngineError> {
        let engine = Self::without_replicas(bundle, provider);
        (0..replicas.max(1)).try_for_each(|_| engine.add_replica(runtime))?;
        Ok(engine)
    }

    /// An engine that cannot answer yet: it needs a replica.
    pub fn without_replicas(bundle: Arc<Bundle>, provider: Provider) -> Self {
        let costs = bundle.costs();
        Self { bundle, costs, provider, idle: Mutex::default(), returned: Condvar::new() }
    }

    /// Makes another set of sessions and runs an image of zeros through it.
    ///
    /// # Errors
    /// The provider cannot be registered, ONNX Runtime refuses a graph, or the first image fails.
    pub fn add_replica(&self, runtime: &Runtime) -> Result<(), EngineError> {
        let mut replica = Replica::new(&self.bundle, &Sessions { runtime, provider: self.provider })?;
        replica.warm_up()?;
        self.give_back(replica);
        Ok(())
    }

    fn give_back(&self, replica: Replica) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(replica);
        self.returned.notify_one();
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// The provider that the sessions run on.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// A replica for this thread alone, until the lease is dropped; waits while all are taken.
    pub fn lease(&self) -> Lease<'_> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(replica) = idle.pop() {
                return Lease { engine: self, replica: Some(replica) };
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Backend for Engine {
    fn answer(&self, images: &[Image<'_>], replies: &mut dyn Replies) {
        self.lease().answer(&self.costs, images, replies);
    }
}

/// A replica on loan; goes back to its engine when dropped.
pub struct Lease<'e> {
    engine: &'e Engine,
    replica: Option<Replica>,
}

impl std::ops::Deref for Lease<'_> {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        self.replica.as_ref().expect("held until dropped")
    }
}

impl std::ops::DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Replica {
        self.replica.as_mut().expect("held until dropped")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(replica) = self.replica.take() {
            self.engine.give_back(replica);
        }
    }
}

/// One set of a model's sessions: serves one thread at a time.
pub struct Replica {
    policy: Session,
    full: Fused,
    blocks: BlockByBlock,
    /// `[3, H, W]`
    image: Vec<u64>,
    /// Number of blocks, K.
    width: usize,
    /// Number of classes, C.
    classes: usize,
    /// The batch being run, so that each one does not allocate anew.
    pixels: Vec<f32>,
}

impl Replica {
    fn new(bundle: &Bundle, sessions: &Sessions<'_>) -> Result<Self, EngineError> {
        let width = bundle.blocks.len();
        Ok(Self {
            policy: sessions.of(&bundle.policy)?,
            full: Fused::new(bundle, Mask::full(width), sessions)?,
            blocks: BlockByBlock::new(bundle, sessions)?,
            image: bundle.stem.input.clone(),
            width,
            classes: bundle.manifest.classes,
            pixels: Vec::new(),
        })
    }

    /// Runs every session once, so that the first image of a client does not pay for it.
    fn warm_up(&mut self) -> Result<(), EngineError> {
        let zeros = vec![0.0; self.elements()];
        self.policy_logits(&[&zeros])?;
        for mask in [Mask::full(self.width), Mask::from_fn(self.width, |_| false)] {
            self.run_blocks(&mask, &[&zeros])?;
        }
        self.run_full(&[&zeros])?;
        Ok(())
    }

    fn elements(&self) -> usize {
        self.image.iter().product::<u64>() as usize
    }

    /// The policy's logits for each image, `[K]`.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    ///
    /// # Panics
    /// An image is not of the model's input size.
    pub fn policy_logits(&mut self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.load(images);
        let batch = Batch { pixels: &self.pixels, images: images.len(), shape: &self.image };
        let logits = values(&step(&mut self.policy, batch.tensor()?)?)?;
        Ok(logits.chunks_exact(self.width).map(<[f32]>::to_vec).collect())
    }

    /// Class logits, `[C]`, of each image through the full net as one graph.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    ///
    /// # Panics
    /// An image is not of the model's input size.
    pub fn run_full(&mut self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.load(images);
        let batch = Batch { pixels: &self.pixels, images: images.len(), shape: &self.image };
        let logits = self.full.run(&Mask::full(self.width), batch)?;
        Ok(logits.chunks_exact(self.classes).map(<[f32]>::to_vec).collect())
    }

    /// Class logits, `[C]`, of each image through the blocks of `mask`, one graph after another.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    ///
    /// # Panics
    /// An image is not of the model's input size, or the mask not as long as there are blocks.
    pub fn run_blocks(&mut self, mask: &Mask, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.load(images);
        let batch = Batch { pixels: &self.pixels, images: images.len(), shape: &self.image };
        let logits = self.blocks.run(mask, batch)?;
        Ok(logits.chunks_exact(self.classes).map(<[f32]>::to_vec).collect())
    }

    fn load(&mut self, images: &[&[f32]]) {
        let elements = self.elements();
        self.pixels.clear();
        for image in images {
            assert_eq!(image.len(), elements, "an image has the model's input size");
            self.pixels.extend_from_slice(image);
        }
    }

    /// Answers `images`: the policy once for those that need it, then each group of equal masks as one batch. Each image
    /// that is wanted is answered exactly once, as soon as its group has run.
    pub fn answer(&mut self, costs: &Costs, images: &[Image<'_>], replies: &mut dyn Replies) {
        let mut undecided: Vec<usize> = (0..images.len()).filter(|&at| images[at].selection.needs_policy()).collect();
        undecided.retain(|&at| replies.wanted(at));
        let started = Instant::now();
        let mut learned = HashMap::new();
        if !undecided.is_empty() {
            let pixels: Vec<&[f32]> = undecided.iter().map(|&at| images[at].pixels).collect();
            let span = tracing::debug_span!("policy", images = pixels.len());
            match span.in_scope(|| self.policy_logits(&pixels)) {
                Ok(logits) => {
                    for (&at, logits) in undecided.iter().zip(logits) {
                        match finite(logits) {
                            Ok(logits) => drop(learned.insert(at, images[at].selection.learned(costs, &logits))),
                            Err(error) => replies.answered(at, Err(error)),
                        }
                    }
                }
                Err(error) => undecided.iter().for_each(|&at| replies.answered(at, Err(error.clone()))),
            }
        }
        let policy = started.elapsed();

        // Groups in the order of their first image.
        let mut groups: Vec<(Mask, Vec<usize>)> = Vec::new();
        let mut group_of: HashMap<Mask, usize> = HashMap::new();
        for (at, image) in images.iter().enumerate() {
            let mask = image.selection.given(costs, image.index).or_else(|| learned.remove(&at));
            let Some(mask) = mask else { continue }; // not wanted any more, or told that its policy failed
            let group = *group_of.entry(mask.clone()).or_insert_with(|| {
                groups.push((mask, Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(at);
        }
        for (mask, mut members) in groups {
            members.retain(|&at| replies.wanted(at));
            if members.is_empty() {
                continue;
            }
            replies.running(members.len());
            let pixels: Vec<&[f32]> = members.iter().map(|&at| images[at].pixels).collect();
            let span = tracing::debug_span!("backbone", images = pixels.len(), blocks = mask.kept());
            let started = Instant::now();
            // `path=full` runs the full net as one graph, and so does any other choice that keeps every block: it is
            // the same function, computed faster.
            let result =
                span.in_scope(|| if mask.is_full() { self.run_full(&pixels) } else { self.run_blocks(&mask, &pixels) });
            let backbone = started.elapsed();
            match result {
                Ok(logits) => {
                    for (&at, logits) in members.iter().zip(logits) {
                        let policy_ran = images[at].selection.needs_policy();
                        let policy = if policy_ran { policy } else { Duration::ZERO };
                        let mask = mask.clone();
                        let answer = finite(logits).map(|logits| Answer { logits, mask, policy_ran, policy, backbone });
                        replies.answered(at, answer);
                    }
                }
                Err(error) => members.iter().for_each(|&at| replies.answered(at, Err(error.clone()))),
            }
        }
    }
}

/// One image's values, every one finite: what overflows for one image says nothing of the others of its batch.
fn finite(values: Vec<f32>) -> Result<Vec<f32>, EngineError> {
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(EngineError::NotFinite) }
}
