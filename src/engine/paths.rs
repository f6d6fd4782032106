//! The cache of fused paths: sessions compiled aside by one thread, bounded in bytes for all models together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge};

use super::cache::{Cache, Weigh};
use super::error::EngineError;
use super::executor::{Executor, Fused};
use super::heap;
use super::provider::{Provider, Tactics};
use super::seen::Seen;
use super::session::{Bound, Sessions};
use crate::bundle::{Bundle, Frequent, Graph};
use crate::policy::Mask;

/// What one model's paths did.
#[derive(Debug, Clone)]
pub struct PathMetrics {
    /// Groups of images that ran a compiled path.
    pub hits: IntCounter,
    /// Groups of images that ran without their compiled path.
    pub misses: IntCounter,
    /// Compiled paths that made room for others.
    pub evictions: IntCounter,
    /// Paths that could not be compiled; their images run without.
    pub failures: IntCounter,
    /// Bytes of the compiled paths.
    pub bytes: IntGauge,
}

impl Default for PathMetrics {
    /// Counts that nobody reads.
    fn default() -> Self {
        let counter = || IntCounter::new("unread", "unread").expect("a valid name");
        Self {
            hits: counter(),
            misses: counter(),
            evictions: counter(),
            failures: counter(),
            bytes: IntGauge::new("unread", "unread").expect("a valid name"),
        }
    }
}

/// A model's paths as the cache sees them.
pub(super) struct Source {
    id: u64,
    bundle: Arc<Bundle>,
    sessions: Sessions,
    tactics: Tactics,
    /// Sessions for a path, at most: one for each thread that may run it.
    most: usize,
    metrics: PathMetrics,
    /// Encoded bytes of stem and head, and of what runs for each block kept and dropped.
    ends: u64,
    blocks: Vec<(u64, u64)>,
    /// Bytes of an image's tensor.
    image: u64,
    /// Bytes of one image's largest tensor between blocks.
    widest: u64,
}

impl Source {
    pub(super) fn new(
        bundle: Arc<Bundle>,
        sessions: Sessions,
        tactics: Tactics,
        most: usize,
        metrics: PathMetrics,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let size = |graph: &Graph| graph.to_bytes().len() as u64;
        let blocks = bundle.blocks.iter();
        let tensor = |sides: &[u64]| sides.iter().product::<u64>() * size_of::<f32>() as u64;
        let outputs = blocks.clone().map(|block| tensor(&block.kept.output));
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            ends: size(&bundle.stem) + size(&bundle.head),
            blocks: blocks.map(|block| (size(&block.kept), block.shortcut.as_ref().map_or(0, size))).collect(),
            image: tensor(&bundle.stem.input),
            widest: outputs.fold(tensor(&bundle.stem.output), u64::max),
            bundle,
            sessions,
            tactics,
            most,
            metrics,
        }
    }

    /// The path of `mask` for so many images.
    fn key(&self, mask: &Mask, images: usize) -> Key {
        Key { source: self.id, mask: mask.clone(), size: self.tactics.sizes().of(images) }
    }

    /// Makes the path as one graph and runs it once.
    pub(super) fn fuse(&self, mask: &Mask, size: Option<usize>) -> Result<Fused, EngineError> {
        let mut fused = Fused::new(&self.bundle, mask, &self.sessions, size, self.tactics.cuda_graphs)?;
        // The first run is slower than those after it.
        fused.run(mask, &[&self.zeros()])?;
        Ok(fused)
    }

    /// Counts a group of images that ran.
    pub(super) fn ran(&self, compiled: bool) {
        let PathMetrics { hits, misses, .. } = &self.metrics;
        if compiled { hits.inc() } else { misses.inc() }
    }

    /// Threads that may run a path at once.
    pub(super) fn threads(&self) -> usize {
        self.most
    }

    /// An image of zeros.
    pub(super) fn zeros(&self) -> Vec<f32> {
        vec![0.0; self.image as usize / size_of::<f32>()]
    }

    /// What a session of the path takes in memory, about: what ONNX Runtime holds for a session and for each block, the
    /// buffers of a batch, and the weights where they are not shared, on the CPU as read and as laid out for the processor. A
    /// session for batches of one size also keeps what its tensors take: of a block the input, two within the branch, and the
    /// result. On a GPU each has a stream, for which cuBLAS and cuDNN keep room to work in.
    fn bytes(&self, Key { mask, size, .. }: &Key) -> u64 {
        const SESSION: u64 = 64 << 10;
        const STREAM: u64 = 64 << 20;
        // A CUDA graph is kept for each thread that runs it, and for the one that compiled it.
        let streams = if self.tactics.cuda_graphs { self.most as u64 + 1 } else { 1 };
        const BLOCK: u64 = 48 << 10;
        let blocks =
            || self.blocks.iter().zip(mask.iter()).map(|(&(kept, dropped), keep)| if keep { kept } else { dropped });
        let graphs = blocks().filter(|&bytes| bytes > 0).count() as u64;
        let weights = self.ends + blocks().sum::<u64>();
        let own = match self.sessions.provider {
            Provider::Cpu if self.sessions.share_weights() => 0,
            Provider::Cpu => 2 * weights,
            Provider::Cuda(_) => streams * STREAM + weights,
        };
        let tensors = size.map_or(0, |images| 4 * self.widest * images as u64);
        SESSION + BLOCK * graphs + Bound::most_bytes(self.image, *size) + own + tensors
    }
}

/// A compiled path.
struct Compiled {
    fused: Fused,
    bytes: u64,
    source: Arc<Source>,
}

impl Compiled {
    fn new(Order { source, key, .. }: &Order) -> Result<Self, EngineError> {
        let fused = source.fuse(&key.mask, key.size)?;
        heap::trim();
        let bytes = source.bytes(key);
        source.metrics.bytes.add(bytes as i64);
        Ok(Self { fused, bytes, source: Arc::clone(source) })
    }
}

impl Weigh for Compiled {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        self.source.metrics.bytes.sub(self.bytes as i64);
    }
}

/// A compiled path that a thread runs; goes back to the cache when dropped, unless the run panicked or spent it.
struct Lent<'p> {
    shared: &'p Shared,
    key: Key,
    path: Option<Compiled>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let mut state = self.shared.lock();
        let spent = path.fused.is_spent();
        if spent {
            state.fail(&self.key);
            path.source.metrics.failures.inc();
        }
        let gone = if std::thread::panicking() || spent {
            state.cache.lose(&self.key, &path);
            Some(path)
        } else {
            state.cache.give_back(&self.key, path)
        };
        drop(state);
        drop(gone); // outside the lock: taking a session apart takes a while
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    source: u64,
    mask: Mask,
    /// Images that it runs at a time, where that is always the same.
    size: Option<usize>,
}

/// Why a path is to be compiled: what may go for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is expected to be asked for: nothing goes, but for the full net.
    Expected,
    /// It was asked for: paths may go that are asked for less, or not any more.
    Asked,
    /// Somebody said so: anything may go.
    Told,
}

/// A path to be compiled.
struct Order {
    source: Arc<Source>,
    key: Key,
    why: Why,
}

struct State {
    cache: Cache<Key, Compiled>,
    /// The masks of each model that is there.
    seen: HashMap<u64, Seen>,
    /// Images since the counts aged.
    images: u64,
    orders: VecDeque<Order>,
    making: Option<Key>,
    /// Paths that could not be compiled.
    failed: HashSet<Key>,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a path compiled if it is worth it.
    fn ask(&self, state: &mut State, source: &Arc<Source>, key: &Key) {
        let order = Order { source: Arc::clone(source), key: key.clone(), why: Why::Asked };
        if state.is_worth(&order) {
            state.orders.push_back(order);
            self.changed.notify_all();
        }
    }
}

/// The compiled paths of all models of the process, within a number of bytes.
///
/// A path is compiled by a thread of its own once its mask has come before, and only at the cost of paths that come less
/// often or have not come for long, the least recently used first; meanwhile its images run without. Each path has as many sessions as
/// threads have wanted to run it at once.
pub struct Paths {
    shared: Arc<Shared>,
    compiler: Mutex<Option<JoinHandle<()>>>,
}

/// Orders that wait, at most: what comes beyond them will come again if it matters.
const MOST_ORDERS: usize = 128;

/// Failed paths that are remembered, at most.
const MOST_FAILED: usize = 1024;

/// Groups of images, of all models, after which a path that ran none of them may go for any other.
const IDLE: u64 = 500;

/// Images, of all models, after which old counts count half and paths that failed may be tried again.
const AGE: u64 = 20_000;

impl Paths {
    /// An empty cache of at most `limit` bytes and its compiler thread.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn start(limit: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                cache: Cache::new(limit),
                seen: HashMap::new(),
                images: 0,
                orders: VecDeque::new(),
                making: None,
                failed: HashSet::new(),
                stopped: false,
            }),
            changed: Condvar::new(),
        });
        let compiler = std::thread::Builder::new().name("path-compiler".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || compile(&shared)
        })?;
        Ok(Self { shared, compiler: Mutex::new(Some(compiler)) })
    }

    /// Bytes of all compiled paths, and of the one that is being compiled.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().cache.bytes()
    }

    /// Takes a model in, until [`forget`](Self::forget).
    pub(super) fn admit(&self, source: &Source) {
        self.shared.lock().seen.insert(source.id, Seen::default());
    }

    /// Counts `images` more of `mask`. Returns whether it came before.
    pub(super) fn count(&self, source: &Source, mask: &Mask, images: usize) -> bool {
        self.shared.lock().count(&source.key(mask, images), images as u64)
    }

    /// Runs `images` by the compiled path of `mask`, if one is idle; has it compiled otherwise, where the mask came before and
    /// that is worth it.
    pub(super) fn run(
        &self,
        source: &Arc<Source>,
        mask: &Mask,
        images: &[&[f32]],
        came_before: bool,
    ) -> Option<Result<Vec<Vec<f32>>, EngineError>> {
        let key = source.key(mask, images.len());
        let taken = {
            let mut state = self.shared.lock();
            let taken = state.cache.take(&key);
            if taken.is_none() && came_before {
                self.shared.ask(&mut state, source, &key);
            }
            taken
        };
        let mut lent = Lent { shared: &self.shared, key, path: Some(taken?) };
        lent.path.as_mut().map(|path| path.fused.run(mask, images))
    }

    /// Counts the masks of images that ran together, and has each compiled that is not yet and is worth it, for the `parts` in
    /// which so many images of it would run.
    pub(super) fn notice(&self, source: &Arc<Source>, masks: &[&Mask], parts: impl Fn(&Mask, usize) -> Vec<usize>) {
        let mut images: HashMap<&Mask, usize> = HashMap::new();
        masks.iter().for_each(|mask| *images.entry(mask).or_default() += 1);
        let mut state = self.shared.lock();
        for (mask, images) in images {
            if !state.count(&source.key(mask, images), images as u64) {
                continue;
            }
            for part in parts(mask, images) {
                let key = source.key(mask, part);
                if state.cache.count(&key) == 0 {
                    self.shared.ask(&mut state, source, &key);
                }
            }
        }
    }

    /// Runs `images` by the compiled path of `mask`, if one is idle, and counts nothing.
    pub(super) fn rerun(
        &self,
        source: &Source,
        mask: &Mask,
        images: &[&[f32]],
    ) -> Option<Result<Vec<Vec<f32>>, EngineError>> {
        let key = source.key(mask, images.len());
        let path = self.shared.lock().cache.take_unnoticed(&key)?;
        let mut lent = Lent { shared: &self.shared, key, path: Some(path) };
        lent.path.as_mut().map(|path| path.fused.run(mask, images))
    }

    /// Counts the masks of `expected` as if so many images had come with them.
    pub(super) fn expect(&self, source: &Source, expected: &Frequent, images: u64) {
        if let Some(seen) = self.shared.lock().seen.get_mut(&source.id) {
            seen.expect(expected, images);
        }
    }

    /// Has the paths that are expected compiled before anybody asks, for batches of up to `most` images: the full net's first
    /// and then the most frequent.
    pub(super) fn warm(&self, source: &Arc<Source>, most: usize) {
        let full = Mask::full(source.bundle.blocks.len());
        let mut state = self.shared.lock();
        let expected = state.seen.get(&source.id).map(Seen::by_count).unwrap_or_default();
        let masks: Vec<Mask> = std::iter::once(full).chain(expected.0.into_iter().map(|(mask, _)| mask)).collect();
        let sizes = source.tactics.sizes().up_to(most);
        // Single images first: without their paths nothing is fast.
        for (size, mask) in sizes.into_iter().flat_map(|size| masks.iter().map(move |mask| (size, mask))) {
            let key = Key { source: source.id, mask: mask.clone(), size };
            let order = Order { source: Arc::clone(source), key, why: Why::Expected };
            let is_new = state.cache.count(&order.key) == 0 && !state.is_ordered(&order.key);
            if is_new && state.victims(&order).is_some() {
                state.orders.push_back(order);
            } else if is_new && mask.is_full() {
                tracing::warn!(
                    model = %source.bundle.dir.display(),
                    expected_bytes = source.bytes(&order.key),
                    "the memory for compiled paths does not hold the full net as one graph: images run without"
                );
            }
        }
        self.shared.changed.notify_all();
    }

    /// Whether the path of each of the masks is there for batches of all these numbers of images.
    pub(super) fn there<'m>(&self, source: &Source, groups: impl Iterator<Item = (&'m Mask, Vec<usize>)>) -> Vec<bool> {
        let state = self.shared.lock();
        let is_there = |mask, images| state.cache.count(&source.key(mask, images)) > 0;
        groups.map(|(mask, parts)| parts.into_iter().all(|images| is_there(mask, images))).collect()
    }

    /// Compiles the path of `mask` for so many images now, unless it is there. Returns whether it is there then: the least recently used
    /// paths make room for it, but it may be too large.
    pub(super) fn compile_now(&self, source: &Arc<Source>, mask: &Mask, images: usize) -> Result<bool, EngineError> {
        let order = Order { source: Arc::clone(source), key: source.key(mask, images), why: Why::Told };
        let evicted = {
            let mut state = self.shared.lock();
            if state.cache.count(&order.key) > 0 {
                return Ok(true);
            }
            state.begin(&order)
        };
        let Some((reserved, evicted)) = evicted else { return Ok(false) };
        drop(evicted);
        let made = Compiled::new(&order);
        let mut state = self.shared.lock();
        let (kept, gone) = match made {
            Ok(made) => {
                let gone = state.keep(&order, made, reserved);
                (Ok(gone.is_none()), gone)
            }
            Err(error) => {
                state.cache.release(reserved);
                (Err(error), None)
            }
        };
        drop(state);
        drop(gone);
        kept
    }

    /// Waits until everything ordered is compiled, for at most `most`.
    pub fn settle(&self, most: Duration) {
        let until = Instant::now() + most;
        let mut state = self.shared.lock();
        while !state.stopped && (!state.orders.is_empty() || state.making.is_some()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The masks that the model's images had, the most frequent first; none where no image came.
    pub(super) fn frequent(&self, source: &Source) -> Frequent {
        self.shared.lock().seen.get(&source.id).map(Seen::frequent).unwrap_or_default()
    }

    /// Drops everything of a model.
    pub(super) fn forget(&self, source: &Source) {
        let gone = {
            let mut state = self.shared.lock();
            state.seen.remove(&source.id);
            state.orders.retain(|order| order.source.id != source.id);
            state.failed.retain(|key| key.source != source.id);
            state.cache.forget(|key| key.source == source.id)
        };
        drop(gone); // outside the lock: taking a session apart takes a while
    }

    /// Compiles nothing more and waits for what is being compiled: ONNX Runtime must not be used while the process ends.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        let compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner).take();
        if compiler.is_some_and(|compiler| compiler.join().is_err()) {
            tracing::error!("the path compiler ended in a panic");
        }
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    /// Counts `images` more of a mask; whether it came before them.
    fn count(&mut self, key: &Key, images: u64) -> bool {
        self.images += images;
        if self.images >= AGE {
            self.images = 0;
            self.seen.values_mut().for_each(Seen::age);
            self.failed.clear();
        }
        self.seen.get_mut(&key.source).is_some_and(|seen| seen.add(&key.mask, images) > images)
    }

    /// How often a mask was asked for.
    fn asked(&self, key: &Key) -> u64 {
        self.seen.get(&key.source).map_or(0, |seen| seen.count(&key.mask))
    }

    fn is_ordered(&self, key: &Key) -> bool {
        self.making.as_ref() == Some(key) || self.orders.iter().any(|order| order.key == *key)
    }

    /// What has to go for a path; `None` where there is no room for it.
    fn victims(&self, Order { source, key, why }: &Order) -> Option<Vec<(Key, usize)>> {
        let asked = self.asked(key);
        let may_go = |other: &Key, idle: u64| match why {
            Why::Expected => key.mask.is_full(),
            Why::Asked => self.asked(other) < asked || idle >= IDLE,
            Why::Told => true,
        };
        self.cache.victims(key, source.bytes(key), may_go)
    }

    fn is_worth(&self, order: &Order) -> bool {
        let key = &order.key;
        !self.stopped
            && self.orders.len() < MOST_ORDERS
            && self.cache.count(key) < order.source.most
            && !self.failed.contains(key)
            && !self.is_ordered(key)
            && self.victims(order).is_some()
    }

    /// Remembers that a path is not to be compiled again soon.
    fn fail(&mut self, key: &Key) {
        if self.failed.len() >= MOST_FAILED {
            self.failed.clear();
        }
        self.failed.insert(key.clone());
    }

    /// Reserves bytes for a path and takes out what has to go, to be dropped outside the lock; `None` where it is not
    /// wanted any more or there is no room for it.
    fn begin(&mut self, order: &Order) -> Option<(u64, Vec<Compiled>)> {
        let key = &order.key;
        if !self.seen.contains_key(&key.source) || self.cache.count(key) >= order.source.most {
            return None;
        }
        let victims = self.victims(order)?;
        let reserved = order.source.bytes(key);
        let evicted = self.cache.reserve(reserved, victims);
        evicted.iter().for_each(|path| path.source.metrics.evictions.inc());
        Some((reserved, evicted))
    }

    /// Puts a compiled path in the cache; gives it out again where its model is gone.
    fn keep(&mut self, order: &Order, made: Compiled, reserved: u64) -> Option<Compiled> {
        let key = &order.key;
        if !self.seen.contains_key(&key.source) {
            self.cache.release(reserved);
            return Some(made);
        }
        self.cache.insert(key.clone(), made, reserved, key.mask.is_full());
        None
    }
}

/// The compiler thread.
fn compile(shared: &Shared) {
    loop {
        let (order, reserved, evicted) = {
            let mut state = shared.lock();
            loop {
                if state.stopped {
                    return;
                }
                let Some(order) = state.orders.pop_front() else {
                    shared.changed.notify_all();
                    state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                };
                if let Some((reserved, evicted)) = state.begin(&order) {
                    state.making = Some(order.key.clone());
                    break (order, reserved, evicted);
                }
            }
        };
        drop(evicted);
        let started = Instant::now();
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| Compiled::new(&order)));
        let made = made.map_err(|_| "it panicked".to_owned()).and_then(|made| made.map_err(|error| error.to_string()));
        let mut state = shared.lock();
        let gone = match made {
            Ok(made) => {
                tracing::debug!(mask = %order.key.mask, seconds = started.elapsed().as_secs_f64(), "path compiled");
                state.keep(&order, made, reserved)
            }
            Err(reason) => {
                order.source.metrics.failures.inc();
                tracing::warn!(mask = %order.key.mask, reason, "a path cannot be compiled: its images run without");
                state.cache.release(reserved);
                state.fail(&order.key);
                None
            }
        };
        drop(state);
        drop(gone);
        shared.lock().making = None;
        shared.changed.notify_all();
    }
}
