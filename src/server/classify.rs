//! A request in any protocol: images in, each one's classes, path, FLOPs and times out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use super::bodies::Bodies;
use super::decoders::{Decoded, Decoders};
use super::error::{Error, Kind};
use super::readiness::Readiness;
use crate::answer::{Described, describe};
use crate::engine::{Answer, EngineError};
use crate::policy::Selection;
use crate::registry::{Model, ModelFull, Registry};
use crate::scheduler::{Admission, Cost, Flow, Refused, Scheduler, Slot, Work, WorkError};
use crate::telemetry::metrics::{Rejected, Stage};
use crate::telemetry::request::ImageSpan;
use crate::telemetry::{Metrics, RequestContext, Statistics, Tracer};

/// What the protocols share: the models, the queue and the limits.
pub struct Service {
    pub registry: Arc<Registry>,
    pub readiness: Arc<Readiness>,
    pub admission: Admission,
    pub scheduler: Scheduler,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    /// Who records requests, if any does.
    pub tracer: Option<Arc<Tracer>>,
    pub decoders: Decoders,
    pub bodies: Bodies,
}

/// What one request may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body: usize,
    /// Bytes of all bodies in memory at once.
    pub bodies: usize,
    /// Pixels of an image.
    pub pixels: u64,
    /// Images of a request.
    pub images: usize,
    /// Time for a request, from its head to its answer.
    pub time: Duration,
}

/// How a request's images are to be classified.
#[derive(Clone)]
pub struct Request {
    pub model: Arc<Model>,
    pub selection: Selection,
    pub context: Arc<RequestContext>,
    /// Of its connection.
    pub flow: Arc<Flow>,
    pub deadline: Instant,
}

/// An image to classify.
#[derive(Debug, Clone)]
pub enum Image {
    /// A file of one of the [types that are read](crate::image::TYPES).
    Encoded(Bytes),
    /// `[3, H, W]` of the model's input, normalised as its bundle says.
    Pixels(Vec<f32>),
}

/// The answer for one image.
#[derive(Debug, Clone)]
pub struct Classified {
    pub answer: Answer,
    pub times: Times,
}

/// The time that an image spent in each stage.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub decode: Duration,
    pub preprocess: Duration,
    /// Waiting: for a decoder, for a worker, for other images of its batch; all of the total that no stage took.
    pub queue: Duration,
    pub policy: Duration,
    pub backbone: Duration,
    /// From the image's bytes to its answer.
    pub total: Duration,
}

/// The answer for one image, as `/v1/classify` and its like show it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ImageResult {
    #[serde(flatten)]
    pub described: Described,
    pub timing_ms: Timing,
}

/// Milliseconds that the image spent in each stage.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Timing {
    pub decode: f64,
    pub preprocess: f64,
    /// Waiting: for a decoder, for a worker, for other images of its batch; all of the total that no stage took.
    pub queue: f64,
    pub policy: f64,
    pub backbone: f64,
    /// From the image's bytes to its answer.
    pub total: f64,
}

impl Classified {
    /// What is told about the image, with its `top_k` classes.
    pub fn result(&self, request: &Request, top_k: usize) -> ImageResult {
        let described = describe(&request.model.engine, &request.selection, &self.answer, top_k);
        let Times { decode, preprocess, queue, policy, backbone, total } = self.times;
        let [decode, preprocess, queue, policy, backbone, total] =
            [decode, preprocess, queue, policy, backbone, total].map(milliseconds);
        ImageResult { described, timing_ms: Timing { decode, preprocess, queue, policy, backbone, total } }
    }
}

impl Service {
    /// Whether a new request of `flow`, to be answered before `deadline`, may come in: asked before its body is read.
    ///
    /// # Errors
    /// The queue is full or the flow's share of it, there would be no answer in time, or the server is stopping.
    pub fn admit(&self, flow: &Flow, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.admission.check(flow, left).map_err(|refused| self.refuse(refused))
    }

    /// [`admit`](Self::admit) where the model is known.
    ///
    /// # Errors
    /// As for [`admit`](Self::admit), or as many of the model's images wait as may.
    pub fn admit_to(&self, flow: &Flow, model: &Model, deadline: Instant) -> Result<(), Error> {
        self.admit(flow, deadline)?;
        model.bounds.check().map_err(|full| self.refuse_to(model, full))
    }

    fn refuse_to(&self, model: &Model, ModelFull: ModelFull) -> Error {
        self.metrics.reject(Rejected::ModelQueueFull);
        model.metrics.queue_full();
        Error::model_full(&model.name, model.bounds.queue())
    }

    fn refuse(&self, refused: Refused) -> Error {
        self.metrics.reject(match refused {
            Refused::Full => Rejected::QueueFull,
            Refused::FlowFull => Rejected::ConnectionFull,
            Refused::Late(_) => Rejected::TooLate,
            Refused::Stopping => Rejected::ShuttingDown,
        });
        refused.into()
    }

    /// Images of a request for `model`, at most.
    pub fn most_images(&self, model: &Model) -> usize {
        self.limits.images.min(self.admission.most()).min(model.bounds.queue())
    }

    /// Classifies the `images` of a request that was [admitted](Self::admit), each for itself, in their order. An image
    /// may be an error already, where the protocol could not take it out of its body.
    ///
    /// # Errors
    /// No images, too many of them, no room in the queue, or in the model's part of it, for all of them, or not enough time.
    pub async fn classify(
        &self,
        request: &Request,
        images: Vec<Result<Image, Error>>,
    ) -> Result<Vec<Result<Classified, Error>>, Error> {
        let count = images.len();
        let most = self.most_images(&request.model);
        if count == 0 {
            return Err(Error::new(Kind::EmptyBody, "the request has no images, expected at least one"));
        }
        if count > most {
            return Err(Error::too_many_images(most));
        }
        request.context.describe(|span| {
            span.attribute("blockdrop.model", request.model.name.clone());
            span.attribute("blockdrop.model.version", request.model.version.to_string());
            span.attribute("blockdrop.images", count as i64);
        });
        let shares = request.model.bounds.shares(count).map_err(|full| self.refuse_to(&request.model, full))?;
        let left = request.deadline.saturating_duration_since(Instant::now());
        let encoded = images.iter().any(|image| matches!(image, Ok(Image::Encoded(_))));
        let decode = self.decoders.mean().filter(|_| encoded).unwrap_or_default();
        let cost = Cost { decode, run: request.model.pace.image().unwrap_or_default() };
        let slots = self.admission.places(&request.flow, count, cost, left).map_err(|refused| self.refuse(refused))?;
        let slots = slots.into_iter().zip(shares).map(|(slot, share)| slot.with(share));
        // A request waits for decoders with as many images as there are decoders: one of many large images leaves
        // the next turn to others.
        let own_turns = &Semaphore::new(self.admission.decoders());
        let each = images.into_iter().zip(slots).enumerate().map(|(index, (image, slot))| async move {
            self.classify_one(request, own_turns, image?, slot, index as u64).await
        });
        let started = Instant::now();
        let answers = futures_util::future::join_all(each).await;
        tally(&request.model.statistics, started.elapsed(), &answers);
        Ok(answers)
    }

    async fn classify_one(
        &self,
        request: &Request,
        own_turns: &Semaphore,
        image: Image,
        slot: Slot,
        index: u64,
    ) -> Result<Classified, Error> {
        let mut abandoned = Abandoned { metrics: &self.metrics, counts: true };
        let deadline = tokio::time::Instant::from_std(request.deadline);
        let answer = tokio::time::timeout_at(deadline, self.run_one(request, own_turns, image, slot, index)).await;
        let answer = answer.unwrap_or_else(|_| Err(Error::deadline()));
        abandoned.counts = false;
        if answer.as_ref().is_err_and(|error| error.kind == Kind::DeadlineExceeded) {
            self.metrics.reject(Rejected::Deadline);
        }
        answer
    }

    async fn run_one(
        &self,
        request: &Request,
        own_turns: &Semaphore,
        image: Image,
        mut slot: Slot,
        index: u64,
    ) -> Result<Classified, Error> {
        let mut span = ImageSpan::new(&request.context, index);
        let encoded = matches!(image, Image::Encoded(_));
        let Decoded { pixels, decode, preprocess } = match image {
            Image::Encoded(bytes) => {
                let _own_turn = own_turns.acquire().await.expect("the semaphore is never closed");
                self.decoders.decode(request, bytes, index).await?
            }
            Image::Pixels(pixels) => Decoded { pixels, decode: Duration::ZERO, preprocess: Duration::ZERO },
        };
        slot.decoded();
        let work = Work {
            model: Arc::clone(&request.model) as Arc<dyn crate::scheduler::Model>,
            pixels,
            selection: request.selection.clone(),
            index,
            context: Arc::clone(&request.context),
            deadline: request.deadline,
            slot,
        };
        let answer = self.scheduler.run(work).await.map_err(|error| match error {
            // Of a file the pixels are bounded; of a tensor they are the client's.
            WorkError::Engine(EngineError::NotFinite) if !encoded => Error::not_finite(),
            WorkError::Engine(error) => {
                tracing::error!(%error, "an image failed");
                WorkError::Engine(error).into()
            }
            error => error.into(),
        })?;
        let ended = Instant::now();
        span.ended = Some(ended);
        let (policy, backbone, total) = (answer.policy, answer.backbone, ended - span.started);
        let queue = total.saturating_sub(decode + preprocess + policy + backbone);
        self.metrics.stage(Stage::Queue, queue);
        Ok(Classified { answer, times: Times { decode, preprocess, queue, policy, backbone, total } })
    }
}

/// Counts a request that was answered; of its images' times the longest.
fn tally(statistics: &Statistics, took: Duration, answers: &[Result<Classified, Error>]) {
    let times: Result<Vec<Times>, ()> =
        answers.iter().map(|answer| answer.as_ref().map(|image| image.times).map_err(drop)).collect();
    let Ok(times) = times else { return statistics.fail.add(took) };
    let longest = |time: fn(&Times) -> Duration| times.iter().map(time).max().unwrap_or_default();
    statistics.success.add(took);
    statistics.queue.add(longest(|times| times.queue));
    statistics.input.add(longest(|times| times.decode + times.preprocess));
    statistics.infer.add(longest(|times| times.policy + times.backbone));
}

/// Counts an image whose client went away: its future is dropped before it has an answer.
struct Abandoned<'m> {
    metrics: &'m Metrics,
    counts: bool,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if self.counts {
            self.metrics.reject(Rejected::Cancelled);
        }
    }
}

/// Milliseconds, to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
