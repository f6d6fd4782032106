//! What is known of a request wherever it is worked on: its id, its place in a trace, and, where that is recorded, the
//! spans so far.
//!
//! Spans are recorded apart from the log's: an image's policy and path run in batches, on threads of their own and for
//! several requests at once, and each request's trace is to show its own. So the stages are noted with the times that the
//! answer tells, and become spans when the request ends ([`spans`]).

mod parent;
mod spans;
mod whose;

use std::sync::Arc;
use std::time::Instant;

use opentelemetry::trace::TraceState;

pub use parent::Parent;
use parent::{RANDOM, SAMPLED};
use spans::Record;
pub use spans::{Described, StageSpan};
pub(super) use whose::current;
pub use whose::{Whose, carried};

use super::otlp::Tracer;

/// A request, or a message of a stream, as logs and traces name it.
pub struct RequestContext {
    id: Box<str>,
    trace_id: u128,
    /// The server's span of the request.
    span_id: u64,
    flags: u8,
    state: TraceState,
    record: Option<Record>,
}

impl RequestContext {
    /// The request called `id`, whose caller's span is `parent`, with `state` beside it. It is recorded by the `tracer` if
    /// its caller's span is, and where it has no caller's if it is drawn.
    pub fn new(id: String, parent: Option<Parent>, state: TraceState, tracer: Option<&Arc<Tracer>>) -> Arc<Self> {
        let (trace_id, given) = match parent {
            Some(parent) => (parent.trace_id, parent.flags),
            None => (rand::random::<u128>().max(1), RANDOM),
        };
        let wanted = |tracer: &&Arc<Tracer>| match parent {
            Some(parent) => parent.flags & SAMPLED != 0,
            None => tracer.draws(trace_id),
        };
        let record = tracer.filter(wanted).map(|tracer| Record::of_request(Arc::clone(tracer), parent));
        Arc::new(Self {
            id: id.into(),
            trace_id,
            span_id: new_span_id(),
            flags: given & RANDOM | if record.is_some() { SAMPLED } else { 0 },
            state,
            record,
        })
    }

    /// A message of this call, which has a span of its own below the call's.
    pub fn message(self: &Arc<Self>) -> Arc<Self> {
        let Some(record) = &self.record else { return Arc::clone(self) };
        Arc::new(Self {
            id: self.id.clone(),
            span_id: new_span_id(),
            state: self.state.clone(),
            record: Some(record.of_message(self.span_id)),
            trace_id: self.trace_id,
            flags: self.flags,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The id of its trace, as `traceparent` writes it.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The server's span of the request. Its sampled flag says whether the server records it.
    pub fn traceparent(&self) -> String {
        parent::traceparent(self.trace_id, self.span_id, self.flags)
    }

    /// What other tracing systems said of the trace.
    pub fn tracestate(&self) -> Option<String> {
        Some(self.state.header()).filter(|state| !state.is_empty())
    }

    /// Has the request's span described, where it is recorded.
    pub fn describe(&self, describe: impl FnOnce(&mut Described)) {
        if let Some(record) = &self.record {
            record.describe(describe);
        }
    }

    /// Notes a stage of the request's image at `index`, where it is recorded.
    pub fn stage(&self, index: u64, stage: impl FnOnce() -> StageSpan) {
        if let Some(record) = &self.record {
            record.stage(index, stage);
        }
    }
}

/// From the start of a request, or of a message of a stream, to its end: when this is dropped its spans are exported.
pub struct Answering(Arc<RequestContext>);

impl Answering {
    pub fn new(context: Arc<RequestContext>) -> Self {
        Self(context)
    }

    pub fn context(&self) -> &Arc<RequestContext> {
        &self.0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(record) = &self.0.record {
            record.end(&self.0);
        }
    }
}

/// From an image's bytes to its answer, whatever that is. What no stage takes of this time is waiting.
pub struct ImageSpan<'c> {
    context: &'c RequestContext,
    index: u64,
    pub started: Instant,
    /// When it ended, if it was not just when this is dropped.
    pub ended: Option<Instant>,
}

impl<'c> ImageSpan<'c> {
    /// Begins the time of the image at `index` of the request.
    pub fn new(context: &'c RequestContext, index: u64) -> Self {
        Self { context, index, started: Instant::now(), ended: None }
    }
}

impl Drop for ImageSpan<'_> {
    fn drop(&mut self) {
        if let Some(record) = &self.context.record {
            record.image(self.index, self.started, self.ended.unwrap_or_else(Instant::now));
        }
    }
}

fn new_span_id() -> u64 {
    rand::random::<u64>().max(1)
}
