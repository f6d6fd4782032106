//! How a mask runs: ONNX Runtime, its providers, and a model's sessions.
//!
//! An [`Engine`] looks at images once with the policy network and runs images of one mask as a batch: by the mask's path
//! compiled as one graph where there is one ([`Paths`]), and block by block where there is none yet. Images of different
//! masks run in one batch where that was measured to take less. All its methods may be called by several threads at once.

mod buffers;
mod cache;
mod device;
mod error;
mod executor;
pub(crate) mod heap;
mod library;
mod mixed;
mod paths;
mod pool;
mod provider;
mod rooms;
mod runtime;
mod seen;
mod session;
mod sizes;
mod speeds;
mod version;
mod weights;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use error::EngineError;
pub use paths::{PathMetrics, Paths};
pub use provider::{Provider, Tactics, Target};
pub use runtime::{Runtime, RuntimeError};

use crate::bundle::{Bundle, Frequent};
use crate::policy::{Costs, Mask, Selection};
use executor::{BlockByBlock, Executor};
use mixed::Mixed;
use paths::Source;
use pool::Pool;
use rooms::Rooms;
use session::{Bound, Sessions};
use speeds::{Curve, Group, Speeds, shortest};

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

    /// Whether images of different masks may run together.
    fn mixes(&self) -> bool;

    /// Which of `groups`, masks and how many images of each wait, are to run together with the first: their positions, in
    /// ascending order, 0 first and alone where it runs by itself.
    fn together(&self, groups: &[(&Mask, usize)]) -> Vec<usize>;

    /// Class logits, `[C]`, of each image through the blocks of its own mask, in one batch.
    fn run_mixed(&self, images: &[(&Mask, &[f32])]) -> Each<Vec<f32>>;

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
    policies: Pool<Bound>,
    mixed: Pool<Mixed>,
    rooms: Arc<Rooms>,
    /// `None` where the graph for mixed masks runs what has no compiled path.
    blocks: Option<BlockByBlock>,
    source: Arc<Source>,
    paths: Arc<Paths>,
    sessions: Sessions,
    tactics: Tactics,
    /// Once it [was](Self::measure).
    measured: OnceLock<Measured>,
}

/// What batches take.
#[derive(Debug)]
struct Measured {
    /// Of the policy; `None` where batches of any size run as they are.
    policy: Option<Curve>,
    speeds: Speeds,
    /// Whether images of different masks ever run together.
    mixes: bool,
}

impl Engine {
    /// Makes the sessions of `bundle` on `target`, for up to `threads` threads at once, and runs an image of zeros
    /// through them. Its compiled paths live in `paths`.
    ///
    /// # Errors
    /// The provider cannot be registered, ONNX Runtime refuses a graph, or the first image fails.
    pub fn new(
        bundle: Arc<Bundle>,
        runtime: &'static Runtime,
        target: impl Into<Target>,
        threads: usize,
        paths: Arc<Paths>,
        metrics: PathMetrics,
    ) -> Result<Self, EngineError> {
        let target = target.into();
        let (tactics, sessions) = (target.tactics, Sessions::new(runtime, target)?);
        let by_block = tactics.block_by_block.then(|| BlockByBlock::new(&bundle, &sessions)).transpose()?;
        let engine = Self {
            costs: bundle.costs(),
            policies: Pool::new(),
            mixed: Pool::new(),
            rooms: Arc::new(Rooms::new(bundle.blocks.len())),
            blocks: by_block,
            source: Arc::new(Source::new(Arc::clone(&bundle), sessions.clone(), tactics, threads, metrics)),
            paths,
            sessions,
            tactics,
            measured: OnceLock::new(),
            bundle,
        };
        engine.paths.admit(&engine.source);
        let size = tactics.sizes().of(1);
        let policies = (0..threads).map(|_| engine.make_policy(size)).collect::<Result<_, _>>()?;
        engine.policies.put(size, policies);
        engine.first_run()?;
        heap::trim();
        Ok(engine)
    }

    /// Takes the sessions and the compiled paths apart and gives their memory back to the system.
    pub fn end(self) {
        drop(self);
        heap::trim();
    }

    fn make_policy(&self, size: Option<usize>) -> Result<Bound, EngineError> {
        let graph = &self.bundle.policy;
        let session = self.sessions.of(graph)?;
        let mut policy = Bound::new(session, &self.sessions, &graph.input, &graph.output, size, false);
        // The first run is slower than those after it.
        sound(policy.run(&[&self.source.zeros()])?, || graph.file.display().to_string())?;
        Ok(policy)
    }

    /// The masks that drop and that keep every block.
    fn ends(&self) -> [Mask; 2] {
        let width = self.bundle.blocks.len();
        [Mask::from_fn(width, |_| false), Mask::full(width)]
    }

    /// Every graph has run once before the first image of a client, to values that are numbers.
    fn first_run(&self) -> Result<(), EngineError> {
        let zeros = self.source.zeros();
        for mask in self.ends() {
            let path = || format!("the path {mask} of stem, blocks, shortcuts and head");
            sound(self.run_blocks(&mask, &[&zeros])?, path)?;
        }
        self.rooms.begin_anew();
        Ok(())
    }

    /// Makes what runs batches of up to `most` images, for every thread, where sessions are of one size each: none is made
    /// then while images wait, but for paths to be compiled.
    ///
    /// # Errors
    /// ONNX Runtime refuses a graph.
    pub fn prepare(&self, most: usize) -> Result<(), EngineError> {
        if !self.tactics.fixed_sizes {
            return Ok(());
        }
        for size in self.tactics.sizes().up_to(most) {
            let zeros = self.source.zeros();
            self.policies.fill(size, self.source.threads(), || self.make_policy(size))?;
            let mixed = || -> Result<Mixed, EngineError> {
                let mut mixed = self.make_mixed(size)?;
                // The first run is slower than those after it.
                for mask in &self.ends() {
                    // Of the shapes, and with the memory, of the largest batches.
                    mixed.run(&vec![(mask, &*zeros); size.unwrap_or(1)])?;
                }
                Ok(mixed)
            };
            self.mixed.fill(size, self.source.threads(), mixed)?;
        }
        self.rooms.begin_anew();
        Ok(())
    }

    /// Measures what batches of up to `most` images take, to know from then on when images of different masks are to run
    /// together, and where batches are of fixed sizes, which to take apart instead of filling them up.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn measure(&self, most: usize) -> Result<(), EngineError> {
        // A run beyond it says enough of the longer ones.
        const LONG: f64 = 0.1;
        let masks = self.ends();
        let flops = self.costs.blocks.iter().map(|block| block.kept).sum();
        let image: Vec<f32> = (0..self.source.zeros().len()).map(|at| (at as f32 * 0.618).fract() - 0.5).collect();
        let mut measured = [Vec::new(), Vec::new(), Vec::new()];
        let (mut policy, mut made_for, mut fused) = (Vec::new(), None, Vec::new());
        let sizes = std::iter::successors(Some(1), |images| Some(images * 4)).take_while(|&images| images < most);
        for images in sizes.chain([most]) {
            let size = self.tactics.sizes().of(images);
            let images = size.unwrap_or(images);
            let batch = vec![&*image; images];
            if made_for != Some(size) {
                fused = masks.iter().map(|mask| self.source.fuse(mask, size)).collect::<Result<_, _>>()?;
                made_for = Some(size);
            }
            if size.is_some() {
                let seconds = shortest(|| self.policy_logits(&batch).map(drop))?;
                policy.push((images, seconds, seconds));
            }
            let mut seconds = [[0.0; 2]; 3];
            for (at, (mask, fused)) in masks.iter().zip(&mut fused).enumerate() {
                // A mask's own shapes, not those of the one before.
                self.rooms.begin_anew();
                let mixture: Vec<(&Mask, &[f32])> = batch.iter().map(|image| (mask, *image)).collect();
                seconds[0][at] = shortest(|| fused.run(mask, &batch).map(drop))?;
                seconds[2][at] = shortest(|| self.mix(&mixture).map(drop))?;
                if let Some(mut blocks) = self.blocks.as_ref() {
                    seconds[1][at] = shortest(|| (&mut blocks).run(mask, &batch).map(drop))?;
                }
            }
            for (points, [base, full]) in measured.iter_mut().zip(seconds) {
                points.push((images, base, full));
            }
            if seconds.iter().flatten().any(|&seconds| seconds > LONG) {
                break;
            }
        }
        let [fused, blocks, mixed] = measured.map(|points| Curve::new(&points, flops));
        let blocks = self.blocks.is_some().then_some(blocks);
        let speeds = Speeds { fused, blocks, mixed, sizes: self.tactics.sizes() };
        let ever = speeds.ever(&self.costs, most);
        self.rooms.begin_anew();
        if self.blocks.is_some() && !ever {
            self.mixed.clear();
            heap::trim();
        }
        let policy = (!policy.is_empty()).then(|| Curve::new(&policy, flops));
        let measured = Measured { policy, speeds, mixes: ever };
        tracing::debug!(model = %self.bundle.dir.display(), ?measured, "measured what batches take");
        drop(self.measured.set(measured)); // the first measurement counts
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

    /// How graphs are run there.
    pub fn tactics(&self) -> Tactics {
        self.tactics
    }

    /// Has the paths compiled that are to be expected, before anybody asks: the full net's, those of the bundle's
    /// frequent masks, and those that were `seen` in an earlier run. For batches of up to `most` images, where each size has
    /// paths of its own.
    pub fn warm(&self, seen: &Frequent, most: usize) {
        // What was seen where it serves counts more than what was seen on validation images.
        const BUNDLE: u64 = 1000;
        const SEEN: u64 = 4000;
        self.paths.expect(&self.source, &self.bundle.frequent, BUNDLE);
        self.paths.expect(&self.source, seen, SEEN);
        self.paths.warm(&self.source, most);
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
        let seconds = |size| self.measured.get()?.policy.as_ref().map(|policy| policy.of(size, 0));
        let parts = self.tactics.sizes().parts(images.len(), |size| seconds(size).unwrap_or(0.0));
        let mut logits = Vec::with_capacity(images.len());
        for part in taken(images, parts) {
            let size = self.tactics.sizes().of(part.len());
            // More threads than expected, or one that was lost to a panic.
            logits.extend(self.policies.lend(size, || self.make_policy(size), |policy| policy.run(part))?);
        }
        Ok(logits)
    }

    /// Class logits, `[C]`, of each image through the blocks of `mask`, without its compiled path: one graph after another, or
    /// by the graph for mixed masks.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    ///
    /// # Panics
    /// An image is not of the model's input size, or the mask not as long as there are blocks.
    pub fn run_blocks(&self, mask: &Mask, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        match self.blocks.as_ref() {
            Some(mut blocks) => (&mut blocks).run(mask, images),
            None => self.mix(&images.iter().map(|image| (mask, *image)).collect::<Vec<_>>()),
        }
    }

    /// Class logits, `[C]`, of each image through the blocks of its own mask, in one batch.
    ///
    /// # Errors
    /// ONNX Runtime fails.
    ///
    /// # Panics
    /// As of [`run_blocks`](Self::run_blocks).
    fn mix(&self, images: &[(&Mask, &[f32])]) -> Result<Vec<Vec<f32>>, EngineError> {
        let size = self.tactics.sizes().of(images.len());
        self.mixed.lend(size, || self.make_mixed(size), |mixed| mixed.run(images))
    }

    fn make_mixed(&self, size: Option<usize>) -> Result<Mixed, EngineError> {
        Mixed::new(&self.bundle, &self.sessions, size, &self.rooms)
    }

    /// How many images of a group run at a time.
    fn parts(&self, mask: &Mask, images: usize) -> Vec<usize> {
        match self.measured.get() {
            Some(measured) => measured.speeds.parts(&self.costs, mask, images),
            None => vec![images],
        }
    }

    /// Compiles the path of `mask` into one graph, where each size of batches has its own one for all that so many images run
    /// as, unless it is there already; [`run`](Backend::run) uses it from then on. Returns `false` where the cache of paths has
    /// no room for it.
    ///
    /// # Errors
    /// The path cannot be compiled.
    ///
    /// # Panics
    /// The mask is not as long as there are blocks.
    pub fn compile(&self, mask: &Mask, images: usize) -> Result<bool, EngineError> {
        let parts = self.parts(mask, images);
        for &part in &parts {
            self.paths.compile_now(&self.source, mask, part)?;
        }
        // One may have made room for the next.
        Ok(self.paths.there(&self.source, std::iter::once((mask, parts))) == [true])
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
        each(self.policy_logits(images), images, |at| self.policy_logits(&images[at..=at]))
    }

    fn run(&self, mask: &Mask, images: &[&[f32]]) -> Ran {
        let parts = self.parts(mask, images.len());
        let mut ran = Ran { logits: Vec::with_capacity(images.len()), compiled: true };
        let came_before = self.paths.count(&self.source, mask, images.len());
        for part in taken(images, parts) {
            let fused = self.paths.run(&self.source, mask, part, came_before);
            ran.compiled &= fused.is_some();
            let batch = fused.unwrap_or_else(|| self.run_blocks(mask, part));
            ran.logits.extend(each(batch, part, |at| self.run_blocks(mask, &part[at..=at])));
        }
        self.source.ran(ran.compiled);
        ran
    }

    fn mixes(&self) -> bool {
        self.measured.get().is_some_and(|measured| measured.mixes)
    }

    fn together(&self, groups: &[(&Mask, usize)]) -> Vec<usize> {
        let Some(Measured { speeds, mixes: true, .. }) = self.measured.get() else { return vec![0] };
        let parts = groups.iter().map(|&(mask, images)| (mask, speeds.parts(&self.costs, mask, images)));
        let there = self.paths.there(&self.source, parts);
        let waiting = groups.iter().zip(there).map(|(&(mask, images), compiled)| Group { mask, images, compiled });
        let together = speeds.together(&self.costs, &self.rooms.now(), &waiting.collect::<Vec<_>>());
        if together.len() == 1 && groups.len() > 1 {
            let images = groups.iter().map(|(_, images)| images).sum();
            let mut rows = vec![0; self.costs.blocks.len()];
            for (mask, images) in groups {
                mask.iter().zip(&mut rows).filter(|(keep, _)| *keep).for_each(|(_, rows)| *rows += images);
            }
            self.tactics.sizes().of(images).inspect(|&size| self.rooms.pass(size, &rows));
        }
        together
    }

    fn run_mixed(&self, images: &[(&Mask, &[f32])]) -> Each<Vec<f32>> {
        let (masks, pixels): (Vec<&Mask>, Vec<&[f32]>) = images.iter().copied().unzip();
        self.paths.notice(&self.source, &masks, |mask, images| self.parts(mask, images));
        each(self.mix(images), &pixels, |at| self.run_blocks(images[at].0, &[images[at].1]))
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

/// `images` in parts of so many.
fn taken<'b, 'i>(images: &'b [&'i [f32]], parts: Vec<usize>) -> impl Iterator<Item = &'b [&'i [f32]]> {
    let mut left = images;
    parts.into_iter().map(move |part| left.split_off(..part).expect("parts of all images"))
}

/// A batch's results image by image. Values that overflow for one image say nothing of the others. Nor does an error of
/// ONNX Runtime: each image of a batch that failed runs once more, `alone`, so that only those fail that make it fail.
fn each(
    batch: Result<Vec<Vec<f32>>, EngineError>,
    images: &[&[f32]],
    alone: impl Fn(usize) -> Result<Vec<Vec<f32>>, EngineError>,
) -> Each<Vec<f32>> {
    match batch {
        Ok(batch) => batch.into_iter().map(finite).collect(),
        Err(error) if images.len() == 1 => vec![Err(error)],
        Err(error) => {
            tracing::debug!(images = images.len(), %error, "a batch failed; its images run one by one");
            (0..images.len()).map(|at| alone(at).and_then(one)).collect()
        }
    }
}

/// # Errors
/// `what` gave something else than numbers.
fn sound(batch: Vec<Vec<f32>>, what: impl Fn() -> String) -> Result<(), EngineError> {
    let all = batch.iter().flatten().all(|value| value.is_finite());
    if all { Ok(()) } else { Err(EngineError::Broken { what: what() }) }
}

/// The result of a batch of one image.
fn one(batch: Vec<Vec<f32>>) -> Result<Vec<f32>, EngineError> {
    finite(batch.into_iter().next().expect("a result for each image"))
}

fn finite(values: Vec<f32>) -> Result<Vec<f32>, EngineError> {
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(EngineError::NotFinite) }
}
