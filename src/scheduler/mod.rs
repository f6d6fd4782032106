//! Who runs when: a bounded queue, and worker threads that take batches from it.
//!
//! A worker is an operating-system thread with one intra-op thread of its own. It takes what waits, without waiting for
//! company, answers each image as soon as its group has run, and drops images whose client left or whose time ran out
//! before they cost any compute.

mod admission;
mod queue;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use admission::{Admission, Refused, Slot};

use crate::engine::{Answer, Backend, EngineError, Image};
use crate::policy::{Costs, Selection};
use crate::telemetry::ModelMetrics;
use queue::Queue;

/// A model as the scheduler sees it.
pub trait Model: Send + Sync {
    fn backend(&self) -> &dyn Backend;
    fn costs(&self) -> &Costs;
    fn metrics(&self) -> &ModelMetrics;
}

/// One image to be run.
pub struct Work {
    pub model: Arc<dyn Model>,
    /// `[3, H, W]` of the model's input.
    pub pixels: Vec<f32>,
    pub selection: Selection,
    /// Position in its request.
    pub index: u64,
    /// After this the image is not run any more.
    pub deadline: Instant,
    pub slot: Slot,
}

/// An answered image.
#[derive(Debug)]
pub struct Served {
    pub answer: Answer,
    /// Time spent waiting: for a worker, and for the other groups of its batch.
    pub queue: Duration,
}

/// Why an image was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkError {
    #[error("its time ran out before it was run")]
    Expired,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the worker failed")]
    Lost,
}

type Reply = oneshot::Sender<Result<Served, WorkError>>;

struct Job {
    work: Work,
    queued: Instant,
    reply: Reply,
}

/// The worker threads and their queue.
pub struct Scheduler {
    queue: Arc<Queue<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts `workers` threads that run at most `max_batch` images at a time.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn start(workers: usize, max_batch: usize) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new());
        let threads = (0..workers).map(|number| {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || work(&queue, workers, max_batch))
        });
        let workers = threads.collect::<Result<_, _>>()?;
        Ok(Self { queue, workers })
    }

    /// Queues an image. Dropping the receiver gives the image up: it will not be run if it has not been yet.
    pub fn submit(&self, work: Work) -> oneshot::Receiver<Result<Served, WorkError>> {
        let (reply, answer) = oneshot::channel();
        if let Err(job) = self.queue.push(Job { work, queued: Instant::now(), reply }) {
            drop(job.reply.send(Err(WorkError::Lost)));
        }
        answer
    }
}

/// Runs what is queued, then ends the workers.
impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close();
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a worker thread ended in a panic");
            }
        }
    }
}

fn work(queue: &Queue<Job>, workers: usize, max_batch: usize) {
    let alike = |a: &Job, b: &Job| Arc::ptr_eq(&a.work.model, &b.work.model);
    while let Some(batch) = queue.take(max_batch, workers, alike) {
        // A panic loses its own batch only: the replies that were not sent are dropped, which their receivers see.
        if std::panic::catch_unwind(AssertUnwindSafe(|| run(batch))).is_err() {
            tracing::error!("a batch ended in a panic; its images are answered with an error");
        }
    }
}

/// A job that is being run: its reply is taken when it is answered.
struct Running {
    pixels: Vec<f32>,
    selection: Selection,
    index: u64,
    queued: Instant,
    reply: Option<Reply>,
}

fn run(batch: Vec<Job>) {
    let Some(first) = batch.first() else { return };
    let model = Arc::clone(&first.work.model);
    let metrics = model.metrics();
    let now = Instant::now();
    let mut running: Vec<Running> = Vec::with_capacity(batch.len());
    for Job { work, queued, reply } in batch {
        let Work { pixels, selection, index, deadline, slot, .. } = work;
        drop(slot);
        if now >= deadline {
            drop(reply.send(Err(WorkError::Expired)));
        } else if reply.is_closed() {
            metrics.cancelled();
        } else {
            running.push(Running { pixels, selection, index, queued, reply: Some(reply) });
        }
    }
    if running.is_empty() {
        return;
    }

    let mut replies: Vec<(Option<Reply>, Instant)> =
        running.iter_mut().map(|job| (job.reply.take(), job.queued)).collect();
    let images: Vec<Image<'_>> =
        running.iter().map(|job| Image { pixels: &job.pixels, selection: &job.selection, index: job.index }).collect();
    let span = tracing::debug_span!("batch", images = images.len());
    let _inside = span.enter();
    model.backend().answer(&images, &mut |at, result| {
        let (reply, queued) = &mut replies[at];
        let result = match result {
            Ok(answer) => {
                if answer.place == 0 {
                    metrics.batch(answer.batch);
                }
                let queue = queued.elapsed().saturating_sub(answer.policy + answer.backbone);
                metrics.answered(model.costs(), &answer, queue);
                Ok(Served { answer, queue })
            }
            Err(error) => {
                tracing::error!(%error, "an image failed");
                Err(WorkError::Engine(error))
            }
        };
        if let Some(reply) = reply.take() {
            drop(reply.send(result)); // a client that left meanwhile does not want it
        }
    });
}

#[cfg(test)]
mod tests;
