//! How a mask runs: ONNX Runtime, its providers, and a model's sessions.
//!
//! An [`Engine`] looks at images once with the policy network and runs images of one mask as a batch: by the mask's path
//! compiled as one graph where there is one ([`Paths`]), and block by block where there is none yet. All its methods may
//! be called by several threads at once.

mod cache;
mod error;
mod executor;
pub(crate) mod heap;
mod library;
mod paths;
mod provider;
mod runtime;
mod seen;
mod session;
mod version;
mod weights;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use error::EngineError;
pub use paths::{PathMetrics, Paths};
pub use provider::Provider;
pub use runtime::{Runtime, RuntimeError};

use crate::bundle::{Bundle, Frequent};
use crate::policy::{Costs, Mask, Selection};
use executor::{BlockByBlock, Executor};
use paths::Source;
use session::{Bound, Sessions};

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
    /// The keep threshold by which the mask was chosen, where brownout raised it above the model's own.
    pub brownout: Option<f64>,
    /// Wall-clock time of the policy batch that the image was in.
    pub policy: Duration,
    /// Wall-clock time of the backbone batch that the image was in.
    pub backbone: Duration,
}

/// One result for each image of a batch, in their order.
pub type Each<T> = Vec<Result<T, EngineError>>;

/// A batch that ran a path.
#[derive(Debug)]
pub struct Ran {
    /// Class logits, `[C]`, of each image.
    pub logits: Each<Vec<f32>>,
    /// Whether the path ran as one graph.
    pub compiled: bool,
}

/// Something that runs images: an [`Engine`], or a made-up one in the scheduler's tests.
pub trait Backend: Send + Sync {
    /// The policy's logits, `[K]`, for each image.
    fn look(&self, images: &[&[f32]]) -> Each<Vec<f32>>;

    /// Runs each image through the blocks that `mask` keeps.
    fn run(&self, mask: &Mask, images: &[&[f32]]) -> Ran;

    /// Class logits, `[C]`, of an image that is run again to be timed: as [`run`](Self::run) would, but it counts for
    /// nothing, neither as an image of its mask nor as use of a compiled path. `None` where the full net is wanted and
    /// there is none as one graph that is idle.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    fn rerun(&self, mask: &Mask, image: &[f32]) -> Result<Option<Vec<f32>>, EngineError>;
}

/// The most probable class, the first of those that are equally probable.
pub fn best_class(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

/// A model ready to run: its bundle and its sessions.
pub struct Engine {
    bundle: Arc<Bundle>,
    costs: Costs,
    /// Sessions of the policy network that no thread uses at the moment.
    policies: Mutex<Vec<Bound>>,
    blocks: BlockByBlock,
    source: Arc<Source>,
    paths: Arc<Paths>,
    sessions: Sessions,
}

impl Engine {
    /// Makes the sessions of `bundle` on `provider`, for up to `threads` threads at once, and runs an image of zeros
    /// through them. Its compiled paths live in `paths`.
    ///
    /// # Errors
    /// The provider cannot be registered, ONNX Runtime refuses a graph, or the first image fails.
    pub fn new(
        bundle: Arc<Bundle>,
        runtime: &'static Runtime,
        provider: Provider,
        threads: usize,
        paths: Arc<Paths>,
        metrics: PathMetrics,
    ) -> Result<Self, EngineError> {
        let sessions = Sessions::new(runtime, provider);
        let engine = Self {
            costs: bundle.costs(),
            policies: Mutex::default(),
            blocks: BlockByBlock::new(&bundle, &sessions)?,
            source: Arc::new(Source::new(Arc::clone(&bundle), sessions.clone(), threads, metrics)),
            paths,
            sessions,
            bundle,
        };
        engine.paths.admit(&engine.source);
        let policies = (0..threads).map(|_| engine.make_policy()).collect::<Result<_, _>>()?;
        *engine.policies.lock().unwrap_or_else(PoisonError::into_inner) = policies;
        engine.first_run()?;
        heap::trim();
        Ok(engine)
    }

    /// Takes the sessions and the compiled paths apart and gives their memory back to the system.
    pub fn end(self) {
        drop(self);
        heap::trim();
    }

    fn make_policy(&self) -> Result<Bound, EngineError> {
        let graph = &self.bundle.policy;
        let mut policy = Bound::new(self.sessions.of(graph)?, &graph.input, &graph.output);
        // The first run is slower than those after it.
        policy.run(&[&self.source.zeros()])?;
        Ok(policy)
    }

    /// Every graph has run once before the first image of a client.
    fn first_run(&self) -> Result<(), EngineError> {
        let (zeros, width) = (self.source.zeros(), self.bundle.blocks.len());
        for mask in [Mask::full(width), Mask::from_fn(width, |_| false)] {
            (&self.blocks).run(&mask, &[&zeros])?;
        }
        Ok(())
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// The provider that the sessions run on.
    pub fn provider(&self) -> Provider {
        self.sessions.provider
    }

    /// Has the paths compiled that are to be expected, before anybody asks: the full net's, those of the bundle's
    /// frequent masks, and those that were `seen` in an earlier run.
    pub fn warm(&self, seen: &Frequent) {
        // What was seen where it serves counts more than what was seen on validation images.
        const BUNDLE: u64 = 1000;
        const SEEN: u64 = 4000;
        self.paths.expect(&self.source, &self.bundle.frequent, BUNDLE);
        self.paths.expect(&self.source, seen, SEEN);
        self.paths.warm(&self.source);
    }

    /// Waits until every path that was worth compiling is compiled, of all models, for at most `most`.
    pub fn settle(&self, most: Duration) {
        self.paths.settle(most);
    }

    /// The masks that images had since the engine was made, the most frequent first.
    pub fn frequent(&self) -> Frequent {
        self.paths.frequent(&self.source)
    }

    /// The policy's logits, `[K]`, for each image.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    ///
    /// # Panics
    /// An image is not of the model's input size.
    pub fn policy_logits(&self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let idle = || self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut policy = match taken {
            Some(policy) => policy,
            None => self.make_policy()?, // more threads than expected, or one that was lost to a panic
        };
        let logits = policy.run(images);
        idle().push(policy);
        logits
    }

    /// Class logits, `[C]`, of each image through the blocks of `mask`, one graph after another.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    ///
    /// # Panics
    /// An image is not of the model's input size, or the mask not as long as there are blocks.
    pub fn run_blocks(&self, mask: &Mask, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        (&self.blocks).run(mask, images)
    }

    /// Compiles the path of `mask` into one graph, unless it is there already; [`run`](Backend::run) uses it from then on.
    /// Returns `false` where the cache of paths has no room for it.
    ///
    /// # Errors
    /// The path cannot be compiled.
    ///
    /// # Panics
    /// The mask is not as long as there are blocks.
    pub fn compile(&self, mask: &Mask) -> Result<bool, EngineError> {
        self.paths.compile_now(&self.source, mask)
    }

    /// Answers `images`: the policy once for those that need it, then each group of equal masks as one batch.
    pub fn classify(&self, images: &[Image<'_>]) -> Each<Answer> {
        let mut answers: Vec<Option<Result<Answer, EngineError>>> = vec![None; images.len()];
        let undecided: Vec<usize> = (0..images.len()).filter(|&at| images[at].selection.needs_policy()).collect();
        let started = Instant::now();
        let looked = self.look(&undecided.iter().map(|&at| images[at].pixels).collect::<Vec<_>>());
        let policy = started.elapsed();

        let mut groups: HashMap<Mask, Vec<usize>> = HashMap::new();
        for (at, image) in images.iter().enumerate() {
            if let Some(mask) = image.selection.given(&self.costs, image.index) {
                groups.entry(mask).or_default().push(at);
            }
        }
        for (at, logits) in undecided.into_iter().zip(looked) {
            match logits {
                Ok(logits) => groups.entry(images[at].selection.learned(&self.costs, &logits)).or_default().push(at),
                Err(error) => answers[at] = Some(Err(error)),
            }
        }
        for (mask, members) in groups {
            let started = Instant::now();
            let logits = self.run(&mask, &members.iter().map(|&at| images[at].pixels).collect::<Vec<_>>()).logits;
            let backbone = started.elapsed();
            for (at, logits) in members.into_iter().zip(logits) {
                let policy_ran = images[at].selection.needs_policy();
                let policy = if policy_ran { policy } else { Duration::ZERO };
                let mask = mask.clone();
                let brownout = None;
                answers[at] =
                    Some(logits.map(|logits| Answer { logits, mask, policy_ran, brownout, policy, backbone }));
            }
        }
        answers.into_iter().map(|answer| answer.expect("an image has a mask or an error")).collect()
    }
}

impl Backend for Engine {
    fn look(&self, images: &[&[f32]]) -> Each<Vec<f32>> {
        if images.is_empty() {
            return Vec::new();
        }
        each(self.policy_logits(images), images, |image| self.policy_logits(image))
    }

    fn run(&self, mask: &Mask, images: &[&[f32]]) -> Ran {
        let fused = self.paths.run(&self.source, mask, images);
        let compiled = fused.is_some();
        let batch = fused.unwrap_or_else(|| self.run_blocks(mask, images));
        Ran { logits: each(batch, images, |image| self.run_blocks(mask, image)), compiled }
    }

    fn rerun(&self, mask: &Mask, image: &[f32]) -> Result<Option<Vec<f32>>, EngineError> {
        let logits = match self.paths.rerun(&self.source, mask, &[image]) {
            None if mask.is_full() => return Ok(None),
            None => self.run_blocks(mask, &[image]),
            Some(fused) => fused,
        };
        logits.and_then(one).map(Some)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.paths.forget(&self.source);
    }
}

/// A batch's results image by image. Values that overflow for one image say nothing of the others. Nor does an error of
/// ONNX Runtime: each image of a batch that failed runs once more, `alone`, so that only those fail that make it fail.
fn each(
    batch: Result<Vec<Vec<f32>>, EngineError>,
    images: &[&[f32]],
    alone: impl Fn(&[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError>,
) -> Each<Vec<f32>> {
    match batch {
        Ok(batch) => batch.into_iter().map(finite).collect(),
        Err(error) if images.len() == 1 => vec![Err(error)],
        Err(error) => {
            tracing::debug!(images = images.len(), %error, "a batch failed; its images run one by one");
            images.iter().map(|image| alone(&[image]).and_then(one)).collect()
        }
    }
}

/// The result of a batch of one image.
fn one(batch: Vec<Vec<f32>>) -> Result<Vec<f32>, EngineError> {
    finite(batch.into_iter().next().expect("a result for each image"))
}

fn finite(values: Vec<f32>) -> Result<Vec<f32>, EngineError> {
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(EngineError::NotFinite) }
}
