//! Work on the blocking pool that requests take turns at: reading images and large bodies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::classify::Request;
use super::error::{Error, Kind};
use crate::image::{decode, preprocess};
use crate::scheduler::{Average, Flow, Turns};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Rejected, Stage};
use crate::telemetry::request::{StageSpan, carried};

/// As many turns at once as there are cores; connections take them in turn.
pub struct Decoders {
    turns: Arc<Turns>,
    /// Pixels of an image, at most.
    pixels: u64,
    /// Time that an image takes.
    time: Average,
    metrics: Arc<Metrics>,
}

/// An image as the model takes it.
pub(super) struct Decoded {
    pub pixels: Vec<f32>,
    pub decode: Duration,
    pub preprocess: Duration,
}

impl Decoders {
    /// So many turns at once, for images of at most so many `pixels`.
    pub fn new(turns: usize, pixels: u64, metrics: Arc<Metrics>) -> Self {
        Self { turns: Turns::new(turns), pixels, time: Average::default(), metrics }
    }

    /// What an image takes a decoder. `None` until enough were decoded to tell.
    pub(super) fn mean(&self) -> Option<Duration> {
        self.time.mean()
    }

    /// Does `work` on what takes `size` bytes, for `flow`: aside where that would keep other requests waiting.
    ///
    /// # Errors
    /// There was no turn before the `deadline`, or the work ended in a panic.
    pub async fn aside<T: Send + 'static>(
        &self,
        flow: &Flow,
        size: usize,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        const SHORT: usize = 64 * 1024;
        if size <= SHORT {
            return Ok(work());
        }
        let turn = tokio::time::timeout_at(deadline.into(), self.turns.turn(flow));
        let turn = turn.await.map_err(|_| {
            self.metrics.reject(Rejected::Deadline);
            Error::deadline()
        })?;
        let done = tokio::task::spawn_blocking(carried(move || {
            let _turn = turn;
            work()
        }));
        done.await.map_err(|_| Error::new(Kind::Internal, "the request could not be read"))
    }

    /// The image at `index` of the `request`, in its model's size and scale.
    ///
    /// # Errors
    /// The `bytes` are no image that is read, or one of too many pixels.
    pub(super) async fn decode(&self, request: &Request, bytes: Bytes, index: u64) -> Result<Decoded, Error> {
        let turn = self.turns.turn(&request.flow).await;
        // Not the model itself: a decode that never ends must not hold sessions while the process does.
        let (input, most) = (request.model.engine.bundle().manifest.input.clone(), self.pixels);
        let (context, parent) = (Arc::clone(&request.context), tracing::Span::current());
        let decoded = tokio::task::spawn_blocking(carried(move || {
            let _turn = turn;
            let _parent = parent.enter();
            let started = Instant::now();
            let span = tracing::debug_span!("decode", bytes = bytes.len());
            let image = span.in_scope(|| decode(&bytes, most));
            drop(span);
            let decoded = Instant::now();
            context.stage(index, || {
                StageSpan::new(Stage::Decode, started, decoded, image.is_err())
                    .with("blockdrop.image.bytes", bytes.len() as i64)
            });
            let image = image?;
            let span = tracing::debug_span!("preprocess", width = image.width(), height = image.height());
            let pixels = span.in_scope(|| preprocess(&image, &input));
            drop(span);
            let ended = Instant::now();
            context.stage(index, || {
                StageSpan::new(Stage::Preprocess, decoded, ended, false)
                    .with("blockdrop.image.width", i64::from(image.width()))
                    .with("blockdrop.image.height", i64::from(image.height()))
            });
            Ok(Decoded { pixels, decode: decoded - started, preprocess: ended - decoded })
        }));
        let decoded: Result<Decoded, Error> =
            decoded.await.map_err(|_| Error::new(Kind::Internal, "the image could not be decoded"))?;
        let decoded = decoded?;
        self.time.add(1, decoded.decode + decoded.preprocess);
        self.metrics.stage(Stage::Decode, decoded.decode);
        self.metrics.stage(Stage::Preprocess, decoded.preprocess);
        Ok(decoded)
    }
}
