//! Traces: what a collector gets of the requests that are recorded, and what the answers tell.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::TcpListener;

use blockdrop::proto::v1::ClassifyRequest;
use blockdrop::proto::v1::classifier_client::ClassifierClient;
use blockdrop::proto::v1::classify_stream_response::Result as Either;
use blockdrop_testkit::Net;
use common::collector::{Collector, Span};
use common::server::{Server, answered, parts};
use common::{heavy, models, picture, png, run};
use futures_util::{StreamExt, stream};
use image::ImageFormat;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use reqwest::header::HeaderMap;
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

struct Bench {
    collector: Collector,
    server: Server,
}

impl Bench {
    fn start(net: &Net, flags: &[&str]) -> Self {
        let collector = Collector::start();
        let url = collector.url();
        let env = [("OTEL_BSP_SCHEDULE_DELAY", "20"), ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")];
        let server = Server::start_with(models("net", net).path(), &[&["--otlp-endpoint", &url], flags].concat(), &env);
        Self { collector, server }
    }

    /// An image, posted to `path` with a `traceparent`, if there is one.
    async fn post(&self, path: &str, parent: Option<&str>, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let request = self.server.client.post(self.server.url(path)).body(body);
        let request = parent.into_iter().fold(request, |request, parent| request.header("traceparent", parent));
        request.send().await.unwrap()
    }

    async fn typed(&self) -> ClassifierClient<Channel> {
        let endpoint = Endpoint::new(format!("http://{}", self.server.grpc)).unwrap();
        ClassifierClient::new(endpoint.connect().await.unwrap())
    }
}

fn told(headers: &HeaderMap) -> String {
    headers["traceparent"].to_str().unwrap().to_owned()
}

fn told_by(metadata: &MetadataMap) -> String {
    metadata.get("traceparent").unwrap().to_str().unwrap().to_owned()
}

/// Milliseconds of all spans called `name`.
fn sum(spans: &[&Span], name: &str) -> f64 {
    spans.iter().filter(|span| span.name == name).map(|span| span.milliseconds()).sum()
}

/// Checks that `stages` lie within the request's span, one after the other without a gap, and agree with `timing` as it was
/// answered, in milliseconds to the microsecond.
fn check_stages(request: &Span, stages: &[&Span], timing: impl Fn(&str) -> f64) {
    for stage in stages {
        assert_eq!((&stage.trace, stage.kind), (&request.trace, SpanKind::Internal));
        assert!(request.start <= stage.start && stage.end <= request.end, "{stage:?} is not within {request:?}");
    }
    for pair in stages.windows(2) {
        assert_eq!(pair[0].end, pair[1].start, "{} and {}", pair[0].name, pair[1].name);
    }
    for name in ["decode", "preprocess", "queue", "policy", "backbone"] {
        let (found, expected) = (sum(stages, name), timing(name));
        assert!((found - expected).abs() < 0.0021, "{name}: {found} ms in the trace, {expected} ms in the answer");
    }
    let total: f64 = stages.iter().map(|stage| stage.milliseconds()).sum();
    assert!((total - timing("total")).abs() < 0.0021, "{total} ms in all");
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).filter(|name| *name != "queue").collect()
}

#[tokio::test]
async fn each_stage_has_a_span_below_its_requests() {
    let bench = Bench::start(&Net::tiny(5), &["--trace-sample", "0"]);
    let client = &bench.server.client;
    let request = client.post(bench.server.url("/v1/classify?top_k=1&path=policy")).body(png(1));
    let request =
        request.header("traceparent", parent("01")).header("tracestate", "a=1").header("x-request-id", "mine");
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["tracestate"], "a=1");
    let traceparent = told(response.headers());
    assert_eq!((&traceparent[3..35], &traceparent[52..]), (TRACE, "-01"));
    let answer = answered(response).await;

    let (request, stages) = bench.collector.request(&traceparent).await;
    assert_eq!((&*request.trace, &*request.parent, &*request.state), (TRACE, CALLER, "a=1"));
    assert_eq!((&*request.name, request.kind, request.failed), ("POST /v1/classify", SpanKind::Server, false));
    assert_eq!(request.flags, 0x301, "sampled, with a parent that is remote");
    let expected = json!({
        "http.request.method": "POST", "http.route": "/v1/classify", "http.response.status_code": 200,
        "url.scheme": "http", "blockdrop.model": "net", "blockdrop.model.version": "1", "blockdrop.images": 1,
        "blockdrop.request_id": "mine",
    });
    assert_eq!(json!(request.attributes), expected);
    assert_eq!(request.resource["service.name"], "blockdrop");
    assert_eq!(request.resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(request.resource["deployment.environment.name"], "test");

    assert_eq!(names(&stages), ["decode", "preprocess", "policy", "backbone"]);
    let result = &answer["results"][0];
    check_stages(&request, &stages.iter().collect::<Vec<_>>(), |name| result["timing_ms"][name].as_f64().unwrap());
    let attributes = |name: &str| &stages.iter().find(|span| span.name == name).unwrap().attributes;
    assert_eq!(json!(attributes("decode")), json!({"blockdrop.image": 0, "blockdrop.image.bytes": png(1).len()}));
    let size = json!({"blockdrop.image": 0, "blockdrop.image.width": 16, "blockdrop.image.height": 16});
    assert_eq!(json!(attributes("preprocess")), size);
    assert_eq!(json!(attributes("policy")), json!({"blockdrop.image": 0, "blockdrop.batch.size": 1}));
    let hits = bench.server.metrics().await.paths("net").hits;
    let ran = json!({
        "blockdrop.image": 0, "blockdrop.batch.size": 1, "blockdrop.mask": result["path"]["mask"],
        "blockdrop.blocks.kept": result["path"]["blocks_kept"], "blockdrop.path.compiled": hits == 1.0,
        "blockdrop.batch.masks": 1,
    });
    assert_eq!(json!(attributes("backbone")), ran);
    for queue in stages.iter().filter(|span| span.name == "queue") {
        let before = queue.attributes["blockdrop.queue.before"].as_str().unwrap();
        let next = stages.iter().find(|stage| stage.start == queue.end && stage.id != queue.id);
        assert_eq!(next.map_or("end", |next| &next.name), before);
    }
}

#[tokio::test]
async fn each_image_of_a_batch_has_its_own_spans() {
    let bench = Bench::start(&Net::tiny(5), &["--trace-sample", "1", "--workers", "1", "--path-cache-bytes", "0"]);
    let send = |seed: u64| {
        let images: Vec<Vec<u8>> = (seed..seed + 8).map(png).collect();
        let url = bench.server.url("/v1/classify?path=first_k:2");
        bench.server.client.post(url).multipart(parts(&images)).send()
    };
    for response in futures_util::future::join_all((0..6).map(|number| send(8 * number))).await {
        let response = response.unwrap();
        let traceparent = told(response.headers());
        let answer = answered(response).await;
        let (request, stages) = bench.collector.request(&traceparent).await;
        assert_eq!(request.parent, "", "it begins here");
        assert_eq!(request.attributes["blockdrop.images"], 8);
        for index in 0..8 {
            let own: Vec<&Span> = stages.iter().filter(|stage| stage.attributes["blockdrop.image"] == index).collect();
            let timing = &answer["results"][index]["timing_ms"];
            check_stages(&request, &own, |name| timing[name].as_f64().unwrap());
            let backbone = own.iter().find(|stage| stage.name == "backbone").unwrap();
            assert_eq!(backbone.attributes["blockdrop.mask"], "110000");
            assert_eq!(backbone.attributes["blockdrop.path.compiled"], false);
            assert!((1..=8).contains(&backbone.attributes["blockdrop.batch.size"].as_i64().unwrap()));
            assert!(own.iter().all(|stage| stage.name != "policy"), "it was told its path");
        }
    }
}

#[tokio::test]
async fn a_callers_sampling_is_followed_and_a_share_of_the_others_drawn() {
    for (share, drawn) in [("0", false), ("1", true)] {
        let bench = Bench::start(&Net::tiny(5), &["--trace-sample", share]);
        let mut seen = Vec::new();
        let zeros = format!("00-{}-{CALLER}-01", "0".repeat(32));
        for (parent, recorded, goes_on) in [
            (Some(parent("00")), false, true),
            (Some(parent("01")), true, true),
            (Some(format!("cc-{TRACE}-{CALLER}-01-more")), true, true),
            (Some(parent("02")), false, true),
            (Some(zeros), drawn, false),
            (Some(parent("1")), drawn, false),
            (None, drawn, false),
            (Some(parent("01")), true, true), // those before it have come when it has
        ] {
            let response = bench.post("/v1/classify", parent.as_deref(), png(1)).await;
            let traceparent = told(response.headers());
            assert_eq!(traceparent[3..35] == *TRACE, goes_on, "{parent:?}");
            let sampled = u8::from_str_radix(&traceparent[53..], 16).unwrap() & 1 == 1;
            assert_eq!(sampled, recorded, "{parent:?} with a share of {share}");
            seen.push((traceparent, recorded));
        }
        bench.collector.request(&seen.last().unwrap().0).await;
        for (traceparent, recorded) in seen {
            let came = bench.collector.spans().iter().any(|span| span.is_told_by(&traceparent));
            assert_eq!(came, recorded, "{traceparent}");
        }
        // Nobody asks how long health took, or the page.
        for path in ["/v2/health/ready", "/", "/docs"] {
            let response = bench.server.client.get(bench.server.url(path)).header("traceparent", parent("01"));
            assert!(told(response.send().await.unwrap().headers()).ends_with("-00"), "{path}");
        }
    }
}

#[tokio::test]
async fn what_fails_is_told_to_the_collector_too() {
    let bench = Bench::start(&heavy(5), &["--trace-sample", "1", "--workers", "1"]);
    let image = picture(1, 128, ImageFormat::Png);
    let cases: [(&str, Vec<u8>, u16, &str, bool); 4] = [
        ("/v1/classify", b"junk".to_vec(), 415, "POST /v1/classify", false),
        ("/v2/models/nobody/infer", b"{}".to_vec(), 404, "POST /v2/models/{model}/infer", false),
        ("/secret-path?secret=query", b"junk".to_vec(), 404, "POST", false),
        ("/v1/classify?path=full&timeout=1", image.clone(), 504, "POST /v1/classify", true),
    ];
    for (path, body, status, name, failed) in cases {
        let response = bench.post(path, None, body).await;
        let traceparent = told(response.headers());
        let answer: Value = response.json().await.unwrap();
        let (request, stages) = bench.collector.request(&traceparent).await;
        assert_eq!((&*request.name, request.failed), (name, failed), "{path}");
        assert_eq!(request.attributes["http.response.status_code"], status, "{path}");
        assert_eq!(request.attributes["blockdrop.code"], answer["code"]);
        assert_eq!(request.attributes.contains_key("error.type"), failed);
        let bad = stages.iter().any(|stage| stage.name == "decode" && stage.failed);
        assert_eq!(bad, answer["code"] == "unsupported_image_type", "{path}");
        assert!(!format!("{request:?}{stages:?}").contains("secret"));
    }
    // A client that leaves is no failure of the server's, and is seen.
    let (client, url) = (bench.server.client.clone(), bench.server.url("/v1/classify?path=full"));
    let request = client.post(url).header("traceparent", parent("01")).multipart(parts(&vec![image; 8])).send();
    let request = tokio::spawn(request);
    bench.server.until(|series| series.of("blockdrop_inflight_requests") > 0.0).await;
    request.abort();
    let left = async || bench.collector.spans().into_iter().find(|span| span.parent == CALLER);
    let left = loop {
        if let Some(left) = left().await {
            break left;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(
        (left.attributes.get("http.response.status_code"), &left.attributes["error.type"]),
        (None, &json!("cancelled"))
    );
}

#[tokio::test]
async fn calls_and_the_messages_of_streams_have_spans() {
    let bench = Bench::start(&Net::tiny(5), &["--trace-sample", "0"]);
    let asked = |image: Vec<u8>| ClassifyRequest { image: image.into(), ..ClassifyRequest::default() };
    fn traced<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("traceparent", parent("01").parse().unwrap());
        request.metadata_mut().insert("tracestate", "a=1,b=2".parse().unwrap());
        request
    }
    let response = bench.typed().await.classify(traced(asked(png(1)))).await.unwrap();
    let traceparent = told_by(response.metadata());
    assert_eq!(response.metadata().get("tracestate").unwrap(), "a=1,b=2");
    let (call, stages) = bench.collector.request(&traceparent).await;
    let timing = response.into_inner().timing.unwrap();
    let timing = |name: &str| match name {
        "decode" => timing.decode_ms,
        "preprocess" => timing.preprocess_ms,
        "queue" => timing.queue_ms,
        "policy" => timing.policy_ms,
        "backbone" => timing.backbone_ms,
        _ => timing.total_ms,
    };
    assert_eq!((&*call.trace, &*call.parent, &*call.name), (TRACE, CALLER, "blockdrop.v1.Classifier/Classify"));
    assert_eq!((call.kind, call.failed, &*call.state), (SpanKind::Server, false, "a=1,b=2"));
    let id = call.attributes["blockdrop.request_id"].clone();
    let expected = json!({
        "rpc.system": "grpc", "rpc.service": "blockdrop.v1.Classifier", "rpc.method": "Classify",
        "rpc.grpc.status_code": 0, "blockdrop.model": "net", "blockdrop.model.version": "1", "blockdrop.images": 1,
        "blockdrop.request_id": id,
    });
    assert_eq!(json!(call.attributes), expected);
    assert_eq!(names(&stages), ["decode", "preprocess", "policy", "backbone"]);
    check_stages(&call, &stages.iter().collect::<Vec<_>>(), timing);

    let status = bench.typed().await.classify(traced(asked(vec![]))).await.expect_err("no image");
    assert_eq!(status.code(), Code::InvalidArgument);
    let (call, stages) = bench.collector.request(&told_by(status.metadata())).await;
    assert_eq!((call.failed, stages.len()), (false, 0));
    assert_eq!(
        (&call.attributes["rpc.grpc.status_code"], &call.attributes["blockdrop.code"]),
        (&json!(3), &json!("empty_body"))
    );

    let messages = stream::iter([asked(png(1)), asked(b"junk".to_vec()), asked(png(2))]);
    let response = bench.typed().await.classify_stream(traced(messages)).await.unwrap();
    let traceparent = told_by(response.metadata());
    let answers: Vec<_> = response.into_inner().collect().await;
    let good = answers.iter().filter(|answer| matches!(answer.as_ref().unwrap().result, Some(Either::Response(_))));
    assert_eq!(good.count(), 2);
    let (call, messages) = bench.collector.request(&traceparent).await;
    assert_eq!((&*call.name, call.failed, messages.len()), ("blockdrop.v1.Classifier", false, 3));
    let mut stages = 0;
    for message in &messages {
        assert_eq!((&*message.name, message.kind), ("ClassifyStream message", SpanKind::Internal));
        stages +=
            bench.collector.spans().iter().filter(|span| span.parent == message.id && span.name != "queue").count();
    }
    assert_eq!(stages, 4 + 1 + 4, "of the bad one its decode");
}

#[tokio::test]
async fn a_collector_that_does_not_answer_costs_nothing_but_spans() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    for (collector, says_so) in [(gone, true), (mute.local_addr().unwrap(), false)] {
        let url = format!("http://{collector}");
        let flags = ["--otlp-endpoint", &url, "--trace-sample", "1"];
        let env = [("OTEL_BSP_SCHEDULE_DELAY", "10")];
        let mut server = Server::start_with(models("net", &Net::tiny(5)).path(), &flags, &env);
        for seed in 0..40 {
            server.classify("", png(seed)).await;
        }
        if says_so {
            server.logged(|line| line["message"].as_str().is_some_and(|text| text.starts_with("spans are lost")));
        }
        for seed in 0..40 {
            server.classify("", png(seed)).await;
        }
        server.signal(Signal::TERM);
        assert_eq!(server.ended().code(), Some(0), "{url}");
        let about = |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("spans"));
        let lines: Vec<Value> = server.log().into_iter().filter(about).collect();
        assert!((1..=2).contains(&lines.len()), "while it runs, and at its end: {lines:?}");
        assert!(lines.iter().all(|line| line["level"] == "WARN"), "{lines:?}");
    }
}

#[tokio::test]
async fn what_waits_is_exported_at_the_end() {
    let collector = Collector::start();
    let url = collector.url();
    let env = [
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ("OTEL_SERVICE_NAME", "cats"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];
    let flags = ["--otlp-endpoint", &*url, "--trace-sample", "1"];
    let mut server = Server::start_with(models("net", &Net::tiny(5)).path(), &flags, &env);
    let traceparent = told(server.post("", png(1)).await.headers());
    assert!(collector.spans().is_empty(), "nothing is exported yet");
    server.signal(Signal::TERM);
    assert_eq!(server.ended().code(), Some(0));
    let spans = collector.spans();
    let request = spans.iter().find(|span| span.is_told_by(&traceparent)).unwrap();
    assert_eq!(request.resource["service.name"], "cats");
}

#[tokio::test]
async fn without_a_collector_a_trace_goes_on_all_the_same() {
    let server = Server::start(models("net", &Net::tiny(5)).path(), &["--trace-sample", "1"]);
    for (path, expected) in [("/v1/classify", 200), ("/nowhere", 404)] {
        let request = server.client.post(server.url(path)).header("traceparent", parent("01")).body(png(1));
        let response = request.send().await.unwrap();
        let traceparent = told(response.headers());
        assert_eq!((response.status().as_u16(), &traceparent[3..35], &traceparent[52..]), (expected, TRACE, "-00"));
        assert_ne!(&traceparent[36..52], CALLER);
    }
    let admin = server.get_admin("/metrics").await;
    assert_eq!(told(admin.headers()).len(), 55);
}

#[test]
fn a_collector_that_is_none_is_refused_at_the_start() {
    let refused = run(["serve", "--otlp-endpoint", "https://collector:4317", "--trace-sample", "2"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let lines: Vec<&str> = refused.err.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    common::contains(
        &refused.err,
        &[
            "--otlp-endpoint: found 'https://collector:4317', expected http://HOST:PORT",
            "--trace-sample: found '2', expected a share from 0 to 1",
        ],
    );
}
