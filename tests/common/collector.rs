//! A collector of traces: takes OTLP over gRPC, and shows what came.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::Value;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::PATIENCE;

/// What a span's resource says of it, and the span.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty where there is none.
    pub(crate) parent: String,
    pub(crate) state: String,
    pub(crate) flags: u32,
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    /// Nanoseconds.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) attributes: BTreeMap<String, Value>,
    pub(crate) failed: bool,
    pub(crate) resource: BTreeMap<String, Value>,
}

impl Span {
    fn of(sent: Sent, resource: &BTreeMap<String, Value>) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            trace: hex(&sent.trace_id),
            id: hex(&sent.span_id),
            parent: hex(&sent.parent_span_id),
            kind: sent.kind(),
            state: sent.trace_state,
            flags: sent.flags,
            name: sent.name,
            start: sent.start_time_unix_nano,
            end: sent.end_time_unix_nano,
            attributes: attributes(sent.attributes),
            failed: sent.status.is_some_and(|status| status.code() == StatusCode::Error),
            resource: resource.clone(),
        }
    }

    pub(crate) fn milliseconds(&self) -> f64 {
        (self.end - self.start) as f64 / 1e6
    }

    /// The span as `traceparent` names it, recorded.
    pub(crate) fn is_told_by(&self, traceparent: &str) -> bool {
        traceparent.starts_with(&format!("00-{}-{}-", self.trace, self.id))
    }
}

fn attributes(each: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.clone()) {
        Some(any_value::Value::StringValue(text)) => Value::from(text),
        Some(any_value::Value::IntValue(number)) => Value::from(number),
        Some(any_value::Value::BoolValue(yes)) => Value::from(yes),
        other => panic!("{}: found {other:?}, expected a text, a number or a bool", pair.key),
    };
    let count = each.len();
    let attributes: BTreeMap<_, _> = each.into_iter().map(|pair| (pair.key.clone(), value(&pair))).collect();
    assert_eq!(attributes.len(), count, "one of a name: {attributes:?}");
    attributes
}

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().expect("no test panics with it");
        for of_resource in request.into_inner().resource_spans {
            let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
            let sent = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
            spans.extend(sent.map(|sent| Span::of(sent, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A running collector, on a thread of its own: it takes spans while a test waits for a server to end.
pub(crate) struct Collector {
    taken: Taken,
    address: SocketAddr,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let taken = Taken::default();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let routes = Routes::new(TraceServiceServer::new(taken.clone()).accept_compressed(CompressionEncoding::Gzip))
            .into_axum_router();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                axum::serve(listener, routes).await
            })
        });
        Self { taken, address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.taken.0.lock().expect("no test panics with it").clone()
    }

    /// Waits for the span that an answer's `traceparent` names; gives it and those below it, the earliest first.
    pub(crate) async fn request(&self, traceparent: &str) -> (Span, Vec<Span>) {
        let until = Instant::now() + PATIENCE;
        loop {
            let spans = self.spans();
            if let Some(request) = spans.iter().find(|span| span.is_told_by(traceparent)) {
                let mut below: Vec<Span> = spans.iter().filter(|span| span.parent == request.id).cloned().collect();
                below.sort_by_key(|span| span.start);
                return (request.clone(), below);
            }
            assert!(Instant::now() < until, "{traceparent} did not come: {spans:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
