//! The spans of a request that is recorded: noted while it is answered, exported when it ends.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{Parent, RequestContext, new_span_id};
use crate::telemetry::metrics::Stage;
use crate::telemetry::otlp::Tracer;

/// Images of a request that have spans; a request may have thousands.
const MOST_IMAGES: u64 = 64;

/// The request's own span.
pub struct Described {
    /// What it is called: its method and route, nothing that a client made up.
    pub name: Cow<'static, str>,
    /// Why it failed, where that is the server's matter.
    pub error: Option<Cow<'static, str>>,
    attributes: Vec<KeyValue>,
}

impl Described {
    /// Says what is known beside the name.
    pub fn attribute(&mut self, name: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(name, value));
    }
}

/// A stage that an image went through.
pub struct StageSpan {
    pub stage: Stage,
    pub started: Instant,
    pub ended: Instant,
    pub failed: bool,
    pub attributes: Vec<KeyValue>,
}

impl StageSpan {
    /// A stage with nothing more to say of it.
    pub fn new(stage: Stage, started: Instant, ended: Instant, failed: bool) -> Self {
        Self { stage, started, ended, failed, attributes: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(name, value));
        self
    }
}

struct ImageTime {
    index: u64,
    started: Instant,
    ended: Instant,
}

/// What is noted of a request until it ends.
pub(super) struct Record {
    tracer: Arc<Tracer>,
    /// The span above: its caller's, or its call's.
    parent: SpanId,
    is_message: bool,
    /// The same moment by both clocks: stages are measured by the second, and told by the first.
    started: (SystemTime, Instant),
    noted: Mutex<Noted>,
}

struct Noted {
    described: Described,
    images: Vec<ImageTime>,
    stages: Vec<(u64, StageSpan)>,
}

impl Record {
    pub(super) fn of_request(tracer: Arc<Tracer>, parent: Option<Parent>) -> Self {
        Self::new(tracer, parent.map_or(SpanId::INVALID, |parent| parent.span_id.into()), false)
    }

    /// Of a message of this call, whose span is `above`.
    pub(super) fn of_message(&self, above: u64) -> Self {
        Self::new(Arc::clone(&self.tracer), above.into(), true)
    }

    fn new(tracer: Arc<Tracer>, parent: SpanId, is_message: bool) -> Self {
        // Until it is known how it ended: its client leaves, or it ends in a panic.
        let error = Some("cancelled".into());
        let described = Described { name: "request".into(), error, attributes: Vec::new() };
        let noted = Mutex::new(Noted { described, images: Vec::new(), stages: Vec::new() });
        Self { tracer, parent, is_message, started: (SystemTime::now(), Instant::now()), noted }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn describe(&self, describe: impl FnOnce(&mut Described)) {
        describe(&mut self.noted().described);
    }

    pub(super) fn stage(&self, index: u64, stage: impl FnOnce() -> StageSpan) {
        if index < MOST_IMAGES {
            let stage = stage();
            self.noted().stages.push((index, stage));
        }
    }

    pub(super) fn image(&self, index: u64, started: Instant, ended: Instant) {
        if index < MOST_IMAGES {
            self.noted().images.push(ImageTime { index, started, ended });
        }
    }

    /// Exports the spans. What is noted later, of images that were given up, is lost.
    pub(super) fn end(&self, context: &RequestContext) {
        let ended = Instant::now();
        let nothing = Described { name: Cow::Borrowed(""), error: None, attributes: Vec::new() };
        let Noted { described, images, stages } =
            std::mem::replace(&mut *self.noted(), Noted { described: nothing, images: Vec::new(), stages: Vec::new() });
        let Described { name, error, mut attributes } = described;
        attributes.push(KeyValue::new("blockdrop.request_id", context.id().to_owned()));
        let status = match error {
            Some(error) => {
                attributes.push(KeyValue::new("error.type", error));
                Status::error("")
            }
            None => Status::Unset,
        };
        let whole = SpanData {
            parent_span_id: self.parent,
            parent_span_is_remote: !self.is_message && self.parent != SpanId::INVALID,
            span_kind: if self.is_message { SpanKind::Internal } else { SpanKind::Server },
            ..self.span(context, context.span_id, name, (self.started.1, ended), attributes, status)
        };
        let mut spans = Vec::new();
        for image in images {
            let own = stages.iter().filter(|(index, _)| *index == image.index).map(|(_, stage)| stage);
            spans.extend(with_waits(&image, own.collect()).into_iter().map(|part| {
                let (name, times) = (part.stage.name(), (part.started, part.ended));
                let status = if part.failed { Status::error("") } else { Status::Unset };
                let mut attributes = part.attributes;
                attributes.push(KeyValue::new("blockdrop.image", image.index as i64));
                self.span(context, new_span_id(), name.into(), times, attributes, status)
            }));
        }
        // Last: where it is, the others are.
        spans.push(whole);
        self.tracer.export(spans);
    }

    /// A span below the request's.
    fn span(
        &self,
        context: &RequestContext,
        id: u64,
        name: Cow<'static, str>,
        (started, ended): (Instant, Instant),
        attributes: Vec<KeyValue>,
        status: Status,
    ) -> SpanData {
        let (trace, flags) = (TraceId::from(context.trace_id), TraceFlags::new(context.flags));
        let at = |when: Instant| self.started.0 + when.saturating_duration_since(self.started.1);
        SpanData {
            span_context: SpanContext::new(trace, id.into(), flags, false, context.state.clone()),
            parent_span_id: context.span_id.into(),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: at(started),
            end_time: at(ended),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.tracer.scope(),
        }
    }
}

/// The stages of an image in their order, and the waiting before each and after the last.
fn with_waits(image: &ImageTime, mut stages: Vec<&StageSpan>) -> Vec<StageSpan> {
    stages.sort_by_key(|stage| stage.started);
    let mut parts = Vec::with_capacity(2 * stages.len() + 1);
    let mut at = image.started;
    let wait = |parts: &mut Vec<StageSpan>, from: Instant, to: Instant, before: &'static str| {
        if from < to {
            parts.push(StageSpan::new(Stage::Queue, from, to, false).with("blockdrop.queue.before", before));
        }
    };
    for stage in stages {
        let StageSpan { stage, started, ended, failed, ref attributes } = *stage;
        wait(&mut parts, at, started, stage.name());
        parts.push(StageSpan { stage, started, ended, failed, attributes: attributes.clone() });
        at = ended;
    }
    wait(&mut parts, at, image.ended, "end");
    parts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_no_stage_takes_is_waiting() {
        let zero = Instant::now();
        let at = |micros| zero + Duration::from_micros(micros);
        let image = ImageTime { index: 0, started: at(0), ended: at(100) };
        let stage = |stage, from, to| StageSpan::new(stage, at(from), at(to), false);
        let (decode, preprocess) = (stage(Stage::Decode, 5, 20), stage(Stage::Preprocess, 20, 30));
        let (policy, backbone) = (stage(Stage::Policy, 40, 50), stage(Stage::Backbone, 70, 95));
        let shown = |stages: Vec<&StageSpan>| -> Vec<(&str, u128, u128)> {
            let micros = |when: Instant| (when - zero).as_micros();
            let parts = with_waits(&image, stages).into_iter();
            parts.map(|part| (part.stage.name(), micros(part.started), micros(part.ended))).collect()
        };
        assert_eq!(
            shown(vec![&backbone, &decode, &policy, &preprocess]),
            [
                ("queue", 0, 5),
                ("decode", 5, 20),
                ("preprocess", 20, 30),
                ("queue", 30, 40),
                ("policy", 40, 50),
                ("queue", 50, 70),
                ("backbone", 70, 95),
                ("queue", 95, 100),
            ]
        );
        assert_eq!(shown(Vec::new()), [("queue", 0, 100)], "one that was given up");
    }
}
