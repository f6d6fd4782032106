//! What the calls have in common: their id, deadline and memory, and how they are counted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tonic::{Code, Extensions, Status, Streaming};
use tracing::Instrument;

use super::body::{Arrived, Memory};
use crate::proto::code_name;
use crate::scheduler::{Flow, Refused};
use crate::server::bodies::Part;
use crate::server::classify::{Request, Service};
use crate::server::error::{Error, Kind};
use crate::telemetry::RequestContext;
use crate::telemetry::request::{Answering, Described};

/// A call, as its head has it.
#[derive(Clone)]
pub(super) struct Call {
    /// Ends with the last of those who answer it: on a stream that is its end.
    answering: Arc<Answering>,
    /// Of its connection.
    pub(super) flow: Arc<Flow>,
    /// When its client stops waiting.
    deadline: Option<Instant>,
    arrived: Arrived,
    /// Whether it is counted among those being answered from its head on, not only while a message is answered.
    entered: bool,
    /// Whether a message of it was [answered], and so counted.
    pub(super) counted: Arc<AtomicBool>,
}

impl Call {
    /// The call with these `headers` over the connection of `flow`, whose messages are [`Arrived`]; whether it has `entered`
    /// already.
    ///
    /// # Errors
    /// Its timeout is none.
    pub(super) fn new(
        answering: Arc<Answering>,
        flow: Arc<Flow>,
        headers: &HeaderMap,
        arrived: Arrived,
        entered: bool,
    ) -> Result<Self, Error> {
        let timeout = headers.get("grpc-timeout").map(|value| {
            let text = value.to_str().unwrap_or("");
            timeout(text).ok_or_else(|| {
                Error::new(
                    Kind::InvalidParameter,
                    format!("grpc-timeout: found '{text}', expected up to 8 digits and one of H M S m u n"),
                )
            })
        });
        let deadline = timeout.transpose()?.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(Self { answering, flow, deadline, arrived, entered, counted: Arc::default() })
    }

    /// A message of the call, for itself.
    pub(super) fn message(&self, method: &'static str) -> Self {
        let context = self.context().message();
        if Arc::ptr_eq(&context, self.context()) {
            return self.clone();
        }
        context.describe(|span| span.name = format!("{method} message").into());
        Self { answering: Arc::new(Answering::new(context)), ..self.clone() }
    }

    pub(super) fn context(&self) -> &Arc<RequestContext> {
        self.answering.context()
    }

    /// The call that the layer in front has put there.
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Status> {
        extensions.get::<Self>().cloned().ok_or_else(|| Status::internal("the call has no head"))
    }

    /// Whether a message that runs images may come in now.
    ///
    /// # Errors
    /// As [`Service::admit`].
    pub(super) fn admit(&self, service: &Service) -> Result<(), Error> {
        let most = Instant::now() + service.limits.time;
        service.admit(&self.flow, self.deadline.map_or(most, |deadline| deadline.min(most)))
    }

    /// Memory of the next message, which takes `size` bytes decoded.
    ///
    /// # Errors
    /// It was compressed, and there is no memory for all of it.
    pub(super) fn memory(&self, service: &Service, size: usize) -> Result<Memory, Error> {
        let mut memory = self.arrived.next();
        let held: usize = memory.iter().map(Part::bytes).sum();
        if size > held {
            memory.push(service.bodies.hold(&self.flow, size - held)?);
        }
        Ok(memory)
    }

    /// `request` within the time that the client waits.
    pub(super) fn within(&self, mut request: Request) -> Request {
        if let Some(deadline) = self.deadline {
            request.deadline = request.deadline.min(deadline);
        }
        request
    }
}

/// A `grpc-timeout`: up to 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Counts a message, and one that its client abandoned too, when it is dropped unanswered.
struct Observed<'s> {
    service: &'s Service,
    started: Instant,
    code: Code,
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        self.service.metrics.request("grpc", code_name(self.code), self.started.elapsed());
    }
}

/// Answers a message of the call: with metrics and a span around it, and a panic as an error.
pub(super) async fn answered<T>(
    service: &Service,
    method: &'static str,
    call: &Call,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    call.counted.store(true, Ordering::Relaxed);
    let _under_way = (!call.entered).then(|| service.metrics.enter());
    let mut observed = Observed { service, started: Instant::now(), code: Code::Cancelled };
    let context = call.context();
    let answer = async {
        let id = context.id();
        let span = tracing::debug_span!("request", request_id = id, method, status = tracing::field::Empty);
        let caught = std::panic::AssertUnwindSafe(answer.instrument(span.clone())).catch_unwind();
        let result =
            caught.await.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the request could not be answered")));
        observed.code = result.as_ref().map_or_else(|error| error.kind.grpc(), |_| Code::Ok);
        span.record("status", code_name(observed.code));
        if observed.code == Code::Internal {
            tracing::error!(method, "a request failed inside");
        }
        context.describe(|span| {
            described(span, observed.code);
            if let Err(error) = &result {
                span.attribute("blockdrop.code", error.kind.code());
            }
        });
        result
    };
    context.within(answer).await
}

/// Says what a call, or a message of a stream, ended with.
pub(super) fn described(span: &mut Described, code: Code) {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    span.attribute("rpc.grpc.status_code", i64::from(code as i32));
    let ours = matches!(code, DataLoss | DeadlineExceeded | Internal | Unavailable | Unimplemented | Unknown);
    span.error = ours.then(|| code_name(code).into());
}

/// Answers on a stream.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages of one stream that are worked on at the same time: they can form batches, and a client that sends faster
/// than it is answered is slowed down.
const AT_ONCE: usize = 64;

/// Answers `messages` in their order, until there are no more, one cannot be read, or the server stops.
pub(super) fn answers<Q, A, F>(
    service: Arc<Service>,
    messages: Streaming<Q>,
    answer: impl Fn(Q) -> F + Send + 'static,
) -> Answers<A>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = A> + Send + 'static,
{
    let stopped = {
        let service = Arc::clone(&service);
        async move { service.admission.stopped().await }
    };
    let each = messages.take_until(Box::pin(stopped)).map(move |message| match message {
        Ok(message) => answer(message).map(Ok).boxed(),
        Err(status) => std::future::ready(Err(status)).boxed(),
    });
    let end = async move { service.admission.is_stopping().then(|| Err(Error::from(Refused::Stopping).into())) };
    let end = stream::once(end).filter_map(std::future::ready);
    each.buffered(AT_ONCE).chain(end).boxed()
}
