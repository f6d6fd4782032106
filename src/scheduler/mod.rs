//! Who runs when: a bounded queue, and worker threads that take batches from it.
//!
//! A worker is an operating-system thread with one intra-op thread of its own. It takes what waits, without waiting for
//! company: first images that the policy network has not looked at, as one batch; then the path of the image whose turn it
//! is, with the other images of the same path. Under load masks are known well before their paths run, so that groups
//! fill. Turns are [fair] between connections. Images whose client left or whose time ran out are dropped before they cost
//! any compute. A worker for which nothing waits runs a share of the images again, by the full net too, to measure what
//! skipping saves ([`shadow`]). Where images wait too long, the policy may be made to keep fewer blocks ([`Brownout`]).

mod admission;
mod brownout;
mod fair;
mod line;
mod queue;
mod shadow;
mod turns;
mod wait;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

pub use admission::{Admission, Bounds, Cost, Flow, Refused, Slot};
pub use brownout::Brownout;
pub use turns::{Turn, Turns};
pub use wait::{Average, Pace};

use crate::engine::{Answer, Backend, EngineError, Ran, best_class};
use crate::policy::{Costs, Mask, Selection};
use crate::telemetry::metrics;
use crate::telemetry::request::{StageSpan, Whose};
use crate::telemetry::{ModelMetrics, RequestContext, Statistics, Workers};
use fair::{FlowId, Place};
use line::{Kind, Stage, Waits};
use queue::{Next, Queue, Taken};
use shadow::{Sampler, Shadow};

/// A model as the scheduler sees it.
pub trait Model: Send + Sync {
    fn backend(&self) -> &dyn Backend;
    fn costs(&self) -> &Costs;
    fn metrics(&self) -> &ModelMetrics;
    fn statistics(&self) -> &Statistics;
    fn pace(&self) -> &Pace;

    /// Images that a worker runs at a time, at most.
    fn max_batch(&self) -> usize {
        usize::MAX
    }
}

/// One image to be run.
pub struct Work {
    pub model: Arc<dyn Model>,
    /// `[3, H, W]` of the model's input.
    pub pixels: Vec<f32>,
    pub selection: Selection,
    /// Position in its request.
    pub index: u64,
    /// Its request.
    pub context: Arc<RequestContext>,
    /// After this the image is not run any more.
    pub deadline: Instant,
    pub slot: Slot,
}

/// Why an image was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkError {
    #[error("its time ran out before it was run")]
    Expired,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("its batch ended in a panic")]
    Lost,
}

type Reply = oneshot::Sender<Result<Answer, WorkError>>;

struct Job {
    work: Work,
    reply: Reply,
    /// When it was queued.
    since: Instant,
    /// Wall-clock time of the policy batch that the image was in, once it was in one.
    policy: Option<Duration>,
    /// The keep threshold, where brownout raised it.
    brownout: Option<f64>,
    /// Of the request; closed when a worker takes the job up.
    waiting: tracing::Span,
}

impl Job {
    fn wait(&mut self) {
        self.waiting = tracing::debug_span!("queue", request_id = self.work.context.id());
    }

    /// Ends the waiting.
    fn taken(&mut self) {
        let waiting = std::mem::replace(&mut self.waiting, tracing::Span::none());
        if !waiting.is_disabled() {
            self.work.context.doing(|| drop(waiting));
        }
    }

    /// Time that it has spent in the line.
    fn waited(&self) -> Duration {
        self.since.elapsed().saturating_sub(self.policy.unwrap_or_default())
    }

    fn fail(self, error: EngineError) {
        drop(self.reply.send(Err(error.into()))); // a client that left meanwhile does not want it
    }
}

impl Waits for Job {
    fn is_wanted(&self, now: Instant) -> bool {
        now < self.work.deadline && !self.reply.is_closed()
    }

    fn flow(&self) -> FlowId {
        self.work.slot.flow()
    }
}

/// What jobs have in common that may run together.
#[derive(Clone)]
struct Alike {
    model: Arc<dyn Model>,
    /// `None` until the policy network has looked.
    mask: Option<Mask>,
}

impl PartialEq for Alike {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.model, &other.model) && self.mask == other.mask
    }
}

impl Eq for Alike {}

impl std::hash::Hash for Alike {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        Arc::as_ptr(&self.model).cast::<()>().hash(hasher);
        self.mask.hash(hasher);
    }
}

impl Kind for Alike {
    fn stage(&self) -> Stage {
        if self.mask.is_none() { Stage::Look } else { Stage::Run }
    }

    fn most(&self) -> usize {
        self.model.max_batch()
    }

    fn mixes(&self, other: &Self) -> bool {
        self.mask.is_some()
            && other.mask.is_some()
            && Arc::ptr_eq(&self.model, &other.model)
            && self.model.backend().mixes()
    }

    fn together(groups: &[(&Self, usize)]) -> Vec<usize> {
        // All have a mask, or they did not mix.
        let masks: Vec<(&Mask, usize)> =
            groups.iter().filter_map(|&(alike, images)| Some((alike.mask.as_ref()?, images))).collect();
        match groups {
            [(first, _), ..] if masks.len() == groups.len() => first.model.backend().together(&masks),
            _ => vec![0],
        }
    }
}

/// The worker threads and their queue.
pub struct Scheduler {
    queue: Arc<Queue<Alike, Job, Shadow>>,
    brownout: Option<Arc<Brownout>>,
    /// Closed when the last worker has ended.
    ended: Mutex<mpsc::Receiver<()>>,
    /// Told of workers that ended in a panic.
    lost: Arc<Notify>,
}

impl Scheduler {
    /// Starts `workers` threads that run at most `max_batch` images at a time, and of those that the policy chooses a path
    /// for a `shadow_rate` again, by the full net too, when nothing waits. With `brownout` it keeps fewer blocks where images
    /// wait too long. What they do is shown in `metrics`.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn start(
        workers: usize,
        max_batch: usize,
        shadow_rate: f64,
        brownout: Option<Brownout>,
        metrics: &Workers,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(shadow::MOST));
        let (alive, ended) = mpsc::channel();
        let brownout = brownout.map(Arc::new);
        // Closes the queue again, for the threads that there are, where there are not enough.
        let scheduler = Self { queue, brownout, ended: Mutex::new(ended), lost: Arc::default() };
        for number in 0..workers {
            let (queue, brownout, alive) = (Arc::clone(&scheduler.queue), scheduler.brownout.clone(), alive.clone());
            let (lost, metrics) = (Lost(Arc::clone(&scheduler.lost)), metrics.clone());
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let sampler = Sampler::new(shadow_rate, number as u64);
                work(&queue, workers, max_batch, sampler, brownout.as_deref(), &metrics);
                drop::<(Lost, mpsc::Sender<()>)>((lost, alive));
            })?;
        }
        Ok(scheduler)
    }

    /// Resolves when a worker has ended in a panic. No batch ends it: the queue itself is in no state to be relied on then,
    /// and neither are the other workers.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Queues an image and waits for its answer. Dropping the future gives the image up: it will not be run if it has
    /// not been yet.
    ///
    /// # Errors
    /// The image's time ran out, the engine failed, or its batch ended in a panic.
    pub async fn run(&self, work: Work) -> Result<Answer, WorkError> {
        self.submit(work).await.unwrap_or(Err(WorkError::Lost))
    }

    /// Queues an image; the answer's sender is dropped where it gets none.
    fn submit(&self, work: Work) -> oneshot::Receiver<Result<Answer, WorkError>> {
        let (reply, answer) = oneshot::channel();
        let mask = work.selection.given(work.model.costs(), work.index);
        let alike = Alike { model: Arc::clone(&work.model), mask };
        let since = Instant::now();
        let mut job = Job { work, reply, since, policy: None, brownout: None, waiting: tracing::Span::none() };
        job.wait();
        drop(self.queue.push(alike, job)); // a closed queue gives it back
        answer
    }

    /// Tells brownout, where there is any, when nothing waits: without requests no worker does. Never ends then.
    pub async fn watch(&self) {
        let Some(brownout) = &self.brownout else { return };
        loop {
            tokio::time::sleep(brownout.pause()).await;
            if self.queue.is_idle() {
                brownout.waited(Duration::ZERO);
            }
        }
    }

    /// Measures nothing any more: a worker that runs one side of a shadow ends that, and those that wait are dropped.
    pub fn end_shadows(&self) {
        self.queue.close_spares();
    }

    /// Runs what is queued and ends the workers, or gives up on them after `most`: a worker may be stuck for good.
    /// Returns whether all have ended.
    pub fn finish(&self, most: Duration) -> bool {
        self.queue.close();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.recv_timeout(most) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Tells of a worker that ends in a panic.
struct Lost(Arc<Notify>);

impl Drop for Lost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notify_one();
        }
    }
}

fn work(
    queue: &Queue<Alike, Job, Shadow>,
    workers: usize,
    max_batch: usize,
    mut sampler: Sampler,
    brownout: Option<&Brownout>,
    threads: &Workers,
) {
    let worker = threads.enter();
    while let Some(next) = queue.take(max_batch, workers) {
        let _busy = worker.busy();
        let whose = match &next {
            Next::Batch(taken) => Some(Whose::batch(taken.batch.all().map(|(_, job)| &job.work.context))),
            Next::Spare(..) => None,
        };
        // A panic loses its own batch only: the replies that were not sent are dropped, which their receivers see.
        let caught = || {
            let ran = std::panic::catch_unwind(AssertUnwindSafe(|| match next {
                Next::Batch(taken) => run(taken, &mut sampler, brownout),
                Next::Spare(turn, shadow) => {
                    if let Some(rest) = shadow.run() {
                        turn.put_back(rest);
                    }
                }
            }));
            if ran.is_err() {
                threads.panics.inc();
                tracing::error!("a batch ended in a panic; its images are answered with an error");
            }
        };
        match whose {
            Some(whose) => whose.doing(caught),
            None => caught(),
        }
    }
}

fn run(mut taken: Taken<'_, Alike, Job, Shadow>, sampler: &mut Sampler, brownout: Option<&Brownout>) {
    for mut job in taken.batch.unwanted.drain(..) {
        job.taken();
        drop(job.reply.send(Err(WorkError::Expired))); // to one whose client left it does not get
    }
    let images = taken.batch.all().count();
    if images == 0 {
        return;
    }
    let span = tracing::debug_span!("batch", images, requests = tracing::field::Empty);
    if !span.is_disabled() {
        let requests: Vec<&str> = taken.batch.all().map(|(_, job)| job.work.context.id()).collect();
        span.record("requests", requests.join(" "));
    }
    let mut jobs = std::mem::take(&mut taken.batch.items);
    let mut others = std::mem::take(&mut taken.batch.others);
    jobs.iter_mut().chain(others.iter_mut().flat_map(|(_, jobs)| jobs)).for_each(|(_, job)| job.taken());
    let model = Arc::clone(&taken.batch.kind.model);
    span.in_scope(|| match taken.batch.kind.mask.clone() {
        None => {
            let decided = look(&model, jobs, brownout);
            taken.put_back(decided);
        }
        Some(mask) => {
            // The oldest of all that wait for a path.
            if let (Some(brownout), Some((_, oldest))) = (brownout, jobs.first()) {
                brownout.waited(oldest.waited());
            }
            let others = others.into_iter().filter_map(|(alike, jobs)| Some((alike.mask?, jobs)));
            let groups = std::iter::once((mask, jobs)).chain(others).filter(|(_, jobs)| !jobs.is_empty());
            let shadows = run_paths(&model, groups.collect(), sampler);
            let left = shadows.into_iter().filter_map(|shadow| taken.spare(shadow).err()).count();
            shadow::turned_away(&model, left);
        }
    });
}

/// Has the policy network choose a mask for each image.
fn look(model: &Arc<dyn Model>, jobs: Vec<(Place, Job)>, brownout: Option<&Brownout>) -> Vec<(Alike, Place, Job)> {
    let pixels: Vec<&[f32]> = jobs.iter().map(|(_, job)| &*job.work.pixels).collect();
    let span = tracing::debug_span!("policy", images = pixels.len());
    let started = Instant::now();
    let looked = span.in_scope(|| model.backend().look(&pixels));
    let took = started.elapsed();
    let images = jobs.len();
    model.pace().looked(images, took);
    let mut decided = Vec::with_capacity(images);
    for ((place, mut job), logits) in jobs.into_iter().zip(looked) {
        job.work.context.stage(job.work.index, || {
            StageSpan::new(metrics::Stage::Policy, started, started + took, logits.is_err())
                .with("blockdrop.batch.size", images as i64)
        });
        match logits {
            Ok(logits) => {
                job.policy = Some(took);
                job.wait();
                if let Some(raised) = brownout.and_then(|brownout| brownout.raised(&job.work.selection)) {
                    job.brownout = Some(raised.threshold());
                    job.work.selection = raised;
                }
                let mask = Some(job.work.selection.learned(model.costs(), &logits));
                decided.push((Alike { model: Arc::clone(model), mask }, place, job));
            }
            Err(error) => job.fail(error),
        }
    }
    decided
}

/// An image whose path runs.
struct Asked {
    mask: Mask,
    pixels: Vec<f32>,
    /// Whether the policy alone chose the path.
    own: bool,
    /// Its request, and its position in it.
    of: (Arc<RequestContext>, u64),
    reply: Reply,
    policy: Option<Duration>,
    brownout: Option<f64>,
}

/// Runs each mask's path over its images, those of several masks in one batch, and answers them. Gives those that are to be
/// run again.
fn run_paths(model: &Arc<dyn Model>, groups: Vec<(Mask, Vec<(Place, Job)>)>, sampler: &mut Sampler) -> Vec<Shadow> {
    let (mut asked, mut running, masks) = (Vec::new(), Vec::new(), groups.len());
    for (mask, jobs) in groups {
        for (_, job) in jobs {
            let Job { work: Work { pixels, selection, slot, context, index, .. }, reply, policy, brownout, .. } = job;
            running.push(slot.run()); // it does not wait any more
            let (mask, own, of) = (mask.clone(), selection.is_own(), (context, index));
            asked.push(Asked { mask, pixels, own, of, reply, policy, brownout });
        }
    }
    model.metrics().batch(asked.len(), masks);
    model.statistics().executed(asked.len());
    let span = tracing::debug_span!("backbone", images = asked.len(), masks);
    let started = Instant::now();
    let Ran { logits: results, compiled } = span.in_scope(|| match &*asked {
        [first, ..] if masks == 1 => {
            let pixels: Vec<&[f32]> = asked.iter().map(|asked| &*asked.pixels).collect();
            model.backend().run(&first.mask, &pixels)
        }
        asked => {
            let images: Vec<(&Mask, &[f32])> = asked.iter().map(|asked| (&asked.mask, &*asked.pixels)).collect();
            Ran { logits: model.backend().run_mixed(&images), compiled: false }
        }
    });
    let backbone = started.elapsed();
    let images = asked.len();
    model.pace().ran(images, backbone);
    drop(running);
    let mut shadows = Vec::new();
    for (asked, logits) in asked.into_iter().zip(results) {
        let Asked { mask, pixels, own, of: (context, index), reply, policy, brownout } = asked;
        context.stage(index, || {
            StageSpan::new(metrics::Stage::Backbone, started, started + backbone, logits.is_err())
                .with("blockdrop.batch.size", images as i64)
                .with("blockdrop.mask", mask.to_string())
                .with("blockdrop.blocks.kept", mask.kept() as i64)
                .with("blockdrop.path.compiled", compiled)
                .with("blockdrop.batch.masks", masks as i64)
        });
        let result = match logits {
            Ok(logits) => {
                let (policy_ran, policy) = (policy.is_some(), policy.unwrap_or_default());
                // A path that the request or brownout chose says nothing of the policy. One that keeps all does: there the
                // policy's time is lost.
                if policy_ran
                    && brownout.is_none()
                    && let Some(next) = sampler.draw()
                {
                    let (model, mask, class) = (Arc::downgrade(model), mask.clone(), best_class(&logits));
                    shadows.push(Shadow { model, pixels, mask, class, next, other: None });
                }
                let answer = Answer { logits, mask, policy_ran, brownout, policy, backbone };
                model.metrics().answered(model.costs(), &answer, own);
                Ok(answer)
            }
            Err(error) => Err(error.into()),
        };
        drop(reply.send(result)); // a client that left meanwhile does not want it
    }
    shadows
}

#[cfg(test)]
mod tests;
