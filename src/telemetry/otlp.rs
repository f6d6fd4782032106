//! Export of spans to a collector, by OTLP over gRPC.
//!
//! Spans are handed to the SDK's batch processor, a thread of its own with a bounded queue: a collector that is slow or not
//! there costs spans, never a request's time. What is lost is counted, and said at most once a minute.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::Uri;
use opentelemetry::{InstrumentationScope, Key, KeyValue, Value};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter as Exports, SpanProcessor,
};

use crate::text::shortened;

/// Spans that wait for their export, at most.
const MOST_WAITING: usize = 8192;

/// Between two lines of the log about spans that were lost.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

/// Where spans go, and of which requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    pub endpoint: Endpoint,
    /// Share of the requests without a caller's trace that are recorded, from 0 to 1.
    pub sample: f64,
}

/// A collector, `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// Reads a collector's URL.
    ///
    /// # Errors
    /// What was found and expected.
    pub fn read(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "http://HOST:PORT of a collector that takes OTLP over gRPC, such as http://localhost:4317";
        if text.contains('@') {
            return Err(format!("found a user's name in it, expected {EXPECTED}"));
        }
        let uri: Option<Uri> = text.parse().ok();
        let plain = uri.filter(|uri| {
            let host = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some_and(|port| port != 0);
            host && uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none()
        });
        match plain {
            Some(uri) => Ok(Self(uri.to_string())),
            None => Err(format!("found '{}', expected {EXPECTED}", shortened(text))),
        }
    }
}

/// Takes the spans of requests that are recorded.
#[derive(Debug)]
pub struct Tracer {
    /// Traces with less than this in the last 7 bytes of their id are drawn.
    drawn_below: u64,
    scope: InstrumentationScope,
    processor: BatchSpanProcessor,
    flow: Arc<Flow>,
}

/// The part of a trace's id that says whether it is drawn, in bits: as OpenTelemetry's samplers have it, so that servers
/// with one share draw the same traces.
const DRAWING_BITS: u32 = 56;

impl Tracer {
    /// Starts the exporting thread. Has to be called within a runtime, which the connection to the collector lives in.
    ///
    /// # Errors
    /// One of the `OTEL_EXPORTER_OTLP_*` variables cannot be understood.
    pub fn start(otlp: &Otlp) -> Result<Arc<Self>, ExporterBuildError> {
        let exporter =
            opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(&otlp.endpoint.0).build()?;
        let flow = Arc::new(Flow::default());
        let config = BatchConfigBuilder::default().with_max_queue_size(MOST_WAITING).build();
        let mut processor = BatchSpanProcessor::new(Watched { exporter, flow: Arc::clone(&flow) }, config);
        processor.set_resource(&resource());
        let scope = InstrumentationScope::builder("blockdrop").with_version(env!("CARGO_PKG_VERSION")).build();
        // A share of 1 is a bound that no id reaches.
        let drawn_below = (otlp.sample * (1u64 << DRAWING_BITS) as f64) as u64;
        Ok(Arc::new(Self { drawn_below, scope, processor, flow }))
    }

    /// Whether a trace that begins here is recorded.
    pub(super) fn draws(&self, trace_id: u128) -> bool {
        (trace_id as u64) % (1 << DRAWING_BITS) < self.drawn_below
    }

    pub(super) fn scope(&self) -> InstrumentationScope {
        self.scope.clone()
    }

    /// Hands the spans of a request over, all or none; waits for nothing.
    pub(super) fn export(&self, spans: Vec<SpanData>) {
        let count = spans.len();
        if self.flow.waiting.fetch_add(count, Ordering::Relaxed) + count > MOST_WAITING {
            self.flow.waiting.fetch_sub(count, Ordering::Relaxed);
            return self.flow.lost(count, "too many wait for the collector");
        }
        spans.into_iter().for_each(|span| self.processor.on_end(span));
    }

    /// Exports what waits, for at most `most`. Blocks.
    pub fn stop(&self, most: Duration) {
        if let Err(error) = self.processor.shutdown_with_timeout(most) {
            tracing::warn!(spans = self.flow.waiting.load(Ordering::Relaxed), %error, "stopped with spans not exported");
        }
    }
}

/// What the spans are of: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say more, or otherwise.
fn resource() -> Resource {
    let default = Resource::builder().build();
    // What the SDK says where nothing is said.
    let is_said = |(key, value): &(&Key, &Value)| {
        key.as_str() != "service.name" || !value.as_str().starts_with("unknown_service")
    };
    let said = default.iter().filter(is_said).map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    Resource::builder_empty().with_service_name("blockdrop").with_attribute(version).with_attributes(said).build()
}

/// What becomes of the spans.
#[derive(Debug, Default)]
struct Flow {
    /// Handed to the processor, and not exported or lost yet.
    waiting: AtomicUsize,
    /// Not told of yet.
    lost: AtomicU64,
    /// Whether the log's last word is that they are lost.
    told: AtomicBool,
    warned: Mutex<Option<Instant>>,
}

impl Flow {
    fn lost(&self, spans: usize, reason: &str) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|warned| warned.elapsed() >= BETWEEN_WARNINGS) {
            *warned = Some(Instant::now());
            self.told.store(true, Ordering::Relaxed);
            let spans = self.lost.swap(0, Ordering::Relaxed);
            tracing::warn!(spans, reason, "spans are lost; requests are answered as ever");
        }
    }

    fn exported(&self) {
        if self.told.swap(false, Ordering::Relaxed) {
            tracing::info!(lost_meanwhile = self.lost.swap(0, Ordering::Relaxed), "spans are exported again");
        }
    }
}

/// An exporter whose failures are counted and told.
#[derive(Debug)]
struct Watched {
    exporter: opentelemetry_otlp::SpanExporter,
    flow: Arc<Flow>,
}

impl Exports for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.flow.waiting.fetch_sub(count, Ordering::Relaxed);
        match &result {
            Ok(()) => self.flow.exported(),
            Err(error) => self.flow.lost(count, &error.to_string()),
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_host_and_port() {
        for good in ["http://localhost:4317", "http://[::1]:4317/", "http://10.0.0.1:80", "http://a.b-c.svc:4317"] {
            assert!(Endpoint::read(good).is_ok(), "{good}");
        }
        let wrong = ["", "localhost:4317", "https://localhost:4317", "http://localhost", "http://:4317", "http://a:0"];
        for wrong in wrong.into_iter().chain(["http://a:1/v1/traces", "http://a:1?b", "http://a:99999", "grpc://a:1"]) {
            let error = Endpoint::read(wrong).expect_err(wrong);
            assert!(error.starts_with(&format!("found '{wrong}', expected http://HOST:PORT")), "{error}");
        }
        let error = Endpoint::read("http://me:secret@localhost:4317").expect_err("a user");
        assert!(!error.contains("secret"), "{error}");
    }
}
