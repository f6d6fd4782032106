//! Who runs when: a bounded queue, and worker threads that take batches from it.
//!
//! A worker is an operating-system thread with one intra-op thread of its own. It takes what waits, without waiting for
//! company, answers each image as soon as its group has run, and drops images whose client left or whose time ran out
//! before they cost any compute.

mod admission;
mod queue;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use admission::{Admission, Refused, Slot};

use crate::engine::{Answer, Backend, EngineError, Image, Replies};
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
    /// Id of its request, for the log.
    pub request_id: Arc<str>,
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
    /// Of the request; closed when a worker takes the job up.
    waiting: tracing::Span,
}

/// The worker threads and their queue.
pub struct Scheduler {
    queue: Arc<Queue<Job>>,
    /// Closed when the last worker has ended.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Scheduler {
    /// Starts `workers` threads that run at most `max_batch` images at a time.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn start(workers: usize, max_batch: usize) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new());
        let (alive, ended) = mpsc::channel();
        for number in 0..workers {
            let (queue, alive) = (Arc::clone(&queue), alive.clone());
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                work(&queue, workers, max_batch);
                drop::<mpsc::Sender<()>>(alive);
            })?;
        }
        Ok(Self { queue, ended: Mutex::new(ended) })
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
        let waiting = tracing::debug_span!("queue", request_id = &*work.request_id);
        drop(self.queue.push(Job { work, reply, waiting })); // a closed queue gives it back
        answer
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

fn work(queue: &Queue<Job>, workers: usize, max_batch: usize) {
    let alike = |a: &Job, b: &Job| Arc::ptr_eq(&a.work.model, &b.work.model);
    while let Some(batch) = queue.take(max_batch, workers, alike) {
        // A panic loses its own batch only: the replies that were not sent are dropped, which their receivers see.
        if std::panic::catch_unwind(AssertUnwindSafe(|| run(batch))).is_err() {
            tracing::error!("a batch ended in a panic; its images are answered with an error");
        }
    }
}

fn run(batch: Vec<Job>) {
    let Some(first) = batch.first() else { return };
    let model = Arc::clone(&first.work.model);
    let mut works = Vec::with_capacity(batch.len());
    let mut running = Running { model: &*model, jobs: Vec::with_capacity(batch.len()) };
    for Job { work, reply, waiting } in batch {
        drop(waiting);
        let Work { pixels, selection, index, request_id, deadline, slot, .. } = work;
        drop(slot);
        works.push((pixels, selection, index));
        running.jobs.push(Asked { reply: Some(reply), deadline, request_id });
    }
    let images: Vec<Image<'_>> =
        works.iter().map(|(pixels, selection, index)| Image { pixels, selection, index: *index }).collect();
    let span = tracing::debug_span!("batch", images = images.len(), requests = tracing::field::Empty);
    if !span.is_disabled() {
        let requests: Vec<&str> = running.jobs.iter().map(|job| &*job.request_id).collect();
        span.record("requests", requests.join(" "));
    }
    span.in_scope(|| model.backend().answer(&images, &mut running));
}

/// The jobs of a batch that is being run.
struct Running<'m> {
    model: &'m dyn Model,
    jobs: Vec<Asked>,
}

struct Asked {
    /// Taken when it is answered.
    reply: Option<Reply>,
    deadline: Instant,
    request_id: Arc<str>,
}

impl Replies for Running<'_> {
    fn wanted(&mut self, at: usize) -> bool {
        let job = &mut self.jobs[at];
        if Instant::now() >= job.deadline
            && let Some(reply) = job.reply.take()
        {
            drop(reply.send(Err(WorkError::Expired)));
        }
        job.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    fn running(&mut self, images: usize) {
        self.model.metrics().batch(images);
    }

    fn answered(&mut self, at: usize, answer: Result<Answer, EngineError>) {
        let job = &mut self.jobs[at];
        let result = match answer {
            Ok(answer) => {
                self.model.metrics().answered(self.model.costs(), &answer);
                Ok(answer)
            }
            Err(error) => {
                tracing::error!(request_id = &*job.request_id, %error, "an image failed");
                Err(WorkError::Engine(error))
            }
        };
        if let Some(reply) = job.reply.take() {
            drop(reply.send(result)); // a client that left meanwhile does not want it
        }
    }
}

#[cfg(test)]
mod tests;
